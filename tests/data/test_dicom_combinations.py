"""Random combinations of what a DICOM file may say, against an independent reference."""

import os
import struct

import numpy as np
import pytest
from dicom_files import SIZE, Dataset, dicom, implicit, raw, save, table_item
from dicom_reference import Meaning, Table, grey_levels
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from pylon.data.images import read_pixels

COMBINATIONS = int(os.environ.get("PYLON_COMBINATIONS", 120))
SYNTAXES = {
    "explicit": None,
    "implicit": None,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG-LS": JPEGLSLossless,
}


def random_table(rng: np.random.Generator, low: float, high: float) -> Table:
    """A smooth LUT for values between two, whose ends it need not reach."""
    bits = int(rng.integers(8, 17))
    length = int(rng.choice([256, 1000, 4096, 65536]))
    limits = (-32768, 32767) if low < 0 else (0, 65535)
    first = int(np.clip(rng.integers(int(low) - 50, int(high) + 1), *limits))
    part = np.sort(rng.uniform(0, 1, 2)) if rng.random() < 0.5 else np.array([0, 1])
    rising = np.linspace(*part, length) ** rng.uniform(0.5, 2)
    rising = rising[::-1] if rng.random() < 0.3 else rising
    return Table(first, np.round(rising * (2**bits - 1)).astype(int), bits)


def random_window(rng: np.random.Generator, low: float, high: float, smallest: float):
    """Centre and width as they are written, in up to 16 characters."""
    centre = rng.uniform(low, high)
    width = smallest + rng.choice([1e-3, 0.1, 1, 1.5]) * (high - low) * rng.random()
    width = max(width, 1e-3)
    return float(f"{centre:.6g}"), float(f"{width:.6g}")


