"""Read a radiograph from a DICOM file, as a viewer would show it (extra `dicom`).

Stored values pass the rescale slope and intercept (or the modality LUT), then the window that is
asked for; without one the file's VOI LUT, or its first window; without either the stretch between
percentiles (pixels.py), or, with 8 bits, nothing. MONOCHROME1 and an inverse presentation LUT are
inverted. Of all other attributes only the view position is looked at, and nothing is kept.
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from pylon.data.pixels import PERCENTILES, Pixels, Window, require_fit, stretch, window_of
from pylon.system.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE = 132  # bytes, the last four of which are:
MARK = b"DICM"
LATERAL = ("LL", "RL")  # view positions
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit, explicit little endian
RLE = "1.2.840.10008.1.2.5"
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
READ = (*UNCOMPRESSED, RLE, *JPEG, *JPEG_LS, *JPEG_2000)
# markers in a JPEG stream that give height and width: SOF0 to SOF15, without DHT, JPG, DAC; SOF55
SIZES = (*(k for k in range(0xC0, 0xD0) if k not in (0xC4, 0xC8, 0xCC)), 0xF7)


def is_dicom(data: bytes) -> bool:
    """Whether the first bytes of a file, at least `PREAMBLE`, are those of DICOM."""
    return data[PREAMBLE - len(MARK) : PREAMBLE] == MARK


def is_dicom_file(path: str) -> bool:
    """Whether a file can be read and is DICOM by its preamble."""
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(PREAMBLE))
    except OSError:
        return False


def read_dicom(path: str, data: bytes, window: Window | None = None) -> Pixels:
    """Decode the contents of a DICOM file.

    Args:
        path: of the file; its header is read from there.
        data: its contents.
        window: centre and width, in values after rescaling; by default the file's own.

    Raises:
        UserError: it is damaged, compressed in a way that is not read, has no pixels, several
            frames, colours, other than 8 or 16 bits allocated, or a size as in `require_fit`; or
            the libraries are not installed.
    """
    with dicom_errors(path):
        dataset = parse(path, data)
        require_radiograph(path, dataset)
        require_whole(path, dataset)
        return decode(path, dataset, window)


def width_height_of_dicom(path: str) -> tuple[int, int]:
    """Width and height, from the header of the file; errors as for `read_dicom`."""
    with dicom_errors(path):
        dataset = read_header(path)
        require_radiograph(path, dataset)
        return dataset.Columns, dataset.Rows


def read_header(path: str) -> "Dataset":
    """All attributes of a file but its pixels; errors as for `read_dicom`."""
    from pydicom import dcmread  # half a second, which only DICOM files need

    require_syntax(path)
    return dcmread(path, stop_before_pixels=True)


def parse(path: str, data: bytes) -> "Dataset":
    from pydicom import dcmread

    require_syntax(path)
    return dcmread(BytesIO(data))


@contextmanager
def dicom_errors(path: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a UserError, without any of its values."""
    if find_spec("highdicom") is None or find_spec("pydicom") is None:
        raise UserError(f"{path} is a DICOM file; to read it, pip install -e '.[dicom]'")
    keep_quiet()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise almost any exception
        raise UserError(
            f"{path} is a DICOM file that cannot be decoded; copy it again, or convert it to PNG"
        ) from error.with_traceback(None)


@cache
def keep_quiet() -> None:
    """Silence the libraries: what they print may hold values, such as a patient's name."""
    for library in ("pydicom", "highdicom"):
        logging.getLogger(library).disabled = True
        warnings.filterwarnings("ignore", module=library)


def require_syntax(path: str) -> None:
    """Raise a UserError unless the transfer syntax is one of `READ`."""
    from pydicom.filereader import read_file_meta_info

    # before anything else is parsed: a deflated file may be a thousand times as large in memory
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise UserError(
            f"{path} is a DICOM file without a transfer syntax; copy it again, or convert it to PNG"
        )
    if syntax not in READ:
        name = "an unknown transfer syntax" if syntax.name == syntax else syntax.name
        raise UserError(
            f"{path} is a DICOM file in {name} ({syntax}), which is not read; convert it to "
            "Explicit VR Little Endian, or to PNG"
        )


