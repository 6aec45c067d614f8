"""Whether the images and boxes of a data set can be used: files that exist, boxes within them."""

from collections import Counter
from pathlib import Path

import pandas as pd

from pylon.data.chestxray14 import find_files
from pylon.data.images import width_height_of
from pylon.data.radiographs import Radiographs
from pylon.system.errors import UserError


def raise_first(faults: list[str]) -> None:
    """Raise the first fault, if any, as a UserError."""
    if faults:
        raise UserError(faults[0])


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
    counts = Counter(name for name, _ in find_files(data))
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