def random_meaning(rng: np.random.Generator) -> Meaning:
    allocated = int(rng.choice([8, 16, 16, 16]))
    bits = int(rng.integers(2, 9) if allocated == 8 else rng.integers(8, 17))
    meaning = Meaning(bits, bool(rng.random() < 0.4))
    lowest = -(2 ** (bits - 1)) if meaning.is_signed else 0
    highest = lowest + 2**bits - 1
    meaning = meaning._replace(photometric=str(rng.choice(["MONOCHROME1", "MONOCHROME2"])))

    # modality
    kind = rng.random()
    ends = np.array([lowest, highest], float)
    if kind < 0.5:
        slope = float(rng.choice([1, 2, 1.5, 0.5, -1, 0.1, 1e-4, -0.25]))
        intercept = float(rng.choice([0, -1024, 3.5, 100]))
        meaning = meaning._replace(slope=slope, intercept=intercept)
        ends = ends * slope + intercept
    elif kind < 0.7:
        table = random_table(rng, lowest, highest)
        meaning = meaning._replace(modality_table=table)
        ends = np.array([0, 2**table.bits - 1], float)

    # VOI
    low, high = np.sort(ends).tolist()
    kind = rng.random()
    if kind < 0.3:
        meaning = meaning._replace(voi_table=random_table(rng, low, high))
    if kind < 0.1 or 0.3 < kind < 0.8:
        function = str(rng.choice(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
        window = random_window(rng, low, high, float(function == "LINEAR"))
        meaning = meaning._replace(window=window, function=function)
    if rng.random() < 0.3:
        padding = lowest if rng.random() < 0.5 else highest
        limit = int(np.clip(padding + rng.integers(-9, 10), lowest, highest))
        meaning = meaning._replace(padding=(min(padding, limit), max(padding, limit)))
    return meaning


def random_stored(rng: np.random.Generator, meaning: Meaning) -> np.ndarray:
    """Stored values that fill a part of the range, with 10 % of its ends."""
    lowest = -(2 ** (meaning.bits - 1)) if meaning.is_signed else 0
    a, b = np.sort(rng.integers(lowest, lowest + 2**meaning.bits, 2))
    stored = rng.integers(a, b + 1, SIZE)
    at_ends = rng.random(SIZE) < 0.1
    stored[at_ends] = rng.choice([lowest, lowest + 2**meaning.bits - 1], at_ends.sum())
    return stored


def write(rng: np.random.Generator, stored, meaning: Meaning, path) -> str:
    """Write a file that says all this; return what was chosen of its form."""
    allocated = 8 if meaning.bits <= 8 and rng.random() < 0.5 else 16
    syntax = str(rng.choice(list(SYNTAXES)))
    spare = allocated - meaning.bits
    shift = int(rng.integers(0, spare + 1)) if rng.random() < 0.3 else 0
    is_whole = SYNTAXES[syntax] is None or syntax == "RLE" or rng.random() < 0.5
    shift = shift if is_whole else 0

    # cells of all the bits allocated, with rubbish above and below those stored
    cells = (stored & (2**meaning.bits - 1)) << shift
    if is_whole and rng.random() < 0.7:
        rubbish = rng.integers(0, 2**allocated, SIZE)
        cells |= rubbish & ~((2**meaning.bits - 1) << shift)
    elif meaning.is_signed and not is_whole and syntax == "JPEG 2000":
        cells = stored & (2**allocated - 1)
    dataset = dicom(cells.astype(f"u{allocated // 8}"), allocated)
    dataset.PhotometricInterpretation = meaning.photometric
    if SYNTAXES[syntax] is not None:
        if not is_whole:
            dataset.BitsStored = meaning.bits
            dataset.HighBit = meaning.bits - 1
            dataset.PixelRepresentation = int(meaning.is_signed and syntax == "JPEG 2000")
        encoder = "pydicom" if syntax == "RLE" else ""  # GDCM's wants an even width
        dataset.compress(SYNTAXES[syntax], encoding_plugin=encoder)
    if syntax == "implicit":
        implicit(dataset)
    dataset.BitsStored = meaning.bits
    dataset.HighBit = meaning.bits - 1 + shift
    dataset.PixelRepresentation = int(meaning.is_signed)
    describe(rng, meaning, dataset)
    save(dataset, path)
    return f"{syntax}, {allocated} bits, shift {shift}, whole {is_whole}"


def describe(rng: np.random.Generator, meaning: Meaning, dataset: Dataset) -> None:
    """Set the attributes of modality, VOI and padding."""
    spare = f"{meaning.slope:.6g}", f"{meaning.intercept:.6g}"
    if meaning.modality_table is not None:
        item = table_item(*meaning.modality_table, meaning.is_signed, bool(rng.random() < 0.5))
        dataset.ModalityLUTSequence = [item]
    elif (meaning.slope, meaning.intercept) != (1, 0) or rng.random() < 0.5:
        dataset.RescaleSlope, dataset.RescaleIntercept = spare
    if meaning.voi_table is not None:
        is_signed = meaning.modality_table is None and (
            meaning.is_signed or meaning.intercept < 0 or meaning.slope < 0
        )
        item = table_item(*meaning.voi_table, is_signed, bool(rng.random() < 0.5))
        dataset.VOILUTSequence = [item]
    if meaning.window is not None:
        dataset.WindowCenter, dataset.WindowWidth = (f"{each:.6g}" for each in meaning.window)
        if meaning.function != "LINEAR" or rng.random() < 0.5:
            lower = rng.random() < 0.3
            raw(
                dataset,
                "VOILUTFunction",
                "CS",
                meaning.function.lower().encode() if lower else meaning.function.encode(),
            )
    if meaning.padding is not None:
        ends = list(meaning.padding)
        if rng.random() < 0.5:
            ends.reverse()
        vr = "SS" if meaning.is_signed else "US"
        form = "<h" if meaning.is_signed else "<H"
        raw(dataset, "PixelPaddingValue", vr, struct.pack(form, ends[0]))
        if ends[0] != ends[1]:
            raw(dataset, "PixelPaddingRangeLimit", vr, struct.pack(form, ends[1]))


@pytest.mark.parametrize("part", range(4))
def test_random_combinations(tmp_path, part):
    worst = 0.0
    for seed in range(part, COMBINATIONS, 4):
        rng = np.random.default_rng(seed)
        meaning = random_meaning(rng)
        stored = random_stored(rng, meaning)
        path = tmp_path / f"{seed}.dcm"
        form = write(rng, stored, meaning, path)
        asked_for = random_window(rng, -100, 3000, 1.0) if rng.random() < 0.15 else None
        expected = grey_levels(stored, meaning, asked_for)
        found = read_pixels(str(path), asked_for).image
        worst = max(worst, np.abs(found - expected).max())
        assert worst < 0.501, (seed, form, asked_for, meaning)
    print(f"worst difference: {worst:.3f} grey levels")
