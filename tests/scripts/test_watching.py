"""train.py --track: what TensorBoard's own reader finds in its event files, also after a kill."""

import itertools
import os
import shutil
import signal
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN, rows_of, run_script, same_weights, sentence_of
from test_without_libraries import hide

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.training.tracking import Tracker

COLUMN_OF = {
    "loss/train": "train_loss",
    "loss/validation": "val_loss",
    "lr": "lr",
    "images_per_second": "images_per_second",
    **{f"auroc/{name}": name for name in (*PATHOLOGIES, "weighted", "macro")},
}


def read_events(folder):
    """The events of a run by tag: (step, value) of figures, (step, picture) of pictures."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    figures = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    pictures = [
        (event.step, cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), 1))
        for event in events.Images("heatmaps")
    ]
    return figures, pictures


@pytest.fixture(scope="module")
def few(phantom, tmp_path_factory):
    data = shutil.copytree(phantom, tmp_path_factory.mktemp("few") / "data")
    names = (data / "train_val_list.txt").read_text().split()[-20:]
    (data / "train_val_list.txt").write_text("\n".join(names))
    return data


@pytest.fixture(scope="module")
def untracked(few, tmp_path_factory):
    """A run without a tracker."""
    cwd = tmp_path_factory.mktemp("untracked")
    run_script("train.py", "--data", few, *TRAIN, "--epochs", 2, cwd=cwd)
    return cwd


def train(data, cwd, *more, **how):
    options = ("--data", data, *TRAIN, "--epochs", 2, "--track", "tensorboard", *more)
    return run_script("train.py", *options, cwd=cwd, **how)


def die_before_logging(epoch):
    """Kill the process when an epoch is saved, but not logged."""
    log = Tracker.log

    def log_or_die(tracker, rows, draw=None):
        if rows and rows[-1]["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        log(tracker, rows, draw)

    Tracker.log = log_or_die


def die_after_logging(epoch):
    """Kill the process when an epoch is logged, but this has not been written down."""
    write = Tracker.write_record

    def write_or_die(tracker, record):
        if record["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        write(tracker, record)

    Tracker.write_record = write_or_die


@pytest.mark.parametrize(
    ("sabotage", "pictures_of"),
    [
        (partial(die_before_logging, 1), [1, 2]),
        (partial(die_after_logging, 1), [1, 2]),
        (partial(die_before_logging, 2), [1]),  # nothing is left to train
    ],
    ids=["before", "after", "finished"],
)
def test_killed_run_logs_each_epoch_once(untracked, few, tmp_path, sabotage, pictures_of):
    folder = tmp_path / "save/pylon/0/tensorboard"
    train(few, tmp_path, code=-signal.SIGKILL, sabotage=sabotage)
    if "after" in sabotage.func.__name__:
        (file,) = folder.glob("events.*")
        file.write_bytes(file.read_bytes()[:-5])  # killed within a write
        assert read_events(folder)[0]["loss/train"]
    train(few, tmp_path)
    figures, pictures = read_events(folder)
    table = pd.read_csv(tmp_path / "csv/pylon/0.csv").set_index("epoch")
    columns = {tag: table[name].dropna() for tag, name in COLUMN_OF.items()}
    assert figures.keys() == {tag for tag, column in columns.items() if len(column)}
    for tag, events in figures.items():
        assert [step for step, _ in events] == columns[tag].index.tolist(), tag
        np.testing.assert_allclose([value for _, value in events], columns[tag], rtol=1e-6)
    assert [step for step, _ in figures["loss/train"]] == [1, 2]
    assert [step for step, _ in pictures] == pictures_of
    if len(pictures) == 2:
        first, second = (picture.astype(int) for _, picture in pictures)
        assert first.shape == second.shape
        assert np.abs(first - second).max() > 5  # another map on the same images
        assert np.abs(first - second).mean() < 30

    # training has not noticed
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(untracked))
    assert same_weights(tmp_path / "save/pylon/0", untracked / "save/pylon/0")


def fill_the_disk():
    """Let TensorBoard write four events."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write
    count = itertools.count(1)

    def write_or_fail(writer, data):
        if next(count) > 4:
            raise OSError("No space left on device")
        write(writer, data)

    RecordWriter.write = write_or_fail


def test_failure_does_not_end_training_and_another_run_can_replace_it(untracked, few, tmp_path):
    done = train(few, tmp_path, sabotage=fill_the_disk)
    assert done.stdout.count("--track tensorboard has stopped (OSError: No space left") == 1
    assert "finished: save/pylon/0/best" in done.stdout
    assert "Traceback" not in done.stderr
    assert same_weights(tmp_path / "save/pylon/0", untracked / "save/pylon/0")
    train(few, tmp_path, "--lr", "5e-4", "--overwrite")
    figures, _ = read_events(tmp_path / "save/pylon/0/tensorboard")
    assert figures["lr"] == [(1, pytest.approx(5e-4)), (2, pytest.approx(5e-4))]
    assert not (tmp_path / "save/pylon/0.new").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_tracker_that_is_not_installed(phantom, tmp_path, name):
    options = ("--data", phantom, *TRAIN, "--track", name)
    done = run_script("train.py", *options, cwd=tmp_path, code=2, sabotage=partial(hide, name))
    sentence = f"--track {name} needs the library {name}, which is not installed: pip install"
    assert sentence in sentence_of(done)
    assert not list(tmp_path.iterdir())
