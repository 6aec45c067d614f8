"""The scripts with runtimes other than torch."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import rows_of, run_script, sentence_of
from test_without_libraries import CPU, hide

BEST = ("--checkpoint", "save/pylon/0/best")


@pytest.fixture(scope="module")
def network_file(trained):
    """An ONNX file, without images."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    done = run_script("predict.py", *BEST, "--export-onnx", "pylon.onnx", cwd=trained)
    assert "pylon.onnx written" in done.stdout
    assert not (trained / "predictions").exists()
    return trained / "pylon.onnx"


def test_predictions_of_onnxruntime(trained, phantom, network_file):
    images = sorted((phantom / "images").iterdir())[:3]
    options = (*images, *BEST, *CPU, "--no-overlays")
    run_script("predict.py", *options, "--out", "a", cwd=trained)
    run_script("predict.py", *options, "--out", "b", "--runtime", "onnx", cwd=trained)
    a, b = (pd.read_csv(trained / out / "predictions.csv") for out in "ab")
    np.testing.assert_allclose(a["score"], b["score"], atol=1e-4)
    assert not a["score"].equals(b["score"])
    assert a[["image", "label", "present"]].equals(b[["image", "label", "present"]])
    manifest = json.loads((trained / "b/manifest.json").read_text())
    assert manifest["options"]["runtime"] == "onnx"

    # the other runtime does not go on there
    done = run_script("predict.py", *options, "--out", "b", cwd=trained, code=2)
    assert "--out b holds results with --runtime onnx, not torch" in sentence_of(done)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_evaluations_by_runtime(trained, phantom, runtime):
    pytest.importorskip("onnx")
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    options = ("--data", phantom, *CPU)
    run_script("eval_auc.py", *options, cwd=trained)
    expected = rows_of(trained)
    run_script("eval_auc.py", *options, "--runtime", runtime, cwd=trained)
    logits = [name for name in expected if name.startswith("logit_")]
    np.testing.assert_allclose(rows_of(trained)[logits], expected[logits], atol=1e-4)
    about = json.loads((trained / "csv/pylon/0_images.json").read_text())
    assert about["runtime"] == runtime


def test_boxes_by_onnxruntime(trained, phantom):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    options = ("--data", phantom, *CPU, "--runtime", "onnx")
    run_script("eval_loc.py", *options, cwd=trained)
    about = json.loads((trained / "csv/pylon/0_boxes.json").read_text())
    assert about["runtime"] == "onnx"


def test_images_or_export_are_needed(trained):
    done = run_script("predict.py", *BEST, cwd=trained, code=2)
    assert "name images, or folders of them" in sentence_of(done)


@pytest.mark.parametrize(
    ("script", "options", "hidden", "sentence"),
    [
        ("predict.py", ("x.png", *BEST, "--runtime", "onnx"), "onnxruntime",
         "--runtime onnx needs the library onnxruntime"),
        ("predict.py", (*BEST, "--export-onnx", "new.onnx"), "onnx",
         "--export-onnx needs the library onnx,"),
        ("eval_auc.py", ("--runtime", "openvino"), "openvino",
         "--runtime openvino needs the library openvino"),
        ("eval_loc.py", ("--runtime", "openvino"), "openvino",
         "--runtime openvino needs the library openvino"),
    ],
)  # fmt: skip
def test_without_the_library(trained, script, options, hidden, sentence):
    names = {"onnx", "onnxruntime", "openvino"}
    pytest.importorskip("onnx") if hidden != "onnx" else None  # it is looked for first
    before = sorted(trained.rglob("*"))
    sabotage = partial(hide, hidden)
    done = run_script(script, *options, cwd=trained, code=2, sabotage=sabotage)
    assert sentence in sentence_of(done)
    assert "pip install" in sentence_of(done)
    assert names & set(sentence_of(done).split())
    assert sorted(trained.rglob("*")) == before
