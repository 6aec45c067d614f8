"""Tables of the scores of boxes (boxes.py): a row a seed, intervals, controls; paired comparisons.

All of them are computed from rows and heatmaps; no network is involved.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pylon.scoring.bootstrap import resampled_means
from pylon.scoring.boxes import (
    FRACTIONS,
    SCORES,
    SHARES,
    cross_fitted,
    oracle,
    prior_boxes,
    random_maps,
    score_maps,
    score_single,
)
from pylon.scoring.charts import scores_chart
from pylon.scoring.compare import print_paired
from pylon.scoring.rows import Rows
from pylon.scoring.tables import Scored, boxed_classes, print_table, score_hits, table_of_seeds
from pylon.system.files import write_atomically, write_csv

SHOWN = "T(IoU 0.3)"  # of each class, and in comparisons
POOLED = "micro"  # all rows, as in the table of points


class BoxScores(NamedTuple):
    """The scores of each row of one network, (N, len(SCORES)) each."""

    scores: np.ndarray  # at the fraction chosen on other patients; NaN without any
    oracle: np.ndarray  # at the fraction that is best on the rows themselves
    fractions: np.ndarray  # (N,) the chosen fraction; NaN where none could be
    means: dict[str, np.ndarray]  # the mean map of each class, which maxima.py draws


def score_heatmaps(maps: np.ndarray, rows: Rows) -> BoxScores:
    """Score the heatmaps (N, h, w) float32 of the rows."""
    classes, patient_ids, bbox_xywh, image_size = truth_of(rows)
    at_fractions = score_maps(maps, bbox_xywh, image_size)
    picked, chosen = cross_fitted(at_fractions, classes, patient_ids)
    fractions = np.where(chosen < 0, np.nan, FRACTIONS[chosen])
    means = mean_maps(maps, classes)
    return BoxScores(picked, oracle(at_fractions, classes), fractions, means)


def mean_maps(maps: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of the min-max scaled maps of each class, (h, w) float64; a flat map counts as 0.

    Args:
        maps: (N, h, w) float32.
        classes: (N,) of each map.
    """
    means = {}
    for name in np.unique(classes):
        of_class = np.flatnonzero(classes == name)
        total = np.zeros(maps.shape[1:])
        for k in of_class:  # one at a time: those of Grad-CAM are large
            low = maps[k].min()
            total += (maps[k] - low) / max(maps[k].max() - low, np.float32(1e-12))
        means[name] = total / len(of_class)
    return means


def controls_of(rows: Rows) -> dict[str, np.ndarray]:
    """Scores of what does not look at the image, (N, len(SCORES)) each, by name."""
    classes, patient_ids, bbox_xywh, image_size = truth_of(rows)
    prior = prior_boxes(bbox_xywh, image_size, classes, patient_ids)
    whole = np.zeros((len(classes), 4))
    whole[:, 2:] = image_size[:, ::-1]
    return {
        "prior box": score_single(prior, bbox_xywh),
        "whole image": score_single(whole, bbox_xywh),
        "random maps": score_heatmaps(random_maps(len(classes)), rows).scores,
    }


def truth_of(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Classes (N,), patient ids (N,), boxes (N, K, 4) and sizes of the images (N, 2)."""
    table = rows.table
    classes = table["pathology"].to_numpy()
    image_size = table[["image_height", "image_width"]].to_numpy()
    return classes, table["patient_id"].to_numpy(), rows.bboxes(), image_size


def box_table(
    rows_of_seed: dict[str, Rows], scores_of_seed: dict[str, BoxScores]
) -> dict[str, pd.DataFrame]:
    """Tables by class, and of all rows pooled: seeds as in `table_of_seeds`, oracle, controls.

    Rows of classes of a single patient, for whom no fraction can be chosen, count nowhere. The
    column `fraction` has the median of the fractions that were chosen.
    """
    first, *_ = rows_of_seed.values()
    classes, patient_ids, _, _ = truth_of(first)
    controls = controls_of(first)
    best = np.mean([each.oracle for each in scores_of_seed.values()], axis=0)
    scored_rows = ~np.isnan(next(iter(scores_of_seed.values())).fractions)
    tables = {}
    for name in [POOLED, *boxed_classes(first)]:
        of_class = scored_rows & ((classes == name) | (name == POOLED))
        if not of_class.any():
            continue
        resamples = []
        means = {}
        for seed, each in scores_of_seed.items():
            means[seed] = pd.Series(mean_of(each.scores[of_class]), SCORES)
            resamples.append(resampled_means(each.scores[of_class], patient_ids[of_class]))
        patients = np.full(len(SCORES), len(np.unique(patient_ids[of_class])))
        scored = Scored(pd.DataFrame(means).T, np.array(resamples), patients, SHARES)
        table = table_of_seeds(scored)
        table.loc["oracle"] = mean_of(best[of_class])
        for control, values in controls.items():
            table.loc[control] = mean_of(values[of_class])
        fractions = {s: np.median(each.fractions[of_class]) for s, each in scores_of_seed.items()}
        table["fraction"] = pd.Series(fractions)
        tables[name] = table
    return tables


def mean_of(scores: np.ndarray) -> np.ndarray:
    """Means over the rows that are scored: (len(SCORES),); NaN if none is."""
    return pd.DataFrame(scores).mean().to_numpy()


def write_box_tables(
    rows: dict[str, dict[str, Rows]],
    scores: dict[str, dict[str, BoxScores]],
    folder: Path,
    suffix: str,
) -> None:
    """Print and write the first experiment's scores of boxes, and compare them with the others'.

    Args:
        rows, scores: by experiment and seed; experiments without scores are not compared.
        folder: for the tables.
        suffix: of their file names, which names the method.
    """
    name = next(iter(rows))
    tables = box_table(rows[name], scores[name])
    if not tables:
        print("note: no scores of boxes: each class has boxes of a single patient")
        return
    path = folder / f"box_localization{suffix}.csv"
    whole = pd.concat(tables, names=["class"]).reset_index("seed")
    write_csv(path, whole)

    # all rows, every score; then each class, one score
    print(
        "\nboxes around the regions of a map above a fraction of its maximum, which is chosen on "
        f"other patients' boxes; written to {path}"
    )
    print_table(tables[POOLED])
    print(f"\n{SHOWN}, by class")
    classes = [each for each in tables if each != POOLED]
    shown = pd.DataFrame({each: tables[each][SHOWN] for each in [*classes, POOLED]})
    print_table(shown)
    picture = scores_chart(shown, SHOWN, controls=("prior box", "random maps"))
    write_atomically(folder / f"box_localization{suffix}.png", picture)

    # what limits the scores
    unscored = int(np.isnan(next(iter(scores[name].values())).fractions).sum())
    if unscored:
        print(f"note: {unscored} rows are left out, since no other patient has a box of the class")
    ends = [
        each
        for each in classes
        if tables[each]["fraction"].isin([FRACTIONS[0], FRACTIONS[-1]]).any()
    ]
    if ends:
        print(
            f"note: the fraction of {', '.join(ends)} is at an end of those that are tried "
            f"({FRACTIONS[0]} to {FRACTIONS[-1]}): another one might score more"
        )

    # the others, paired
    column = SCORES.index(SHOWN)
    scored = {}
    for other in scores:
        rows_of_seed = rows[other]
        found = {seed: each.scores[:, column] for seed, each in scores[other].items()}
        scored[other] = score_hits(rows_of_seed, found)
    if len(scored) > 1:
        print(f"\n{SHOWN}:", end="")
        print_paired("box_localization", scored, folder, suffix)
