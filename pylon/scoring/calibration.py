"""Calibration: does a probability of .7 mean 7 of 10? And Platt scaling, which adjusts it.

Arrays in, numbers out. Scores are scikit-learn's; the calibration error is that of Guo et al., On
calibration of modern neural networks (ICML 2017), with bins of equal width.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from pylon.scoring.rows import Rows

BINS = 10

Line = tuple[float, float]  # slope and intercept, of logits


class Reliability(NamedTuple):
    """Bins of probability that hold images, (B,) each."""

    predicted: np.ndarray  # mean probability
    observed: np.ndarray  # share of positives
    counts: np.ndarray


def platt_scaling(
    labels: np.ndarray, logits: np.ndarray, names: list[str]
) -> dict[str, Line | None]:
    """Fit the line per class that turns logits into logits of calibrated probabilities.

    Logistic regression on targets that are drawn a little towards each other, by the number of
    positives and negatives, so that it is finite even where the classes do not overlap (Platt 1999;
    Lin, Lin and Weng 2007).

    Args:
        labels: (N, C), 0 or 1; images whose label is unknown, NaN, are left out.
        logits: (N, C) float32.
        names: of the C classes.

    Returns:
        Slope and intercept by class. The slope is above 0, so the order of the images, and with it
        their AUROC, stays. None where a class has no positive or no negative, or where a higher
        logit does not mean a more likely finding.
    """
    # here, as predictions do without it, and it takes half a second
    from sklearn.linear_model import LogisticRegression

    lines: dict[str, Line | None] = {}
    for c, name in enumerate(names):
        known = ~np.isnan(labels[:, c])
        positive = labels[known, c] == 1
        count = positive.sum()
        if count == 0 or count == len(positive):
            lines[name] = None
            continue

        # a soft target is an image that counts as positive by that share, and as negative
        target = np.where(positive, (count + 1) / (count + 2), 1 / (len(positive) - count + 2))
        x = logits[known, c].astype(np.float64)[:, None]
        centre = x.mean()
        spread = x.std() or 1.0
        x = (x - centre) / spread
        fit = LogisticRegression(C=1e10, max_iter=1000, tol=1e-8).fit(
            np.concatenate([x, x]),
            np.repeat([1, 0], len(x)),
            sample_weight=np.concatenate([target, 1 - target]),
        )
        slope = float(fit.coef_[0, 0]) / spread
        intercept = float(fit.intercept_[0]) - slope * centre
        lines[name] = (float(slope), float(intercept)) if slope > 0 else None
    return lines


def calibrated(logits: np.ndarray, line: Line | None) -> np.ndarray:
    """Probabilities on the calibrated scale, float64; those of the logits without a line."""
    slope, intercept = line or (1.0, 0.0)
    return expit(slope * np.asarray(logits, np.float64) + intercept)


def calibrated_probabilities(probabilities: np.ndarray, line: Line | None) -> np.ndarray:
    """The same for float32 probabilities, as far as they tell the logit; float64.

    Those of logits above 16.6 are 1 in float32; they are taken for the number below 1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if line is None:
        return probabilities
    inner = probabilities.clip(np.finfo(np.float32).tiny, 1 - 2.0**-24)
    return calibrated(np.log(inner) - np.log1p(-inner), line)


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Compare probabilities with shares of positives, in BINS of equal width.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1].
    """
    of_bin = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    counts = np.bincount(of_bin, minlength=BINS)
    filled = counts > 0
    predicted = np.bincount(of_bin, probabilities, BINS)[filled] / counts[filled]
    observed = np.bincount(of_bin, labels, BINS)[filled] / counts[filled]
    return Reliability(predicted, observed, counts[filled])


def calibration_error(bins: Reliability) -> float:
    """Expected calibration error: mean distance of the two, weighted by the number of images."""
    distance = np.abs(bins.predicted - bins.observed)
    return float(np.average(distance, weights=bins.counts))


def calibration_scores(
    labels: np.ndarray,
    logits: np.ndarray,
    names: list[str],
    lines: dict[str, Line | None],
) -> pd.DataFrame:
    """Scores of one network, a column a class; NaN where a class has no positive or no negative.

    Args:
        labels: (N, C), 0 or 1, NaN if unknown.
        logits: (N, C).
        names: of the C classes.
        lines: Platt scaling by class, chosen on other images; empty if unknown.

    Returns:
        Rows: `positives` (share of the images), `AUPRC`, `Brier score`, `Brier score of the share`
        (of a network that always answers with the share of positives), `calibration error`; the
        Brier score and calibration error after Platt scaling; a class without a line counts as it
        is. The column `mean` is over the classes that have these scores.
    """
    # here, as predictions do without it, and it takes half a second
    from sklearn.metrics import average_precision_score, brier_score_loss

    columns = {}
    for c, name in enumerate(names):
        known = ~np.isnan(labels[:, c])
        truth = labels[known, c]
        share = truth.mean() if len(truth) else np.nan
        if not 0 < share < 1:
            columns[name] = {"positives": share}
            continue
        probabilities = calibrated(logits[known, c], None)
        columns[name] = {
            "positives": share,
            "AUPRC": average_precision_score(truth, logits[known, c]),
            "Brier score": brier_score_loss(truth, probabilities),
            "Brier score of the share": share * (1 - share),
            "calibration error": calibration_error(reliability(truth, probabilities)),
        }
        if lines:
            scaled = calibrated(logits[known, c], lines.get(name))
            columns[name] |= {
                "Brier score, calibrated": brier_score_loss(truth, scaled),
                "calibration error, calibrated": calibration_error(reliability(truth, scaled)),
            }
    rows = [
        "positives", "AUPRC", "Brier score", "Brier score, calibrated", "Brier score of the share",
        "calibration error", "calibration error, calibrated",
    ]  # fmt: skip
    table = pd.DataFrame(columns).reindex(rows)
    table["mean"] = table.loc[:, table.loc["AUPRC"].notna()].mean(axis=1)
    return table


def table_of_calibration(rows_of_seed: dict[str, Rows]) -> pd.DataFrame:
    """`calibration_scores` of each seed, and their mean as `mean` if there are several.

    The index has the levels seed and score.
    """
    tables = {}
    for seed, rows in rows_of_seed.items():
        lines = rows.about.get("calibration") or {}
        names = rows.class_names
        tables[seed] = calibration_scores(rows.labels(), rows.logits(), names, lines)
    if len(tables) > 1:
        tables["mean"] = sum(tables.values()) / len(tables)
    return pd.concat(tables, names=["seed", "score"])


def reliabilities(rows: Rows) -> dict[str, tuple[Reliability, Reliability | None]]:
    """Bins of each class that has positives and negatives: as predicted, and calibrated."""
    labels = rows.labels()
    logits = rows.logits()
    lines = rows.about.get("calibration") or {}
    bins = {}
    for c, name in enumerate(rows.class_names):
        known = ~np.isnan(labels[:, c])
        truth = labels[known, c]
        if len(np.unique(truth)) < 2:
            continue
        plain = reliability(truth, calibrated(logits[known, c], None))
        scaled = None
        if lines.get(name):
            scaled = reliability(truth, calibrated(logits[known, c], lines[name]))
        bins[name] = (plain, scaled)
    return bins
