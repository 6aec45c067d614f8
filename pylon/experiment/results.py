"""The folder of results of predict.py.

OUT/predictions.csv    one row per image and class
    overlays/          pictures, named after the images
    maps/              with --save-maps, the maps of each image: .npz
    coco.json, coco_results.json     with --save-coco, the images, and boxes with scores
    manifest.json      what the results come from, and the files that could not be read
    .progress-0.jsonl  one line per finished batch: what resumption needs

A killed run is resumed after its last line; predictions.csv, the COCO files and the final manifest
are written at the end, from these lines. Each of several processes has its own .progress file.
"""

import csv
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pylon.experiment.card import read_json
from pylon.experiment.inputs import Found, Read, fingerprint
from pylon.experiment.predictor import Prediction
from pylon.system.cli import flag
from pylon.system.errors import UserError
from pylon.system.files import (
    as_text,
    hash_of_json,
    hashed_json,
    hold_lock,
    require_writable,
    write_atomically,
    write_together,
)

COLUMNS = (
    "image", "label", "score", "present", "point_row", "point_column", "box_x", "box_y", "box_w",
    "box_h",
)  # fmt: skip
ENDING_OF = {"overlays": ".png", "maps": ".npz"}
LONGEST_NAME = 240  # bytes, of 255: leaves room for the ending of temporary names


class Entry(NamedTuple):
    """The results of one image, as in a line of a .progress file."""

    image: str  # path relative to the folder of all inputs
    bytes: int  # of the file, and its time of modification: a changed file is predicted again
    modified_ns: int
    height: int
    width: int
    bits: int  # how the pixels were read: see `Pixels` of pylon/data/images.py
    colour: bool
    window: list[int] | None
    findings: list[list[Any]]  # per class: score, present, row, column, x, y, w, h


def entry_of(read: Read, prediction: Prediction) -> Entry:
    """The results of an image, to be recorded."""
    prepared = read.prepared
    pixels = prepared.pixels
    findings = []
    for label in prediction.class_names:
        finding = prediction.finding(label)
        places = (*finding["point"], *finding["box"])
        findings.append([finding["score"], finding["present"], *places])
    size = (prepared.height, prepared.width)
    return Entry(
        read.image, *read.fingerprint, *size, pixels.bits, pixels.colour, pixels.window, findings
    )


class Progress:
    """The entries of a folder of results, on disk; only their places are kept in memory."""

    def __init__(self, out: Path):
        self.out = out
        self.files = sorted(out.glob(".progress-*.jsonl"))
        self.run = 0  # the last one; a later run may have done a changed image again
        self.places: dict[str, tuple[int, int, int, int]] = {}  # run, file, offset, index in line
        self.bad: set[str] = set()  # images that could not be read
        for number, path in enumerate(self.files):
            with open(path, "rb") as file:
                offset = 0
                for line in complete_lines(file):
                    run, entries, bad = parse(line)
                    self.run = max(self.run, run)
                    self.bad |= set(bad)
                    for index, entry in enumerate(entries):
                        place = (run, number, offset, index)
                        self.places[entry.image] = max(self.places.get(entry.image, place), place)
                    offset += len(line)

    def left(self, found: Found, kinds: Sequence[str]) -> list[str]:
        """The images that have no results, or whose file has changed since.

        Those that could not be read before come last, so that the others are in the same batches
        as in a run that was not interrupted.

        Args:
            kinds: folders of files that each image must have.
        """
        done = set()
        for entry in self.entries([image for image in found.images if image in self.places]):
            file = fingerprint(os.path.join(found.folder, entry.image))
            there = all(file_of(self.out, kind, entry.image).exists() for kind in kinds)
            if there and file == (entry.bytes, entry.modified_ns):
                done.add(entry.image)
        left = [image for image in found.images if image not in done]
        return sorted(left, key=self.bad.__contains__)

    def entries(self, images: Iterable[str]) -> Iterator[Entry]:
        """Read the entries of images, in their order."""
        last = None
        files = [open(path, "rb") for path in self.files]  # noqa: SIM115, closed below
        for image in images:
            _, number, offset, index = self.places[image]
            if last != (number, offset):
                last = (number, offset)
                files[number].seek(offset)
                _, of_line, _ = parse(files[number].readline())
            yield of_line[index]
        for file in files:
            file.close()


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

    def __init__(self, out: Path, process: int, run: int):
        self.path = out / f".progress-{process}.jsonl"
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


def open_results(out: Path, about: dict[str, Any]) -> None:
    """Create the folder, or check that its results have the same origin; hold its lock.

    Args:
        about: for the manifest: folder, weights_sha256 and options, which must be the same as
            before, and whatever else is known.

    Raises:
        UserError: they are of other options, weights or images, or not of predict.py at all;
            another process is writing them; or the folder cannot be written.
    """
    require_results(out, about)
    require_writable(out)
    hold_lock(out / ".lock", f"another process is writing to {out}; wait, or choose another --out")
    write_atomically(out / "manifest.json", hashed_json({**about, "finished": False}))


