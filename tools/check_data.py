"""Check that a data set is complete, undamaged and consistent.

    python tools/check_data.py --data data    # 112,120 images take about 18 minutes on 2 cores
    python tools/check_data.py --table my.csv --boxes boxes.csv
    python tools/check_data.py --data data --shortcuts    # what tells labels without looking?

Reads  every list and decodes all images in the lists.
Prints a table, then "ready" (exit code 0) or a list of what to fix (exit code 2).
Writes with --shortcuts only, csv/shortcuts.csv.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from pylon.options import BoxOptions, ClassOptions, DataOptions
from pylon.system.cli import parse, require_at_least, start
from pylon.system.errors import UserError


@dataclass
class Options(BoxOptions, ClassOptions, DataOptions):
    """Check that a data set is complete, undamaged and consistent."""

    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""
    shortcuts: bool = False
    """Instead: score how well each class can be told without looking at the radiograph, by what
    files and columns give away. Without images, by columns alone."""
    columns: tuple[str, ...] = ()
    """With --shortcuts, columns to tell by, which are no classes: of NIH's files view, sex, age
    (used if none are named), pixels (of resolution.csv) or another name in Data_Entry_2017*.csv; of
    a table, its own."""
    out: Path = Path("csv/shortcuts.csv")
    """With --shortcuts, the table that is written."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, so that --help is fast

import pandas as pd

from pylon.data import chestxray14
from pylon.data.checks import (
    boxes_beyond_images,
    boxes_without_label,
    files_of_one_name,
)
from pylon.data.chestxray14 import BOX_LIST, NIH_COUNTS, NIH_SHA256, PATHOLOGIES
from pylon.data.csv_cells import read_cells
from pylon.data.images import read_pixels, width_height_of
from pylon.data.radiographs import (
    SPLITS,
    Radiographs,
    no_boxes,
    shared_patients,
    split_hash,
    subject,
)
from pylon.data.sources import read_radiographs
from pylon.data.table import choose_classes, faults_of_cells, number_labels
from pylon.data.table_boxes import add_boxes, read_listed
from pylon.evaluation.shortcuts import report_shortcuts
from pylon.system.parallel import look_at
from pylon.training.preparation import check_split


@dataclass
class Part:
    """Results of checking one part of the data."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def main(options: Options) -> None:
    require_at_least(options, num_workers=0)
    if options.shortcuts:
        if options.boxes is not None:
            raise UserError("--shortcuts does not use --boxes; leave one of them out")
        report_shortcuts(options, options, options.columns, options.num_workers, options.out)
        return
    if options.columns or options.out != Options.out:
        raise UserError("--columns and --out are for --shortcuts; add it or leave them out")
    if options.table is not None:
        check_table(options)
        return
    if options.classes or options.ignore_columns or options.boxes is not None:
        raise UserError("--classes, --ignore-columns and --boxes are for a --table; leave them out")
    data = options.data
    images = chestxray14.read_images(data)

    # check each part
    missing = chestxray14.about_missing(data, images)
    of_files, readable = check_files(images, options.num_workers, missing)
    of_one_name = files_of_one_name(data)
    of_files.faults += of_one_name
    of_files.counts["duplicate file names"] = len(of_one_name)
    of_boxes = check_boxes(data, images, readable)
    of_patients = check_patients(images)

    # print the table, the hashes, notes and faults
    print_counts(
        data, count_images(images) | of_boxes.counts | of_files.counts | of_patients.counts
    )
    print_hashes(data, images)
    faults = of_files.faults + of_boxes.faults + of_patients.faults
    synthetic = chestxray14.what_is_synthetic(data)
    notes = [] if synthetic is None else [synthetic]
    conclude(data, notes + of_files.notes + of_boxes.notes + of_patients.notes, faults)


def conclude(data: Path, notes: list[str], faults: list[str]) -> None:
    """Print notes and faults; raise a UserError if there are faults."""
    for note in notes:
        print(f"note: {note}")
    for number, sentence in enumerate(faults, start=1):
        print(f"{number:4}. {sentence}")
    if faults:
        raise UserError(
            f"{data} is not ready; fix what is listed above ({len(faults)}), then run this again"
        )
    print("ready")


def check_table(options: Options) -> None:
    """Check a table of one's own, its images and its boxes."""
    table = options.table
    if options.data == DataOptions.data:  # otherwise `read_radiographs` says what is wrong
        cells = read_cells(table, "path")
        asked = (options.classes, options.ignore_columns, "--classes")
        names = choose_classes(cells, *asked, table)
        number_labels(cells, names, options.positive, options.negative)
        faults = faults_of_cells(cells, names, table)
        if faults:
            conclude(table, [], faults)
    radiographs = read_radiographs(options, options.classes, options.ignore_columns)

    # the image files
    _, _, cure = radiographs.if_missing.partition("; ")
    of_files, readable = check_files(radiographs.images, options.num_workers, f"missing; {cure}")
    faults = of_files.faults

    # the boxes
    if options.boxes is not None:
        listed, of_boxes = read_listed(radiographs, options.boxes, table)
        faults = faults + of_boxes
        if not of_boxes:
            measurable = listed[listed["image_id"].isin(readable["image_id"])]
            # in whole pixels, as eval_loc.py takes them
            measurable = measurable.astype(dict.fromkeys("xywh", "int64"))
            faults += boxes_beyond_images(readable, measurable, str(options.boxes))
            radiographs = add_boxes(radiographs, options.boxes, table)
            faults += boxes_without_label(radiographs.boxes, radiographs.images)
    print_splits(radiographs, options.boxes is not None)
    notes = [*radiographs.notes, *of_files.notes, *shortcomings(radiographs, options.boxes)]
    conclude(table, notes, faults)


