"""Scores beside the published ones, or beside those of another experiment."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from pylon.scoring.bootstrap import difference_of_seeds, paired_spread
from pylon.scoring.rows import Rows
from pylon.scoring.tables import Scored, print_table
from pylon.system.files import write_csv

Score = Literal["auroc", "point_localization"]
MARGIN = {"auroc": 0.01, "point_localization": 0.04}  # a difference within it is none


def published(score: Score) -> pd.DataFrame:
    """The five seeds of the authors' README, a row a seed; "micro" AUROC is called `weighted`."""
    path = Path(__file__).with_name(f"published_{score}.csv")
    return pd.read_csv(path, comment="#", index_col="seed")


def beside(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    name: str,
    margin: float | np.ndarray,
    of_patients: np.ndarray | None = None,
    same: str = "the same",
) -> pd.DataFrame:
    """Compare the scores of our seeds with those of others, a row a class.

    Args:
        ours, theirs: a row a seed, a column a class.
        name: what the others are called.
        margin: (K,) or one for all: a difference whose interval lies within it is none.
        of_patients: (K,) standard deviation of the difference over resampled patients, where it is
            known.
        same: the word for no difference.

    Returns:
        means and standard deviations (n - 1), difference with its 95 % interval (`low` and `high`,
        which end at -1 and 1), margin, verdict: `same`, "differs" (the interval leaves out 0), or
        "not decided" with so many seeds; or with so few patients, where most of the interval is
        theirs and no number of seeds like these could decide.
    """
    theirs = theirs[ours.columns]
    differences = difference_of_seeds(ours.to_numpy(), theirs.to_numpy(), of_patients)
    difference, low, high = differences
    margin = np.broadcast_to(margin, difference.shape)

    # what any number of seeds would leave of the interval
    spread = np.zeros_like(difference) if of_patients is None else of_patients
    half = stats.norm.ppf(0.975) * spread
    least_low = difference - half
    least_high = difference + half
    decided = within(least_low, least_high, margin) | excludes_zero(least_low, least_high)

    # if that is most of it and decides nothing, more seeds are no help
    mostly_patients = 2 * half > np.sqrt(0.5) * (high - low)
    verdicts = np.select(
        [within(low, high, margin), excludes_zero(low, high), mostly_patients & ~decided],
        [same, "differs", "not decided with so few patients"],
        default=f"not decided with {seeds_of(ours, theirs, of_patients)}",
    )
    columns = {
        f"{name} mean": theirs.mean(),
        f"{name} std": theirs.std(),
        "ours mean": ours.mean(),
        "ours std": ours.std(),
        "difference": difference,
        "low": low.clip(-1),
        "high": high.clip(max=1),
        "margin": margin,
        "verdict": verdicts,
    }
    return pd.DataFrame(columns).rename_axis("class")


def within(low: np.ndarray, high: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Whether intervals lie within the margin; of five seeds against themselves they are equal."""
    largest = margin + 1e-12
    return (-largest <= low) & (high <= largest)


def excludes_zero(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low > 0) | (high < 0)


def seeds_of(ours: pd.DataFrame, theirs: pd.DataFrame, of_patients: np.ndarray | None) -> str:
    """`3 seeds`, or `1 and 2 seeds`; the published ones are not counted."""
    counts = {len(ours)} if of_patients is None else {len(ours), len(theirs)}
    numbers = " and ".join(map(str, sorted(counts)))
    return numbers + (" seed" if counts == {1} else " seeds")


def beside_published(ours: pd.DataFrame, score: Score) -> pd.DataFrame:
    """Compare our seeds with the published five (see `beside`).

    Where the published seeds scatter so much that their own interval, of five against five, is
    wider than the margin (Hernia; Atelectasis, Infiltration and Mass in their boxes), that is the
    margin: they themselves tell no more.
    """
    theirs = published(score)
    scores = theirs[ours.columns].to_numpy()
    _, _, own = difference_of_seeds(scores, scores)
    margin = np.maximum(MARGIN[score], own)
    return beside(ours, theirs, "published", margin, same="reproduced")


def why_not_published(rows_of_seed: dict[str, Rows], whose: str) -> str | None:
    """What keeps scores from being compared with the published ones, None if nothing does.

    Args:
        rows_of_seed: that the scores are made of, by seed.
        whose: what the published scores are of, for a sentence.
    """
    for rows in rows_of_seed.values():
        if rows.about["not_official"] is not None:
            return rows.about["not_official"]
    for rows in rows_of_seed.values():
        if rows.about["network"] != "pylon" or rows.about.get("method", "map") != "map":
            return f"they are {whose}"
    return None


def print_beside(
    score: Score, scored: dict[str, Scored], folder: Path, suffix: str, why_not: str | None
) -> None:
    """Print and write the first experiment beside the published seeds, and beside the others.

    Args:
        score: which one it is.
        scored: by the names of the experiments.
        folder: of the csv files.
        suffix: of their names, behind the score.
        why_not: why there is no comparison with the published seeds, if there is none.
    """
    (_, ours), *others = scored.items()
    defined = ours.scores.notna().all()  # classes without a score are left out
    scores = ours.scores.loc[:, defined]

    # the published seeds
    if why_not is None:
        path = folder / f"{score}{suffix}_beside_published.csv"
        show("published", beside_published(scores, score), path, "seeds")
    else:
        print(f"not compared with the published seeds: {why_not}")

    # the others, in pairs: the same resamples of patients for both
    for name, theirs in others:
        our_mean = ours.resamples.mean(axis=0)[:, defined]
        their_mean = theirs.resamples.mean(axis=0)[:, defined]
        of_patients = paired_spread(our_mean, their_mean, ours.patient_counts[defined])
        counts = (len(ours.scores), len(theirs.scores))
        over = "patients, in pairs" + (", and seeds" if max(counts) > 1 else "")
        path = folder / f"{score}{suffix}_beside_{name}.csv"
        show(name, beside(scores, theirs.scores, name, MARGIN[score], of_patients), path, over)
        if 1 in counts:
            print(
                "note: one seed does not tell how much seeds differ: verdicts are of that network "
                "alone"
            )


def show(name: str, table: pd.DataFrame, path: Path, over: str) -> None:
    """Write a comparison and print it."""
    write_csv(path, table)
    print(
        f"\nbeside {name}; low and high: 95 % interval of the difference, over {over}; "
        f"written to {path}"
    )
    print_table(table)
