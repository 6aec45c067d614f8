"""The three scripts that use a checkpoint, as a user runs them."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HEIGHT, LONG, NETWORK, WIDTH, refusal_of, run_script, sentence_of

import pylon
from pylon.checkpoints.training_json import read_json
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.drawing import BAR, GAP, PANEL, TITLE


@LONG
def test_scoring_in_bf16(trained, phantom):
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0, "--seeds", 0)
    aurocs = []
    for precision in ("fp32", "bf16"):
        run_script("eval_auc.py", *options, "--precision", precision, cwd=trained)
        table = pd.read_csv(trained / "csv/pylon/auroc.csv", index_col="seed")
        aurocs.append(table.loc["0"].dropna())
    assert (aurocs[0] != aurocs[1]).any()  # the precision matters
    assert (aurocs[0] - aurocs[1]).abs().mean() < 0.1


def test_evaluation_tables(trained, phantom):
    shutil.copytree(trained / "save/pylon/0", trained / "save/pylon/7", dirs_exist_ok=True)
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0)
    done = run_script("eval_auc.py", *options, "--batch-size", 5, cwd=trained)
    table = pd.read_csv(trained / "csv/pylon/auroc.csv", index_col="seed")
    bounds = [f"{label} {end}" for label in ("0", "7", "mean") for end in ("low", "high")]
    assert table.index.tolist() == ["0", "7", "mean", "std", *bounds]
    assert (table.loc["0 low"].dropna() <= table.loc["0"].dropna()).all()
    assert (table.loc["0 high"].dropna() >= table.loc["0"].dropna()).all()
    assert (table.loc["0 high", "macro"] - table.loc["0 low", "macro"]) > 0.01
    assert list(table.columns) == [*PATHOLOGIES, "weighted", "macro"]
    assert (table.loc["0"].dropna() == table.loc["7"].dropna()).all()
    assert (table.loc["std"].dropna() == 0).all()
    assert f" | {table.loc['0', 'macro']:.6f} |" in done.stdout.splitlines()[3]

    done = run_script("eval_loc.py", *options, "--seeds", 7, cwd=trained)
    table = pd.read_csv(trained / "csv/pylon/point_localization.csv", index_col="seed")
    boxes = pd.read_csv(trained / "csv/pylon/7_boxes.csv")
    worth = ["image centre", "prior", "lift over prior"]
    worth += ["lift over prior low", "lift over prior high"]
    worth += ["called present", "hit if called present"]
    assert table.index.tolist() == ["7", "mean", "std", "7 low", "7 high", *worth]
    # the pooled column leaves out boxes without a prior
    lift = (table.loc["7"] - table.loc["prior"])[:-1]
    shown = table.loc["lift over prior"][:-1]
    assert shown.to_numpy() == pytest.approx(lift.to_numpy(), nan_ok=True)
    why_not = "not compared with the published seeds: its test images are not those of NIH"
    assert why_not in done.stdout
    card = read_json(trained / "save/pylon/7/best/training.json")
    thresholds = boxes["pathology"].map(card["thresholds"]).astype(float)
    called = boxes["probability"] >= thresholds
    assert table.loc["called present", "micro"] == pytest.approx(called[thresholds.notna()].mean())
    assert table.loc["hit if called present", "micro"] == pytest.approx(boxes["hit"][called].mean())
    assert table.loc["7", "micro"] == pytest.approx(boxes["hit"].mean())
    of_mass = boxes["hit"][boxes["pathology"] == "Mass"]
    assert table.loc["7", "Mass"] == pytest.approx(of_mass.mean())
    columns = ["image_id", "patient_id", "pathology", "probability", "row", "column", "hit"]
    columns += ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    columns += ["image_height", "image_width", "threshold", "called", "more_boxes"]
    assert list(boxes.columns) == columns
    assert (boxes[["image_height", "image_width"]] == [HEIGHT, WIDTH]).all(axis=None)
    assert boxes["threshold"].equals(thresholds)
    assert boxes["called"].equals(called.astype(float).where(thresholds.notna()))
    assert boxes["probability"].between(0, 1).all()
    assert (boxes["image_id"].str[:8].astype(int) == boxes["patient_id"]).all()
    lone = boxes[boxes["hit"].isin([0, 1]) & boxes["more_boxes"].isna()]
    inside = lone["column"].between(lone["bbox_x"], lone["bbox_x"] + lone["bbox_w"] - 1)
    inside &= lone["row"].between(lone["bbox_y"], lone["bbox_y"] + lone["bbox_h"] - 1)
    assert (inside == (lone["hit"] == 1)).all()
    done = run_script("eval_auc.py", *options, "--seeds", 3, cwd=trained, code=2)
    assert "seed 3 of pylon has no checkpoint; save/pylon has seed 0, 7" in sentence_of(done)


def test_evaluating_a_checkpoint_by_path(trained, phantom):
    model = pylon.load_pylon(trained / "save/pylon/0/best")
    model.save_pretrained(trained / "exported")
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0)
    run_script("eval_auc.py", *options, "--checkpoint", "exported", cwd=trained)
    run_script("eval_auc.py", *options, "--checkpoint", "save/pylon/0/best", cwd=trained)
    exported = pd.read_csv(trained / "csv/exported/auroc.csv")
    best = pd.read_csv(trained / "csv/pylon-0/auroc.csv")
    assert (exported["seed"][0], best["seed"][0]) == ("exported", "pylon-0")
    pd.testing.assert_frame_equal(exported.iloc[:, 1:], best.iloc[:, 1:])
    part = ("--checkpoint", "exported/model.safetensors")
    done = run_script("eval_loc.py", *options, *part, cwd=trained, code=2)
    assert "choose the folder it is in" in sentence_of(done)
    torch.save({"a": torch.zeros(1)}, trained / "model.pkl")
    done = run_script("eval_loc.py", *options, "--checkpoint", "model.pkl", cwd=trained, code=2)
    assert "model.pkl belongs to another network" in sentence_of(done)


def test_heatmap_pages(trained, phantom):
    (trained / "figs/all").mkdir(parents=True)
    for page in (3, 99):  # left over from a larger data set; there are two
        (trained / f"figs/all/{page}.jpg").touch()
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0)
    done = run_script("generate_heatmap.py", *options, cwd=trained)
    lines = (phantom / "BBox_List_2017.csv").read_text().splitlines()[1:]
    boxes = len({tuple(line.split(",")[:2]) for line in lines})  # those of a class are one row
    pages = sorted(int(path.stem) for path in (trained / "figs/all").iterdir())
    assert boxes == 19
    assert pages == [1, 2]
    assert "skipped 18 of the paper's 18 images" in done.stdout
    page = cv2.imread(str(trained / "figs/all/1.jpg")).astype(int)
    assert page.shape[0] > 10 * 300

    # on the absolute scale: a colour bar, and other colours
    run_script("generate_heatmap.py", *options, "--scale", "absolute", cwd=trained)
    absolute = cv2.imread(str(trained / "figs/all/1.jpg")).astype(int)
    assert absolute.shape[1] == page.shape[1] + BAR
    changed = np.abs(page - absolute[:, : page.shape[1]])[TITLE : PANEL + TITLE].mean(axis=(0, 2))
    assert changed[GAP:PANEL].max() < 1
    edge = PANEL + 2 * GAP + PANEL * WIDTH // HEIGHT  # of the picture, on white
    assert changed[PANEL + 3 * GAP : edge - GAP].min() > 5
    assert changed[edge + GAP : 2 * PANEL].max() < 1
    arguments = (*options, "--scale", "absolute", "--method", "gradcam")
    done = run_script("generate_heatmap.py", *arguments, cwd=trained, code=2)
    assert "--scale absolute needs maps that are probabilities" in sentence_of(done)


def test_picked_images_have_a_page(trained, phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    boxed = (data / "BBox_List_2017.csv").read_text().splitlines()[1].split(",")[0]
    (data / "images" / boxed).rename(data / "images" / "00000032_037.png")
    for path in (*data.glob("*.csv"), *data.glob("*.txt")):
        path.write_text(path.read_text().replace(boxed, "00000032_037.png"))
    out = ("--out", tmp_path / "figs")
    options = ("--data", data, "--device", "cpu", "--num-workers", 0, "--cache-size", 256, *out)
    run_script("generate_heatmap.py", *options, cwd=trained)
    assert (data / "cache/256/images.uint8").exists()
    assert [path.name for path in (tmp_path / "figs/picked").iterdir()] == ["1.jpg"]


SCRIPTS = ("train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_empty_data_folder(script, trained):
    (trained / "data").mkdir(exist_ok=True)
    options = NETWORK if script == "train.py" else ()
    sentence = sentence_of(run_script(script, *options, cwd=trained, code=2))
    assert "data lacks Data_Entry_2017.csv, train_val_list.txt, test_list.txt, images/" in sentence
    assert "https://nihcc.app.box.com" in sentence


def test_cache_smaller_than_the_input(trained, phantom):
    done = run_script("eval_auc.py", "--data", phantom, "--cache-size", 100, cwd=trained, code=2)
    assert "--cache-size must be 0 or at least 256, not 100" in sentence_of(done)


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_unknown_methods_and_precisions_are_refused(script, trained, phantom):
    options = ("--data", phantom, "--precision", "fp16")
    assert "--precision" in refusal_of(run_script(script, *options, cwd=trained, code=2))
    if script != "eval_auc.py":
        options = ("--data", phantom, "--method", "scorecam")
        assert "--method" in refusal_of(run_script(script, *options, cwd=trained, code=2))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_describes_the_options(script, tmp_path):
    shown = run_script(script, "--help", cwd=tmp_path).stdout
    assert "--data" in shown
    assert "Folder with NIH's files." in shown
    assert not list(tmp_path.iterdir())
