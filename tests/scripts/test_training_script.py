"""train.py, as a user runs it."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    LONG,
    TRAIN,
    refusal_of,
    rows_of,
    run_script,
    same_weights,
    sentence_of,
    start_script,
)

import pylon
from pylon.checkpoints.checkpoint import load_last, save_last
from pylon.checkpoints.training_json import read_json
from pylon.data.chestxray14 import PATHOLOGIES

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="that option is valid with a GPU")


def test_training_writes_its_files(trained):
    table = pd.read_csv(trained / "csv" / "pylon" / "0.csv")
    head = ["epoch", "lr", "train_loss", "val_loss"]
    tail = ["weighted", "macro", "images_per_second", "seconds"]
    assert list(table.columns) == [*head, *PATHOLOGIES, *tail]
    assert table["epoch"].tolist() == [1, 2]
    assert (table["lr"] == 1e-3).all()
    best = trained / "save" / "pylon" / "0" / "best"
    assert not pylon.load_pylon(best).training
    card = read_json(best / "training.json")
    assert card["class_names"] == list(PATHOLOGIES)
    assert card["epoch"] == table["epoch"][table["val_loss"].idxmin()]
    assert card["val_loss"] == pytest.approx(table["val_loss"].min())
    assert card["options"]["encoder_name"] == "tu-test_resnet"
    assert len(card["split_sha256"]) == 64
    assert card["thresholds"].keys() == set(PATHOLOGIES)
    assert all(threshold is None or 0 < threshold < 1 for threshold in card["thresholds"].values())
    assert card["calibration"].keys() == set(PATHOLOGIES)
    assert all(line is None or line[0] > 0 for line in card["calibration"].values())
    assert (trained / "csv/pylon/0.png").read_bytes().startswith(b"\x89PNG")
    assert load_last(trained / "save" / "pylon" / "0" / "last")["epoch"] == 2


def test_finished_run_is_not_repeated(trained, phantom):
    before = (trained / "save/pylon/0/best/model.safetensors").stat().st_mtime_ns
    done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, cwd=trained)
    assert "is finished: 2 epochs" in done.stdout
    assert (trained / "save/pylon/0/best/model.safetensors").stat().st_mtime_ns == before


@LONG
def test_killed_run_resumes_to_the_same_result(trained, phantom, tmp_path):
    arguments = ("train.py", "--data", phantom, "--epochs", 2, *TRAIN)
    process = start_script(*arguments, cwd=tmp_path, out=tmp_path)
    while not (tmp_path / "save/pylon/0/last").exists():
        assert process.is_alive()
        process.join(0.02)
    process.kill()
    process.join()
    assert len(rows_of(tmp_path)) == 1
    done = run_script(*arguments, "--num-workers", 2, cwd=tmp_path)
    assert "resuming save/pylon/0 at epoch 2" in done.stdout
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")


def test_cache_does_not_change_results_if_images_fit(trained, phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    options = ("--data", data, "--cache-size", 256)
    done = run_script("train.py", *options, "--epochs", 2, *TRAIN, "--num-workers", 1, cwd=tmp_path)
    assert f"images into {data}/cache/256" in done.stdout
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")
    scores = {}
    for cwd, chosen in ((tmp_path, options), (trained, ("--data", phantom))):
        for script, name in (("eval_auc.py", "auroc.csv"), ("eval_loc.py", "0_boxes.csv")):
            evaluate = (script, *chosen, "--device", "cpu", "--num-workers", 0, "--seeds", 0)
            run_script(*evaluate, cwd=cwd)
            scores.setdefault(name, []).append(pd.read_csv(cwd / "csv/pylon" / name))
    for one, other in scores.values():
        pd.testing.assert_frame_equal(one, other)


@LONG
def test_augmentation_on_the_device_trains_as_in_the_workers(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    slowly = ("--lr", 1e-6, "--min-lr", 0, "--epochs", 1)  # or differences would grow
    options = ("--data", data, *TRAIN, *slowly, "--cache-size", 256)
    losses = {}
    for place in ("device", "cpu"):
        run_script("train.py", *options, "--augment", place, "--name", place, cwd=tmp_path)
        losses[place] = pd.read_csv(tmp_path / f"csv/{place}/0.csv")["train_loss"][0]
    assert losses["device"] != losses["cpu"]  # interpolated by other code
    assert abs(losses["device"] - losses["cpu"]) < 0.01  # of about 8
    done = run_script("train.py", *options, "--name", "device", cwd=tmp_path, code=2)
    assert "was trained with --augment device (now cpu)" in sentence_of(done)


def test_resuming_with_other_options_is_refused(trained, phantom):
    options = ("--data", phantom, "--epochs", 3, *TRAIN, "--lr", "5e-4")
    done = run_script("train.py", *options, cwd=trained, code=2)
    assert "was trained with --lr 0.001 (now 0.0005); choose another --name" in sentence_of(done)
    assert len(rows_of(trained)) == 2


def test_minimum_learning_rate_ends_the_run(phantom, tmp_path):
    few = shutil.copytree(phantom, tmp_path / "data")
    names = (few / "train_val_list.txt").read_text().split()[:20]
    (few / "train_val_list.txt").write_text("\n".join(names))
    schedule = ("--lr", 0.1, "--min-lr", 0.06, "--patience", 0, "--lr-factor", 0.5, "--epochs", 30)
    done = run_script("train.py", "--data", few, *TRAIN, *schedule, "--seed", 4, cwd=tmp_path)
    table = rows_of(tmp_path, 4)
    improved = table["val_loss"] < table["val_loss"].cummin().shift(fill_value=np.inf)
    assert 2 <= len(table) < 30
    assert not improved.iloc[-1]
    assert "finished" in done.stdout
    done = run_script("train.py", "--data", few, *TRAIN, *schedule, "--seed", 4, cwd=tmp_path)
    assert "is finished" in done.stdout


def test_missing_image_is_reported_before_training(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    train_val = (data / "train_val_list.txt").read_text().split()
    test = (data / "test_list.txt").read_text().split()
    (data / "images" / test[0]).unlink()
    (data / "images" / train_val[0]).unlink()
    sentence = sentence_of(run_script("train.py", "--data", data, *TRAIN, cwd=tmp_path, code=2))
    assert f"1 of {len(train_val)} images are missing" in sentence
    assert train_val[0] in sentence
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--image-size", "300"),
            "--image-size must be a multiple of 256 for --model pylon, not 300",
        ),
        (
            ("--image-size", "48", "--model", "backbone"),
            "--image-size must be a multiple of 32, at least 64, for --model backbone, not 48",
        ),
        (("--batch-size", "1"), "--batch-size must be at least 2, not 1"),
        (("--lr", "-1"), "--lr -1.0 and --min-lr"),
        (("--seed", "99999999999999999999"), "--seed must be below 2**32"),
        (("--name", "../elsewhere"), "--name '../elsewhere' must be the plain name"),
        (("--name", ".."), "--name '..' must be the plain name"),
        (
            ("--model", "fpn", "--no-attention"),
            "--no-attention are only for --model pylon, not fpn",
        ),
        (("--train-share", "0"), "--train-share must be above 0 and at most 1, not 0"),
        (("--train-share", "2"), "--train-share must be above 0 and at most 1, not 2"),
        (("--negatives", "-1"), "--negatives must be at least 0, not -1"),
        (("--rotate", "200"), "--rotate must be between 0 and 180 degrees, not 200"),
        (("--blur", "1.5"), "--blur must be between 0 and 1, not 1.5"),
        (("--encoder-lr", "0"), "--encoder-lr must be a number above 0, not 0; see --freeze"),
        (("--average-weights", "1"), "--average-weights must be at least 0 and below 1, not 1"),
        (("--adjust-for", "weight"), "has no column 'weight', which --adjust-for asks for"),
        (
            ("--blur", ".5", "--augment", "device", "--cache-size", "256"),
            "--blur is done by the workers; leave --augment device out",
        ),
        (("--encoder-name", "resnet500"), "--encoder-name resnet500 is unknown"),
        (
            ("--encoder-name", "resnet51"),
            "--encoder-name resnet51 is unknown; did you mean resnet50",
        ),
        (
            ("--encoder-name", "tu-resnet51"),
            "--encoder-name tu-resnet51 is unknown; did you mean tu-resnet",
        ),
        (
            ("--encoder-name", "mit_b0", "--model", "linknet"),
            "--model linknet cannot be used with the encoder mit_b0",
        ),
        (("--encoder-name", "resnet18", "--encoder-weights", "flowers"), "--encoder-weights flow"),
        pytest.param(
            ("--device", "cuda"),
            "--device cuda is not supported by this hardware or build of torch; try --device auto",
            marks=NO_GPU,
        ),
        (("--precision", "fp16"), "--precision fp16 needs a CUDA device"),
        (("--cache-size", "128"), "--cache-size must be 0 or at least --image-size, 256"),
        (("--augment", "device"), "--augment device needs images of one size from a cache; add"),
    ],
)
def test_bad_options(phantom, tmp_path, options, sentence):
    done = run_script("train.py", "--data", phantom, *TRAIN, *options, cwd=tmp_path, code=2)
    assert sentence in sentence_of(done)
    assert all(path.name.endswith(".lock") for path in tmp_path.rglob("*") if path.is_file())


def test_unwritable_folder_is_reported_before_training(phantom, tmp_path):
    (tmp_path / "save").touch()  # a file where a folder should be
    done = run_script("train.py", "--data", phantom, *TRAIN, cwd=tmp_path, code=2)
    assert "cannot be written (Not a directory)" in sentence_of(done)
    assert "epoch" not in done.stdout


def test_help_shows_the_values_of_the_paper(tmp_path):
    shown = run_script("train.py", "--help", cwd=tmp_path).stdout
    # option by option; each is wrapped, in a frame
    abouts = [re.sub(r"[\s│]+", " ", about) for about in shown.split("│ --")[1:]]
    defaults = {about.split()[0]: re.search(r"\(default: (.*?)\)", about) for about in abouts}
    for option, default in {
        "epochs": "40",
        "batch-size": "64",
        "lr": "0.0001",
        "min-lr": "1e-06",
        "patience": "1",
        "lr-factor": "0.2",
        "image-size": "256",
        "encoder-name": "resnet50",
        "encoder-weights": "imagenet",
        "model": "pylon",
        "pool": "max",
        "up-layers": "1",
        "up-modules": "3",
        "normalize": "nih",
        "cache-size": "0",
    }.items():
        assert defaults[option][1] == default, option


def test_run_of_an_earlier_version_resumes(trained, phantom):
    path = trained / "save/pylon/0/last"
    last = load_last(path)
    try:
        earlier = {
            key: last["options"][key] for key in last["options"].keys() - {"compile", "augment"}
        }
        del earlier["cache_size"]
        save_last(path, {**last, "options": earlier})
        done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, cwd=trained)
        assert "is finished" in done.stdout
        for key in ("model", "pool", "attention"):
            del earlier[key]
        save_last(path, {**last, "options": earlier})
        other = (*TRAIN, "--epochs", 2, "--model", "backbone", "--name", "pylon")
        done = run_script("train.py", "--data", phantom, *other, cwd=trained, code=2)
        assert "was trained with --model pylon (now backbone)" in sentence_of(done)
    finally:
        save_last(path, last)


def test_compiling_without_a_compiler(phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    done = run_script("train.py", "--data", phantom, *TRAIN, "--compile", cwd=tmp_path, code=2)
    assert "--compile needs a GPU and a C++ compiler; install g++" in sentence_of(done)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiling_for_a_cpu(phantom, tmp_path):
    done = run_script("train.py", "--data", phantom, *TRAIN, "--compile", cwd=tmp_path, code=2)
    assert "--compile needs a GPU: torch cannot" in sentence_of(done)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--up-layers", "3"),
        ("--up-modules", "4"),
        ("--model", "fnp"),
        ("--model", "dpt"),
        ("--pool", "mean"),
        ("--precision", "fp8"),
        ("--device", "tpu"),
    ],
)
def test_unknown_choices_are_refused(phantom, tmp_path, option, value):
    options = (*TRAIN, option, value)
    done = run_script("train.py", "--data", phantom, *options, cwd=tmp_path, code=2)
    assert option in refusal_of(done)
    assert not list(tmp_path.iterdir())


def test_the_environment_changes_nothing(phantom, trained_once, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run_script("train.py", "--data", phantom, "--epochs", 1, *TRAIN, cwd=tmp_path)
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained_once)[:1])
