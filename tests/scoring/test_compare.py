"""Scores compared with the published ones and with those of another experiment."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scored import scored

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.scoring.compare import beside, beside_published, print_beside, published
from pylon.scoring.tables import Scored


def test_published_tables_match_the_readme(shared):
    folder = shared / "reference" / "published"
    for score in ("auroc", "point_localization"):
        theirs = pd.read_csv(folder / f"{score}_seed_readme.csv", index_col="seed")
        np.testing.assert_array_equal(published(score), theirs.loc[[0, 1, 2, 3, 4]])
    assert list(published("auroc").columns) == [*PATHOLOGIES, "weighted", "macro"]
    assert published("point_localization")["micro"].mean() == pytest.approx(0.6163, abs=1e-4)


@pytest.mark.parametrize(("score", "shift"), [("auroc", 0.03), ("point_localization", 0.1)])
def test_published_seeds_reproduce_themselves(score, shift):
    theirs = published(score)
    assert set(beside_published(theirs, score)["verdict"]) == {"reproduced"}
    for other in (theirs + shift, theirs - shift):
        assert set(beside_published(other, score)["verdict"]) == {"differs"}
    alone = beside_published(theirs.iloc[:1], score)
    assert set(alone["verdict"]) == {"not decided with 1 seed"}
    assert alone["low"].isna().all()


def test_verdicts_on_synthetic_images_say_so(tmp_path, capsys):
    ours = Scored(published("auroc"), None, None)
    print_beside("auroc", {"ours": ours}, tmp_path, "", None, "Invented pixels.")
    assert "note: Invented pixels. The comparison below says nothing about PYLON" in (
        capsys.readouterr().out
    )
    table = pd.read_csv(tmp_path / "auroc_beside_published.csv")
    assert set(table["verdict"]) == {"reproduced, on synthetic images"}


def test_margin_is_wider_only_where_published_seeds_vary():
    wide = {
        score: beside_published(published(score), score)["margin"]
        for score in ("auroc", "point_localization")
    }
    assert wide["auroc"][wide["auroc"] != 0.01].index.tolist() == ["Hernia"]
    points = wide["point_localization"]
    assert points[points != 0.04].index.tolist() == ["Atelectasis", "Infiltration", "Mass"]
    seeds = published("auroc")["Hernia"]
    interval = stats.ttest_ind(seeds, seeds, equal_var=False).confidence_interval()
    assert wide["auroc"]["Hernia"] == pytest.approx(interval.high)


def test_verdicts_by_hand():
    ours = pd.DataFrame({"a": [0.5, 0.502], "b": [0.5, 0.502], "c": [0.4, 0.6]})
    theirs = pd.DataFrame({"c": [0.5, 0.6], "b": [0.6, 0.602], "a": [0.501, 0.501]})
    table = beside(ours, theirs, "others", 0.02)
    wide = beside(ours[["c"]], theirs[["c"]] - 0.5, "others", 0.02)
    assert table.loc["c", "high"] == pytest.approx(0.6418, abs=1e-3)
    assert wide.loc["c", "high"] == 1  # clipped: differences of accuracies end at 1
    low = beside(ours[["c"]] - 0.5, theirs[["c"]], "others", 0.02).loc["c"]
    assert (low["low"], low["high"]) == (-1, pytest.approx(0.1418, abs=1e-3))
    assert table["verdict"].tolist() == ["the same", "differs", "not decided with 2 seeds"]
    assert table.loc["b", "difference"] == pytest.approx(-0.1)
    assert table.loc["b", "others mean"] == pytest.approx(0.601)
    table = beside(ours, theirs[:1], "others", 0.02, of_patients=np.array([0.5, 0.001, 0.001]))
    assert table["verdict"].tolist() == [
        "not decided with so few patients", "differs", "not decided with 1 and 2 seeds"
    ]  # fmt: skip


def test_small_difference_counts_as_none_even_if_certain():
    ours = pd.DataFrame({"a": [0.5001, 0.5002]})
    theirs = pd.DataFrame({"a": [0.5031, 0.5032]})
    table = beside(ours, theirs, "others", 0.01)
    assert table.loc["a", "high"] < 0
    assert table.loc["a", "verdict"] == "the same"


def test_comparison_uses_the_mean_of_seeds(tmp_path):
    """Where one seed gains in a resample, the other loses; their mean stays the same."""
    scores = pd.DataFrame({"Mass": [0.5, 0.5]}, index=["0", "1"])
    swing = np.linspace(-0.2, 0.2, 41)[:, None]
    ours = Scored(scores, np.stack([0.5 + swing, 0.5 - swing]), np.array([1000]))
    theirs = Scored(scores - 0.1, np.stack([0.4 - swing, 0.4 + swing]), np.array([1000]))
    print_beside("auroc", {"mine": ours, "other": theirs}, tmp_path, "", "it is a phantom")
    table = pd.read_csv(tmp_path / "auroc_beside_other.csv", index_col="class")
    assert table.loc["Mass", "verdict"] == "differs"
    assert table.loc["Mass", "high"] - table.loc["Mass", "low"] < 0.01


def test_comparisons_are_printed_and_written(tmp_path, capsys):
    runs = {
        "mine": scored({"0": [0.5, np.nan]}, ["Mass", "Hernia"]),
        "other": scored({"0": [0.5, np.nan]}, ["Mass", "Hernia"]),
    }
    print_beside("auroc", runs, tmp_path, "", "it is a phantom")
    out = capsys.readouterr().out
    assert "not compared with the published seeds: it is a phantom" in out
    assert "a single seed does not show" in out
    assert "over patients (paired); written to" in out
    table = pd.read_csv(tmp_path / "auroc_beside_other.csv", index_col="class")
    assert table.index.tolist() == ["Mass"]  # a class without a score is left out
    # 20 patients, and all resamples are equal
    assert table.loc["Mass", "verdict"] == "not decided with so few patients"
    assert table.loc["Mass", "high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    theirs = published("auroc")
    mine = Scored(theirs, theirs.to_numpy()[:, None], np.full(16, 9))
    print_beside("auroc", {"mine": mine}, tmp_path, "_x", None)
    assert capsys.readouterr().out.count("| reproduced |") == 16
    assert (tmp_path / "auroc_x_beside_published.csv").exists()
