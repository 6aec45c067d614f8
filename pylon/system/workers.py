"""Processes that work for another one: they leave Ctrl-C to it, and end when it does."""

import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1  # of Linux's prctl, from linux/prctl.h


def start_process() -> None:
    """Set up a process that works for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all; the main process ends the rest
    end_with_parent()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it has, even by `kill -9`.

    Without it, workers that wait for their turn do so for ever: they hold both ends of the pipes.
    On Linux, the thread that started this process must live as long as it is needed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None:  # not started by multiprocessing, but by torchrun
        return

    # other systems; a parent that had already ended; or one that lets a server start its workers
    if sys.platform != "linux" or os.getppid() != parent.pid:
        threading.Thread(target=follow, args=(parent,), daemon=True).start()


def follow(parent: multiprocessing.process.BaseProcess) -> None:
    """Wait for another process to end, then end this one."""
    parent.join()
    os._exit(1)
