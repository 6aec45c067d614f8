import contextlib
import json
import os
import pickle

import pytest
import torch

import pylon
from pylon import checkpoint
from pylon.chestxray14 import PATHOLOGIES
from pylon.cli import UserError
from pylon.files import write_atomically, write_together
from pylon.model import Pylon

ENCODER = "tu-test_resnet"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Pylon(ENCODER, None, decoder_channels=16).eval()


def equal(a: Pylon, b: Pylon) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_best_round_trip(model, tmp_path):
    options = {"image_size": 512, "lr": 1e-4}
    card = checkpoint.make_card(["one", "two"], options, "abc", {})
    model = model.to(memory_format=torch.channels_last)
    checkpoint.save_best(tmp_path / "best", model, card)
    assert sorted(os.listdir(tmp_path / "best")) == ["config.json", "model.safetensors", "training.json"]
    again = pylon.load_pylon(tmp_path / "best")
    assert equal(again, model)
    card = checkpoint.read_card(tmp_path / "best", again)
    assert card["class_names"] == ["one", "two"]
    assert card["options"] == options
    assert card["split_sha256"] == "abc"
    assert card["versions"]["torch"]
    assert (card["mean"], card["std"], card["image_size"]) == (0.4984, 0.2483, 512)


@pytest.mark.parametrize("up_layers", [1, 2])
@pytest.mark.parametrize("prefix", ["net.", ""])
def test_plain_state_dict(tmp_path, up_layers, prefix):
    model = Pylon("resnet18", None, up_layers=up_layers)
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "model.pkl")
    again = pylon.load_pylon(tmp_path / "model.pkl")
    assert equal(again, model)
    assert again.decoder.up1.conv1.__class__.__name__ == ("ConvBnRelu" if up_layers == 1 else "Sequential")
    card = checkpoint.read_card(tmp_path / "model.pkl", again)
    assert card["class_names"] == list(PATHOLOGIES)


