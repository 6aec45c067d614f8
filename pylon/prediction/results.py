"""The folder of results of predict.py.

OUT/predictions.csv    one row per image and class
    overlays/          pictures, named after the images
    maps/              with --save-maps, the maps of each image: .npz
    captures/, reports/    with --dicom-out, the two DICOM files of each DICOM image
    coco.json, coco_results.json     with --save-coco, the images, and boxes with scores
    html/              with --html, a page to look through in a browser (viewer/page.py)
    manifest.json      what the results come from, and the files that could not be read
    .progress-*.sqlite a row per finished image: what resumption needs (journal.py)

A killed run is resumed after its last batch; predictions.csv, the COCO files, the page and the
final manifest are written at the end, from these rows. Each of several processes has its own
.progress file.
"""

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator

from pylon.checkpoints.training_json import read_json, versions
from pylon.data.chestxray14 import what_images_are
from pylon.prediction.journal import Journal, Result, has_results
from pylon.prediction.prediction import COLUMNS as COLUMNS_OF_FINDING
from pylon.prediction.prediction import coco_boxes, row_of
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
from pylon.system.progress import counted
from pylon.viewer.page import About, Finding, Pictured, file_of, title_of_page, write_page

COLUMNS = ("image", *COLUMNS_OF_FINDING)
# the options that results depend on
CHOICES = (
    "classes", "top", "overlays", "scale", "save_maps", "save_coco", "dicom_out", "html",
    "region_threshold", "window", "method", "calibrated", "tta", "precision", "runtime",
)  # fmt: skip
TABLES = ("predictions.csv", "coco.json", "coco_results.json", "html/index.html")
FAULTS_SHOWN = 10


def start_of_manifest(options: Any, folder: str, predictor: Predictor) -> dict[str, Any]:
    """What results come from.

    Args:
        options: of predict.py.
        folder: of all inputs.
    """
    size = predictor.image_size
    return {
        "folder": as_text(folder),
        "checkpoint": " ".join(map(str, options.checkpoint)),
        "weights_sha256": predictor.card["weights_sha256"],
        "options": {name: getattr(options, name) for name in CHOICES},
        "device": predictor.device.type,
        "calibration": predictor.calibration,
        "network": {
            "class_names": predictor.class_names,
            "thresholds": predictor.uncalibrated_thresholds,
            "mean": predictor.card["mean"],
            "std": predictor.card["std"],
            "image_size": size,
        },
        "pixels": {
            "8 bits": "as stored",
            "16 bits": "stretched by the windows below (centre, width): that of --window, or from "
            "the 0.5th to the 99.5th percentile of the image; 8-bit values times 257 are divided "
            "by 257",
            "DICOM": "rescaled, then as 16 bits, but by the file's own VOI LUT or first window if "
            "--window is not given; without either, 8 bits as stored; MONOCHROME1 is inverted; "
            "padding is black",
            "colour": "the grey values (OpenCV)",
            "orientation": "EXIF orientation is ignored, that of TIFF files is applied",
            "size": f"resized to {size} x {size}, bicubic, without antialiasing (OpenCV)",
        },
        "versions": versions(),
    }


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
    if has_results(out):
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


def origin_of(about: dict[str, Any]) -> str:
    """A hash of what results depend on, for the names of files."""
    keys = ("folder", "weights_sha256", "network", "options", "device")
    return hash_of_json({key: about[key] for key in keys})[:12]


def shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def write_results(
    journal: Journal,
    about: dict[str, Any],
    predictor: Predictor,
    faults: dict[str, str],
    unwritten: dict[str, str],
) -> list[str]:
    """Write the tables, the page and the manifest; return notes on what is odd about the images.

    Without any image, tables and page of an earlier run are removed.

    Args:
        about: as for `open_results`.
        predictor: that the results come from.
        faults: why files could not be read, by image.
        unwritten: why files could not be written, by image.
    """
    out = journal.out
    wanted = about["options"]
    images = []
    table = [csv_lines([COLUMNS])]
    coco = []
    boxes = []
    bits = Counter()
    coloured = 0
    windows = {}
    lateral = []
    notes: dict[str, list[str]] = {}
    flat = 0
    for result in journal.results():
        images.append(result.image)
        table.append(csv_lines(rows_of(result)))
        if wanted["save_coco"]:
            coco.append(coco_image(len(images), result))
            found = coco_boxes(len(images), result.findings)
            boxes += [json.dumps(each).encode() for each in found]

        # for the manifest
        name = as_text(result.image)
        bits[result.bits] += 1
        coloured += result.colour
        if result.window is not None:
            windows[name] = result.window
        if result.lateral:
            lateral.append(name)
        for note in result.notes:
            notes.setdefault(note, []).append(name)
        flat += sum(finding["box"] is None for finding in result.findings)
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
        files[out / "predictions.csv"] = table
    if wanted["save_coco"] and images:  # pycocotools does not read empty results
        files[out / "coco.json"] = coco_file(coco, predictor.class_names)
        files[out / "coco_results.json"] = [*json_list(boxes), b"\n"]
    if wanted["html"] and images:
        write_html(journal, images, about, predictor)
    for path in (out / name for name in TABLES if not images):
        path.unlink(missing_ok=True)
    write_together({**files, out / "manifest.json": hashed_json(manifest)})

    # what is odd
    odd = {
        "stored in colour: the grey values were read": coloured,
        "of lateral views (see the manifest): a network trained on frontal ones has not seen "
        "any": len(lateral),
        **{f"{note} (see the manifest)": len(noted) for note, noted in notes.items()},
    }
    said = [f"{counted(number)} {note}" for note, number in odd.items() if number]
    if flat:
        said.append(f"maps without point and box, since they are the same everywhere: {flat}")
    return said


