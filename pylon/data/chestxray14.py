"""NIH's ChestX-ray14: its constants, and readers of its files as distributed."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from pylon.data.radiographs import (
    BOX_COLUMNS,
    Radiographs,
    are_boxes,
    hash_of_list,
    hash_of_table,
    subject,
)
from pylon.system.errors import UserError
from pylon.system.files import file_alike

PATHOLOGIES = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"

# of intensities in [0, 1], as in the 2020 code
MEAN = 0.4984
STD = 0.2483

ORIGINAL_SPLIT = {split: f"original_split_{split}.csv" for split in ("train", "val", "test")}
BOX_LIST = "BBox_List_2017.csv"
MARK = "PHANTOM.txt"  # in a folder of synthetic images; its first line says what they are
VALIDATION_SHARE = 0.1  # fraction of the patients of train+val

NIH_COUNTS = {
    "images in the lists": 112_120,
    "to train and validate on": 86_524,
    "to test on": 25_596,
    "patients": 30_805,
    "boxes": 984,
    "images with boxes": 880,
}
NIH_SHA256 = {  # from `list_hashes`: of NIH's files, then of mirrors' copies with equal content
    "BBox_List_2017.csv": ("ea8069e6ab76ecba3eb366be1888b5ca50ff9367bfbb579c81f32685d7d17a3f",),
    "Data_Entry_2017_v2020.csv": (  # the copy has another header
        "d1e6d660eeb0bb053bf2b0266cfbd3457939dd4d592491eed9be58449dd6e5aa",
        "e580686b38ab82b5ac340138e478bd0c0dd7b61106776db18dd144af6af7ab4b",
    ),
    "test_list.txt": (  # the copies of this and the next have another order
        "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc",
        "4ae872aeda1545e95f440f2e5dffea7d4facf74ad04c202040b2ac437769ec55",
    ),
    "train_val_list.txt": (
        "61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81",
        "e2abb51704b88ad23771230435ad210fd03c22abccf44e3b24400e4963a06d36",
    ),
}
# of the sorted names of NIH's test images, one per line; of their labels and of NIH's boxes, as
# sorted csv tables
OFFICIAL_TEST_SHA256 = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"
OFFICIAL_LABELS_SHA256 = "077c7323fb2b2e763b7c74058cb2a6b267ccf3e2b618fa113e8f785205c26b2e"
OFFICIAL_BOXES_SHA256 = "ba17d51af60957a343ec3d15758e4d34ab3f0c08aada1fe3aae51088e30c9e0d"

# the images in the paper's figure of heatmaps
PICKED = (
    "00000032_037", "00000150_002", "00000211_041", "00000468_017", "00001075_024", "00008547_001",
    "00004547_003", "00008522_032", "00002106_000", "00004911_018", "00002350_001", "00003440_000",
    "00002533_002", "00006736_000", "00002856_009", "00002980_000", "00008386_000", "00008008_027",
)  # fmt: skip


def read_images(data: Path) -> pd.DataFrame:
    """Read the lists of a folder into the table of images (see radiographs.py).

    The authors' original_split_*.csv take precedence over NIH's lists. With NIH's lists the test
    set is the official one, and validation is a patient-disjoint tenth of train+val.

    Raises:
        UserError: the first fault of the lists.
    """
    is_original = any((data / name).exists() for name in ORIGINAL_SPLIT.values())
    images = read_original_split(data) if is_original else read_official_lists(data)
    images.insert(3, "path", images["image_id"].map(dict(find_files(data))))
    return images


# Deviation: the authors prepared csv files of labels and split; here NIH's own files are read.
def read_official_lists(data: Path) -> pd.DataFrame:
    path = find_labels(data)
    labels = read_table(path, ["Image Index", "Finding Labels", "Patient ID"])
    train_val = read_names(data / "train_val_list.txt")
    test = read_names(data / "test_list.txt")

    # the split of each listed image; the lists may cover only some of the images
    both = sorted(set(train_val) & set(test))
    if both:
        raise UserError(
            f"{subject(both)} both in train_val_list.txt and in test_list.txt of {data}; "
            "remove it from one"
        )
    split = pd.Series({**dict.fromkeys(train_val, "train"), **dict.fromkeys(test, "test")})
    unlabelled = sorted(set(split.index) - set(labels["Image Index"]))
    if unlabelled:
        raise UserError(
            f"{subject(unlabelled)} in the lists of {data} but not in {path.name}; "
            "download both again"
        )
    table = labels[labels["Image Index"].isin(split.index)].reset_index(drop=True)

    # patients and findings
    if not pd.api.types.is_integer_dtype(table["Patient ID"]):
        raise UserError(f"{path}: every row must have a whole number as 'Patient ID'; correct it")
    images = pd.DataFrame({
        "image_id": table["Image Index"],
        "patient_id": table["Patient ID"],
        "split": split[table["Image Index"]].to_numpy(),
    })  # fmt: skip
    if images["patient_id"][images["split"] == "train"].nunique() < 2:
        raise UserError(
            f"{data}/train_val_list.txt must contain at least 2 patients: "
            "one for training, one for validation"
        )
    return separate_validation(pd.concat([images, parse_findings(table, path)], axis=1))


def find_labels(data: Path) -> Path:
    """The file of NIH's labels; raise a UserError if a list is missing, or there are two of it."""
    entries = sorted(data.glob("Data_Entry_2017*.csv"))
    lacking = [] if entries else ["Data_Entry_2017.csv"]
    lists = ("train_val_list.txt", "test_list.txt")
    lacking += [name for name in lists if not (data / name).exists()]
    if lacking:
        lacking += [] if find_files(data) else ["images/"]
        problem = f"lacks {', '.join(lacking)}" if data.is_dir() else "is not a folder"
        raise UserError(
            f"{data} {problem}: download ChestX-ray14 from {WHERE} into it "
            "(see the README), choose another folder with --data, or give a table of your own "
            "images with --table"
        )
    if len(entries) > 1:
        names = " and ".join(path.name for path in entries)
        raise UserError(f"{data} has {names}; keep only the one with the labels to use")
    return entries[0]


