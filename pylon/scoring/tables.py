"""From rows to tables: one row per seed, mean and standard deviation, intervals, reference points.

All scores are computed from `Rows`; no network is involved.
"""

import csv
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pylon.scoring.bootstrap import (
    bounds,
    patients_behind_auroc,
    resampled_accuracy,
    resampled_auroc,
    too_little,
)
from pylon.scoring.metrics import accuracies, auroc, mean_auroc
from pylon.scoring.reference_points import centre_hits, prior_hits
from pylon.scoring.rows import Rows


class Scored(NamedTuple):
    """The scores of an experiment."""

    scores: pd.DataFrame  # one row per seed, one column per class or mean over classes
    resamples: np.ndarray  # (seeds, RESAMPLES, columns): the same scores in resamples of patients
    patient_counts: np.ndarray  # (columns,) number of patients behind each score
    # whether they are shares of hits, to which binomial bounds apply: not counts, nor mean IoUs
    are_shares: np.ndarray | bool = True


def score_images(rows_of_seed: dict[str, Rows]) -> Scored:
    """AUROC of each seed: per class, `weighted` by positives (the published "micro"), `macro`."""
    scores = {}
    resamples = []
    for seed, rows in rows_of_seed.items():
        labels = rows.labels()
        logits = rows.logits()
        patient_ids = rows.table["patient_id"].to_numpy()
        areas = auroc(labels, logits)
        columns = [*rows.class_names, "weighted", "macro"]
        scores[seed] = dict(zip(columns, [*areas, *mean_auroc(areas, labels)], strict=True))
        resamples.append(resampled_auroc(labels, logits, patient_ids))
    patient_counts = patients_behind_auroc(labels, patient_ids)  # all seeds have the same images
    table = pd.DataFrame.from_dict(scores, orient="index")
    return Scored(table, np.array(resamples), patient_counts)


def score_boxes(rows_of_seed: dict[str, Rows]) -> Scored:
    """Point localization accuracy of each seed: per class that has boxes, all rows as `micro`."""
    hits = {seed: rows.table["hit"].to_numpy() for seed, rows in rows_of_seed.items()}
    return score_hits(rows_of_seed, hits)


def score_hits(rows_of_seed: dict[str, Rows], hits_of_seed: dict[str, np.ndarray]) -> Scored:
    """Mean of the hits (N,), in [0, 1], of each seed: per class that has boxes, all as `micro`."""
    scores = {}
    resamples = []
    for seed, rows in rows_of_seed.items():
        hits = hits_of_seed[seed]
        classes = rows.table["pathology"].to_numpy()
        patient_ids = rows.table["patient_id"].to_numpy()
        names = boxed_classes(rows)
        columns = [*names, "micro"]
        scores[seed] = dict(zip(columns, accuracies(hits, classes, names), strict=True))
        resamples.append(resampled_accuracy(hits, classes, patient_ids, names))
    table = pd.DataFrame.from_dict(scores, orient="index")
    patient_counts = patients_behind_accuracy(rows)  # all seeds have the same boxes
    return Scored(table, np.array(resamples), patient_counts)


def patients_behind_accuracy(rows: Rows) -> np.ndarray:
    """Number of patients with boxes, of each class and of any: (K + 1,) int."""
    of_class = rows.table.groupby("pathology")["patient_id"].nunique()
    return np.append(of_class[boxed_classes(rows)], rows.table["patient_id"].nunique())


def boxed_classes(rows: Rows) -> list[str]:
    """The classes that have boxes, in the network's order."""
    boxed = set(rows.table["pathology"])
    return [name for name in rows.class_names if name in boxed]


