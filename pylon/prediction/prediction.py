"""What a network finds in one radiograph, and the forms that this can take."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd

from pylon.drawing import Scale, overlay
from pylon.system.files import csv_file, write_atomically

COLUMNS = (
    "label", "score", "present", "point_row", "point_column", "box_x", "box_y", "box_w", "box_h",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a network finds in one radiograph. Coordinates are pixels of the image given.

    Attributes:
        findings: one dict per class, the highest score first:
            label: name of the class;
            score: probability of the finding, 0 to 1 (the maximum of its map, if maps are
                probabilities);
            present: whether the score reaches the checkpoint's threshold, None if it has none;
            point: (row, column) of the maximum of the map, enlarged to the network's input; None
                if the map is flat, the same everywhere;
            box: (x, y, w, h) of the connected region around it in which the map is at least
                `region_threshold`, by default half, of its maximum; None if the map is flat;
            outline: [(x, y), ..], the corners of that region (see pylon/scoring/regions.py); empty
                if the map is flat.
        maps: (C, h, w) float32 in [0, 1], in the order of `class_names`: probability per pixel of
            the map, or heatmaps on a scale of their own (see `are_probabilities`).
        class_names: the C classes.
        thresholds: probability from which each class is called present; None if there is none.
        are_probabilities: False for methods such as Grad-CAM, and for networks whose logits are
            means of their maps: then each map is scaled to [0, 1].
        image: (H, W) uint8, the radiograph as it was read; in predict.py, resized for drawing.
        affine: (2, 3) float64: (x, y) in pixels of the image = affine @ (column, row, 1) of a map,
            where whole numbers are the centres of pixels.
        lateral: whether a DICOM file says that it is a lateral view, of which networks trained on
            frontal ones know nothing.
        notes: what else is odd about the pixels, such as a single grey level.
    """

    findings: list[dict[str, Any]]
    maps: np.ndarray
    class_names: tuple[str, ...]
    thresholds: dict[str, float | None]
    are_probabilities: bool
    image: np.ndarray
    affine: np.ndarray
    lateral: bool = False
    notes: tuple[str, ...] = ()

    def finding(self, label: str) -> dict[str, Any]:
        """The finding of a class; a ValueError if there is no such class."""
        for finding in self.findings:
            if finding["label"] == label:
                return finding
        raise ValueError(f"label must be one of {', '.join(self.class_names)}, got {label!r}")

    def map(self, label: str, size: Literal["image", "map"] = "image") -> np.ndarray:
        """The map of a class, (H, W) float32 in [0, 1], as in `maps`.

        Args:
            label: name of the class.
            size: "image", enlarged to the image (bilinear); or "map", as the network gives it.
        """
        self.finding(label)
        if size not in ("image", "map"):
            raise ValueError(f"size must be image or map, got {size!r}")
        heatmap = self.maps[self.class_names.index(label)]
        if size == "map":
            return heatmap
        return cv2.resize(heatmap, self.image.shape[::-1], interpolation=cv2.INTER_LINEAR)

    def overlay(
        self,
        label: str,
        scale: Scale | None = None,
        threshold: float | None = None,
        alpha: float | None = None,
    ) -> np.ndarray:
        """Draw the map of a class on the radiograph: (H, W, 3) uint8, RGB.

        Args:
            label: name of the class.
            scale: "absolute", with a contour at the threshold, or "minmax" (see pylon/drawing.py);
                by default absolute where maps are probabilities.
            threshold: probability at which the contour is drawn; by default that of the class.
            alpha: opacity in [0, 1] where a map is highest (absolute), or everywhere (minmax); by
                default .75 and .5.
        """
        self.finding(label)
        if scale not in (None, "absolute", "minmax"):
            raise ValueError(f"scale must be absolute or minmax, got {scale!r}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        scale = scale or ("absolute" if self.are_probabilities else "minmax")
        if threshold is None and self.are_probabilities:
            threshold = self.thresholds.get(label)
        return overlay(self.image, self.map(label, "map"), scale, threshold, alpha)

    def to_frame(self) -> pd.DataFrame:
        """One row per class, as in predict.py's predictions.csv, the highest score first."""
        table = pd.DataFrame(map(row_of, self.findings), columns=COLUMNS)
        return table.astype(dict.fromkeys(COLUMNS[2:], "Int64"))

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Boxes and scores as pycocotools loads them (`loadRes`); a flat map has none.

        Args:
            image_id: of the image; classes are numbered from 1, in the order of `class_names`.
        """
        return coco_boxes(image_id, [self.finding(label) for label in self.class_names])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prediction to a file, whose kind is that of its name.

        Args:
            path: .csv, `to_frame`; .json, `to_coco`; .npz, maps, class_names and affine, as
                predict.py's --save-maps; .png or .jpg, the overlay of the first finding.

        Raises:
            ValueError: the name ends otherwise.
            UserError: the file cannot be written.
        """
        ending = os.path.splitext(path)[1].lower()
        if ending == ".csv":
            content = csv_file(self.to_frame(), index=False)
        elif ending == ".json":
            content = json.dumps(self.to_coco()).encode()
        elif ending == ".npz":
            content = maps_file(self.maps, self.class_names, self.affine)
        elif ending in (".png", ".jpg"):
            picture = self.overlay(self.findings[0]["label"])
            content = cv2.imencode(ending, picture[..., ::-1])[1].tobytes()
        else:
            raise ValueError(f"path must end in .csv, .json, .npz, .png or .jpg, got {path}")
        write_atomically(Path(path), content)

    def __repr__(self) -> str:
        present = [finding for finding in self.findings if finding["present"]]
        said = "present" if present else "highest"
        shown = [f"{each['label']} {each['score']:.3f}" for each in present or self.findings[:1]]
        more = f", .. ({len(shown)})" if len(shown) > 3 else ""
        height, width = self.image.shape
        return f"<Prediction of {height} x {width} pixels, {said}: {', '.join(shown[:3])}{more}>"


def row_of(finding: dict[str, Any]) -> list[Any]:
    """The row of a finding, in the order of `COLUMNS`; None for what it lacks."""
    present = finding["present"]
    called = None if present is None else int(present)
    point = finding["point"] or (None, None)
    box = finding["box"] or (None,) * 4
    return [finding["label"], finding["score"], called, *point, *box]


def coco_boxes(image_id: int, findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The boxes of an image and their scores in COCO's format.

    Args:
        findings: of all classes, in their order.
    """
    return [
        {"image_id": image_id, "category_id": c, "bbox": found["box"], "score": found["score"]}
        for c, found in enumerate(findings, 1)
        if found["box"] is not None
    ]


def maps_file(maps: np.ndarray, class_names: Sequence[str], affine: np.ndarray) -> bytes:
    """An .npz file of maps (C, h, w) float32, class_names and affine (see `Prediction`)."""
    buffer = io.BytesIO()
    np.savez(buffer, maps=maps, class_names=np.array(class_names, str), affine=affine)
    return buffer.getvalue()
