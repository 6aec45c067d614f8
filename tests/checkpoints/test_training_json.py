"""training.json: the metadata of a checkpoint."""

import contextlib

import pytest

from pylon.checkpoints import checkpoint
from pylon.checkpoints.training_json import (
    has_ended,
    has_finished,
    make_card,
    mark_finished,
    read_json,
    read_training_json,
)
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.hub import is_card_of
from pylon.model import Pylon
from pylon.system.errors import UserError
from pylon.system.files import hash_of_json, hashed_json

SCALE = (0.4984, 0.2483)  # mean, std


@pytest.fixture(scope="module")
def model():
    return Pylon("tu-test_resnet", None, decoder_channels=16).eval()


@pytest.mark.parametrize(
    "change", [('"epoch": 1', '"epoch": 2'), ('"a": 0.25', '"a": 0.35'), ('"one"', '"other"')]
)
def test_changed_card_is_refused(model, tmp_path, change):
    card = make_card(["one", *PATHOLOGIES[1:]], {"image_size": 256}, "", {}, *SCALE)
    checkpoint.save_best(tmp_path / "best", model, {**card, "epoch": 1, "thresholds": {"a": 0.25}})
    path = tmp_path / "best/training.json"
    assert path.read_text().count(change[0]) == 1
    path.write_text(path.read_text().replace(*change))
    sentence = r"training.json is damaged: its hash does not match; copy it again"
    with pytest.raises(UserError, match=sentence):
        checkpoint.read_card(tmp_path / "best", model)


@pytest.mark.parametrize(("said", "finished"), [({"finished": False}, False), ({}, True)])
def test_has_finished(tmp_path, said, finished):
    """A card that does not say counts as finished."""
    card = {"class_names": ["a"], "mean": 0.5, "std": 0.2, "image_size": 256, **said}
    (tmp_path / "training.json").write_bytes(hashed_json(card))
    assert has_finished(tmp_path) is finished


def test_what_has_no_card_counts_as_finished(tmp_path):
    assert has_finished(tmp_path) is True


def test_deeply_nested_json_is_refused(tmp_path):
    for depth in (*range(900, 1000, 7), 100_000):
        (tmp_path / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
        # refused from some depth on; no other error may be raised before
        with contextlib.suppress(UserError):
            hash_of_json(read_json(tmp_path / "config.json"))
    with pytest.raises(UserError, match=r"config.json is damaged"):
        read_json(tmp_path / "config.json")


def test_contents_of_a_card(tmp_path):
    options = {"image_size": 512, "lr": 1e-4}
    card = make_card(("one", "two"), options, "abc", {"test_list.txt": "def"}, *SCALE)
    (tmp_path / "training.json").write_bytes(hashed_json(card))
    assert read_training_json(tmp_path) == card
    assert read_training_json(tmp_path / "exported") is None
    assert (card["mean"], card["std"], card["image_size"]) == (0.4984, 0.2483, 512)
    assert card["class_names"] == ["one", "two"]
    assert card["finished"] is False
    mark_finished(tmp_path, True)
    assert read_training_json(tmp_path) == {**card, "finished": True}
    assert is_card_of(card, "of any weights")  # as for cards of earlier versions
    assert not is_card_of({**card, "weights_sha256": "a"}, "b")


def test_has_ended():
    options = {"epochs": 5, "min_lr": 0.1, "schedule": "plateau"}
    assert not has_ended({"epoch": 4, "lr": 1.0}, options)
    assert has_ended({"epoch": 5, "lr": 1.0}, options)
    assert has_ended({"epoch": 2, "lr": 0.1}, options)
