"""NIH's files as they are distributed -> two plain tables, `images` and `boxes`.

images, a row an image:
    image_id          patient_id  split  path                              Atelectasis  Cardiomegaly  ...
    00000001_000.png  1           train  data/images/00000001_000.png      0            1
boxes, a row a box, in pixels of the image file:
    image_id          pathology    x    y    w   h
    00013118_008.png  Atelectasis  225  547  86  79
"""

import hashlib
import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from sklearn.model_selection import GroupShuffleSplit

from pylon.cli import UserError

PATHOLOGIES = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
ORIGINAL_SPLIT = {split: f"original_split_{split}.csv" for split in ("train", "val", "test")}
VALIDATION_SHARE = 0.1  # of the patients of train+val


def read_images(data: Path) -> pd.DataFrame:
    """Read labels, split and paths; an image that is not on the disk has the path NaN (see `require_files`).

    The authors' original_split_{train,val,test}.csv rule where they are. Otherwise labels come from
    Data_Entry_2017*.csv, the test set is NIH's official one, and validation is a patient-disjoint tenth of train+val.

    Args:
        data: folder with NIH's files.

    Returns:
        image_id str, patient_id int64, split "train" | "val" | "test", path str, and a uint8 column, 0 or 1, a class.

    Raises:
        UserError: a file or a column is missing, a finding is unknown, an image is listed twice or nowhere.
    """
    theirs = any((data / name).exists() for name in ORIGINAL_SPLIT.values())
    images = read_original_split(data) if theirs else read_official_split(data)
    images.insert(3, "path", images["image_id"].map(find_files(data)))
    return images


# Deviation: the authors prepared labels and split as csv files. NIH's own files are read as they are.
def read_official_split(data: Path) -> pd.DataFrame:
    entries = sorted(data.glob("Data_Entry_2017*.csv"))
    lists = {name: data / name for name in ("train_val_list.txt", "test_list.txt")}
    lacking = [] if entries else ["Data_Entry_2017.csv"]
    lacking += [name for name, path in lists.items() if not path.exists()]
    if lacking:
        lacking += [] if find_files(data) else ["images/"]
        raise UserError(
            f"{data} lacks {', '.join(lacking)}: get ChestX-ray14 from {WHERE} and put it there "
            "(README, 'NIH step by step'), or name another folder with --data"
        )
    table = read_csv(entries[0], ["Image Index", "Finding Labels", "Patient ID"])
    if not pd.api.types.is_integer_dtype(table["Patient ID"]):
        raise UserError(f"{entries[0]}: every row must have a whole number as 'Patient ID'")
    names = {name: read_list(path) for name, path in lists.items()}
    train_val, test = names.values()
    both = set(train_val) & set(test)
    if both:
        raise UserError(f"{min(both)} is both in train_val_list.txt and in test_list.txt of {data}; take it out of one")
    unlabelled = (set(train_val) | set(test)) - set(table["Image Index"])
    if unlabelled:
        raise UserError(f"{min(unlabelled)} is in the lists of {data} but {entries[0].name} has no row of it")

    split = pd.Series("train", index=train_val, dtype=object)
    split = pd.concat([split, pd.Series("test", index=test, dtype=object)])
    table = table[table["Image Index"].isin(split.index)].reset_index(drop=True)  # the lists may be a selection
    labels = parse_findings(table["Finding Labels"], entries[0])
    images = pd.DataFrame({
        "image_id": table["Image Index"],
        "patient_id": table["Patient ID"],
        "split": split.reindex(table["Image Index"]).to_numpy(),
    })  # fmt: skip
    return separate_validation(pd.concat([images, labels], axis=1))


