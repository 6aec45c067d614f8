"""The report of the study, from tables that are written here; that `make study` runs is seen by running it."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from pylon.results import Run, print_beside, table_of_seeds, write_csv

sys.path.insert(0, str(ROOT / "benchmarks"))
import study


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figs").mkdir()
    rng = np.random.default_rng(0)
    better = {"pylon": (0.9, 0.7), "backbone-max": (0.9, 0.5), "backbone-avg": (0.8, 0.7), "fpn": (0.7, 0.9)}
    for k, (score, pooled) in enumerate(study.SCORES.items()):
        runs = {}
        for name, means in better.items():
            columns = [*study.FINDINGS, pooled]
            scores = pd.DataFrame(means[k] + rng.normal(0, 1e-4, (3, 6)), index=["0", "1", "2"], columns=columns)
            noise = rng.normal(0, 1e-3, (3, 50, 6))
            runs[f"study-{name}"] = run = Run(scores, scores.to_numpy()[:, None] + noise, np.full(6, 50))
            table = table_of_seeds(run)
            table.loc["prior"], table.loc["image centre"] = 0.3, 0.2
            write_csv(tmp_path / f"csv/study-{name}/{score}.csv", table)
        print_beside(score, runs, tmp_path / "csv/study-pylon", "", "it is a phantom")
    for name in better:
        for seed in range(4):  # one more than is asked for
            (tmp_path / f"csv/study-{name}/{seed}.csv").write_text("epoch,seconds\n1,100\n2,80\n")
            (tmp_path / f"csv/study-{name}/{seed}_boxes.csv").write_text("row,column\n7,248\n7,100\n")
    return tmp_path


def test_report_says_what_the_tables_say(folder):
    text = study.report(study.Options(images=100, epochs=1))  # of finished runs of two
    assert "100 pictures" in text
    assert "2 boxes in the test list" in text
    assert "and 2 epochs, 3 seeds" in text
    assert "Training took 36 minutes" in text
    assert "50% of PYLON's, 50% of backbone, max's" in text  # are in the corners
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    for line, said in zip(
        lines,
        (
            "- At equal AUROC (0.900, 0.900) PYLON localizes better than **backbone, max**: 0.700, 0.500",
            "- At an AUROC that differs (0.900, 0.800) PYLON localizes as well as **backbone, avg (CAM)**",
            "- At an AUROC that differs (0.900, 0.700) PYLON localizes worse than **FPN**: 0.700, 0.900",
        ),
        strict=True,
    ):
        assert line.startswith(said)
    assert "| prior | 0.300 |" in text
    assert ", in pairs, and over seeds;" in text
    assert ", in pairs, and of one network a kind:" in study.report(study.Options(seeds=1))
    rows = [line for line in text.splitlines() if line.startswith("| FPN: point localization |")]
    assert rows[0].count("differs") == 6


def test_figure_is_drawn(folder):
    study.draw(folder / "figs/study.png")
    assert (folder / "figs/study.png").stat().st_size > 10_000


def test_failing_command_is_shown(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        study.run_script(ROOT / "data/make_phantom.py", "--out", tmp_path, "--findings", "Rose")
    assert stopped.value.code == 2
    assert "--findings Rose must be one or more of" in capsys.readouterr().err
