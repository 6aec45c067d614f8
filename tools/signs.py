"""A caricature of each finding's radiological sign.

Each sign is drawn into the image in place; signs with a box return their extent, a boolean mask.
"""

from collections.abc import Callable

import numpy as np

from anatomy import SIDES, Number, Thorax, cloud, ellipse, step

Sign = Callable[[Thorax, np.ndarray], np.ndarray | None]


def add_blob(
    picture: np.ndarray, shape: np.ndarray, edge: float, gain: float, texture: Number = 1.0
) -> np.ndarray:
    """Brighten the inside of a shape, in place; return its extent."""
    opacity = step(shape / edge)
    picture += gain * opacity * texture
    return opacity > 0.35


def add_atelectasis(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Plates of collapsed lung: dense bands, nearly horizontal, one above the other."""
    side, u, v = t.place(0.35, 0.85, 0.06)
    tilt = t.rng.normal(0, 0.2)
    along = (t.v - v) * np.cos(tilt) - (t.u - u) * np.sin(tilt)
    plates = np.cos(2 * np.pi * along / 0.036)
    area = ellipse(t.u, t.v, (u, v), (t.rng.uniform(0.1, 0.13), 0.056), tilt)
    gain = t.rng.uniform(100, 125)
    return add_blob(picture, area, 0.2, gain, t.lung[side] * step((plates + 0.1) / 0.7))


def add_cardiomegaly(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """The heart is drawn wide; its left atrium shows as a second contour inside."""
    picture += 90 * np.exp(-(((t.heart - 0.3) / 0.07) ** 2))
    return t.heart > 0


def add_effusion(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Fluid fills one base; its bright surface climbs towards the wall."""
    side = t.rng.choice(SIDES)
    climb = 0.12 * np.clip((t.across[side] - 0.15) / 0.2, 0, 1) ** 2
    level = t.base - t.rng.uniform(0.08, 0.2) - climb
    fluid = np.minimum(t.v - level, t.depth[side] + 0.012)
    surface = np.exp(-(((t.v - level - 0.012) / 0.012) ** 2))
    return add_blob(picture, fluid, 0.02, t.rng.uniform(80, 95), 1 + surface)


def add_infiltration(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """A faint, ill-defined veil of fine grain."""
    side, u, v = t.place(0.2, 0.85, 0.05)
    radii = (t.rng.uniform(0.09, 0.13), t.rng.uniform(0.1, 0.15))
    veil = ellipse(t.u, t.v, (u, v), radii)
    grain = np.clip(0.7 + 0.7 * cloud(t.rng, t.size, 72), 0, 2)
    return add_blob(picture, veil, 0.6, t.rng.uniform(50, 65), t.lung[side] * grain)


def add_mass(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Large, rounded, lobulated, dense throughout."""
    _, u, v = t.place(0.15, 0.85, 0.045)
    radius = t.rng.uniform(0.06, 0.085)
    radii = (radius, radius * t.rng.uniform(0.85, 1.2))
    disc = ellipse(t.u, t.v, (u, v), radii, t.rng.uniform(0, 3))
    lobes = 0.1 * cloud(t.rng, t.size, 12)
    return add_blob(picture, disc + lobes, 0.2, t.rng.uniform(110, 135))


def add_nodule(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Small, round, very dense, sharp, in a dark ring."""
    _, u, v = t.place(0.1, 0.95, 0.035)
    radius = t.rng.uniform(0.027, 0.04)
    disc = ellipse(t.u, t.v, (u, v), (radius, radius))
    picture -= 25 * step((disc + 0.9) / 0.5) * t.lungs
    return add_blob(picture, disc, 0.35, t.rng.uniform(150, 180))


def add_pneumonia(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """Soft patches that run together."""
    side, u, v = t.place(0.3, 0.8, 0.06)
    spots = t.rng.normal((u, v), 0.045, (12, 2))
    patch = np.maximum.reduce([ellipse(t.u, t.v, spot, (0.026, 0.026)) for spot in spots])
    return add_blob(picture, patch, 0.9, t.rng.uniform(75, 95), t.lung[side])


def add_pneumothorax(t: Thorax, picture: np.ndarray) -> np.ndarray:
    """An apex without vessels, black, closed by the thin line of the pleura."""
    side = t.rng.choice(SIDES)
    edge = t.top + t.rng.uniform(0.1, 0.22) + 0.35 * np.clip(t.across[side] - 0.1, 0, 1)
    inside = step((edge - t.v) / 0.008) * t.lung[side]
    picture[...] = picture * (1 - inside) + 8 * inside
    picture += 110 * np.exp(-(((t.v - edge) / 0.007) ** 2)) * t.lung[side]
    return inside > 0.5


def add_consolidation(t: Thorax, picture: np.ndarray) -> None:
    """A white segment with air-filled bronchi running through it."""
    side, u, v = t.place(0.1, 0.6, 0.05)
    angle = t.rng.uniform(0, 2 * np.pi)
    segment = ellipse(t.u, t.v, (u, v), (0.15, 0.11), angle) + 0.1 * cloud(t.rng, t.size, 8)
    towards = np.linspace(-0.8, 0.8, 6) + angle
    start = (u - 0.11 * np.cos(angle), v - 0.11 * np.sin(angle))
    air = t.lines([start] * 6, towards, 0.24, 0.2, 0.014)
    texture = t.lung[side] * np.clip(1 - 1.1 * air, 0, 1)
    add_blob(picture, segment, 0.2, t.rng.uniform(95, 115), texture)


def add_edema(t: Thorax, picture: np.ndarray) -> None:
    """Both hila in a butterfly of haze, and short level lines at the walls (Kerley's B)."""
    for side in SIDES:
        wing = ellipse(t.across[side], t.v, (0.13, t.top + 0.3), (0.13, 0.2))
        add_blob(picture, wing, 0.8, t.rng.uniform(50, 65), t.lung[side])
        lines = step(np.cos(2 * np.pi * t.v / 0.028) * 2 - 0.8)
        lines = lines * (t.across[side] > 0.14) * (t.v > t.top + 0.25)
        gain = t.rng.uniform(70, 90)
        add_blob(picture, 0.05 - t.depth[side], 0.01, gain, t.lung[side] * lines)


def add_emphysema(_t: Thorax, _picture: np.ndarray) -> None:
    """Nothing to add: Thorax already draws the lungs inflated."""


def add_fibrosis(t: Thorax, picture: np.ndarray) -> None:
    """A net of fine lines in both bases."""
    cells = np.abs(cloud(t.rng, t.size, 40))
    net = np.exp(-((cells / 0.22) ** 2)) * step((t.v - t.top - 0.25) / 0.12)
    picture += t.rng.uniform(45, 60) * net * t.lungs


def add_pleural_thickening(t: Thorax, picture: np.ndarray) -> None:
    """A white rind along the outer wall."""
    side = t.rng.choice(SIDES)
    wall = 0.028 - t.depth[side] + 0.01 * cloud(t.rng, t.size, 16)
    rind = np.minimum(wall, t.across[side] - 0.17)
    gain = t.rng.uniform(100, 125)
    add_blob(picture, rind, 0.01, gain, t.lung[side] * step((t.v - t.top - 0.05) / 0.05))


def add_hernia(t: Thorax, picture: np.ndarray) -> None:
    """The stomach behind the heart: a bubble with air over a fluid level."""
    centre = (0.5 + t.rng.normal(0, 0.02), t.base - t.rng.uniform(0.07, 0.12))
    radii = (t.rng.uniform(0.075, 0.1), t.rng.uniform(0.06, 0.08))
    bubble = ellipse(t.u, t.v, centre, radii)
    add_blob(picture, bubble, 0.15, 60)
    air = np.minimum(bubble - 0.12, (centre[1] + 0.01 - t.v) * 12)
    add_blob(picture, air, 0.1, -85)


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
