"""One synthetic radiograph: a thorax drawn by formulas (anatomy.py) with findings (signs.py).

Everything is added in grey levels of a nominal exposure; `expose` then makes the picture as bright,
as soft and as noisy as this radiograph happens to be. Nothing in the exposure depends on the
findings, and it varies more than they do, so that no finding is known from a picture's mean.
"""

import cv2
import numpy as np

from anatomy import DRAWN, SIDES, Thorax, cloud, ellipse, ridge, step
from signs import SIGNS

Box = tuple[str, int, int, int, int]  # finding, x, y, w, h in pixels

FINDINGS = tuple(SIGNS)
BOXED = FINDINGS[:8]
MISSED = 0.03  # share of the findings that the label does not tell, with its box
INVENTED = 0.004  # chance that the label tells a finding that is not there


def person(seed: int, patient_id: int) -> tuple[int, str]:
    """Age in years and gender, F or M, the same in all radiographs of a patient."""
    rng = np.random.default_rng([seed, patient_id, 0])
    return int(rng.integers(18, 90)), str(rng.choice(("F", "M")))


def draw(
    seed: int, patient_id: int, follow_up: int, size: int, choice: tuple[str, ...] = FINDINGS
) -> tuple[np.ndarray, list[str], list[Box]]:
    """Draw one radiograph with zero to three findings from `choice`, usually three.

    As in a real data set, some labels are wrong: a finding that is drawn may be missing among them,
    and one may be told that is not there.

    Returns:
        image (size, size) uint8, its labels, and the boxes of those that are drawn.
    """
    # one generator for the patient's anatomy, one for this radiograph
    patient = np.random.default_rng([seed, patient_id])
    rng = np.random.default_rng([seed, patient_id, 1 + follow_up])
    count = min(rng.choice(4, p=(0.1, 0.1, 0.2, 0.6)), len(choice))
    findings = sorted(rng.choice(choice, count, replace=False), key=FINDINGS.index)
    t = Thorax(patient, rng, size, findings)

    # back to front; pneumothorax first, because its air would erase other findings
    picture = draw_body(t)
    draw_air(t, patient, picture, female=person(seed, patient_id)[1] == "F")
    draw_middle(t, picture)
    t.bare = picture.copy()
    draw_vessels(t, picture)
    air_first = sorted(findings, key=lambda name: name != "Pneumothorax")
    extents = {name: SIGNS[name](t, picture) for name in air_first}
    draw_bones(t, patient, picture)
    told = labels_of(findings, choice, rng)
    boxes = [box_of(name, extents[name]) for name in told if name in BOXED and name in findings]
    return expose(t, picture), told, boxes


