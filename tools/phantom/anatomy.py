"""One patient's chest in one pose: coordinates, the shapes of its organs, free spots for findings.

u goes from 0 (the patient's right, the left of the image) to 1, v from 0 (neck) to 1 (abdomen);
a pose maps them to pixels, so the image is the same at every size. d is the distance of a point
from the midline, on either side. Proportions are those of a frontal (PA) radiograph.
"""

import cv2
import numpy as np

Number = float | np.ndarray  # one number or an array

SIDES = (-1, 1)  # left and right side of the image
DRAWN = 1024  # vessels and text are drawn at about this size, then shrunk


def step(x: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 below 0, 1 above 1, smooth in between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def ridge(distance: np.ndarray, width: float) -> np.ndarray:
    """A line: 1 where the distance is 0, falling off with a standard deviation of `width`."""
    return np.exp(-((distance / width) ** 2) / 2)


def ellipse(
    u: Number,
    v: Number,
    centre: tuple[Number, Number],
    radii: tuple[Number, Number],
    angle: float = 0.0,
) -> np.ndarray:
    """1 at the centre, 0 on the rim, negative outside."""
    c = np.cos(angle)
    s = np.sin(angle)
    du = u - centre[0]
    dv = v - centre[1]
    return 1 - np.hypot((c * du + s * dv) / radii[0], (c * dv - s * du) / radii[1])


def cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise, (size, size) float32, about -1 to 1, with `cells` lumps per side."""
    lumps = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(lumps, (size, size), interpolation=cv2.INTER_CUBIC)


class Thorax:
    """Coordinates and shapes.

    Args:
        patient: the generator of what all radiographs of a patient have in common.
        rng: the generator of this radiograph.
        size: height and width in pixels.
        findings: of this radiograph; Emphysema and Cardiomegaly change the shapes.
    """

    def __init__(
        self,
        patient: np.random.Generator,
        rng: np.random.Generator,
        size: int,
        findings: list[str],
    ):
        self.rng = rng
        self.size = size
        self.taken: list[tuple[float, float]] = []  # centres of findings, in u and v
        self.inflated = "Emphysema" in findings

        # pose: the coordinates u and v of each pixel
        self.angle = rng.normal(0, 0.04)
        self.scale = rng.uniform(0.95, 1.08)
        self.shift = rng.normal(0, 0.02, 2)
        y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size - 0.5
        c = np.cos(self.angle)
        s = np.sin(self.angle)
        self.u = (c * x - s * y) / self.scale + 0.5 - self.shift[0]
        self.v = (s * x + c * y) / self.scale + 0.5 - self.shift[1]
        self.aside = np.abs(self.u - 0.5)
        self.across = {side: side * (self.u - 0.5) for side in SIDES}

        # lungs: depth is positive inside, in units of the image's side; a deep breath is a
        # look-alike of emphysema
        breath = rng.uniform(-0.02, 0.03)
        self.top = patient.uniform(0.1, 0.14)
        self.base = patient.uniform(0.66, 0.71) + breath + 0.05 * self.inflated
        self.width = patient.uniform(0.325, 0.36) + 0.015 * self.inflated
        self.dome = patient.uniform(0.8, 1.2) * (0.15 if self.inflated else 1.0)
        self.depth = {side: self.depth_inside(side, self.across[side], self.v) for side in SIDES}
        self.lung = {side: step(depth / 0.012) for side, depth in self.depth.items()}
        self.lungs = self.lung[-1] + self.lung[1]
        self.air = np.zeros_like(self.lungs)  # 0 to about 1, where the heart leaves room
        self.bare = np.zeros_like(self.lungs)  # the picture before vessels are drawn

        # heart: a tilted ellipse, whose apex points to the patient's left, and the right atrium
        wide = "Cardiomegaly" in findings
        half = rng.uniform(0.165, 0.195) if wide else patient.uniform(0.11, 0.14)
        half = half - 0.015 * self.inflated
        self.heart_centre = (0.5 + 0.03 + 0.15 * (half - 0.12), self.base - 0.125)
        radii = (half, patient.uniform(0.12, 0.135) + 0.15 * (half - 0.12))
        left = ellipse(self.u, self.v, self.heart_centre, radii, 0.4)
        atrium_centre = (0.5 - 0.35 * half, self.base - 0.15)
        atrium = ellipse(self.u, self.v, atrium_centre, (0.4 * half, 0.09))
        self.heart = np.maximum(left, 0.7 * atrium)

    def to_pixel(self, u: Number, v: Number) -> tuple[Number, Number]:
        """Pixel coordinates x, y of points in body coordinates."""
        c = np.cos(self.angle)
        s = np.sin(self.angle)
        du = u - 0.5 + self.shift[0]
        dv = v - 0.5 + self.shift[1]
        x = (du * c + dv * s) * self.scale * self.size + self.size / 2
        y = (-du * s + dv * c) * self.scale * self.size + self.size / 2
        return x, y

    def depth_inside(self, side: int, d: Number, v: Number) -> Number:
        """How far a point lies inside a lung.

        Args:
            side: -1 or 1.
            d: distance from the midline, towards that side.
            v: vertical position.
        """
        # from the midline to the inner and outer wall, and the height of the diaphragm
        t = np.clip((v - self.top) / (self.base - self.top), 0, 1)
        inner = 0.055 + 0.01 * t
        outer = 0.09 + (self.width - 0.09) * np.sqrt(1 - (1 - t) ** 2.6)
        dome = 0.085 * self.dome * (((d - 0.17) / 0.15) ** 2 - 0.7)
        low = self.base + dome - 0.02 * (side < 0) * self.dome
        return np.minimum.reduce([d - inner, outer - d, low - v, (v - self.top) * 0.7])

    def place(self, low: float, high: float, margin: float) -> tuple[int, float, float]:
        """A random free spot inside a lung, between two heights (0 apex, 1 base): side, u, v."""
        for attempt in range(1000):
            side = int(self.rng.choice(SIDES))
            v = self.top + (self.base - self.top) * self.rng.uniform(low, high)
            d = self.rng.uniform(0.06, self.width)
            u = 0.5 + side * d
            inside = self.depth_inside(side, d, v) > margin
            behind_heart = ellipse(u, v, self.heart_centre, (0.16, 0.17), 0.35) > 0
            covered = any(np.hypot(u - other[0], v - other[1]) < 0.16 for other in self.taken)
            # after 500 attempts without a free spot, findings may overlap
            if inside and not behind_heart and not (covered and attempt < 500):
                self.taken.append((u, v))
                return side, u, v
        raise AssertionError("no room in the lungs")

    def branches(
        self,
        start: tuple[float, float],
        angles: np.ndarray,
        length: float,
        width: float,
        twigs: float = 0.0,
    ) -> np.ndarray:
        """Curves that taper and fork, such as vessels, (size, size) float32 in [0, 1].

        Args:
            start: where they begin, u and v.
            angles: a direction for each, in radians.
            length, width: of each, in units of the image's side.
            twigs: chance, at each of 14 steps, of a fork.
        """
        factor = max(1, round(DRAWN / self.size))
        canvas = np.zeros((self.size * factor, self.size * factor), np.uint8)
        growing = [(*start, angle, length * self.rng.uniform(0.7, 1.0), width) for angle in angles]
        while growing:
            u, v, angle, reach, thick = growing.pop()
            turns = np.cumsum(self.rng.normal(0, 0.16, 14)) + angle
            us = u + np.cumsum(np.cos(turns)) * reach / 14
            vs = v + np.cumsum(np.sin(turns)) * reach / 14
            widths = thick * (1 - np.arange(14) / 16)
            forks = (self.rng.random(14) < twigs) & (widths > 0.002) & (np.arange(14) > 2)
            for k in np.flatnonzero(forks):
                fork = turns[k] + self.rng.choice(SIDES) * self.rng.uniform(0.35, 0.8)
                growing.append((us[k], vs[k], fork, reach * (1 - k / 20) * 0.6, 0.7 * widths[k]))

            # in sixteenths of a pixel, from one point to the next
            xy = self.to_pixel(np.append(u, us), np.append(v, vs))
            points = np.round(np.stack(xy, 1) * factor * 16).astype(np.int32)
            thicks = np.maximum(1, np.round(widths * canvas.shape[0])).astype(int).tolist()
            greys = (255 * np.minimum(1.0, 0.3 + widths / width)).astype(int).tolist()
            for k in range(14):
                ends = (points[k], points[k + 1])
                cv2.line(canvas, *ends, greys[k], thicks[k], cv2.LINE_AA, shift=4)
        small = cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / 255