def separate_validation(images: pd.DataFrame) -> pd.DataFrame:
    # Deviation: the authors split train+val by image, so most validation patients were in training too. Here they
    # are other patients. One fixed split for all seeds, as theirs was.
    rows = np.flatnonzero(images["split"] == "train")
    patients = images["patient_id"].to_numpy()[rows]
    if len(np.unique(patients)) < 2:
        raise UserError("train_val_list.txt must hold at least 2 patients: one to train on, one to validate on")
    splitter = GroupShuffleSplit(n_splits=1, test_size=VALIDATION_SHARE, random_state=0)
    _, validation = next(splitter.split(rows, groups=patients))
    images.loc[rows[validation], "split"] = "val"
    return images


def read_original_split(data: Path) -> pd.DataFrame:
    tables = []
    for split, name in ORIGINAL_SPLIT.items():
        path = data / name
        if not path.exists():
            raise UserError(f"{path} is missing beside the others of the authors' split; add it or remove the others")
        table = read_csv(path, ["Image Index", *PATHOLOGIES])
        labels = table[list(PATHOLOGIES)]
        if not labels.isin([0, 1]).all(axis=None):
            raise UserError(f"{path}: the columns of the {len(PATHOLOGIES)} findings must hold 0 or 1 alone")
        patient = table["Image Index"].str.extract(r"^(\d+)_\d+", expand=False)
        if patient.isna().any():
            raise UserError(f"{path}: {table['Image Index'][patient.isna()].iloc[0]} is not named PATIENT_NUMBER.png")
        head = pd.DataFrame({"image_id": table["Image Index"], "patient_id": patient.astype(int), "split": split})
        tables.append(pd.concat([head, labels.astype(np.uint8)], axis=1))
    images = pd.concat(tables, ignore_index=True)
    if images["image_id"].duplicated().any():
        twice = images["image_id"][images["image_id"].duplicated()].iloc[0]
        raise UserError(f"{twice} is in two of {', '.join(ORIGINAL_SPLIT.values())} of {data}; take it out of one")
    return images


