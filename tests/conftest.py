import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference material that is not part of the project: its tests skip without it

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in several processes


def run_script(*arguments, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` as a user would, in `cwd`, and check the exit code."""
    script, *rest = arguments
    command = [sys.executable, str(ROOT / script), *map(str, rest)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def sentence_of(done: subprocess.CompletedProcess) -> str:
    """The one sentence that a failed script must end with, and nothing else but progress bars."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """A small phantom in NIH's layout. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("phantom") / "data"
    run_script("data/make_phantom.py", "--out", folder, "--images", 90, "--size", 128, "--seed", 3, cwd=folder.parent)
    return folder


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the reference material, which is not part of the project")
    return SHARED


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
