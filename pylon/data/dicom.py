"""Read a radiograph from a DICOM file, as a viewer would show it (extra `dicom`).

pydicom parses and decodes; what the stored values mean is worked out step by step as PS3.3 has it
(dicom_values.py): the modality LUT or rescaling (C.11.1); the window that is asked for, else the
file's VOI LUT or window (C.11.2), else a stretch between percentiles (pixels.py), or, with 8 bits,
nothing. Then MONOCHROME1 is inverted (C.7.6.3.1.2), and padding is made black (C.7.5.1.1.2).
Of all other attributes only those of the view are looked at, and nothing is kept.
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pylon.data.dicom_values import (
    is_lateral,
    is_padding,
    modality_values,
    name_in,
    own_contrast,
)
from pylon.data.pixels import (
    ONE_LEVEL,
    Pixels,
    Window,
    histogram,
    limits_of,
    percentiles,
    require_fit,
    stretch,
    to_levels,
    window_of,
)
from pylon.system.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE = 132  # bytes, the last four of which are:
MARK = b"DICM"
INDEX = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit, explicit little endian
RLE = "1.2.840.10008.1.2.5"
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
READ = (*UNCOMPRESSED, RLE, *JPEG, *JPEG_LS, *JPEG_2000)
# pydicom would try several decoders, which differ in odd cases
DECODERS = dict.fromkeys(JPEG_LS, "pyjpegls") | dict.fromkeys(JPEG_2000, "pylibjpeg")
# a note, which follows `1 image` or `a.dcm is`
CONTRADICTION = "of {} with the presentation LUT shape {}, which contradict: read as {}"
SILENT = logging.NullHandler()
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
        path: of the file, in messages.
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

    with open(path, "rb") as file:
        require_syntax(path, file)
        return dcmread(file, stop_before_pixels=True)


def parse(path: str, data: bytes) -> "Dataset":
    from pydicom import dcmread

    file = BytesIO(data)
    require_syntax(path, file)
    return dcmread(file)


@contextmanager
def dicom_errors(path: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a UserError, without any of its values."""
    if find_spec("pydicom") is None:
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


def keep_quiet() -> None:
    """Silence the libraries: what they print may hold values, such as a patient's name."""
    for library in ("pydicom", "highdicom"):
        logger = logging.getLogger(library)  # and all below it, such as highdicom.base
        logger.addHandler(SILENT)
        logger.propagate = False
    # each time again: threads that catch warnings may undo it
    warnings.filterwarnings("ignore", module="pydicom|highdicom")


def require_syntax(path: str, file: BinaryIO) -> None:
    """Raise a UserError unless the transfer syntax is one of `READ`."""
    from pydicom.filereader import read_dataset

    # before anything else is parsed: a deflated file may be a thousand times as large in memory
    file.seek(PREAMBLE)
    about = read_dataset(file, False, True, stop_when=lambda tag, _vr, _size: tag.group != 2)
    file.seek(0)
    if about.get("MediaStorageSOPClassUID") == INDEX:
        raise UserError(
            f"{path} is the index of a medium (DICOMDIR), not an image; give its folder"
        )
    syntax = about.get("TransferSyntaxUID")
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
        raise UserError(f"{path} has BitsStored above BitsAllocated; copy it again")
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
        stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
        if frame_in_stream(stream)[:2] != size:
            raise UserError(
                f"{path} says that it is {size[1]} x {size[0]} pixels, but holds others; "
                "copy it again"
            )


