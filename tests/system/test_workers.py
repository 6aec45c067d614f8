"""Processes that work for another one, which is killed."""

import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection

import pytest
from conftest import FORKS

from pylon.system.parallel import look_in_batches
from pylon.system.workers import start_process

LARGE = 2**20  # bytes: more than a pipe holds, so that who writes them waits for a reader


def answer(_path) -> tuple[int, bytes]:
    return os.getpid(), bytes(LARGE)


def load() -> set[int]:
    batches = look_in_batches(["a"] * 40, answer, 1, 2)
    load.running = iter(batches)  # or it would end its workers here
    return {next(load.running)[0][0] for _ in range(4)}


def compute() -> set[int]:
    compute.pool = ProcessPoolExecutor(2, initializer=start_process)
    list(compute.pool.map(answer, range(4)))
    return {process.pid for process in multiprocessing.active_children()}


def be_killed(start: Callable[[], set[int]], number: signal.Signals, test: Connection) -> None:
    """Start workers, tell the test, and be killed."""
    multiprocessing.set_start_method(None, force=True)  # the platform's own
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup changes
    test.send(start())
    test.recv()
    os.kill(os.getpid(), number)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's pidfd_open")
@pytest.mark.parametrize("start", [load, compute])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_workers_end_with_their_parent(start, number):
    here, there = multiprocessing.Pipe()
    process = FORKS.Process(target=be_killed, args=(start, number, there))
    process.start()
    workers = [os.pidfd_open(worker) for worker in here.recv()]
    assert len(workers) == 2
    here.send("go")
    process.join()
    assert process.exitcode == -number
    for worker in workers:
        ended, _, _ = select.select([worker], [], [], 20)
        if not ended:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        os.close(worker)
        assert ended
