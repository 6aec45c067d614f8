"""The folder of results of predict.py.

OUT/predictions.csv    one row per image and class
    overlays/          pictures, named after the images
    maps/              with --save-maps, the maps of each image: .npz
    captures/, reports/    with --dicom-out, the two DICOM files of each DICOM image
    coco.json, coco_results.json     with --save-coco, the images, and boxes with scores
    html/              with --html, a page to look through in a browser (page.py)
    manifest.json      what the results come from, and the files that could not be read
    .progress-*.jsonl  one line per finished batch: what resumption needs (journal.py)

A killed run is resumed after its last line; predictions.csv, the COCO files, the page and the final
manifest are written at the end, from these lines. Each of several processes has its own .progress
file.
"""

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator

from pylon.checkpoints.training_json import read_json
from pylon.data.chestxray14 import what_images_are
from pylon.prediction.journal import Entry, Progress, has_entries
from pylon.prediction.predictor import Predictor
from pylon.system.cli import flag
from pylon.system.errors import UserError
from pylon.system.files import (
    as_text,
    hash_of_json,
    hashed_json,
    hold_lock,
    one_line,
    require_writable,
    write_atomically,
    write_together,
)
from pylon.viewer.page import About, Finding, Pictured, file_of, title_of_page, write_page

COLUMNS = (
    "image", "label", "score", "present", "point_row", "point_column", "box_x", "box_y", "box_w",
    "box_h",
)  # fmt: skip
TABLES = ("predictions.csv", "coco.json", "coco_results.json", "html/index.html")
FAULTS_SHOWN = 10


