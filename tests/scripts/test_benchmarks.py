"""benchmarks/speed.py prints a table row for everything that it measures."""

import shutil

from conftest import run_script


def test_benchmark_measures_everything(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    network = ("--encoder-name", "tu-test_resnet", "--precisions", "fp32", "--batch-size", 2)
    few = ("--images", 5, "--steps", 1, "--rounds", 1, "--num-workers", 0, "--cache-sizes", 256)
    done = run_script("benchmarks/speed.py", "--data", data, *network, *few, cwd=tmp_path)
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
