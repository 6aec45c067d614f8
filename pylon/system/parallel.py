"""Several processes: those that read files for one script, and those that train one network."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Dataset

from pylon.system.errors import UserError
from pylon.system.progress import track


def look_at(
    paths: Iterable[str], look: Callable[[str], Any], num_workers: int, title: str
) -> list[Any]:
    """What a function says of each file, in order, by several processes, with a progress bar."""
    loader = DataLoader(
        Files(list(paths), look),
        32,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=start_worker,
        generator=loader_generator(),
    )
    progress = track(loader, title, "batch")
    return [answer for batch in progress for answer in batch]


class Files(Dataset):
    """Item k: what a function says of file k."""

    def __init__(self, paths: list[str], look: Callable[[str], Any]):
        self.paths = np.array(paths, str)
        self.look = look

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> Any:
        return self.look(str(self.paths[k]))


def loader_generator() -> torch.Generator:
    """A generator of a loader's own.

    Without one, a loader draws the seed of its workers from torch's global generator each time it
    is iterated; dropout would then depend on the number of workers and on where a run was resumed.
    """
    return torch.Generator().manual_seed(0)


def start_worker(_worker: int) -> None:
    """Prepare a loader's worker: one thread, and Ctrl-C is left to the main process."""
    cv2.setNumThreads(0)  # the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all; the main process ends the others
    sys.excepthook = show_unless_stopped


def show_unless_stopped(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error of a worker's thread, but not that the main process has hung up, as it ends.

    What goes wrong with an item is no such error: the loader raises it in the main process.
    """
    if not issubclass(kind, EOFError | OSError):
        sys.__excepthook__(kind, error, trace)


def on_main_process(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call a function on the first process alone; every process gets its result or UserError."""
    answer = None
    fault = None
    if accelerator.is_main_process:
        try:
            answer = function()
        except UserError as error:
            fault = str(error)
    answer, fault = broadcast_object_list([answer, fault])
    if fault is not None:
        raise UserError(fault)
    return answer


def is_first_process() -> bool:
    """Whether this is the first of torchrun's processes, or the only one, as far as it is told."""
    return os.environ.get("RANK", "0") == "0"


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed torch for an epoch.

    A resumed epoch drops out what it would have dropped, and each process something else.
    """
    numbers = np.random.SeedSequence([seed, epoch, process])
    torch.manual_seed(int(numbers.generate_state(1)[0]))  # a CPU's generator heeds 32 bits
