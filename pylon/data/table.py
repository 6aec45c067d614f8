"""A table of your own images: a csv file with paths and labels, and perhaps patients and a split.

    path,patient_id,split,Effusion,Mass
    images/1001.png,17,train,1,0
    images/1002.png,18,val,0,            (a blank label is unknown)

table_boxes.py reads its boxes.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pylon.data.checks import raise_first
from pylon.data.chestxray14 import what_images_are
from pylon.data.csv_cells import hint_on, is_broken, note_on_form, read_cells
from pylon.data.radiographs import SPLITS, Radiographs, hash_of_list, no_boxes
from pylon.system.errors import UserError
from pylon.system.files import file_alike, whole_numbers

KEYS = ("path", "patient_id", "split")  # the columns that are not classes
# other names that a class cannot have: columns of the tables that the scripts write
TAKEN = (
    "image_id", "seed", "class", "epoch", "lr", "train_loss", "val_loss", "weighted", "macro",
    "micro", "images_per_second", "seconds",
)  # fmt: skip
LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": np.nan}  # pandas writes 1.0 next to blanks
SHARES = {"val": 0.1, "test": 0.1}  # of the patients, where the table has no split


def read_table(
    path: Path,
    class_names: Sequence[str] = (),
    ignore_columns: Sequence[str] = (),
    asked_by: str = "--classes",
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
) -> Radiographs:
    """Read a table; the path of a missing image is NaN, and there are no boxes.

    The image_id is the path as written. Without a column patient_id, each image is a patient of its
    own. Without a column split, 80 % of the patients are drawn for training and 10 % each for
    validation and testing: always the same ones, as long as the table does not change, and mostly
    the same ones if it does.

    Args:
        path: the file, as `read_cells` takes it.
        class_names: the classes; if empty, all columns but path, patient_id, split and the ignored
            ones.
        ignore_columns: columns that are not classes.
        asked_by: where the class names come from, in messages.
        positive, negative: what labels are besides 1 and 0, in upper or lower case.

    Raises:
        UserError: the file cannot be read, or its contents are faulty (the first fault).
    """
    cells = read_cells(path, "path")
    names = choose_classes(cells, class_names, ignore_columns, asked_by, path)
    number_labels(cells, names, positive, negative)
    raise_first(faults_of_cells(cells, names, path))
    images = images_of(cells, names, path)
    sha256 = hash_of_list(path.read_bytes())
    missing = images["image_id"][images["path"].isna()]
    alike = None if missing.empty else file_alike(file_of(missing.iloc[0], path))
    notes = note_on_form(path) + notes_on(cells, images, names, path, chosen=not class_names)
    synthetic = what_images_are(images["path"].dropna().map(os.path.dirname).unique())
    cure = (
        "correct the paths (relative ones start at the folder of the table), or copy the images "
        "there"
        if alike is None
        else f"{alike} lies there: correct the ends of the paths"
    )
    return Radiographs(
        images,
        no_boxes(),
        names,
        {path.name: sha256},
        name=str(path),
        if_missing=f"of {path} do not exist; {cure}",
        boxes_from=str(path),
        drawn_from=None if "split" in cells else sha256,
        notes=tuple(notes if synthetic is None else [synthetic, *notes]),
        synthetic=synthetic,
    )


def choose_classes(
    cells: pd.DataFrame,
    class_names: Sequence[str],
    ignore_columns: Sequence[str],
    asked_by: str,
    path: Path,
) -> tuple[str, ...]:
    """Return the columns that are classes; raise a UserError if that cannot be."""
    if class_names and ignore_columns:
        raise UserError("--classes and --ignore-columns exclude each other; leave one out")
    keys = [name for name in ignore_columns if name in KEYS]
    if keys:
        raise UserError(
            f"--ignore-columns {keys[0]}: this column is no class; remove it from {path} if it is "
            "not to be used"
        )
    for names, asking in ((class_names, asked_by), (ignore_columns, "--ignore-columns")):
        lacking = [name for name in names if name not in cells]
        if lacking:
            hint = hint_on(lacking[0], list(cells))
            if not asking.startswith("--"):  # a checkpoint, which cannot leave it out
                hint = f"add it, blank where unknown; {hint}"
            raise UserError(f"{path} has no column {lacking[0]!r}, which {asking} asks for; {hint}")
    again = [name for k, name in enumerate(class_names) if name in class_names[:k]]
    if again:
        raise UserError(f"{asked_by} names {again[0]!r} twice; leave one out")
    if not class_names:
        require_keys_by_name(cells, ignore_columns, path)
    chosen = class_names or [name for name in cells if name not in (*KEYS, *ignore_columns)]
    if not chosen:
        raise UserError(f"{path} has no column of a class; add one, with 1, 0 or blank in each row")
    reserved = [name for name in chosen if name in (*KEYS, *TAKEN)]
    if reserved:
        raise UserError(
            f"{path}: a class cannot be named {reserved[0]!r}, which is a column of the tables "
            "that are written; rename it"
        )
    return tuple(chosen)


def require_keys_by_name(cells: pd.DataFrame, ignore_columns: Sequence[str], path: Path) -> None:
    """Raise a UserError if a column is called nearly patient_id or split; it is no class."""
    for key in KEYS[1:]:
        plain = key.replace("_", "")
        alike = [
            name
            for name in cells
            if re.sub("[ _]", "", name.lower()) == plain and name not in ignore_columns
        ]
        if alike and key not in cells:
            raise UserError(
                f"{path}: rename the column {alike[0]!r} to {key!r}, or leave it out with "
                "--ignore-columns"
            )


def number_labels(
    cells: pd.DataFrame,
    class_names: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
) -> None:
    """Replace the words for positive and negative in the columns of classes by 1 and 0.

    Raises:
        UserError: a word is in both.
    """
    number_of = {word.strip().casefold(): "1" for word in positive}
    for word in negative:
        if word.strip().casefold() in number_of:
            raise UserError(f"--positive and --negative both name {word!r}; leave one out")
    number_of |= {word.strip().casefold(): "0" for word in negative}
    for name in class_names:
        cells[name] = [number_of.get(cell.casefold(), cell) for cell in cells[name]]


def faults_of_cells(cells: pd.DataFrame, class_names: Sequence[str], path: Path) -> list[str]:
    """What is wrong in the rows of a table: error sentences."""
    faults = []
    row_of = {}  # the first row of each file
    for row, name in cells["path"].items():
        if name == "" or is_broken(name):
            what = "no path" if name == "" else "a line break in its path"
            faults.append(f"{path}: row {row} has {what}; correct it or remove the row")
            continue
        file = identity_of(file_of(name, path))
        if file in row_of:
            faults.append(
                f"{path}: rows {row_of[file]} and {row} have the same image, {name}; remove one"
            )
        row_of.setdefault(file, row)

    # labels
    for name in class_names:
        wrong = cells[name][~cells[name].isin(LABELS.keys())]
        if len(wrong):
            more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
            if_patients = "" if "patient_id" in cells else " (or call it patient_id, if it is that)"
            faults.append(
                f"{path}: {name!r} is {wrong.iloc[0][:60]!r} in row {wrong.index[0]}{more}, but a "
                "class holds 1, 0 or blank (unknown); name other marks with --positive and "
                "--negative or, if it is not a class, leave the column out with "
                f"--ignore-columns{if_patients}"
            )

    # patients and splits
    for key in KEYS[1:]:
        if key in cells and (cells[key] == "").any():
            row = cells.index[cells[key] == ""][0]
            faults.append(f"{path}: row {row} has no {key}; add it, or remove the column {key}")
    if "split" in cells:
        unknown = cells["split"][~cells["split"].isin((*SPLITS, ""))]
        if len(unknown):
            faults.append(
                f"{path}: split is {unknown.iloc[0]!r} in row {unknown.index[0]}; it must be "
                f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
            )
        if "patient_id" in cells:
            faults += patients_in_two_splits(cells, path)
    if "patient_id" in cells:
        faults += patients_written_twice(cells, path)
    if "split" not in cells and len(set(patients_of(cells))) < len(SPLITS):
        faults.append(
            f"{path}: {len(set(patients_of(cells)))} patients cannot be split into training, "
            "validation and test; add more, or a column split"
        )
    return faults


def patients_in_two_splits(cells: pd.DataFrame, path: Path) -> list[str]:
    splits = cells.groupby("patient_id")["split"].unique()
    several = splits[splits.map(len) > 1]
    if len(several) == 0:
        return []
    more = f" and {len(several) - 1} more patients like it" if len(several) > 1 else ""
    return [
        f"{path}: patient {several.index[0]} is in {' and '.join(several.iloc[0])}{more}; each "
        "patient must be in one split, or scores are too good"
    ]


def patients_written_twice(cells: pd.DataFrame, path: Path) -> list[str]:
    """Patients such as 7, 07 and 7.0, which a spreadsheet may have made of one."""
    names = pd.Series(cells["patient_id"].unique())
    # compared as text: a float has 15 digits, and 1.10 need not be 1.1
    parts = names.str.extract(r"^([+-]?)0*([0-9]+)(?:\.0*)?$")  # NaN if it is no whole number
    numbers = parts[0].replace("+", "") + parts[1]
    again = numbers[numbers.duplicated(keep=False) & numbers.notna()]
    if len(again) == 0:
        return []
    first, second, *_ = names[numbers == again.iloc[0]]
    return [f"{path}: the patients {first} and {second} are one number; write them alike"]


def images_of(cells: pd.DataFrame, class_names: Sequence[str], path: Path) -> pd.DataFrame:
    """The table of images (see radiographs.py), from cells without faults."""
    files = [file_of(name, path) for name in cells["path"]]
    images = pd.DataFrame({
        "image_id": cells["path"].to_numpy(),
        "patient_id": patients_of(cells),
        "split": "train",
        "path": [file if os.path.exists(file) else np.nan for file in files],
    })  # fmt: skip
    if "split" in cells:
        images["split"] = cells["split"].to_numpy()
    else:
        draw_split(images, cells.get("patient_id", cells["path"]).to_numpy())

    # labels: float32 only where some are unknown
    labels = {}
    for name in class_names:
        of_class = cells[name].map(LABELS).to_numpy(np.float32)
        labels[name] = of_class if np.isnan(of_class).any() else of_class.astype(np.uint8)
    return pd.concat([images, pd.DataFrame(labels)], axis=1)


def file_of(name: str, path: Path) -> str:
    """The file of a path in a table; relative ones start at the folder of the table."""
    file = os.path.join(path.parent, name)
    if "\\" in name and not os.path.exists(file):  # written on Windows
        file = os.path.join(path.parent, name.replace("\\", "/"))
    return os.path.normpath(file)


def identity_of(file: str) -> tuple[int, int] | str:
    """What two names of one file have in common, also by links; the path if there is no file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return os.path.abspath(file)
    return status.st_dev, status.st_ino


