"""What do points, boxes and maps reach that never see the image? The controls of a set of boxes.

    python benchmarks/controls.py --data data    # NIH's 984
    python benchmarks/controls.py --table data/chestx_det/table.csv \\
        --boxes data/chestx_det/boxes.csv

Reads  lists and boxes; no image is opened but for its size, and one without a file counts as NIH's
       1024 x 1024.
Prints a Markdown table, a row a class: what eval_loc.py adds to its tables of a network (see
       docs/evidence.md).
"""

from dataclasses import dataclass

from pylon.options import BoxOptions, ClassOptions, DataOptions
from pylon.system.cli import parse, start
from pylon.system.errors import UserError


@dataclass
class Options(BoxOptions, ClassOptions, DataOptions):
    """The controls of the boxes of a data set's test images."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import numpy as np

from pylon.data.images import width_height_of
from pylon.data.radiographs import Radiographs
from pylon.data.sources import read_radiographs
from pylon.scoring.box_tables import SHOWN, controls_of, truth_of
from pylon.scoring.boxes import SCORES
from pylon.scoring.reference_points import centre_hits, prior_hits
from pylon.scoring.rows import Rows, merge_boxes
from pylon.scoring.tables import boxed_classes

SIDE = 1024  # pixels of NIH's images


def main(options: Options) -> None:
    classes = (options.classes, options.ignore_columns)
    radiographs = read_radiographs(options, *classes, boxes=options.boxes, with_boxes=True)
    if len(radiographs.boxes) == 0:
        raise UserError(f"{radiographs.boxes_from} has no boxes of test images")
    print_controls(rows_of(radiographs))


def rows_of(radiographs: Radiographs) -> Rows:
    """One row per image and class with boxes, without a network's columns."""
    table = merge_boxes(radiographs.boxes)
    images = radiographs.images.set_index("image_id").loc[table["image_id"]]
    sizes = [
        width_height_of(path) if isinstance(path, str) else (SIDE, SIDE) for path in images["path"]
    ]
    table["patient_id"] = images["patient_id"].to_numpy()
    table[["image_width", "image_height"]] = sizes
    return Rows(table, {"class_names": list(radiographs.class_names)})


def print_controls(rows: Rows) -> None:
    """Print a row for each class with boxes, and one for all."""
    classes, patient_ids, bbox_xywh, image_size = truth_of(rows)
    scores = {
        "prior": prior_hits(bbox_xywh, image_size, classes, patient_ids),
        "centre": centre_hits(bbox_xywh, image_size),
    }
    column = SCORES.index(SHOWN)
    scores |= {name: values[:, column] for name, values in controls_of(rows).items()}
    head = ["class", "boxes", "findings", "images", "patients", "median size, %", *scores]
    print(f"points: prior, centre; {SHOWN}: the others. A finding: an image's boxes of a class\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in [*boxed_classes(rows), "all"]:
        is_row = (classes == name) | (name == "all")
        counts = [
            (bbox_xywh[is_row, :, 2] > 0).sum(),
            is_row.sum(),
            rows.table["image_id"][is_row].nunique(),
            len(np.unique(patient_ids[is_row])),
        ]
        cells = [
            *(f"{count:,}" for count in counts),
            median_size(bbox_xywh[is_row], image_size[is_row]),
            *(mean_of(each[is_row]) for each in scores.values()),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def mean_of(scores: np.ndarray) -> str:
    """The mean of what is known; blank if nothing is, as the prior of a class with one box."""
    known = scores[np.isfinite(scores)]
    return f"{known.mean():.3f}" if len(known) else ""


def median_size(bbox_xywh: np.ndarray, image_size: np.ndarray) -> str:
    """Median width and height of boxes (N, K, 4), in per cent of their images' (N, 2)."""
    shares = bbox_xywh[..., 2:] / image_size[:, None, ::-1]  # (N, K, 2)
    width, height = 100 * np.median(shares[bbox_xywh[..., 2] > 0], axis=0)
    return f"{width:.0f} x {height:.0f}"


if __name__ == "__main__":
    start(main, OPTIONS)
