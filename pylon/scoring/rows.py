"""Rows: the predictions of a network, one per image or box. All scores are computed from them.

csv/NAME/SEED_images.csv           one row per test image: image_id, patient_id, label_CLASS ..,
                                   logit_CLASS ..
csv/NAME/SEED_boxes.csv            one row per box: image_id, patient_id, pathology, probability,
                                   row, column, hit, bbox_x, bbox_y, bbox_w, bbox_h, image_height,
                                   image_width, threshold, called; pixels of the image file
csv/NAME/SEED_images.json, ..      where the rows come from: `Rows.about`
csv/NAME/SEED_maps.npz             the heatmaps of the boxes, if requested

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
from pylon.system.files import csv_file, hash_of_json, write_together

BOX_ROW_COLUMNS = (
    "image_id", "patient_id", "pathology", "probability", "row", "column", "hit", "bbox_x",
    "bbox_y", "bbox_w", "bbox_h", "image_height", "image_width", "threshold", "called",
)  # fmt: skip
SIZES = ("bbox_x", "bbox_y", "bbox_w", "bbox_h", "image_height", "image_width")
TEXTS = ("image_id", "pathology")
FLOATS = ("probability", "hit", "threshold", "called")  # and the logits; the rest is int64


@dataclass(frozen=True)
class Rows:
    """The rows of one network.

    Attributes:
        table: one row per image or box; columns as above.
        about: class_names; network, such as "pylon" or "unet"; precision; for boxes, method, the
            source of the heatmaps; not_official, why the data is not NIH's test set, or null if it
            is; list_sha256 of the lists; weights_sha256; card (training options and split, from
            training.json) and config of the network.
    """

    table: pd.DataFrame
    about: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        return self.about["class_names"]

    def is_of_data_of(self, other: "Rows") -> bool:
        """Whether everything that comes from the data, not from a network, is equal."""
        labels = [f"label_{name}" for name in self.class_names]
        names = ["image_id", "patient_id", "pathology", *labels, *SIZES]
        given = [name for name in names if name in self.table]
        return self.table[given].equals(other.table[given])

    def labels(self) -> np.ndarray:
        """(N, C) float32, 0 or 1."""
        return self.table[[f"label_{name}" for name in self.class_names]].to_numpy(np.float32)

    def logits(self) -> np.ndarray:
        """(N, C) float32."""
        return self.table[[f"logit_{name}" for name in self.class_names]].to_numpy(np.float32)


def image_rows(
    images: pd.DataFrame, labels: np.ndarray, logits: np.ndarray, about: dict[str, Any]
) -> Rows:
    """Build the rows of images.

    Args:
        images: table with image_id and patient_id.
        labels, logits: (N, C) float32, in the order of the table.
        about: as in `Rows`.
    """
    table = images[["image_id", "patient_id"]].reset_index(drop=True)
    names = about["class_names"]
    of_labels = pd.DataFrame(labels.astype(np.int64), columns=[f"label_{name}" for name in names])
    # float64 holds a float32 exactly, and is the type in which the file is read
    of_logits = pd.DataFrame(logits.astype(np.float64), columns=[f"logit_{name}" for name in names])
    return Rows(pd.concat([table, of_labels, of_logits], axis=1), about)


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
        names = {key: rows.table[key].to_numpy(dtype=str) for key in TEXTS}
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
        else:
            columns[name] = column.astype(np.int64)
    return pd.DataFrame(columns)
