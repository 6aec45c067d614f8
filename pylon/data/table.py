"""A table of your own images: a csv file with paths and labels, and perhaps patients and a split.

    path,patient_id,split,Effusion,Mass
    images/1001.png,17,train,1,0
    images/1002.png,18,val,0,            (a blank label is unknown)

table_boxes.py reads its boxes.
"""

import csv
import difflib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pylon.data.contract import SPLITS, Radiographs, hash_of_list, no_boxes
from pylon.system.errors import UserError

KEYS = ("path", "patient_id", "split")  # the columns that are not classes
# other names that a class cannot have: columns of the tables that the scripts write
TAKEN = (
    "image_id", "seed", "class", "epoch", "lr", "train_loss", "val_loss", "weighted", "macro",
    "micro", "images_per_second", "seconds",
)  # fmt: skip
LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": np.nan}  # pandas writes 1.0 next to blanks
MOST_COLUMNS = 2_000
SHARES = {"val": 0.1, "test": 0.1}  # of the patients, where the table has no split


def read_table(
    path: Path,
    class_names: Sequence[str] = (),
    ignore_columns: Sequence[str] = (),
    asked_by: str = "--classes",
) -> Radiographs:
    """Read a table; the path of a missing image is NaN, and there are no boxes.

    The image_id is the path as written. Without a column patient_id, each image is a patient of its
    own. Without a column split, 80 % of the patients are drawn for training and 10 % each for
    validation and testing: always the same ones, as long as the table does not change.

    Args:
        path: the csv file, in UTF-8.
        class_names: the classes; if empty, all columns but path, patient_id, split and the ignored
            ones.
        ignore_columns: columns that are not classes.
        asked_by: where the class names come from, in messages.

    Raises:
        UserError: the file cannot be read, or its contents are faulty (the first fault).
    """
    cells = read_cells(path, "path")
    names = choose_classes(cells, class_names, ignore_columns, asked_by, path)
    faults = faults_of_cells(cells, names, path)
    if faults:
        raise UserError(faults[0])
    images = images_of(cells, names, path)
    return Radiographs(
        images,
        no_boxes(),
        names,
        {path.name: hash_of_list(path.read_bytes())},
        name=str(path),
        images_from=f"the paths in {path}",
        boxes_from=str(path),
        if_missing="correct the paths (relative ones start at the folder of the table), or copy "
        "the images there",
        notes=tuple(notes_on(cells, images, names, path, chosen=not class_names)),
    )


def read_cells(path: Path, needed: str) -> pd.DataFrame:
    """Read a csv file as text, without spaces around cells; it must have the column `needed`.

    Raises:
        UserError: the file is missing, is not a table in UTF-8, has rows that are too short or too
            long, columns without a name or of one name, or no rows.
    """
    # the text
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as a csv file in UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its name") from error

    # its rows
    try:
        rows = [
            (number, row)
            for number, row in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), 1)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise UserError(
            f"{path} is not a table of comma-separated values ({error}); save it as csv"
        ) from error
    if not rows:
        raise UserError(f"{path} is empty; it must start with the names of its columns")
    header = [name.strip() for name in rows[0][1]]
    require_header(header, needed, path)
    if len(rows) == 1:
        raise UserError(f"{path} has no rows below its header; add some")
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise UserError(
                f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}; "
                "correct it (a cell with a comma must be in quotes)"
            )
    cells = [[cell.strip() for cell in row] for _, row in rows[1:]]
    return pd.DataFrame(cells, index=[number for number, _ in rows[1:]], columns=header, dtype=str)


def require_header(header: list[str], needed: str, path: Path) -> None:
    """Raise a UserError if the names of the columns cannot be used."""
    if len(header) > MOST_COLUMNS:
        raise UserError(
            f"{path} has {len(header):,} columns, more than {MOST_COLUMNS:,}; keep path, the "
            "classes, patient_id and split"
        )
    if needed not in header:
        separator = next((sign for sign in ";\t" if sign in header[0]), None)
        if len(header) == 1 and separator is not None:
            name = {";": "semicolons", "\t": "tabs"}[separator]
            raise UserError(f"{path} is separated by {name}; save it with commas")
        raise UserError(f"{path} has no column {needed!r}; {its_columns(header)}")
    if "" in header:
        raise UserError(
            f"{path}: column {header.index('') + 1} has no name; name it or remove it (in pandas, "
            "to_csv(index=False) writes none)"
        )
    again = [name for k, name in enumerate(header) if name in header[:k]]
    if again:
        raise UserError(f"{path} has two columns {again[0]!r}; remove one")