def parse_findings(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """`Mass|Nodule` -> one 0/1 column per class."""
    # parse only the distinct combinations, about 800 in NIH's file
    findings = table["Finding Labels"].fillna("").astype(str)
    if (findings == "").any():
        names = subject(table["Image Index"][findings == ""])
        raise UserError(f"{path}: {names} without a finding; write 'No Finding' as NIH does")
    codes, combinations = pd.factorize(findings)
    rows = [set(combination.split("|")) - {"", "No Finding"} for combination in combinations]
    require_classes(set().union(*rows), path)
    members = np.array([[name in row for name in PATHOLOGIES] for row in rows], np.uint8)
    return pd.DataFrame(members[codes], columns=list(PATHOLOGIES))


def require_classes(names: Iterable[str], path: Path) -> None:
    unknown = sorted(set(names) - set(PATHOLOGIES))
    if unknown:
        known = ", ".join(PATHOLOGIES)
        raise UserError(f"{path}: {unknown[0]!r} is not one of the findings {known}; correct it")


def separate_validation(images: pd.DataFrame) -> pd.DataFrame:
    # Deviation: the authors split train+val by image, so most validation patients were also in
    # training. Here the split is by patient. It is the same for all seeds, as theirs was.
    from sklearn.model_selection import GroupShuffleSplit

    rows = np.flatnonzero(images["split"] == "train")
    patient_ids = images["patient_id"].to_numpy()[rows]
    splitter = GroupShuffleSplit(n_splits=1, test_size=VALIDATION_SHARE, random_state=0)
    _, validation = next(splitter.split(rows, groups=patient_ids))
    images.loc[rows[validation], "split"] = "val"
    return images


def read_original_split(data: Path) -> pd.DataFrame:
    """The authors' three files, with one column per class: the images of each split."""
    tables = []
    for split, name in ORIGINAL_SPLIT.items():
        path = data / name
        if not path.exists():
            raise UserError(
                f"{path} is missing, but other files of the authors' split are present; "
                "add it or remove the others"
            )
        table = read_table(path, ["Image Index", *PATHOLOGIES])
        labels = table[list(PATHOLOGIES)]
        is_labelled = labels.isin([0, 1]).all(axis=1)
        if not is_labelled.all():
            names = subject(table["Image Index"][~is_labelled])
            raise UserError(
                f"{path}: {names} not labelled 0 or 1 in every column of a finding; correct it"
            )
        # names are such as 00000001_000.png
        patient_ids = table["Image Index"].str.extract(r"^(\d{1,15})_\d+", expand=False)
        if patient_ids.isna().any():
            names = subject(table["Image Index"][patient_ids.isna()])
            raise UserError(f"{path}: {names} not named PATIENT_NUMBER.png; correct it")
        head = pd.DataFrame({
            "image_id": table["Image Index"],
            "patient_id": patient_ids.astype(int),
            "split": split,
        })  # fmt: skip
        tables.append(pd.concat([head, labels.astype(np.uint8)], axis=1))
    images = pd.concat(tables, ignore_index=True)
    again = images["image_id"][images["image_id"].duplicated()]
    if len(again):
        files = ", ".join(ORIGINAL_SPLIT.values())
        raise UserError(f"{subject(again)} in two of {files} of {data}; remove it from one")
    return images


def read_boxes(data: Path) -> pd.DataFrame:
    """Read BBox_List_2017.csv by position, also the boxes of images that are in no list.

    x, y, w, h are truncated to integers, as the authors did.

    Raises:
        UserError: the file is missing, empty or not such a table; or a box is faulty (the first).
    """
    path = data / BOX_LIST
    if not path.exists():
        raise UserError(f"{path} is missing: download it from {WHERE}")
    try:
        with open(path, encoding="utf-8-sig") as lines:
            if not next(lines, "").startswith("Image Index"):
                raise ValueError(
                    "its first line must be NIH's header, which starts with Image Index"
                )
        boxes = pd.read_csv(path, header=None, skiprows=1, usecols=range(6), encoding="utf-8-sig")
        boxes.columns = BOX_COLUMNS
        boxes[["x", "y", "w", "h"]] = boxes[["x", "y", "w", "h"]].astype(float)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} must have image, finding, x, y, w, h in its first six columns ({error})"
        ) from error

    # its boxes
    boxes["pathology"] = boxes["pathology"].replace("Infiltrate", "Infiltration").astype(str)
    require_classes(boxes["pathology"], path)
    is_faulty = ~are_boxes(boxes)
    if is_faulty.any():
        box = boxes[is_faulty].iloc[0]
        numbers = ", ".join(f"{number:g}" for number in (box.x, box.y, box.w, box.h))
        raise UserError(
            f"{path}: the box of {box.image_id}, {box.pathology}, is {numbers}; "
            "correct x, y, w, h or remove it"
        )
    boxes = boxes.astype(dict.fromkeys("xywh", np.int64))
    if boxes.duplicated().any():
        box = boxes[boxes.duplicated()].iloc[0]
        raise UserError(
            f"{path}: {box.image_id} has the same box of {box.pathology} twice; remove one"
        )
    return boxes


