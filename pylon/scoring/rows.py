"""Rows: the predictions of a network, one per image, or per image and class that has boxes.

All scores are computed from them.

csv/NAME/SEED_images.csv           one row per test image: image_id, patient_id, label_CLASS ..,
                                   logit_CLASS ..; an unknown label is blank
csv/NAME/SEED_boxes.csv            one row per image and class with boxes: image_id, patient_id,
                                   pathology, probability, row, column, hit, bbox_x, bbox_y, bbox_w,
                                   bbox_h, image_height, image_width, threshold, called; pixels of
                                   the image file. A flat heatmap has no row and column: they are
                                   blank. If a class has several boxes in one image:
                                   more_boxes, those after the first, as "x y w h; x y w h"
csv/NAME/SEED_images.json, ..      where the rows come from: `Rows.about`
csv/NAME/SEED_maps.npz             the heatmaps of the boxes, unless they are not wanted

With a METHOD other than map: SEED_boxes_METHOD.csv and so on. Numbers are read back exactly.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pylon.system.errors import UserError
from pylon.system.files import csv_file, hash_of_json, whole_numbers, write_together

BOX_ROW_COLUMNS = (
    "image_id", "patient_id", "pathology", "probability", "row", "column", "hit", "bbox_x",
    "bbox_y", "bbox_w", "bbox_h", "image_height", "image_width", "threshold", "called",
    "more_boxes",
)  # fmt: skip
SIZES = ("bbox_x", "bbox_y", "bbox_w", "bbox_h", "image_height", "image_width")
BBOX = list(SIZES[:4])
TEXTS = ("image_id", "pathology", "more_boxes")
PLACES = ("row", "column")
# and the logits; labels and places as `as_integers` gives them, patient ids as `whole_numbers`, the
# rest int64
FLOATS = ("probability", "hit", "threshold", "called")


@dataclass(frozen=True)
class Rows:
    """The rows of one network.

    Attributes:
        table: one row per image, or per image and class with boxes; columns as above. patient_id is
            int64 or str; labels are int64, or Int64 where some are unknown.
        about: class_names; network, such as "pylon" or "unet"; precision; runtime (none in rows of
            earlier versions: torch); for boxes, method, the source of the heatmaps; not_official,
            why the data is not NIH's test set, or null if it is; synthetic, what the images are if
            they are not radiographs; list_sha256 of the lists; weights_sha256; calibration, Platt
            scaling by class; thresholds, probabilities by class (none in rows of earlier versions);
            card (training options and split, from training.json) and config of
            the network.
    """

    table: pd.DataFrame
    about: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        return self.about["class_names"]

    def is_of_data_of(self, other: "Rows") -> bool:
        """Whether everything that comes from the data, not from a network, is equal."""
        labels = [f"label_{name}" for name in self.class_names]
        names = ["image_id", "patient_id", "pathology", *labels, *SIZES, "more_boxes"]
        given = [name for name in names if name in self.table]
        there = [name for name in names if name in other.table]
        return given == there and self.table[given].equals(other.table[given])

    def labels(self) -> np.ndarray:
        """(N, C) float32, 0 or 1, NaN if unknown."""
        labels = [self.table[f"label_{name}"] for name in self.class_names]
        return np.column_stack(
            [of_class.to_numpy(np.float32, na_value=np.nan) for of_class in labels]
        )

    def logits(self) -> np.ndarray:
        """(N, C) float32."""
        return self.table[[f"logit_{name}" for name in self.class_names]].to_numpy(np.float32)

    def bboxes(self) -> np.ndarray:
        """The boxes of each row, (N, K, 4) int64, as `bboxes_of`."""
        return bboxes_of(self.table)


def image_rows(
    images: pd.DataFrame, labels: np.ndarray, logits: np.ndarray, about: dict[str, Any]
) -> Rows:
    """Build the rows of images.

    Args:
        images: table with image_id and patient_id.
        labels, logits: (N, C) float32, in the order of the table; unknown labels are NaN.
        about: as in `Rows`.
    """
    names = about["class_names"]
    table = images[["image_id", "patient_id"]].reset_index(drop=True)
    table["patient_id"] = as_read(table["patient_id"])
    of_labels = pd.DataFrame(labels, columns=[f"label_{name}" for name in names])
    of_labels = of_labels.apply(as_integers)
    # float64 holds a float32 exactly, and is the type in which the file is read
    of_logits = pd.DataFrame(logits.astype(np.float64), columns=[f"logit_{name}" for name in names])
    return Rows(pd.concat([table, of_labels, of_logits], axis=1), about)


def as_read(patient_ids: pd.Series) -> pd.Series:
    """Patient ids in the type in which they are read back: int64 if all are, else str."""
    return pd.Series(whole_numbers(patient_ids.astype(str).to_numpy(object)), patient_ids.index)


def as_integers(values: pd.Series) -> pd.Series:
    """Whole numbers as int64, or as Int64 if some are unknown."""
    return values.astype("Int64" if values.isna().any() else np.int64)


def merge_boxes(boxes: pd.DataFrame) -> pd.DataFrame:
    """One row per image and class that has boxes, in order of their first boxes.

    Args:
        boxes: a table of boxes: image_id, pathology, x, y, w, h; other columns are kept.

    Returns:
        The first boxes, with bbox_x, bbox_y, bbox_w, bbox_h in place of x, y, w, h, and, if a row
        has several boxes, the others in `more_boxes`.
    """
    keys = ["image_id", "pathology"]
    is_first = ~boxes.duplicated(keys)
    rows = boxes[is_first].reset_index(drop=True)
    rows = rows.rename(columns={key: f"bbox_{key}" for key in "xywh"})
    if not is_first.all():
        others = boxes[~is_first]
        texts = others[list("xywh")].astype(str).agg(" ".join, axis=1)
        more = texts.groupby([others[key] for key in keys]).agg("; ".join).to_dict()
        pairs = zip(rows["image_id"], rows["pathology"], strict=True)
        rows["more_boxes"] = [more.get(pair, "") for pair in pairs]
    return rows


def bboxes_of(rows: pd.DataFrame) -> np.ndarray:
    """The boxes of each row, (N, K, 4) int64 x, y, w, h; missing ones have width and height 0.

    Args:
        rows: from `merge_boxes`.
    """
    first = rows[BBOX].to_numpy(np.int64)[:, None]  # (N, 1, 4)
    if "more_boxes" not in rows:
        return first
    others = [[box.split() for box in text.split("; ") if box] for text in rows["more_boxes"]]
    most = max(map(len, others), default=0)
    more = np.zeros((len(rows), most, 4), np.int64)
    for k, of_row in enumerate(others):
        if of_row:
            more[k, : len(of_row)] = np.array(of_row, np.int64)
    return np.concatenate([first, more], axis=1)


def write_rows(
    folder: Path, seed: str, what: str, rows: Rows, maps: np.ndarray | None = None
) -> None:
    """Write the rows of a seed together with their json.

    Args:
        folder: csv/NAME.
        seed: name of the checkpoint in the tables.
        what: "images", "boxes" or "boxes_METHOD".
        rows: of that seed.
        maps: (N, h, w) float32 heatmaps of the boxes; if None, those of earlier rows are deleted.
    """
    # the json holds the hash of the rows and its own hash
    content = csv_file(rows.table, index=False)
    about = {**rows.about, "rows_sha256": hashlib.sha256(content).hexdigest()}
    about["sha256"] = hash_of_json(about)
    path = folder / f"{seed}_{what}.csv"
    files = {path: content, path.with_suffix(".json"): json.dumps(about, indent=2).encode()}

    # the maps hold the hash of their rows
    maps_path = folder / f"{seed}_{what.replace('boxes', 'maps')}.npz"
    if maps is not None:
        buffer = io.BytesIO()
        names = {key: rows.table[key].to_numpy(dtype=str) for key in TEXTS[:2]}
        np.savez(buffer, maps=maps, rows_sha256=about["rows_sha256"], **names)
        files[maps_path] = buffer.getvalue()
    write_together(files)
    if maps is None:
        maps_path.unlink(missing_ok=True)


def read_all_rows(folder: Path, what: str, labels: Sequence[str] = ()) -> dict[str, Rows]:
    """Read the rows of each seed in a folder, or of the given seeds, by their name in the tables.

    Args:
        folder: csv/NAME.
        what: "images", "boxes" or "boxes_METHOD".
        labels: seeds, or names of checkpoints; all in the folder if empty.

    Raises:
        UserError: there are no rows, requested ones are missing, or a file is damaged.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; --from takes a folder of rows, such as csv/pylon")
    ending = f"_{what}.json"
    found = [path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")]
    found.sort(key=lambda label: (label.zfill(10), label))  # seeds as numbers
    if not found:
        raise UserError(
            f"{folder} has no rows (SEED_{what}.csv); score that experiment first, without --from"
        )
    lacking = [label for label in labels if label not in found]
    if lacking:
        raise UserError(
            f"{folder} has no rows of seed {' '.join(lacking)}; it has {', '.join(found)} "
            f"(looked for {lacking[0]}{ending})"
        )
    return {label: read_rows(folder / f"{label}_{what}.csv") for label in labels or found}


def read_rows(path: Path) -> Rows:
    """Read rows, verified by the hash in their json.

    Raises:
        UserError: the csv or json file is missing, damaged or changed.
    """
    about = read_about(path.with_suffix(".json"))
    content = path.read_bytes()
    if about.pop("rows_sha256") != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"{path} has changed: its hash is not the one in {path.stem}.json; "
            "score the network again"
        )
    return Rows(parse_rows(content), about)


