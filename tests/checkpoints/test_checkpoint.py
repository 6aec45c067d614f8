"""Checkpoints: written, read back, and refused if damaged."""

import json
import os
import pickle

import pytest
import torch

import pylon
from pylon.checkpoints import checkpoint
from pylon.checkpoints.training_json import make_card, mark_finished, read_json
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.hub import arguments_of
from pylon.model import Pylon
from pylon.system.errors import UserError

ENCODER = "tu-test_resnet"
SCALE = (0.4984, 0.2483)  # mean, std
NAMES = tuple(f"finding {k}" for k in range(14))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Pylon(ENCODER, None, decoder_channels=16).eval()


def equal(a: Pylon, b: Pylon) -> bool:
    a = a.state_dict()
    b = b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_best_round_trip(model, tmp_path):
    options = {"image_size": 512, "lr": 1e-4}
    card = make_card(NAMES, options, "abc", {}, *SCALE)
    model = model.to(memory_format=torch.channels_last)
    checkpoint.save_best(tmp_path / "best", model, card)
    files = sorted(os.listdir(tmp_path / "best"))
    assert files == ["README.md", "config.json", "model.safetensors", "training.json"]
    assert read_json(tmp_path / "best/config.json")["kind"] == "pylon"
    again = pylon.load_pylon(tmp_path / "best")
    assert equal(again, model)
    assert equal(Pylon.from_pretrained(tmp_path / "best"), model)
    card = checkpoint.read_card(tmp_path / "best", again)
    assert card["class_names"] == list(NAMES)
    assert card["options"] == options
    assert card["split_sha256"] == "abc"
    assert card["versions"]["torch"]
    assert (card["mean"], card["std"], card["image_size"]) == (0.4984, 0.2483, 512)


def test_folder_above_a_checkpoint_names_it(model, tmp_path):
    card = make_card(NAMES, {"image_size": 256}, "abc", {}, *SCALE)
    for seed in "10":
        checkpoint.save_best(tmp_path / "tiny" / seed / "best", model, card)
    for folder, first in (("tiny", "tiny/0/best"), ("tiny/1", "tiny/1/best")):
        with pytest.raises(UserError, match=f"no config.json; choose .* as {tmp_path}/{first}$"):
            pylon.load_pylon(tmp_path / folder)


def test_weights_are_hashed_once(model, tmp_path, monkeypatch):
    card = make_card(NAMES, {"image_size": 512}, "abc", {}, *SCALE)
    checkpoint.save_best(tmp_path / "best", model, card)
    written = checkpoint.hash_of_weights(model.state_dict())
    hashed = []
    hash_of_weights = checkpoint.hash_of_weights

    def count(weights):
        hashed.append(len(weights))
        return hash_of_weights(weights)

    monkeypatch.setattr(checkpoint, "hash_of_weights", count)
    again = pylon.load_pylon(tmp_path / "best")
    assert checkpoint.read_card(tmp_path / "best", again)["weights_sha256"] == written
    assert len(hashed) == 1


@pytest.mark.parametrize("up_layers", [1, 2])
@pytest.mark.parametrize("prefix", ["net.", ""])
def test_plain_state_dict(tmp_path, up_layers, prefix):
    model = Pylon("resnet18", None, up_layers=up_layers)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "model.pkl")
    again = pylon.load_pylon(tmp_path / "model.pkl")
    assert equal(again, model)
    kind = "ConvBnRelu" if up_layers == 1 else "Sequential"
    assert again.decoder.up1.conv1.__class__.__name__ == kind
    card = checkpoint.read_card(tmp_path / "model.pkl", again)
    assert card["class_names"] == list(PATHOLOGIES)


