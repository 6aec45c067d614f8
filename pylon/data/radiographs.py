"""The data contract: two plain tables and the class names, whatever their source.

images, one row per image:
    image_id          patient_id  split  path                              Atelectasis  Mass  ...
    00000001_000.png  1           train  data/images/00000001_000.png      0            1
boxes, one row per box, in pixels of the image file:
    image_id          pathology    x    y    w   h
    00013118_008.png  Atelectasis  225  547  86  79

To add a data set, write one file that returns `Radiographs`, and a line in sources.py.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

BOX_COLUMNS = ("image_id", "pathology", "x", "y", "w", "h")
SPLITS = ("train", "val", "test")
LARGEST_BOX = 100_000  # pixels; larger numbers cannot be pixels of an image


@dataclass(frozen=True)
class Radiographs:
    """A data set; a ValueError is raised if it breaks the contract.

    Attributes:
        images: image_id str, unique; patient_id int64 or str; split "train", "val" or "test"; path
            str, NaN if there is no file; one column per class: uint8, 0 or 1, or, if some labels
            are unknown, float32 with NaN for these. Other columns are allowed and ignored.
        boxes: image_id str; pathology str, a class; x, y, w, h int64, pixels of the image file; any
            number per image and class. Empty unless boxes were requested.
        class_names: the classes, in the order of the network's outputs.
        list_sha256: SHA-256 of each list that the tables come from, by its name.
        name: of the data set, in messages.
        if_missing: completes "3 images ..", in messages: where they are missing, and what to do.
        boxes_from: file of the boxes, in messages.
        picked: names, without extension, of images to draw on pages of their own.
        notes: sentences for the user about how the data was read.
        drawn_from: SHA-256 of the list whose images were split at random, if they were: the split
            is then right only for networks that were trained on this list.
        synthetic: what the images are if they are not radiographs, a sentence; else None.
    """

    images: pd.DataFrame
    boxes: pd.DataFrame
    class_names: tuple[str, ...]
    list_sha256: dict[str, str] = field(default_factory=dict)
    name: str = "the data set"
    if_missing: str = "do not exist; copy them to their paths"
    boxes_from: str = "the data set"
    picked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    drawn_from: str | None = None
    synthetic: str | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError if a reader breaks the contract, which would give wrong results."""
        # the columns
        images = self.images
        needed = ["image_id", "patient_id", "split", "path", *self.class_names]
        lacking = [name for name in needed if name not in images]
        lacking += [name for name in BOX_COLUMNS if name not in self.boxes]
        if lacking:
            raise ValueError(f"images and boxes must have all columns; missing: {lacking}")

        # the values
        if images["image_id"].duplicated().any():
            raise ValueError("image_id must be unique in images")
        patient_ids = images["patient_id"]
        is_text = patient_ids.map(type).eq(str).all()
        if not pd.api.types.is_integer_dtype(patient_ids) and not is_text:
            raise ValueError(f"patient_id must be integers or text, got {patient_ids.dtype}")
        splits = sorted(set(images["split"]) - set(SPLITS))
        if splits:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {splits}")
        unlike = [name for name in self.class_names if not images[name].isin((0, 1, np.nan)).all()]
        if unlike:
            raise ValueError(
                f"labels must be 0, 1 or NaN, but those of {', '.join(unlike)} are not"
            )
        unknown = sorted(set(self.boxes["pathology"]) - set(self.class_names))
        if unknown:
            raise ValueError(f"pathology of boxes must be a class, got {unknown}")

    def of_split(self, split: str) -> pd.DataFrame:
        """The images of a split."""
        return self.images[self.images["split"] == split]


def no_boxes() -> pd.DataFrame:
    """An empty table of boxes."""
    return pd.DataFrame({name: [] for name in BOX_COLUMNS})


def are_boxes(listed: pd.DataFrame) -> pd.Series:
    """Whether the numbers of a row are a box: x, y >= 0, w, h >= 1, all below LARGEST_BOX."""
    numbers = listed[["x", "y", "w", "h"]]
    return ((numbers >= [0, 0, 1, 1]) & (numbers < LARGEST_BOX)).all(axis=1)  # NaN fails both


def subject(names: Iterable[str]) -> str:
    """`a is`, or `a and 2 more are`: the subject of an error sentence."""
    first, *others = names
    return f"{first} and {len(others)} more are" if others else f"{first} is"


def have_unknown(images: pd.DataFrame, class_names: tuple[str, ...]) -> bool:
    """Whether some labels of a table of images are unknown."""
    return bool(images[list(class_names)].isna().any(axis=None))


def shared_patients(images: pd.DataFrame, split: str) -> tuple[int, int]:
    """How many patients of a split are also in training, and how many it has."""
    train = set(images["patient_id"][images["split"] == "train"])
    others = set(images["patient_id"][images["split"] == split])
    return len(train & others), len(others)


def split_hash(images: pd.DataFrame, class_names: tuple[str, ...]) -> str:
    """SHA-256 of image_id, patient_id, split and labels, sorted; paths make no difference."""
    columns = ["image_id", "patient_id", "split", *class_names]
    return hash_of_table(images[columns].sort_values("image_id"))


def hash_of_table(table: pd.DataFrame) -> str:
    """SHA-256 of a table as csv."""
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def hash_of_list(content: bytes) -> str:
    """SHA-256 of a list; line endings and a byte order mark are ignored."""
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    return hashlib.sha256(content.rstrip(b"\n")).hexdigest()
