"""Descriptions of networks: kept by every way of saving and loading, refused if impossible."""

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from huggingface_hub import HfApi

import pylon
from pylon.baselines import Baseline
from pylon.checkpoints import checkpoint
from pylon.checkpoints.training_json import make_card, read_json, read_training_json
from pylon.model import Pylon
from pylon.system.errors import UserError

NAMES = ("Mass", "Œdème, mild", '"quoted"')
THRESHOLDS = {"Mass": 0.25, "Œdème, mild": None}  # none of the third class
CALIBRATION = {"Mass": [2.0, -1.5], '"quoted"': None}
DESCRIPTION = pylon.Description(NAMES, 0.1, 0.7, 512, THRESHOLDS, CALIBRATION)
NETWORKS = {
    "pylon": lambda: Pylon("tu-test_resnet", None, classes=3, decoder_channels=8),
    "baseline": lambda: Baseline("backbone", "tu-test_resnet", None, classes=3),
}


@pytest.fixture(params=NETWORKS)
def best(request, tmp_path) -> Path:
    """A checkpoint of three classes of own names, as train.py writes it."""
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    card = make_card(NAMES, {"image_size": 512, "seed": 3}, "abc", {}, 0.1, 0.7)
    chosen = {"thresholds": THRESHOLDS, "calibration": CALIBRATION}
    checkpoint.save_best(tmp_path / "best", model, {**card, **chosen})
    return tmp_path / "best"


def logits(model) -> torch.Tensor:
    images = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eval()(images).logits


def assert_complete(folder: Path, best: Path) -> None:
    """Check that a folder says everything that `best` says."""
    model = pylon.load_pylon(folder)
    first = pylon.load_pylon(best)
    assert model.description == DESCRIPTION
    assert torch.equal(logits(model), logits(first))
    assert checkpoint.read_card(folder, model) == checkpoint.read_card(best, first)
    assert {path.name for path in folder.iterdir()} >= {path.name for path in best.iterdir()}


def test_config_json_says_what_the_network_needs(best):
    config = read_json(best / "config.json")
    assert config["class_names"] == list(NAMES)
    assert (config["mean"], config["std"], config["image_size"]) == (0.1, 0.7, 512)
    assert config["thresholds"] == DESCRIPTION.thresholds
    assert config["kind"] in NETWORKS
    assert config["layout"] == 2
    # it is what counts, without training.json
    (best / "training.json").unlink()
    model = pylon.load_pylon(best)
    card = checkpoint.read_card(best, model)
    assert card["class_names"] == list(NAMES)
    assert (card["image_size"], card["mean"]) == (512, 0.1)
    assert checkpoint.class_names_of(best) == NAMES


def test_every_way_of_saving_keeps_it(best, tmp_path, monkeypatch):
    model = pylon.load_pylon(best)
    model.save_pretrained(tmp_path / "saved")
    assert_complete(tmp_path / "saved", best)
    shutil.copytree(tmp_path / "saved", tmp_path / "copied")
    assert_complete(tmp_path / "copied", best)
    type(model).from_pretrained(tmp_path / "copied").save_pretrained(tmp_path / "again")
    assert_complete(tmp_path / "again", best)
    copy.deepcopy(model).save_pretrained(tmp_path / "deep")
    assert_complete(tmp_path / "deep", best)

    # pushed: the hub is a folder
    def upload(self, repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **_: type("", (), {"repo_id": repo_id})
    )
    model.push_to_hub("user/name")
    assert_complete(tmp_path / "hub/user/name", best)


def test_card_is_not_saved_with_other_weights(best, tmp_path):
    model = pylon.load_pylon(best)
    with torch.no_grad():
        model.segmentation_head[0].bias += 1
    shutil.copytree(best, tmp_path / "changed")
    model.save_pretrained(tmp_path / "changed")  # in the place of those that it belongs to
    assert read_training_json(tmp_path / "changed") is None
    described = pylon.load_pylon(tmp_path / "changed").description
    assert described == dataclasses.replace(DESCRIPTION, thresholds=None, calibration=None)