def its_columns(header: Sequence[str]) -> str:
    listed = ", ".join(header[:20]) + (", ..." if len(header) > 20 else "")
    return f"its columns are {listed}"


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
    for names, asking in ((class_names, asked_by), (ignore_columns, "--ignore-columns")):
        lacking = [name for name in names if name not in cells]
        if lacking:
            near = difflib.get_close_matches(lacking[0], list(cells), n=1)
            hint = f"did you mean {near[0]!r}?" if near else its_columns(list(cells))
            raise UserError(f"{path} has no column {lacking[0]!r}, which {asking} asks for; {hint}")
    again = [name for k, name in enumerate(class_names) if name in class_names[:k]]
    if again:
        raise UserError(f"{asked_by} names {again[0]!r} twice; leave one out")
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


def faults_of_cells(cells: pd.DataFrame, class_names: Sequence[str], path: Path) -> list[str]:
    """What is wrong in the rows of a table: error sentences."""
    faults = []
    rows_of = {}  # the file of each row, once
    for row, name in cells["path"].items():
        file = file_of(name, path)
        if name == "":
            faults.append(f"{path}: row {row} has no path; add it or remove the row")
        elif file in rows_of:
            faults.append(
                f"{path}: rows {rows_of[file]} and {row} have the same path, {name}; remove one"
            )
        rows_of.setdefault(file, row)

    # labels
    for name in class_names:
        wrong = cells[name][~cells[name].isin(LABELS.keys())]
        if len(wrong):
            more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
            faults.append(
                f"{path}: {name!r} is {wrong.iloc[0]!r} in row {wrong.index[0]}{more}, but a class "
                "holds 1, 0 or blank (unknown); correct it or, if it is not a class, leave the "
                "column out with --ignore-columns"
            )
        elif (cells[name] == "").all():
            faults.append(
                f"{path}: {name!r} is blank in every row; label some images, or leave the column "
                "out with --ignore-columns"
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
    elif len(set(patients_of(cells))) < len(SPLITS):
        faults.append(
            f"{path}: {len(set(patients_of(cells)))} patients cannot be split into training, "
            "validation and test; add more, or a column split"
        )
    return faults


def patients_in_two_splits(cells: pd.DataFrame, path: Path) -> list[str]:
    splits = cells.groupby("patient_id")["split"].unique()
    return [
        f"{path}: patient {patient} is in {' and '.join(of_patient)}; each patient must be in one "
        "split, or scores are too good"
        for patient, of_patient in splits.items()
        if len(of_patient) > 1
    ]


def images_of(cells: pd.DataFrame, class_names: Sequence[str], path: Path) -> pd.DataFrame:
    """The table of images (see contract.py), from cells without faults."""
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
        draw_split(images)

    # labels: float32 only where some are unknown
    labels = {}
    for name in class_names:
        of_class = cells[name].map(LABELS).to_numpy(np.float32)
        labels[name] = of_class if np.isnan(of_class).any() else of_class.astype(np.uint8)
    return pd.concat([images, pd.DataFrame(labels)], axis=1)


def file_of(name: str, path: Path) -> str:
    """The file of a path in a table; relative ones start at the folder of the table."""
    return os.path.normpath(os.path.join(path.parent, name))


def patients_of(cells: pd.DataFrame) -> np.ndarray:
    """Patient ids, int64 if all are whole numbers, else text; without any, one per row."""
    if "patient_id" not in cells:
        return np.arange(len(cells))
    ids = cells["patient_id"]
    plain = [re.fullmatch(r"0|[1-9][0-9]{0,17}", name) is not None for name in ids]
    return ids.to_numpy(np.int64 if all(plain) else object)


def draw_split(images: pd.DataFrame) -> None:
    """Draw validation and test patients, at least one each; the rest is for training."""
    patients = np.unique(images["patient_id"].to_numpy())
    order = np.random.default_rng(0).permutation(len(patients))
    first = 0
    for split, share in SHARES.items():
        last = first + max(1, round(share * len(patients)))
        drawn = patients[order[first:last]]
        images.loc[images["patient_id"].isin(drawn), "split"] = split
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
        notes.append(f"{path} has no column patient_id: each image counts as its own patient")
    if "split" not in cells:
        count = images.groupby("split")["patient_id"].nunique()
        notes.append(
            f"{path} has no column split: of its patients {count['train']} were drawn for "
            f"training, {count['val']} for validation, {count['test']} for testing, always the "
            "same unless the table changes"
        )
    unknown = int(images[list(class_names)].isna().sum().sum())
    if unknown:
        notes.append(
            f"{unknown:,} of {len(images) * len(class_names):,} labels in {path} are unknown: "
            "they are left out of loss, AUROC and thresholds"
        )
    return notes
