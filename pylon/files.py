"""Files that are either whole or not there, and a lock that no dead process holds."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from pylon.cli import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename into place.

    Raises:
        UserError: it could not be written; what was there before is untouched.
    """
    write_together({path: data})


def write_together(files: dict[Path, bytes]) -> None:
    """Write the files of one folder: all under temporary names before the first is renamed, so a full disk harms none.

    Raises:
        UserError: one could not be written; what was there before is untouched.
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
        for partial in temporary.values():
            with suppress(OSError):  # where the folder itself cannot be written, the first error says so
                partial.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Bring the renames in a folder to the disk, in their order to those in others: the power may fail."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_number(name: str) -> bool:
    """Whether the name of a folder or file is a whole number in plain digits; `isdigit` would take ² for one."""
    return name.isascii() and name.isdigit()


def require_writable(*folders: Path) -> None:
    """Raise a UserError if a file cannot be written into one of the folders, before hours are spent on its contents."""
    for folder in folders:
        probe = folder / f".writable-{os.getpid()}"  # other seeds look at the same time
        write_atomically(probe, b"")
        probe.unlink()


def hold_lock(path: Path, sentence: str) -> None:
    """Lock a file until this process ends, however it ends; raise a UserError with the sentence if another holds it."""
    # A record lock, since flock would pass to the loaders' workers, which outlive a killed process by seconds.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(sentence) from error
        # else a file system that knows no locks, and the user has to know what runs
