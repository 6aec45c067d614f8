import os

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from pylon.scoring import bootstrap
from pylon.scoring.bootstrap import (
    RESAMPLES,
    bounds,
    difference_of_seeds,
    paired_spread,
    patients_behind_auroc,
    resample_patients,
    resampled_accuracy,
    resampled_auroc,
)
from pylon.scoring.compare import beside

# synthetic test sets; 1000 take a few minutes
SIMULATIONS = int(os.environ.get("PYLON_SIMULATIONS", "120"))


def test_resample_draws_as_many_patients():
    patient_of, drawn = resample_patients(np.array([7, 7, 3, 9]))
    assert patient_of.tolist() == [1, 1, 0, 2]
    assert drawn.shape == (RESAMPLES, 3)
    assert (drawn.sum(axis=1) == 3).all()
    assert drawn.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)


def test_resampled_auroc_equals_weighted_auroc(rng):
    patients = rng.integers(0, 40, 300)
    labels = (rng.uniform(size=(300, 4)) < [0.3, 0.05, 0, 1]).astype(np.float32)
    scores = (rng.normal(size=(300, 4)) + labels).round(1).astype(np.float32)  # with ties
    resampled = resampled_auroc(labels, scores, patients)
    patient_of, drawn = resample_patients(patients)
    assert resampled.shape == (RESAMPLES, 6)
    assert np.isnan(resampled[:, 2:4]).all()  # without positives, without negatives
    for k in range(0, RESAMPLES, 97):
        weights = drawn[k][patient_of]
        areas = [roc_auc_score(labels[:, c], scores[:, c], sample_weight=weights) for c in (0, 1)]
        assert resampled[k, :2] == pytest.approx(areas)
        positives = [(weights * labels[:, c]).sum() for c in (0, 1)]
        assert resampled[k, 4] == pytest.approx(np.average(areas, weights=positives))
        assert resampled[k, 5] == pytest.approx(np.mean(areas))


def test_resampled_auroc_of_more_positives_than_are_compared_at_once(monkeypatch):
    """Seven positives of three patients, three at a time; the last ones alone are ranked wrong."""
    monkeypatch.setattr(bootstrap, "POSITIVES_AT_A_TIME", 3)
    labels = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1])[:, None]
    scores = np.array([9, 8, 7, 6, 5, 4, 3, 4, 4.5])[:, None]
    patients = np.array([1, 1, 1, 2, 2, 3, 3, 1, 2])
    resampled = resampled_auroc(labels, scores, patients)[:, 0]
    patient_of, drawn = resample_patients(patients)
    for k in range(0, RESAMPLES, 211):
        weights = drawn[k][patient_of]
        if weights[labels[:, 0] == 1].any() and weights[labels[:, 0] == 0].any():
            expected = roc_auc_score(labels[:, 0], scores[:, 0], sample_weight=weights)
            assert resampled[k] == pytest.approx(expected)


def test_patients_behind_auroc_have_the_rarer_label():
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 0]])
    assert patients_behind_auroc(labels, np.array([7, 7, 8, 9])).tolist() == [1, 1, 1, 3, 3]
    assert patients_behind_auroc(1 - labels[:, :1], np.array([7, 7, 8, 8])).tolist() == [1, 2, 2]
    assert patients_behind_auroc(np.zeros((2, 1)), np.array([7, 8])).tolist() == [0, 2, 2]


def test_auroc_without_positives_or_negatives_is_nan():
    labels = np.array([[1.0], [0], [0]])
    scores = np.array([[3.0], [2], [4]])
    resampled = resampled_auroc(labels, scores, np.arange(3))[:, 0]
    _, drawn = resample_patients(np.arange(3))
    lacking = (drawn[:, 0] == 0) | (drawn[:, 1:].sum(axis=1) == 0)
    assert (np.isnan(resampled) == lacking).all()
    low, high = bounds(resampled[:, None], np.array([1]), np.array([0.5]))
    assert (low[0], high[0]) == (0, 1)  # only one patient has a positive


