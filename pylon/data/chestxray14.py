"""NIH's ChestX-ray14: its constants, and readers of its files as distributed.

checks.py reports what is wrong with the files; this module leaves out faulty rows.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pylon.data.radiographs import (
    BOX_COLUMNS,
    Radiographs,
    are_boxes,
    hash_of_list,
    hash_of_table,
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


@dataclass(frozen=True)
class OfficialLists:
    """NIH's lists: labels of all images, and names of the train+val and test images."""

    data: Path
    entries: list[Path]  # the label files found; the first is read
    labels: pd.DataFrame  # Image Index str, Finding Labels, Patient ID, ..; one row per line
    train_val: list[str]
    test: list[str]


@dataclass(frozen=True)
class OriginalSplit:
    """The authors' three files: labels of the images of each split."""

    data: Path
    tables: dict[str, pd.DataFrame]  # Image Index str, one column per class, ..; one row per line


def read_lists(data: Path) -> OfficialLists | OriginalSplit:
    """Read the lists of a folder; the authors' original_split_*.csv take precedence.

    Raises:
        UserError: a file or a column is missing, or a file is not a table.
    """
    if any((data / name).exists() for name in ORIGINAL_SPLIT.values()):
        return read_original_split(data)
    return read_official_lists(data)


# Deviation: the authors prepared csv files of labels and split; here NIH's own files are read.
def read_official_lists(data: Path) -> OfficialLists:
    # find the files
    entries = sorted(data.glob("Data_Entry_2017*.csv"))
    lists = {name: data / name for name in ("train_val_list.txt", "test_list.txt")}
    lacking = [] if entries else ["Data_Entry_2017.csv"]
    lacking += [name for name, path in lists.items() if not path.exists()]
    if lacking:
        lacking += [] if find_files(data) else ["images/"]
        problem = f"lacks {', '.join(lacking)}" if data.is_dir() else "is not a folder"
        raise UserError(
            f"{data} {problem}: download ChestX-ray14 from {WHERE} into it "
            "(see the README), choose another folder with --data, or give a table of your own "
            "images with --table"
        )

    # read them
    labels = read_table(entries[0], ["Image Index", "Finding Labels", "Patient ID"])
    train_val = read_names(lists["train_val_list.txt"])
    test = read_names(lists["test_list.txt"])
    return OfficialLists(data, entries, labels, train_val, test)


def read_original_split(data: Path) -> OriginalSplit:
    tables = {}
    for split, name in ORIGINAL_SPLIT.items():
        path = data / name
        if not path.exists():
            raise UserError(
                f"{path} is missing, but other files of the authors' split are present; "
                "add it or remove the others"
            )
        tables[split] = read_table(path, ["Image Index", *PATHOLOGIES])
    return OriginalSplit(data, tables)


def images_of(lists: OfficialLists | OriginalSplit) -> pd.DataFrame:
    """The table of images (see radiographs.py); faulty rows are left out as far as possible.

    With NIH's lists the test set is the official one, and validation is a patient-disjoint tenth
    of train+val.
    """
    official = isinstance(lists, OfficialLists)
    images = images_of_official_lists(lists) if official else images_of_original_split(lists)
    images.insert(3, "path", images["image_id"].map(dict(find_files(lists.data))))
    return images


def images_of_official_lists(lists: OfficialLists) -> pd.DataFrame:
    # the split of each listed image; the lists may cover only some of the images
    split = pd.Series("train", index=list(dict.fromkeys(lists.train_val)), dtype=object)
    split = split[~split.index.isin(set(lists.test))]
    test = pd.Series("test", index=list(dict.fromkeys(lists.test)), dtype=object)
    split = pd.concat([split, test])
    table = listed_rows(lists)

    # patient ids as integers, -1 if invalid
    patient_ids = table["Patient ID"]
    if not pd.api.types.is_integer_dtype(patient_ids):
        numbers = pd.to_numeric(patient_ids, errors="coerce")
        patient_ids = numbers.where(numbers.abs() < 2**53, -1).astype("int64")
    images = pd.DataFrame({
        "image_id": table["Image Index"],
        "patient_id": patient_ids,
        "split": split.reindex(table["Image Index"]).to_numpy(),
    })  # fmt: skip
    return separate_validation(pd.concat([images, parse_findings(table)], axis=1))


def listed_rows(lists: OfficialLists) -> pd.DataFrame:
    """The label rows of the images in the lists; the first of each repeated name."""
    table = lists.labels[~lists.labels["Image Index"].duplicated()]
    listed = table["Image Index"].isin({*lists.train_val, *lists.test})
    return table[listed].reset_index(drop=True)


