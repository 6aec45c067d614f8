"""What an image file gives away without its content: size, kind, sharpness, border, intensity."""

from typing import NamedTuple

import numpy as np
from scipy import fft

from pylon.data.dicom import is_dicom
from pylon.data.images import JPEG, PNG, decode, read_file
from pylon.system.errors import UserError

WIDEST = 1024  # pixels; the sharpness of a larger image is that of its middle
STEADY = 2  # grey levels; a row or column at the edge that varies less is border


class Appearance(NamedTuple):
    """Properties of an image file."""

    width: int  # pixels
    height: int
    kind: str  # of file: PNG, 8 bits
    sharpness: float  # log10 of a share of energy, see `sharpness_of`
    border: float  # share of the area, see `border_of`
    mean: float  # of intensities in [0, 1]
    spread: float  # their standard deviation


# which of them belong together
PROPERTIES = {
    "image size": ("width", "height"),
    "kind of file": ("kind",),
    "sharpness": ("sharpness",),
    "border": ("border",),
    "intensity": ("mean", "spread"),
}


def appearance_of(path: str) -> Appearance | str:
    """The properties of an image file, or the sentence of the error if it cannot be read."""
    try:
        data = read_file(path)
        pixels = decode(path, data)
    except UserError as error:
        return str(error)
    kind = "DICOM" if is_dicom(data) else "TIFF"
    for start, name in ((PNG, "PNG"), (JPEG, "JPEG")):
        kind = name if data.startswith(start) else kind
    image = pixels.image
    return Appearance(
        width=image.shape[1],
        height=image.shape[0],
        kind=f"{kind}, {pixels.bits} bits" + (", colour" if pixels.colour else ""),
        sharpness=sharpness_of(image),
        border=border_of(image),
        mean=float(image.mean()) / 255,
        spread=float(image.std()) / 255,
    )


def sharpness_of(image: np.ndarray) -> float:
    """log10 of the share of an image's energy at more than half of its highest frequency.

    An image that was enlarged to twice its size or more has next to none there.

    Args:
        image: (H, W) uint8.
    """
    top, left = ((side - min(side, WIDEST)) // 2 for side in image.shape)
    middle = image[top : top + WIDEST, left : left + WIDEST].astype(np.float32)
    height, width = middle.shape
    middle = (middle - middle.mean()) * np.outer(np.hanning(height), np.hanning(width))  # no edges
    energy = np.abs(fft.fft2(middle)) ** 2
    down = np.abs(fft.fftfreq(height))[:, None]  # periods per pixel, up to 1/2
    across = np.abs(fft.fftfreq(width))
    fine = energy[np.maximum(down, across) > 0.25].sum()
    return float(np.log10(fine / max(energy.sum(), 1e-12) + 1e-12))


def border_of(image: np.ndarray) -> float:
    """Share of an image outside its outermost rows and columns that vary: 0 without a border.

    Args:
        image: (H, W) uint8.
    """
    inside = 1.0
    for axis in (0, 1):
        varied = np.flatnonzero(image.std(axis=axis) > STEADY)
        extent = varied[-1] - varied[0] + 1 if len(varied) else 0
        inside *= extent / image.shape[1 - axis]
    return 1 - inside