def shortcomings(radiographs: Radiographs, boxes: Path | None) -> list[str]:
    """What the scripts would refuse or leave blank, although the data has no fault."""
    found = []
    try:
        check_split(radiographs.images, radiographs, say=lambda _: None)
    except UserError as error:
        found.append(f"train.py would refuse it: {error}")
    if boxes is not None and len(radiographs.boxes) == 0:
        found.append(
            f"{boxes} has no boxes of classes on test images, so eval_loc.py and "
            "generate_heatmap.py would refuse it; give these patients the split test"
        )
    consequence = {
        "train": "it cannot be learned",
        "val": "no threshold",
        "test": "no AUROC",
    }
    for split in SPLITS:
        part = radiographs.of_split(split)
        absent = [name for name in radiographs.class_names if not part[name].eq(1).any()]
        if absent:
            names = ", ".join(absent)
            found.append(f"no positive image of the split {split} ({consequence[split]}): {names}")
    return found


def print_splits(radiographs: Radiographs, boxed: bool) -> None:
    """Print how many images, patients, boxes (if `boxed`) and positive labels each split has."""
    parts = [radiographs.of_split(split) for split in SPLITS]
    rows = {
        "images": [len(part) for part in parts],
        "patients": [part["patient_id"].nunique() for part in parts],
    }
    if boxed:
        rows["boxes to score"] = ["", "", len(radiographs.boxes)]
    for name in radiographs.class_names:
        labels = [part[name] for part in parts]
        rows[name] = [f"{int((of.eq(1)).sum())} of {int(of.notna().sum())}" for of in labels]
    print(f"| {radiographs.name:33} | {'train':>14} | {'val':>14} | {'test':>14} |")
    print(f"| {'-' * 33} | {'-' * 14} | {'-' * 14} | {'-' * 14} |")
    for name, counts in rows.items():
        print(f"| {name:33} | " + " | ".join(f"{count:>14}" for count in counts) + " |")
    print("\nfor each class: positive of known labels\n")


def count_images(images: pd.DataFrame) -> dict[str, int]:
    is_test = images["split"] == "test"
    return {
        "images in the lists": len(images),
        "to train and validate on": int((~is_test).sum()),
        "to test on": int(is_test.sum()),
        "patients": images["patient_id"].nunique(),
    }


