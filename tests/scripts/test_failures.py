"""Runs that are killed, stopped, out of disk space or diverging.

PYLON_KILLS=20 tests more kills.
"""

import contextlib
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
from functools import partial

import pandas as pd
import pytest
from conftest import LONG, TINY, TRAIN, rows_of, run_script, same_weights, sentence_of, start_script
from faulty_files import FaultyFile

from pylon.checkpoints.checkpoint import load_last
from pylon.checkpoints.training_json import read_json, read_training_json
from pylon.system.files import hold_lock

KILLS = int(os.environ.get("PYLON_KILLS", "1"))
# files written in two epochs, at least: 3 to check the permissions; 3 in best, csv, last; csv, last
WRITES = 10


def wait_until(condition, process):
    while not condition():
        assert process.is_alive()
        process.join(0.02)


def die_halfway(file, data):
    """Write half of the data, then kill the process."""
    file.write(data[: len(data) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(number):
    from pylon.system import files

    count = itertools.count(1)

    def open_or_die(*args):
        file = open(*args)  # noqa: SIM115, the caller closes it
        return FaultyFile(file, die_halfway) if next(count) == number else file

    files.open = open_or_die


def die_before_rename(number, name=""):
    """Kill the process before the given rename of a file whose path ends with `name`."""
    count = itertools.count(1)
    replace = os.replace

    def replace_or_die(source, target):
        if str(target).endswith(name) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_run_resumes_to_the_same_result(trained, phantom, tmp_path, number):
    numbers = random.Random(number)
    arguments = ("train.py", "--data", phantom, "--epochs", 2, *TRAIN)
    if number % 2:
        die = numbers.choice([die_in_write, die_before_rename])
        sabotage = partial(die, numbers.randint(4, WRITES))
        process = start_script(*arguments, cwd=tmp_path, out=tmp_path, sabotage=sabotage)
        process.join()
    else:
        process = None
        moment = numbers.uniform(0.3, 4)  # seconds
        while process is None or process.exitcode == 0:  # finished before the kill
            for folder in ("save", "csv"):
                shutil.rmtree(tmp_path / folder, ignore_errors=True)
            process = start_script(*arguments, cwd=tmp_path, out=tmp_path)
            process.join(moment)
            moment /= 2
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # the process group does not exist yet, or no longer
                process.kill()
            process.join()
    assert process.exitcode == -signal.SIGKILL
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    print("killed in a write" if number % 2 else "killed at a random moment", "leaving", *left)
    assert number % 2 == 0 or any(name.endswith(".partial") for name in left)
    run_script(*arguments, cwd=tmp_path)
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")
    assert same_card(tmp_path, trained)
    assert not list(tmp_path.rglob("*.partial"))


def same_card(a, b):
    one = read_json(a / "save/pylon/0/best/training.json")
    other = read_json(b / "save/pylon/0/best/training.json")
    return (one["epoch"], one["val_loss"]) == (other["epoch"], other["val_loss"])


@pytest.mark.parametrize("name", [pytest.param("SIGTERM", marks=LONG), "SIGINT"])
def test_stopped_run_says_how_to_resume(trained, phantom, tmp_path, name):
    arguments = ("train.py", "--data", phantom, "--epochs", 2, *TRAIN[:-1], 1)
    process = start_script(*arguments, cwd=tmp_path, out=tmp_path)
    wait_until(lambda: (tmp_path / "save/pylon/0/last").exists(), process)
    # like a terminal or `timeout`: the workers receive the signal, too
    os.killpg(process.pid, getattr(signal, name))
    process.join(60)
    assert process.exitcode == {"SIGTERM": 143, "SIGINT": 130}[name]
    said = (tmp_path / "stderr").read_text()
    assert said.endswith("stopped; the same command resumes after the last finished epoch\n")
    assert "Traceback" not in said
    done = run_script(*arguments, cwd=tmp_path)
    assert "resuming save/pylon/0 at epoch 2" in done.stdout
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")


def test_second_run_with_the_same_name_and_seed_is_refused(phantom, tmp_path):
    arguments = ("train.py", "--data", phantom, "--epochs", 50, *TRAIN[:-1], 1)
    process = start_script(*arguments, cwd=tmp_path, out=tmp_path)
    wait_until(lambda: (tmp_path / "save/pylon/0/best").exists(), process)
    done = run_script(*arguments, cwd=tmp_path, code=2)
    sentence = "another process is training save/pylon/0; wait for it, or choose another --name"
    assert sentence in sentence_of(done)
    os.kill(process.pid, signal.SIGKILL)  # not its worker, which outlives it for a moment
    process.join()
    hold_lock(tmp_path / "save/pylon/0.lock", "still held")


def test_overwriting(trained, phantom, tmp_path):
    shutil.copytree(trained / "save", tmp_path / "save")
    shutil.copytree(trained / "csv", tmp_path / "csv")
    other = ("train.py", "--data", phantom, *TRAIN, "--lr", "5e-4", "--epochs", 2)
    sentence = "was trained with --lr 0.001 (now 0.0005); choose another --name, or --overwrite it"
    assert sentence in sentence_of(run_script(*other, cwd=tmp_path, code=2))
    process = start_script(*other, "--overwrite", cwd=tmp_path, out=tmp_path)
    wait_until(lambda: (tmp_path / "save/pylon/0.new/last").exists(), process)
    process.kill()
    process.join()
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    done = run_script(*other, "--overwrite", cwd=tmp_path)
    assert "resuming save/pylon/0.new at epoch 2" in done.stdout
    assert "finished: save/pylon/0/best" in done.stdout
    assert (rows_of(tmp_path)["lr"] == 5e-4).all()
    assert sorted(os.listdir(tmp_path / "save/pylon")) == ["0", "0.lock"]
    assert sorted(os.listdir(tmp_path / "csv/pylon")) == ["0.csv", "0.png"]
    assert "is finished: 2 epochs" in run_script(*other, cwd=tmp_path).stdout


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def contents_of(run):
    """All saved files of a run; the card without its `finished` flag."""
    contents = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    card = read_training_json(run / "best")
    del card["finished"]
    return {**contents, run / "best/training.json": card}


@pytest.mark.parametrize("way", ["full disk", "limit"][:KILLS])
def test_full_disk_leaves_the_previous_checkpoint(trained, phantom, tmp_path, way):
    arguments = ("train.py", "--data", phantom, *TRAIN)
    with contextlib.ExitStack() as stack:
        cwd = tmp_path / "disk"
        cwd.mkdir()
        if way == "full disk":
            mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", cwd]
            if subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("cannot mount a file system")
            stack.callback(subprocess.run, ["umount", cwd], check=True)
        run_script(*arguments, "--epochs", 1, cwd=cwd)
        saved = contents_of(cwd / "save/pylon/0")
        if way == "full disk":
            free = shutil.disk_usage(cwd).free
            (cwd / "filler").write_bytes(bytes(free - 1_000_000))
        sabotage = partial(limit_files, 1_000_000) if way == "limit" else None
        done = run_script(*arguments, "--epochs", 2, cwd=cwd, code=2, sabotage=sabotage)
        assert "cannot be written" in sentence_of(done)
        assert "No space left on device" in sentence_of(done) or way == "limit"
        assert saved == contents_of(cwd / "save/pylon/0")
        assert read_training_json(cwd / "save/pylon/0/best")["finished"] is False
        (cwd / "filler").unlink(missing_ok=True)
        run_script(*arguments, "--epochs", 2, cwd=cwd)
        pd.testing.assert_frame_equal(rows_of(cwd), rows_of(trained))
        assert same_weights(cwd / "save/pylon/0", trained / "save/pylon/0")


def test_loss_that_is_not_finite_ends_the_run(trained, phantom, tmp_path):
    arguments = ("train.py", "--data", phantom, *TINY, "--batch-size", 8, "--lr", 1e20)
    done = run_script(*arguments, cwd=tmp_path, code=2)
    assert "epoch 1, step 2: the loss is not finite; lower --lr" in sentence_of(done)
    assert not (tmp_path / "save/pylon/0/last").exists()
    shutil.copytree(trained / "save", tmp_path / "save", dirs_exist_ok=True)
    before = (tmp_path / "save/pylon/0/best/model.safetensors").read_bytes()
    arguments = ("train.py", "--data", phantom, *TRAIN, "--epochs", 4)
    done = run_script(*arguments, cwd=tmp_path, code=2, sabotage=spoil)
    assert "epoch 3, step 4: the loss is not finite" in sentence_of(done)
    assert (tmp_path / "save/pylon/0/best/model.safetensors").read_bytes() == before
    assert load_last(tmp_path / "save/pylon/0/last")["epoch"] == 2


def spoil():
    """Make the loss of the fourth step NaN."""
    import torch.nn.functional as F

    loss = F.binary_cross_entropy_with_logits
    count = itertools.count(1)

    def spoilt(*args):
        return loss(*args) * (float("nan") if next(count) == 4 else 1)

    F.binary_cross_entropy_with_logits = spoilt


def test_run_without_last_cannot_be_resumed(trained, phantom, tmp_path):
    shutil.copytree(trained / "save", tmp_path / "save")
    (tmp_path / "save/pylon/0/last").unlink()
    card = tmp_path / "save/pylon/0/best/training.json"
    card.write_text(card.read_text().replace('"epoch": 1,', '"epoch": 2,'))
    done = run_script("train.py", "--data", phantom, *TRAIN, cwd=tmp_path, code=2)
    sentence = "save/pylon/0/last is missing: cannot resume; choose another --name"
    assert sentence in sentence_of(done)


def test_run_with_damaged_or_missing_files(trained, phantom, tmp_path):
    shutil.copytree(trained / "save", tmp_path / "save")
    run = tmp_path / "save/pylon/0"
    arguments = ("train.py", "--data", phantom, "--epochs", 2, *TRAIN)
    card = (run / "best/training.json").read_bytes()
    (run / "best/training.json").write_text("{")
    sentence = sentence_of(run_script(*arguments, cwd=tmp_path, code=2))
    assert "training.json is damaged" in sentence
    assert sentence.endswith("; copy it again, choose another --name, or --overwrite")
    (run / "best/training.json").write_bytes(card)
    assert "is finished" in run_script(*arguments, cwd=tmp_path).stdout
    shutil.rmtree(run / "best")
    assert "save/pylon/0/best is missing" in sentence_of(
        run_script(*arguments, cwd=tmp_path, code=2)
    )
    (run / "last").write_bytes(b"cut")
    assert "last is damaged" in sentence_of(run_script(*arguments, cwd=tmp_path, code=2))
    shutil.copytree(run, tmp_path / "save/pylon/0.new")
    run_script(*arguments, "--overwrite", cwd=tmp_path)
    assert same_weights(run, trained / "save/pylon/0")


def test_killed_between_writing_the_weights_and_the_card(phantom, tmp_path):
    quickly = ("--lr", "5e-3")  # so that the second epoch is better by far
    arguments = ("train.py", "--data", phantom, *TRAIN, *quickly, "--epochs", 2)
    sabotage = partial(die_before_rename, 2, "best/model.safetensors")
    run_script(*arguments, cwd=tmp_path, code=-signal.SIGKILL, sabotage=sabotage)
    shutil.rmtree(tmp_path / "csv")
    evaluate = ("eval_auc.py", "--data", phantom, "--device", "cpu", "--num-workers", 0)
    sentence = "best mixes two epochs: its training.json does not belong to its model.safetensors"
    done = run_script(*evaluate, cwd=tmp_path, code=2)
    assert f"save/pylon/0/{sentence}" in sentence_of(done)
    said = run_script(*arguments, cwd=tmp_path).stdout
    assert "note: save/pylon/0/best mixes two epochs" in said
    assert "resuming from save/pylon/0/last, the next epoch writes it again" in said
    run_script(*evaluate, cwd=tmp_path)


@LONG
def test_killed_before_the_first_weights_are_written(phantom, tmp_path):
    """The card is there already, so the folder is not taken for one without metadata."""
    arguments = ("train.py", "--data", phantom, *TRAIN, "--epochs", 1)
    sabotage = partial(die_before_rename, 1, "best/model.safetensors")
    run_script(*arguments, cwd=tmp_path, code=-signal.SIGKILL, sabotage=sabotage)
    assert read_training_json(tmp_path / "save/pylon/0/best")["finished"] is False
    assert not (tmp_path / "save/pylon/0/best/model.safetensors").exists()
    evaluate = ("eval_auc.py", "--data", phantom, "--device", "cpu")
    sentence = sentence_of(run_script(*evaluate, cwd=tmp_path, code=2))
    assert "save/pylon/0/best is not a checkpoint: it has no model.safetensors" in sentence
    assert "finished: save/pylon/0/best" in run_script(*arguments, cwd=tmp_path).stdout


@LONG
def test_deterministic_run_gives_the_same_weights(trained, phantom, tmp_path):
    options = ("--data", phantom, "--epochs", 2, *TRAIN, "--deterministic")
    run_script("train.py", *options, cwd=tmp_path)
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")
