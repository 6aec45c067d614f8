"""Scripts without an optional library."""

import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
from conftest import LONG, ROOT, TRAIN, run_script, sentence_of

import pylon.system.files

CPU = ("--device", "cpu", "--num-workers", "0")


def hide(*names: str) -> None:
    """Make imports of these modules fail, unless this process has imported them already."""
    for name in names:
        sys.modules[name] = None


@pytest.mark.parametrize("script", ["eval_loc.py", "generate_heatmap.py"])
def test_methods_without_grad_cam(trained, phantom, script):
    options = ("--data", phantom, *CPU, "--method", "gradcam")
    before = sorted(trained.rglob("*"))
    sabotage = partial(hide, "pytorch_grad_cam")
    done = run_script(script, *options, cwd=trained, code=2, sabotage=sabotage)
    assert "--method gradcam needs the grad-cam library" in sentence_of(done)
    assert "pip install" in sentence_of(done)
    assert sorted(trained.rglob("*")) == before
    run_script(script, "--data", phantom, *CPU, cwd=trained, sabotage=sabotage)  # its own maps


def run_without(name: str, code: str, *arguments, cwd) -> subprocess.CompletedProcess:
    """Run code in a new interpreter; forked scripts would have imported everything already."""
    hidden = f"import sys; sys.modules[{name!r}] = None\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", hidden + code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


RUN = """
import runpy

import pylon

pylon.Pylon
pylon.load_pylon
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@LONG
def test_without_locks_as_on_windows(trained, phantom, tmp_path):
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    data = shutil.copytree(phantom, tmp_path / "data")
    options = ("--data", data, *CPU, "--cache-size", 256)
    done = run_without("fcntl", RUN, ROOT / "eval_auc.py", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "images into" in done.stdout  # the cache is written without a lock
    cached = (cwd / "csv/pylon/auroc.csv").read_bytes()
    run_script("eval_auc.py", "--data", phantom, *CPU, cwd=cwd)
    assert (cwd / "csv/pylon/auroc.csv").read_bytes() == cached


def lock_nothing():
    """Remove fcntl, as on Windows, from a process that has imported everything."""
    pylon.system.files.fcntl = None


def test_training_without_locks(phantom, tmp_path):
    options = ("--data", phantom, *TRAIN, "--epochs", 1)
    done = run_script("train.py", *options, cwd=tmp_path, sabotage=lock_nothing)
    assert "finished: save/pylon/0/best" in done.stdout
