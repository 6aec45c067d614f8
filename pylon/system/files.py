"""Atomic writes, and locks that are released when their process dies."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pylon.system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no locks; the user must avoid concurrent runs
    fcntl = None

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename into place.

    Raises:
        UserError: the file cannot be written; the old one is unchanged.
    """
    write_together({path: data})


def write_together(files: dict[Path, bytes | Iterable[bytes]]) -> None:
    """Write the files of one folder, all under temporary names before the first is renamed.

    Args:
        files: contents of each file, or their parts.

    Raises:
        UserError: a file cannot be written, as on a full disk; the old ones are unchanged.
    """
    temporary = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary[path], "wb") as file:
                for part in [data] if isinstance(data, bytes) else data:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            os.replace(temporary[path], path)
        flush_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); the old file, if any, is unchanged. "
            "Free up space or check the permissions, then run the same command again"
        ) from error
    finally:
        # if the folder itself is not writable, the first error says so
        for partial in temporary.values():
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_csv(path: Path, table: "pd.DataFrame", index: bool = True) -> None:
    """Write a table as csv; undefined scores become empty cells."""
    write_atomically(path, csv_file(table, index))


def csv_file(table: "pd.DataFrame", index: bool = True) -> bytes:
    """A table as csv: numbers read back to the last bit, NaN is an empty cell."""
    return table.to_csv(index=index, lineterminator="\n").encode()


def hash_of_json(values: dict[str, Any]) -> str:
    """SHA-256 of a dict that JSON can represent, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hashed_json(values: dict[str, Any]) -> bytes:
    """Encode a JSON object with its own hash, `sha256`, at its end."""
    return json.dumps({**values, "sha256": hash_of_json(values)}, indent=2).encode()


def flush_folder(folder: Path) -> None:
    """Flush the renames in a folder to disk, to keep their order with those in other folders."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_text(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 are written as in Python."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:x}", name)


def one_line(sentence: str) -> str:
    """A sentence for the terminal; line breaks and the like, in file names, are written out."""
    letters = [each if each.isprintable() else repr(each)[1:-1] for each in as_text(sentence)]
    return "".join(letters)


def file_alike(path: str) -> str | None:
    """A file whose path differs from that of a missing one by ending, or capital letters, only."""
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0].lower()
    with suppress(OSError), os.scandir(folder or ".") as files:
        for file in files:
            if os.path.splitext(file.name)[0].lower() == stem and file.is_file():
                return file.path
    return None


def is_number(name: str) -> bool:
    """Whether a file name is a whole number in ASCII digits; `isdigit` alone would accept ²."""
    return name.isascii() and name.isdigit()


def whole_numbers(texts: "np.ndarray") -> "np.ndarray":
    """Texts, (N,) object: int64 if all are whole numbers without leading zeros, else unchanged."""
    plain = all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) for text in texts)
    return texts.astype("int64") if plain else texts


def require_writable(*folders: Path) -> None:
    """Raise a UserError if a folder is not writable, before hours of computation."""
    for folder in folders:
        probe = folder / f".writable-{os.getpid()}"  # other seeds may check at the same time
        write_atomically(probe, b"")
        probe.unlink()


def hold_lock(path: Path, sentence: str) -> None:
    """Lock a file until this process ends, however it ends.

    Raises:
        UserError: another process holds the lock; the message is `sentence`.
    """
    # A record lock, since the loaders' workers would inherit an flock, and they outlive a killed
    # process by a moment.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is None:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(sentence) from error
        # else the file system does not support locks; the user must avoid concurrent runs


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait for a folder's lock and hold it; the system releases it if the process dies.

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
                f"{folder} cannot be written and locked ({error.strerror}); check the permissions, "
                "link it to another disk, or use --cache-size 0"
            ) from error
        yield


def wait_for(lock: object, folder: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another process to fill {folder}")
        fcntl.flock(lock, fcntl.LOCK_EX)