def table_of_seeds(scored: Scored) -> pd.DataFrame:
    """Seeds as rows, scores as columns; then mean and standard deviation (n - 1); then intervals.

    The 95 % interval of seed 0 is in the rows `0 low` and `0 high`, that of the mean of several in
    `mean low` and `mean high`. All are over patients; the spread of the seeds is the row `std`, NaN
    for a single seed.
    """
    table = pd.concat([scored.scores, scored.scores.agg(["mean", "std"])]).rename_axis("seed")
    scores = np.where(scored.are_shares, scored.scores, np.nan)  # binomial bounds are for shares
    each = []
    for k, label in enumerate(scored.scores.index):
        interval = bounds(scored.resamples[k], scored.patient_counts, scores[k])
        add_interval(table, label, interval)
        each.append(interval)
    if len(each) == 1:
        return table

    # where seeds have too little data to resample, such as hits of 1, 0, 1: mean of their bounds
    of_mean = bounds(scored.resamples.mean(axis=0), scored.patient_counts)
    little = too_little(scores, scored.patient_counts).any(axis=0) | np.isnan(of_mean).any(axis=0)
    interval = np.where(little, np.mean(each, axis=0), of_mean)
    add_interval(table, "mean", interval)
    return table


def labels_of_table(path: Path) -> list[str]:
    """The seeds, or names of checkpoints, in a table of seeds; none if the file is missing."""
    if not path.exists():
        return []
    with open(path, newline="", errors="replace") as file:
        labels = [cells[0] for cells in csv.reader(file) if cells]
    return list(takewhile(lambda label: label != "mean", labels[1:]))


def add_interval(table: pd.DataFrame, label: str, interval: np.ndarray) -> None:
    """Add the rows `LABEL low` and `LABEL high` from bounds of shape (2, columns)."""
    low, high = interval
    table.loc[f"{label} low"] = low
    table.loc[f"{label} high"] = high


def add_reference_points(table: pd.DataFrame, rows_of_seed: dict[str, Rows]) -> int:
    """Add reference points to a table of point localization; return how many rows lack a prior.

    Rows that are added: `image centre`, `prior`, and `lift over prior` with its interval (see
    reference_points.py); `called present`, the share of rows whose finding the network calls
    present, and `hit if called present`, the accuracy among those.
    """
    # all seeds have the same boxes
    first, *_ = rows_of_seed.values()
    names = boxed_classes(first)
    bbox_xywh = first.bboxes()
    image_size = first.table[["image_height", "image_width"]].to_numpy()
    classes = first.table["pathology"].to_numpy()
    patient_ids = first.table["patient_id"].to_numpy()

    # reference points: what is reachable without looking at the image
    centre = centre_hits(bbox_xywh, image_size)
    prior = prior_hits(bbox_xywh, image_size, classes, patient_ids)
    lift = np.mean([rows.table["hit"] for rows in rows_of_seed.values()], axis=0) - prior
    table.loc["image centre"] = accuracies(centre, classes, names)
    table.loc["prior"] = accuracies(prior, classes, names)
    table.loc["lift over prior"] = accuracies(lift, classes, names)
    resamples = resampled_accuracy(lift, classes, patient_ids, names)
    interval = bounds(resamples, patients_behind_accuracy(first))
    add_interval(table, "lift over prior", interval)

    # findings that the network calls present
    called = [rows.table["called"] for rows in rows_of_seed.values()]
    hit_if_called = [
        rows.table["hit"].where(rows.table["called"] == 1) for rows in rows_of_seed.values()
    ]
    for label, hits_of_seed in {
        "called present": called,
        "hit if called present": hit_if_called,
    }.items():
        of_seeds = pd.DataFrame([accuracies(hits, classes, names) for hits in hits_of_seed])
        table.loc[label] = of_seeds.mean().to_numpy()
    return int(np.isnan(prior).sum())


def print_table(table: pd.DataFrame) -> None:
    """Print a table of scores in Markdown, as in the published README; NaN is blank."""
    header = [table.index.name, *table.columns]
    lines = [[str(label), *map(cell_of, row)] for label, *row in table.itertuples()]
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]
    for line in [header, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(padded(line, widths)) + " |")


def cell_of(score: float | str) -> str:
    if isinstance(score, str):
        return score
    return "" if pd.isna(score) else f"{score:.6f}"


def padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
