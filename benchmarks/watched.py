"""Run a command and watch it: seconds, and peak memory of all its processes (Linux)."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

SECONDS_BETWEEN_LOOKS = 0.5  # at least, and:
LOOKING = 1 / 30  # share of the time; to look at gigabytes takes a core a tenth of a second


class Watched(NamedTuple):
    """What a command took."""

    seconds: float
    memory: float  # GB at the peak, of all processes; nan where /proc does not tell
    code: int  # exit code, -9 if it was killed


def watch(
    command: Sequence[str],
    folder: Path,
    log: Path,
    environment: dict[str, str],
    until: Callable[[], bool] | None = None,
) -> Watched:
    """Run a command to its end, or kill it and its children with SIGKILL once `until` is true.

    Memory is what the processes have written: pages that they share count once, and pages of files,
    such as the cache's, do not count, since the system can drop them.

    Args:
        command: program and arguments.
        folder: to run it in.
        log: file for what it prints.
        environment: variables added to ours.
        until: asked twice a second, or less often where looking at the memory takes long.
    """
    start = time.monotonic()
    peak = 0.0
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                look = time.monotonic()
                peak = max(peak, memory_of(process.pid))
                took = time.monotonic() - look
                if until is not None and until():
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                time.sleep(max(SECONDS_BETWEEN_LOOKS, took / LOOKING))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    known = sys.platform == "linux"
    return Watched(time.monotonic() - start, peak if known else float("nan"), process.returncode)


def memory_of(group: int) -> float:
    """GB that the processes of a session have written, shared pages divided among those who map."""
    kilobytes = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) != group:
                continue
            pages = (folder / "smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        kilobytes += sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", pages, re.M)))
    return kilobytes * 1024 / 1e9


def disk_of(folder: Path) -> float:
    """GB on disk of a folder and all that is in it."""
    blocks = 0
    for path, _, files in os.walk(folder):
        blocks += sum(os.lstat(os.path.join(path, name)).st_blocks for name in files)
    return blocks * 512 / 1e9
