"""The benchmarks print a table row for everything that they measure.

PYLON_BENCHMARKS=1 tests them all, in two minutes; otherwise only those that take seconds.
"""

import os
import shutil

import pytest
from conftest import run_script

ALL = "PYLON_BENCHMARKS" in os.environ


@pytest.mark.skipif(not ALL, reason="needs PYLON_BENCHMARKS=1")
def test_benchmark_measures_everything(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    network = ("--encoder-name", "tu-test_resnet", "--precisions", "fp32", "--batch-size", 2)
    few = ("--images", 5, "--steps", 1, "--rounds", 1, "--num-workers", 0, "--cache-sizes", 256)
    options = ("--data", data, *network, *few)
    done = run_script("benchmarks/speed.py", *options, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [line.split("|")[1].strip() for line in lines]
    for what in (
        "training loader, 0 workers, 256 cache",
        "evaluation loader, 0 workers, from the PNGs",
        "training step, fp32",
        "evaluation, fp32, 256 cache",
        "metric, 984 boxes, coordinates",
        "heatmap page of 20 panels, PNGs decoded, ours",
        "peak memory of training, batch 2, fp32, 256 cache",
        "peak memory of evaluation, fp32",
        "plain, fp32, batch 2",
        "256 cache, fp32, batch 2",
    ):
        assert what in rows


@pytest.mark.skipif(not ALL, reason="needs PYLON_BENCHMARKS=1")
def test_runtimes_are_compared(phantom, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    runtimes = ("torch", "onnx", "openvino") if ALL else ("torch", "onnx")
    few = ("--images", 4, "--batch-sizes", 1, 2, "--rounds", 1, "--num-workers", 0)
    network = ("--encoder-name", "tu-test_resnet", "--cache-size", 256, "--runtimes", *runtimes)
    options = ("--data", phantom, *few, *network)
    done = run_script("benchmarks/runtimes.py", *options, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [line.split("|")[1].strip() for line in lines]
    for runtime in ("plain", *(f"{name} fp32" for name in runtimes)):
        assert rows.count(runtime) == 2
    assert "| network alone | batch 1 | batch 2 |" in lines
    (row,) = [line for line in lines if line.startswith("| torch fp32") and line.count("|") == 5]
    assert row.split("|")[4].strip() == "0"


@pytest.mark.skipif(not ALL, reason="needs PYLON_BENCHMARKS=1")
def test_prediction_is_compared_with_grad_cam(phantom, tmp_path):
    few = ("--count", 3, "--rounds", 1, "--num-workers", 0, "--precisions", "fp32")
    network = ("--encoder-name", "tu-test_resnet", "--present", 3)
    images = phantom / "images"
    done = run_script("benchmarks/prediction.py", "--images", images, *network, *few, cwd=tmp_path)
    assert "3 images" in done.stdout
    for what in ("prediction, fp32, overlays", "prediction, fp32, no overlays"):
        assert f"| {what} |" in done.stdout
