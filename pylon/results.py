"""Tables of seeds, with their intervals, and beside the published ones or those of another run."""

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pylon.chestxray14 import class_names
from pylon.files import write_atomically
from pylon.intervals import bounds, difference_of_seeds, paired_spread, too_little

Score = Literal["auroc", "point_localization"]
MARGIN = {"auroc": 0.01, "point_localization": 0.04}  # a difference within it is none

# of the sorted names of NIH's test images, a line each; of their labels and of NIH's boxes, as sorted tables in csv
OFFICIAL_TEST_SHA256 = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"
OFFICIAL_LABELS_SHA256 = "077c7323fb2b2e763b7c74058cb2a6b267ccf3e2b618fa113e8f785205c26b2e"
OFFICIAL_BOXES_SHA256 = "ba17d51af60957a343ec3d15758e4d34ab3f0c08aada1fe3aae51088e30c9e0d"


class Run(NamedTuple):
    """The scores of an experiment."""

    scores: pd.DataFrame  # a row a seed, a column a class, or a mean over classes
    resamples: np.ndarray  # (seeds, RESAMPLES, columns): the same scores in resamples of the patients
    patients: np.ndarray  # (columns,) how many patients each score is of


def table_of_seeds(run: Run) -> pd.DataFrame:
    """Seeds as rows, scores as columns; then mean and, from two seeds on, standard deviation (n - 1); then intervals.

    The 95 % interval of seed 0 is in the rows `0 low` and `0 high`, that of the mean of several in `mean low` and
    `mean high`. All are over patients; how much seeds differ is the row `std`.
    """
    table = pd.concat([run.scores, run.scores.agg(["mean", "std"])]).rename_axis("seed")
    scores = run.scores.to_numpy()
    each = [bounds(run.resamples[k], run.patients, scores[k]) for k in range(len(scores))]
    for label, low_and_high in zip(run.scores.index, each, strict=True):
        table.loc[f"{label} low"], table.loc[f"{label} high"] = low_and_high
    if len(each) > 1:
        of_mean = bounds(run.resamples.mean(axis=0), run.patients)
        little = too_little(scores, run.patients).any(axis=0) | np.isnan(of_mean).any(axis=0)  # as in 1, 0, 1
        table.loc["mean low"], table.loc["mean high"] = np.where(little, np.mean(each, axis=0), of_mean)
    return table


