"""What a tracker is told, and the picture of the fixed validation images."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from pylon.drawing import overlay
from pylon.model import Pylon
from pylon.training import tracking
from pylon.training.tracking import Tracker, choose_images, draw_heatmaps, figures_of

NAMES = ("Mass", "Nodule")
PNG = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
HEAD = {"lr": 1e-3, "train_loss": 0.5, "val_loss": 0.25, "images_per_second": 9.0}
ROWS = [
    {"epoch": epoch, **HEAD, "Mass": 0.75, "Nodule": np.nan, "weighted": 0.75, "macro": 0.75}
    for epoch in (1, 2, 3)
]


class Told:
    """In place of Accelerate and its trackers: writes down what it is told."""

    is_main_process = True

    def __init__(self):
        self.trackers = [self]
        self.started = []
        self.steps = []
        self.said = []

    def init_trackers(self, name, options, settings):
        self.started.append((name, settings))

    def get_tracker(self, name, unwrap=False):
        return SimpleNamespace(info=SimpleNamespace(run_id="chosen by mlflow"))

    def log(self, figures, step):
        self.steps.append(step)
        self.figures = figures

    def finish(self):
        raise ConnectionError("the server\nis down")

    def print(self, sentence):
        self.said.append(sentence)


def make(save, name, resumed=True, told=None):
    told = told or Told()
    options = {"track": name, "name": "demo", "seed": 0}
    return Tracker(save, options, NAMES, resumed, told), told


def test_undefined_figures_are_left_out():
    assert figures_of(ROWS[0], NAMES) == {
        "loss/train": 0.5,
        "loss/validation": 0.25,
        "lr": 1e-3,
        "images_per_second": 9.0,
        "auroc/Mass": 0.75,
        "auroc/weighted": 0.75,
        "auroc/macro": 0.75,
    }


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_resumed_run_goes_on_in_the_same_place(tmp_path, name):
    tracker, told = make(tmp_path, name, resumed=False)
    tracker.log([])
    assert told.started == []
    tracker.log(ROWS[:2])
    tracker.log(ROWS[:2])
    assert told.steps == [1, 2]
    record = json.loads((tmp_path / name / "logged.json").read_text())
    tracker, again = make(tmp_path, name)
    tracker.log(ROWS)
    assert again.steps == [3]
    ((project, settings),) = again.started
    assert project == "demo"
    assert record["run"] in settings[name].values()
    assert name != "mlflow" or settings[name]["run_id"] == "chosen by mlflow"
    assert name == "mlflow" or settings[name]["resume"] == "allow"

    # not resumed: a new run, in which all epochs are logged
    tracker, new = make(tmp_path, name, resumed=False)
    tracker.log(ROWS)
    assert new.steps == [1, 2, 3]
    assert new.started[0][1] != settings


def test_epochs_after_an_older_state_are_logged_again(tmp_path):
    """A user has put back a copy of `last`."""
    make(tmp_path / "demo/0", "tensorboard")[0].log(ROWS)
    tracker, told = make(tmp_path / "demo/0", "tensorboard")
    tracker.log(ROWS[:1])
    assert told.steps == []
    tracker.log(ROWS[:2])
    assert told.steps == [2]
    assert told.started == [("demo/0/tensorboard", {"tensorboard": {"purge_step": 2}})]


def test_failure_is_noted_once(tmp_path):
    tracker, told = make(tmp_path, "wandb")
    told.init_trackers = None  # a TypeError
    tracker.log(ROWS)
    tracker.log(ROWS)
    assert len(told.said) == 1
    assert "note: --track wandb has stopped (TypeError:" in told.said[0]
    assert told.trackers == []
    tracker, told = make(tmp_path, "wandb")
    tracker.close()
    assert "(ConnectionError: the server is down); training goes on" in told.said[0]


def test_other_processes_and_runs_without_a_tracker_log_nothing(tmp_path):
    told = Told()
    told.is_main_process = False
    for name in ("wandb", None):
        tracker, _ = make(tmp_path, name, told=told)
        tracker.log(ROWS)
        told.is_main_process = True
    assert told.started == told.steps == told.said == []


@pytest.fixture
def val(tmp_path, rng):
    """Twelve images, of which the first has no finding, the second one that is unknown."""
    table = pd.DataFrame({"image_id": [f"{k}.png" for k in range(12)]})
    table["path"] = [str(tmp_path / name) for name in table["image_id"]]
    for path in table["path"]:
        cv2.imwrite(path, rng.integers(0, 256, (64, 48), np.uint8))
    table["Mass"] = [0, np.nan, *[1] * 10]
    table["Nodule"] = [0, 0, *[0, 1] * 5]
    return table


def test_images_depend_on_the_seed_alone(val):
    chosen = choose_images(val, NAMES, 3)
    np.random.default_rng().random()
    torch.rand(1)
    assert choose_images(val, NAMES, 3) == chosen
    assert choose_images(val, NAMES, 4) != chosen
    assert len({row for row, _ in chosen}) == 8
    assert all(val[NAMES[c]][row] == 1 for row, c in chosen)
    # Mass is in all of them, Nodule in every other one: chosen where it is, and not always
    both = [c for row, c in chosen if val["Nodule"][row] == 1]
    assert 0 < sum(both) < len(both)
    assert choose_images(val[:2], NAMES, 3) == []


def test_each_panel_has_the_map_the_class_and_the_name_of_its_image(val, monkeypatch):
    panels = []
    monkeypatch.setattr(tracking, "draw_sheet", lambda given, **_: panels.extend(given) or PNG)
    torch.manual_seed(0)
    net = Pylon("tu-test_resnet", None, classes=2).eval()
    with torch.no_grad():
        net.segmentation_head[0].weight *= 20  # or all maps would look alike
    draw_heatmaps(net, val, NAMES, 3, 256, None, 0.5, 0.25, Accelerator(cpu=True))
    chosen = choose_images(val, NAMES, 3)
    assert [row for row, _ in chosen] != list(range(2, 10))
    assert len(panels) == len(chosen)
    for panel, (row, c) in zip(panels, chosen, strict=True):
        assert panel.subtitle == f"{row}.png"
        grey = cv2.imread(val["path"][row], cv2.IMREAD_GRAYSCALE)
        large = cv2.resize(grey, (256, 256), interpolation=cv2.INTER_CUBIC)
        with torch.inference_mode():
            output = net(torch.tensor((large / 255 - 0.5) / 0.25).float()[None, None])
        assert panel.title == f"{NAMES[c]}: {output.logits[0, c].sigmoid():.3f}"
        expected = overlay(large, output.maps[0, c].sigmoid().numpy(), "absolute").astype(int)
        assert np.abs(panel.picture - expected).max() <= 1


def test_picture_leaves_the_network_as_it_is(val):
    torch.manual_seed(0)
    net = Pylon("tu-test_resnet", None, classes=2).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002, what other libraries might use
    accelerator = Accelerator(cpu=True)
    drawn = draw_heatmaps(net, val, NAMES, 3, 256, None, 0.5, 0.25, accelerator)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 2 * 256
    assert drawn.shape[1] > 4 * 256
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    with torch.no_grad():
        net.segmentation_head[0].bias += 3
    brighter = draw_heatmaps(net, val, NAMES, 3, 256, None, 0.5, 0.25, accelerator)
    assert (brighter != drawn).any()
    assert draw_heatmaps(net, val[:2], NAMES, 3, 256, None, 0.5, 0.25, accelerator) is None
