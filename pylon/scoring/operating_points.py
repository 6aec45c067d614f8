"""Operating points: from which probability on a class is called present, and what follows."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from pylon.scoring.bootstrap import bounds, resampled_means
from pylon.scoring.metrics import youden_thresholds
from pylon.scoring.rows import Rows
from pylon.system.errors import UserError

RATES = ("sensitivity", "specificity", "ppv")


class Point(NamedTuple):
    """An operating point: a rate and the least value it must have; youden has no value."""

    rate: str
    value: float = 0.0


def parse_point(text: str) -> Point:
    """`sensitivity=.9` and so on, or `youden`; a UserError if it is none of them."""
    if text == "youden":
        return Point(text)
    found = re.fullmatch(r"(\w+)=(0?\.\d+)", text)
    if found is None or found[1] not in RATES or float(found[2]) == 0:
        raise UserError(
            f"--operating-point {text!r} must be youden, sensitivity=.9, specificity=.9, ppv=.5 or "
            "another value between 0 and 1"
        )
    return Point(found[1], float(found[2]))


def thresholds_at(
    labels: np.ndarray, logits: np.ndarray, names: list[str], point: Point
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The threshold of each class at an operating point.

    A sensitivity is reached with the highest threshold that does, which keeps specificity as high
    as it can be; specificity and ppv with the lowest one.

    Args:
        labels: (N, C), 0 or 1; images whose label is unknown, NaN, are left out.
        logits: (N, C) float32.
        names: of the C classes.

    Returns:
        Probabilities by class, None where there is none; and the reasons for those, by class.
    """
    youden = youden_thresholds(labels, logits, names) if point.rate == "youden" else {}
    thresholds = {}
    reasons = {}
    for c, name in enumerate(names):
        known = ~np.isnan(labels[:, c])
        positives = int(labels[known, c].sum())
        thresholds[name] = None
        if positives in (0, known.sum()):
            kind = "positive" if positives == 0 else "negative"
            reasons[name] = f"no {kind} image among {known.sum()} with a known label"
        elif point.rate == "youden":
            thresholds[name] = youden[name]
            if youden[name] is None:
                reasons[name] = "it is told no better than by chance"
        else:
            thresholds[name] = threshold_of(labels[known, c], logits[known, c], point)
            if thresholds[name] is None:
                reasons[name] = f"{point.rate} of {point.value:g} is never reached"
    return thresholds, reasons


def threshold_of(labels: np.ndarray, logits: np.ndarray, point: Point) -> float | None:
    """The threshold of one class; None if none reaches the rate."""
    from sklearn.metrics import roc_curve

    shares = roc_curve(labels, logits, drop_intermediate=False)
    false_positives, true_positives, levels = (values[1:] for values in shares)  # without infinity
    if point.rate == "sensitivity":
        level = levels[np.argmax(true_positives >= point.value)]
    else:
        positives = labels.sum()
        hits = true_positives * positives
        called = hits + false_positives * (len(labels) - positives)
        rate = 1 - false_positives if point.rate == "specificity" else hits / called
        reached = np.flatnonzero(rate >= point.value - 1e-12)
        if len(reached) == 0:
            return None
        level = levels[reached[-1]]
    # float32 of a float64 sigmoid, as the probabilities that are compared with it
    return float(np.float32(expit(np.float64(level))))


def rates_at(
    labels: np.ndarray, logits: np.ndarray, thresholds: dict[str, float | None]
) -> pd.DataFrame:
    """How a network calls images at its thresholds: one row per class.

    Args:
        labels: (N, C), 0 or 1; images whose label is unknown, NaN, are left out.
        logits: (N, C) float32.
        thresholds: probabilities, in the order of the columns.

    Returns:
        threshold, images, positives, called, sensitivity, specificity, ppv, npv, f1; NaN where a
        rate has no image to be measured on.
    """
    rows = {}
    for c, (name, threshold) in enumerate(thresholds.items()):
        known = ~np.isnan(labels[:, c])
        positive = labels[known, c] == 1
        counts = {"threshold": threshold, "images": len(positive), "positives": positive.sum()}
        if threshold is not None:
            probabilities = expit(logits[known, c].astype(np.float64)).astype(np.float32)
            counts |= rates_of(positive, probabilities >= threshold)
        rows[name] = counts
    columns = ["threshold", "images", "positives", "called", *RATES, "npv", "f1"]
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).astype(float)
    return table.rename_axis("class")


def table_of_rates(rows_of_seed: dict[str, Rows]) -> pd.DataFrame:
    """The table of `rates_at` of each seed, at its checkpoint's thresholds, with intervals.

    Columns such as `ppv low` and `ppv high` are the 95 % interval over patients; f1 has none. The
    index is seed and class. No column but the counts is filled where rows of an earlier version do
    not have the thresholds.
    """
    tables = {}
    for seed, rows in rows_of_seed.items():
        labels = rows.labels()
        logits = rows.logits()
        of_card = rows.about.get("thresholds") or {}
        thresholds = {name: of_card.get(name) for name in rows.class_names}
        table = rates_at(labels, logits, thresholds)
        patient_ids = rows.table["patient_id"].to_numpy()
        for rate, values in values_behind(labels, logits, thresholds).items():
            patients = [len(np.unique(patient_ids[~np.isnan(column)])) for column in values.T]
            resamples = resampled_means(values, patient_ids)
            both = bounds(resamples, np.array(patients), table[rate].to_numpy())
            at = table.columns.get_loc(rate) + 1
            for k, end in enumerate(("low", "high")):
                table.insert(at + k, f"{rate} {end}", both[k])
        tables[seed] = table
    return pd.concat(tables, names=["seed"])


def values_behind(
    labels: np.ndarray, logits: np.ndarray, thresholds: dict[str, float | None]
) -> dict[str, np.ndarray]:
    """What each rate is the mean of: (N, C), 0 or 1, NaN for images that do not count."""
    probabilities = expit(logits.astype(np.float64)).astype(np.float32)
    levels = np.array([np.nan if level is None else level for level in thresholds.values()])
    called = np.where(np.isnan(levels) | np.isnan(labels), np.nan, probabilities >= levels)
    return {
        "sensitivity": np.where(labels == 1, called, np.nan),
        "specificity": np.where(labels == 0, 1 - called, np.nan),
        "ppv": np.where(called == 1, labels, np.nan),
        "npv": np.where(called == 0, 1 - labels, np.nan),
    }


def as_text(rates: pd.DataFrame) -> pd.DataFrame:
    """A table of rates to be printed, without intervals; rates have three digits, NaN is blank."""
    rates = rates[[name for name in rates if not name.endswith((" low", " high"))]]
    text = rates.map("{:.3f}".format)
    counts = ["images", "positives", "called"]
    text[counts] = rates[counts].map("{:.0f}".format)
    return text.where(rates.notna(), "")


def rates_of(positive: np.ndarray, called: np.ndarray) -> dict[str, float]:
    """The rates of a class, from (N,) bool: whether an image has it, and whether it is called."""
    hits = (positive & called).sum()
    rests = (~positive & ~called).sum()
    with np.errstate(invalid="ignore"):  # 0 of 0 is NaN
        return {
            "called": called.sum(),
            "sensitivity": hits / positive.sum(),
            "specificity": rests / (~positive).sum(),
            "ppv": hits / called.sum(),
            "npv": rests / (~called).sum(),
            "f1": 2 * hits / (positive.sum() + called.sum()),
        }