def published(score: Score) -> pd.DataFrame:
    """The five seeds of the authors' README, a row a seed; their "micro" AUROC is the column `weighted`."""
    return pd.read_csv(Path(__file__).with_name(f"published_{score}.csv"), comment="#", index_col="seed")


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
        of_patients: (K,) standard deviation of the difference over resampled patients, where it is known.
        same: the word for no difference.

    Returns:
        means and standard deviations (n - 1), difference with its 95 % interval (`low` and `high`, which end at -1 and
        1), margin, verdict: `same`, "differs" (the interval leaves out 0), or "not decided" with so many seeds; or with
        so few patients, where most of the interval is theirs and no number of seeds like these could decide.
    """
    theirs = theirs[ours.columns]
    difference, low, high = difference_of_seeds(ours.to_numpy(), theirs.to_numpy(), of_patients)
    margin = np.broadcast_to(margin, difference.shape)
    counts = sorted({len(ours), len(theirs)} if of_patients is not None else {len(ours)})
    seeds = " and ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")

    largest = margin + 1e-12  # of five seeds against themselves the interval is the margin

    def is_same(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return (-largest <= low) & (high <= largest)

    def differs(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return (low > 0) | (high < 0)

    # what any number of seeds would leave of the interval: if it is most of it and decides nothing, seeds are no help
    half = stats.norm.ppf(0.975) * (np.zeros_like(difference) if of_patients is None else of_patients)
    least = difference - half, difference + half
    in_vain = (2 * half > np.sqrt(0.5) * (high - low)) & ~is_same(*least) & ~differs(*least)
    verdicts = np.select(
        [is_same(low, high), differs(low, high), in_vain],
        [same, "differs", "not decided with so few patients"],
        default=f"not decided with {seeds}",
    )
    return pd.DataFrame({
        f"{name} mean": theirs.mean(), f"{name} std": theirs.std(), "ours mean": ours.mean(), "ours std": ours.std(),
        "difference": difference, "low": low.clip(-1), "high": high.clip(max=1), "margin": margin, "verdict": verdicts,
    }).rename_axis("class")  # fmt: skip


def beside_published(ours: pd.DataFrame, score: Score) -> pd.DataFrame:
    """Compare our seeds with the published five (see `beside`).

    Where the published seeds scatter so much that their own interval, of five against five, is wider than the margin
    (Hernia; Atelectasis, Infiltration and Mass in their boxes), that is the margin: they themselves tell no more.
    """
    theirs = published(score)
    _, _, own = difference_of_seeds(*[theirs[ours.columns].to_numpy()] * 2)
    return beside(ours, theirs, "published", np.maximum(MARGIN[score], own), same="reproduced")


def print_beside(score: Score, runs: dict[str, Run], folder: Path, suffix: str, why_not: str | None) -> None:
    """Print and write the first run beside the published seeds, or say why not, and beside the other runs."""
    (_, ours), *others = runs.items()
    scored = ours.scores.notna().all()  # classes without a score are left out
    scores = ours.scores.loc[:, scored]

    def show(name: str, table: pd.DataFrame, over: str) -> None:
        path = folder / f"{score}{suffix}_beside_{name}.csv"
        write_csv(path, table)
        print(f"\nbeside {name}; low and high: 95 % interval of the difference, over {over}; written to {path}")
        print_table(table)

    if why_not is None:
        show("published", beside_published(scores, score), "seeds")
    else:
        print(f"not compared with the published seeds: {why_not}")
    for name, theirs in others:
        means = (run.resamples.mean(axis=0)[:, scored] for run in (ours, theirs))
        of_patients = paired_spread(*means, ours.patients[scored])
        counts = len(ours.scores), len(theirs.scores)
        over = "patients, in pairs" + (", and seeds" if max(counts) > 1 else "")
        show(name, beside(scores, theirs.scores, name, MARGIN[score], of_patients), over)
        if 1 in counts:
            print("note: one seed does not tell how much seeds differ: verdicts are of that network alone")


def why_not_official(images: pd.DataFrame, boxes: pd.DataFrame | None = None) -> str | None:
    """What keeps scores on these test images, and boxes, from being compared with published ones, if anything does."""
    test = images[images["split"] == "test"].sort_values("image_id")
    if hashlib.sha256("\n".join(test["image_id"]).encode()).hexdigest() != OFFICIAL_TEST_SHA256:
        return "its test images are not those of NIH's official test list"
    if hash_of_table(test[["image_id", *class_names(images)]]) != OFFICIAL_LABELS_SHA256:
        return "its labels of the test images are not NIH's"
    if boxes is not None:
        lines = boxes[["image_id", "pathology", "x", "y", "w", "h"]].sort_values(["image_id", "pathology"])
        if hash_of_table(lines) != OFFICIAL_BOXES_SHA256:
            return "its boxes are not the 984 of NIH's list"
    return None


def hash_of_table(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def write_csv(path: Path, table: pd.DataFrame, index: bool = True) -> None:
    """Write a table; an undefined score is an empty cell."""
    write_atomically(path, table.to_csv(index=index, lineterminator="\n").encode())


def print_table(table: pd.DataFrame) -> None:
    """Print a table of scores in Markdown, as the published README has it; an undefined score is blank."""
    header = [table.index.name, *table.columns]
    cells = table.map(lambda score: score if isinstance(score, str) else "" if pd.isna(score) else f"{score:.6f}")
    lines = [[str(seed), *row] for seed, *row in cells.itertuples()]
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]
    for line in [header, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
