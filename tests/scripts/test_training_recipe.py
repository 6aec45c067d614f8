"""train.py with every option of pylon/training/recipe.py: what is written, and resuming."""

import os
import shutil
import signal

import pandas as pd
import pytest
import torch
from conftest import TINY, rows_of, run_script, same_weights

import pylon
from pylon.checkpoints.checkpoint import load_last
from pylon.checkpoints.training_json import read_json
from pylon.training import runs

RECIPE = (
    "--pool", "lse", "--rotate", 10, "--blur", 0.5, "--adjust-for", "sex", "pixels",
    "--schedule", "cosine", "--optimizer", "adamw", "--encoder-lr", 0.3, "--freeze", 4,
    "--average-weights", 0.8, "--prevalence-bias", "--negatives", 5, "--train-share", 0.8,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(phantom, tmp_path_factory):
    """The phantom, as if all images with an effusion, and some others, were from small copies."""
    data = shutil.copytree(phantom, tmp_path_factory.mktemp("few") / "data")
    entries = pd.read_csv(data / "Data_Entry_2017.csv")
    small = entries["Finding Labels"].str.contains("Effusion") | (entries.index % 5 == 0)
    pixels = small.map({True: 128, False: 1024})
    table = pd.DataFrame({"image": entries["Image Index"], "pixels": pixels})
    table.to_csv(data / "resolution.csv", index=False)
    return data


def train(data, cwd, **how):
    options = ("--data", data, *TINY, *RECIPE, "--batch-size", 6, "--lr", "1e-3", "--epochs", 3)
    return run_script("train.py", *options, "--num-workers", 0, cwd=cwd, **how)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("unbroken")
    train(data, cwd)
    return cwd


def die_after_the_first_epoch():
    save = runs.save_last

    def save_and_die(path, state):
        save(path, state)
        if state["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    runs.save_last = save_and_die


def test_a_killed_run_resumes_to_the_same_result(data, unbroken, tmp_path):
    train(data, tmp_path, code=-signal.SIGKILL, sabotage=die_after_the_first_epoch)
    assert "resuming save/pylon/0 at epoch 2" in train(data, tmp_path).stdout
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(unbroken))
    assert same_weights(tmp_path / "save/pylon/0", unbroken / "save/pylon/0")


def test_averaged_weights_are_saved_and_frozen_ones_unchanged(unbroken):
    last = load_last(unbroken / "save/pylon/0/last")
    average = {
        key.removeprefix("module."): value
        for key, value in last["average"].items()
        if key.startswith("module.")
    }
    assert last["average"]["n_averaged"] > 5
    assert rows_of(unbroken)["val_loss"].idxmin() == 2  # the last epoch, so `best` is its average
    best = pylon.load_pylon(unbroken / "save/pylon/0/best")
    assert best.pool == "lse"
    for key, value in best.state_dict().items():
        assert torch.equal(value, average[key]), key
    differ = {key for key, value in last["model"].items() if not torch.equal(value, average[key])}
    assert "segmentation_head.0.weight" in differ
    assert "encoder.model.conv1.weight" not in differ


def test_both_scores_and_the_weights_of_the_columns_are_written(unbroken):
    rows = rows_of(unbroken)
    assert {"macro", "macro_adjusted"} <= set(rows)
    assert (rows["macro"] != rows["macro_adjusted"]).any()
    card = read_json(unbroken / "save/pylon/0/best/training.json")
    assert card["options"]["adjust_for"] == ["sex", "pixels"]
    weights = card["adjustment"]["Effusion"]
    assert weights["pixels_128"] > 0 > weights["pixels_1024"]
    assert set(weights) == {"sex_F", "sex_M", "pixels_128", "pixels_1024"}
    assert card["options"]["freeze"] == 4
    assert "adjustment" not in (unbroken / "save/pylon/0/best/README.md").read_text()
