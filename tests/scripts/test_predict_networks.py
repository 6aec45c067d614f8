"""predict.py: the scores of eval_loc.py, and those of mirror images and of several networks."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_script, sentence_of

import pylon

BEST = "save/pylon/0/best"


@pytest.fixture
def checkpoint(trained_once) -> Path:
    return trained_once / BEST


@pytest.mark.parametrize(
    ("tta", "network"), [((), "pylon"), (("--tta",), "pylon with mirror images")]
)
def test_scores_and_points_are_those_of_eval_loc(checkpoint, phantom, tmp_path, tta, network):
    options = ("--data", phantom, "--checkpoint", checkpoint, "--device", "cpu")
    run_script("eval_loc.py", *options, *tta, "--name", "same", cwd=tmp_path)
    path = next((tmp_path / "csv/same").glob("*_boxes.csv"))
    assert json.loads(path.with_suffix(".json").read_text())["network"] == network
    boxes = pd.read_csv(path)
    # in the same batches of eight
    files = [phantom / "images" / name for name in boxes["image_id"].unique()]
    arguments = (*files, *tta, "--out", "out", "--no-overlays", "--checkpoint", checkpoint)
    run_script("predict.py", *arguments, cwd=tmp_path)
    rows = pd.read_csv(tmp_path / "out/predictions.csv")
    both = boxes.merge(rows, left_on=["image_id", "pathology"], right_on=["image", "label"])
    assert len(both) == len(boxes) > 10
    assert (both["score"] == both["probability"]).all()
    assert (both["point_row"] == both["row"]).all()
    assert (both["point_column"] == both["column"]).all()
    assert both["present"].equals(both["called"].round().astype(both["present"].dtype))
    assert not (tmp_path / "out/overlays").exists()


def test_several_networks(checkpoint, trained, phantom, tmp_path):
    image = sorted((phantom / "images").glob("*.png"))[0]
    both = (checkpoint, trained / BEST)
    options = ("--out", "out", "--device", "cpu", "--tta", "--checkpoint", *both)
    run_script("predict.py", image, *options, cwd=tmp_path)
    rows = pd.read_csv(tmp_path / "out/predictions.csv").set_index("label")
    expected = pylon.Predictor(both, "cpu", tta=True)(image)
    assert rows["score"].tolist() == [expected.finding(label)["score"] for label in rows.index]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["checkpoint"] == " ".join(map(str, both))
    assert manifest["options"]["tta"] is True
    done = run_script(
        "predict.py", "--export-onnx", "a.onnx", "--checkpoint", *both, cwd=tmp_path, code=2
    )
    assert "--export-onnx is for a single --checkpoint" in sentence_of(done)
