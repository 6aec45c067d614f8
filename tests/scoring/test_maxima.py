"""Where maxima lie: offsets worked out by hand, mean maps and masks, the files."""

import cv2
import numpy as np
import pandas as pd
import pytest

from pylon.scoring.box_tables import mean_maps, score_heatmaps
from pylon.scoring.maxima import locate_maxima, offset_table, write_maxima
from pylon.scoring.rows import Rows


def rows_of(places: list[tuple[int, int]]) -> Rows:
    """Rows of two Masses, the first with two boxes, and a Nodule, with maxima at row, column."""
    table = pd.DataFrame({
        "image_id": ["a.png", "b.png", "a.png"], "patient_id": [1, 2, 1],
        "pathology": ["Mass", "Mass", "Nodule"],
        "row": [row for row, _ in places], "column": [column for _, column in places],
        "bbox_x": [10, 40, 60], "bbox_y": [20, 10, 30],
        "bbox_w": [100, 20, 9], "bbox_h": [40, 20, 9],
        "image_height": [100, 50, 100], "image_width": [200, 100, 200],
        "more_boxes": ["112 30 10 10", "", ""],
    })  # fmt: skip
    return Rows(table, {"class_names": ["Edema", "Mass", "Nodule"]})


def test_offsets_by_hand():
    # in the large box, nearer to the middle of the small one; above b's box; left of the nodule
    points = locate_maxima(rows_of([(34, 108), (0, 49), (34, 24)]))
    assert points["hit"].tolist() == [True, False, False]
    expected = [(48.5 / 200, -5.5 / 200), (-0.5 / 100, -19.5 / 100), (-40 / 200, 0)]
    assert points[["dx", "dy"]].to_numpy() == pytest.approx(np.array(expected))
    assert points["distance"].to_numpy() == pytest.approx(np.hypot(*np.array(expected).T))
    assert points[["x", "y"]].iloc[1].tolist() == [49.5 / 100, 0.5 / 50]

    # outside both, the nearer centre counts
    points = locate_maxima(rows_of([(34, 124), (0, 49), (34, 24)]))
    assert not points["hit"][0]
    assert points["dx"][0] == pytest.approx(7.5 / 200)


def test_medians_of_hits_and_misses_over_seeds():
    seeds = [rows_of([(34, 108), (0, 49), (34, 24)]), rows_of([(34, 88), (0, 59), (34, 64)])]
    table = offset_table(pd.concat(map(locate_maxima, seeds)), ["Mass", "Nodule"])
    assert table.index.tolist() == ["Mass", "Nodule", "micro"]
    assert table.loc["Mass", ["hits", "misses"]].tolist() == [2, 2]
    assert table.loc["micro", ["hits", "misses"]].tolist() == [3, 3]
    assert table.loc["Mass", "hit dx"] == pytest.approx(38.5 / 200)
    assert table.loc["Mass", "miss dx"] == pytest.approx(4.5 / 100)
    assert table.loc["Nodule", "miss dx"] == pytest.approx(-0.2)
    assert table.loc["micro", "miss dy"] == pytest.approx(-0.195)


def test_mean_maps_are_scaled_by_hand():
    maps = np.array([[[1, 3]], [[0.2, 0.1]], [[0, 0]], [[5, 6]]], np.float32)
    means = mean_maps(maps, np.array(["Mass", "Mass", "Mass", "Nodule"]))
    assert {name: mean.tolist() for name, mean in means.items()} == {
        "Mass": [pytest.approx([1 / 3, 1 / 3])],
        "Nodule": [[0, 1]],
    }


def test_files_with_and_without_maps(tmp_path, capsys):
    rows = {"mine": {"0": rows_of([(34, 108), (0, 49), (34, 24)])}, "other": {}}
    maps = np.random.default_rng(0).random((3, 8, 8), np.float32)
    write_maxima(rows, {}, tmp_path, "_gradcam")
    points = read_picture(tmp_path / "maxima_gradcam.png")
    write_maxima(rows, {"mine": {"0": score_heatmaps(maps, rows["mine"]["0"])}}, tmp_path, "")
    both = read_picture(tmp_path / "maxima.png")
    assert both.shape[1] == 2 * points.shape[1]
    assert points.shape[0] < points.shape[1]  # two images beside each other, twice as wide as high
    table = pd.read_csv(tmp_path / "maxima.csv", index_col="class")
    assert table.loc["Nodule", "hits"] == 0
    assert np.isnan(table.loc["Nodule", "hit dx"])
    assert "| Mass   | 1    | 0.242500 |" in capsys.readouterr().out


def read_picture(path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert (image != 255).any()
    return image
