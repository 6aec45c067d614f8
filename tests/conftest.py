import gzip
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import coverage
import cv2
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from pylon.data.sources import read_chestxray14

ROOT = Path(__file__).parent.parent
NETWORK = ("--encoder-name", "tu-test_resnet", "--encoder-weights", "none")
TINY = (*NETWORK, "--precision", "fp32", "--device", "cpu")
TRAIN = (*TINY, "--batch-size", "8", "--lr", "1e-3", "--num-workers", "0")
IMAGES = 48  # of the phantom: few, since training on them is what takes the tests time
HEIGHT, WIDTH = 128, 96  # of its images, pixels: not square, so that swapping the two shows
NO_REFERENCE = "needs the reference files, which are not part of the project"
NO_BROWSER = "needs Debian's chromium, and playwright"
OVERLAPPING = ("00000005_001.png", "Mass")  # an image and a class with two boxes that overlap
# Tests that take long, and whose claim a quicker one makes for another case, run if asked to.
LONG = pytest.mark.skipif("PYLON_LONG" not in os.environ, reason="needs PYLON_LONG=1")
# reference files that are not part of the project: tests that need them are skipped without them
SHARED = ROOT.parent / "shared"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in several processes

# for the process that scripts are forked from: it imports preloaded.py, and with it the scripts
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tools", ROOT / "tests")))

# Scripts run in processes forked from one that has already imported torch and the rest, since the
# imports take seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["preloaded"])


def start_script(
    *arguments, cwd: Path, out: Path, sabotage: Callable[[], None] | None = None
) -> multiprocessing.process.BaseProcess:
    """Start `python ARGUMENTS` in `cwd`, after calling `sabotage` in its process, if given.

    Its output goes to out/stdout and out/stderr.
    """
    measured = coverage.Coverage.current() is not None
    arguments = list(map(str, arguments))
    process = FORKS.Process(
        target=be_script, args=(arguments, cwd, out, dict(os.environ), sabotage, measured)
    )
    process.start()
    return process


def be_script(
    arguments: list[str],
    cwd: Path,
    out: Path,
    environment: dict[str, str],
    sabotage: Callable[[], None] | None,
    measured: bool,
) -> None:
    coverage_of_this = coverage.Coverage(
        ROOT / ".coverage", True, config_file=ROOT / "pyproject.toml"
    )
    if measured:
        coverage_of_this.start()
    os.setpgrp()  # so that it can be killed together with its workers
    # a shell's background jobs ignore SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    del os.environ["PYTHONPATH"]
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        descriptor = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream.fileno())
    script, *rest = arguments
    sys.argv = [str(ROOT / script), *rest]
    sys.path.insert(0, str((ROOT / script).parent))
    if sabotage is not None:
        sabotage()
    # the platform's default instead of forkserver
    multiprocessing.set_start_method(None, force=True)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if measured:
            coverage_of_this.stop()
            coverage_of_this.save()


