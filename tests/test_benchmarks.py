import shutil

from conftest import run_script


def test_benchmark_measures_everything(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    few = ("--images", 5, "--steps", 1, "--rounds", 1, "--batch-size", 2, "--num-workers", 0, "--cache-sizes", 256)
    done = run_script(
        "benchmarks/run.py", "--data", data, "--encoder-name", "tu-test_resnet", "--precisions", "fp32", *few,
        cwd=tmp_path,
    )  # fmt: skip
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    for what in (
        "training loader, 0 workers, 256 cache", "evaluation loader, 0 workers, from the PNGs", "training step, fp32",
        "evaluation, fp32, 256 cache", "metric, 984 boxes, coordinates",
        "heatmap page of 20 panels, PNGs decoded, ours",
        "peak memory of training, batch 2, fp32, 256 cache", "peak memory of evaluation, fp32",
        "plain, fp32, batch 2", "256 cache, fp32, batch 2",
    ):  # fmt: skip
        assert what in rows