def read_maps(folder: Path, seed: str, what: str, count: int) -> np.ndarray | None:
    """Read the heatmaps of rows, (N, h, w) float32; None if they were not saved.

    Args:
        folder: csv/NAME.
        seed: name of the checkpoint in the tables.
        what: "boxes" or "boxes_METHOD".
        count: number of rows.

    Raises:
        UserError: they are damaged, or of other rows.
    """
    path = folder / f"{seed}_{what.replace('boxes', 'maps')}.npz"
    if not path.exists():
        return None
    rows_path = folder / f"{seed}_{what}.csv"
    try:
        with np.load(path) as file:
            maps = file["maps"]
            of_rows = str(file["rows_sha256"])
        are_maps = maps.dtype == np.float32 and maps.ndim == 3 and len(maps) == count
        if not are_maps or maps.size == 0 or not np.isfinite(maps).all() or maps.min() < 0:
            raise ValueError("these are not the maps of the rows")
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path} is damaged; score the network again") from error
    if of_rows != hashlib.sha256(rows_path.read_bytes()).hexdigest():
        raise UserError(f"{path} belongs to other rows than {rows_path.name}; score again")
    return maps


def read_about(path: Path) -> dict[str, Any]:
    """Read the json of rows, verified by its own hash."""
    try:
        about = json.loads(path.read_text())
        if about.pop("sha256") == hash_of_json(about):
            return about
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # a damaged file can raise any of these
    raise UserError(f"{path} is damaged: its hash does not match; score the network again")


def parse_rows(content: bytes) -> pd.DataFrame:
    """Parse a table exactly as it was written; pandas' own parser may be off by the last bit."""
    cells = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    columns = {}
    for name in cells:
        column = cells[name].to_numpy(dtype=object)
        if name in FLOATS or name.startswith("logit_"):
            columns[name] = np.where(column == "", "nan", column).astype(np.float64)
        elif name in TEXTS:
            columns[name] = column
        elif name == "patient_id":
            columns[name] = whole_numbers(column)
        elif name in PLACES or name.startswith("label_"):
            known = np.where(column == "", None, column)
            columns[name] = as_integers(pd.Series(known, dtype=object))
        else:
            columns[name] = column.astype(np.int64)
    return pd.DataFrame(columns)
