"""One synthetic radiograph: a thorax drawn by formulas (anatomy.py) with findings (signs.py)."""

import cv2
import numpy as np

from anatomy import SIDES, Thorax, cloud, ellipse, step
from signs import SIGNS

Box = tuple[str, int, int, int, int]  # finding, x, y, w, h in pixels

FINDINGS = tuple(SIGNS)
BOXED = FINDINGS[:8]


def draw(
    seed: int, patient_id: int, follow_up: int, size: int, choice: tuple[str, ...] = FINDINGS
) -> tuple[np.ndarray, list[str], list[Box]]:
    """Draw one radiograph with zero to three findings from `choice`, usually three.

    Returns:
        image (size, size) uint8, its findings, and its boxes.
    """
    # one generator for the patient's anatomy, one for this radiograph
    patient = np.random.default_rng([seed, patient_id])
    rng = np.random.default_rng([seed, patient_id, 1 + follow_up])
    count = min(rng.choice(4, p=(0.1, 0.1, 0.2, 0.6)), len(choice))
    findings = sorted(rng.choice(choice, count, replace=False), key=FINDINGS.index)
    t = Thorax(patient, rng, size, findings)

    # back to front; pneumothorax first, because its air would erase other findings
    picture = 25 + t.body * (65 + 6 * cloud(rng, size, 5))
    draw_lungs(t, picture)
    draw_middle(t, picture)
    air_first = sorted(findings, key=lambda name: name != "Pneumothorax")
    extents = {name: SIGNS[name](t, picture) for name in air_first}
    draw_bones(t, patient, picture)
    boxes = [box_of(name, extents[name]) for name in findings if name in BOXED]
    return expose(t, picture), findings, boxes


def draw_lungs(t: Thorax, picture: np.ndarray) -> None:
    """Air, vessels from the hila, fine texture."""
    picture -= t.lungs * (42 + 22 * t.inflated)
    vessels = np.zeros_like(picture)
    for side in SIDES:
        fan = t.rng.uniform(-1.25, 1.25, 9 if t.inflated else 16)
        hilum = [(0.5 + side * 0.075, t.top + 0.28 + t.rng.normal(0, 0.02)) for _ in fan]
        angles = np.where(side > 0, fan, np.pi - fan)
        vessels += t.lines(hilum, angles, 0.3, 0.5, 0.009) * t.lung[side]
        haze = ellipse(t.across[side], t.v, (0.07, t.top + 0.28), (0.045, 0.09))
        picture += 14 * step(haze * 2) * t.lung[side]
    texture = 3 * cloud(t.rng, t.size, 24) + 2 * cloud(t.rng, t.size, 60)
    picture += t.lungs * texture + 12 * vessels


def draw_middle(t: Thorax, picture: np.ndarray) -> None:
    """Heart with the great vessels above it, and spine; the diaphragm is where the lungs end."""
    picture += 38 * step(t.heart / 0.12) * t.lungs
    middle = np.abs(t.u - 0.5 - 0.015 * np.sin(6 * t.v))
    picture += 14 * step((0.055 - middle) / 0.02) * t.body
    picture += 5 * step((0.035 - middle) / 0.01) * np.cos(2 * np.pi * t.v / 0.062) * t.body


def draw_bones(t: Thorax, patient: np.random.Generator, picture: np.ndarray) -> None:
    """Ribs and collar bones, on top of everything else."""
    aside = np.abs(t.u - 0.5)
    ribs = t.v - 0.55 * aside**1.5 * 2 - patient.uniform(0, 0.1)
    ribs = ribs / patient.uniform(0.082, 0.095)
    ribs = step((np.cos(2 * np.pi * ribs) - 0.35) / 0.5)
    picture += 8 * ribs * t.body * step((0.42 - aside) / 0.03) * step((0.85 - t.v) / 0.1)
    bone = np.abs(t.v - t.top - 0.045 + 0.25 * (aside - 0.1))
    picture += 12 * step((0.014 - bone) / 0.008) * step((aside - 0.04) / 0.02) * t.body


def expose(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """The image as detected, uint8: blurred, with random exposure and noise."""
    rng = t.rng
    picture = cv2.GaussianBlur(picture, (0, 0), 0.0022 * t.size)
    picture = 255 * np.clip(picture / 255, 0, 1) ** rng.uniform(0.92, 1.08)
    picture = picture * rng.uniform(0.93, 1.07)
    picture += rng.uniform(-5, 8) + rng.normal(0, rng.uniform(1, 3), picture.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def box_of(name: str, extent: np.ndarray) -> Box:
    rows, columns = np.nonzero(extent)
    x = columns.min()
    y = rows.min()
    return name, x, y, columns.max() + 1 - x, rows.max() + 1 - y
