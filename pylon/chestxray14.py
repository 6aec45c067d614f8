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
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from pylon.cli import UserError, refuse
from pylon.images import image_size

PATHOLOGIES = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
ORIGINAL_SPLIT = {split: f"original_split_{split}.csv" for split in ("train", "val", "test")}
VALIDATION_SHARE = 0.1  # of the patients of train+val
LARGEST_BOX = 100_000  # pixels from the corner of an image; more is no number of pixels

Complain = Callable[[str], None]  # takes a fault in one sentence; where it returns, what is at fault is left out


def read_images(data: Path, complain: Complain = refuse) -> pd.DataFrame:
    """Read labels, split and paths; an image that is not on the disk has the path NaN (see `require_files`).

    The authors' original_split_{train,val,test}.csv rule where they are. Otherwise labels come from
    Data_Entry_2017*.csv, the test set is NIH's official one, and validation is a patient-disjoint tenth of train+val.

    Args:
        data: folder with NIH's files.
        complain: what to do with a fault in the files' contents; raises a UserError of the first, if none is given.

    Returns:
        image_id str, patient_id int64, split "train" | "val" | "test", path str, and a uint8 column, 0 or 1, a class.

    Raises:
        UserError: a file or a column is missing, a finding is unknown, an image is listed twice or nowhere.
    """
    theirs = any((data / name).exists() for name in ORIGINAL_SPLIT.values())
    images = read_original_split(data, complain) if theirs else read_official_split(data, complain)
    images.insert(3, "path", images["image_id"].map(dict(find_files(data))))
    return images


# Deviation: the authors prepared labels and split as csv files. NIH's own files are read as they are.
def read_official_split(data: Path, complain: Complain) -> pd.DataFrame:
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
    if len(entries) > 1:
        complain(f"{data} has {' and '.join(path.name for path in entries)}; keep the one that shall give the labels")
    table = read_csv(entries[0], ["Image Index", "Finding Labels", "Patient ID"], complain)
    train_val, test = (read_list(path, complain) for path in lists.values())
    both = sorted(set(train_val) & set(test))
    if both:
        complain(f"{some(both)} both in train_val_list.txt and in test_list.txt of {data}; take it out of one")
    unlabelled = sorted((set(train_val) | set(test)) - set(table["Image Index"]))
    if unlabelled:
        complain(f"{some(unlabelled)} in the lists of {data} but {entries[0].name} has no row of it; get both anew")

    split = pd.Series("train", index=train_val, dtype=object)
    split = pd.concat([split[~split.index.isin(both)], pd.Series("test", index=test, dtype=object)])
    table = table[table["Image Index"].isin(split.index)].reset_index(drop=True)  # the lists may be a selection
    if not pd.api.types.is_integer_dtype(table["Patient ID"]):
        complain(f"{entries[0]}: every row must have a whole number as 'Patient ID'; correct it")
        numbers = pd.to_numeric(table["Patient ID"], errors="coerce")
        table["Patient ID"] = numbers.where(numbers.abs() < 2**53, -1).astype("int64")
    labels = parse_findings(table, entries[0], complain)
    images = pd.DataFrame({
        "image_id": table["Image Index"],
        "patient_id": table["Patient ID"],
        "split": split.reindex(table["Image Index"]).to_numpy(),
    })  # fmt: skip
    return separate_validation(pd.concat([images, labels], axis=1), complain)


def separate_validation(images: pd.DataFrame, complain: Complain) -> pd.DataFrame:
    # Deviation: the authors split train+val by image, so most validation patients were in training too. Here they
    # are other patients. One fixed split for all seeds, as theirs was.
    rows = np.flatnonzero(images["split"] == "train")
    patients = images["patient_id"].to_numpy()[rows]
    if len(np.unique(patients)) < 2:
        complain("train_val_list.txt must hold at least 2 patients: one to train on, one to validate on")
        return images
    splitter = GroupShuffleSplit(n_splits=1, test_size=VALIDATION_SHARE, random_state=0)
    _, validation = next(splitter.split(rows, groups=patients))
    images.loc[rows[validation], "split"] = "val"
    return images


def read_original_split(data: Path, complain: Complain) -> pd.DataFrame:
    tables = []
    for split, name in ORIGINAL_SPLIT.items():
        path = data / name
        if not path.exists():
            raise UserError(f"{path} is missing beside the others of the authors' split; add it or remove the others")
        table = read_csv(path, ["Image Index", *PATHOLOGIES], complain)
        good = table[list(PATHOLOGIES)].isin([0, 1]).all(axis=1)
        if not good.all():
            wrong = some(table["Image Index"][~good])
            complain(f"{path}: {wrong} labelled other than 0 or 1 in the columns of the findings; correct it")
        patient = table["Image Index"].str.extract(r"^(\d{1,15})_\d+", expand=False)
        if patient.isna().any():
            complain(f"{path}: {some(table['Image Index'][patient.isna()])} not named PATIENT_NUMBER.png; correct it")
        good &= patient.notna()
        table, patient = table[good], patient[good]
        labels = table[list(PATHOLOGIES)]
        head = pd.DataFrame({"image_id": table["Image Index"], "patient_id": patient.astype(int), "split": split})
        tables.append(pd.concat([head, labels.astype(np.uint8)], axis=1))
    images = pd.concat(tables, ignore_index=True)
    twice = images["image_id"].duplicated()
    if twice.any():
        again = some(images["image_id"][twice])
        complain(f"{again} in two of {', '.join(ORIGINAL_SPLIT.values())} of {data}; take it out of one")
    return images[~twice].reset_index(drop=True)