def test_resampled_accuracy_equals_weighted_mean(rng):
    patients = rng.integers(0, 30, 100)
    classes = rng.choice(["a", "b"], 100)
    hits = rng.uniform(size=100)
    hits[:5] = np.nan
    resampled = resampled_accuracy(hits, classes, patients, ["a", "b", "none"])
    patient_of, drawn = resample_patients(patients)
    counted = ~np.isnan(hits)
    for k in (0, 5, 100):
        for column, chosen in enumerate(
            (counted & (classes == "a"), counted & (classes == "b"), None, counted)
        ):
            if chosen is not None:
                expected = np.average(hits[chosen], weights=drawn[k][patient_of[chosen]])
                assert resampled[k, column] == pytest.approx(expected)
    assert np.isnan(resampled[:, 2]).all()
    assert np.isnan(bounds(resampled, np.full(4, 30))[:, 2]).all()


def test_interval_is_wider_if_boxes_share_patients(rng):
    # either all boxes of a patient are hit, or none
    hits = np.repeat(rng.integers(0, 2, 50), 8).astype(float)
    clustered, alone = (
        np.diff(
            bounds(resampled_accuracy(hits, np.full(400, "a"), patients, ["a"]), np.full(2, 50)),
            axis=0,
        )[0, 0]
        for patients in (np.arange(400) // 8, np.arange(400))
    )
    assert clustered == pytest.approx(alone * np.sqrt(8), rel=0.2)


def test_scores_without_spread_have_binomial_bounds():
    resamples = np.array([[1, 0, 0.4, 0.3, np.nan], [1, 0, 0.6, 0.3, np.nan]])
    scores = np.array([1, 0, 0.5, 0.3, np.nan])
    patients = np.array([146, 10, 30, 1, 0])
    low_high = bounds(resamples, patients, scores)
    assert low_high[:, 0] == pytest.approx([0.025 ** (1 / 146), 1])
    assert low_high[:, 1] == pytest.approx([0, 1 - 0.025 ** (1 / 10)])
    assert low_high[:, 2] == pytest.approx([0.405, 0.595])
    low, high = low_high[:, 3]
    assert low < 0.025 < 0.975 < high  # one patient says hardly anything
    assert np.isnan(low_high[:, 4]).all()
    # a difference without spread has no bounds either
    assert np.isnan(bounds(resamples, patients)[:, [0, 1, 3, 4]]).all()


def test_bounds_are_binomial_where_there_is_too_little_data():
    """Cases: hits that are shares of a flat map; few patients; a score between two hits.

    For the last, the bounds come from the beta distribution.
    """
    patients = np.array([40, 40, 40, 8, 8])
    scores = np.array([0.0001, 1 / 40, 0.9999, 0.5, 0.55])
    resamples = scores + np.linspace(-1e-4, 1e-4, 41)[:, None]
    low, high = bounds(resamples, patients, scores)
    assert high[0] == pytest.approx(1 - 0.025 ** (1 / 40), abs=1e-3)
    assert high[1] < 0.03  # one hit: as resampled
    assert low[2] == pytest.approx(0.025 ** (1 / 40), abs=1e-3)
    exact = stats.binomtest(4, 8).proportion_ci(0.95, "exact")
    assert (low[3], high[3]) == pytest.approx((exact.low, exact.high))
    assert exact.low < low[4] < stats.binomtest(5, 8).proportion_ci(0.95, "exact").low


def test_paired_spread():
    ours = np.array([[0.5, 1, 1], [0.7, 1, 1]])
    theirs = np.array([[0.4, 1, 0], [0.4, 1, 0]])
    spread = paired_spread(ours, theirs, np.array([50, 146, 1]))
    assert spread[0] == pytest.approx(0.1)
    _, low, high = difference_of_seeds(ours[:1], theirs[:1], spread)
    # both certain: narrow
    assert (low[1], high[1]) == pytest.approx((-(1 - 0.025 ** (1 / 146)), 1 - 0.025 ** (1 / 146)))
    assert low[2] < 0.1 < 1 < high[2]  # one patient decides nothing
    # one side certain, the other not: the next patient might differ by more than resamples do
    certain = paired_spread(np.array([[0.5], [0.501]]), np.ones((2, 1)), np.array([50]))
    assert certain == pytest.approx((1 - 0.025 ** (1 / 50)) / 1.96, abs=1e-4)
    # and where both vary together, their difference does not
    both = np.array([[0.4], [0.6]])
    assert paired_spread(both, both - 0.1, np.array([50])) == pytest.approx(certain)
    assert paired_spread(both, 1 - both, np.array([50])) == pytest.approx(0.2)
    flat = np.array([[0.0001], [0.0002]])  # share of a flat map in the box, compared with no hit
    assert paired_spread(flat, 0 * flat, np.array([40])) == pytest.approx(
        (1 - 0.025 ** (1 / 40)) / 1.96, abs=1e-4
    )
    for one_box in (1, 9):  # patients
        assert (
            beside_nothing(np.ones((2, 1)), np.zeros((2, 1)), one_box)
            == "not decided with so few patients"
        )
    assert beside_nothing(np.ones((2, 1)), np.zeros((2, 1)), 10) == "differs"


def beside_nothing(ours, theirs, patients):
    """Verdict of one seed compared with another."""
    frames = [pd.DataFrame(side[:1], columns=["a"]) for side in (ours, theirs)]
    return beside(*frames, "others", 0.04, paired_spread(ours, theirs, np.array([patients])))[
        "verdict"
    ].item()


def test_difference_of_seeds_is_welchs_t(rng):
    ours = rng.normal(size=(5, 3))
    theirs = rng.normal(1, 2, size=(4, 3))
    difference, low, high = difference_of_seeds(ours, theirs)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert difference == pytest.approx(ours.mean(axis=0) - theirs.mean(axis=0))
    assert low == pytest.approx(expected.low)
    assert high == pytest.approx(expected.high)
    assert np.isnan(difference_of_seeds(ours[:1], theirs)[1]).all()
    _, low, high = difference_of_seeds(np.ones((2, 1)), np.zeros((2, 1)))
    assert (low[0], high[0]) == (1, 1)


def test_patients_widen_the_interval_of_the_difference():
    difference, low, high = difference_of_seeds(
        np.array([[0.8]]), np.array([[0.7]]), np.array([0.02])
    )
    assert [difference[0], low[0], high[0]] == pytest.approx(
        [0.1, 0.1 - 1.96 * 0.02, 0.1 + 1.96 * 0.02], abs=1e-4
    )
    ours = np.array([[0.8], [0.9], [0.7]])
    theirs = np.array([[0.5], [0.7]])
    alone, both = (
        np.subtract(*difference_of_seeds(ours, theirs, spread)[:0:-1])
        for spread in (None, np.array([0.5]))
    )
    assert both[0] > 2 * 1.96 * 0.5
    assert alone[0] > 0


def held(intervals: list[np.ndarray], truth: float) -> float:
    """Share of intervals that contain the true value.

    Asserts that it is 95 %, within what the number of simulations allows.
    """
    share = np.mean([low <= truth <= high for low, high in intervals])
    slack = 3.3 * np.sqrt(0.95 * 0.05 / len(intervals))
    assert 0.95 - slack - 0.01 <= share <= 0.95 + slack + 0.01
    if len(intervals) >= 1000:
        assert 0.93 <= share <= 0.97
    return share


def synthetic_patients(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.repeat(np.arange(count), rng.integers(1, 5, count))


def test_intervals_of_point_accuracy_hold_the_truth():
    intervals = []
    for simulation in range(SIMULATIONS):
        rng = np.random.default_rng([1, simulation])
        patients = synthetic_patients(rng, 150)
        # each patient has its own chance (mean 0.6), so its boxes are correlated
        chance = rng.beta(1.2, 0.8, 150)[patients]
        hits = (rng.uniform(size=len(patients)) < chance).astype(float)
        resampled = resampled_accuracy(hits, np.full(len(hits), "a"), patients, ["a"])
        intervals.append(bounds(resampled, np.full(2, 150))[:, 0])
    print(f"point accuracy: {held(intervals, 0.6):.3f} of {SIMULATIONS} intervals cover the truth")


def test_intervals_of_auroc_hold_the_truth():
    intervals = []
    for simulation in range(SIMULATIONS):
        rng = np.random.default_rng([2, simulation])
        patients = synthetic_patients(rng, 200)
        # labels and scores of one patient are correlated
        diseased = rng.beta(0.4, 2, 200)[patients]
        labels = (rng.uniform(size=len(patients)) < diseased).astype(float)
        scores = (
            labels + rng.normal(size=200)[patients] * 0.8 + rng.normal(size=len(patients)) * 0.6
        )
        intervals.append(
            bounds(resampled_auroc(labels[:, None], scores[:, None], patients), np.full(3, 200))[
                :, 0
            ]
        )
    # scores of two patients differ by 1, with a variance of 2 * (0.8**2 + 0.6**2)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    print(f"AUROC: {held(intervals, truth):.3f} of {SIMULATIONS} intervals cover the truth")
