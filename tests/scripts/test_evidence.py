"""Baselines, comparisons and heatmap methods in the scripts, as a user runs them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LONG, TRAIN, run_script, sentence_of

import pylon
from pylon.baselines import Baseline
from pylon.checkpoints.training_json import read_json, read_training_json
from pylon.model import Pylon
from pylon.system.files import hashed_json

CPU = ("--device", "cpu", "--num-workers", 0)


@pytest.fixture(scope="module")
def compared(trained, phantom):
    """The folder of `trained` plus a classic CAM network and an ablation of PYLON."""
    options = ("--data", phantom, "--epochs", 1, *TRAIN)
    run_script("train.py", *options, "--model", "backbone", "--pool", "avg", cwd=trained)
    ablated = ("--no-attention", "--up-modules", 1, "--up-layers", 2, "--name", "ablated")
    run_script("train.py", *options, *ablated, cwd=trained)
    return trained


def test_models_are_saved_under_their_own_names(compared):
    backbone = pylon.load_pylon(compared / "save/backbone/0/best")
    ablated = pylon.load_pylon(compared / "save/ablated/0/best")
    assert isinstance(backbone, Baseline)
    assert (backbone.pool, backbone.decoder) == ("avg", None)
    assert isinstance(ablated, Pylon)
    assert ablated.decoder.up2 is None
    assert len(ablated.decoder.up3.conv1) == 2


def test_resuming_with_another_model_is_refused(compared, phantom):
    options = ("--data", phantom, "--epochs", 1, *TRAIN, "--name", "backbone")
    done = run_script("train.py", *options, "--model", "linknet", cwd=compared, code=2)
    sentence = "was trained with --model backbone (now linknet), --pool avg (now max)"
    assert sentence in sentence_of(done)


def test_comparisons_are_paired(compared, phantom):
    for script, score in (("eval_auc.py", "auroc"), ("eval_loc.py", "point_localization")):
        done = run_script(script, "--data", phantom, *CPU, "--compare", "backbone", cwd=compared)
        table = pd.read_csv(compared / f"csv/pylon/{score}_beside_backbone.csv", index_col="class")
        ours = mean_of(compared / f"csv/pylon/{score}.csv")[table.index]
        # the tables of the other experiment are not touched
        assert not (compared / f"csv/backbone/{score}.csv").exists()
        run_script(script, "--data", phantom, *CPU, "--name", "backbone", cwd=compared)
        theirs = mean_of(compared / f"csv/backbone/{score}.csv")[table.index]
        assert table["difference"].to_numpy() == pytest.approx((ours - theirs).to_numpy())
        assert table["difference"].between(table["low"], table["high"]).all()
        # with one seed each, only too few patients can leave a difference undecided
        margin = 0.01 if score == "auroc" else 0.04
        assert (table["margin"] == margin).all()
        same = (table["low"] >= -margin) & (table["high"] <= margin)
        differs = (table["low"] > 0) | (table["high"] < 0)
        expected = np.select(
            [same, differs], ["the same", "differs"], "not decided with so few patients"
        )
        assert table["verdict"].tolist() == expected.tolist()
        assert not same.all()
        assert "compared with backbone; low, high" in done.stdout
    boxes = [pd.read_csv(compared / f"csv/{name}/0_boxes.csv") for name in ("pylon", "backbone")]
    assert (boxes[0]["image_id"] == boxes[1]["image_id"]).all()


def mean_of(path):
    return pd.read_csv(path, index_col="seed").loc["mean"]


def test_comparison_needs_another_experiment(compared, phantom):
    for other, sentence in (
        ("pylon", "--compare pylon is the experiment itself, named twice, or a reserved name"),
        ("published", "--compare published is the experiment itself, named twice, or a reserved"),
        ("unet", "--compare unet: no checkpoint under save/unet; run train.py, or choose another"),
        ("../x", "--compare '../x' must be the plain name of a folder"),
    ):
        options = ("--data", phantom, *CPU, "--compare", other)
        done = run_script("eval_auc.py", *options, cwd=compared, code=2)
        assert sentence in sentence_of(done)
    options = ("--data", phantom, *CPU, "--checkpoint", "save/pylon/0/best", "--compare", "pylon")
    done = run_script("eval_loc.py", *options, cwd=compared, code=2)
    assert "--compare pylon is the experiment itself" in sentence_of(done)


@pytest.mark.parametrize("name", [pytest.param("pylon", marks=LONG), "backbone"])
def test_methods_write_separate_files(compared, phantom, name):
    map_boxes = compared / f"csv/{name}/0_boxes.csv"
    run_script("eval_loc.py", "--data", phantom, *CPU, "--name", name, cwd=compared)
    before = map_boxes.read_bytes()
    options = ("--data", phantom, *CPU, "--name", name, "--method", "gradcam")
    done = run_script("eval_loc.py", *options, cwd=compared)
    assert map_boxes.read_bytes() == before
    of_map = pd.read_csv(map_boxes)
    of_gradcam = pd.read_csv(map_boxes.with_name("0_boxes_gradcam.csv"))
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


@LONG
def test_weights_in_the_authors_format(phantom, tmp_path):
    torch.manual_seed(0)
    model = Pylon("resnet18", None, up_layers=2)
    state = {f"net.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "model.pkl")
    options = ("--data", phantom, *CPU, "--checkpoint", "model.pkl")
    done = run_script("eval_auc.py", *options, cwd=tmp_path)
    assert "csv/model/auroc.csv" in done.stdout
    done = run_script("eval_loc.py", *options, cwd=tmp_path)
    assert "note: the checkpoint has no threshold" in done.stdout
    table = pd.read_csv(tmp_path / "csv/model/point_localization.csv", index_col="seed")
    assert table.loc["called present"].isna().all()
    low, score, high = table["micro"][["model low", "model", "model high"]]
    assert 0 <= low <= score <= high
    run_script("generate_heatmap.py", *options, cwd=tmp_path)
    assert (tmp_path / "figs/all/1.jpg").exists()


@pytest.fixture
def seeds(trained_once, tmp_path):
    """A folder with one run as seeds 0 and 1, and a function that changes the card of seed 1."""
    for seed in (0, 1):
        shutil.copytree(trained_once / "save/pylon/0", tmp_path / f"save/pylon/{seed}")
    path = tmp_path / "save/pylon/1/best/training.json"
    card = read_json(path)
    card.pop("sha256")

    def change(**changes):
        options = {**card["options"], "seed": 1, **changes.pop("options", {})}
        path.write_bytes(hashed_json({**card, "options": options, **changes}))

    change()
    return tmp_path, change


OTHERS = {"lr": 1e-4, "batch_size": 16}


def test_seeds_trained_differently_are_not_averaged(seeds, phantom):
    cwd, change = seeds
    options = ("--data", phantom, *CPU)
    # these options may differ between seeds
    change(options={"epochs": 3, "num_workers": 7, "data": "elsewhere"})
    said = run_script("eval_auc.py", *options, cwd=cwd).stdout
    note = "the seeds of pylon were trained with different --epochs: 2 (seed 0), 3 (seed 1)"
    assert f"note: {note}" in said
    table = (cwd / "csv/pylon/auroc.csv").read_bytes()
    for changes, difference in (
        ({"options": OTHERS}, "--batch-size 8 and 16; --lr 0.001 and 0.0001"),
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


@LONG
def test_unfinished_seeds_are_left_out(seeds, phantom):
    cwd, change = seeds
    options = ("--data", phantom, *CPU)
    change(finished=False)
    left_out = "left out unless selected by --seeds"
    note = f"note: save/pylon/1/best has not finished training: {left_out}"
    for script in ("eval_auc.py", "eval_loc.py"):
        assert note in run_script(script, *options, cwd=cwd).stdout
    assert "1" not in pd.read_csv(cwd / "csv/pylon/auroc.csv", index_col="seed").index
    asked = "note: save/pylon/1/best has not finished training: using its best epoch so far"
    assert asked in run_script("eval_auc.py", *options, "--seeds", 0, 1, cwd=cwd).stdout
    assert {"0", "1"} < set(pd.read_csv(cwd / "csv/pylon/auroc.csv", index_col="seed").index)
    (cwd / "save/pylon/0").rename(cwd / "save/pylon/5")
    change(finished=True)
    (cwd / "save/pylon/1").rename(cwd / "save/other")
    path = cwd / "save/pylon/5/best/training.json"
    card = read_json(path)
    card.pop("sha256")
    path.write_bytes(hashed_json({**card, "finished": False}))
    done = run_script("eval_auc.py", *options, cwd=cwd)  # the only seed
    asked = "note: save/pylon/5/best has not finished training: using its best epoch so far"
    assert asked in done.stdout
    shutil.copytree(cwd / "save/pylon/5", cwd / "save/pylon/6")
    sentence = sentence_of(run_script("eval_auc.py", *options, cwd=cwd, code=2))
    cure = "wait for one, or select unfinished ones: --seeds 5 6"
    assert f"no seed of pylon has finished training; {cure}" in sentence


def test_one_finished_seed_is_enough_for_heatmaps(seeds, phantom):
    cwd, change = seeds
    path = cwd / "save/pylon/1/best/training.json"
    path.write_text("{")  # this card is not read
    said = run_script("generate_heatmap.py", "--data", phantom, *CPU, cwd=cwd).stdout
    assert said.count("note: ") == said.count("note: Synthetic images") == 1
    change()
    card = cwd / "save/pylon/0/best/training.json"
    card.write_bytes(hashed_json({**read_training_json(card.parent), "finished": False}))
    said = run_script("generate_heatmap.py", "--data", phantom, *CPU, cwd=cwd).stdout
    left_out = "left out unless selected by --seed"
    assert f"note: save/pylon/0/best has not finished training: {left_out}" in said


def test_missing_metadata_of_seeds_is_noted(seeds, phantom):
    cwd, _ = seeds
    card = cwd / "save/pylon/0/best/training.json"
    earlier = read_training_json(card.parent)
    del earlier["finished"]
    del earlier["weights_sha256"]
    card.write_bytes(hashed_json(earlier))
    (cwd / "save/pylon/1/best/training.json").unlink()
    said = run_script("eval_auc.py", "--data", phantom, *CPU, cwd=cwd).stdout
    unknown = "whether it was trained like the other seeds is not"
    assert f"note: save/pylon/1/best has no training.json: {unknown}" in said
