"""What the values in a DICOM file mean: steps of PS3.3 from stored values to grey levels.

All work on the (N,) values that a pixel may have, not on images. Attributes that pydicom refuses
when they are not quite as the standard wants them are read from their bytes.
"""

import re
import struct
from itertools import zip_longest
from math import inf, isfinite, nan
from typing import TYPE_CHECKING

import numpy as np

from pylon.data.pixels import Window, limits_of, stretch, to_levels
from pylon.system.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

# words of a view position, and codes of a view: lateral, left and right lateral; SNOMED CT, and the
# SNOMED RT of older files
LATERAL = {"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"}
LATERAL_CODES = {"399067008", "399173006", "399198007", "R-102CD", "R-10236", "R-10232"}
SMALLEST_WIDTH = {"LINEAR": 1, "LINEAR_EXACT": 0, "SIGMOID": 0}  # of windows; 0 is too small
# a note, which follows `1 image` or `a.dcm is`
UNUSABLE = "with a window or VOI LUT that cannot be used, and was left out"


def is_padding(dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    """Which of the stored values (N,) are padding: (N,) bool."""
    limits = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        raw = bytes_in(dataset, name)
        if len(raw) == 2:
            # of 16 bits whatever is allocated; the sign may not be extended, as that of pixels
            limit = int.from_bytes(raw, "little", signed=bool(stored.min() < 0))
            limits.append(limit - len(stored) if stored.max() < limit < len(stored) else limit)
    if not limits or not bytes_in(dataset, "PixelPaddingValue"):
        return np.zeros(len(stored), bool)
    return (stored >= min(limits)) & (stored <= max(limits))


def modality_values(path: str, dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    """What the stored values (N,) mean, by LUT or rescaling: (N,) float64."""
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        table = read_table(sequence[0], stored)
        if table is None:
            raise UserError(f"{path} has a modality LUT that cannot be used; convert it to PNG")
        return table[0]
    slope = [*numbers_in(dataset, "RescaleSlope"), 1.0][0]
    intercept = [*numbers_in(dataset, "RescaleIntercept"), 0.0][0]
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored * slope + intercept
    if not np.isfinite(values).all():
        raise UserError(
            f"{path} has a rescale slope or intercept that gives no numbers; convert it to PNG"
        )
    return values


def own_contrast(
    dataset: "Dataset", values: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, Window | None] | None:
    """Apply the first usable VOI LUT of a file, else its first usable window, if there is one.

    Args:
        dataset: the file.
        values: (N,) float64.
        notes: is added to if an earlier one cannot be used.

    Returns:
        The grey levels, (N,) uint8, and the window, None for a LUT.
    """
    unusable = False
    found = None
    for item in dataset.get("VOILUTSequence") or ():
        table = read_table(item, values)
        if table is not None:
            entries, bits = table
            found = to_levels(entries * (255 / ((1 << bits) - 1))), None
            break
        unusable = True

    function = name_in(dataset, "VOILUTFunction") or "LINEAR"
    smallest = SMALLEST_WIDTH.get(function, inf)
    given = (numbers_in(dataset, name) for name in ("WindowCenter", "WindowWidth"))
    for centre, width in () if found else zip_longest(*given, fillvalue=nan):
        if isfinite(centre) and isfinite(width) and width >= smallest and width > 0:
            found = windowed(values, (centre, width), function), (centre, width)
            break
        unusable = True
    if unusable:
        notes.append(UNUSABLE)
    return found


def windowed(values: np.ndarray, window: Window, function: str) -> np.ndarray:
    """The grey levels (N,) uint8 of values (N,), by a VOI LUT function (C.11.2.1.2, C.11.2.1.3)."""
    centre, width = window
    if function == "SIGMOID":  # 1 / (1 + exp(-4 x)) = (1 + tanh(2 x)) / 2, which never overflows
        return to_levels(127.5 * (1 + np.tanh(2 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return stretch(values, centre - width / 2, centre + width / 2)
    return stretch(values, *limits_of(window))


def read_table(item: "Dataset", values: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Look values (N,) up in a modality or VOI LUT (C.11.1.1, C.11.2.1.1).

    Values beyond its ends get the first or last entry; those between two, which rescaling may give,
    what is between the entries.

    Returns:
        (N,) float64, and the bits of an entry; None if it is incomplete.
    """
    descriptor = bytes_in(item, "LUTDescriptor")
    data = bytes_in(item, "LUTData")
    if len(descriptor) != 6:
        return None
    length, first, bits = struct.unpack("<3H", descriptor)
    length = length or 65536
    if first >= 32768 and (values.min() < 0 or item.get_item("LUTDescriptor").VR == "SS"):
        first -= 65536
    size = 2 if len(data) >= 2 * length else 1  # bytes an entry
    if not 1 <= bits <= 8 * size or len(data) < length:
        return None
    entries = np.frombuffer(data, f"<u{size}", length)
    return np.interp(values, first + np.arange(length), entries), bits


def bytes_in(dataset: "Dataset", name: str) -> bytes:
    """The value of an attribute as in the file; empty without it.

    pydicom refuses numbers with a comma, and tables of other kinds than its own.
    """
    element = dataset.get_item(name)
    return b"" if element is None else element.value or b""


def numbers_in(dataset: "Dataset", name: str) -> list[float]:
    """The numbers of an attribute of text, perhaps with a decimal comma; NaN for what is none."""
    text = bytes_in(dataset, name).decode("ascii", "replace").strip(" \0")
    return [number_of(part) for part in text.split("\\")] if text else []


def number_of(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return nan


def name_in(dataset: "Dataset", name: str) -> str:
    """The value of an attribute that is a defined term, in upper case; empty without it."""
    return str(dataset.get(name) or "").strip().upper()


def is_lateral(dataset: "Dataset") -> bool:
    """Whether a view is lateral by its position, code, or the patient's orientation."""
    words = re.findall("[A-Z]+", name_in(dataset, "ViewPosition"))
    is_decubitus = any(word.startswith("DEC") for word in words)  # frontal, of who lies on a side
    codes = {str(item.get("CodeValue")) for item in dataset.get("ViewCodeSequence") or ()}

    # directions of rows and columns; of a lateral view, one of them is anterior or posterior
    directions = re.findall("[A-Z]+", name_in(dataset, "PatientOrientation"))
    axes = {direction[0] for direction in directions}
    is_sagittal = bool(axes & {"A", "P"} and axes & {"H", "F"})
    return bool((LATERAL & {*words} and not is_decubitus) or codes & LATERAL_CODES or is_sagittal)
