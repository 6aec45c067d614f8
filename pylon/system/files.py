"""Files that are never half written, and locks that no dead process holds."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pylon.system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: without locks, the user has to know what runs
    fcntl = None

if TYPE_CHECKING:
    import pandas as pd


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename into place.

    Raises:
        UserError: it could not be written; what was there before is untouched.
    """
    write_together({path: data})


def write_together(files: dict[Path, bytes]) -> None:
    """Write the files of one folder, all under temporary names before the first is renamed.

    Raises:
        UserError: one could not be written, as on a full disk; what was there before is untouched.
    """
    temporary = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary[path], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            os.replace(temporary[path], path)
        flush_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); what was there before is untouched. "
            "Make room or get leave to write, then run the same command again"
        ) from error
    finally:
        # where the folder itself cannot be written, the first error tells
        for partial in temporary.values():
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_csv(path: Path, table: "pd.DataFrame", index: bool = True) -> None:
    """Write a table; an undefined score is an empty cell."""
    write_atomically(path, csv_file(table, index))


def csv_file(table: "pd.DataFrame", index: bool = True) -> bytes:
    """A table as csv: numbers so that they read back to the last bit, NaN as an empty cell."""
    return table.to_csv(index=index, lineterminator="\n").encode()


def hash_of_json(values: dict[str, Any]) -> str:
    """SHA-256 of names and values that JSON can hold, in whatever order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def flush_folder(folder: Path) -> None:
    """Bring the renames in a folder to the disk, in their order to those in others."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_number(name: str) -> bool:
    """Whether a file's name is a whole number in plain digits; `isdigit` would take ² for one."""
    return name.isascii() and name.isdigit()


def require_writable(*folders: Path) -> None:
    """Raise a UserError if a file cannot be written into one of the folders, before hours pass."""
    for folder in folders:
        probe = folder / f".writable-{os.getpid()}"  # other seeds look at the same time
        write_atomically(probe, b"")
        probe.unlink()


def hold_lock(path: Path, sentence: str) -> None:
    """Lock a file until this process ends, however it ends.

    Raises:
        UserError: another process holds the lock; it says `sentence`.
    """
    # A record lock, since flock would pass to the loaders' workers, which outlive a killed process
    # by seconds.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is None:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(sentence) from error
        # else a file system that knows no locks, and the user has to know what runs


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder's lock, waiting for it; the system takes it back from a process that dies.

    Raises:
        UserError: the folder cannot be written or locked.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / "lock", "w"))
            if fcntl is not None:
                wait_for(lock, folder, say)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written and locked ({error.strerror}); get leave to write, "
                "link it to another disk, or use --cache-size 0"
            ) from error
        yield


def wait_for(lock: object, folder: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another process that fills {folder}")
        fcntl.flock(lock, fcntl.LOCK_EX)
