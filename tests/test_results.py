import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pylon.chestxray14 import PATHOLOGIES
from pylon.results import Run, beside, beside_published, print_beside, print_table, published, table_of_seeds, write_csv


def run(rows: dict[str, list[float]], columns: list[str]) -> Run:
    """Scores whose resamples lie up to 0.1 beside them."""
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    resamples = scores.to_numpy()[:, None, :] + np.linspace(-0.1, 0.1, 41)[None, :, None]  # 2.5 %: the second of them
    return Run(scores, resamples, np.full(len(columns), 20))


def test_table(tmp_path, capsys):
    table = table_of_seeds(run({"0": [0.5, np.nan], "3": [0.7, np.nan]}, ["Mass", "Hernia"]))
    print_table(table)
    assert capsys.readouterr().out.splitlines() == [
        "| seed      | Mass     | Hernia |",
        "| --------- | -------- | ------ |",
        "| 0         | 0.500000 |        |",
        "| 3         | 0.700000 |        |",
        "| mean      | 0.600000 |        |",
        "| std       | 0.141421 |        |",
        "| 0 low     | 0.405000 |        |",
        "| 0 high    | 0.595000 |        |",
        "| 3 low     | 0.605000 |        |",
        "| 3 high    | 0.795000 |        |",
        "| mean low  | 0.505000 |        |",
        "| mean high | 0.695000 |        |",
    ]
    write_csv(tmp_path / "a" / "b.csv", table)
    assert (tmp_path / "a" / "b.csv").read_text().splitlines()[:3] == ["seed,Mass,Hernia", "0,0.5,", "3,0.7,"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "b.csv", index_col="seed"), table)


def test_mean_of_seeds_whose_resamples_are_all_alike():
    """Seeds that hit every box and seeds that hit none: each has its binomial bounds, the mean theirs on average."""
    scores = pd.DataFrame({"Nodule": [1.0, 0.0, 1.0]}, index=["0", "1", "2"])
    table = table_of_seeds(Run(scores, np.repeat(scores.to_numpy()[:, None], 30, axis=1), np.array([40])))["Nodule"]
    exact = stats.binomtest(40, 40).proportion_ci(0.95, "exact").low
    assert table["0 low"] == pytest.approx(exact)
    assert table["1 high"] == pytest.approx(1 - exact)
    assert table["mean low"] == pytest.approx(2 / 3 * exact)
    assert table["mean high"] == pytest.approx((3 - exact) / 3)


def test_one_seed_has_no_deviation_and_no_mean_interval():
    table = table_of_seeds(run({"0": [0.5]}, ["Mass"]))
    assert table.index.tolist() == ["0", "mean", "std", "0 low", "0 high"]
    assert np.isnan(table.loc["std", "Mass"])


def test_published_tables_are_those_of_the_readme(shared):
    for score, file in (("auroc", "auroc_seed_readme"), ("point_localization", "point_localization_seed_readme")):
        theirs = pd.read_csv(shared / "reference" / "published" / f"{file}.csv", index_col="seed").loc[[0, 1, 2, 3, 4]]
        np.testing.assert_array_equal(published(score), theirs)
    assert list(published("auroc").columns) == [*PATHOLOGIES, "weighted", "macro"]
    assert published("point_localization")["micro"].mean() == pytest.approx(0.6163, abs=1e-4)


@pytest.mark.parametrize(("score", "shift"), [("auroc", 0.03), ("point_localization", 0.1)])
def test_published_seeds_are_reproduced_by_themselves(score, shift):
    theirs = published(score)
    assert set(beside_published(theirs, score)["verdict"]) == {"reproduced"}
    for other in (theirs + shift, theirs - shift):
        assert set(beside_published(other, score)["verdict"]) == {"differs"}
    alone = beside_published(theirs.iloc[:1], score)
    assert set(alone["verdict"]) == {"not decided with 1 seed"}
    assert alone["low"].isna().all()


