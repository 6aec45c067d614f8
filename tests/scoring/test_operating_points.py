"""Thresholds at operating points, and the rates that follow."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import confusion_matrix, f1_score, roc_curve

from pylon.scoring.operating_points import (
    Point,
    as_text,
    parse_point,
    rates_at,
    table_of_rates,
    thresholds_at,
)
from pylon.scoring.rows import Rows
from pylon.system.errors import UserError

# six images of one class: probabilities, and whether they have it
SCORES = [0.9, 0.8, 0.7, 0.6, 0.4, 0.2]
HAVE_IT = [1, 0, 1, 1, 0, 0]


def threshold(point, have_it=HAVE_IT, scores=SCORES):
    labels = np.array(have_it, np.float32)[:, None]
    logits = logit(np.array(scores))[:, None].astype(np.float32)
    thresholds, reasons = thresholds_at(labels, logits, ["Mass"], parse_point(point))
    return thresholds["Mass"], reasons.get("Mass")


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("youden", 0.6),  # 1 + 2/3 - 1
        ("sensitivity=.6", 0.7),  # 2 of 3
        ("sensitivity=.7", 0.6),  # 3 of 3
        ("specificity=.9", 0.9),  # the next calls one of 3 wrongly
        ("specificity=.6", 0.6),  # 2 of 3 are not called
        ("ppv=.7", 0.6),  # 3 of 4, though it is 2 of 3 before
        ("ppv=.9", 0.9),
    ],
)
def test_thresholds_by_hand(point, expected):
    found, reason = threshold(point)
    assert found == pytest.approx(expected, abs=1e-6)
    assert reason is None


def test_class_that_cannot_be_fitted_says_why():
    unknown = [np.nan] * 2
    assert threshold("ppv=.9", [0, 0, 0, 0, *unknown]) == (
        None,
        "no positive image among 4 with a known label",
    )
    assert "no negative image among 4" in threshold("youden", [1, 1, 1, 1, *unknown])[1]
    assert "ppv of 0.9 is never reached" in threshold("ppv=.9", [0, *HAVE_IT[1:]])[1]
    assert "specificity of 0.9 is never" in threshold("specificity=.9", [0, 1, 1, 1, 1, 0])[1]
    assert "no better than by chance" in threshold("youden", [0, 0, 0, 1, 1, 1])[1]


def test_rates_are_scikit_learns():
    random = np.random.default_rng(0)
    labels = (random.random((400, 2)) < (0.3, 0.05)).astype(np.float32)
    logits = (random.normal(size=(400, 2)) + labels - 2).astype(np.float32).round(1)  # with ties
    labels[::7, 0] = np.nan
    thresholds, _ = thresholds_at(labels, logits, ["a", "b"], Point("specificity", 0.9))
    rates = rates_at(labels, logits, thresholds)
    for c, name in enumerate("ab"):
        known = ~np.isnan(labels[:, c])
        of_class = labels[known, c]
        called = logits[known, c] >= np.float32(logit(thresholds[name])) - 1e-4
        (tn, fp), (fn, tp) = confusion_matrix(of_class, called)
        expected = [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)]
        assert rates.loc[name, ["sensitivity", "specificity", "ppv", "npv"]].tolist() == expected
        assert rates.loc[name, "f1"] == pytest.approx(f1_score(of_class, called))
        assert rates.loc[name, "called"] == called.sum()
        # the best sensitivity of all thresholds with that specificity
        false_positives, true_positives, _ = roc_curve(of_class, logits[known, c])
        assert rates.loc[name, "sensitivity"] == true_positives[false_positives <= 0.1].max()


def test_intervals_of_rates_are_over_patients():
    random = np.random.default_rng(1)
    count = 300
    labels = (random.random((count, 2)) < 0.4).astype(float)
    labels[::9, 1] = np.nan
    table = pd.DataFrame({
        "image_id": [f"{k}.png" for k in range(count)],
        "patient_id": np.arange(count) // 3,
        "label_a": labels[:, 0].astype(int),
        "label_b": pd.array(labels[:, 1]).astype("Int64"),
        "logit_a": np.float32(random.normal(size=count) + 2 * labels[:, 0]),
        "logit_b": np.float32(random.normal(size=count)),
    })  # fmt: skip
    thresholds = {"b": None, "a": 0.7}  # in another order
    rows = Rows(table, {"class_names": ["a", "b"], "thresholds": thresholds})
    rates = table_of_rates({"0": rows}).loc["0"]
    assert rates.loc["b", "sensitivity":].isna().all()
    called = table["logit_a"] > logit(0.7)
    positive = labels[:, 0] == 1
    means = {
        "sensitivity": called[positive],
        "specificity": ~called[~positive],
        "ppv": positive[called],
        "npv": ~positive[~called],
    }
    for rate, values in means.items():
        low, middle, high = rates.loc["a", [f"{rate} low", rate, f"{rate} high"]]
        assert middle == pytest.approx(np.mean(values))
        assert low < middle < high
        # about the width of a binomial interval
        width = 2 * 1.96 * np.sqrt(middle * (1 - middle) / len(values))
        assert 0.6 * width < high - low < 1.5 * width


def test_rates_without_a_threshold_are_blank():
    labels = np.array([[1, 0], [0, 0]], np.float32)
    rates = rates_at(labels, np.zeros((2, 2), np.float32), {"a": None, "b": 0.5})
    assert as_text(rates).loc["a"].tolist() == ["", "2", "1", "", "", "", "", "", ""]
    assert as_text(rates).loc["b"].tolist()[3:] == ["2", "", "0.000", "0.000", "", "0.000"]


@pytest.mark.parametrize("text", ["", "best", "ppv", "ppv=1", "ppv=0.0", "npv=.5", "ppv=50"])
def test_other_operating_points_are_refused(text):
    with pytest.raises(UserError, match=r"^--operating-point .* must be youden, sensitivity=.9,"):
        parse_point(text)