def read_boxes(data: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Read BBox_List_2017.csv, by position, for the images of the test split; boxes of other images are left out.

    x, y, w, h are truncated to integers, as the authors did.

    Raises:
        UserError: the file is missing or empty, a finding is unknown, a box has no area or lies left of or above 0.
    """
    path = data / "BBox_List_2017.csv"
    if not path.exists():
        raise UserError(f"{path} is missing: get it from {WHERE}")
    try:
        with open(path, encoding="utf-8-sig") as lines:
            if not next(lines, "").startswith("Image Index"):
                raise ValueError("its first line must be NIH's header, which begins with Image Index")
        table = pd.read_csv(path, header=None, skiprows=1, usecols=range(6), encoding="utf-8-sig")
        table.columns = ["image_id", "pathology", "x", "y", "w", "h"]
        numbers = table[["x", "y", "w", "h"]].astype(float)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} must hold image, finding, x, y, w, h in its first six columns ({error})") from error
    table["pathology"] = table["pathology"].replace("Infiltrate", "Infiltration")
    unknown = table["pathology"][~table["pathology"].isin(class_names(images))]
    if len(unknown):
        raise UserError(f"{path}: {unknown.iloc[0]!r} is none of the findings {', '.join(class_names(images))}")
    bad = ~(np.isfinite(numbers).all(axis=1) & (numbers >= [0, 0, 1, 1]).all(axis=1))
    if bad.any():
        row, xywh = table[bad].iloc[0], ", ".join(f"{number:g}" for number in numbers[bad].iloc[0])
        raise UserError(
            f"{path}: the box of {row.image_id}, {row.pathology}, is {xywh}; correct x, y, w, h or remove it"
        )
    table[["x", "y", "w", "h"]] = numbers.astype(np.int64)
    tested = images["image_id"][images["split"] == "test"]
    return table[table["image_id"].isin(tested)].reset_index(drop=True)


def require_files(images: pd.DataFrame, data: Path) -> None:
    """Raise a UserError that counts and names the images that are not on the disk."""
    missing = images["image_id"][images["path"].isna()]
    if len(images) == 0:
        raise UserError(f"the lists of {data} name no image of the split that is asked for")
    if len(missing):
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{len(missing)} of {len(images)} images are missing from {data / 'images'}: {named}; "
            f"unpack all of NIH's image archives there ({WHERE})"
        )


def select_boxed(images: pd.DataFrame, boxes: pd.DataFrame, data: Path) -> pd.DataFrame:
    """The images that have boxes, in the order of the table.

    Raises:
        UserError: there is none, a file is missing, or a box reaches beyond its image.
    """
    boxed = images[images["image_id"].isin(boxes["image_id"])]
    if len(boxed) == 0:
        raise UserError(f"{data / 'BBox_List_2017.csv'} has no box of an image of the test list")
    require_files(boxed, data)
    paths = dict(zip(boxed["image_id"], boxed["path"], strict=True))
    for box in boxes.itertuples():
        width, height = image_size(paths[box.image_id])
        if box.x + box.w > width or box.y + box.h > height:
            raise UserError(
                f"{data / 'BBox_List_2017.csv'}: the box of {box.image_id}, {box.pathology}, reaches beyond the image "
                f"({width} x {height}); boxes are in pixels of the image files, so scale both or neither"
            )
    return boxed


@cache
def image_size(path: str) -> tuple[int, int]:
    """Width and height, from the head of the file."""
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise UserError(f"{path} cannot be read as an image; copy it again from NIH's archive") from error


def class_names(images: pd.DataFrame) -> list[str]:
    """The classes are the columns behind the four that every table has."""
    return [column for column in images.columns if column not in ("image_id", "patient_id", "split", "path")]


def shared_patients(images: pd.DataFrame) -> tuple[int, int]:
    """How many validation patients are in training too, of how many."""
    train, val = (set(images["patient_id"][images["split"] == split]) for split in ("train", "val"))
    return len(train & val), len(val)


def split_hash(images: pd.DataFrame) -> str:
    """SHA-256 of the sorted lines `image_id split labels`: equal for equal data, wherever it lies."""
    table = images.drop(columns="path").sort_values("image_id")
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def find_files(data: Path) -> dict[str, str]:
    """Names of the files in images/ and in images_001/images/ .. images_012/images/, with their paths."""
    found = {}
    for folder in (*sorted(data.glob("images_*/images")), data / "images"):
        if folder.is_dir():
            with os.scandir(folder) as files:
                found.update((file.name, file.path) for file in files)
    return found


def read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is no table of comma-separated values ({str(error).strip()})") from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise UserError(f"{path} has no column {lacking[0]!r}; its columns are {', '.join(map(str, table.columns))}")
    if len(table) == 0:
        raise UserError(f"{path} has no rows")
    if table["Image Index"].duplicated().any():
        raise UserError(f"{path} has two rows of {table['Image Index'][table['Image Index'].duplicated()].iloc[0]}")
    return table[columns]


def read_list(path: Path) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; save it as such") from error
    if not names:
        raise UserError(f"{path} is empty: it must name images, one a line")
    if len(set(names)) < len(names):
        raise UserError(f"{path} names {pd.Series(names)[pd.Series(names).duplicated()].iloc[0]} twice")
    return names


def parse_findings(findings: pd.Series, path: Path) -> pd.DataFrame:
    """`Mass|Nodule` -> one 0/1 column a class. Only the distinct combinations, some 800 in NIH's file, are parsed."""
    codes, combinations = pd.factorize(findings)
    rows = np.zeros((len(combinations), len(PATHOLOGIES)), np.uint8)
    for row, combination in zip(rows, combinations, strict=True):
        for name in combination.split("|"):
            if name in PATHOLOGIES:
                row[PATHOLOGIES.index(name)] = 1
            elif name != "No Finding":
                raise UserError(f"{path}: {name!r} is none of the findings {', '.join(PATHOLOGIES)}")
    if (codes < 0).any():
        raise UserError(f"{path}: row {int(np.argmax(codes < 0)) + 2} has no finding; NIH writes 'No Finding'")
    return pd.DataFrame(rows[codes], columns=list(PATHOLOGIES))