def test_plain_state_dict_of_a_named_encoder(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pkl")
    assert equal(pylon.load_pylon(tmp_path / "model.pkl", encoder_name=ENCODER), model)
    with pytest.raises(UserError, match="does not contain a PYLON with the encoder resnet50 or"):
        pylon.load_pylon(tmp_path / "model.pkl")


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_pickled_commands_are_not_run(tmp_path, save):
    save({"net.encoder.conv1.weight": Command(tmp_path / "harm")}, tmp_path / "model.pkl")
    for load in (pylon.load_pylon, checkpoint.load_last):
        with pytest.raises(UserError, match="not opened for safety"):
            load(tmp_path / "model.pkl")
    assert not (tmp_path / "harm").exists()


def test_bad_checkpoints_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        pylon.load_pylon(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config.json"):
        pylon.load_pylon(tmp_path)
    best = tmp_path / "best"
    checkpoint.save_best(best, model, make_card(PATHOLOGIES, {"image_size": 256}, "", {}, *SCALE))
    content = (best / "model.safetensors").read_bytes()
    torch.save(model.state_dict(), tmp_path / "cut.pkl")
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "cut.pkl").read_bytes()[:10_000])
    with pytest.raises(UserError, match=r"cut.pkl is damaged"):
        pylon.load_pylon(tmp_path / "cut.pkl")
    (best / "model.safetensors").write_bytes(content[:-1000])
    with pytest.raises(UserError, match="does not contain the network"):
        pylon.load_pylon(best)
    (best / "model.safetensors").write_bytes(content)
    config = json.loads((best / "config.json").read_text())
    (best / "config.json").write_text(json.dumps({**config, "classes": 3}))
    with pytest.raises(UserError, match=r"config.json is damaged: its hash does not match"):
        pylon.load_pylon(best)
    del config["sha256"]
    (best / "config.json").write_text(json.dumps({**config, "classes": 3}))
    with pytest.raises(UserError, match=r"does not contain the network of its config.json"):
        pylon.load_pylon(best)
    (best / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        pylon.load_pylon(best)
    for value in ([1, 2], {"a": 1}, {"a": torch.zeros(1)}):
        torch.save(value, tmp_path / "other.pt")
        sentence = r"other.pt (is not a plain state dict|belongs to another network)"
        with pytest.raises(UserError, match=sentence):
            pylon.load_pylon(tmp_path / "other.pt")


def test_other_classes_need_names(tmp_path):
    model = Pylon(ENCODER, None, classes=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"3 classes, but neither config.json nor train"):
        checkpoint.read_card(tmp_path, pylon.load_pylon(tmp_path))


def test_weights_and_card_must_match(model, tmp_path):
    best = tmp_path / "best"
    card = make_card(PATHOLOGIES, {"image_size": 256}, "", {}, *SCALE)
    checkpoint.save_best(best, model, {**card, "epoch": 1})
    earlier = {path: path.read_bytes() for path in best.iterdir()}
    assert checkpoint.fault_of_best(best, 1) == ("", False)
    other = Pylon(ENCODER, None, decoder_channels=16)
    checkpoint.save_best(best, other, {**card, "epoch": 4})
    mark_finished(best, True)
    assert checkpoint.fault_of_best(best, 4) == ("", False)
    assert checkpoint.read_card(best, other)["finished"] is True
    for name in ("config.json", "model.safetensors"):
        (best / name).write_bytes(earlier[best / name])
    said = f"{best} mixes two epochs: its training.json does not belong to its model.safetensors"
    assert checkpoint.fault_of_best(best, 3) == (said, True)
    # not left by an interrupted write
    assert checkpoint.fault_of_best(best, 4) == (said, False)
    with pytest.raises(UserError, match=r"best mixes two epochs.*same train.py command"):
        checkpoint.read_card(best, pylon.load_pylon(best))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", None, "config.json is missing"),
        ("training.json", b"{}", "training.json lacks class_names, mean, std, image_size"),
        ("training.json", None, "training.json is missing"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
    ],
)
def test_faults_of_best_are_described(model, tmp_path, name, content, sentence):
    best = tmp_path / "best"
    checkpoint.save_best(best, model, make_card(PATHOLOGIES, {"image_size": 256}, "", {}, *SCALE))
    weights = (best / "model.safetensors").read_bytes()
    (best / "model.safetensors").write_bytes(weights[:-5] + bytes([weights[-5] ^ 1]) + weights[-4:])
    assert checkpoint.fault_of_best(best, 1) == (f"{best}/model.safetensors is damaged", False)
    (best / "model.safetensors").write_bytes(weights)
    (best / name).unlink()
    if content is not None:
        (best / name).write_bytes(content)
    said, mends = checkpoint.fault_of_best(best, 1)
    assert said.startswith(f"{best}/{sentence}")
    assert not mends


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(tmp_path, value):
    model = Pylon("resnet18", None)
    with torch.no_grad():
        model.segmentation_head[0].bias[3] = value
    model.save_pretrained(tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "model.pkl")
    for name in ("folder", "model.pkl"):
        sentence = r"weights that are not finite numbers \(segmentation_head.0.bias\)"
        with pytest.raises(UserError, match=sentence):
            pylon.load_pylon(tmp_path / name)


def test_folder_of_an_earlier_version(model, tmp_path):
    """Its config.json has neither a kind of network nor a description."""
    card = make_card(PATHOLOGIES, {"image_size": 256}, "", {}, *SCALE)
    checkpoint.save_best(tmp_path / "best", model, card)
    path = tmp_path / "best/config.json"
    config = arguments_of(read_json(path))
    path.write_text(json.dumps(config))
    again = pylon.load_pylon(tmp_path / "best")
    assert equal(again, model)
    assert again.description.class_names == PATHOLOGIES  # from training.json
    path.write_text(json.dumps({**config, "kind": "tree"}))
    with pytest.raises(UserError, match=r"does not contain the network of its config.json"):
        pylon.load_pylon(tmp_path / "best")
