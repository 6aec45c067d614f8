"""Calibration: Platt scaling, and scores of probabilities."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pylon.scoring.calibration import (
    calibrated,
    calibrated_probabilities,
    calibration_error,
    calibration_scores,
    platt_scaling,
    reliabilities,
    reliability,
    table_of_calibration,
)
from pylon.scoring.rows import Rows


@pytest.fixture
def overconfident(rng) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits (4000, 1): three times as large as they should be, and shifted by 1."""
    true = rng.normal(-1, 1.5, 4000)
    labels = (rng.uniform(size=4000) < expit(true)).astype(np.float32)
    return labels[:, None], (3 * true + 1).astype(np.float32)[:, None]


def test_platt_scaling_undoes_a_distortion(overconfident):
    labels, logits = overconfident
    slope, intercept = platt_scaling(labels, logits, ["a"])["a"]
    assert slope == pytest.approx(1 / 3, abs=0.03)
    assert intercept == pytest.approx(-1 / 3, abs=0.1)
    before = calibration_error(reliability(labels[:, 0], calibrated(logits[:, 0], None)))
    scaled = calibrated(logits[:, 0], (slope, intercept))
    assert calibration_error(reliability(labels[:, 0], scaled)) < 0.02 < 0.1 < before
    assert roc_auc_score(labels, scaled) == roc_auc_score(labels, logits)


def test_platt_scaling_of_separable_unknown_and_worse_classes():
    labels = np.array([[0, 0, 0], [0, 1, 0], [1, 0, np.nan], [1, 1, np.nan], [np.nan, 1, 0]])
    logits = np.array([[-2, 3, 1], [-1, 1, 2], [1, 3, 3], [2, -1, 4], [9, 0, 0]], np.float32)
    lines = platt_scaling(labels, logits, ["separable", "worse", "one"])
    slope, intercept = lines["separable"]
    # finite: the targets are 3/4 and 1/4, since there are two of each
    assert expit(slope * 1.5 + intercept) == pytest.approx(0.75, abs=0.05)
    assert intercept == pytest.approx(0, abs=1e-3)
    assert lines["worse"] is None  # a higher logit means a less likely finding
    assert lines["one"] is None  # no positive


def test_platt_targets_of_a_rare_class():
    """Two positives at 2 and six negatives at -1: the line goes through both targets exactly."""
    labels = np.array([1, 0, 0, 0, 1, 0, 0, 0])[:, None]
    logits = np.where(labels == 1, 2, -1).astype(np.float32)
    slope, intercept = platt_scaling(labels, logits, ["rare"])["rare"]
    # of positives (2 + 1) / (2 + 2), of negatives 1 / (6 + 2)
    assert expit(slope * 2 + intercept) == pytest.approx(3 / 4, abs=1e-5)
    assert expit(slope * -1 + intercept) == pytest.approx(1 / 8, abs=1e-5)


def test_platt_scaling_of_logits_that_never_vary():
    """Whatever the image, the share of positives: the mean of the targets."""
    labels = np.array([1, 0, 0, 0])[:, None]
    line = platt_scaling(labels, np.full((4, 1), 7, np.float32), ["a"])["a"]
    assert line is None  # no slope


def test_calibrated_probabilities_equal_those_of_logits():
    logits = np.linspace(-60, 15, 50)
    line = (0.4, -0.7)
    probabilities = expit(logits).astype(np.float32)
    found = calibrated_probabilities(probabilities, line)
    np.testing.assert_allclose(found, calibrated(logits, line), rtol=0.01)
    assert (np.diff(found) > 0).all()
    # 1 is the largest logit that float32 tells from others; 0 stays finite
    ends = calibrated_probabilities(np.array([0, 1], np.float32), line)
    assert 0 < ends[0] < found[0] < found[-1] < ends[1] < 1
    np.testing.assert_array_equal(calibrated_probabilities(probabilities, None), probabilities)


def test_worked_reliability():
    # bins of .1: two images at .25, four at .85
    probabilities = np.array([0.25, 0.25, 0.85, 0.85, 0.85, 0.85])
    labels = np.array([0, 1, 1, 1, 1, 0])
    bins = reliability(labels, probabilities)
    np.testing.assert_allclose(bins.predicted, [0.25, 0.85])
    np.testing.assert_allclose(bins.observed, [0.5, 0.75])
    assert bins.counts.tolist() == [2, 4]
    assert calibration_error(bins) == pytest.approx((2 * 0.25 + 4 * 0.1) / 6)
    assert reliability(np.array([1]), np.array([1.0])).predicted.tolist() == [1.0]


def test_worked_scores():
    labels = np.array([[1, 0], [0, 0], [1, 0], [np.nan, 0]], np.float32)
    logits = np.array([[np.log(3), 1], [-np.log(3), 2], [-np.log(3), 3], [5, 4]], np.float32)
    table = calibration_scores(labels, logits, ["a", "none"], {"a": (1.0, 0.0)})
    a = table["a"]
    assert a["positives"] == pytest.approx(2 / 3)
    # a tie at .25: the precision is 1 for the first positive, then 2 of 3
    assert a["AUPRC"] == pytest.approx((1 + 2 / 3) / 2)
    assert a["Brier score"] == pytest.approx((0.25**2 + 0.25**2 + 0.75**2) / 3)
    assert a["Brier score, calibrated"] == pytest.approx(a["Brier score"])
    assert a["Brier score of the share"] == pytest.approx(2 / 9)
    # .75 where all are positive, .25 (twice) where half are
    assert a["calibration error"] == pytest.approx(0.25)
    assert table["none"]["positives"] == 0
    assert table["none"].drop("positives").isna().all()
    assert table["mean"]["AUPRC"] == a["AUPRC"]


def test_table_of_seeds_and_bins(overconfident):
    labels, logits = overconfident
    table = pd.DataFrame({"label_a": labels[:, 0].astype(int), "logit_a": logits[:, 0]})
    with_line = Rows(table, {"class_names": ["a"], "calibration": {"a": [1 / 3, -1 / 3]}})
    without = Rows(table, {"class_names": ["a"]})  # rows of earlier versions
    scores = table_of_calibration({"0": with_line, "1": without})
    assert list(scores.index.get_level_values("seed").unique()) == ["0", "1", "mean"]
    row = ("calibration error, calibrated", "a")
    assert scores.loc["0"].loc[row] < 0.02
    assert np.isnan(scores.loc["1"].loc[row])
    # of three seeds, two of which are alike
    opposite = Rows(table.assign(logit_a=-table["logit_a"]), without.about)
    of_three = table_of_calibration({"0": without, "1": without, "4": opposite})["a"]
    of_each = [of_three[seed]["AUPRC"] for seed in ("0", "1", "4")]
    assert of_each[0] == of_each[1] > of_each[2]
    assert of_three["mean"]["AUPRC"] == pytest.approx((2 * of_each[0] + of_each[2]) / 3)
    assert reliabilities(with_line)["a"][1] is not None
    assert reliabilities(without)["a"][1] is None
