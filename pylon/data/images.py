"""Read radiographs from disk, or report why a file cannot be read.

PNG, JPEG, TIFF, BMP or WebP of 8 or 16 bits per pixel, grey or colour, becomes (H, W) uint8, grey.
8 bits are taken as they are; 16 bits are stretched between two percentiles of the image, or by a
given window. OpenCV decodes; Pillow reads the header before. DICOM files are told by their preamble
(dicom.py).
"""

import io
import os
import stat
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from pylon.data.dicom import is_dicom, is_dicom_file, read_dicom, width_height_of_dicom
from pylon.data.kinds import ENDINGS_OF, require_kind
from pylon.data.pixels import MOST_PIXELS, Pixels, Window, pixels_of, require_fit, too_large
from pylon.system.errors import UserError

READING = "grey-8-bit-ps3.3"  # for caches: change it if `decode` reads a file otherwise than before
MOST_BYTES = 8 * MOST_PIXELS  # of a file; of 16 bits and four channels, not compressed
# Boxes and sizes refer to the pixels as stored, so EXIF orientation is ignored. (That of a TIFF
# file is applied all the same, by Pillow too.)
AS_STORED = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
MIN_IS_WHITE = 0  # a TIFF file's photometric interpretation
PHOTOMETRIC = 262  # and its tag
# first and last bytes of files
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
JPEG_END = b"\xff\xd9"


def read_image(path: str) -> np.ndarray:
    """Read a file of any kind in kinds.py as grey, (H, W) uint8; see `read_pixels`."""
    return read_pixels(path).image


def read_pixels(path: str, window: Window | None = None) -> Pixels:
    """Read a PNG, JPEG, TIFF, BMP, WebP or DICOM file.

    Args:
        path: of the file.
        window: for 16 bits and DICOM, centre and width; by default that between two percentiles,
            or a DICOM file's own.

    Raises:
        UserError: the file is missing, truncated, not an image, narrower than 16 pixels, of more
            than `MOST_PIXELS`, of other than 8 or 16 bits, an animation, or has several pages; or
            as for `read_dicom`.
    """
    return decode(path, read_file(path), window)


def read_file(path: str) -> bytes:
    try:
        file = os.stat(path)
        if not stat.S_ISREG(file.st_mode) and not stat.S_ISDIR(file.st_mode):
            raise UserError(f"{path} is not a regular file; name an image")
        if file.st_size > MOST_BYTES:
            raise UserError(
                f"{path} has more than {MOST_BYTES / 1e6:.0f} MB; no radiograph is as large: "
                "replace it with the right image"
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check the path and the permissions, or "
            "copy it again"
        ) from error


def decode(path: str, data: bytes, window: Window | None = None) -> Pixels:
    """Decode the contents of a file; see `read_pixels`."""
    if is_dicom(data):
        return read_dicom(path, data, window)
    require_kind(path, data)
    header = read_header(path, io.BytesIO(data))
    require_fit(path, header.height, header.width)
    require_one_page(path, header)
    if header.format == "TIFF":
        require_whole_tiff(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), AS_STORED)
    except cv2.error:
        image = None
    # OpenCV rejects a truncated PNG, but would fill the rest of a truncated JPEG with grey.
    if image is None or (data.startswith(JPEG) and not has_end(data)):
        raise UserError(unreadable(path))
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} has pixels of type {image.dtype}; convert it to 8 or 16 bits")
    if header.min_is_white and image.dtype == np.uint16:  # with 8 bits, OpenCV does it
        image = 65535 - image
    return pixels_of(image, header.colour, window)


def has_end(data: bytes) -> bool:
    """Whether a JPEG stream has its end, whatever comes behind: cameras and archives add data."""
    at = 2
    while data[at : at + 1] == b"\xff":
        if data[at + 1 : at + 2] == b"\xff":  # a fill byte
            at += 1
            continue
        is_scan = data[at + 1 : at + 2] == b"\xda"  # in what follows, only the end has this mark
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if is_scan:
            return JPEG_END in data[at:]
    return False


class Header(NamedTuple):
    """What is known of an image file before its pixels are decoded."""

    width: int  # pixels as stored
    height: int
    colour: bool
    format: str | None  # as Pillow names it
    pages: int  # or pictures of an animation
    min_is_white: bool  # in a TIFF file that says so


def read_header(path: str, file: str | io.BytesIO) -> Header:
    """Read the header of an image file.

    Args:
        path: of the file, in messages.
        file: its path or its contents.
    """
    try:
        with warnings.catch_warnings():  # about the number of pixels, or odd metadata
            warnings.simplefilter("ignore")
            with Image.open(file, formats=tuple(ENDINGS_OF)) as image:
                return header_of(image)
    except Image.DecompressionBombError as error:
        raise UserError(too_large(path)) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise almost any exception
        raise UserError(unreadable(path)) from error


def header_of(image: Image.Image) -> Header:
    """The header of an image that Pillow has opened."""
    colour = image.mode not in ("1", "L", "LA", "F", "I") and image.mode[:2] != "I;"
    is_tiff = image.format == "TIFF"
    # the other pictures in a camera's JPEG (MPO) are smaller copies
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    min_is_white = is_tiff and image.tag_v2.get(PHOTOMETRIC) == MIN_IS_WHITE
    return Header(*image.size, colour, image.format, pages, min_is_white)


def require_whole_tiff(path: str, data: bytes) -> None:
    """Raise a UserError if compressed data is damaged, which OpenCV would fill with noise."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:
        raise UserError(unreadable(path)) from error


def require_one_page(path: str, header: Header) -> None:
    if header.pages > 1:
        what = f"has {header.pages} pages"
        if header.format != "TIFF":
            what = f"is an animation of {header.pages} pictures"
        raise UserError(f"{path} {what}; save the radiograph in a file of its own")


@cache
def width_height_of(path: str) -> tuple[int, int]:
    """Width and height, from the header of the file."""
    if is_dicom_file(path):
        return width_height_of_dicom(path)
    return read_header(path, path)[:2]


def require_readable(path: str) -> None:
    """Raise a UserError if `read_image` would; PNG files are verified by checksum instead."""
    data = read_file(path)
    if not data.startswith(PNG):
        decode(path, data)
        return

    header = read_header(path, io.BytesIO(data))
    require_fit(path, header.height, header.width)
    require_one_page(path, header)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()
    except Exception as error:  # a damaged file may raise almost any exception
        raise UserError(unreadable(path)) from error


def unreadable(path: str) -> str:
    return f"{path} cannot be read as an image; copy it again, or convert it to PNG"


def fault_of(path: str, read: Callable[[str], Any] = require_readable) -> str:
    """The error message of `read` for a file; empty if there is none."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""