def run_script(
    *arguments, cwd: Path, code: int | None = 0, sabotage: Callable[[], None] | None = None
) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` as a user would, in `cwd`; check the exit code unless it is None."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        process = start_script(*arguments, cwd=cwd, out=out, sabotage=sabotage)
        process.join(300)
        stdout = (out / "stdout").read_text()
        stderr = (out / "stderr").read_text()
    assert code in (None, process.exitcode), f"{arguments}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def refusal_of(done: subprocess.CompletedProcess) -> str:
    """Return tyro's message about an invalid choice, which must come before anything else."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.stderr


def sentence_of(done: subprocess.CompletedProcess) -> str:
    """Return the one error line that a failed script must print, with no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """A small lopsided phantom in NIH's layout. Tests that change it work on a copy.

    Its images are not square; a patient has one to five of them; findings are in two to nine of 31
    training images, and five of them in no validation image, so that these have no threshold; one
    image has two boxes of one class, which overlap.
    """
    folder = tmp_path_factory.mktemp("phantom") / "data"
    options = ("--out", folder, "--images", IMAGES, "--size", HEIGHT, "--seed", 95)
    run_script("tools/phantom/make_phantom.py", *options, cwd=folder.parent)
    make_lopsided(folder)
    return folder


def make_lopsided(data: Path) -> None:
    """Narrow the images of a phantom, with their boxes; add a box that overlaps one of its class.

    The numbers of the boxes are then no whole ones, as in NIH's list.
    """
    for path in (data / "images").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    entries = data / "Data_Entry_2017.csv"
    entries.write_text(entries.read_text().replace(f",{HEIGHT},{HEIGHT},", f",{WIDTH},{HEIGHT},"))

    # Image Index, Finding Label, x, y, w, h, and three empty columns
    header, *lines = (data / "BBox_List_2017.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[2] = str(float(row[2]) * WIDTH / HEIGHT)
        row[4] = str(float(row[4]) * WIDTH / HEIGHT)
    name, pathology = OVERLAPPING
    (first,) = [row for row in rows if row[:2] == [name, pathology]]
    x, y, w, h = map(float, first[2:6])
    rows.append([name, pathology, x + w / 2, y + h / 2, w, h / 2, "", "", ""])
    lines = [",".join(map(str, row)) for row in rows]
    (data / "BBox_List_2017.csv").write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture(scope="session")
def trained_once(phantom, tmp_path_factory) -> Path:
    """A folder with a run of two epochs on the phantom."""
    cwd = tmp_path_factory.mktemp("trained_once")
    done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, cwd=cwd)
    assert "Traceback" not in done.stderr
    return cwd


@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory) -> Path:
    """A copy of `trained_once` for the tests of one module."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("trained") / "cwd")


def same_weights(a: Path, b: Path) -> bool:
    """Whether the best networks in two run folders are identical, bit for bit."""
    one = safetensors.torch.load_file(a / "best/model.safetensors")
    other = safetensors.torch.load_file(b / "best/model.safetensors")
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def rows_of(cwd: Path, seed: int = 0) -> pd.DataFrame:
    """Read the csv of a run, without the columns that depend on the clock."""
    return pd.read_csv(cwd / f"csv/pylon/{seed}.csv").drop(columns=["images_per_second", "seconds"])


@pytest.fixture
def by_hand(tmp_path) -> Path:
    """A folder with hand-written lists of six images of four patients."""
    (tmp_path / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID\n"
        "00000001_000.png,Mass|Nodule,0,1\n"
        "00000001_001.png,No Finding,1,1\n"
        "00000002_000.png,Hernia,0,2\n"
        "00000003_000.png,Infiltration,0,3\n"
        "00000003_001.png,Mass,1,3\n"
        "00000004_000.png,Edema,0,4\n"
    )
    (tmp_path / "train_val_list.txt").write_text(
        "00000001_000.png\n00000001_001.png\n00000002_000.png"
    )
    (tmp_path / "test_list.txt").write_text("00000003_000.png\n00000003_001.png\n")
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000003_000.png,Infiltrate,10.9,20.2,30.99,40,,,\n"
        "00000004_000.png,Mass,1,2,3,4,,,\n"
    )
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(NO_REFERENCE)
    return SHARED


LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config):
    """Count the tests that were skipped because reference files, or a browser, are absent."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reference = sum(NO_REFERENCE in str(reason) for reason in skipped)
    lines = [f"{reference} checks were left out because the reference files are absent"]
    if browser := sum(NO_BROWSER in str(reason) for reason in skipped):
        lines.append(f"{browser} checks were left out because a browser is absent: {NO_BROWSER}")
    config.stash[LEFT_OUT] = lines


def pytest_unconfigure(config):
    """Print these counts as the last lines, below the summary and the coverage."""
    for line in config.stash.get(LEFT_OUT, []):
        print(line)


@pytest.fixture(scope="session")
def official(shared, tmp_path_factory) -> Path:
    """A folder with NIH's own lists."""
    folder = tmp_path_factory.mktemp("official")
    for path in (shared / "nih14" / "official").glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture
def official_boxes(official) -> pd.DataFrame:
    return read_chestxray14(official, with_boxes=True).boxes


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
