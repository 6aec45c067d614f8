"""NIH's layout written as a table of one's own, for tests."""

import json
import os
from pathlib import Path

import pandas as pd

from pylon.data.sources import read_chestxray14


def write_table(data: Path, folder: Path) -> pd.DataFrame:
    """Write my.csv, boxes.csv and coco.json for a folder in NIH's layout; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    radiographs = read_chestxray14(data, with_boxes=True)
    names = list(radiographs.class_names)
    images = radiographs.images

    # the table, with relative paths
    table = images[["patient_id", "split", *names]].copy()
    table.insert(0, "path", [os.path.relpath(path, folder) for path in images["path"]])
    table.to_csv(folder / "my.csv", index=False)

    # its boxes, in two forms
    path_of = dict(zip(images["image_id"], table["path"], strict=True))
    boxes = radiographs.boxes.rename(columns={"pathology": "class"})
    boxes["path"] = boxes.pop("image_id").map(path_of)
    boxes[["path", "class", "x", "y", "w", "h"]].to_csv(folder / "boxes.csv", index=False)
    write_coco(folder / "coco.json", boxes, list(images["image_id"]), names)
    return table


def write_coco(path: Path, boxes: pd.DataFrame, files: list[str], names: list[str]) -> None:
    """Write boxes (path, class, x, y, w, h) as a COCO file; `files` are the names of images."""
    image_of = {os.path.basename(file): k for k, file in enumerate(files)}
    coco = {
        "images": [{"id": k, "file_name": file} for k, file in enumerate(files)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": k,
                "image_id": image_of[os.path.basename(box["path"])],
                "category_id": names.index(box["class"]),
                "bbox": [box["x"], box["y"], box["w"], box["h"]],
            }
            for k, box in enumerate(boxes.to_dict("records"))
        ],
    }
    path.write_text(json.dumps(coco))
