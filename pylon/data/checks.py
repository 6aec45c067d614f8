"""Checks of a data set's files: lists of error sentences, in the order of the files.

The scripts raise the first one; tools/check_data.py prints all.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pylon.data import chestxray14
from pylon.data.chestxray14 import (
    BOX_LIST,
    ORIGINAL_SPLIT,
    PATHOLOGIES,
    OfficialLists,
    OriginalSplit,
)
from pylon.data.images import width_height_of
from pylon.data.radiographs import Radiographs, are_boxes
from pylon.system.errors import UserError


def raise_first(faults: list[str]) -> None:
    """Raise the first fault, if any, as a UserError."""
    if faults:
        raise UserError(faults[0])


def subject(names: Iterable[str]) -> str:
    """`a is`, or `a and 2 more are`: the subject of an error sentence."""
    first, *others = names
    return f"{first} and {len(others)} more are" if others else f"{first} is"


def faults_of_lists(lists: OfficialLists | OriginalSplit) -> list[str]:
    """The faults in the lists of images and labels."""
    if isinstance(lists, OfficialLists):
        return faults_of_official_lists(lists)
    return faults_of_original_split(lists)


def faults_of_official_lists(lists: OfficialLists) -> list[str]:
    data = lists.data
    entries = lists.entries[0]
    faults = []
    if len(lists.entries) > 1:
        names = " and ".join(path.name for path in lists.entries)
        faults.append(f"{data} has {names}; keep only the one with the labels to use")

    # images that are listed twice, in both lists, or without labels
    faults += rows_of_one_name(lists.labels, entries)
    faults += repeated_names(lists.train_val, data / "train_val_list.txt")
    faults += repeated_names(lists.test, data / "test_list.txt")
    both = sorted(set(lists.train_val) & set(lists.test))
    if both:
        faults.append(
            f"{subject(both)} both in train_val_list.txt and in test_list.txt of {data}; "
            "remove it from one"
        )
    unlabelled = sorted({*lists.train_val, *lists.test} - set(lists.labels["Image Index"]))
    if unlabelled:
        faults.append(
            f"{subject(unlabelled)} in the lists of {data} but not in {entries.name}; "
            "download both again"
        )

    # patients and findings of the listed images
    table = chestxray14.listed_rows(lists)
    if not pd.api.types.is_integer_dtype(table["Patient ID"]):
        faults.append(f"{entries}: every row must have a whole number as 'Patient ID'; correct it")
    findings = chestxray14.findings_of(table)
    if (findings == "").any():
        names = subject(table["Image Index"][findings == ""])
        faults.append(f"{entries}: {names} without a finding; write 'No Finding' as NIH does")
    named = set().union(*map(chestxray14.split_findings, findings.unique()))
    faults += [unknown_class(name, entries) for name in sorted(named - set(PATHOLOGIES))]

    # validation needs separate patients
    trained = table["Image Index"].isin(set(lists.train_val) - set(lists.test))
    if table["Patient ID"][trained].nunique(dropna=False) < 2:
        faults.append(
            "train_val_list.txt must contain at least 2 patients: "
            "one for training, one for validation"
        )
    return faults


def faults_of_original_split(lists: OriginalSplit) -> list[str]:
    faults = []
    used = []
    for split, listed in lists.tables.items():
        path = lists.data / ORIGINAL_SPLIT[split]
        faults += rows_of_one_name(listed, path)
        table = listed[~listed["Image Index"].duplicated()]

        # labels and names
        labelled = chestxray14.are_labels(table)
        if not labelled.all():
            names = subject(table["Image Index"][~labelled])
            faults.append(
                f"{path}: {names} not labelled 0 or 1 in every column of a finding; correct it"
            )
        nameless = chestxray14.patient_ids_of(table).isna()
        if nameless.any():
            names = subject(table["Image Index"][nameless])
            faults.append(f"{path}: {names} not named PATIENT_NUMBER.png; correct it")
        used.append(table["Image Index"][labelled & ~nameless])

    # images in more than one split
    names = pd.concat(used)
    again = names[names.duplicated()]
    if len(again):
        files = ", ".join(ORIGINAL_SPLIT.values())
        faults.append(f"{subject(again)} in two of {files} of {lists.data}; remove it from one")
    return faults


def rows_of_one_name(table: pd.DataFrame, path: Path) -> list[str]:
    again = table["Image Index"][table["Image Index"].duplicated()]
    if len(again) == 0:
        return []
    return [f"{path}: {subject(again)} in more than one row; remove all but one"]


def repeated_names(names: list[str], path: Path) -> list[str]:
    again = sorted(name for name, count in Counter(names).items() if count > 1)
    if not again:
        return []
    return [f"{path}: {subject(again)} named more than once; remove all but one"]


def unknown_class(name: str, path: Path) -> str:
    return f"{path}: {name!r} is not one of the findings {', '.join(PATHOLOGIES)}; correct it"


def faults_of_boxes(listed: pd.DataFrame, data: Path) -> list[str]:
    """The faults in the rows of the list of boxes, without opening the images.

    Args:
        listed: the table from `chestxray14.read_box_list`.
        data: folder of the list.
    """
    path = data / BOX_LIST
    unknown = ~listed["pathology"].isin(PATHOLOGIES)
    faults = [unknown_class(name, path) for name in listed["pathology"][unknown].unique()]
    for box in listed[~are_boxes(listed)].itertuples():
        numbers = ", ".join(f"{number:g}" for number in (box.x, box.y, box.w, box.h))
        faults.append(
            f"{path}: the box of {box.image_id}, {box.pathology}, is {numbers}; "
            "correct x, y, w, h or remove it"
        )
    boxes = chestxray14.well_formed_boxes(listed)
    for box in boxes[boxes.duplicated()].drop_duplicates().itertuples():
        faults.append(
            f"{path}: {box.image_id} has the same box of {box.pathology} twice; remove one"
        )
    return faults


def require_files(images: pd.DataFrame, radiographs: Radiographs, split: str = "test") -> None:
    """Raise a UserError that counts and names the missing ones of some images, if any.

    Args:
        images: of `radiographs`; there must be some.
        split: which they are, for the error.
    """
    missing = images["image_id"][images["path"].isna()]
    if len(images) == 0:
        raise UserError(f"{radiographs.name} has no images of the split {split}; add some")
    if len(missing):
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        where, _, cure = radiographs.if_missing.partition("; ")
        raise UserError(f"{len(missing)} of {len(images)} images {where}: {named}; {cure}")


def select_boxed(radiographs: Radiographs) -> pd.DataFrame:
    """The images that have boxes, in the order of the table.

    Raises:
        UserError: there are none, a file is missing, or a box reaches beyond its image.
    """
    images = radiographs.images
    boxed = images[images["image_id"].isin(radiographs.boxes["image_id"])]
    if len(boxed) == 0:
        raise UserError(
            f"{radiographs.boxes_from} has no boxes for the test images of {radiographs.name}"
        )
    require_files(boxed, radiographs)
    raise_first(boxes_beyond_images(boxed, radiographs.boxes, radiographs.boxes_from))
    return boxed


def boxes_beyond_images(images: pd.DataFrame, boxes: pd.DataFrame, boxes_from: str) -> list[str]:
    """The boxes that reach beyond their images; `images` must include all images with boxes.

    `boxes_from` is the file of the boxes, for the sentences.
    """
    paths = dict(zip(images["image_id"], images["path"], strict=True))
    faults = []
    for box in boxes.itertuples():
        width, height = width_height_of(paths[box.image_id])
        if box.x + box.w > width or box.y + box.h > height:
            faults.append(
                f"{boxes_from}: the box of {box.image_id}, {box.pathology}, reaches beyond "
                f"the image ({width} x {height}); w and h are width and height, all in pixels of "
                "the image files, so scale both or neither"
            )
    return faults


def files_of_one_name(data: Path) -> list[str]:
    """The image files that are in more than one folder."""
    counts = Counter(name for name, _ in chestxray14.find_files(data))
    again = sorted(name for name, count in counts.items() if count > 1)
    return [f"{name} is in more than one folder of {data}; keep one of them" for name in again]


def boxes_without_label(listed: pd.DataFrame, images: pd.DataFrame) -> list[str]:
    """The boxes of findings that are not among the labels of their image."""
    labels = images.set_index("image_id")
    known = listed[listed["image_id"].isin(labels.index)]
    return [
        f"{box.image_id} has a box of {box.pathology} but not that label; correct one of them"
        for box in known.itertuples()
        if labels.at[box.image_id, box.pathology] == 0
    ]
