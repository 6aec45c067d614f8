"""The pixels of a radiograph as all networks and pictures take them: grey, 8 bits.

8 bits are taken as they are; more are stretched between two percentiles of the image, or between
the limits of a window, as DICOM defines it: centre C and width W make C - W / 2 black, and
C + W / 2 - 1 white (PS3.3, C.11.2.1.2.1).
"""

from typing import NamedTuple

import numpy as np

from pylon.system.errors import UserError

SMALLEST_SIDE = 16  # pixels; anything narrower is not a radiograph
MOST_PIXELS = 80_000_000  # the largest radiographs have a quarter of it
PERCENTILES = (0.5, 99.5)  # of the pixels, which become black and white

Window = tuple[float, float]  # centre and width, in values of the image
ONE_LEVEL = "of a single grey level, so that the scores mean nothing"  # a note


class Pixels(NamedTuple):
    """An image and how its pixels were read."""

    image: np.ndarray  # (H, W) uint8
    bits: int = 8  # per pixel and channel of the source
    colour: bool = False  # whether the source has colours, of which the grey values were taken
    window: Window | None = None  # None: no stretch, as of 8 bits, or a DICOM file's own table
    lateral: bool = False  # whether a DICOM file says that it is a lateral view
    notes: tuple[str, ...] = ()  # what else is odd; each follows `1 image` or `a.png is`


def pixels_of(image: np.ndarray, colour: bool = False, window: Window | None = None) -> Pixels:
    """Bring a grey image to 8 bits.

    Args:
        image: (H, W) uint8 or uint16.
        colour: see `Pixels`.
        window: of 16 bits; by default, that between `PERCENTILES`.
    """
    if image.dtype == np.uint8:
        return noted(Pixels(image, 8, colour))

    # an 8-bit image saved with 16 bits: each value times 257
    counts = histogram(image, 65536)
    if window is None and not (np.flatnonzero(counts) % 257).any():
        return noted(Pixels((image // 257).astype(np.uint8), 16, colour))

    # stretched
    if window is None:
        window = window_of(*percentiles(counts))
    levels = stretch(np.arange(65536), *limits_of(window))
    return noted(Pixels(levels[image], 16, colour, window))


def noted(pixels: Pixels) -> Pixels:
    """The same pixels, with a note if they show nothing, such as a picture that is all alpha."""
    is_one_level = pixels.image.min() == pixels.image.max()
    return pixels._replace(notes=(ONE_LEVEL,)) if is_one_level else pixels


def histogram(image: np.ndarray, values: int) -> np.ndarray:
    """How many pixels of an image (H, W) have each of the values from 0: (values,) int64."""
    counts = np.zeros(values, np.int64)
    for row in range(0, len(image), 256):  # bincount makes a copy of 8 bytes a pixel
        counts += np.bincount(image[row : row + 256].ravel(), minlength=values)
    return counts


def percentiles(counts: np.ndarray) -> tuple[int, int]:
    """The places in a histogram at which `PERCENTILES` of the pixels are reached."""
    shares = np.array(PERCENTILES) / 100
    low, high = np.searchsorted(counts.cumsum(), shares * counts.sum()).tolist()
    return low, high


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Bring values of any shape and type to uint8 in the same shape, black at low, white at high.

    Where both are the same, only what is above is white.
    """
    if low == high:
        return to_levels((values > low) * 255.0)
    return to_levels((values - low) * (255 / (high - low)))


def to_levels(levels: np.ndarray) -> np.ndarray:
    """Round grey levels to uint8."""
    return levels.round().clip(0, 255).astype(np.uint8)


def limits_of(window: Window) -> tuple[float, float]:
    """The values that a window makes black and white."""
    centre, width = window
    low = centre - width / 2
    return low, low + (width - 1)


def window_of(low: float, high: float) -> Window:
    """The window between the values that become black and white."""
    width = high - low + 1
    return low + width / 2, width


def require_fit(path: str, height: int, width: int) -> None:
    """Raise a UserError if an image is too small or too large for a radiograph."""
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{path} is {width} x {height} pixels, too small for a radiograph; "
            "replace it with the right image"
        )
    if height * width > MOST_PIXELS:
        raise UserError(too_large(path))


def too_large(path: str) -> str:
    return (
        f"{path} has more than {MOST_PIXELS / 1e6:.0f} million pixels; no radiograph is as large: "
        "shrink it, or replace it with the right image"
    )
