"""Model cards: what the hub reads of them, what people read, and what is never in them."""

import dataclasses
import json
import warnings

import pytest
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from pylon.model_card import CAVEAT, Scores, model_card, shared_card
from pylon.options import SHARED, TrainOptions, options_with
from share import Licence

CONFIG = {
    "kind": "pylon",
    "encoder_name": "resnet18",
    "up_modules": 3,
    "attention": True,
    "classes": 3,
    "class_names": ["Mass", "a|b <i>_x_", "\udc80\nn"],
    "mean": 0.5,
    "std": 0.25,
    "image_size": 512,
    "thresholds": {"Mass": 0.25, "a|b <i>_x_": None},
    "calibration": {"Mass": [2.0, -1.0], "a|b <i>_x_": None},
}
SECRET = "/home/anna/clinic"
CARD = {
    "finished": True,
    "class_names": CONFIG["class_names"],
    "options": {
        "data": f"{SECRET}/data",
        "table": f"{SECRET}/anna.csv",
        "cache_dir": SECRET,
        "name": "anna-1",
        "init_from": f"{SECRET}/save",
        "encoder_weights": f"{SECRET}/weights.pth",
        "classes": ["anna"],
        "ignore_columns": ["anna"],
        "lr": 0.001,
        "host": "anna-laptop",
    },
    "split_sha256": "abc",
    "list_sha256": {"anna.csv": "def", "anna2.csv": "123", "test_list.txt": "456"},
    "data": {
        "official": False,
        "synthetic": None,
        "images": {"train": 1234},
        "patients": {"train": 321},
        SECRET: 1,
    },
    "hostname": "anna-laptop",
}
RESULT = EvalResult(
    "image-classification", "other", "others", "roc_auc", 0.75, metric_name="AUROC, macro",
    dataset_split="test", metric_args={"low": 0.7, "high": 0.8, "control": 0.5},
)  # fmt: skip
# not shared, or in other words: see `shared_card`
WITHHELD = {
    "data",
    "table",
    "positive",
    "negative",
    "cache_dir",
    "name",
    "classes",
    "ignore_columns",
    "num_workers",
    "overwrite",
    "track",
}
REWORDED = {"init_from", "encoder_weights"}


def test_metadata_is_what_the_hub_reads():
    card = model_card(CONFIG, CARD, "user/name", Scores([RESULT], "### Scores of it"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = ModelCard(str(card))
    assert read.data.license == "apache-2.0"
    assert read.data.library_name == "pylon"
    assert "not-for-clinical-use" in read.data.tags
    assert read.data.metrics == ["roc_auc"]
    assert read.data.model_name == "name"
    assert read.data.eval_results == [RESULT]
    index = eval_results_to_model_index("name", read.data.eval_results)
    assert model_index_to_eval_results(index) == ("name", [RESULT])
    assert str(read) == str(card)


def test_what_people_read():
    text = model_card(CONFIG, None, "user/name", notes=["A note."]).text
    assert CAVEAT in text
    assert 'Predictor("user/name")' in text
    assert "| Mass | 0.250 | 2.000 | -1.000 |" in text
    assert r"| a\|b \<i\>\_x\_ |  |  |  |" in text
    assert r"| \\udc80 n |  |  |  |" in text
    assert "- A note." in text
    assert "Not scored yet." in text
    assert "How it was trained is not recorded." in text
    assert "512 x 512" in text
    assert "Synthetic" not in text
    text = model_card(CONFIG, CARD, data_name="Our hospital").text
    assert "- Data: Our hospital\n- 1,234 images of 321 patients to train on\n" in text


@pytest.mark.parametrize("where", ["trained", "scored"])
def test_synthetic_data_is_marked(where):
    sentence = "Drawn by *formulas*."
    card = {**CARD, "data": {**CARD["data"], "synthetic": sentence if where == "trained" else None}}
    scores = Scores([RESULT], "", sentence) if where == "scored" else None
    card = model_card(CONFIG, card, scores=scores)
    assert "synthetic-data" in card.data.tags
    marked = {"trained": "Synthetic data", "scored": "Scored on synthetic images"}[where]
    assert rf"**{marked}.** Drawn by \*formulas\*." in card.text


def test_private_facts_are_in_neither():
    shared = shared_card(CARD)
    for text in (json.dumps(shared), str(model_card(CONFIG, CARD))):
        assert "anna" not in text
        assert "/home" not in text
    assert shared["list_sha256"] == {"table 1": "def", "table 2": "123", "test_list.txt": "456"}
    expected = {"lr": 0.001, "encoder_weights": "other", "init_from": "another checkpoint"}
    assert shared["options"] == expected
    assert shared["data"]["images"] == {"train": 1234}
    assert shared_card(shared) == shared


def test_of_every_option_it_is_decided_whether_it_is_shared():
    options = {field.name for field in dataclasses.fields(TrainOptions)}
    shared = options_with(SHARED)
    assert options == {*shared, *WITHHELD, *REWORDED}
    assert len(options) == len(shared) + len(WITHHELD) + len(REWORDED)


def test_licence_of_the_card_is_a_choice_of_share():
    assert "apache-2.0" in Licence.__args__
    assert model_card(CONFIG, None, licence="mit").data.license == "mit"
