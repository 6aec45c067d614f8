"""What predict.py has done so far, on disk: a database for each process, with a row an image.

They are OUT/.progress-ORIGIN-PROCESS.sqlite; the origin is a hash of what results depend on, so
that those of another network or of other options never count.
"""

import heapq
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from pylon.data.pixels import Window
from pylon.system.errors import UserError
from pylon.viewer.page import file_of

KINDS = ("overlays", "maps", "captures", "reports", "html/radiographs", "html/heatmaps")
MISSING = ""  # in place of a fingerprint
TABLE = """CREATE TABLE IF NOT EXISTS results (
    image BLOB PRIMARY KEY,  -- its path, whose bytes need not be UTF-8
    run INTEGER,
    fingerprint TEXT,
    result TEXT  -- JSON; NULL if the image could not be read
)"""


class Result(NamedTuple):
    """The result of one image."""

    image: str  # path relative to the folder of all inputs
    fingerprint: str  # of the file: a changed file is predicted again
    fault: str = ""  # why it could not be read; then nothing of what follows is known
    height: int = 0  # of the image, pixels
    width: int = 0
    bits: int = 8  # how the pixels were read: see `Pixels` of pylon/data/pixels.py
    colour: bool = False
    window: Window | None = None
    lateral: bool = False
    notes: Sequence[str] = ()
    # of each class: label, score, present, point and box as in `Prediction`; with --html the
    # contour, too (see `contour_path`)
    findings: Sequence[dict[str, Any]] = ()
    unwritten: str = ""  # why files of it could not be written


class Journal:
    """The results in a folder that have one origin, of all processes and runs."""

    def __init__(self, out: Path, origin: str):
        self.out = out
        self.origin = origin

    def start_run(
        self, images: Sequence[str], folder: str, kinds_of: Callable[[str], Sequence[str]]
    ) -> tuple[list[str], int]:
        """The images that have no results, or have changed since; and the number of a new run.

        Those that could not be read before come last, so that the others are in the same batches
        as in a run that was not interrupted.

        Args:
            images: paths relative to `folder`.
            kinds_of: gives the kinds of files that an image must have, by its path.
        """
        known = {}
        bad = set()
        last = 0
        for image, run, known_as, is_bad in self._latest("fingerprint, result IS NULL"):
            last = max(last, run)
            if is_bad:
                bad.add(image)
            else:
                known[image] = known_as

        def is_done(image: str) -> bool:
            path = os.path.join(folder, image)
            there = all(file_of(self.out, kind, image).exists() for kind in kinds_of(path))
            return there and fingerprint(path) == known[image]

        left = [image for image in images if image not in known or not is_done(image)]
        return sorted(left, key=bad.__contains__), last + 1

    def results(self) -> Iterator[Result]:
        """Read the results of all images that could be read, sorted by image."""
        for *_, content in self._latest("result"):
            if content is not None:
                yield Result(*json.loads(content))

    def _latest(self, columns: str) -> Iterator[tuple]:
        """Image, run and other columns of the latest row of each image, sorted by image."""
        with ExitStack() as stack:
            files = [stack.enter_context(opened(path)) for path in databases(self.out, self.origin)]
            query = f"SELECT image, run, {columns} FROM results ORDER BY image"
            # a changed image may have been done again by another process
            rows = heapq.merge(*(file.execute(query) for file in files), key=itemgetter(0, 1))
            for image, of_image in groupby(rows, key=itemgetter(0)):
                *_, latest = of_image
                yield os.fsdecode(image), *latest[1:]

    def add(self, results: Sequence[Result], run: int, process: int) -> None:
        """Record results, all or none of them, in the database of a process.

        Raises:
            UserError: the disk is full.
        """
        rows = [
            (
                os.fsencode(result.image),
                run,
                result.fingerprint,
                None if result.fault else json.dumps(result),
            )
            for result in results
        ]
        with opened(self.out / f".progress-{self.origin}-{process}.sqlite") as file:
            file.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", rows)


def has_results(out: Path) -> bool:
    """Whether a folder holds results, of whatever origin."""
    for path in databases(out):
        with opened(path) as file:
            query = "SELECT 1 FROM results WHERE result IS NOT NULL LIMIT 1"
            if file.execute(query).fetchone():
                return True
    return False


def fingerprint(path: str) -> str:
    """Size and time of modification of a file; `MISSING` if there is none."""
    try:
        file = os.stat(path)
    except OSError:
        return MISSING
    return f"{file.st_size} {file.st_mtime_ns}"


def remove_files(out: Path, image: str) -> None:
    """Remove the files of an image, of all kinds, if there are any."""
    for kind in KINDS:
        with suppress(OSError):
            file_of(out, kind, image).unlink()


def databases(out: Path, origin: str = "*") -> list[Path]:
    return sorted(out.glob(f".progress-{origin}-*.sqlite"))


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database; what is written is kept if no error is raised.

    Raises:
        UserError: it cannot be read or written, or is damaged.
    """
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(TABLE)
            yield connection
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path} cannot be written ({error}); free up space, then run the same command again: "
            "it goes on from here"
        ) from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, then run the same command again: it does "
            "the images in it again"
        ) from error
