"""Selecting the checkpoints to evaluate."""

import importlib.util
import os
from functools import partial
from pathlib import Path

import pytest

from pylon.evaluation import selection
from pylon.evaluation.selection import choose_checkpoints
from pylon.options import EvaluationOptions, ScoreOptions
from pylon.system.errors import UserError


def test_names_of_checkpoints():
    def label(path, **others):
        return choose_checkpoints(EvaluationOptions(checkpoint=Path(path), **others), ())[0]

    assert label("save/pylon/0/best") == "pylon-0"
    assert label("elsewhere/model.pkl") == "model"
    assert label("/elsewhere/exported") == "exported"
    assert label("/elsewhere/exported", name="mine") == "mine"
    assert label("/weights/best") == "weights"
    assert label("/best") == "best"
    assert label("/a/best") == "a"
    assert label("/x/.pkl") == "pkl"
    with pytest.raises(UserError, match="--checkpoint selects a single checkpoint; leave"):
        choose_checkpoints(EvaluationOptions(checkpoint=Path("a")), (1,))


def test_find_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--name pylon: no checkpoint under save/pylon"):
        selection.find_checkpoints("pylon")
    for seed in ("10", "9", "notes", "²"):
        os.makedirs(f"save/pylon/{seed}/best")
    assert list(selection.find_checkpoints("pylon")) == ["9", "10"]
    assert list(selection.find_checkpoints("pylon", (10,))) == ["10"]
    sentence = "seed 3 of pylon has no checkpoint; save/pylon has seed 9, 10"
    with pytest.raises(UserError, match=sentence):
        selection.find_checkpoints("pylon", (3, 9))


def test_experiments_to_compare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("pylon/0", "pylon/1", "unet/0"):
        os.makedirs(f"save/{place}/best")
    chosen = selection.choose_experiments(ScoreOptions(compare=("unet",)))
    assert {name: list(checkpoints) for name, checkpoints in chosen.items()} == {
        "pylon": ["0", "1"],
        "unet": ["0"],
    }
    chosen = selection.choose_experiments(ScoreOptions(compare=("unet",), seeds=(0,)))
    assert [list(checkpoints) for checkpoints in chosen.values()] == [["0"], ["0"]]
    with pytest.raises(UserError, match="seed 1 of unet has no checkpoint; save/unet has seed 0"):
        selection.choose_experiments(ScoreOptions(compare=("unet",), seeds=(1,)))
    for other in ("pylon", "published"):
        with pytest.raises(UserError, match=f"--compare {other} is the experiment itself"):
            selection.choose_experiments(ScoreOptions(compare=(other,)))
    with pytest.raises(UserError, match="--compare unet is the experiment itself, named twice"):
        selection.choose_experiments(ScoreOptions(compare=("unet", "unet")))
    options = ScoreOptions(checkpoint=Path("save/unet/0/best"), compare=("unet",))
    with pytest.raises(UserError, match="--compare unet is the experiment itself"):
        selection.choose_experiments(options)


def test_finished_seeds_are_looked_for_until_there_are_enough(monkeypatch):
    """Of seeds 0 to 4, all but 0 and 2 are finished."""
    paths = {str(seed): Path(f"save/pylon/{seed}/best") for seed in range(5)}
    looked = []

    def has_finished(path):
        looked.append(path.parent.name)
        return path.parent.name not in ("0", "2")

    monkeypatch.setattr(selection, "has_finished", has_finished)
    said = []
    leave_out = partial(selection.leave_out_unfinished, "pylon", paths, say=said.append)
    assert list(leave_out(asked=False, enough=1)) == ["1"]
    assert looked == ["0", "1"]
    assert len(said) == 1
    assert list(leave_out(asked=False)) == ["1", "3", "4"]
    assert list(leave_out(asked=True)) == list("01234")


def test_third_seed_is_compared_with_the_first():
    card = {"options": {"lr": 1.0, "epochs": 2}, "split_sha256": "a"}
    cards = {"0": card, "1": card, "7": {**card, "options": {"lr": 2.0, "epochs": 2}}}
    configs = {seed: {"encoder_name": "resnet18"} for seed in cards}
    with pytest.raises(UserError, match=r"seeds 0 and 7 of pylon were not trained alike: --lr 1.0"):
        selection.require_alike("pylon", cards, configs, print)
    cards["7"] = {**card, "options": {"lr": 1.0, "epochs": 3}}
    said = []
    selection.require_alike("pylon", cards, configs, said.append)
    assert said[0].endswith("different --epochs: 2 (seed 0), 2 (seed 1), 3 (seed 7)")


def test_seeds_are_averaged_only_if_trained_alike():
    card = {"options": {"lr": 1.0, "epochs": 2, "seed": 0}, "split_sha256": "a"}
    config = {"encoder_name": "resnet18"}
    said = []

    def compare(**changes):
        other = {**card, **changes, "options": {**card["options"], **changes.get("options", {})}}
        configs = {"0": config, "1": changes.get("config", config)}
        selection.require_alike("pylon", {"0": card, "1": other}, configs, said.append)

    compare(options={"seed": 1, "name": "mine", "num_workers": 3})
    compare(config={**config, "kind": "pylon"})  # not written by earlier versions
    assert said == []
    compare(options={"epochs": 3})
    assert said == [
        "note: the seeds of pylon were trained with different --epochs: 2 (seed 0), 3 (seed 1)"
    ]
    for changes, difference in (
        ({"options": {"lr": 2.0}}, "--lr 1.0 and 2.0"),
        ({"split_sha256": "b"}, "other images, labels or split"),
        ({"config": {**config, "attention": False}}, r"another network \(config.json\)"),
    ):
        sentence = f"seeds 0 and 1 of pylon were not trained alike: {difference}. Choose"
        with pytest.raises(UserError, match=sentence):
            compare(**changes)


def test_unavailable_methods_are_refused(monkeypatch):
    selection.check_method("map", EvaluationOptions(precision="bf16"))
    selection.check_method("gradcam", EvaluationOptions())
    with pytest.raises(UserError, match="--method gradcam needs --precision fp32, not bf16"):
        selection.check_method("gradcam", EvaluationOptions(precision="bf16"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    selection.check_method("map", EvaluationOptions())
    with pytest.raises(UserError, match=r"--method gradcam needs the grad-cam library.*install"):
        selection.check_method("gradcam", EvaluationOptions())
