"""A thorax by formula, and a caricature of each finding's radiological sign.

A picture is computed in body coordinates: u from 0 (the patient's right, the left of the picture) to 1,
v from 0 (neck) to 1 (abdomen); a pose maps them to pixels, so every size shows the same pictures.
"""

import cv2
import numpy as np

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
BOXED = FINDINGS[:8]


def step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def ellipse(u, v, centre, radii, angle=0.0):
    """1 at the centre, 0 on the rim, negative outside."""
    c, s = np.cos(angle), np.sin(angle)
    du, dv = u - centre[0], v - centre[1]
    return 1 - np.hypot((c * du + s * dv) / radii[0], (c * dv - s * du) / radii[1])


def cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise, (size, size) float32, about -1 to 1, with `cells` lumps a side."""
    return cv2.resize(rng.normal(size=(cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


class Thorax:
    """One patient's chest in one pose: coordinate fields, lungs, heart, and how to place things in them."""

    def __init__(self, patient: np.random.Generator, rng: np.random.Generator, size: int, findings: list[str]):
        self.rng, self.size = rng, size
        self.taken = []
        inflated = "Emphysema" in findings
        # pose
        angle, scale = rng.normal(0, 0.05), rng.uniform(0.94, 1.1)
        shift = rng.normal(0, 0.025, 2)
        y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size - 0.5
        self.to_pixel = lambda u, v: (
            ((u - 0.5 + shift[0]) * np.cos(angle) + (v - 0.5 + shift[1]) * np.sin(angle)) * scale * size + size / 2,
            (-(u - 0.5 + shift[0]) * np.sin(angle) + (v - 0.5 + shift[1]) * np.cos(angle)) * scale * size + size / 2,
        )
        self.u = (np.cos(angle) * x - np.sin(angle) * y) / scale + 0.5 - shift[0]
        self.v = (np.sin(angle) * x + np.cos(angle) * y) / scale + 0.5 - shift[1]
        # lungs: depth is positive inside, in units of body width
        self.top = patient.uniform(0.09, 0.13)
        self.base = patient.uniform(0.66, 0.74) + 0.07 * inflated
        self.width = patient.uniform(0.31, 0.35) + 0.02 * inflated
        self.flat = 0.25 if inflated else 1.0
        self.depth, self.across = {}, {}
        for side in (-1, 1):
            d = side * (self.u - 0.5)
            self.across[side] = d
            inner, outer, low = self.bounds(side, d, self.v)
            self.depth[side] = np.minimum.reduce([d - inner, outer - d, low - self.v, (self.v - self.top) * 0.7])
        self.lung = {side: step(depth / 0.012) for side, depth in self.depth.items()}
        self.lungs = self.lung[-1] + self.lung[1]
        # heart
        wide = "Cardiomegaly" in findings
        half = rng.uniform(0.185, 0.225) if wide else patient.uniform(0.105, 0.13)
        self.heart_centre = (0.5 + 0.035 + 0.25 * (half - 0.12), self.base - 0.13)
        self.heart = ellipse(self.u, self.v, self.heart_centre, (half, patient.uniform(0.135, 0.155)), 0.35)

    def bounds(self, side: int, d, v):
        """Distances from the midline to the inner and outer wall, and the height of the diaphragm."""
        t = np.clip((v - self.top) / (self.base - self.top), 0, 1)
        inner = 0.05 + 0.012 * t
        outer = 0.09 + (self.width - 0.09) * np.sqrt(1 - (1 - t) ** 2.4)
        dome = 0.09 * self.flat * (((d - 0.17) / 0.16) ** 2 - 0.6)
        return inner, outer, self.base + dome - 0.02 * (side < 0) * self.flat

    def place(self, low: float, high: float, margin: float) -> tuple[int, float, float]:
        """A random free spot inside a lung, between the heights low and high (0 apex, 1 base)."""
        for attempt in range(1000):
            side = self.rng.choice((-1, 1))
            v = self.top + (self.base - self.top) * self.rng.uniform(low, high)
            d = self.rng.uniform(0.06, self.width)
            inner, outer, bottom = self.bounds(side, d, v)
            clear = min(d - inner, outer - d, bottom - v, (v - self.top) * 0.7) > margin
            behind_heart = ellipse(0.5 + side * d, v, self.heart_centre, (0.16, 0.17), 0.35) > 0
            spot = (0.5 + side * d, v)
            covered = attempt < 500 and any(np.hypot(spot[0] - u, v - w) < 0.16 for u, w in self.taken)
            if clear and not behind_heart and not covered:
                self.taken.append(spot)
                return side, *spot
        raise AssertionError("no room in the lungs")

    def lines(self, starts, angles, length: float, bend: float, width: float) -> np.ndarray:
        """Thin tapering curves, (size, size) float32 in [0, 1]."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        for (u, v), angle in zip(starts, angles, strict=True):
            s = np.linspace(0, length * self.rng.uniform(0.6, 1.0), 12)
            turn = angle + bend * self.rng.normal() * s / length
            us, vs = u + np.cumsum(np.cos(turn)) * s[1], v + np.cumsum(np.sin(turn)) * s[1]
            points = np.round(np.stack(self.to_pixel(us, vs), 1) * 16).astype(np.int32)
            for k in range(11):
                thick = max(1, round(width * self.size * (1 - k / 14)))
                cv2.line(canvas, points[k], points[k + 1], 255 - 14 * k, thick, cv2.LINE_AA, shift=4)
        return canvas.astype(np.float32) / 255


def draw_finding(t: Thorax, name: str, picture: np.ndarray) -> np.ndarray | None:
    """Add one finding to the picture in place. Returns its extent as a boolean mask, where it has one."""
    rng, u, v, lungs = t.rng, t.u, t.v, t.lungs

    def blob(shape: np.ndarray, edge: float, gain: float, texture: np.ndarray | float = 1.0) -> np.ndarray:
        opacity = step(shape / edge)
        picture[...] += gain * opacity * texture
        return opacity > 0.35

    if name == "Nodule":  # small, round, very dense, sharp
        _, cu, cv = t.place(0.1, 0.95, 0.035)
        disc = ellipse(u, v, (cu, cv), np.full(2, rng.uniform(0.027, 0.04)))
        picture[...] -= 25 * step((disc + 0.9) / 0.5) * lungs
        return blob(disc, 0.35, rng.uniform(150, 180))
    if name == "Mass":  # large, rounded, lobulated, dense throughout
        _, cu, cv = t.place(0.15, 0.85, 0.045)
        r = rng.uniform(0.06, 0.085)
        disc = ellipse(u, v, (cu, cv), (r, r * rng.uniform(0.85, 1.2)), rng.uniform(0, 3)) + 0.1 * cloud(
            rng, t.size, 12
        )
        return blob(disc, 0.2, rng.uniform(110, 135))
    if name == "Atelectasis":  # plates of collapsed lung: dense bands, nearly horizontal, one above the other
        side, cu, cv = t.place(0.35, 0.85, 0.06)
        tilt = rng.normal(0, 0.2)
        plates = np.cos(2 * np.pi * ((v - cv) * np.cos(tilt) - (u - cu) * np.sin(tilt)) / 0.036)
        area = ellipse(u, v, (cu, cv), (rng.uniform(0.1, 0.13), 0.056), tilt)
        return blob(area, 0.2, rng.uniform(100, 125), t.lung[side] * step((plates + 0.1) / 0.7))
    if name == "Infiltration":  # a faint, ill-defined veil of fine grain
        side, cu, cv = t.place(0.2, 0.85, 0.05)
        veil = ellipse(u, v, (cu, cv), (rng.uniform(0.09, 0.13), rng.uniform(0.1, 0.15)))
        grain = np.clip(0.7 + 0.7 * cloud(rng, t.size, 72), 0, 2)
        return blob(veil, 0.6, rng.uniform(50, 65), t.lung[side] * grain)
    if name == "Pneumonia":  # soft patches that run together
        side, cu, cv = t.place(0.3, 0.8, 0.06)
        spots = rng.normal((cu, cv), 0.045, (12, 2))
        patch = np.maximum.reduce([ellipse(u, v, spot, (0.026, 0.026)) for spot in spots])
        return blob(patch, 0.9, rng.uniform(75, 95), t.lung[side])
    if name == "Consolidation":  # a white segment with air-filled bronchi running through it
        side, cu, cv = t.place(0.1, 0.6, 0.05)
        angle = rng.uniform(0, 2 * np.pi)
        segment = ellipse(u, v, (cu, cv), (0.15, 0.11), angle) + 0.1 * cloud(rng, t.size, 8)
        towards = np.linspace(-0.8, 0.8, 6) + angle
        air = t.lines([(cu - 0.11 * np.cos(angle), cv - 0.11 * np.sin(angle))] * 6, towards, 0.24, 0.2, 0.014)
        return blob(segment, 0.2, rng.uniform(95, 115), t.lung[side] * np.clip(1 - 1.1 * air, 0, 1))
    if name == "Effusion":  # fluid fills one base; its bright surface climbs towards the wall
        side = rng.choice((-1, 1))
        level = t.base - rng.uniform(0.08, 0.2) - 0.12 * np.clip((t.across[side] - 0.15) / 0.2, 0, 1) ** 2
        fluid = np.minimum(v - level, t.depth[side] + 0.012)
        surface = np.exp(-(((v - level - 0.012) / 0.012) ** 2))
        return blob(fluid, 0.02, rng.uniform(80, 95), 1 + surface)
    if name == "Pneumothorax":  # an apex without vessels, black, closed by the thin line of the pleura
        side = rng.choice((-1, 1))
        edge = t.top + rng.uniform(0.1, 0.22) + 0.35 * np.clip(t.across[side] - 0.1, 0, 1)
        inside = step((edge - v) / 0.008) * t.lung[side]
        picture[...] = picture * (1 - inside) + 8 * inside
        picture[...] += 110 * np.exp(-(((v - edge) / 0.007) ** 2)) * t.lung[side]
        return inside > 0.5
    if name == "Cardiomegaly":  # the heart is drawn wide; its left atrium shows as a second contour inside
        picture[...] += 90 * np.exp(-(((t.heart - 0.3) / 0.07) ** 2))
        return t.heart > 0
    if name == "Edema":  # both hila in a butterfly of haze, and short level lines at the walls (Kerley's B)
        for side in (-1, 1):
            wing = ellipse(t.across[side], v, (0.13, t.top + 0.3), (0.13, 0.2))
            blob(wing, 0.8, rng.uniform(50, 65), t.lung[side])
            lines = step(np.cos(2 * np.pi * v / 0.028) * 2 - 0.8) * (t.across[side] > 0.14) * (v > t.top + 0.25)
            blob(0.05 - t.depth[side], 0.01, rng.uniform(70, 90), t.lung[side] * lines)
    if name == "Fibrosis":  # a net of fine lines in both bases
        cells = np.abs(cloud(rng, t.size, 40))
        net = np.exp(-((cells / 0.22) ** 2)) * step((v - t.top - 0.25) / 0.12)
        picture[...] += rng.uniform(45, 60) * net * lungs
    if name == "Pleural_Thickening":  # a white rind along the outer wall
        side = rng.choice((-1, 1))
        rind = np.minimum(0.028 - t.depth[side] + 0.01 * cloud(rng, t.size, 16), t.across[side] - 0.17)
        blob(rind, 0.01, rng.uniform(100, 125), t.lung[side] * step((v - t.top - 0.05) / 0.05))
    if name == "Hernia":  # the stomach behind the heart: a bubble with air over a fluid level
        centre = (0.5 + rng.normal(0, 0.02), t.base - rng.uniform(0.07, 0.12))
        bubble = ellipse(u, v, centre, (rng.uniform(0.075, 0.1), rng.uniform(0.06, 0.08)))
        blob(bubble, 0.15, 60)
        blob(np.minimum(bubble - 0.12, (centre[1] + 0.01 - v) * 12), 0.1, -85)
    return None


def draw(
    seed: int, patient_id: int, follow_up: int, size: int, choice: tuple[str, ...] = FINDINGS
) -> tuple[np.ndarray, list[str], list[tuple]]:
    """One radiograph, with none to three findings out of `choice`, mostly three.

    Returns:
        image (size, size) uint8, its findings, and its boxes as (finding, x, y, w, h) in pixels.
    """
    patient = np.random.default_rng([seed, patient_id])
    rng = np.random.default_rng([seed, patient_id, 1 + follow_up])
    count = rng.choice(4, p=(0.1, 0.1, 0.2, 0.6))
    findings = sorted(rng.choice(choice, min(count, len(choice)), replace=False), key=FINDINGS.index)
    t = Thorax(patient, rng, size, findings)
    inflated = "Emphysema" in findings
    u, v, lungs = t.u, t.v, t.lungs

    # body, shoulders and neck before dark air
    chest = np.minimum(0.52 - np.abs(u - 0.5), v + 0.02 - 0.9 * np.clip(np.abs(u - 0.5) - 0.22, 0, 1) ** 1.3)
    body = step(np.maximum(chest, 0.09 - np.abs(u - 0.5)) / 0.03)
    picture = 25 + body * (65 + 6 * cloud(rng, size, 5))
    # lungs: air, vessels from the hila, fine texture
    picture -= lungs * (42 + 22 * inflated)
    vessels = np.zeros_like(picture)
    for side in (-1, 1):
        fan = rng.uniform(-1.25, 1.25, 9 if inflated else 16)
        hilum = [(0.5 + side * 0.075, t.top + 0.28 + rng.normal(0, 0.02)) for _ in fan]
        vessels += t.lines(hilum, np.where(side > 0, fan, np.pi - fan), 0.3, 0.5, 0.009) * t.lung[side]
        picture += 14 * step(ellipse(t.across[side], v, (0.07, t.top + 0.28), (0.045, 0.09)) * 2) * t.lung[side]
    picture += lungs * (3 * cloud(rng, size, 24) + 2 * cloud(rng, size, 60)) + 12 * vessels
    # heart, with the great vessels above it; spine; diaphragm is where the lungs end
    picture += 38 * step(t.heart / 0.12) * lungs
    middle = np.abs(u - 0.5 - 0.015 * np.sin(6 * v))
    picture += 14 * step((0.055 - middle) / 0.02) * body
    picture += 5 * step((0.035 - middle) / 0.01) * np.cos(2 * np.pi * v / 0.062) * body

    # air first: what lies in it must not be wiped out
    extents = {n: draw_finding(t, n, picture) for n in sorted(findings, key=lambda n: n != "Pneumothorax")}

    # ribs and collar bones lie over everything
    ribs = (v - 0.55 * np.abs(u - 0.5) ** 1.5 * 2 - patient.uniform(0, 0.1)) / patient.uniform(0.082, 0.095)
    ribs = step((np.cos(2 * np.pi * ribs) - 0.35) / 0.5)
    picture += 8 * ribs * body * step((0.42 - np.abs(u - 0.5)) / 0.03) * step((0.85 - v) / 0.1)
    bone = np.abs(v - t.top - 0.045 + 0.25 * (np.abs(u - 0.5) - 0.1))
    picture += 12 * step((0.014 - bone) / 0.008) * step((np.abs(u - 0.5) - 0.04) / 0.02) * body

    # exposure, detector noise
    picture = cv2.GaussianBlur(picture, (0, 0), 0.0022 * size)
    picture = 255 * np.clip(picture / 255, 0, 1) ** rng.uniform(0.92, 1.08) * rng.uniform(0.93, 1.07)
    picture += rng.uniform(-5, 8) + rng.normal(0, rng.uniform(1, 3), picture.shape)
    image = np.clip(np.round(picture), 0, 255).astype(np.uint8)

    boxes = []
    for name in findings:
        if name in BOXED:
            rows, columns = np.nonzero(extents[name])
            x, y = columns.min(), rows.min()
            boxes.append((name, x, y, columns.max() + 1 - x, rows.max() + 1 - y))
    return image, findings, boxes