def check_files(
    images: pd.DataFrame, num_workers: int, if_missing: str
) -> tuple[Part, pd.DataFrame]:
    """Decode all images; also return the readable ones, with their paths.

    Args:
        images: a table of images (see radiographs.py).
        num_workers: processes that read them.
        if_missing: completes the sentence on missing images, after their names.
    """
    part = Part()
    found = images[images["path"].notna()]
    missing = images["image_id"][images["path"].isna()]
    if len(missing):
        part.faults.append(f"{subject(missing)} {if_missing}")

    # decode every image
    answers = look_at(found["path"], look, num_workers, "decoding")
    columns = ["fault", "size", "colour", "lateral", "notes"]
    files = pd.DataFrame(answers, columns=columns, index=found.index)
    files[["image_id", "path"]] = found[["image_id", "path"]]
    is_readable = files["fault"] == ""
    part.faults += files["fault"][~is_readable].tolist()
    readable = files[is_readable]

    # readable, but unusual
    usual = readable["size"].mode().iloc[0] if len(readable) else ""
    odd = readable["image_id"][readable["size"] != usual]
    if len(odd):
        part.notes.append(f"{subject(odd)} not {usual}, the most common size")
    coloured = readable["image_id"][readable["colour"].astype(bool)]
    if len(coloured):
        part.notes.append(f"{subject(coloured)} not greyscale, but read as greyscale")
    lateral = readable["image_id"][readable["lateral"].astype(bool)]
    if len(lateral):
        part.notes.append(f"{subject(lateral)} lateral by the DICOM files, among frontal ones?")
    notes = readable[["image_id", "notes"]].explode("notes").dropna()
    for note, noted in notes.groupby("notes"):
        part.notes.append(f"{subject(noted['image_id'])} {note}")
    part.counts = {
        "images missing": len(missing),
        "images unreadable": len(files) - len(readable),
        f"images other than {usual or 'most'}": len(odd),
        "images not greyscale": len(coloured),
    }
    return part, readable


def look(path: str) -> tuple[str, str, bool, bool, tuple[str, ...]]:
    """What is wrong with an image file; if nothing, its size, if in colour, if lateral, notes."""
    try:
        pixels = read_pixels(path)
        width_height_of(path)
    except UserError as error:
        return str(error), "", False, False, ()
    height, width = pixels.image.shape
    return "", f"{width} x {height}", pixels.colour, pixels.lateral, pixels.notes


def check_boxes(data: Path, images: pd.DataFrame, readable: pd.DataFrame) -> Part:
    """Check the boxes against the images and their labels."""
    part = Part()
    listed = no_boxes()
    try:
        listed = chestxray14.read_boxes(data)
    except UserError as error:
        part.faults.append(str(error))
    listed = listed[listed["image_id"].isin(images["image_id"])]

    # the boxes that are used
    tested = images["image_id"][images["split"] == "test"]
    boxes = listed[listed["image_id"].isin(tested)]
    measurable = boxes[boxes["image_id"].isin(readable["image_id"])]
    part.faults += boxes_beyond_images(readable, measurable, str(data / BOX_LIST))
    part.faults += boxes_without_label(listed, images)
    unused = sorted(set(listed["image_id"]) - set(boxes["image_id"]))
    if unused:
        part.notes.append(
            f"{subject(unused)} in {BOX_LIST} but not in the test list: these boxes are not used"
        )
    part.counts = {"boxes": len(boxes), "images with boxes": boxes["image_id"].nunique()}
    return part


def check_patients(images: pd.DataFrame) -> Part:
    part = Part()
    in_test, _ = shared_patients(images, "test")
    if in_test:
        part.faults.append(
            f"{in_test} patients are in both the test list and training; remove them from one"
        )
    in_validation, _ = shared_patients(images, "val")
    if in_validation:
        part.notes.append(
            f"{in_validation} patients are in both validation and training, "
            "as in the split of the authors"
        )
    part.counts = {
        "test patients in training": in_test,
        "validation patients in training": in_validation,
    }
    return part


def print_counts(data: Path, counts: dict[str, int]) -> None:
    print(f"| {data!s:33} | {'here':>7} | {'NIH':>7} |\n| {'-' * 33} | {'-' * 7} | {'-' * 7} |")
    for what, count in counts.items():
        of_nih = format(NIH_COUNTS[what], ",") if what in NIH_COUNTS else ""
        print(f"| {what:33} | {count:7,} | {of_nih:>7} |")
    print()


def print_hashes(data: Path, images: pd.DataFrame) -> None:
    for name, digest in chestxray14.list_hashes(data).items():
        is_nihs = digest in NIH_SHA256.get(name, ())
        print(f"{digest}  {name}{'  (matches NIH)' if is_nihs else ''}")
    print(f"{split_hash(images, PATHOLOGIES)}  labels and split of the images\n")


if __name__ == "__main__":
    start(main, OPTIONS)