def parse_findings(table: pd.DataFrame) -> pd.DataFrame:
    """`Mass|Nodule` -> one 0/1 column per class; unknown findings are ignored."""
    # parse only the distinct combinations, about 800 in NIH's file
    codes, combinations = pd.factorize(findings_of(table))
    rows = [split_findings(combination) for combination in combinations]
    members = np.array([[name in row for name in PATHOLOGIES] for row in rows], np.uint8)
    members = members.reshape(-1, len(PATHOLOGIES))
    return pd.DataFrame(members[codes], columns=list(PATHOLOGIES))


def findings_of(table: pd.DataFrame) -> pd.Series:
    """The findings of each row as NIH writes them; empty if the cell is."""
    return table["Finding Labels"].fillna("").astype(str)


def split_findings(combination: str) -> set[str]:
    return set(combination.split("|")) - {"", "No Finding"}


def separate_validation(images: pd.DataFrame) -> pd.DataFrame:
    # Deviation: the authors split train+val by image, so most validation patients were also in
    # training. Here the split is by patient. It is the same for all seeds, as theirs was.
    from sklearn.model_selection import GroupShuffleSplit

    rows = np.flatnonzero(images["split"] == "train")
    patient_ids = images["patient_id"].to_numpy()[rows]
    if len(np.unique(patient_ids)) < 2:
        return images
    splitter = GroupShuffleSplit(n_splits=1, test_size=VALIDATION_SHARE, random_state=0)
    _, validation = next(splitter.split(rows, groups=patient_ids))
    images.loc[rows[validation], "split"] = "val"
    return images


def images_of_original_split(lists: OriginalSplit) -> pd.DataFrame:
    tables = []
    for split, listed in lists.tables.items():
        table = listed[~listed["Image Index"].duplicated()]
        table = table[are_labels(table) & patient_ids_of(table).notna()]
        head = pd.DataFrame({
            "image_id": table["Image Index"],
            "patient_id": patient_ids_of(table).astype(int),
            "split": split,
        })  # fmt: skip
        labels = table[list(PATHOLOGIES)].astype(np.uint8)
        tables.append(pd.concat([head, labels], axis=1))
    images = pd.concat(tables, ignore_index=True)
    return images[~images["image_id"].duplicated()].reset_index(drop=True)


def are_labels(table: pd.DataFrame) -> pd.Series:
    """Whether all classes of a row are 0 or 1."""
    return table[list(PATHOLOGIES)].isin([0, 1]).all(axis=1)


def patient_ids_of(table: pd.DataFrame) -> pd.Series:
    """The patient id in names such as 00000001_000.png, as text; NaN for other names."""
    return table["Image Index"].str.extract(r"^(\d{1,15})_\d+", expand=False)


def read_box_list(data: Path) -> pd.DataFrame:
    """Read BBox_List_2017.csv by position, unchecked: image_id, pathology, x, y, w, h float64.

    Raises:
        UserError: the file is missing, empty or not such a table.
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
        table = pd.read_csv(path, header=None, skiprows=1, usecols=range(6), encoding="utf-8-sig")
        table.columns = BOX_COLUMNS
        table[["x", "y", "w", "h"]] = table[["x", "y", "w", "h"]].astype(float)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} must have image, finding, x, y, w, h in its first six columns ({error})"
        ) from error
    table["pathology"] = table["pathology"].replace("Infiltrate", "Infiltration")
    return table


def boxes_of(listed: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """The table of boxes (see radiographs.py) for the images of the test split.

    x, y, w, h are truncated to integers, as the authors did. Faulty boxes are left out.
    """
    boxes = usable_boxes(listed)
    tested = images["image_id"][images["split"] == "test"]
    return boxes[boxes["image_id"].isin(tested)].reset_index(drop=True)


def usable_boxes(listed: pd.DataFrame) -> pd.DataFrame:
    """The valid boxes of known classes, in integer pixels, without duplicates."""
    boxes = well_formed_boxes(listed)
    return boxes[~boxes.duplicated()]


def well_formed_boxes(listed: pd.DataFrame) -> pd.DataFrame:
    """The valid boxes of known classes, in integer pixels, including duplicates."""
    boxes = listed[listed["pathology"].isin(PATHOLOGIES) & are_boxes(listed)]
    return boxes.astype(dict.fromkeys("xywh", np.int64))


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
    """Read a csv file that has some columns, and at least one row; Image Index as str."""
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
    return table


def read_names(path: Path) -> list[str]:
    """Read the names in a list, including duplicates."""
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    if not names:
        raise UserError(f"{path} is empty: it must list image names, one per line")
    return names
