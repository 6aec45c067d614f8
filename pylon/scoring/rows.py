"""Rows that a network has written: one an image, or one a box. All scores are made of them alone.

csv/NAME/SEED_images.csv           a row a test image: image_id, patient_id, label_CLASS ..,
                                   logit_CLASS ..
csv/NAME/SEED_boxes.csv            a row a box: image_id, patient_id, pathology, probability, row,
                                   column, hit, bbox_x, bbox_y, bbox_w, bbox_h, image_height,
                                   image_width, threshold, called; pixels of the image file
csv/NAME/SEED_images.json, ..      what they are of: `Rows.about`
csv/NAME/SEED_maps.npz             if that was asked for, the heatmaps of the boxes

With a METHOD other than map: SEED_boxes_METHOD.csv and so on. Numbers read back to the last bit.
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
        table: a row an image or a box; columns as above.
        about: class_names; network, such as "pylon" or "unet"; precision; of boxes method, whose
            heatmaps; not_official, why the data is not NIH's test set, or null if it is;
            list_sha256 of the lists; weights_sha256; card (training options and split) and config
            of the network.
    """

    table: pd.DataFrame
    about: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        return self.about["class_names"]

    def is_of_data_of(self, other: "Rows") -> bool:
        """Whether all is equal that the data gives, and no network."""
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
    """Rows of images.

    Args:
        images: table with image_id and patient_id.
        labels, logits: (N, C) float32, in the order of the table.
        about: as in `Rows`.
    """
    table = images[["image_id", "patient_id"]].reset_index(drop=True)
    names = about["class_names"]
    of_labels = pd.DataFrame(labels.astype(np.int64), columns=[f"label_{name}" for name in names])
    # float64 holds a float32 exactly, and is what readers of the file make of it
    of_logits = pd.DataFrame(logits.astype(np.float64), columns=[f"logit_{name}" for name in names])
    return Rows(pd.concat([table, of_labels, of_logits], axis=1), about)


def write_rows(
    folder: Path, seed: str, what: str, rows: Rows, maps: np.ndarray | None = None
) -> None:
    """Write the rows of a seed, and what they are of, together.

    Args:
        folder: csv/NAME.
        seed: what the tables call the checkpoint.
        what: "images", "boxes" or "boxes_METHOD".
        rows: of that seed.
        maps: (N, h, w) float32, the heatmaps of boxes; without them, those of earlier rows go.
    """
    # what the rows are of names them, and itself
    content = csv_file(rows.table, index=False)
    about = {**rows.about, "rows_sha256": hashlib.sha256(content).hexdigest()}
    about["sha256"] = hash_of_json(about)
    path = folder / f"{seed}_{what}.csv"
    files = {path: content, path.with_suffix(".json"): json.dumps(about, indent=2).encode()}

    # the maps name the rows that they are of
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
    """The rows of each seed in a folder, or of those asked for, by what the tables call them.

    Args:
        folder: csv/NAME.
        what: "images", "boxes" or "boxes_METHOD".
        labels: seeds, or names of checkpoints; all that are there if there are none.

    Raises:
        UserError: there are no rows, some asked for are not there, or a file is damaged.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; --from takes the folder of the rows, as csv/pylon")
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
    """Read rows, checked to be what was written.

    Raises:
        UserError: the file or the json beside it is missing, damaged or changed.
    """
    about = read_about(path.with_suffix(".json"))
    content = path.read_bytes()
    if about.pop("rows_sha256") != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"{path} is not what was written: {path.stem}.json is of other rows; "
            "score the network again"
        )
    return Rows(parse_rows(content), about)


def read_about(path: Path) -> dict[str, Any]:
    """What rows are of, checked by the hash that was written with it."""
    try:
        about = json.loads(path.read_text())
        if about.pop("sha256") == hash_of_json(about):
            return about
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # damage may lead to any of these
    raise UserError(f"{path} is damaged: it is not what was written; score the network again")


def parse_rows(content: bytes) -> pd.DataFrame:
    """A table as it was before it was written: pandas' own parser may miss the last bit."""
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
