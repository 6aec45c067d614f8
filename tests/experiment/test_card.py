"""training.json: what a checkpoint says of itself."""

import contextlib

import pytest

from pylon.experiment import checkpoint
from pylon.experiment.card import (
    card_file,
    has_ended,
    is_card_of,
    make_card,
    mark_finished,
    read_json,
    read_training_json,
)
from pylon.model import Pylon
from pylon.system.errors import UserError
from pylon.system.files import hash_of_json

SCALE = (0.4984, 0.2483)  # mean, std


@pytest.fixture(scope="module")
def model():
    return Pylon("tu-test_resnet", None, decoder_channels=16).eval()


@pytest.mark.parametrize(
    "change", [('"epoch": 1', '"epoch": 2'), ('"a": 0.25', '"a": 0.35'), ('"one"', '"other"')]
)
def test_a_card_that_was_changed_is_refused(model, tmp_path, change):
    card = make_card(["one"], {"image_size": 256}, "", {}, *SCALE)
    checkpoint.save_best(tmp_path / "best", model, {**card, "epoch": 1, "thresholds": {"a": 0.25}})
    path = tmp_path / "best/training.json"
    assert path.read_text().count(change[0]) == 1
    path.write_text(path.read_text().replace(*change))
    sentence = r"training.json is damaged: it is not what was saved; copy it again"
    with pytest.raises(UserError, match=sentence):
        checkpoint.read_card(tmp_path / "best", model)


def test_whether_training_has_finished(tmp_path):
    best = tmp_path / "best"
    last = {**dict.fromkeys(checkpoint.RESUMED, 0), "lr": 1.0}
    options = {"epochs": 5, "min_lr": 0.1}
    assert checkpoint.is_finished(best, {"finished": False}) is False
    assert checkpoint.is_finished(best, {}) is True  # of an earlier version, copied elsewhere
    for changes, expected in (
        ({"epoch": 4}, False),
        ({"epoch": 5}, True),
        ({"epoch": 2, "lr": 0.1}, True),
    ):
        checkpoint.save_last(tmp_path / "last", {**last, "options": options, **changes})
        assert checkpoint.is_finished(best, {}) is expected
        # beside a `last` that is not its own
        assert checkpoint.is_finished(tmp_path / "exported", {}) is True


def test_json_that_nests_too_deeply(tmp_path):
    for depth in (*range(900, 1000, 7), 100_000):
        (tmp_path / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
        # at some depth it is refused, and no other error comes before
        with contextlib.suppress(UserError):
            hash_of_json(read_json(tmp_path / "config.json"))
    with pytest.raises(UserError, match=r"config.json is damaged"):
        read_json(tmp_path / "config.json")


def test_what_a_card_holds(tmp_path):
    options = {"image_size": 512, "lr": 1e-4}
    card = make_card(("one", "two"), options, "abc", {"test_list.txt": "def"}, *SCALE)
    (tmp_path / "training.json").write_bytes(card_file(card))
    assert read_training_json(tmp_path) == card
    assert read_training_json(tmp_path / "exported") is None
    assert (card["mean"], card["std"], card["image_size"]) == (0.4984, 0.2483, 512)
    assert card["class_names"] == ["one", "two"]
    assert card["finished"] is False
    mark_finished(tmp_path, True)
    assert read_training_json(tmp_path) == {**card, "finished": True}
    assert is_card_of(card, "of any weights")  # as a card of an earlier version
    assert not is_card_of({**card, "weights_sha256": "a"}, "b")


def test_when_there_is_nothing_left_to_do():
    options = {"epochs": 5, "min_lr": 0.1}
    assert not has_ended({"epoch": 4, "lr": 1.0}, options)
    assert has_ended({"epoch": 5, "lr": 1.0}, options)
    assert has_ended({"epoch": 2, "lr": 0.1}, options)
