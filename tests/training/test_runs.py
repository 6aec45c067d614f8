"""Where a run keeps its files, and how it resumes or replaces another."""

import contextlib
import itertools
import json
import math
import os
import shutil
from functools import partial

import pytest
from accelerate import Accelerator

from pylon.checkpoints.checkpoint import RESUMED, load_last, save_last
from pylon.checkpoints.training_json import differences, read_training_json
from pylon.options import TrainOptions, as_json
from pylon.system.cli import flag
from pylon.system.errors import UserError
from pylon.system.files import hashed_json, write_together
from pylon.training import runs


@pytest.mark.parametrize("step", range(4))
def test_killed_while_one_run_replaces_another(tmp_path, monkeypatch, step):
    monkeypatch.chdir(tmp_path)
    accelerator = Accelerator(cpu=True)
    for name, content in (("0", "old"), ("0.new", "new")):
        write_together({tmp_path / f"save/a/{name}/last": content.encode()})
        write_together({tmp_path / f"csv/a/{name}.csv": content.encode()})
    save, csv = runs.open_run("a", 0, True, accelerator)
    count = itertools.count()

    def dying(function):
        def call(*args, **kwargs):
            if next(count) == step:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(runs.Path, "rename", dying(runs.Path.rename))
        patch.setattr(runs.shutil, "rmtree", dying(shutil.rmtree))
        with contextlib.suppress(KeyboardInterrupt):
            runs.close_run(save, csv)
    save, csv = runs.open_run("a", 0, True, accelerator)
    exchanged = step > 1  # completed by the next run if necessary
    assert (tmp_path / "save/a/0/last").read_text() == ("new" if exchanged else "old")
    assert (save / "last").exists() != exchanged
    assert sorted(os.listdir("save/a")) == ["0", "0.lock", "0.new"]


def test_interrupted_best_is_rewritten_and_damaged_best_is_refused(trained, tmp_path, capsys):
    """The next epoch rewrites it, whatever its loss."""
    save = shutil.copytree(trained / "save/pylon/0", tmp_path / "0")
    last = load_last(save / "last")
    wanted = {**last, "options": {**last["options"], "epochs": 3}}
    find = partial(runs.find_last, save, wanted, {}, accelerator=Accelerator(cpu=True))
    assert find(overwrite=False)["best_loss"] == last["best_loss"] < math.inf
    assert capsys.readouterr().out == ""
    card = read_training_json(save / "best")
    of_third = hashed_json({**card, "epoch": 3, "weights_sha256": "of the third"})
    (save / "best/training.json").write_bytes(of_third)
    assert find(overwrite=False)["best_loss"] == math.inf
    said = capsys.readouterr().out
    assert f"note: {save}/best mixes two epochs" in said
    assert f"; resuming from {save}/last, the next epoch writes it again" in said
    no_more = {**last, "options": {**last["options"], "epochs": 2}}
    sentence = r"best mixes two epochs.*; copy it again, choose another --name"
    with pytest.raises(UserError, match=sentence):
        runs.find_last(save, no_more, {}, False, Accelerator(cpu=True))
    of_other = hashed_json({**card, "weights_sha256": "of another run"})
    (save / "best/training.json").write_bytes(of_other)
    with pytest.raises(UserError, match=sentence):
        find(overwrite=False)
    assert find(overwrite=True) is None
    assert not (save / "last").exists()


def test_overwriting_run_is_not_mixed_either(tmp_path):
    card = {
        "options": {"lr": 1.0, "epochs": 1, "min_lr": 0.0, "schedule": "plateau"},
        "split_sha256": "a",
    }
    save = tmp_path / "0.new"
    write_together({save / "best/model.safetensors": b""})
    last = {**dict.fromkeys(RESUMED, 0), "options": {"lr": 2.0}, "split_sha256": "a"}
    save_last(save / "last", last)
    with pytest.raises(UserError, match=r"was trained with --lr 2.0 \(now 1.0\)"):
        runs.find_last(save, card, {}, False, Accelerator(cpu=True))
    assert runs.find_last(save, card, {}, True, Accelerator(cpu=True)) is None
    assert not (save / "last").exists()


def test_options_that_change_the_result_may_not_change_on_resume():
    """All but where files lie, how long and how fast; of precision and device only the device."""
    may = {
        "data", "table", "positive", "negative", "cache_dir", "epochs", "num_workers", "device",
        "compile", "skip_unreadable", "overwrite", "track",
    }  # fmt: skip
    for name in as_json(TrainOptions()):
        before = {"options": {name: 1}, "split_sha256": "a"}
        now = {"options": {name: 2}, "split_sha256": "a"}
        found = differences(before, now, "{} {} (now {})")
        assert found == ([] if name in may else [f"{flag(name)} 1 (now 2)"])


def test_the_rows_and_their_chart_take_the_place_of_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("0", "0.new"):
        write_together({tmp_path / f"save/a/{name}/last": name.encode()})
        files = {
            tmp_path / f"csv/a/{name}{end}": f"{name}{end}".encode() for end in (".csv", ".png")
        }
        write_together(files)
    write_together({tmp_path / "csv/a/10.new.csv": b"another seed"})
    save, csv = runs.open_run("a", 0, True, Accelerator(cpu=True))
    assert (str(save), str(csv)) == ("save/a/0.new", "csv/a/0.new.csv")
    assert str(runs.close_run(save, csv)) == "save/a/0"
    assert (tmp_path / "save/a/0/last").read_text() == "0.new"
    assert (tmp_path / "csv/a/0.csv").read_text() == "0.new.csv"
    assert (tmp_path / "csv/a/0.png").read_text() == "0.new.png"
    assert sorted(os.listdir("csv/a")) == ["0.csv", "0.png", "10.new.csv"]


@pytest.mark.parametrize(
    ("epoch", "has_last", "lost"),
    [(1, False, ""), (2, False, "last"), (2, True, ""), (None, True, "best"), (None, False, "")],
)
def test_what_a_run_has_lost(tmp_path, epoch, has_last, lost):
    """A run that was killed before its first `last` has lost nothing."""
    if epoch is not None:
        card = json.dumps({"epoch": epoch}).encode()
        write_together(
            {tmp_path / "best/model.safetensors": b"", tmp_path / "best/training.json": card}
        )
    assert runs.lost_part(tmp_path, {} if has_last else None) == lost


def test_differences_ignore_options_that_may_change():
    before = {"options": {"lr": 1.0, "up_layers": 1, "epochs": 2}, "split_sha256": "a"}
    now = {"options": {"lr": 1.0, "up_layers": 2, "epochs": 3, "new": 1}, "split_sha256": "b"}
    found = differences(before, now, "{} {} (now {})")
    assert found == ["--up-layers 1 (now 2)", "other images, labels or split"]
    assert differences(before, before, "{} {} (now {})") == []


def test_differences_are_written_as_options_are_typed():
    before = {"negatives": None, "adjust_for": ["view", "sex"], "attention": True}
    now = {"negatives": 3, "adjust_for": [], "attention": False}
    cards = [{"options": options, "split_sha256": "a"} for options in (before, now)]
    assert differences(*cards, "{} {} (now {})") == [
        "--negatives not given (now 3)",
        "--adjust-for view sex (now not given)",
        "--attention on (now off)",
    ]
