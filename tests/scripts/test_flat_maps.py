"""A network whose map of one class is the same everywhere: it shows no place."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_script

import pylon

FLAT = "Pneumothorax"
CPU = ("--device", "cpu", "--num-workers", 0)


@pytest.fixture(scope="module")
def checkpoint(trained_once, tmp_path_factory) -> Path:
    """The shared network, with a map of Pneumothorax that is its bias alone: a score of .9."""
    network = pylon.load_pylon(trained_once / "save/pylon/0/best")
    head = network.segmentation_head[0]
    k = network.description.class_names.index(FLAT)
    with torch.no_grad():
        head.weight[k] = 0
        head.bias[k] = np.log(9)
    folder = tmp_path_factory.mktemp("flat") / "network"
    network.save_pretrained(folder)
    return folder


def test_predictions_have_no_place(checkpoint, phantom, tmp_path):
    images = sorted((phantom / "images").glob("*.png"))[:2]
    options = ("--save-coco", "--html", "--top", 14, "--checkpoint", checkpoint, *CPU)
    done = run_script("predict.py", *images, *options, cwd=tmp_path)
    assert "note: maps without point and box, since they are the same everywhere: 2" in done.stdout
    out = tmp_path / "predictions"
    assert json.loads((out / "manifest.json").read_text())["flat maps"] == 2
    rows = pd.read_csv(out / "predictions.csv")
    places = rows.columns[4:]
    assert places[0] == "point_row"
    flat = rows[rows["label"] == FLAT]
    assert len(flat) == 2
    assert flat[places].isna().all(axis=None)
    np.testing.assert_allclose(flat["score"], 0.9, atol=1e-6)
    assert rows.loc[rows["label"] != FLAT, places].notna().all(axis=None)

    # COCO's numbers of classes start at 1
    results = json.loads((out / "coco_results.json").read_text())
    names = pylon.Predictor(checkpoint, "cpu").class_names
    assert len(results) == 2 * 13
    assert names.index(FLAT) + 1 not in {result["category_id"] for result in results}

    # the page
    page = (out / "html/index.html").read_text()
    assert page.count('"point": null') == page.count('"region": null') == 2


def test_evaluation_counts_no_hit(checkpoint, phantom, tmp_path):
    options = ("--data", phantom, "--checkpoint", checkpoint, *CPU)
    done = run_script("eval_loc.py", *options, "--html", cwd=tmp_path)
    [path] = tmp_path.glob("csv/*/*_boxes.csv")
    rows = pd.read_csv(path)
    flat = rows["pathology"] == FLAT
    assert flat.any()
    assert f"note: {flat.sum()} maps of network are the same everywhere" in done.stdout
    assert (rows.loc[flat, "hit"] == 0).all()
    assert rows.loc[flat, ["row", "column"]].isna().all(axis=None)
    assert rows.loc[~flat, ["row", "column"]].notna().all(axis=None)
    tables = {table.name: table.read_bytes() for table in path.parent.glob("*localization.csv")}
    assert len(tables) == 2
    run_script("eval_loc.py", "--from", path.parent, cwd=tmp_path)
    for name, content in tables.items():
        assert (path.parent / name).read_bytes() == content
    scores = pd.read_csv(path.parent / "box_localization.csv").set_index(["class", "seed"])
    assert (scores.loc[(FLAT, "network"), "T(IoU 0.1)":"energy"] == 0).all()
    page = next(tmp_path.glob("csv/*/html/index.html")).read_text()
    assert page.count('"point": null') == flat.sum()
    run_script("generate_heatmap.py", *options, cwd=tmp_path)
