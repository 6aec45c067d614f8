"""The loop of train.py: a run of four epochs, and the same run killed and resumed."""

import json
import math
import os
import shutil
import signal

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, rows_of, run_script, same_weights
from scipy.special import expit
from sklearn.metrics import roc_auc_score

import pylon
from pylon.checkpoints.checkpoint import load_last
from pylon.checkpoints.training_json import read_json
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.sources import read_chestxray14
from pylon.training import runs

# With a learning rate this low, the validation loss depends almost only on the initial weights and
# the batch norm statistics: it rises with every epoch, on every processor. Each rise halves the
# learning rate; the third ends the run, at --min-lr exactly.
SCHEDULE = (
    "--lr",
    "1e-5",
    "--patience",
    0,
    "--lr-factor",
    0.5,
    "--min-lr",
    "1.25e-6",
    "--epochs",
    6,
)
BATCH = 5
# a model whose dropout draws from torch's generator, not from those of the loaders
DROPOUT = ("--model", "pspnet", "--name", "pylon")


@pytest.fixture(scope="module")
def few(phantom, tmp_path_factory):
    data = shutil.copytree(phantom, tmp_path_factory.mktemp("few") / "data")
    names = (data / "train_val_list.txt").read_text().split()[-26:]
    (data / "train_val_list.txt").write_text("\n".join(names))
    return data


@pytest.fixture(scope="module")
def unbroken(few, tmp_path_factory):
    """A run without interruption."""
    return train(few, tmp_path_factory.mktemp("unbroken"), 1, sabotage=write_down_each_loss)


def write_down_each_loss():
    """Log the loss and the labels, one line per training step and per validation."""
    loss_of = F.binary_cross_entropy_with_logits

    def noted(logits, labels):
        loss = loss_of(logits, labels)
        with open("losses", "a") as file:
            file.write(json.dumps([loss.item(), labels.tolist()]) + "\n")
        return loss

    F.binary_cross_entropy_with_logits = noted


@pytest.fixture(scope="module")
def resumed(few, tmp_path_factory):
    """The same run, killed after its third epoch is saved and resumed with more workers."""
    cwd = tmp_path_factory.mktemp("resumed")
    train(few, cwd, 0, code=-signal.SIGKILL, sabotage=die_after_the_third_epoch)
    assert load_last(cwd / "save/pylon/0/last")["epoch"] == 3
    assert read_json(cwd / "save/pylon/0/best/training.json")["finished"] is False
    return train(few, cwd, 2)


def train(data, cwd, workers, **how):
    options = (
        "--data",
        data,
        *TINY,
        *DROPOUT,
        *SCHEDULE,
        "--batch-size",
        BATCH,
        "--num-workers",
        workers,
    )
    done = run_script("train.py", *options, cwd=cwd, **how)
    (cwd / "stdout").write_text(done.stdout)
    return cwd


def die_after_the_third_epoch():
    save = runs.save_last

    def save_and_die(path, state):
        save(path, state)
        if state["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    runs.save_last = save_and_die


def test_learning_rate_is_reduced_when_the_loss_rises_and_ends_the_run(unbroken):
    table = rows_of(unbroken)
    assert table["val_loss"].diff()[1:].gt(0.01).all()
    # the next one is --min-lr
    assert table["lr"].tolist() == pytest.approx([1e-5, 1e-5, 5e-6, 2.5e-6])
    assert load_last(unbroken / "save/pylon/0/last")["lr"] == pytest.approx(1.25e-6)
    assert "finished: save/pylon/0/best" in (unbroken / "stdout").read_text()
    assert read_json(unbroken / "save/pylon/0/best/training.json")["finished"] is True


def test_each_epoch_uses_all_images_in_a_new_order(few, unbroken):
    images = read_chestxray14(few).images
    count = images["split"].value_counts()
    assert count["train"] % BATCH > 1  # the last batch is smaller and weighs less
    lines = [json.loads(line) for line in (unbroken / "losses").read_text().splitlines()]
    steps = math.ceil(count["train"] / BATCH)
    assert len(lines) == 4 * (steps + 1)
    orders = []
    for epoch, row in enumerate(rows_of(unbroken).itertuples()):
        *training, (val_loss, _) = lines[epoch * (steps + 1) :][: steps + 1]
        losses, labels = zip(*training, strict=True)
        assert row.train_loss == pytest.approx(
            np.average(losses, weights=[len(batch) for batch in labels]), rel=1e-5
        )
        assert row.val_loss == val_loss
        orders.append([label for batch in labels for label in batch])
    expected = images.loc[images["split"] == "train", list(PATHOLOGIES)].to_numpy()
    for k, order in enumerate(orders):
        assert sorted(order) == sorted(expected.tolist())
        assert order not in orders[:k]


def test_resumed_run_gives_the_same_result(unbroken, resumed):
    assert "resuming save/pylon/0 at epoch 4" in (resumed / "stdout").read_text()
    pd.testing.assert_frame_equal(rows_of(resumed), rows_of(unbroken))
    assert same_weights(resumed / "save/pylon/0", unbroken / "save/pylon/0")
    one, other = (load_last(cwd / "save/pylon/0/last") for cwd in (unbroken, resumed))
    assert one["schedule"] == other["schedule"]
    assert one["best_loss"] == other["best_loss"] == rows_of(unbroken)["val_loss"].min()
    for key, value in one["model"].items():
        assert torch.equal(value, other["model"][key]), key
    for key, state in one["optimizer"]["state"].items():
        assert all(
            torch.equal(value, other["optimizer"]["state"][key][name])
            for name, value in state.items()
        )


def test_best_checkpoint_is_selected_on_validation_data(few, unbroken):
    """Recompute loss, AUROC and thresholds from the saved network and the image files."""
    card = read_json(unbroken / "save/pylon/0/best/training.json")
    model = pylon.load_pylon(unbroken / "save/pylon/0/best")
    images = read_chestxray14(few).images
    val = images[images["split"] == "val"]
    assert len(val) >= 4
    pixels = [
        cv2.resize(cv2.imread(path, 0), (256, 256), interpolation=cv2.INTER_CUBIC)
        for path in val["path"]
    ]
    batch = (torch.tensor(np.stack(pixels))[:, None] / 255 - 0.4984) / 0.2483
    with torch.no_grad():
        logits = model(batch).logits.double().numpy()
    labels = val[list(PATHOLOGIES)].to_numpy()
    losses = np.logaddexp(0, logits) - labels * logits
    table = rows_of(unbroken).set_index("epoch")
    assert card["epoch"] == table["val_loss"].idxmin()
    row = table.loc[card["epoch"]]
    assert row["val_loss"] == card["val_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    decided = 0
    for c, name in enumerate(PATHOLOGIES):
        positive = labels[:, c] == 1
        if positive.all() or not positive.any():
            assert card["thresholds"][name] is None
            assert np.isnan(row[name])
            continue
        assert card["validation"][name]["auroc"] == pytest.approx(row[name], abs=1e-6)
        assert row[name] == pytest.approx(roc_auc_score(positive, logits[:, c]), abs=1e-6)
        # the best threshold among the logits; of ties, the highest
        candidates = np.sort(logits[:, c])[::-1]
        youden = [
            (logits[positive, c] >= t).mean() - (logits[~positive, c] >= t).mean()
            for t in candidates
        ]
        if max(youden) > 1e-9:
            decided += 1
            assert card["thresholds"][name] == pytest.approx(
                expit(candidates[np.argmax(youden)]), rel=1e-4
            )
    assert decided >= 2
