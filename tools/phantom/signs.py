"""Each finding's radiological sign, as faint as radiographs show it.

Each sign is drawn into the image in place; signs with a box return their extent, a boolean mask.
"""

from collections.abc import Callable

import numpy as np

from anatomy import SIDES, Number, Thorax, cloud, ellipse, ridge, step

Sign = Callable[[Thorax, np.ndarray], np.ndarray | None]


def add_blob(
    picture: np.ndarray, shape: np.ndarray, edge: float, gain: float, texture: Number = 1.0
) -> np.ndarray:
    """Brighten the inside of a shape, in place; return its extent."""
    opacity = step(shape / edge)
    picture += gain * opacity * texture
    return opacity > 0.1


def add_atelectasis(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Collapsed lung: a haze with three or four denser plates in it, nearly level."""
    side, u, v = t.place(0.35, 0.85, 0.06)
    tilt = t.rng.normal(0, 0.18)
    along = (t.v - v) * np.cos(tilt) - (t.u - u) * np.sin(tilt)
    plates = step((np.cos(2 * np.pi * along / 0.037) + 0.2) / 0.9)
    area = ellipse(t.u, t.v, (u, v), (t.rng.uniform(0.1, 0.13), t.rng.uniform(0.07, 0.085)), tilt)
    texture = t.lung[side] * (0.35 + 0.8 * plates)
    return add_blob(picture, area, 0.35, t.rng.uniform(66, 86), texture)


def add_cardiomegaly(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Thorax draws the heart wide; here its left atrium shows behind it: a double contour."""
    u, v = t.heart_centre
    atrium = ellipse(t.u, t.v, (u - 0.05, v - 0.04), (0.08, 0.075))
    add_blob(picture, atrium, 0.3, t.rng.uniform(18, 25))
    contour = ridge(atrium * 0.078, 0.005) * step((u + 0.02 - t.u) / 0.06)
    picture += t.rng.uniform(30, 38) * contour
    return t.heart > 0


def add_effusion(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Fluid fills one base up to a meniscus that climbs along the wall."""
    side = t.rng.choice(SIDES)
    climb = 0.16 * np.clip((t.across[side] - 0.14) / 0.2, 0, 1) ** 2
    level = t.base - t.rng.uniform(0.09, 0.19) - climb
    fluid = np.minimum(t.v - level, t.depth[side] + 0.012)
    surface = ridge(t.v - level - 0.012, 0.009)
    return add_blob(picture, fluid, 0.03, t.rng.uniform(85, 100), 0.12 + t.air + 0.4 * surface)


def add_infiltration(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """An ill-defined veil of fine grain."""
    side, u, v = t.place(0.2, 0.85, 0.05)
    radii = (t.rng.uniform(0.09, 0.12), t.rng.uniform(0.1, 0.14))
    veil = ellipse(t.u, t.v, (u, v), radii)
    grain = np.clip(0.45 + 0.9 * cloud(t.rng, t.size, 76), 0, 2)
    return add_blob(picture, veil, 0.6, t.rng.uniform(52, 68), t.lung[side] * grain)


def add_mass(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Large, rounded, lobulated, dense, with a corona of fine spikes."""
    _, u, v = t.place(0.15, 0.85, 0.045)
    radius = t.rng.uniform(0.075, 0.1)
    radii = (radius, radius * t.rng.uniform(0.85, 1.2))
    disc = ellipse(t.u, t.v, (u, v), radii, t.rng.uniform(0, 3))
    lobes = 0.1 * cloud(t.rng, t.size, 14)
    around = np.arctan2(t.v - v, t.u - u)
    spikes = step(2 * np.cos(22 * around + 2 * cloud(t.rng, t.size, 12)) - 0.7)
    picture += t.rng.uniform(55, 72) * spikes * ridge(disc + 0.05, 0.14) * t.air
    extent = add_blob(picture, disc + lobes, 0.3, t.rng.uniform(95, 118), 0.25 + 0.75 * t.air)
    return extent | (disc > -0.2)  # with its spikes


def add_nodule(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Small, round, sharp; larger than a vessel seen end-on."""
    _, u, v = t.place(0.1, 0.9, 0.035)
    radius = t.rng.uniform(0.038, 0.046)
    disc = ellipse(t.u, t.v, (u, v), (radius, radius * t.rng.uniform(0.9, 1.1)))
    return add_blob(picture, disc, 0.4, t.rng.uniform(105, 130))


def add_pneumonia(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Soft patches that run together."""
    _, u, v = t.place(0.3, 0.85, 0.06)
    spots = t.rng.normal((u, v), 0.045, (13, 2))
    patch = sum(ridge(np.hypot(t.u - spot[0], t.v - spot[1]), 0.02) for spot in spots)
    return add_blob(picture, patch - 0.1, 1.1, t.rng.uniform(84, 104), t.air)


def add_pneumothorax(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Dark air without vessels above the lung, closed by the thin line of the pleura."""
    side = t.rng.choice(SIDES)
    slope = t.rng.uniform(0.3, 0.55)
    edge = t.top + t.rng.uniform(0.1, 0.2) + slope * np.clip(t.across[side] - 0.1, 0, 1)
    inside = step((edge - t.v) / 0.008) * t.lung[side]
    picture[...] = picture * (1 - inside) + (t.bare - t.rng.uniform(32, 42)) * inside
    picture += t.rng.uniform(85, 105) * ridge(t.v - edge, 0.006) * t.lung[side]
    return inside > 0.5


def add_consolidation(t: Thorax, picture: np.ndarray) -> None:
    """A white lobe that ends at a straight fissure, with air-filled bronchi running through it."""
    side, u, v = t.place(0.15, 0.6, 0.06)
    lobe = ellipse(t.u, t.v, (u, v), (0.13, 0.12)) + 0.12 * cloud(t.rng, t.size, 9)
    fissure = (v + 0.045 - t.v + 0.2 * (t.across[side] - 0.17)) * 8
    inwards = 0.5 + side * 0.06
    angle = np.arctan2(v - t.top - 0.26, u - inwards)
    angles = angle + np.linspace(-0.6, 0.6, 5)
    air = t.branches((inwards, t.top + 0.26), angles, 0.3, 0.015, twigs=0.05)
    texture = t.lung[side] * np.clip(1 - air, 0, 1)
    add_blob(picture, np.minimum(lobe, fissure), 0.25, t.rng.uniform(90, 108), texture * t.air)


def add_edema(t: Thorax, picture: np.ndarray) -> None:
    """Both hila in a butterfly of haze, and short level lines at the walls (Kerley's B)."""
    for side in SIDES:
        wing = ellipse(t.across[side], t.v, (0.12, t.top + 0.29), (0.12, 0.19))
        patchy = 1 + 0.3 * cloud(t.rng, t.size, 24)
        add_blob(picture, wing, 0.9, t.rng.uniform(38, 50), t.lung[side] * patchy)
        waves = np.cos(2 * np.pi * t.v / 0.022 + 1.5 * cloud(t.rng, t.size, 9))
        lines = step(2 * waves - 0.9) * np.clip(0.7 + 0.6 * cloud(t.rng, t.size, 18), 0, 1)
        low = step((t.v - t.top - 0.28) / 0.05)
        lines = lines * (t.across[side] > 0.14) * low
        add_blob(picture, 0.04 - t.depth[side], 0.01, t.rng.uniform(28, 40), t.lung[side] * lines)


def add_emphysema(t: Thorax, picture: np.ndarray) -> None:
    """Thorax already draws flat domes and few vessels; here are bullae, thin rings of air."""
    for side in SIDES:
        for _ in range(3):
            v = t.top + t.rng.uniform(0.06, 0.3)
            d = t.rng.uniform(0.1, t.width - 0.04)
            radius = t.rng.uniform(0.025, 0.045)
            bulla = ellipse(t.across[side], t.v, (d, v), (radius, radius))
            wall = ridge(bulla * radius, 0.004)
            picture += (24 * wall - 14 * step(bulla / 0.3)) * t.lung[side]


def add_fibrosis(t: Thorax, picture: np.ndarray) -> None:
    """A net of fine lines in both bases."""
    cells = np.abs(cloud(t.rng, t.size, 40))
    low = step((t.v - t.top - 0.25) / 0.12)
    near_wall = step((0.15 - (t.depth[-1] * (t.u < 0.5) + t.depth[1] * (t.u >= 0.5))) / 0.1)
    net = np.exp(-((cells / 0.2) ** 2)) * low * (0.4 + 0.6 * near_wall)
    picture += t.rng.uniform(34, 46) * net * t.lungs


def add_pleural_thickening(t: Thorax, picture: np.ndarray) -> None:
    """A white rind along the outer wall, of uneven depth."""
    side = t.rng.choice(SIDES)
    wall = 0.026 - t.depth[side] + 0.012 * cloud(t.rng, t.size, 14)
    rind = np.minimum(wall, t.across[side] - 0.16)
    high = step((t.v - t.top - 0.04) / 0.05) * step((t.base - 0.06 - t.v) / 0.05)
    add_blob(picture, rind, 0.01, t.rng.uniform(62, 85), t.lung[side] * high)


def add_hernia(t: Thorax, picture: np.ndarray) -> None:
    """The stomach behind the heart: a bubble with air over a fluid level."""
    centre = (0.5 + t.rng.normal(0.01, 0.02), t.base - t.rng.uniform(0.06, 0.1))
    radii = (t.rng.uniform(0.07, 0.09), t.rng.uniform(0.055, 0.07))
    bubble = ellipse(t.u, t.v, centre, radii)
    air = np.minimum(bubble - 0.06, (centre[1] + 0.01 - t.v) * 12)
    picture += 24 * ridge(bubble * 0.07, 0.006)
    add_blob(picture, air, 0.1, -t.rng.uniform(38, 50))


# NIH's names, in NIH's order
SIGNS: dict[str, Sign] = {
    "Atelectasis": add_atelectasis,
    "Cardiomegaly": add_cardiomegaly,
    "Effusion": add_effusion,
    "Infiltration": add_infiltration,
    "Mass": add_mass,
    "Nodule": add_nodule,
    "Pneumonia": add_pneumonia,
    "Pneumothorax": add_pneumothorax,
    "Consolidation": add_consolidation,
    "Edema": add_edema,
    "Emphysema": add_emphysema,
    "Fibrosis": add_fibrosis,
    "Pleural_Thickening": add_pleural_thickening,
    "Hernia": add_hernia,
}
