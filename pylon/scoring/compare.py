"""Compare scores with the published ones or with those of another experiment."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from pylon.scoring.bootstrap import difference_of_seeds, paired_spread
from pylon.scoring.rows import Rows
from pylon.scoring.tables import Scored, print_table
from pylon.system.files import write_csv

Score = Literal["auroc", "point_localization", "box_localization"]
# differences within it count as none
MARGIN = {"auroc": 0.01, "point_localization": 0.04, "box_localization": 0.04}


def published(score: Score) -> pd.DataFrame:
    """Five seeds of the authors' README, one row per seed; "micro" AUROC is called `weighted`."""
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
    """Compare the scores of our seeds with those of others, one row per class.

    Args:
        ours, theirs: one row per seed, one column per class.
        name: of the others, for the column names.
        margin: (K,) or one for all: a difference whose interval lies within it counts as none.
        of_patients: (K,) standard deviation of the difference over resampled patients, if known.
        same: verdict for no difference.

    Returns:
        means and standard deviations (n - 1), difference with its 95 % confidence interval (`low`
        and `high`, clipped to [-1, 1]), margin, verdict: `same`, "differs" (the interval excludes
        0), or "not decided": with N seeds, or, if most of the interval comes from the patients and
        no number of such seeds could decide, with so few patients.
    """
    theirs = theirs[ours.columns]
    differences = difference_of_seeds(ours.to_numpy(), theirs.to_numpy(), of_patients)
    difference, low, high = differences
    margin = np.broadcast_to(margin, difference.shape)

    # the interval that would remain with any number of seeds
    spread = np.zeros_like(difference) if of_patients is None else of_patients
    half = stats.norm.ppf(0.975) * spread
    least_low = difference - half
    least_high = difference + half
    decided = within(least_low, least_high, margin) | excludes_zero(least_low, least_high)

    # if that is most of it and still undecided, more seeds would not help
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
    """Whether intervals lie within the margin, or on it, as for published against themselves."""
    largest = margin + 1e-12
    return (-largest <= low) & (high <= largest)


def excludes_zero(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low > 0) | (high < 0)


def seeds_of(ours: pd.DataFrame, theirs: pd.DataFrame, of_patients: np.ndarray | None) -> str:
    """`3 seeds`, or `1 and 2 seeds`; the published seeds are not counted."""
    counts = {len(ours)} if of_patients is None else {len(ours), len(theirs)}
    numbers = " and ".join(map(str, sorted(counts)))
    return numbers + (" seed" if counts == {1} else " seeds")


def beside_published(ours: pd.DataFrame, score: Score) -> pd.DataFrame:
    """Compare our seeds with the published five (see `beside`).

    Where the published seeds vary so much that the interval of the five against themselves is wider
    than the margin (AUROC of Hernia; localization of Atelectasis, Infiltration and Mass), that
    interval is the margin, because they allow no finer comparison.
    """
    theirs = published(score)
    scores = theirs[ours.columns].to_numpy()
    _, _, own = difference_of_seeds(scores, scores)
    margin = np.maximum(MARGIN[score], own)
    return beside(ours, theirs, "published", margin, same="reproduced")


def why_not_published(rows_of_seed: dict[str, Rows], whose: str) -> str | None:
    """Why scores cannot be compared with the published ones; None if they can.

    Args:
        rows_of_seed: the rows behind the scores, by seed.
        whose: what the published scores belong to; completes the sentence.
    """
    for rows in rows_of_seed.values():
        if rows.about["not_official"] is not None:
            return rows.about["not_official"]
    for rows in rows_of_seed.values():
        if rows.about["network"] != "pylon" or rows.about.get("method", "map") != "map":
            return f"they are {whose}"
    return None


def print_beside(
    score: Score,
    scored: dict[str, Scored],
    folder: Path,
    suffix: str,
    why_not: str | None,
    synthetic: str | None = None,
) -> None:
    """Print and write how the first experiment compares with the published seeds and the others.

    Args:
        score: which score.
        scored: scores by the name of the experiment.
        folder: for the csv files.
        suffix: of their names, after the score.
        why_not: why there is no comparison with the published seeds; None to compare.
        synthetic: what the images are if they are not radiographs; every verdict then says so.
    """
    ours = next(iter(scored.values()))
    if why_not is None:
        path = folder / f"{score}{suffix}_beside_published.csv"
        scores = ours.scores.loc[:, ours.scores.notna().all()]
        table = beside_published(scores, score)
        if synthetic is not None:
            table["verdict"] += ", on synthetic images"
            print(f"\nnote: {synthetic} The comparison below says nothing about PYLON.")
        show("published", table, path, "seeds")
    else:
        print(f"not compared with the published seeds: {why_not}")
    print_paired(score, scored, folder, suffix)


def print_paired(score: Score, scored: dict[str, Scored], folder: Path, suffix: str) -> None:
    """Print and write how the first experiment compares with each of the others.

    Comparisons are paired: both use the same resamples of patients. Args as for `print_beside`.
    """
    (_, ours), *others = scored.items()
    for name, theirs in others:
        counts = (len(ours.scores), len(theirs.scores))
        over = "patients (paired)" + (" and seeds" if max(counts) > 1 else "")
        path = folder / f"{score}{suffix}_beside_{name}.csv"
        show(name, beside_other(score, ours, theirs, name), path, over)
        if 1 in counts:
            print(
                "note: a single seed does not show how much seeds vary: verdicts hold for that "
                "network only"
            )


def beside_other(score: Score, ours: Scored, theirs: Scored, name: str) -> pd.DataFrame:
    """Compare with another experiment on the same patients (see `beside`), in pairs."""
    defined = ours.scores.notna().all()  # classes without a score are left out
    our_mean = ours.resamples.mean(axis=0)[:, defined]
    their_mean = theirs.resamples.mean(axis=0)[:, defined]
    of_patients = paired_spread(our_mean, their_mean, ours.patient_counts[defined])
    scores = ours.scores.loc[:, defined]
    return beside(scores, theirs.scores, name, MARGIN[score], of_patients)


def show(name: str, table: pd.DataFrame, path: Path, over: str) -> None:
    """Write a comparison and print it."""
    write_csv(path, table)
    print(
        f"\ncompared with {name}; low, high: 95 % interval of the difference, over {over}; "
        f"written to {path}"
    )
    print_table(table)