def patients_of(cells: pd.DataFrame) -> np.ndarray:
    """Patient ids, int64 if all are whole numbers, else text; without any, one per row."""
    if "patient_id" not in cells:
        return np.arange(len(cells))
    return whole_numbers(cells["patient_id"].to_numpy(object))


def draw_split(images: pd.DataFrame, patients: np.ndarray) -> None:
    """Draw validation and test patients, at least one each; the rest is for training.

    The order in which they are drawn depends on their names alone, so that few change sides when
    the table changes.

    Args:
        images: table of images, whose `split` is set.
        patients: (N,) name of the patient of each image.
    """
    order = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    first = 0
    for split, share in SHARES.items():
        last = first + max(1, round(share * len(order)))
        images.loc[np.isin(patients, order[first:last]), "split"] = split
        first = last


def notes_on(
    cells: pd.DataFrame,
    images: pd.DataFrame,
    class_names: Sequence[str],
    path: Path,
    chosen: bool,
) -> list[str]:
    """What the user should know about how a table was read: sentences.

    `chosen` is whether the classes were chosen here, and not by the user or a checkpoint.
    """
    notes = [f"{path}: the classes are {', '.join(class_names)}"] if chosen else []
    if "patient_id" not in cells:
        notes.append(
            f"{path} has no column patient_id: each image counts as its own patient; if some have "
            "several images, scores are too good"
        )
    if "split" not in cells:
        count = images.groupby("split")["patient_id"].nunique()
        notes.append(
            f"{path} has no column split: of its patients {count['train']} were drawn for "
            f"training, {count['val']} for validation, {count['test']} for testing"
        )
    unknown = int(images[list(class_names)].isna().sum().sum())
    if unknown:
        notes.append(
            f"{unknown:,} of {len(images) * len(class_names):,} labels in {path} are unknown: "
            "they are left out of loss, AUROC and thresholds"
        )
    constant = [name for name in class_names if images[name].nunique() == 1]
    if constant:
        notes.append(
            f"{path}: all known labels of {', '.join(constant)} are the same; is it a class?"
        )
    return notes