def test_margin_is_wider_only_where_published_seeds_scatter():
    wide = {score: beside_published(published(score), score)["margin"] for score in ("auroc", "point_localization")}
    assert wide["auroc"][wide["auroc"] != 0.01].index.tolist() == ["Hernia"]
    points = wide["point_localization"]
    assert points[points != 0.04].index.tolist() == ["Atelectasis", "Infiltration", "Mass"]
    seeds = published("auroc")["Hernia"]
    assert wide["auroc"]["Hernia"] == pytest.approx(
        stats.ttest_ind(seeds, seeds, equal_var=False).confidence_interval().high
    )


def test_verdicts_by_hand():
    ours = pd.DataFrame({"a": [0.5, 0.502], "b": [0.5, 0.502], "c": [0.4, 0.6]})
    theirs = pd.DataFrame({"c": [0.5, 0.6], "b": [0.6, 0.602], "a": [0.501, 0.501]})
    table = beside(ours, theirs, "others", 0.02)
    wide = beside(ours[["c"]], theirs[["c"]] - 0.5, "others", 0.02)
    assert table.loc["c", "high"] == pytest.approx(0.6418, abs=1e-3)
    assert wide.loc["c", "high"] == 1  # as differences of accuracies do
    assert table["verdict"].tolist() == ["the same", "differs", "not decided with 2 seeds"]
    assert table.loc["b", "difference"] == pytest.approx(-0.1)
    assert table.loc["b", "others mean"] == pytest.approx(0.601)
    table = beside(ours, theirs[:1], "others", 0.02, of_patients=np.array([0.5, 0.001, 0.001]))
    assert table["verdict"].tolist() == [
        "not decided with so few patients", "differs", "not decided with 1 and 2 seeds"
    ]  # fmt: skip


def test_a_small_difference_is_none_however_sure_it_is():
    ours, theirs = pd.DataFrame({"a": [0.5001, 0.5002]}), pd.DataFrame({"a": [0.5031, 0.5032]})
    table = beside(ours, theirs, "others", 0.01)
    assert table.loc["a", "high"] < 0
    assert table.loc["a", "verdict"] == "the same"


def test_comparison_is_of_the_mean_of_seeds(tmp_path):
    """In resamples in which one seed gains, the other loses: their mean, of which the difference is, stays."""
    scores = pd.DataFrame({"Mass": [0.5, 0.5]}, index=["0", "1"])
    swing = np.linspace(-0.2, 0.2, 41)[:, None]
    ours = Run(scores, np.stack([0.5 + swing, 0.5 - swing]), np.array([1000]))
    theirs = Run(scores - 0.1, np.stack([0.4 - swing, 0.4 + swing]), np.array([1000]))
    print_beside("auroc", {"mine": ours, "other": theirs}, tmp_path, "", "it is a phantom")
    table = pd.read_csv(tmp_path / "auroc_beside_other.csv", index_col="class")
    assert table.loc["Mass", "verdict"] == "differs"
    assert table.loc["Mass", "high"] - table.loc["Mass", "low"] < 0.01


def test_comparison_is_printed_written_or_its_want_explained(tmp_path, capsys):
    runs = {
        "mine": run({"0": [0.5, np.nan]}, ["Mass", "Hernia"]),
        "other": run({"0": [0.5, np.nan]}, ["Mass", "Hernia"]),
    }
    print_beside("auroc", runs, tmp_path, "", "it is a phantom")
    out = capsys.readouterr().out
    assert "not compared with the published seeds: it is a phantom" in out
    assert "one seed does not tell" in out
    assert "over patients, in pairs; written to" in out
    table = pd.read_csv(tmp_path / "auroc_beside_other.csv", index_col="class")
    assert table.index.tolist() == ["Mass"]  # a class without a score is left out
    assert table.loc["Mass", "verdict"] == "not decided with so few patients"  # 20, and no resample differs
    assert table.loc["Mass", "high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    theirs = published("auroc")
    print_beside("auroc", {"mine": Run(theirs, theirs.to_numpy()[:, None], np.full(16, 9))}, tmp_path, "_x", None)
    assert capsys.readouterr().out.count("| reproduced |") == 16
    assert (tmp_path / "auroc_x_beside_published.csv").exists()
