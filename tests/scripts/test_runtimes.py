"""The scripts with runtimes other than torch."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import LONG, run_script, sentence_of
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


def rows_by(runtime, script, what, trained, phantom):
    """Score with a runtime; return the rows."""
    run_script(script, "--data", phantom, *CPU, "--runtime", runtime, cwd=trained)
    about = json.loads((trained / f"csv/pylon/0_{what}.json").read_text())
    assert about["runtime"] == runtime
    return pd.read_csv(trained / f"csv/pylon/0_{what}.csv")


@LONG
def test_evaluations_by_runtime(trained, phantom):
    for library in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(library)
    expected = rows_by("torch", "eval_auc.py", "images", trained, phantom)
    rows = rows_by("openvino", "eval_auc.py", "images", trained, phantom)
    logits = [name for name in expected if name.startswith("logit_")]
    assert len(logits) == 14
    np.testing.assert_allclose(rows[logits], expected[logits], atol=1e-4)
    assert not rows[logits].equals(expected[logits])

    expected = rows_by("torch", "eval_loc.py", "boxes", trained, phantom)
    rows = rows_by("onnx", "eval_loc.py", "boxes", trained, phantom)
    np.testing.assert_allclose(rows["probability"], expected["probability"], atol=1e-4)
    assert not rows["probability"].equals(expected["probability"])


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
