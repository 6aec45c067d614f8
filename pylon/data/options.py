"""Options that select the data, on the command line; sources.py carries them out."""

from dataclasses import dataclass
from pathlib import Path

from pylon.system.errors import UserError


@dataclass
class DataOptions:
    data: Path = Path("data")
    """Folder with NIH's files."""
    table: Path | None = None
    """Instead of --data: a csv file of your own images with a column path, a column for each class
    (1, 0, or blank if unknown) and, if you have them, patient_id and split."""


@dataclass
class CacheOptions(DataOptions):
    cache_dir: Path | None = None
    """Folder for caches of decoded images; if none is given, DATA/cache, or cache/ next to the
    table."""


@dataclass
class ClassOptions:
    classes: tuple[str, ...] = ()
    """Classes to use; if none are given, all of NIH's, or every column of the table that is not
    path, patient_id, split or ignored."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the table that are not classes."""


@dataclass
class BoxOptions:
    boxes: Path | None = None
    """Boxes of the table's images: a csv file with the columns path, class, x, y, w, h in pixels,
    or a COCO file (.json)."""


def require_cache_size(options: CacheOptions, cache_size: int) -> None:
    """Raise a UserError if a folder of caches is named but none is used."""
    if options.cache_dir is not None and cache_size == 0:
        raise UserError("--cache-dir needs --cache-size, the side of cached images; add it")


def cache_folder(options: CacheOptions) -> Path:
    """Folder of the caches."""
    if options.cache_dir is not None:
        return options.cache_dir
    beside = options.data if options.table is None else options.table.parent
    return beside / "cache"
