"""Baselines, comparisons and methods by the scripts, as a user runs them; what is NIH's."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TRAIN, run_script, sentence_of

import pylon
from pylon.baselines import Baseline
from pylon.checkpoint import card_file, load_last, read_json, read_training_json, save_last
from pylon.chestxray14 import read_images
from pylon.model import Pylon
from pylon.results import why_not_official

CPU = ("--device", "cpu", "--num-workers", 0)


@pytest.fixture(scope="module")
def compared(trained, phantom):
    """The folder of `trained`, with a classic CAM net and an ablation of PYLON beside it, an epoch each."""
    options = ("--data", phantom, "--epochs", 1, *TRAIN)
    run_script("train.py", *options, "--model", "backbone", "--pool", "avg", cwd=trained)
    ablated = ("--no-attention", "--up-modules", 1, "--up-layers", 2, "--name", "ablated")
    run_script("train.py", *options, *ablated, cwd=trained)
    return trained


def test_models_have_names_of_their_own(compared):
    backbone, ablated = (pylon.load_pylon(compared / f"save/{name}/0/best") for name in ("backbone", "ablated"))
    assert isinstance(backbone, Baseline)
    assert (backbone.pool, backbone.decoder) == ("avg", None)
    assert isinstance(ablated, Pylon)
    assert ablated.decoder.up2 is None
    assert len(ablated.decoder.up3.conv1) == 2


def test_another_model_is_not_mixed_in(compared, phantom):
    options = ("--data", phantom, "--epochs", 1, *TRAIN, "--name", "backbone")
    done = run_script("train.py", *options, "--model", "linknet", cwd=compared, code=2)
    assert "was trained with --model backbone (now linknet), --pool avg (now max)" in sentence_of(done)


def test_runs_are_compared_in_pairs(compared, phantom):
    for script, score in (("eval_auc.py", "auroc"), ("eval_loc.py", "point_localization")):
        done = run_script(script, "--data", phantom, *CPU, "--compare", "backbone", cwd=compared)
        table = pd.read_csv(compared / f"csv/pylon/{score}_beside_backbone.csv", index_col="class")
        ours = pd.read_csv(compared / f"csv/pylon/{score}.csv", index_col="seed").loc["mean", table.index]
        assert not (compared / f"csv/backbone/{score}.csv").exists()  # what was written of the other stays as it is
        run_script(script, "--data", phantom, *CPU, "--name", "backbone", cwd=compared)
        theirs = pd.read_csv(compared / f"csv/backbone/{score}.csv", index_col="seed").loc["mean", table.index]
        assert table["difference"].to_numpy() == pytest.approx((ours - theirs).to_numpy())
        assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()
        assert table["verdict"].str.match("the same|differs|not decided with so few patients").all()
        assert "beside backbone; low and high" in done.stdout
    boxes = [pd.read_csv(compared / f"csv/{name}/0_boxes.csv") for name in ("pylon", "backbone")]
    assert (boxes[0]["image_id"] == boxes[1]["image_id"]).all()


def test_comparison_needs_another_run(compared, phantom):
    for other, sentence in (
        ("pylon", "--compare pylon is the experiment itself, named twice, or no name"),
        ("published", "--compare published is the experiment itself, named twice, or no name"),
        ("unet", "--compare unet: no checkpoint under save/unet; run train.py, or name another"),
        ("../x", "--compare '../x' must be the plain name of a folder"),
    ):
        done = run_script("eval_auc.py", "--data", phantom, *CPU, "--compare", other, cwd=compared, code=2)
        assert sentence in sentence_of(done)
    options = ("--data", phantom, *CPU, "--checkpoint", "save/pylon/0/best", "--compare", "pylon")
    done = run_script("eval_loc.py", *options, cwd=compared, code=2)
    assert "--compare pylon is the experiment itself" in sentence_of(done)


@pytest.mark.parametrize("name", ["pylon", "backbone"])
def test_methods_have_files_of_their_own(compared, phantom, name):
    map_boxes = compared / f"csv/{name}/0_boxes.csv"
    run_script("eval_loc.py", "--data", phantom, *CPU, "--name", name, cwd=compared)
    before = map_boxes.read_bytes()
    options = ("--data", phantom, *CPU, "--name", name, "--method", "gradcam")
    done = run_script("eval_loc.py", *options, cwd=compared)
    assert map_boxes.read_bytes() == before
    of_map, of_gradcam = (pd.read_csv(map_boxes.with_name(f"0_boxes{end}.csv")) for end in ("", "_gradcam"))
    assert f"csv/{name}/point_localization_gradcam.csv" in done.stdout
    np.testing.assert_allclose(of_map["probability"], of_gradcam["probability"], rtol=1e-4)
    assert (of_map[["row", "column"]] != of_gradcam[["row", "column"]]).any(axis=None)
    run_script("generate_heatmap.py", *options, cwd=compared)
    assert (compared / "figs/gradcam/all/1.jpg").stat().st_size > 10_000


def test_methods_need_float32(compared, phantom):
    options = ("--data", phantom, *CPU, "--method", "gradcam", "--precision", "bf16")
    for script in ("eval_loc.py", "generate_heatmap.py"):
        done = run_script(script, *options, cwd=compared, code=2)
        assert "--method gradcam needs --precision fp32, not bf16" in sentence_of(done)


def test_weights_of_the_authors_form(phantom, tmp_path):
    torch.manual_seed(0)
    model = Pylon("resnet18", None, up_layers=2)
    torch.save({f"net.{key}": value for key, value in model.state_dict().items()}, tmp_path / "model.pkl")
    options = ("--data", phantom, *CPU, "--checkpoint", "model.pkl")
    done = run_script("eval_auc.py", *options, cwd=tmp_path)
    assert "csv/model/auroc.csv" in done.stdout
    done = run_script("eval_loc.py", *options, cwd=tmp_path)
    assert "note: training.json lacks a threshold" in done.stdout
    table = pd.read_csv(tmp_path / "csv/model/point_localization.csv", index_col="seed")
    assert table.loc["called present"].isna().all()
    assert 0 <= table.loc["model low", "micro"] <= table.loc["model", "micro"] <= table.loc["model high", "micro"]
    run_script("generate_heatmap.py", *options, cwd=tmp_path)
    assert (tmp_path / "figs/all/1.jpg").exists()


def test_what_is_official(official, official_boxes):
    images, boxes = read_images(official), official_boxes
    assert why_not_official(images) is None
    assert why_not_official(images, boxes) is None
    assert why_not_official(images.sample(frac=1, random_state=0), boxes.sample(frac=1, random_state=0)) is None
    assert "its boxes are not the 984" in why_not_official(images, boxes[1:])
    first = images.index[images["split"] == "test"][0]
    assert "its test images are not those" in why_not_official(images.drop(first), boxes)


def test_phantom_is_not_official(phantom):
    assert why_not_official(read_images(phantom)) is not None


def test_relabelled_test_images_are_not_official(official):
    images = read_images(official)
    first, last = images.index[images["split"] == "test"][[0, -1]]
    for row, column in ((first, "Mass"), (last, "Hernia")):
        relabelled = images.copy()
        relabelled.loc[row, column] = 1 - relabelled.loc[row, column]
        assert why_not_official(relabelled) == "its labels of the test images are not NIH's"
    relabelled = images.copy()
    relabelled.loc[images["split"] != "test", "Mass"] = 0  # of training, which a user may clean
    assert why_not_official(relabelled) is None


@pytest.fixture
def seeds(trained_once, tmp_path):
    """Two seeds of one training, to be changed: a folder, and how to change the card of seed 1."""
    for seed in (0, 1):
        shutil.copytree(trained_once / "save/pylon/0", tmp_path / f"save/pylon/{seed}")
    path = tmp_path / "save/pylon/1/best/training.json"
    card = read_json(path)
    card.pop("sha256")

    def change(**changes):
        options = {**card["options"], "seed": 1, **changes.pop("options", {})}
        path.write_bytes(card_file({**card, "options": options, **changes}))

    change()
    return tmp_path, change


def test_seeds_that_were_not_trained_alike_have_no_mean(seeds, phantom):
    cwd, change = seeds
    options = ("--data", phantom, *CPU)
    change(options={"epochs": 3, "num_workers": 7, "data": "elsewhere"})  # what may change makes no other training
    said = run_script("eval_auc.py", *options, cwd=cwd).stdout
    assert "note: the seeds of pylon were trained with different --epochs: 2 (seed 0), 3 (seed 1)" in said
    table = (cwd / "csv/pylon/auroc.csv").read_bytes()
    for changes, difference in (
        ({"options": {"lr": 1e-4, "batch_size": 16}}, "--batch-size 8 and 16; --lr 0.001 and 0.0001"),
        ({"split_sha256": "0" * 64}, "other images, labels or split"),
    ):
        change(**changes)
        for script in ("eval_auc.py", "eval_loc.py"):
            sentence = sentence_of(run_script(script, *options, cwd=cwd, code=2))
            assert f"seeds 0 and 1 of pylon were not trained alike: {difference}." in sentence
    assert (cwd / "csv/pylon/auroc.csv").read_bytes() == table
    run_script("eval_auc.py", *options, "--seeds", 1, cwd=cwd)
    config = cwd / "save/pylon/1/best/config.json"
    change()
    config.write_text(json.dumps({**read_json(config), "attention": True, "decoder_channels": 64}))
    sentence = sentence_of(run_script("eval_auc.py", *options, cwd=cwd, code=2))
    assert "not trained alike: another network (config.json)" in sentence


def test_seeds_in_training_are_left_out(seeds, phantom):
    cwd, change = seeds
    options = ("--data", phantom, *CPU)
    change(finished=False)
    note = "note: save/pylon/1/best has not finished training: it is left out, unless --seeds asks for it"
    for script in ("eval_auc.py", "eval_loc.py"):
        assert note in run_script(script, *options, cwd=cwd).stdout
    assert "1" not in pd.read_csv(cwd / "csv/pylon/auroc.csv", index_col="seed").index
    asked = "note: save/pylon/1/best has not finished training: this is what it is so far"
    assert asked in run_script("eval_auc.py", *options, "--seeds", 0, 1, cwd=cwd).stdout
    assert {"0", "1"} < set(pd.read_csv(cwd / "csv/pylon/auroc.csv", index_col="seed").index)
    (cwd / "save/pylon/0").rename(cwd / "save/pylon/5")
    change(finished=True)
    (cwd / "save/pylon/1").rename(cwd / "save/other")
    path = cwd / "save/pylon/5/best/training.json"
    card = read_json(path)
    card.pop("sha256")
    card.pop("finished")  # of an earlier version: `last` tells
    path.write_bytes(card_file(card))
    assert "finished" not in run_script("eval_auc.py", *options, cwd=cwd).stdout
    save_last(path.parents[1] / "last", {**load_last(path.parents[1] / "last"), "epoch": 1})
    done = run_script("eval_auc.py", *options, cwd=cwd)  # the only one
    assert "note: save/pylon/5/best has not finished training: this is what it is so far" in done.stdout
    shutil.copytree(cwd / "save/pylon/5", cwd / "save/pylon/6")
    sentence = sentence_of(run_script("eval_auc.py", *options, cwd=cwd, code=2))
    assert "no seed of pylon has finished training; wait for one, or ask for what there is: --seeds 5 6" in sentence


def test_one_finished_seed_is_enough_for_heatmaps(seeds, phantom):
    cwd, change = seeds
    path = cwd / "save/pylon/1/best/training.json"
    path.write_text("{")  # which is not looked at
    assert "note" not in run_script("generate_heatmap.py", "--data", phantom, *CPU, cwd=cwd).stdout
    change()
    card = cwd / "save/pylon/0/best/training.json"
    card.write_bytes(card_file({**read_training_json(card.parent), "finished": False}))
    said = run_script("generate_heatmap.py", "--data", phantom, *CPU, cwd=cwd).stdout
    assert "note: save/pylon/0/best has not finished training: it is left out, unless --seed asks for it" in said


def test_what_is_not_known_of_a_seed_is_said(seeds, phantom):
    cwd, _ = seeds
    card = cwd / "save/pylon/0/best/training.json"
    earlier = read_training_json(card.parent)
    card.write_bytes(card_file({key: earlier[key] for key in earlier if key not in ("finished", "weights_sha256")}))
    (cwd / "save/pylon/0/last").write_bytes(b"cut")
    (cwd / "save/pylon/1/best/training.json").unlink()
    said = run_script("eval_auc.py", "--data", phantom, *CPU, cwd=cwd).stdout
    assert "note: whether save/pylon/0/best has finished training is not known: save/pylon/0/last is damaged" in said
    assert "note: save/pylon/1/best has no training.json: whether it was trained like the other seeds is not" in said