def test_an_edited_card_is_not_believed(best):
    """Its hash is that of the card as it was; config.json and the weights are whole."""
    path = best / "training.json"
    kind = type(pylon.load_pylon(best))
    assert kind.from_pretrained(best).card["options"]["seed"] == 3
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    assert kind.from_pretrained(best).card is None
    assert pylon.load_pylon(best).card is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_names": ["a", "b"]}, "class_names must be 3 different names, one per output"),
        ({"class_names": ["a", "b", "b"]}, "class_names must be 3 different names"),
        ({"class_names": "abc"}, "class_names must be a list of names"),
        ({"class_names": [1, 2, 3]}, "class_names must be a list of names"),
        ({"std": 0}, "std must be above 0, got 0"),
        ({"mean": "x"}, "mean must be a number, got 'x'"),
        ({"mean": float("nan")}, "mean must be a number, got nan"),
        ({"thresholds": [0.5]}, "thresholds must be probabilities by class name"),
        ({"thresholds": {"Mass": "high"}}, "thresholds must be probabilities by class name"),
        ({"thresholds": {"Mass": 2}}, "thresholds must be probabilities by class name"),
        ({"calibration": [1, 0]}, "calibration must be a slope above 0 and an intercept"),
        ({"calibration": {"Mass": [-1, 0]}}, "calibration must be a slope above 0"),
        ({"calibration": {"Mass": [1, None]}}, "calibration must be a slope above 0"),
        ({"layout": 3}, "config.json: layout is 3, but this version reads 1 to 2; update the code"),
        ({"layout": True}, "config.json: layout is True"),
    ],
)
def test_impossible_descriptions_are_refused(best, changes, sentence):
    config = read_json(best / "config.json")
    path = best / "config.json"
    path.write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=r"config.json is damaged: its hash does not match; copy"):
        pylon.load_pylon(best)
    del config["sha256"]  # as the sentence says
    path.write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError) as caught:
        pylon.load_pylon(best)
    assert str(caught.value).startswith(str(best))
    assert sentence in str(caught.value)
    if "class_names" in changes or "layout" in changes:
        with pytest.raises(UserError, match=re.escape(sentence)):
            checkpoint.class_names_of(best)


def test_networks_without_names(tmp_path):
    fourteen = Pylon("tu-test_resnet", None, decoder_channels=8)
    fourteen.save_pretrained(tmp_path / "fourteen")
    card = checkpoint.read_card(tmp_path / "fourteen", pylon.load_pylon(tmp_path / "fourteen"))
    assert card["class_names"][0] == "Atelectasis"
    assert (card["mean"], card["image_size"]) == (0.4984, 256)
    NETWORKS["pylon"]().save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"three has 3 classes, but neither config.json nor"):
        checkpoint.read_card(tmp_path / "three", pylon.load_pylon(tmp_path / "three"))


def test_descriptions_are_checked_before_they_are_saved(tmp_path):
    model = NETWORKS["pylon"]()
    model.description = pylon.Description(("a", "b"))
    with pytest.raises(ValueError, match="class_names must be 3 different names"):
        model.save_pretrained(tmp_path / "two")


def fill_cache(home: Path, best: Path) -> None:
    """Put a checkpoint into a cache of the Hugging Face hub, as user/name."""
    repository = home / "hub/models--user--name"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(best, repository / "snapshots" / commit)


@pytest.mark.parametrize("best", ["pylon"], indirect=True)
def test_names_on_the_hub(best, tmp_path):
    """Offline: from the hub's cache, or a sentence."""
    fill_cache(tmp_path / "home", best)
    code = (
        "import pylon; print(pylon.load_pylon('user/name').description.class_names)\n"
        "try: pylon.load_pylon('user/other')\n"
        "except ValueError as error: print(error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    names, sentence = done.stdout.splitlines()
    assert names == str(NAMES)
    assert "there is no checkpoint user/other in this folder, on the Hugging Face hub," in sentence


def test_folders_are_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "save").mkdir()
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    for name in ("save/pylon", "weights/model.pkl", "a/b/c", "alone", "/user/name"):
        assert checkpoint.find_checkpoint(name) == Path(name)
