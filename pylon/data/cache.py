"""A cache of decoded radiographs.

FOLDER/SIZE/images.uint8  a memory map (N, SIZE, SIZE), one row per image; the system keeps as much
                          of it in memory as fits
            index.csv     one row per image, in the same order: path of its file, relative to
                          FOLDER, height, width, bytes and modified_ns of the file, and how its
                          pixels were read
            lock          held by the process that fills the cache
"""

import errno
import io
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from torch.utils.data import DataLoader, Dataset

from pylon.data.images import READING, fault_of, read_image, require_readable
from pylon.system.errors import UserError
from pylon.system.files import csv_file, locked, write_atomically
from pylon.system.parallel import (
    loader_generator,
    look_at,
    require_shared_memory,
    start_worker,
)
from pylon.system.progress import track

COLUMNS = ["path", "height", "width", "bytes", "modified_ns", "reading"]
TYPES = {"path": str, **dict.fromkeys(COLUMNS[1:5], "int64"), "reading": str}
SECONDS_BETWEEN_COMMITS = 20  # the most work that a killed process can lose


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Shrink an image by area averaging so that no side exceeds `size`; smaller ones are kept."""
    height, width = fitted(*image.shape, size)
    if (height, width) == image.shape:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width, in pixels, of an image shrunk so that no side exceeds `size`."""
    scale = min(1, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class ImageCache:
    """Grey images, no side above `size`, in one memory map that all processes share."""

    def __init__(self, folder: Path, size: int):
        self.folder = folder
        self.path = folder / "images.uint8"
        self.size = size
        index = read_index(folder, size)
        self.height_width = index[["height", "width"]].to_numpy()
        self.row_of = pd.Series(np.arange(len(index)), index=index["path"])
        self.map = None

    def rows_of(self, paths: pd.Series) -> np.ndarray:
        """The rows of image files, (N,) int64; a KeyError if one is not in the cache."""
        return self.row_of[keys_of(paths, self.folder)].to_numpy()

    def __getstate__(self) -> dict:
        # pickling a memory map would copy all its contents
        return {**self.__dict__, "map": None}

    def read(self, row: int) -> np.ndarray:
        """The image in a row: (h, w) uint8, no side above `size`, a read-only view."""
        if self.map is None:
            self.map = open_map(self.path, self.size, "r")
        height, width = fitted(*self.height_width[row], self.size)
        return self.map[row, :height, :width]


def open_cache(
    images: pd.DataFrame,
    folder: Path,
    size: int,
    num_workers: int,
    say: Callable[[str], None] = print,
) -> ImageCache | None:
    """Open the cache of `size`, decoding the images that are missing or have changed.

    One process fills it with `num_workers` workers while the others wait. A cache that a killed
    process left incomplete is completed.

    Args:
        images: a table of images (see radiographs.py).
        folder: folder of the caches; this one is in FOLDER/SIZE.
        size: side of a row, pixels. 0: no cache, None is returned.
        say: prints a message while another process is waited for.

    Raises:
        UserError: an image cannot be read, disk space is insufficient, or the folder cannot be
            written.
    """
    if size == 0:
        return None
    place = folder / str(size)
    # a complete cache may be read-only and is not locked
    if len(find_missing(read_index(place, size), images, place)):
        with locked(place, say):
            fill(place, images, size, num_workers)
    return ImageCache(place, size)


def unreadable_images(
    images: pd.DataFrame, folder: Path, size: int, num_workers: int, decode: bool = False
) -> dict[str, str]:
    """The fault of each image that cannot be read, by image_id.

    Images in the cache of that size count as readable. PNG files are verified by their checksums,
    a hundred times as fast as decoding; data that is encoded wrongly despite correct checksums is
    found only with `decode`.
    """
    if size:
        place = folder / str(size)
        images = find_missing(read_index(place, size), images, place)
        images["path"] = images["file"]
    look = partial(fault_of, read=read_image if decode else require_readable)
    faults = look_at(images["path"], look, num_workers, "checking the images")
    return {name: fault for name, fault in zip(images["image_id"], faults, strict=True) if fault}


def keys_of(paths: pd.Series, folder: Path) -> list[str]:
    """Paths relative to the folder of the caches: a folder moved with its caches keeps them."""
    base = os.path.abspath(folder.parent)
    of_folder = {}  # a data set has few folders, and relpath takes long
    keys = []
    # three times as fast as iterating over a column of texts
    for path in pd.Series(paths).tolist():
        head, tail = os.path.split(path)
        if head not in of_folder:
            of_folder[head] = os.path.relpath(os.path.abspath(head), base)
        keys.append(os.path.join(of_folder[head], tail))
    return keys


def find_missing(index: pd.DataFrame, images: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Images that are not in the index or whose files have changed, with file and row.

    Args:
        index: of the cache in `folder`.
        images: a table of images (see radiographs.py).
    """
    images = images.drop_duplicates("path")
    files = [state_of(path) for path in images["path"].tolist()]
    wanted = pd.DataFrame({
        "image_id": images["image_id"].to_numpy(),
        "file": images["path"].to_numpy(),
        "path": keys_of(images["path"], folder),
        "bytes": [file.st_size for file in files],
        "modified_ns": [file.st_mtime_ns for file in files],
        "reading": READING,
    })  # fmt: skip

    # compare with the index
    numbered = index.reset_index(names="row")
    merged = wanted.merge(numbered, on="path", how="left", suffixes=("", "_then"))
    changed = [merged[key] != merged[f"{key}_then"] for key in ("bytes", "modified_ns", "reading")]
    missing = merged[np.any(changed, axis=0)].reset_index(drop=True)

    # a changed file keeps its row, new ones are appended
    new = missing["row"].isna()
    missing.loc[new, "row"] = np.arange(len(index), len(index) + new.sum())
    return missing.astype({"row": int})


def state_of(path: str) -> os.stat_result:
    """What the system knows of a file, or of a link that is broken."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return os.lstat(path)


def fill(folder: Path, images: pd.DataFrame, size: int, num_workers: int) -> None:
    """Decode missing images into a cache; the caller must hold the lock."""
    index = read_index(folder, size)
    missing = find_missing(index, images, folder)
    if len(missing) == 0:  # another process has filled it in the meantime
        return
    rows = max(len(index), missing["row"].max() + 1)
    size_bytes = rows * size * size
    make_room(folder / "images.uint8", size_bytes)
    print(f"decoding {len(missing)} images into {folder}, {size_bytes / 1e9:.1f} GB when complete")

    # workers write each image into its row and return its height and width
    decoder = Decoder(folder / "images.uint8", size, missing)
    require_shared_memory(num_workers)
    loader = DataLoader(
        decoder,
        16,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        generator=loader_generator(),
    )
    store = open_map(folder / "images.uint8", size, "r+")
    done = []
    committed = time.monotonic()
    for batch in track(loader, "decoding", "batch"):
        done += batch.tolist()
        if time.monotonic() - committed > SECONDS_BETWEEN_COMMITS or len(done) == len(missing):
            # Flush the rows to disk before the index lists them. They are listed in the order of
            # the table, so the new rows of the index are contiguous.
            store.flush()
            part = missing.iloc[: len(done)].copy()
            part[["height", "width"]] = done
            index = pd.concat([index, part.set_index("row")[COLUMNS]])
            index = index[~index.index.duplicated(keep="last")].sort_index().astype(TYPES)
            write_atomically(folder / "index.csv", csv_file(index, index=False))
            committed = time.monotonic()


class Decoder(Dataset):
    """Item k: decode image k of `todo` into its row of the map; (height, width) of the file."""

    def __init__(self, path: Path, size: int, todo: pd.DataFrame):
        self.path = path
        self.size = size
        self.files = todo["file"].to_numpy(dtype=str)
        self.rows = todo["row"].to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> np.ndarray:
        image = read_image(self.files[k])
        small = shrink(image, self.size)
        row = open_map(self.path, self.size, "r+")[self.rows[k]]
        row[: small.shape[0], : small.shape[1]] = small
        return np.array(image.shape)


def open_map(path: Path, size: int, mode: str) -> np.memmap:
    rows = path.stat().st_size // (size * size)
    return np.memmap(path, np.uint8, mode, shape=(rows, size, size))


def read_index(folder: Path, size: int) -> pd.DataFrame:
    """The index of a cache, one row per image; empty if there is no cache.

    An index of an earlier version, without paths, counts as empty too.
    """
    path = folder / "index.csv"
    store = folder / "images.uint8"
    if not path.exists() or not store.exists():
        return pd.DataFrame(columns=COLUMNS).astype(TYPES)
    try:
        content = path.read_bytes()
        if content.startswith(b"image_id,height,width,bytes,modified_ns\n"):
            return pd.DataFrame(columns=COLUMNS).astype(TYPES)
        index = pd.read_csv(io.BytesIO(content), dtype=TYPES, keep_default_na=False)[COLUMNS]
    except (ValueError, KeyError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} is damaged; when no run uses {folder}, delete it to rebuild the cache"
        ) from error
    return index[: store.stat().st_size // (size * size)]  # a copy may have been cut short


def make_room(path: Path, length: int) -> None:
    """Allocate at least `length` bytes on disk for a file.

    Running out of space later, while the memory map is written, would kill the process.
    """
    there = path.stat().st_size if path.exists() else 0
    if there >= length:
        return
    cure = f"free up space, link {path.parent} to a larger disk, or choose a smaller --cache-size"
    free = shutil.disk_usage(path.parent).free
    if length - there > free:
        raise UserError(
            f"{path} needs {(length - there) / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are left; "
            f"{cure}"
        )
    try:
        with open(path, "r+b" if path.exists() else "w+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, length)
            except (AttributeError, OSError) as error:
                # macOS and some file systems lack fallocate; the check above must suffice
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
            file.truncate(length)
    except OSError as error:
        raise UserError(
            f"{path} cannot be extended to {length / 1e9:.1f} GB ({error.strerror}); {cure}"
        ) from error
