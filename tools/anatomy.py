"""A thorax defined by formulas, in body coordinates.

u goes from 0 (the patient's right, the left of the image) to 1, v from 0 (neck) to 1 (abdomen);
a pose maps them to pixels, so the image is the same at every size.
"""

from collections.abc import Sequence

import cv2
import numpy as np

Number = float | np.ndarray  # one number or an array
Point = tuple[float, float]

SIDES = (-1, 1)  # left and right side of the image


def step(x: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 below 0, 1 above 1, smooth in between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


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
    """One patient's chest in one pose: coordinates, lungs, heart, free spots for findings."""

    def __init__(
        self,
        patient: np.random.Generator,
        rng: np.random.Generator,
        size: int,
        findings: list[str],
    ):
        self.rng = rng
        self.size = size
        self.taken: list[Point] = []
        self.inflated = "Emphysema" in findings

        # pose: the coordinates u and v of each pixel
        self.angle = rng.normal(0, 0.05)
        self.scale = rng.uniform(0.94, 1.1)
        self.shift = rng.normal(0, 0.025, 2)
        y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size - 0.5
        c = np.cos(self.angle)
        s = np.sin(self.angle)
        self.u = (c * x - s * y) / self.scale + 0.5 - self.shift[0]
        self.v = (s * x + c * y) / self.scale + 0.5 - self.shift[1]

        # body with shoulders and neck; the rest is air
        aside = np.abs(self.u - 0.5)
        shoulders = self.v + 0.02 - 0.9 * np.clip(aside - 0.22, 0, 1) ** 1.3
        chest = np.minimum(0.52 - aside, shoulders)
        self.body = step(np.maximum(chest, 0.09 - aside) / 0.03)

        # lungs: depth is positive inside, in units of body width
        self.top = patient.uniform(0.09, 0.13)
        self.base = patient.uniform(0.66, 0.74) + 0.07 * self.inflated
        self.width = patient.uniform(0.31, 0.35) + 0.02 * self.inflated
        self.flat = 0.25 if self.inflated else 1.0
        self.across = {side: side * (self.u - 0.5) for side in SIDES}
        self.depth = {side: self.depth_inside(side, self.across[side], self.v) for side in SIDES}
        self.lung = {side: step(depth / 0.012) for side, depth in self.depth.items()}
        self.lungs = self.lung[-1] + self.lung[1]

        # heart
        wide = "Cardiomegaly" in findings
        half = rng.uniform(0.185, 0.225) if wide else patient.uniform(0.105, 0.13)
        self.heart_centre = (0.5 + 0.035 + 0.25 * (half - 0.12), self.base - 0.13)
        radii = (half, patient.uniform(0.135, 0.155))
        self.heart = ellipse(self.u, self.v, self.heart_centre, radii, 0.35)

    def to_pixel(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
        inner = 0.05 + 0.012 * t
        outer = 0.09 + (self.width - 0.09) * np.sqrt(1 - (1 - t) ** 2.4)
        dome = 0.09 * self.flat * (((d - 0.17) / 0.16) ** 2 - 0.6)
        low = self.base + dome - 0.02 * (side < 0) * self.flat
        return np.minimum.reduce([d - inner, outer - d, low - v, (v - self.top) * 0.7])

    def place(self, low: float, high: float, margin: float) -> tuple[int, float, float]:
        """A random free spot inside a lung, between two heights (0 apex, 1 base): side, u, v."""
        for attempt in range(1000):
            side = self.rng.choice(SIDES)
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

    def lines(
        self,
        starts: Sequence[Point],
        angles: np.ndarray,
        length: float,
        bend: float,
        width: float,
    ) -> np.ndarray:
        """Thin tapering curves, (size, size) float32 in [0, 1]."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        for (u, v), angle in zip(starts, angles, strict=True):
            # 12 points along a curve, in sixteenths of a pixel
            s = np.linspace(0, length * self.rng.uniform(0.6, 1.0), 12)
            turn = angle + bend * self.rng.normal() * s / length
            us = u + np.cumsum(np.cos(turn)) * s[1]
            vs = v + np.cumsum(np.sin(turn)) * s[1]
            points = np.round(np.stack(self.to_pixel(us, vs), 1) * 16).astype(np.int32)
            for k in range(11):
                thick = max(1, round(width * self.size * (1 - k / 14)))
                grey = 255 - 14 * k
                cv2.line(canvas, points[k], points[k + 1], grey, thick, cv2.LINE_AA, shift=4)
        return canvas.astype(np.float32) / 255