def require_radiograph(path: str, dataset: "Dataset") -> None:
    """Raise a UserError unless a dataset describes one grey image of 8 or 16 bits allocated."""
    rows = dataset.get("Rows")
    columns = dataset.get("Columns")
    photometric = dataset.get("PhotometricInterpretation")
    bits = dataset.get("BitsAllocated")
    if not rows or not columns or photometric is None or bits is None:
        kind = dataset.get("SOPClassUID")
        if not kind:
            raise UserError(f"{path} is a DICOM file without an image, or cut short; copy it again")
        raise UserError(f"{path} is a DICOM file without an image ({kind.name}); name a radiograph")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"{path} has {frames} frames; save the radiograph in a file of its own")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        raise UserError(
            f"{path} has colours ({photometric}); radiographs are MONOCHROME1 or MONOCHROME2: name "
            "the original, or convert it to a grey PNG"
        )
    if bits not in (8, 16):
        raise UserError(f"{path} has {bits} bits per pixel; convert it to 8 or 16 bits")
    if not 1 <= dataset.get("BitsStored", bits) <= bits:
        raise UserError(f"{path} says that more bits are stored than there are; copy it again")
    require_fit(path, rows, columns)


def require_whole(path: str, dataset: "Dataset") -> None:
    """Raise a UserError if the pixels are missing, too few, or those of another size."""
    if not dataset.get("PixelData"):
        raise UserError(f"{path} is a DICOM file without pixels; copy it again")
    size = (dataset.Rows, dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in UNCOMPRESSED:
        expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        if len(dataset.PixelData) < expected:
            raise UserError(
                f"{path} has {len(dataset.PixelData):,} bytes of pixels instead of {expected:,}; "
                "copy it again"
            )
    elif syntax != RLE:
        from pydicom.encaps import get_frame

        # a decoder would allocate what the stream says, however much that is
        found = size_in_stream(get_frame(dataset.PixelData, 0, number_of_frames=1))
        if found != size:
            raise UserError(
                f"{path} says that it is {size[1]} x {size[0]} pixels, but holds others; "
                "copy it again"
            )


def size_in_stream(stream: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG, JPEG-LS or JPEG 2000 stream; None without one."""
    at = stream[:1000].find(b"\xff\x4f\xff\x51")  # JPEG 2000, perhaps in a JP2 file
    if at >= 0:
        right, bottom, left, top = struct.unpack(">4I", stream[at + 8 : at + 24])
        return bottom - top, right - left
    at = 2
    while stream[at : at + 1] == b"\xff":
        kind = stream[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
        elif kind in SIZES:
            return struct.unpack(">2H", stream[at + 5 : at + 9])
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def decode(path: str, dataset: "Dataset", window: Window | None) -> Pixels:
    from highdicom import Image

    image = Image.from_dataset(dataset, copy=False)
    has_table = bool(dataset.get("VOILUTSequence"))
    own = None if has_table else own_window(dataset)
    if window is None and (has_table or own):
        levels = image.get_frame(
            1,
            apply_real_world_transform=False,
            apply_voi_transform=True,
            voi_output_range=(0, 255),
            apply_presentation_lut=False,
        )
        levels = numbers(path, levels).round().clip(0, 255).astype(np.uint8)
    else:
        values = image.get_frame(1, apply_real_world_transform=False, apply_presentation_lut=False)
        own = window or own_stretch(numbers(path, values), dataset.BitsStored)
        levels = values.astype(np.uint8) if own is None else stretch(values, own)

    shape = dataset.get("PresentationLUTShape")
    inverse = shape == "INVERSE" if shape else dataset.PhotometricInterpretation == "MONOCHROME1"
    levels = 255 - levels if inverse else levels
    lateral = dataset.get("ViewPosition") in LATERAL
    return Pixels(levels, dataset.BitsStored, False, own, lateral)


def own_window(dataset: "Dataset") -> Window | None:
    """The first window of a file, if it has one as the standard wants it."""
    given = (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    if any(each in (None, "") for each in given):
        return None
    centre, width = (float(each if np.isscalar(each) else each[0]) for each in given)
    return (centre, width) if width >= 1 else None


def own_stretch(values: np.ndarray, bits: int) -> Window | None:
    """The window between percentiles; None if values (H, W) need none, being of 8 bits."""
    low, high = values.min(), values.max()
    if bits <= 8 and low >= 0 and high <= 255:
        return None
    shares = np.array(PERCENTILES) / 100
    return window_of(*np.quantile(values, shares, method="inverted_cdf").tolist())


def numbers(path: str, values: np.ndarray) -> np.ndarray:
    """The values, unless some are no numbers: then a UserError."""
    if not np.isfinite(values).all():
        raise UserError(
            f"{path} has a rescale slope or intercept that gives no numbers; convert it to PNG"
        )
    return values