def listed(reasons: dict[str, str]) -> list[dict[str, str]]:
    """Images and reasons, for the manifest."""
    return [
        {"image": as_text(image), "reason": as_text(reason)}
        for image, reason in sorted(reasons.items())
    ]


def rows_of(result: Result) -> list[list[Any]]:
    """The rows of an image in predictions.csv."""
    return [[as_text(result.image), *row_of(finding)] for finding in result.findings]


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode(errors="backslashreplace")


def coco_image(k: int, result: Result) -> bytes:
    """An image in coco.json; they are numbered from 1, as are the classes."""
    size = {"width": result.width, "height": result.height}
    return json.dumps({"id": k, "file_name": as_text(result.image), **size}).encode()


def coco_file(images: Sequence[bytes], class_names: Sequence[str]) -> list[bytes]:
    """The parts of coco.json: images and categories, without annotations."""
    categories = [{"id": c, "name": name} for c, name in enumerate(class_names, 1)]
    return [
        b'{"info": {"description": "images of predict.py"}, "licenses": [], "annotations": [],\n',
        b'"categories": ' + json.dumps(categories).encode() + b',\n"images": ',
        *json_list(images),
        b"}\n",
    ]


def json_list(items: Sequence[bytes]) -> list[bytes]:
    """The parts of a JSON list, one line per item."""
    if not items:
        return [b"[]"]
    return [b"[\n" + items[0], *(b",\n" + item for item in items[1:]), b"\n]"]


def write_html(
    journal: Journal, images: Sequence[str], about: dict[str, Any], predictor: Predictor
) -> None:
    """Write the page, of the images whose pictures could be written; arguments as above."""
    folder = journal.out / "html"
    shown = [image for image in images if file_of(folder, "heatmaps", image).exists()]
    there = set(shown)
    results = (result for result in journal.results() if result.image in there)
    pictured = (pictured_of(result, predictor.thresholds) for result in results)
    write_page(folder, about_page(about, journal, predictor), shown, pictured)


def pictured_of(result: Result, thresholds: dict[str, float | None]) -> Pictured:
    """An image of the page, whose rows are the classes."""
    rows = []
    for found in result.findings:
        scores = (found["score"], thresholds[found["label"]], found["present"], None)
        place = (found["point"], [], found["box"], found["contour"])
        rows.append(Finding(found["label"], *scores, *place))
    return Pictured(result.image, result.height, result.width, rows)


def about_page(about: dict[str, Any], journal: Journal, predictor: Predictor) -> About:
    """What the page says about its rows.

    Args:
        about: as for `open_results`.
    """
    # scores and calls of each class
    scores = []
    called = []
    folders = set()
    for result in journal.results():
        scores.append([finding["score"] for finding in result.findings])
        called.append([finding["present"] is True for finding in result.findings])
        folders.add(os.path.dirname(os.path.join(about["folder"], result.image)))
    table = pd.DataFrame(index=pd.Index(predictor.class_names, name="finding"))
    thresholds = [predictor.thresholds[name] for name in predictor.class_names]
    table["threshold"] = ["none" if each is None else f"{each:.3f}" for each in thresholds]
    table["called present"] = np.sum(called, axis=0).astype(str)
    table["median score"] = [f"{score:.3f}" for score in np.median(scores, axis=0)]
    table["highest score"] = [f"{score:.3f}" for score in np.max(scores, axis=0)]

    if predictor.validation:
        of_class = [predictor.validation[name] for name in predictor.class_names]
        columns = {"auroc": "AUROC on validation", "called_healthy": "called in healthy validation"}
        for key, column in columns.items():
            values = [scores[key] for scores in of_class]
            table[column] = ["" if value is None else f"{value:.2f}" for value in values]

    synthetic = what_images_are(folders)
    is_calibrated = "calibrated" if predictor.calibration else "not calibrated: .4 is not 40 %"
    notes = [
        f"Scores are {is_calibrated}.",
        "Nothing here says whether a heatmap is right: no boxes are known.",
    ]
    if "fitted_on" in predictor.card:
        point = predictor.card["operating_point"]
        count = predictor.card["fitted_on"]["images"]
        notes.insert(1, f"Called present at the operating point {point}, fitted to {count} images.")
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
