"""What predict.py has done so far, on disk: one line per batch.

The lines are in OUT/.progress-ORIGIN-PROCESS.jsonl; the origin is a hash of what results depend on,
so that those of another network or of other options never count.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pylon.drawing import contour_path
from pylon.prediction.inputs import Found, Read, fingerprint
from pylon.prediction.predictor import Prediction
from pylon.system.errors import UserError
from pylon.viewer.page import file_of

KINDS = ("overlays", "maps", "captures", "reports", "html/radiographs", "html/heatmaps")
BAD = -1  # in place of an index: the image could not be read


class Entry(NamedTuple):
    """The results of one image, as in a line of a .progress file."""

    image: str  # path relative to the folder of all inputs
    bytes: int  # of the file, and its time of modification: a changed file is predicted again
    modified_ns: int
    height: int
    width: int
    bits: int  # how the pixels were read: see `Pixels` of pylon/data/images.py
    colour: bool
    window: list[float] | None
    lateral: bool
    notes: list[str]
    # per class: score, present, row, column, x, y, w, h; the last six None if the map is flat
    findings: list[list[Any]]
    contours: list[str] | None = None  # per class, for the page of --html (see `contour_path`)


def entry_of(read: Read, prediction: Prediction, with_contours: bool) -> Entry:
    """The results of an image, to be recorded."""
    prepared = read.prepared
    findings = []
    contours = []
    for label, heatmap in zip(prediction.class_names, prediction.maps, strict=True):
        finding = prediction.finding(label)
        places = (*finding["point"], *finding["box"]) if finding["box"] else (None,) * 6
        findings.append([finding["score"], finding["present"], *places])
        if with_contours:
            drawn = finding["present"] and prediction.are_probabilities
            contours.append(contour_path(heatmap, prediction.thresholds[label]) if drawn else "")
    size = (prepared.height, prepared.width)
    _, *how = prepared.pixels  # bits, colour, window, lateral, notes
    return Entry(read.image, *read.fingerprint, *size, *how, findings, contours or None)


class Place(NamedTuple):
    """Where the entry of an image is; the greatest is the latest."""

    run: int
    file: int
    offset: int  # of its line, bytes
    index: int  # in its line, or `BAD`
    fingerprint: tuple[int, int] | None  # of the image's file


class Progress:
    """The entries of a folder of results, on disk; only their places are kept in memory."""

    def __init__(self, out: Path, origin: str):
        self.out = out
        self.files = sorted(out.glob(f".progress-{origin}-*.jsonl"))
        self.run = 0  # the last one
        places: dict[str, Place] = {}
        for number, path in enumerate(self.files):
            with open(path, "rb") as file:
                offset = 0
                for line in complete_lines(file):
                    run, entries, bad = parse(line)
                    self.run = max(self.run, run)
                    here = partial(Place, run, number, offset)
                    found = {image: here(BAD, None) for image in bad}
                    for index, entry in enumerate(entries):
                        found[entry.image] = here(index, (entry.bytes, entry.modified_ns))
                    for image, place in found.items():
                        # a changed image has been done again in a later run
                        places[image] = max(places.get(image, place), place)
                    offset += len(line)
        self.bad = {image for image, place in places.items() if place.index == BAD}
        self.places = {image: place for image, place in places.items() if place.index != BAD}

    def left(self, found: Found, kinds_of: Callable[[str], Sequence[str]]) -> list[str]:
        """The images that have no results, or whose file has changed since.

        Those that could not be read before come last, so that the others are in the same batches
        as in a run that was not interrupted.

        Args:
            kinds_of: gives the kinds of files that an image must have, by its path.
        """

        def is_done(image: str) -> bool:
            if image not in self.places:
                return False
            path = os.path.join(found.folder, image)
            there = all(file_of(self.out, kind, image).exists() for kind in kinds_of(path))
            file = fingerprint(path)
            return there and file == self.places[image].fingerprint

        left = [image for image in found.images if not is_done(image)]
        return sorted(left, key=self.bad.__contains__)

    def entries(self, images: Iterable[str]) -> Iterator[Entry]:
        """Read the entries of images, in their order."""
        with ExitStack() as stack:
            files = [stack.enter_context(open(path, "rb")) for path in self.files]

            @lru_cache(maxsize=32)  # images of several runs alternate
            def entries_at(number: int, offset: int) -> list[Entry]:
                files[number].seek(offset)
                return parse(files[number].readline())[1]

            for image in images:
                place = self.places[image]
                yield entries_at(place.file, place.offset)[place.index]


def line_of(run: int, entries: Sequence[Entry], bad: Sequence[str]) -> bytes:
    """A line: the checksum of what follows; number of the run, entries, unreadable images."""
    content = json.dumps([run, entries, bad]).encode()
    return b"%08x %b\n" % (zlib.crc32(content), content)


def parse(line: bytes) -> tuple[int, list[Entry], list[str]]:
    """Number of the run, entries, and unreadable images of a complete line."""
    run, entries, bad = json.loads(line[9:])
    return run, [Entry(*values) for values in entries], bad


def complete_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines before one that is damaged, or at which the process was killed."""
    for line in lines:
        checksum = b"%08x " % zlib.crc32(line[9:-1])
        if not line.endswith(b"\n") or not line.startswith(checksum):
            return
        yield line


class Recorder:
    """Appends the entries of a process to its .progress file."""

    def __init__(self, out: Path, origin: str, process: int, run: int):
        self.out = out
        self.path = out / f".progress-{origin}-{process}.jsonl"
        self.run = run
        try:
            self.file = open(self.path, "a+b")  # noqa: SIM115, open until the end of the process
            self.file.seek(0)
            self.file.truncate(sum(map(len, complete_lines(self.file))))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error

    def add(self, entries: Sequence[Entry], bad: Sequence[str]) -> None:
        """Append the entries of a batch, and its images that could not be read, in one line.

        Raises:
            UserError: the disk is full.
        """
        try:
            self.file.write(line_of(self.run, entries, bad))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); free up space, then run the "
                "same command again: it goes on from here"
            ) from error


def remove_files(out: Path, image: str) -> None:
    """Remove the files of an image, of all kinds, if there are any."""
    for kind in KINDS:
        with suppress(OSError):
            file_of(out, kind, image).unlink()


def has_entries(out: Path) -> bool:
    """Whether a folder holds results, of whatever origin."""
    for path in out.glob(".progress-*.jsonl"):
        with open(path, "rb") as file:
            if any(parse(line)[1] for line in complete_lines(file)):
                return True
    return False