def require_results(out: Path, about: dict[str, Any]) -> None:
    """Raise a UserError if a folder holds anything but results of the same origin."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    path = out / "manifest.json"
    if not path.exists():
        others = ("predictions.csv", "overlays", "maps", "coco.json", "coco_results.json")
        strange = [name for name in others if (out / name).exists()]
        if strange:
            raise UserError(
                f"--out {out} has {strange[0]}, but no manifest.json: it was not written by "
                "predict.py; choose another folder"
            )
        return
    try:
        before = read_json(path)
        if before.pop("sha256", None) != hash_of_json(before):
            raise KeyError("sha256")
        require_same(out, before, about)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError) and "holds results" in str(error):
            raise
        raise UserError(
            f"{path} is damaged, or was not written by predict.py; choose another --out"
        ) from error


def require_same(out: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    cure = "choose another --out, or delete that folder"
    if before["weights_sha256"] != about["weights_sha256"]:
        raise UserError(
            f"--out {out} holds results of another network ({before['checkpoint']}); {cure}"
        )
    for name, value in about["options"].items():
        earlier = before["options"].get(name)
        if earlier != json.loads(json.dumps(value)):
            raise UserError(
                f"--out {out} holds results with {flag(name)} {shown(earlier)}, not "
                f"{shown(value)}; repeat that, or {cure}"
            )
    if before["folder"] != about["folder"]:
        raise UserError(
            f"--out {out} holds results of images in {before['folder']}, not {about['folder']}; "
            f"{cure}"
        )


def shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def file_of(out: Path, kind: str, image: str) -> Path:
    """The picture or the maps of an image: its path with an ending added.

    Very long names are cut, and end in a hash.

    Args:
        kind: "overlays" or "maps".
        image: path relative to the folder of all inputs.
    """
    ending = ENDING_OF[kind]
    place, name = os.path.split(image)
    encoded = os.fsencode(name)
    if len(encoded) + len(ending) > LONGEST_NAME:
        kept = encoded[: LONGEST_NAME - 40].decode(errors="ignore")
        name = f"{kept}-{hashlib.sha256(encoded).hexdigest()[:16]}"
    return out / kind / place / f"{name}{ending}"


def maps_file(maps: np.ndarray, class_names: Sequence[str], affine: np.ndarray) -> bytes:
    """An .npz file of maps (C, h, w) float32, class_names and affine (see `Prediction`)."""
    buffer = io.BytesIO()
    np.savez(buffer, maps=maps, class_names=np.array(class_names, str), affine=affine)
    return buffer.getvalue()


def write_results(
    out: Path,
    about: dict[str, Any],
    class_names: Sequence[str],
    faults: dict[str, str],
    with_coco: bool,
) -> dict[str, Any]:
    """Write predictions.csv, the COCO files and the manifest; return the manifest.

    Args:
        about: as for `open_results`.
        faults: why files could not be read, by image.
    """
    progress = Progress(out)
    images = sorted(progress.places.keys() - faults.keys())
    counts = {"8 bits": 0, "16 bits": 0, "in colour, read as grey": 0}
    windows = {}
    for entry in progress.entries(images):
        counts[f"{entry.bits} bits"] += 1
        counts["in colour, read as grey"] += entry.colour
        if entry.window is not None:
            windows[as_text(entry.image)] = entry.window
    unreadable = [
        {"image": as_text(image), "reason": as_text(reason)}
        for image, reason in sorted(faults.items())
    ]
    manifest = {
        **about,
        "finished": True,
        "images": len(images),
        "pixels": {**about["pixels"], "counts": counts, "windows": windows},
        "unreadable": unreadable,
    }
    files = {out / "predictions.csv": table(progress.entries(images), class_names)}
    if with_coco:
        files[out / "coco.json"] = coco_images(progress.entries(images), class_names)
        files[out / "coco_results.json"] = coco_results(progress.entries(images))
    write_together({**files, out / "manifest.json": hashed_json(manifest)})
    return manifest


def table(entries: Iterable[Entry], class_names: Sequence[str]) -> Iterator[bytes]:
    """The lines of predictions.csv, image by image."""
    yield (",".join(COLUMNS) + "\n").encode()
    for entry in entries:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for label, (score, present, *place) in zip(class_names, entry.findings, strict=True):
            called = "" if present is None else int(present)
            writer.writerow([as_text(entry.image), label, score, called, *place])
        yield buffer.getvalue().encode(errors="backslashreplace")


def coco_images(entries: Iterable[Entry], class_names: Sequence[str]) -> Iterator[bytes]:
    """The parts of coco.json: images and categories, numbered from 1, without annotations."""
    yield b'{"info": {"description": "images of predict.py"}, "licenses": [], "annotations": [],\n'
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, 1)]
    yield b'"categories": ' + json.dumps(categories).encode() + b',\n"images": ['
    for k, entry in enumerate(entries, 1):
        size = {"width": entry.width, "height": entry.height}
        image = {"id": k, "file_name": as_text(entry.image), **size}
        yield (b"" if k == 1 else b",") + b"\n" + json.dumps(image).encode()
    yield b"\n]}\n"


def coco_results(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The parts of coco_results.json: a box with its score per image and class."""
    yield b"["
    for k, entry in enumerate(entries, 1):
        for c, (score, _, _, _, *box) in enumerate(entry.findings, 1):
            result = {"image_id": k, "category_id": c, "bbox": box, "score": score}
            yield (b"" if k == c == 1 else b",") + b"\n" + json.dumps(result).encode()
    yield b"\n]\n"