def why_not_official(radiographs: Radiographs, with_boxes: bool = False) -> str | None:
    """Why scores on these test images (or boxes) cannot be compared with published ones, if so."""
    test = radiographs.of_split("test").sort_values("image_id")
    names = "\n".join(test["image_id"]).encode()
    if hashlib.sha256(names).hexdigest() != OFFICIAL_TEST_SHA256:
        return "its test images are not those of NIH's official test list"
    if hash_of_table(test[["image_id", *radiographs.class_names]]) != OFFICIAL_LABELS_SHA256:
        return "its test labels are not NIH's"
    if with_boxes:
        boxes = radiographs.boxes[list(BOX_COLUMNS)].sort_values(["image_id", "pathology"])
        if hash_of_table(boxes) != OFFICIAL_BOXES_SHA256:
            return "its boxes are not the 984 of NIH's list"
    return None


def list_hashes(data: Path) -> dict[str, str]:
    """SHA-256 of each list in a folder; line endings and a byte order mark are ignored."""
    patterns = ("Data_Entry_2017*.csv", BOX_LIST, "*_list.txt", "original_split_*.csv")
    hashes = {}
    for path in sorted(path for pattern in patterns for path in data.glob(pattern)):
        hashes[path.name] = hash_of_list(path.read_bytes())
    return hashes


