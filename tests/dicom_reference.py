"""What grey levels a viewer shows, pixel by pixel in float64, as the text of PS3.3 says.

Written from the standard alone, to be compared with pylon/data/dicom.py, of which it uses nothing.
"""

from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """A modality or VOI LUT."""

    first: int  # value that is mapped to the first entry
    entries: np.ndarray  # (N,)
    bits: int  # of an entry


class Meaning(NamedTuple):
    """What a file says about its stored values."""

    bits: int  # stored
    is_signed: bool = False
    photometric: str = "MONOCHROME2"
    slope: float = 1
    intercept: float = 0
    modality_table: Table | None = None
    voi_table: Table | None = None
    window: tuple[float, float] | None = None  # the first that can be used
    function: str = "LINEAR"
    padding: tuple[int, int] | None = None  # lowest and highest stored value


def look_up(table: Table, value: float) -> float:
    """C.11.1.1: values beyond the ends get the end's entry; between entries we interpolate."""
    place = min(max(value - table.first, 0), len(table.entries) - 1)
    below = int(np.floor(place))
    above = min(below + 1, len(table.entries) - 1)
    part = place - below
    return float(table.entries[below]) * (1 - part) + float(table.entries[above]) * part


def windowed(x: float, centre: float, width: float, function: str) -> float:
    """C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT), for 0 to 255."""
    if function == "SIGMOID":
        exponent = -4 * (x - centre) / width
        return 0.0 if exponent > 700 else 255 / (1 + np.exp(exponent))
    if function == "LINEAR_EXACT":
        if x <= centre - width / 2:
            return 0.0
        if x > centre + width / 2:
            return 255.0
        return ((x - centre) / width + 0.5) * 255
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 255.0
    return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


def grey_levels(
    stored: np.ndarray, meaning: Meaning, asked_for: tuple[float, float] | None = None
) -> np.ndarray:
    """The grey levels (H, W) float64, not rounded, of stored values (H, W).

    Args:
        asked_for: a window in place of the file's own.
    """
    # padding (C.7.5.1.1.2)
    is_padding = np.zeros(stored.shape, bool)
    if meaning.padding is not None:
        is_padding = (stored >= meaning.padding[0]) & (stored <= meaning.padding[1])

    # modality
    values = {}
    for each in np.unique(stored).tolist():
        if meaning.modality_table is not None:
            values[each] = look_up(meaning.modality_table, each)
        else:
            values[each] = each * meaning.slope + meaning.intercept

    # VOI
    shown = np.sort([values[each] for each in stored[~is_padding].tolist()])
    is_identity = all(value == each for each, value in values.items())
    levels = {}
    for each, x in values.items():
        if asked_for is not None:
            levels[each] = windowed(x, *asked_for, "LINEAR")
        elif meaning.voi_table is not None:
            brightest = 2**meaning.voi_table.bits - 1
            levels[each] = look_up(meaning.voi_table, x) / brightest * 255
        elif meaning.window is not None:
            levels[each] = windowed(x, *meaning.window, meaning.function)
        elif meaning.bits <= 8 and not meaning.is_signed and is_identity:
            levels[each] = x / (2**meaning.bits - 1) * 255
        elif len(shown):
            # ours, not the standard's: between the 0.5th and 99.5th percentiles from the darkest
            from_darkest = shown[::-1] if meaning.photometric == "MONOCHROME1" else shown
            dark = from_darkest[int(np.ceil(0.005 * len(shown))) - 1]
            bright = from_darkest[int(np.ceil(0.995 * len(shown))) - 1]
            low, high = min(dark, bright), max(dark, bright)
            is_above = x >= high if meaning.photometric == "MONOCHROME1" else x > high
            steep = 255.0 if is_above else 0.0
            levels[each] = (x - low) / (high - low) * 255 if high > low else steep

    # presentation (C.7.6.3.1.2)
    image = np.zeros(stored.shape)
    for place in np.ndindex(stored.shape):
        if not is_padding[place]:
            level = min(max(levels[int(stored[place])], 0), 255)
            image[place] = 255 - level if meaning.photometric == "MONOCHROME1" else level
    return image
