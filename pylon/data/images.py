"""Radiographs from the disk: a file is read, or said why it cannot be."""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pylon.system.errors import UserError

SMALLEST_SIDE = 16  # pixels; what is narrower is no radiograph
# Boxes and sizes are of the pixels as they are stored, so an EXIF orientation turns nothing.
AS_STORED = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
# how files begin and end
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
JPEG_END = b"\xff\xd9"


def read_image(path: str) -> np.ndarray:
    """Read any PNG or JPEG of 8 bits as grey, (H, W) uint8.

    Raises:
        UserError: it is missing, truncated, no image, narrower than 16 pixels, or deeper than
            8 bits.
    """
    return decode(path, read_file(path))


def read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); copy it again, or get leave to read it"
        ) from error


def decode(path: str, data: bytes) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), AS_STORED)
    except cv2.error:  # nothing in it, or sides beyond all reason
        image = None
    # Of a PNG, OpenCV asks for every byte; a JPEG that has lost its end it would fill with grey.
    cut = data.startswith(JPEG) and JPEG_END not in data.rstrip(b"\0")[-1024:]
    if image is None or cut:
        raise UserError(unreadable(path))
    require_fit(path, *image.shape, bits=8 * image.itemsize)
    return image


@cache
def width_height_of(path: str) -> tuple[int, int]:
    """Width and height, from the head of the file."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to lead to
        raise UserError(unreadable(path)) from error


def require_readable(path: str) -> None:
    """Raise a UserError if `read_image` would; of a PNG the checksums are compared instead."""
    data = read_file(path)
    if not data.startswith(PNG):
        decode(path, data)
        return

    # a chunk: length of its contents, kind, contents, checksum of kind and contents
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

    # the first of them is the header
    if view[8:16] != b"\0\0\0\rIHDR":
        raise UserError(unreadable(path))
    width = int.from_bytes(view[16:20], "big")
    height = int.from_bytes(view[20:24], "big")
    require_fit(path, height, width, bits=view[24])


def require_fit(path: str, height: int, width: int, bits: int) -> None:
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{path} is {width} x {height} pixels, which is no radiograph; "
            "put the right image there"
        )
    if bits > 8:
        raise UserError(
            f"{path} has {bits} bits a pixel; "
            "convert it to 8 bits with the window that you want to see"
        )


def unreadable(path: str) -> str:
    return f"{path} cannot be read as an image; copy it again from NIH's archive"


def fault_of(path: str, read: Callable[[str], Any] = require_readable) -> str:
    """What a way to read a file has against it; empty if nothing."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""
