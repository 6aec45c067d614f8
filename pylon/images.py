"""Radiographs from the disk: a file is read, or said why it cannot be."""

import signal
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pylon.cli import UserError
from pylon.progress import track

SMALLEST_SIDE = 16  # pixels; what is narrower is no radiograph
# Boxes and sizes are of the pixels as they are stored, so an EXIF orientation turns nothing.
AS_STORED = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
PNG, JPEG, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd9"  # how files begin and end


def read_image(path: str) -> np.ndarray:
    """Read any PNG or JPEG of 8 bits as grey, (H, W) uint8.

    Raises:
        UserError: it is missing, truncated, no image, narrower than 16 pixels, or deeper than 8 bits.
    """
    return decode(path, read_file(path))


def read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it again, or get leave to read it") from error


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
def image_size(path: str) -> tuple[int, int]:
    """Width and height, from the head of the file."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to lead to
        raise UserError(unreadable(path)) from error


def require_readable(path: str) -> None:
    """Raise a UserError if `read_image` would; a PNG is not decoded for it, its checksums are compared instead."""
    data = read_file(path)
    if not data.startswith(PNG):
        decode(path, data)
        return
    at, kind, view = len(PNG), b"", memoryview(data)
    while kind != b"IEND":  # a chunk: length of its contents, kind, contents, checksum of kind and contents
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        kind = view[at + 4 : at + 8]
        if end + 4 > len(view) or zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise UserError(unreadable(path))
        at = end + 4
    if view[8:16] != b"\0\0\0\rIHDR":
        raise UserError(unreadable(path))
    require_fit(path, int.from_bytes(view[20:24], "big"), int.from_bytes(view[16:20], "big"), bits=view[24])


def require_fit(path: str, height: int, width: int, bits: int) -> None:
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(f"{path} is {width} x {height} pixels, which is no radiograph; put the right image there")
    if bits > 8:
        raise UserError(f"{path} has {bits} bits a pixel; convert it to 8 bits with the window that you want to see")


def unreadable(path: str) -> str:
    return f"{path} cannot be read as an image; copy it again from NIH's archive"


def fault_of(path: str, read: Callable[[str], Any] = require_readable) -> str:
    """What a way to read a file has against it; empty if nothing."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""


def look_at(paths: Iterable[str], look: Callable[[str], Any], num_workers: int, title: str) -> list[Any]:
    """What a function says of each file, in order, by several processes, with a progress bar."""
    loader = DataLoader(
        Files(list(paths), look),
        32,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=start_worker,
        generator=loader_generator(),
    )
    progress = track(loader, title, "batch")
    return [answer for batch in progress for answer in batch]


class Files(Dataset):
    """Item k: what a function says of file k."""

    def __init__(self, paths: list[str], look: Callable[[str], Any]):
        self.paths, self.look = np.array(paths, str), look

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> Any:
        return self.look(str(self.paths[k]))


def loader_generator() -> torch.Generator:
    """A generator of a loader's own: without one it would draw the seed of its workers from torch's global one, each
    time that it is begun anew, and dropout would depend on the number of workers and on when a run was resumed."""
    return torch.Generator().manual_seed(0)


def start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first of them ends the others
