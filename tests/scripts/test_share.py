"""share.py as a user types it: a dry run, a fresh environment that loads it, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script, sentence_of
from huggingface_hub import constants

from pylon.checkpoints.checkpoint import load_pylon, save_best
from pylon.checkpoints.training_json import make_card
from pylon.model import Pylon

REPO = ("--repo", "user/name")
LOAD = """
import pylon, torch
model = pylon.load_pylon("share/user/name")
with torch.inference_mode():
    print(model(torch.ones(1, 1, 256, 256)).logits.tolist())
print(model.description.thresholds)
"""


@pytest.fixture
def cwd(tmp_path) -> Path:
    """A folder with the checkpoint save/mine/0/best."""
    torch.manual_seed(0)
    model = Pylon("tu-test_resnet", None, classes=2, decoder_channels=8)
    options = {"data": str(tmp_path), "image_size": 256}
    card = make_card(("Mass", "Nodule"), options, "abc", {}, 0.1, 0.7)
    best = tmp_path / "save/mine/0/best"
    save_best(best, model, {**card, "finished": True, "thresholds": {"Mass": 0.25, "Nodule": 0.5}})
    return tmp_path


def test_a_fresh_environment_loads_what_is_shared(cwd, one_thread):
    best = cwd / "save/mine/0/best"
    before = {path.name: path.read_bytes() for path in best.iterdir()}
    done = run_script("share.py", "--checkpoint", best, *REPO, "--dry-run", cwd=cwd)
    assert "nothing was sent: share/user/name holds what would be pushed" in done.stdout
    assert "csv/mine has no rows of images of this network" in done.stdout
    assert {path.name: path.read_bytes() for path in best.iterdir()} == before
    folder = cwd / "share/user/name"
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)
    assert not any(str(cwd).encode() in path.read_bytes() for path in folder.iterdir())

    # without a home, a token, a cache or a network
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(cwd / "home"), "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    fresh = subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    model = load_pylon(best)
    with torch.inference_mode():
        logits = model(torch.ones(1, 1, 256, 256)).logits.tolist()
    assert fresh.stdout.splitlines() == [str(logits), str(model.description.thresholds)]


def log_out() -> None:
    """In a script's process: no token."""
    constants.HF_TOKEN_PATH = "/none/token"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        os.environ.pop(name, None)


def test_mistakes_end_in_one_sentence(cwd):
    best = cwd / "save/mine/0/best"
    for arguments, sentence in (
        ((best, *REPO), "nobody is logged in to the Hugging Face hub; log in with `hf auth login`"),
        ((best, "--repo", "name", "--dry-run"), "--repo must be USER/NAME"),
        ((best, *REPO, "--out", "here"), "--out is for --dry-run"),
        ((cwd / "save/none", *REPO, "--dry-run"), "there is no checkpoint at"),
        ((cwd / "save/mine", *REPO, "--dry-run"), "is not a checkpoint: it has no config.json"),
    ):
        done = run_script("share.py", "--checkpoint", *arguments, cwd=cwd, code=2, sabotage=log_out)
        assert sentence in sentence_of(done)

    # the weights of another network
    Pylon("tu-test_resnet", None, classes=3, decoder_channels=8).save_pretrained(cwd / "other")
    (cwd / "other/model.safetensors").rename(best / "model.safetensors")
    done = run_script("share.py", "--checkpoint", best, *REPO, "--dry-run", cwd=cwd, code=2)
    assert "does not contain the network of its config.json" in sentence_of(done)
    assert not (cwd / "share").exists()