def labels_of(findings: list[str], choice: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """The labels of a radiograph with these findings: not all of them are right."""
    told = []
    for name in sorted(choice, key=FINDINGS.index):
        chance = 1 - MISSED if name in findings else INVENTED
        if rng.random() < chance:
            told.append(name)
    return told


def draw_body(t: Thorax) -> np.ndarray:
    """Soft tissue, thickest in the middle and below."""
    shoulders = t.v + 0.06 - 1.1 * np.clip(t.aside - 0.2, 0, 1) ** 1.4
    trunk = np.minimum(0.54 - t.aside - 0.06 * step((t.v - 0.25) / 0.4), shoulders)
    inside = step(np.maximum(trunk, 0.1 - t.aside) / 0.05)
    thickness = np.sqrt(np.clip(1 - (t.aside / 0.57) ** 2, 0, 1))
    picture = 8 + inside * (58 + 92 * thickness + t.rng.uniform(15, 45) * step((t.v - 0.35) / 0.6))
    picture += 7 * cloud(t.rng, t.size, 5) * inside

    # the stomach's bubble under the left dome
    bubble = ellipse(t.u, t.v, (0.5 + t.rng.uniform(0.13, 0.19), t.base + 0.035), (0.055, 0.035))
    picture -= t.rng.uniform(0, 30) * step(bubble / 0.6) * (1 - t.lungs)
    return picture


def draw_air(t: Thorax, patient: np.random.Generator, picture: np.ndarray, female: bool) -> None:
    """Air in the lungs, where heart and great vessels leave room, less of it near the walls."""
    for side in SIDES:
        air = 1 - np.exp(-np.clip(t.depth[side], 0, 1) / 0.035)
        t.air += air * (1.1 - 0.25 * (t.v - t.top)) * t.lung[side]
    arch = ellipse(t.u, t.v, (0.5 + 0.045, t.top + 0.16), (0.045, 0.045))
    artery = ellipse(t.u, t.v, (0.5 + 0.055, t.top + 0.25), (0.042, 0.06))
    cava = ellipse(t.u, t.v, (0.5 - 0.045, t.top + 0.16), (0.034, 0.17))
    vessels = step(np.maximum.reduce([arch, 0.8 * artery, 0.7 * cava]) / 0.3)
    solid = np.maximum(step(t.heart / 0.2), vessels)
    t.air *= 1 - 0.93 * solid
    picture += 6 * solid + 10 * np.sqrt(np.clip(t.heart, 0, 1)) - (98 + 4 * t.inflated) * t.air

    # breasts veil the bases
    if female:
        low = patient.uniform(0.6, 0.68)
        radii = (patient.uniform(0.12, 0.15), patient.uniform(0.12, 0.16))
        for side in SIDES:
            breast = ellipse(t.across[side], t.v, (0.23, low), radii)
            below = step((t.v - low + 0.08) / 0.1)
            picture += patient.uniform(12, 22) * step(breast / 0.4) * below * t.lungs


def draw_middle(t: Thorax, picture: np.ndarray) -> None:
    """Trachea, which forks below the aortic arch, and spine, which shows through."""
    trachea = np.abs(t.u - 0.495 - 0.01 * np.sin(5 * t.v))
    picture -= 20 * step((0.02 - trachea) / 0.012) * step((t.top + 0.19 - t.v) / 0.03)
    for side in SIDES:
        fork = t.across[side] - 0.55 * (t.v - t.top - 0.17)
        between = step((t.v - t.top - 0.165) / 0.01) * step((t.top + 0.25 - t.v) / 0.02)
        picture -= 12 * step((0.014 - np.abs(fork)) / 0.01) * between
    picture += 9 * step((0.046 - t.aside) / 0.02)
    discs = np.cos(2 * np.pi * (t.v + 4 * t.aside**2) / 0.05)
    picture += 3 * step((0.042 - t.aside) / 0.015) * discs
    picture += 4 * ridge(np.abs(t.aside - 0.025), 0.006) * step(0.3 + discs)


def draw_vessels(t: Thorax, picture: np.ndarray) -> None:
    """Arteries and veins fork outwards from the hila; some are seen end-on, as dots."""
    for side in SIDES:
        hilum = (0.5 + side * 0.075, t.top + 0.26 - 0.02 * (side > 0))
        count = 6 if t.inflated else 9
        fan = np.linspace(-1.35, 1.45, count) + t.rng.normal(0, 0.1, count)
        angles = fan if side > 0 else np.pi - fan
        thick = 0.011 if t.inflated else 0.014
        tree = t.branches(hilum, angles, 0.34, thick, twigs=0.13)
        root = ellipse(t.across[side], t.v, (0.07, hilum[1] + 0.02), (0.045, 0.085))
        picture += (30 * tree + 20 * step(root)) * t.lung[side] * (0.3 + 0.7 * t.air)
        for _ in range(t.rng.integers(2, 6)):
            radius = t.rng.uniform(0.005, 0.011)
            centre = (t.rng.uniform(0.09, 0.24), hilum[1] + t.rng.uniform(-0.12, 0.2))
            dot = ellipse(t.across[side], t.v, centre, (radius, radius))
            picture += t.rng.uniform(18, 32) * step(dot / 0.5) * t.lung[side]
    texture = 3 * cloud(t.rng, t.size, 20) + 2.5 * cloud(t.rng, t.size, 50)
    picture += t.lungs * texture


def draw_bones(t: Thorax, patient: np.random.Generator, picture: np.ndarray) -> None:
    """Ribs, collar bones and shoulder blades, on top of everything else."""
    spacing = patient.uniform(0.064, 0.071)
    start = patient.uniform(0, spacing)
    beside = step((t.width + 0.045 - t.aside) / 0.02) * step((t.aside - 0.03) / 0.02)
    cage = beside * step((t.v - t.top + 0.05) / 0.03) * step((t.base + 0.06 - t.v) / 0.1)

    # behind, they fall gently towards the wall; in front, steeply towards the middle
    behind = t.v - start - 0.16 * t.aside - 2.6 * np.clip(t.aside - 0.2, 0, 1) ** 2
    before = t.v - start + 0.6 * t.aside - 1.5 * np.clip(t.aside - 0.27, 0, 1) ** 2
    picture += 17 * bands(behind, spacing) * cage
    front = step((t.aside - 0.11) / 0.06) * step((0.62 - t.v) / 0.1)
    picture += 8 * bands(before, 1.25 * spacing) * cage * front

    # collar bones, in a slight S, and the inner edge of the shoulder blades
    line = t.top + 0.065 - 0.3 * (t.aside - 0.04) + 0.012 * np.sin(18 * t.aside)
    from_line = np.abs(t.v - line)
    clavicle = step((0.016 - from_line) / 0.006) + 0.7 * ridge(from_line - 0.012, 0.003)
    picture += 19 * clavicle * step((t.aside - 0.035) / 0.015) * step((0.36 - t.aside) / 0.05)
    edge = t.aside - 0.275 - 0.28 * (t.v - t.top - 0.05)
    blade = 9 * step(edge / 0.012) + 7 * ridge(edge - 0.006, 0.004)
    high = step((t.v - t.top + 0.02) / 0.05) * step((t.top + 0.33 - t.v) / 0.06)
    picture += blade * high * step((0.5 - t.aside) / 0.05)


def bands(across: np.ndarray, spacing: float) -> np.ndarray:
    """Ribs seen from the side of their rims: brighter at both rims than between them."""
    wave = np.cos(2 * np.pi * across / spacing)
    return 0.55 * step((wave + 0.05) / 0.25) + 0.45 * ridge(wave - 0.2, 0.18)


def expose(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """The image as detected, uint8: blurred, noisy, with a letter at the patient's left."""
    rng = t.rng
    letter = letter_at_the_side(t)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.0016, 0.0028) * t.size)

    # exposure and film curve; more noise where less radiation arrives
    grey = np.clip(picture / 235, 0.0, 1.2) ** rng.uniform(0.88, 1.15)
    grey = 255 * grey * rng.uniform(0.86, 1.06) + rng.uniform(-14, 14)
    noise = rng.normal(0, 1, picture.shape) * rng.uniform(1, 3.5)
    grey += noise * (0.6 + 0.6 * grey / 255)
    return np.maximum(np.clip(np.round(grey), 0, 255).astype(np.uint8), letter)


def letter_at_the_side(t: Thorax) -> np.ndarray:
    """An L where the technician puts it, above the patient's left shoulder, uint8."""
    factor = max(1, round(DRAWN / t.size))
    side = t.size * factor
    canvas = np.zeros((side, side), np.uint8)
    x = round(t.rng.uniform(0.87, 0.93) * side)
    y = round(t.rng.uniform(0.08, 0.14) * side)
    cv2.putText(
        canvas, "L", (x, y), cv2.FONT_HERSHEY_SIMPLEX, side / 620, 255, side // 170, cv2.LINE_AA
    )
    letter = cv2.resize(canvas, (t.size, t.size), interpolation=cv2.INTER_AREA)
    return (0.8 * letter).astype(np.uint8)


def box_of(name: str, extent: np.ndarray) -> Box:
    """The box of a sign, as radiologists draw it: a hundredth of the image larger on each side."""
    size = len(extent)
    margin = round(0.01 * size)
    rows, columns = np.nonzero(extent)
    x = max(columns.min() - margin, 0)
    y = max(rows.min() - margin, 0)
    right = min(columns.max() + 1 + margin, size)
    bottom = min(rows.max() + 1 + margin, size)
    return name, x, y, right - x, bottom - y
