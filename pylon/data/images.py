"""Read radiographs from disk, or report why a file cannot be read."""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pylon.system.errors import UserError

READING = "grey-8-bit"  # how pixels are read, for caches: change it if `decode` changes
SMALLEST_SIDE = 16  # pixels; anything narrower is not a radiograph
# Boxes and sizes refer to the pixels as stored, so EXIF orientation is ignored.
AS_STORED = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
# first and last bytes of files
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
JPEG_END = b"\xff\xd9"


def read_image(path: str) -> np.ndarray:
    """Read an 8-bit PNG or JPEG as grey, (H, W) uint8.

    Raises:
        UserError: the file is missing, truncated, not an image, narrower than 16 pixels, or has
            more than 8 bits per pixel.
    """
    return decode(path, read_file(path))


def read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); copy it again, or check the permissions"
        ) from error


def decode(path: str, data: bytes) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), AS_STORED)
    except cv2.error:  # an empty file, or impossibly large dimensions
        image = None
    if image is None and data[128:132] == b"DICM":
        raise UserError(f"{path} is a DICOM file, which is not read; convert it to 8-bit PNG")
    # OpenCV rejects a truncated PNG, but would fill the rest of a truncated JPEG with grey.
    cut = data.startswith(JPEG) and JPEG_END not in data.rstrip(b"\0")[-1024:]
    if image is None or cut:
        raise UserError(unreadable(path))
    require_fit(path, *image.shape, bits=8 * image.itemsize)
    return image


@cache
def width_height_of(path: str) -> tuple[int, int]:
    """Width and height, from the header of the file."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise almost any exception
        raise UserError(unreadable(path)) from error


def require_readable(path: str) -> None:
    """Raise a UserError if `read_image` would; PNG files are verified by checksum instead."""
    data = read_file(path)
    if not data.startswith(PNG):
        decode(path, data)
        return

    # a chunk: length of the contents, kind, contents, checksum of kind and contents
    view = memoryview(data)
    at = len(PNG)
    kind = b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        kind = view[at + 4 : at + 8]
        checksum = int.from_bytes(view[end : end + 4], "big")
        if end + 4 > len(view) or zlib.crc32(view[at + 4 : end]) != checksum:
            raise UserError(unreadable(path))
        at = end + 4

    # the first chunk is the header
    if view[8:16] != b"\0\0\0\rIHDR":
        raise UserError(unreadable(path))
    width = int.from_bytes(view[16:20], "big")
    height = int.from_bytes(view[20:24], "big")
    require_fit(path, height, width, bits=view[24])


def require_fit(path: str, height: int, width: int, bits: int) -> None:
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{path} is {width} x {height} pixels, too small for a radiograph; "
            "replace it with the right image"
        )
    if bits > 8:
        raise UserError(
            f"{path} has {bits} bits per pixel; "
            "convert it to 8 bits with the intensity window of your choice"
        )


def unreadable(path: str) -> str:
    return f"{path} cannot be read as an image; copy it again"


def fault_of(path: str, read: Callable[[str], Any] = require_readable) -> str:
    """The error message of `read` for a file; empty if there is none."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""
