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
    """Call a function on the main process only; all processes get its result or UserError."""
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


def main_process_first(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call a function on the main process, then on the others; an error is raised on each.

    Raised inside Accelerate's own context, it would end one process while others wait.
    """
    answer = None
    fault = None
    with accelerator.main_process_first():
        try:
            answer = function()
        except UserError as error:
            fault = str(error)
    require_same(None, fault, "files")
    return answer


def same_on_all(
    accelerator: Accelerator,
    function: Callable[[], Any],
    what: str,
    key: Callable[[Any], Any] = lambda answer: answer,
) -> Any:
    """Call a function that reads files on every process, of which each may be on another computer.

    Args:
        what: it reads, for the error.
        key: the part of its result, picklable, that must be the same on every process.

    Raises:
        UserError: on every process, if the function raises one on any of them, or if results
            differ; the sentence names the process and its folder.
    """
    answer = None
    found = None
    fault = None
    try:
        answer = function()
        found = key(answer)
    except UserError as error:
        if accelerator.num_processes == 1:
            raise
        fault = str(error)
    require_same(found, fault, what)
    return answer


def require_same(found: Any, fault: str | None, what: str) -> None:
    """Raise a UserError on every process if one has a fault, or has found something else."""
    here = f"{Path.cwd()} on {socket.gethostname()}"
    of_all = gather_object([(found, fault, here)])
    faults = [fault for _, fault, _ in of_all]
    if len(set(faults)) == 1 and fault is not None:
        raise UserError(fault)

    # the first process that differs from the main one
    _, fault_of_main, main = of_all[0]
    for process, (other, fault_of_other, there) in enumerate(of_all):
        if (other, fault_of_other) == of_all[0][:2]:
            continue
        others = f"process {process}, in {there}"
        if fault_of_main == fault_of_other:
            problem = f"{others}, reads other {what} than process 0, in {main}"
        elif fault_of_other is not None:
            problem = f"{others}, differs from process 0, in {main}: {fault_of_other}"
        else:
            problem = f"process 0, in {main}, differs from {others}: {fault_of_main}"
        raise UserError(f"start every node in one shared folder, with the same data; {problem}")


def require_shared(accelerator: Accelerator, folder: Path) -> None:
    """Raise a UserError on every process if one does not see the main process's folder."""
    if accelerator.num_processes == 1:
        return
    mark = folder / on_main_process(accelerator, lambda: f".shared-{uuid.uuid4().hex}")
    on_main_process(accelerator, lambda: write_atomically(mark, b""))

    def look() -> None:
        if not mark.exists():
            raise UserError(f"{folder} is not the same folder")

    try:
        same_on_all(accelerator, look, "files")
    finally:
        if accelerator.is_main_process:
            mark.unlink()


def is_first_process() -> bool:
    """Whether this is the first of torchrun's processes, or the only one, according to RANK."""
    return os.environ.get("RANK", "0") == "0"


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed torch for an epoch.

    A resumed epoch repeats the dropout it would have had; each process has its own.
    """
    numbers = np.random.SeedSequence([seed, epoch, process])
    torch.manual_seed(int(numbers.generate_state(1)[0]))  # a CPU's generator uses 32 bits