def what_is_synthetic(data: Path) -> str | None:
    """What the images of a folder are, if it is marked as synthetic: the first line of the mark."""
    mark = data / MARK
    if not mark.exists():
        return None
    first, *_ = mark.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    return first.strip() or "Synthetic images."


def what_images_are(folders: Iterable[str | Path]) -> str | None:
    """What images are, if the folder of some, or one above it, is marked: see `what_is_synthetic`.

    Args:
        folders: those of the images; links are followed.
    """
    places = dict.fromkeys(os.path.realpath(folder) for folder in folders)
    for place in places:
        # in NIH's layouts, the mark is one or two folders above the images
        for folder in (Path(place), *Path(place).parents[:2]):
            if said := what_is_synthetic(folder):
                return said
    return None


def find_files(data: Path) -> list[tuple[str, str]]:
    """Names and paths of the files in images/ and in images_001/images/ .. images_012/images/."""
    found = []
    for folder in (*sorted(data.glob("images_*/images")), data / "images"):
        if folder.is_dir():
            with os.scandir(folder) as files:
                found += [(file.name, file.path) for file in files]
    return found


def about_missing(data: Path, images: pd.DataFrame) -> str:
    """Where images that are missing are looked for; what lies there instead, and what to do.

    Args:
        images: a table of images (see radiographs.py).
    """
    place = data / "images"
    where = f"missing from {place}; "
    missing = images["image_id"][images["path"].isna()]
    name = next(iter(missing), "")
    nested = (place / "images", data, *sorted(data.glob("images_*/images/images")))
    for folder in (place, *sorted(data.glob("images_*/images")), *nested):
        alike = file_alike(str(folder / name)) if name else None
        if alike is None:
            continue
        if os.path.basename(alike) == name:
            return f"{where}{alike} lies there: move the images of its folder into {place}"
        what = "rename such files" if alike.lower().endswith(".png") else "convert them to PNG"
        return f"{where}{alike} lies there, but the lists name {name}: {what}"
    return f"{where}unpack all of NIH's image archives there ({WHERE})"


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a csv file that has some columns, and one row or more of different images."""
    try:
        table = pd.read_csv(path, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} is not a table of comma-separated values ({str(error).strip()})"
        ) from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        there = ", ".join(map(str, table.columns))
        raise UserError(f"{path} has no column {lacking[0]!r}; its columns are {there}")
    if len(table) == 0:
        raise UserError(f"{path} has no rows")
    table["Image Index"] = table["Image Index"].astype(str)
    again = table["Image Index"][table["Image Index"].duplicated()]
    if len(again):
        raise UserError(f"{path}: {subject(again)} in more than one row; remove all but one")
    return table


def read_names(path: Path) -> list[str]:
    """Read the names in a list; none may be repeated."""
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    if not names:
        raise UserError(f"{path} is empty: it must list image names, one per line")
    again = sorted(name for name, count in Counter(names).items() if count > 1)
    if again:
        raise UserError(f"{path}: {subject(again)} named more than once; remove all but one")
    return names
