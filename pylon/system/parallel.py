"""Multiple processes: workers that read files, and processes that train one network."""

import multiprocessing
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader, Dataset

from pylon.system.cli import NO_SHARED_MEMORY
from pylon.system.errors import UserError
from pylon.system.files import write_atomically
from pylon.system.progress import track
from pylon.system.workers import start_process


def look_at(
    paths: Iterable[str], look: Callable[[str], Any], num_workers: int, title: str
) -> list[Any]:
    """Apply a function to each file in worker processes; results are in order of the files."""
    progress = track(look_in_batches(paths, look, 32, num_workers), title, "batch")
    return [answer for batch in progress for answer in batch]


def look_in_batches(
    paths: Iterable[str], look: Callable[[str], Any], batch_size: int, num_workers: int
) -> DataLoader:
    """Apply a function to each file in worker processes; yields lists of results, in order.

    Raises:
        UserError: processes cannot share memory.
    """
    require_shared_memory(num_workers)
    return DataLoader(
        Files(list(paths), look),
        batch_size,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=start_worker,
        generator=loader_generator(),
    )


def require_shared_memory(num_workers: int) -> None:
    """Raise a UserError if workers are wanted, but processes cannot share memory."""
    if num_workers == 0:
        return
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise UserError(NO_SHARED_MEMORY.format(error.strerror)) from error


class Files(Dataset):
    """Item k: the result of a function for file k."""

    def __init__(self, paths: list[str], look: Callable[[str], Any]):
        self.paths = np.array(paths, str)
        self.look = look

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> Any:
        return self.look(str(self.paths[k]))


def loader_generator() -> torch.Generator:
    """A separate random generator for a loader.

    Without one, a loader draws the seed of its workers from torch's global generator each time it
    is iterated; dropout would then depend on the number of workers and on where a run was resumed.
    """
    return torch.Generator().manual_seed(0)


def start_worker(_worker: int) -> None:
    """Set up a loader's worker (see `start_process`), of one thread."""
    # The workers are the parallelism. (1 would wait for OpenCV's threads, which a fork leaves.)
    cv2.setNumThreads(0)
    start_process()
    sys.excepthook = show_unless_stopped


def show_unless_stopped(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error in a worker's thread, unless the main process has closed the connection.

    Errors in loading an item do not come here: the loader raises them in the main process.
    """
    if not issubclass(kind, EOFError | OSError):
        sys.__excepthook__(kind, error, trace)


def on_main_process(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call a function on the main process only; all processes get its result or UserError.

    Whatever processes must agree on is read so: the data, the checkpoints, the state to resume.
    The result must be picklable.
    """
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


def require_shared(accelerator: Accelerator, folder: Path) -> None:
    """Raise a UserError on every process if one does not see the main process's folder."""
    if accelerator.num_processes == 1:
        return
    mark = folder / on_main_process(accelerator, lambda: f".shared-{uuid.uuid4().hex}")
    on_main_process(accelerator, lambda: write_atomically(mark, b""))
    seen = gather_object([(mark.exists(), f"{Path.cwd()} on {socket.gethostname()}")])
    if accelerator.is_main_process:
        mark.unlink()
    for process, (is_there, place) in enumerate(seen):
        if not is_there:
            raise UserError(
                f"start every node in one shared folder; of process {process}, in {place}, "
                f"{folder} is not the same folder as of process 0, in {seen[0][1]}"
            )


def is_first_process() -> bool:
    """Whether this is the first of torchrun's processes, or the only one, according to RANK."""
    return os.environ.get("RANK", "0") == "0"


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed torch for an epoch.

    A resumed epoch repeats the dropout it would have had; each process has its own.
    """
    numbers = np.random.SeedSequence([seed, epoch, process])
    torch.manual_seed(int(numbers.generate_state(1)[0]))  # a CPU's generator uses 32 bits
