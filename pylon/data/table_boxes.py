"""Boxes of a table's images: a csv file, or a COCO file.

boxes.csv    path,class,x,y,w,h
             images/1001.png,Effusion,225,547,86,79
coco.json    {"images": [{"id": 1, "file_name": "images/1001.png"}],
              "categories": [{"id": 1, "name": "Effusion"}],
              "annotations": [{"image_id": 1, "category_id": 1, "bbox": [225, 547, 86, 79]}]}

x, y, w, h are in pixels of the image file, from its top left corner.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pylon.data.checks import raise_first
from pylon.data.csv_cells import columns_of, hint_on, plain, read_cells
from pylon.data.images import width_height_of
from pylon.data.radiographs import BOX_COLUMNS, LARGEST_BOX, Radiographs, are_boxes, hash_of_list
from pylon.data.table import KEYS, file_of, identity_of
from pylon.system.errors import UserError

IN_CSV = ("path", "class", "x", "y", "w", "h")


def add_boxes(radiographs: Radiographs, path: Path, table: Path) -> Radiographs:
    """Add the boxes of the test images to a table's `Radiographs`.

    Numbers are truncated to whole pixels, as NIH's are. Images are found by their path as in the
    table or, if it is unique, by the end of it.

    Args:
        radiographs: from `read_table`.
        path: file of the boxes; a COCO file if it ends in .json, else csv.
        table: file of the table.

    Raises:
        UserError: a file cannot be read, or its contents are faulty (the first fault).
    """
    listed, faults = read_listed(radiographs, path, table)
    raise_first(faults)

    # the boxes that are used
    tested = radiographs.of_split("test")
    listed = listed[listed["image_id"].isin(tested["image_id"])]
    require_sizes(listed, tested, path)
    is_class = listed["pathology"].isin(radiographs.class_names)
    boxes = listed[is_class][list(BOX_COLUMNS)].astype(dict.fromkeys("xywh", np.int64))
    others = sorted(set(listed["pathology"][~is_class]))
    notes = radiographs.notes
    name = path.name if path.name != table.name else f"boxes {path.name}"
    if others:
        notes += (f"{path}: boxes of {', '.join(others)} are left out, which are not classes here",)
    return replace(
        radiographs,
        boxes=boxes.reset_index(drop=True),
        list_sha256={**radiographs.list_sha256, name: hash_of_list(path.read_bytes())},
        boxes_from=str(path),
        notes=notes,
    )


def read_listed(
    radiographs: Radiographs, path: Path, table: Path
) -> tuple[pd.DataFrame, list[str]]:
    """Read the boxes of all images, with their image_id, and list what is wrong with them."""
    is_coco = path.suffix.lower() == ".json"
    listed = boxes_of_coco(read_coco(path), path) if is_coco else boxes_of_csv(path)
    columns = [name for name in columns_of(table) if name not in KEYS]
    listed["image_id"], faults = match(listed["name"], radiographs.images["image_id"], table, path)
    return listed, faults + faults_of_boxes(listed, columns, path)


def boxes_of_csv(path: Path) -> pd.DataFrame:
    """Boxes as written: name of the image, pathology, x, y, w, h float64, NaN if not a number.

    `given` has the four numbers as text, width and height are NaN.
    """
    cells = read_cells(path, "path")
    lacking = [name for name in IN_CSV if name not in cells]
    if lacking:
        raise UserError(
            f"{path} has no column {lacking[0]!r}; boxes need the columns {', '.join(IN_CSV)} "
            "(w = right - left, h = bottom - top)"
        )
    boxes = pd.DataFrame({"name": cells["path"], "pathology": cells["class"]})
    boxes["given"] = cells[list("xywh")].agg(", ".join, axis=1)
    for key in "xywh":
        boxes[key] = pd.to_numeric(cells[key], errors="coerce").astype(float)
    return boxes.assign(width=np.nan, height=np.nan).reset_index(drop=True)


def read_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a COCO file: images, annotations, categories, lists of objects."""
    try:
        coco = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({str(error)[:100]}); export it again") from (
            error
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its name") from error
    parts = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ()}
    for part, keys in parts.items():
        objects = coco.get(part) if isinstance(coco, dict) else None
        if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
            raise UserError(
                f"{path} is not a COCO file: it has no list {part!r}; it needs images, "
                "annotations and categories"
            )
        lacking = [key for key in keys if not all(key in each for each in objects)]
        if lacking:
            raise UserError(f"{path}: each of the {part} must have {lacking[0]!r}; add it")
    return coco