def read_boxes(data: Path, images: pd.DataFrame, complain: Complain = refuse) -> pd.DataFrame:
    """Read BBox_List_2017.csv, by position, for the images of the test split; boxes of other images are left out.

    x, y, w, h are truncated to integers, as the authors did.

    Raises:
        UserError: the file is missing or empty, a finding is unknown, a box has no area or lies left of or above 0, or
            a box is there twice.
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
    unknown = ~table["pathology"].isin(class_names(images))
    for name in table["pathology"][unknown].unique():
        complain(f"{path}: {name!r} is none of the findings {', '.join(class_names(images))}; correct it")
    bad = ~((numbers >= [0, 0, 1, 1]) & (numbers < LARGEST_BOX)).all(axis=1)  # NaN is neither
    for k in np.flatnonzero(bad):
        row, xywh = table.iloc[k], ", ".join(f"{number:g}" for number in numbers.iloc[k])
        complain(f"{path}: the box of {row.image_id}, {row.pathology}, is {xywh}; correct x, y, w, h or remove it")
    table, numbers = table[~(bad | unknown)].copy(), numbers[~(bad | unknown)]
    table[["x", "y", "w", "h"]] = numbers.astype(np.int64)
    twice = table.duplicated()
    for row in table[twice].drop_duplicates().itertuples():
        complain(f"{path}: {row.image_id} has the same box of {row.pathology} twice; remove one")
    table = table[~twice]
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


def select_boxed(images: pd.DataFrame, boxes: pd.DataFrame, data: Path, complain: Complain = refuse) -> pd.DataFrame:
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
            complain(
                f"{data / 'BBox_List_2017.csv'}: the box of {box.image_id}, {box.pathology}, reaches beyond the image "
                f"({width} x {height}); boxes are in pixels of the image files, so scale both or neither"
            )
    return boxed


def class_names(images: pd.DataFrame) -> list[str]:
    """The classes are the columns behind the four that every table has."""
    return [column for column in images.columns if column not in ("image_id", "patient_id", "split", "path")]


def shared_patients(images: pd.DataFrame, split: str) -> tuple[int, int]:
    """How many patients of a split are in training too, of how many."""
    train, others = (set(images["patient_id"][images["split"] == name]) for name in ("train", split))
    return len(train & others), len(others)


def split_hash(images: pd.DataFrame) -> str:
    """SHA-256 of the sorted lines `image_id split labels`: equal for equal data, wherever it lies."""
    table = images.drop(columns="path").sort_values("image_id")
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def find_files(data: Path) -> list[tuple[str, str]]:
    """Names of the files in images/ and in images_001/images/ .. images_012/images/, with their paths."""
    found = []
    for folder in (*sorted(data.glob("images_*/images")), data / "images"):
        if folder.is_dir():
            with os.scandir(folder) as files:
                found += [(file.name, file.path) for file in files]
    return found


def list_hashes(data: Path) -> dict[str, str]:
    """SHA-256 of each list in a folder, by its name; line ends and a byte order mark make no difference."""
    patterns = ("Data_Entry_2017*.csv", "BBox_List_2017.csv", "*_list.txt", "original_split_*.csv")
    paths = sorted(path for pattern in patterns for path in data.glob(pattern))
    contents = {path.name: path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n") for path in paths}
    return {name: hashlib.sha256(content.rstrip(b"\n")).hexdigest() for name, content in contents.items()}


def some(names: Iterable[str]) -> str:
    """`a is`, or `a and 2 more are`: who is at fault, for a sentence."""
    first, *others = names
    return f"{first} and {len(others)} more are" if others else f"{first} is"


def read_csv(path: Path, columns: list[str], complain: Complain) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is no table of comma-separated values ({str(error).strip()})") from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise UserError(f"{path} has no column {lacking[0]!r}; its columns are {', '.join(map(str, table.columns))}")
    if len(table) == 0:
        raise UserError(f"{path} has no rows")
    table["Image Index"] = table["Image Index"].astype(str)
    twice = table["Image Index"].duplicated()
    if twice.any():
        complain(f"{path}: {some(table['Image Index'][twice])} in more than one row; remove all but one")
    return table.loc[~twice, columns].reset_index(drop=True)


def read_list(path: Path, complain: Complain) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; save it as such") from error
    if not names:
        raise UserError(f"{path} is empty: it must name images, one a line")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        complain(f"{path}: {some(twice)} named more than once; remove all but one")
    return list(dict.fromkeys(names))


def parse_findings(table: pd.DataFrame, path: Path, complain: Complain) -> pd.DataFrame:
    """`Mass|Nodule` -> one 0/1 column a class. Only the distinct combinations, some 800 in NIH's file, are parsed."""
    findings = table["Finding Labels"].fillna("").astype(str)
    if (findings == "").any():
        complain(f"{path}: {some(table['Image Index'][findings == ''])} without a finding; NIH writes 'No Finding'")
    codes, combinations = pd.factorize(findings)
    named = [set(combination.split("|")) - {"", "No Finding"} for combination in combinations]
    for name in sorted(set().union(*named) - set(PATHOLOGIES)):
        complain(f"{path}: {name!r} is none of the findings {', '.join(PATHOLOGIES)}; correct it")
    rows = np.array([[name in names for name in PATHOLOGIES] for names in named], np.uint8).reshape(
        -1, len(PATHOLOGIES)
    )
    return pd.DataFrame(rows[codes], columns=list(PATHOLOGIES))