def open_results(out: Path, about: dict[str, Any]) -> None:
    """Create the folder, or check that its results have the same origin; hold its lock.

    Args:
        about: for the manifest: folder, weights_sha256, network, options and device, which must be
            the same as before, and whatever else is known.

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
    except UserError:
        before = {}
    is_whole = before.pop("sha256", None) == hash_of_json(before)
    is_ours = before.keys() >= about.keys() and isinstance(before["options"], dict)
    if not is_whole or not is_ours:
        raise UserError(
            f"{path} is damaged, or was not written by predict.py; choose another --out"
        )
    if has_entries(out):
        require_same(out, before, about)


def require_same(out: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    cure = "choose another --out, or delete that folder"
    about = json.loads(json.dumps(about))  # lists for tuples, as in the file
    same_weights = before["weights_sha256"] == about["weights_sha256"]
    if not same_weights or before["network"] != about["network"]:
        raise UserError(
            f"--out {out} holds results of another network ({before['checkpoint']}); {cure}"
        )
    for name, value in about["options"].items():
        earlier = before["options"].get(name)
        if earlier != value:
            raise UserError(
                f"--out {out} holds results with {flag(name)} {shown(earlier)}, not "
                f"{shown(value)}; repeat that, or {cure}"
            )
    if before["device"] != about["device"]:
        raise UserError(
            f"--out {out} holds results of --device {before['device']}, not {about['device']}; "
            f"repeat that, or {cure}"
        )
    if before["folder"] != about["folder"]:
        raise UserError(
            f"--out {out} holds results of images in {before['folder']}, not {about['folder']}; "
            f"{cure}"
        )


def how_pixels_are_read(image_size: int) -> dict[str, Any]:
    """What the manifest says about it."""
    return {
        "8 bits": "as stored",
        "16 bits": "stretched by the windows below (centre, width): that of --window, or from the "
        "0.5th to the 99.5th percentile of the image; 8-bit values times 257 are divided by 257",
        "DICOM": "rescaled, then as 16 bits, but by the file's own VOI LUT or first window if "
        "--window is not given; without either, 8 bits as stored; MONOCHROME1 is inverted; padding "
        "is black",
        "colour": "the grey values (OpenCV)",
        "orientation": "EXIF orientation is ignored, that of TIFF files is applied",
        "size": f"resized to {image_size} x {image_size}, bicubic, without antialiasing (OpenCV)",
    }


def origin_of(about: dict[str, Any]) -> str:
    """A hash of what results depend on, for the names of files."""
    keys = ("folder", "weights_sha256", "network", "options", "device")
    return hash_of_json({key: about[key] for key in keys})[:12]


def shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def write_results(
    out: Path,
    about: dict[str, Any],
    predictor: Predictor,
    faults: dict[str, str],
    unwritten: dict[str, str],
) -> dict[str, Any]:
    """Write the tables, the page and the manifest; return the numbers of odd images.

    Without any image, tables and page of an earlier run are removed.

    Args:
        about: as for `open_results`.
        predictor: that the results come from.
        faults: why files could not be read, by image.
        unwritten: why files could not be written, by image.
    """
    class_names = predictor.class_names
    wanted = about["options"]
    progress = Progress(out, origin_of(about))
    images = sorted(progress.places)
    bits = Counter()
    coloured = 0
    windows = {}
    lateral = []
    notes: dict[str, list[str]] = {}
    flat = 0
    for entry in progress.entries(images):
        bits[entry.bits] += 1
        coloured += entry.colour
        if entry.window is not None:
            windows[as_text(entry.image)] = entry.window
        if entry.lateral:
            lateral.append(as_text(entry.image))
        for note in entry.notes:
            notes.setdefault(note, []).append(as_text(entry.image))
        flat += sum(row is None for _, _, row, *_ in entry.findings)
    counts = {f"{each} bits": bits[each] for each in sorted({8, 16, *bits})}
    manifest = {
        **about,
        "note": "for research only, not a diagnosis",
        "finished": True,
        "images": len(images),
        "pixels": {
            **about["pixels"],
            "counts": {**counts, "stored in colour, read as grey": coloured},
            "windows": windows,
        },
        "lateral views": lateral,
        "notes on images": notes,
        "flat maps": flat,
        "unreadable": listed(faults),
        "unwritten": listed(unwritten),
    }
    files = {}
    if images:
        files[out / "predictions.csv"] = table(progress.entries(images), class_names)
    if wanted["save_coco"] and images:  # pycocotools does not read empty results
        files[out / "coco.json"] = coco_images(progress.entries(images), class_names)
        files[out / "coco_results.json"] = coco_results(progress.entries(images))
    if wanted["html"] and images:
        shown = [image for image in images if file_of(out, "html/heatmaps", image).exists()]
        pictured = pictured_of(progress.entries(shown), predictor.thresholds)
        write_page(out / "html", about_page(about, progress, predictor), shown, pictured)
    for path in (out / name for name in TABLES if not images):
        path.unlink(missing_ok=True)
    write_together({**files, out / "manifest.json": hashed_json(manifest)})
    odd = {note: len(images) for note, images in notes.items()}
    return {"coloured": coloured, "lateral": len(lateral), "flat": flat, "notes": odd}


def listed(reasons: dict[str, str]) -> list[dict[str, str]]:
    """Images and reasons, for the manifest."""
    return [
        {"image": as_text(image), "reason": as_text(reason)}
        for image, reason in sorted(reasons.items())
    ]


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
    before = b"["
    for k, entry in enumerate(entries, 1):
        for c, (score, _, row, _, *box) in enumerate(entry.findings, 1):
            if row is None:  # a flat map
                continue
            result = {"image_id": k, "category_id": c, "bbox": box, "score": score}
            yield before + b"\n" + json.dumps(result).encode()
            before = b","
    yield b"\n]\n" if before == b"," else b"[]\n"


def pictured_of(
    entries: Iterable[Entry], thresholds: dict[str, float | None]
) -> Iterator[Pictured]:
    """The images of the page, whose rows are the classes, those of `thresholds`."""
    for entry in entries:
        findings = []
        of_class = zip(thresholds.items(), entry.findings, entry.contours, strict=True)
        for (name, threshold), (score, present, row, column, *box), contour in of_class:
            scores = (score, threshold, present, None)
            place = ((row, column), [], box) if row is not None else (None, [], None)
            findings.append(Finding(name, *scores, *place, contour))
        yield Pictured(entry.image, entry.height, entry.width, findings)


def about_page(about: dict[str, Any], progress: Progress, predictor: Predictor) -> About:
    """What the page says about its rows.

    Args:
        about: as for `open_results`.
    """
    # scores and calls of each class
    scores = []
    called = []
    for entry in progress.entries(sorted(progress.places)):
        scores.append([score for score, *_ in entry.findings])
        called.append([present is True for _, present, *_ in entry.findings])
    table = pd.DataFrame(index=pd.Index(predictor.class_names, name="finding"))
    thresholds = [predictor.thresholds[name] for name in predictor.class_names]
    table["threshold"] = ["none" if each is None else f"{each:.3f}" for each in thresholds]
    table["called present"] = np.sum(called, axis=0).astype(str)
    table["median score"] = [f"{score:.3f}" for score in np.median(scores, axis=0)]
    table["highest score"] = [f"{score:.3f}" for score in np.max(scores, axis=0)]

    paths = (os.path.join(about["folder"], image) for image in progress.places)
    synthetic = what_images_are({os.path.dirname(path) for path in paths})
    notes = ["Nothing here says whether a heatmap is right: no boxes are known."]
    if predictor.synthetic:
        notes.append("The network was trained on synthetic images, not on radiographs.")
    return About(
        title_of_page(np.size(scores), len(scores), synthetic),
        notes if synthetic is None else [synthetic, *notes],
        predictor.class_names,
        table,
        predictor.are_probabilities,
        about["options"]["scale"],
        about["weights_sha256"],
    )


def report(
    faults: dict[str, str],
    unwritten: dict[str, str],
    given: int,
    out: Path,
    accelerator: Accelerator,
) -> None:
    """Print what failed, and exit with 1 if anything did; with 2 if nothing could be read.

    Args:
        faults: why files could not be read, by image.
        unwritten: why files could not be written, by image.
        given: number of images, and of inputs that have none.
    """
    if not faults and not unwritten:
        return
    reasons = [one_line(reason) for _, reason in sorted(faults.items())]
    if len(faults) == given:
        more = f" ({given - 1} more in {out / 'manifest.json'})" if given > 1 else ""
        raise UserError(f"nothing could be read: {reasons[0]}{more}")
    lines = [f"not read: {reason}" for reason in reasons]
    lines += [f"not written: {one_line(reason)}" for _, reason in sorted(unwritten.items())]
    for line in lines[:FAULTS_SHOWN]:
        accelerator.print(line, file=sys.stderr)
    if len(lines) > FAULTS_SHOWN:
        accelerator.print(f"and {len(lines) - FAULTS_SHOWN} more", file=sys.stderr)
    counts = []
    if faults:
        counts.append(f"{len(faults)} of {given} images could not be read")
    if unwritten:
        counts.append(f"not all files of {len(unwritten)} of {given} images could be written")
    sentence = f"{'; '.join(counts)}; the others are done. Names and reasons are in"
    accelerator.print(f"error: {sentence} {out / 'manifest.json'}", file=sys.stderr)
    sys.exit(1)
