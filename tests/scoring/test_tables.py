"""Tables of seeds and their intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scored import scored

from pylon.scoring.rows import Rows
from pylon.scoring.tables import (
    Scored,
    print_table,
    score_boxes,
    score_images,
    table_of_seeds,
)
from pylon.system.files import write_csv


def test_table_is_printed_and_written(tmp_path, capsys):
    table = table_of_seeds(scored({"0": [0.5, np.nan], "3": [0.7, np.nan]}, ["Mass", "Hernia"]))
    print_table(table)
    assert capsys.readouterr().out.splitlines() == [
        "| seed      | Mass     | Hernia |",
        "| --------- | -------- | ------ |",
        "| 0         | 0.500000 |        |",
        "| 3         | 0.700000 |        |",
        "| mean      | 0.600000 |        |",
        "| std       | 0.141421 |        |",
        "| 0 low     | 0.405000 |        |",
        "| 0 high    | 0.595000 |        |",
        "| 3 low     | 0.605000 |        |",
        "| 3 high    | 0.795000 |        |",
        "| mean low  | 0.505000 |        |",
        "| mean high | 0.695000 |        |",
    ]
    write_csv(tmp_path / "a" / "b.csv", table)
    lines = (tmp_path / "a" / "b.csv").read_text().splitlines()
    assert lines[:3] == ["seed,Mass,Hernia", "0,0.5,", "3,0.7,"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "b.csv", index_col="seed"), table)


def test_mean_interval_of_seeds_without_spread():
    """Seeds that hit every box, or none: each has binomial bounds; the mean has their average."""
    scores = pd.DataFrame({"Nodule": [1.0, 0.0, 1.0]}, index=["0", "1", "2"])
    resamples = np.repeat(scores.to_numpy()[:, None], 30, axis=1)
    table = table_of_seeds(Scored(scores, resamples, np.array([40])))["Nodule"]
    exact = stats.binomtest(40, 40).proportion_ci(0.95, "exact").low
    assert table["0 low"] == pytest.approx(exact)
    assert table["1 high"] == pytest.approx(1 - exact)
    assert table["mean low"] == pytest.approx(2 / 3 * exact)
    assert table["mean high"] == pytest.approx((3 - exact) / 3)


def test_images_and_boxes_of_one_patient_count_as_one_patient():
    """Five of six images are of one patient; each class has boxes in two or three of them."""
    table = pd.DataFrame({
        "image_id": list("abcdef"),
        "patient_id": [7, 7, 7, 7, 7, 8],
        "pathology": ["Mass", "Mass", "Mass", "Nodule", "Nodule", "Nodule"],
        "hit": [1.0, 0.0, 0.5, 1.0, 1.0, 0.0],
        **{"label_Mass": [1, 1, 1, 0, 0, 0], "label_Nodule": [0, 1, 1, 1, 0, 0]},
        **{"logit_Mass": [3, 2, 1, 2, 0, 0], "logit_Nodule": [0, 1, 2, 3, 1, 0]},
    })  # fmt: skip
    rows = {"0": Rows(table, {"class_names": ["Nodule", "Mass", "Edema"]})}
    points = score_boxes(rows)
    assert list(points.scores.columns) == ["Nodule", "Mass", "micro"]
    assert points.scores.loc["0"].tolist() == pytest.approx([2 / 3, 0.5, 3.5 / 6])
    assert points.patient_counts.tolist() == [2, 1, 2]
    rows = {"0": Rows(table, {"class_names": ["Nodule", "Mass"]})}
    images = score_images(rows)
    assert images.patient_counts.tolist() == [1, 1, 2, 2]
    # Mass: of 9 pairs, one is a tie and one is wrong
    assert images.scores.loc["0", "Mass"] == pytest.approx(7.5 / 9)


def test_single_seed_has_no_std_and_no_mean_interval():
    table = table_of_seeds(scored({"0": [0.5]}, ["Mass"]))
    assert table.index.tolist() == ["0", "mean", "std", "0 low", "0 high"]
    assert np.isnan(table.loc["std", "Mass"])
