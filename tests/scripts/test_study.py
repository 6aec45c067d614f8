"""The report of the study, from tables written by the test.

`make study` itself is not run.
"""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import study
from pylon.scoring.compare import print_beside
from pylon.scoring.tables import Scored, table_of_seeds
from pylon.system.files import write_csv


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figs").mkdir()
    rng = np.random.default_rng(0)
    better = {
        "pylon": (0.9, 0.7),
        "backbone-max": (0.9, 0.5),
        "backbone-avg": (0.8, 0.7),
        "fpn": (0.7, 0.9),
    }
    for k, (score, pooled) in enumerate(study.SCORES.items()):
        experiments = {}
        for name, means in better.items():
            columns = [*study.FINDINGS, pooled]
            values = means[k] + rng.normal(0, 1e-4, (3, 6))
            scores = pd.DataFrame(values, index=["0", "1", "2"], columns=columns)
            resamples = values[:, None] + rng.normal(0, 1e-3, (3, 50, 6))
            scored = Scored(scores, resamples, np.full(6, 50))
            experiments[f"study-{name}"] = scored
            table = table_of_seeds(scored)
            table.loc["prior"] = 0.3
            table.loc["image centre"] = 0.2
            write_csv(tmp_path / f"csv/study-{name}/{score}.csv", table)
        print_beside(score, experiments, tmp_path / "csv/study-pylon", "", "it is a phantom")
    for name in better:
        for seed in range(4):  # one more than requested
            csv = tmp_path / f"csv/study-{name}"
            (csv / f"{seed}.csv").write_text("epoch,seconds\n1,100\n2,80\n")
            (csv / f"{seed}_boxes.csv").write_text("row,column\n7,248\n7,100\n")
    return tmp_path


def test_report_matches_the_tables(folder):
    text = study.report(study.Options(images=100, epochs=1))  # the finished runs have two
    assert "100 images" in text
    assert "2 boxes in the test list" in text
    assert "and 2 epochs, 3 seeds" in text
    assert "Training took 36 minutes" in text
    assert "50% for PYLON; 50% for backbone, max" in text  # of the points in corners
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    expected = (
        "- At equal AUROC (0.900 and 0.900), PYLON localizes better than **backbone, max**: "
        "0.700 and 0.500",
        "- At a different AUROC (0.900 and 0.800), PYLON localizes as well as "
        "**backbone, avg (CAM)**",
        "- At a different AUROC (0.900 and 0.700), PYLON localizes worse than **FPN**: "
        "0.700 and 0.900",
    )
    for line, said in zip(lines, expected, strict=True):
        assert line.startswith(said)
    assert "| prior | 0.300 |" in text
    assert "(paired) and\nover seeds;" in text
    one_seed = study.report(study.Options(seeds=1))
    assert "(paired) and\nwith one seed each, so" in one_seed
    rows = [line for line in text.splitlines() if line.startswith("| FPN: point localization |")]
    assert rows[0].count("differs") == 6


def test_figure_is_drawn(folder):
    study.draw(folder / "figs/study.png")
    assert (folder / "figs/study.png").stat().st_size > 10_000


def test_failing_command_is_shown(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        study.run_script(ROOT / "tools/make_phantom.py", "--out", tmp_path, "--findings", "Rose")
    assert stopped.value.code == 2
    assert "--findings Rose must be one or more of" in capsys.readouterr().err