def test_plain_state_dict_of_a_named_encoder(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pkl")
    assert equal(pylon.load_pylon(tmp_path / "model.pkl", encoder_name=ENCODER), model)
    with pytest.raises(UserError, match="does not hold a PYLON with the encoder resnet50 or"):
        pylon.load_pylon(tmp_path / "model.pkl")


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_no_command_is_run(tmp_path, save):
    save({"net.encoder.conv1.weight": Command(tmp_path / "harm")}, tmp_path / "model.pkl")
    for load in (pylon.load_pylon, checkpoint.load_last):
        with pytest.raises(UserError, match="not opened for safety"):
            load(tmp_path / "model.pkl")
    assert not (tmp_path / "harm").exists()


def test_bad_checkpoints(model, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        pylon.load_pylon(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config.json"):
        pylon.load_pylon(tmp_path)
    best = tmp_path / "best"
    checkpoint.save_best(best, model, checkpoint.make_card(["a"], {"image_size": 256}, "", {}))
    whole = (best / "model.safetensors").read_bytes()
    torch.save(model.state_dict(), tmp_path / "cut.pkl")
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "cut.pkl").read_bytes()[:10_000])
    with pytest.raises(UserError, match=r"cut.pkl is damaged"):
        pylon.load_pylon(tmp_path / "cut.pkl")
    (best / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(UserError, match="does not hold the network"):
        pylon.load_pylon(best)
    (best / "model.safetensors").write_bytes(whole)
    config = json.loads((best / "config.json").read_text())
    (best / "config.json").write_text(json.dumps({**config, "classes": 3}))
    with pytest.raises(UserError, match=r"does not hold the network of its config.json"):
        pylon.load_pylon(best)
    (best / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        pylon.load_pylon(best)
    for value in ([1, 2], {"a": 1}, {"a": torch.zeros(1)}):
        torch.save(value, tmp_path / "other.pt")
        with pytest.raises(UserError, match=r"other.pt is (no plain state dict|of another network)"):
            pylon.load_pylon(tmp_path / "other.pt")


def test_classes_without_names(tmp_path):
    model = Pylon(ENCODER, None, classes=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"3 classes and no training.json"):
        checkpoint.read_card(tmp_path, pylon.load_pylon(tmp_path))


def test_find_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--name pylon: no checkpoint under save/pylon"):
        checkpoint.find_checkpoints("pylon")
    for seed in ("10", "9", "notes", "²"):
        os.makedirs(f"save/pylon/{seed}/best")
    assert list(checkpoint.find_checkpoints("pylon")) == ["9", "10"]
    assert list(checkpoint.find_checkpoints("pylon", (10,))) == ["10"]
    with pytest.raises(UserError, match="seed 3 of pylon has no checkpoint; save/pylon has seed 9, 10"):
        checkpoint.find_checkpoints("pylon", (3, 9))


def test_renames_reach_the_disk(tmp_path, monkeypatch):
    """The files before they are renamed, and then the folder, or a power failure could take the new names back."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(str(paths[1])), replace(*paths)))
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    partial = [str(tmp_path / f".{name}.partial") for name in "ab"]
    assert done == [*partial, str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)]


def test_weights_and_card_belong_together(model, tmp_path):
    best = tmp_path / "best"
    card = checkpoint.make_card(["a"] * 14, {"image_size": 256}, "", {})
    checkpoint.save_best(best, model, {**card, "epoch": 1})
    earlier = {path: path.read_bytes() for path in best.iterdir()}
    assert checkpoint.fault_of_best(best, 1) == ("", False)
    other = Pylon(ENCODER, None, decoder_channels=16)
    checkpoint.save_best(best, other, {**card, "epoch": 4})
    checkpoint.mark_finished(best, True)
    assert checkpoint.fault_of_best(best, 4) == ("", False)
    assert checkpoint.read_card(best, other)["finished"] is True
    for name in ("config.json", "model.safetensors"):
        (best / name).write_bytes(earlier[best / name])
    said = f"{best} is of two epochs: its training.json is not of its model.safetensors"
    assert checkpoint.fault_of_best(best, 3) == (said, True)
    assert checkpoint.fault_of_best(best, 4) == (said, False)  # no write that was interrupted has left this
    with pytest.raises(UserError, match=r"best is of two epochs.*same train.py command"):
        checkpoint.read_card(best, pylon.load_pylon(best))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", None, "config.json is gone"),
        ("training.json", b"{}", "training.json lacks class_names, mean, std, image_size"),
        ("training.json", None, "training.json is gone"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
    ],
)
def test_what_is_wrong_with_a_folder(model, tmp_path, name, content, sentence):
    best = tmp_path / "best"
    checkpoint.save_best(best, model, checkpoint.make_card(["a"], {"image_size": 256}, "", {}))
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


@pytest.mark.parametrize("change", [('"epoch": 1', '"epoch": 2'), ('"a": 0.25', '"a": 0.35'), ('"one"', '"other"')])
def test_a_card_that_was_changed_is_refused(model, tmp_path, change):
    card = checkpoint.make_card(["one"], {"image_size": 256}, "", {})
    checkpoint.save_best(tmp_path / "best", model, {**card, "epoch": 1, "thresholds": {"a": 0.25}})
    path = tmp_path / "best/training.json"
    assert path.read_text().count(change[0]) == 1
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=r"training.json is damaged: it is not what was saved; copy it again"):
        checkpoint.read_card(tmp_path / "best", model)


def test_whether_training_has_finished(tmp_path):
    best, last = tmp_path / "best", {**dict.fromkeys(checkpoint.RESUMED, 0), "lr": 1.0}
    options = {"epochs": 5, "min_lr": 0.1}
    assert checkpoint.is_finished(best, {"finished": False}) is False
    assert checkpoint.is_finished(best, {}) is True  # of an earlier version, copied elsewhere
    for changes, expected in (({"epoch": 4}, False), ({"epoch": 5}, True), ({"epoch": 2, "lr": 0.1}, True)):
        checkpoint.save_last(tmp_path / "last", {**last, "options": options, **changes})
        assert checkpoint.is_finished(best, {}) is expected
        assert checkpoint.is_finished(tmp_path / "exported", {}) is True  # beside a `last` that is not its own


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, value):
    model = Pylon("resnet18", None)
    with torch.no_grad():
        model.segmentation_head[0].bias[3] = value
    model.save_pretrained(tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "model.pkl")
    for name in ("folder", "model.pkl"):
        with pytest.raises(UserError, match=r"weights that are not finite numbers \(segmentation_head.0.bias\)"):
            pylon.load_pylon(tmp_path / name)


def test_json_that_nests_too_deeply(tmp_path):
    for depth in (*range(900, 1000, 7), 100_000):
        (tmp_path / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
        with contextlib.suppress(UserError):  # at some depth it is refused, and no other error comes before
            checkpoint.hash_of_card(checkpoint.read_json(tmp_path / "config.json"))
    with pytest.raises(UserError, match=r"config.json is damaged"):
        checkpoint.read_json(tmp_path / "config.json")


def test_failed_write_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "last"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last"]