def frame_in_stream(stream: bytes) -> tuple[int, int, int]:
    """Height, width and bits a pixel in the header of a JPEG, JPEG-LS or JPEG 2000 stream.

    All are 0 without a header.
    """
    at = stream[:1000].find(b"\xff\x4f\xff\x51")  # JPEG 2000, perhaps in a JP2 file
    if at >= 0:
        right, bottom, left, top = struct.unpack(">4I", stream[at + 8 : at + 24])
        return bottom - top, right - left, (stream[at + 42] & 127) + 1
    at = 2
    while stream[at : at + 1] == b"\xff":
        kind = stream[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
        elif kind in SIZES:
            bits, height, width = struct.unpack(">B2H", stream[at + 4 : at + 9])
            return height, width, bits
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return 0, 0, 0


def decode(path: str, dataset: "Dataset", window: Window | None) -> Pixels:
    """The pixels of a dataset, after all checks.

    Every step is worked out once for each of the at most 65,536 values that a pixel may have.
    """
    take_functional_groups(dataset)
    pixels, stored = read_stored(dataset)
    padding = is_padding(dataset, stored)
    counts = histogram(pixels, len(stored))
    counts[padding] = 0
    values = modality_values(path, dataset, stored)
    notes = []

    photometric = dataset.PhotometricInterpretation
    is_inverse = photometric == "MONOCHROME1"

    # contrast
    own = None if window else own_contrast(dataset, values, notes)
    if window is not None:
        levels = stretch(values, *limits_of(window))
    elif own is not None:
        levels, window = own
    elif dataset.BitsStored <= 8 and stored.min() == 0 and (values == stored).all():
        levels = to_levels(values * (255 / stored[-1]))
    else:
        # in the order in which they are shown: MONOCHROME1 has exactly the levels of its inverse
        shown = -values if is_inverse else values
        order = shown.argsort(kind="stable")
        low, high = shown[order[list(percentiles(counts[order]))]].tolist()
        levels = stretch(shown, low, high)
        levels = 255 - levels if is_inverse else levels  # which is undone below
        window = window_of(-high, -low) if is_inverse else window_of(low, high)

    # presentation
    shape = name_in(dataset, "PresentationLUTShape")
    if shape == ("IDENTITY" if is_inverse else "INVERSE"):
        notes.append(CONTRADICTION.format(photometric, shape, photometric))
    levels = 255 - levels if is_inverse else levels
    levels[padding] = 0
    if np.unique(levels[counts > 0]).size < 2:
        notes.append(ONE_LEVEL)
    bits = dataset.BitsStored
    return Pixels(levels[pixels], bits, False, window, is_lateral(dataset), tuple(notes))


def take_functional_groups(dataset: "Dataset") -> None:
    """Bring what enhanced images of one frame say about it to where others say it."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(groups) or ():
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(name) or ():
                    dataset.update(item)


def read_stored(dataset: "Dataset") -> tuple[np.ndarray, np.ndarray]:
    """Decode the pixels.

    Returns:
        (H, W) unsigned: the bits stored, without those above and below them (PS3.5, 8.1.1).
        (N,) float64: what these stand for, by sign.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    # a stream that holds only the bits stored has nothing above or below them
    syntax = dataset.file_meta.TransferSyntaxUID
    there = dataset.BitsAllocated
    if syntax not in (*UNCOMPRESSED, RLE):
        there = min(there, frame_in_stream(get_frame(dataset.PixelData, 0, number_of_frames=1))[2])
    bits = min(dataset.BitsStored, there)

    # decoded with all bits that are there: pydicom would take the highest for granted
    pixels, _ = get_decoder(syntax).as_array(
        dataset,
        index=0,
        raw=True,
        decoding_plugin=DECODERS.get(syntax, ""),
        bits_stored=max(dataset.BitsStored, there),
    )
    lowest = int(dataset.get("HighBit", bits - 1)) + 1 - dataset.BitsStored
    shift = min(max(lowest, 0), there - bits)
    pixels = pixels.view(f"u{pixels.itemsize}") >> shift & ((1 << bits) - 1)

    stored = np.arange(1 << bits, dtype=np.float64)
    if dataset.get("PixelRepresentation") == 1:
        stored[1 << (bits - 1) :] -= 1 << bits
    return pixels, stored