def boxes_of_coco(coco: dict[str, list[dict[str, Any]]], path: Path) -> pd.DataFrame:
    """Boxes of a COCO file, as `boxes_of_csv`; width and height as the file gives them, or NaN.

    Raises:
        UserError: the file is not consistent, or has no boxes.
    """
    images = by_id(coco["images"], "images", path)
    categories = by_id(coco["categories"], "categories", path)
    names = [str(image["file_name"]) for image in coco["images"]]
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        raise UserError(f"{path} has the image {again[0]} twice; give each image one entry")
    rows = []
    for number, annotation in enumerate(coco["annotations"], start=1):
        if "keypoints" in annotation:
            raise UserError(
                f"{path} is a COCO file of keypoints; boxes are needed, annotations with 'bbox'"
            )
        image = images.get(key_of(annotation.get("image_id")))
        category = categories.get(key_of(annotation.get("category_id")))
        bbox = annotation.get("bbox")
        if image is None or category is None:
            kind = "image_id" if image is None else "category_id"
            raise UserError(
                f"{path}: annotation {number} has the {kind} {annotation.get(kind)!r}, which is "
                "not in the file; correct it"
            )
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
            raise UserError(f"{path}: annotation {number} has no bbox of four numbers; correct it")
        size = [image.get(side) for side in ("width", "height")]
        size = [float(side) if is_number(side) else np.nan for side in size]
        given = ", ".join(f"{number:g}" for number in bbox)
        names_of = (str(image["file_name"]), plain(str(category["name"])), given)
        rows.append([*names_of, *map(float, bbox), *size])
    columns = ["name", "pathology", "given", "x", "y", "w", "h", "width", "height"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:], float))


def by_id(objects: list[dict[str, Any]], part: str, path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for each in objects:
        key = key_of(each["id"])
        if key in found:
            raise UserError(f"{path} has two {part} of the id {each['id']!r}; correct one")
        found[key] = each
    return found


def key_of(number: Any) -> str:
    """An id as JSON, so that 1 and "1" differ and any value can be looked up."""
    return json.dumps(number, sort_keys=True)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def match(
    names: Iterable[str], image_ids: Sequence[str], table: Path, path: Path
) -> tuple[list[str], list[str]]:
    """Find the image of each name, "" if there is none, and the faults."""
    by_file = {}
    by_end = {}  # last part of the path -> images and their files
    for image_id in image_ids:
        file = file_of(image_id, table)
        by_file[identity_of(file)] = image_id
        by_end.setdefault(os.path.basename(file), []).append((image_id, os.path.abspath(file)))
    found = {}
    faults = []
    for name in dict.fromkeys(names):
        file = identity_of(file_of(name, table))
        fitting = [by_file[file]] if file in by_file else []
        if not fitting:
            end = os.sep + os.path.normpath(name)
            of_name = by_end.get(os.path.basename(end), [])
            fitting = [image_id for image_id, file in of_name if file.endswith(end)]
        found[name] = fitting[0] if len(fitting) == 1 else ""
        if len(fitting) != 1:
            what = f"{len(fitting)} images" if fitting else "none"
            faults.append(
                f"{path}: the image {name!r} fits {what} of {table}; name it as in the table"
            )
    return [found[name] for name in names], faults


def faults_of_boxes(listed: pd.DataFrame, columns: Sequence[str], path: Path) -> list[str]:
    """What is wrong with boxes, without opening the images: error sentences."""
    faults = []
    for name in listed["pathology"][~listed["pathology"].isin(columns)].unique():
        faults.append(f"{path}: {name!r} is not a class of the table; {hint_on(name, columns)}")
    fit = are_boxes(listed)
    for box in listed[~fit].itertuples():
        faults.append(
            f"{path}: the box of {box.name}, {box.pathology}, is {box.given}; x and y must be at "
            f"least 0, w and h at least 1, all below {LARGEST_BOX:,} pixels"
        )
    used = listed.loc[fit & (listed["image_id"] != ""), ["image_id", "pathology", *"xywh"]]
    for box in listed.loc[used.index[used.duplicated()]].itertuples():
        faults.append(f"{path}: {box.name} has the same box of {box.pathology} twice; remove one")
    return faults


def require_sizes(listed: pd.DataFrame, images: pd.DataFrame, path: Path) -> None:
    """Raise a UserError if a COCO file gives an image another size than its file has."""
    files = dict(zip(images["image_id"], images["path"], strict=True))
    given = listed[listed["width"].notna() & listed["height"].notna()]
    for box in given.drop_duplicates("image_id").itertuples():
        if isinstance(files[box.image_id], str):
            width, height = width_height_of(files[box.image_id])
            if (box.width, box.height) != (width, height):
                raise UserError(
                    f"{path} says that {box.name} has {box.width:g} x {box.height:g} pixels, but "
                    f"the file has {width} x {height}; boxes must be in pixels of the image files"
                )
