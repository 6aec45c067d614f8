"""Where the maxima of heatmaps lie: their offsets from the boxes, and averages by class.

An offset is a share of the image's longer side, so that images of any size count alike; `dx` is
positive where the maximum lies to the right of the box's centre in the image (towards the patient's
left in a frontal view), `dy` where it lies below. If there are several boxes, it is that of the
one which is hit, else of the one whose centre is nearest. A hit is here a maximum that lies in a
box; of several equal maxima, the first.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from pylon.scoring.box_tables import BoxScores
from pylon.scoring.charts import maxima_chart
from pylon.scoring.metrics import in_box
from pylon.scoring.reference_points import inside_by_cell
from pylon.scoring.rows import Rows
from pylon.scoring.tables import boxed_classes, print_table
from pylon.system.files import write_atomically, write_csv

OFFSETS = ["dx", "dy", "distance"]


def locate_maxima(rows: Rows) -> pd.DataFrame:
    """Locate the maximum of each row.

    Returns:
        pathology; hit, bool; dx, dy and distance as above; x, y in shares of width and height.
    """
    table = rows.table
    image_size = table[["image_height", "image_width"]].to_numpy()
    boxes = rows.bboxes()  # (N, K, 4)
    row = table["row"].to_numpy()[:, None]
    column = table["column"].to_numpy()[:, None]

    # offsets from the centres of all boxes, (N, K) pixels; then the box that counts
    dx = column + 0.5 - (boxes[..., 0] + boxes[..., 2] / 2)
    dy = row + 0.5 - (boxes[..., 1] + boxes[..., 3] / 2)
    inside = in_box(row, column, boxes)
    distance = np.where(boxes[..., 2] > 0, np.hypot(dx, dy), np.inf)
    farthest_hit = np.hypot(*image_size.T)[:, None]  # farther than any box that is hit
    nearest = np.where(inside, distance, distance + farthest_hit).argmin(axis=1)
    chosen = np.arange(len(boxes)), nearest
    side = image_size.max(axis=1)
    return pd.DataFrame({
        "pathology": table["pathology"].to_numpy(),
        "hit": inside.any(axis=1),
        "dx": dx[chosen] / side,
        "dy": dy[chosen] / side,
        "distance": distance[chosen] / side,
        "x": (column[:, 0] + 0.5) / image_size[:, 1],
        "y": (row[:, 0] + 0.5) / image_size[:, 0],
    })  # fmt: skip


def offset_table(points: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Medians of the offsets, by class and of all rows (`micro`), of hits and of misses apart.

    Args:
        points: from `locate_maxima`, of all seeds.
        names: the classes that have boxes.
    """
    table = {}
    for name in [*names, "micro"]:
        of_class = points[(points["pathology"] == name) | (name == "micro")]
        cells = {}
        for word, plural, is_hit in (("hit", "hits", True), ("miss", "misses", False)):
            chosen = of_class[of_class["hit"] == is_hit]
            cells[plural] = len(chosen)
            cells |= {f"{word} {key}": chosen[key].median() for key in OFFSETS}
        table[name] = cells
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("class")


def write_maxima(
    rows: dict[str, dict[str, Rows]],
    scores: dict[str, dict[str, BoxScores]],
    folder: Path,
    suffix: str,
) -> None:
    """Print and write where the first experiment's maxima lie, all seeds pooled.

    Args:
        rows, scores: by experiment and seed; without scores there are no mean maps to draw.
        folder: for maxima.csv, .png.
        suffix: of their names, which names the method.
    """
    name = next(iter(rows))
    first = next(iter(rows[name].values()))
    classes = boxed_classes(first)
    points = pd.concat([locate_maxima(of_seed) for of_seed in rows[name].values()])
    table = offset_table(points, classes)
    path = folder / f"maxima{suffix}.csv"
    write_csv(path, table)
    print(
        "\nwhere the maxima lie: medians of the offset from the box's centre, in shares of the "
        f"image's longer side; dx > 0: to the right, dy > 0: below; written to {path}"
    )
    print_table(table.astype({"hits": str, "misses": str}))

    # the picture: a mean box, and a mean map, for each class
    image_size = first.table[["image_height", "image_width"]].to_numpy()
    inside = inside_by_cell(first.bboxes(), image_size)
    masks = {each: inside[first.table["pathology"] == each].mean(axis=0) for each in classes}
    means = [of_seed.means for of_seed in scores.get(name, {}).values()]
    maps = {each: np.mean([of[each] for of in means], axis=0) for each in classes if means}
    aspect = float(np.median(image_size[:, 0] / image_size[:, 1]))
    write_atomically(folder / f"maxima{suffix}.png", maxima_chart(points, masks, maps, aspect))
