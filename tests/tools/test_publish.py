"""make reproduce and tools/publish.py: the folder to publish, the verdict, mistakes."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, TRAIN, run_script

import publish
from publish import Made, other_options, require_own_folder, shared_about, verdict, write_folder
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.scoring.compare import beside_published, published
from pylon.scoring.rows import Rows, read_rows, write_rows
from pylon.system.errors import UserError

FURTHER = ("--epochs", "2", *TRAIN[: TRAIN.index("--device")], "--batch-size", "8", "--lr", "1e-3")
SEEDS = ["0", "1", "2", "3", "4"]
CPU = ("--num-workers", "0", "--device", "cpu")


def commands_of_make(phantom) -> list[list[str]]:
    """The commands of `make reproduce` for a network of two epochs, without the interpreter."""
    values = {"NIH": phantom, "SEEDS": "0", "RUN": " ".join(CPU), "TRAIN": " ".join(FURTHER)}
    assignments = [f"{name}={value}" for name, value in values.items()]
    options = ("--dry-run", "--always-make", "--old-file=.venv/ready", "reproduce")
    command = ["make", *options, *assignments]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    shown = shown.replace("\\\n", "").replace("$seed", "0")
    return [line.split("||")[0].split() for line in re.findall(r"\.venv/bin/python (.*)", shown)]


@pytest.fixture(scope="module")
def reproduced(trained_once, phantom, tmp_path_factory):
    """A folder in which the commands were run; its network had finished before."""
    cwd = shutil.copytree(trained_once, tmp_path_factory.mktemp("reproduced") / "cwd")
    weights = (cwd / "save/pylon/0/best/model.safetensors").stat().st_mtime_ns
    commands = commands_of_make(phantom)
    done = [run_script(*command, cwd=cwd) for command in commands]
    assert (cwd / "save/pylon/0/best/model.safetensors").stat().st_mtime_ns == weights
    return cwd, dict(zip([command[0] for command in commands], done, strict=True))


def test_commands_of_the_experiment_in_order(reproduced):
    _, done = reproduced
    assert list(done) == [
        "tools/check_data.py", "train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py",
        "tools/publish.py",
    ]  # fmt: skip
    *_, folder, sentence = done["tools/publish.py"].stdout.splitlines()
    assert folder == "to publish: publish/pylon"
    assert sentence.startswith("verdict: none: not compared with the published seeds: its test")


def test_what_is_published(reproduced):
    cwd, _ = reproduced
    out = cwd / "publish/pylon"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "figures", "manifest.json", "networks", "page", "scores",
    ]  # fmt: skip
    text = (out / "README.md").read_text()
    assert "**Verdict: none: not compared with the published seeds: its test images" in text
    assert "**Synthetic data.**" in text
    minutes = pd.read_csv(cwd / "csv/pylon/0.csv")["seconds"].sum() / 60
    assert f"| 0 | 2 | {minutes:.1f} |" in text
    assert '"command": "make reproduce"' in (out / "page/index.html").read_text()
    assert (out / "scores/pylon/auroc.csv").exists()
    assert not (out / "scores/pylon/auroc_beside_published.csv").exists()
    assert re.search(r"Code: pylon-localization \d+\.\d+\.\d+", text)

    # the manifest holds every other file
    manifest = json.loads((out / "manifest.json").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == files - {"manifest.json"}
    assert len(files) > 30
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_nothing_published_names_a_folder_of_this_computer(reproduced, phantom):
    cwd, _ = reproduced
    private = [str(phantom), str(cwd), str(cwd.parent), str(ROOT)]
    for path in (cwd / "publish").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [each for each in private if each.encode() in content], path
    rows = read_rows(cwd / "csv/pylon/0_images.csv")
    assert str(phantom) in json.dumps(rows.about)  # what is left out
    assert rows.about["card"]["options"].keys() > shared_about(rows.about)["card"]["options"].keys()


def test_tables_are_rebuilt_from_what_is_published(reproduced, tmp_path):
    cwd, _ = reproduced
    out = shutil.copytree(cwd / "publish/pylon", tmp_path / "out")
    scores = out / "scores/pylon"
    for script, name in (
        ("eval_auc.py", "auroc"),
        ("eval_loc.py", "point_localization"),
    ):
        (scores / f"{name}.csv").unlink()
        (scores / f"{name}.png").unlink()
        run_script(script, "--from", "scores/pylon", cwd=out)
    manifest = json.loads((out / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest, name


@pytest.fixture
def csv(tmp_path) -> Path:
    """A folder of rows and of tables, those of the published seeds in place of ours."""
    for what in ("images", "boxes"):
        write(tmp_path, what, None, None)
    for score in ("auroc", "point_localization"):
        table = beside_published(published(score), score)
        table.to_csv(tmp_path / f"{score}_beside_published.csv")
    return tmp_path


def write(folder, what, not_official, synthetic, epochs=40):
    table = pd.DataFrame({"image_id": ["a"], "patient_id": ["b"]})
    about = {"class_names": [], "not_official": not_official, "synthetic": synthetic}
    about["card"] = {"options": {"epochs": epochs}}
    write_rows(folder, "0", what, Rows(table, about))


def test_published_scores_reproduce_themselves(csv):
    assert verdict(csv, SEEDS) == (
        "verdict: reproduced with 5 seeds: AUROC 0.794 against 0.794 published (14 of 14 classes "
        "reproduced); point localization 0.616 against 0.616 published (8 of 8 classes reproduced)"
    )


@pytest.mark.parametrize("row", ["weighted", "Mass"])
def test_a_mean_that_differs_decides(csv, row):
    path = csv / "auroc_beside_published.csv"
    table = pd.read_csv(path, index_col="class")
    assert set(table.index) == {*PATHOLOGIES, "weighted", "macro"}
    table.loc[row, "verdict"] = "differs"
    table.loc["Hernia", "verdict"] = "not decided with 5 seeds"
    table.to_csv(path)
    sentence = verdict(csv, SEEDS)
    decides = "not reproduced" if row == "weighted" else "reproduced"
    assert sentence.startswith(f"verdict: {decides} with 5 seeds: AUROC")
    of_mass = "differs: Mass, " if row == "Mass" else ""
    count = 12 if row == "Mass" else 13
    assert f"({count} of 14 classes reproduced, {of_mass}not decided: Hernia)" in sentence


def test_verdict_that_is_not_decided(csv):
    path = csv / "point_localization_beside_published.csv"
    table = pd.read_csv(path, index_col="class")
    table.loc["micro", "verdict"] = "not decided with 1 seed"
    table.to_csv(path)
    assert verdict(csv, ["0"]).startswith("verdict: not decided with 1 seed: ")


def test_verdict_says_what_was_different(csv):
    write(csv, "images", None, "Invented images.", epochs=1)
    sentence = verdict(csv, ["0", "1"])
    assert "2 seeds, trained with other options than the published (--epochs 1): AUROC" in sentence
    assert sentence.endswith(", on synthetic images: this says nothing about PYLON")
    write(csv, "boxes", "its boxes are not NIH's", None)
    assert verdict(csv, SEEDS) == (
        "verdict: none: not compared with the published seeds: its boxes are not NIH's"
    )


def test_options_that_differ_are_named():
    same = {"seed": 3, "device": "cuda", "cache_size": 1024, "epochs": 40, "adjust_for": []}
    assert other_options({"options": same}) == []
    other = {"epochs": 1, "init_from": "/home/alice/best", "encoder_weights": "imagenet"}
    assert other_options({"options": same | other}) == [
        "--epochs 1", "--init-from another checkpoint",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"repo": "name"}, "--repo must be USER/NAME, in letters, digits, -, _ and ., not 'name'"),
        ({"name": "a/b"}, "--name 'a/b' must be the plain name of a folder"),
        ({"name": "other"}, "csv/other has no scores; run `make reproduce NAME=other`"),
        ({}, "csv/pylon/html/index.html is absent; run `make reproduce NAME=pylon`"),
    ],
)
def test_mistakes(wrong, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("csv/pylon").mkdir(parents=True)
    Path("csv/pylon/0_images.csv").touch()
    with pytest.raises(UserError, match=re.escape(sentence)):
        publish.main(publish.Options(**wrong))
    assert not Path("publish").exists()


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="has thesis"):
        require_own_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        require_own_folder(tmp_path / "thesis.tex")
    paper = tmp_path / "paper"
    (paper / "figures").mkdir(parents=True)
    with pytest.raises(UserError, match="has figures"):
        require_own_folder(paper)


def test_networks_of_more_seeds_are_removed(reproduced, tmp_path):
    cwd, _ = reproduced
    out = shutil.copytree(cwd / "publish/pylon", tmp_path / "out")
    shutil.copytree(out / "networks/0", out / "networks/1")
    made = Made(cwd / "csv/pylon", cwd / "figs/pylon", ["0"], "verdict: none")
    write_folder(out, made)
    assert [path.name for path in (out / "networks").iterdir()] == ["0"]
