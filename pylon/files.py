"""Files that are either whole or not there."""

import os
from contextlib import suppress
from pathlib import Path

from pylon.cli import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename into place.

    Raises:
        UserError: it could not be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # where the folder itself cannot be written, the first error says so
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror}); what was there before is untouched. "
            "Make room or get leave to write, then run the same command again"
        ) from error


def require_writable(*folders: Path) -> None:
    """Raise a UserError if a file cannot be written into one of the folders, before hours are spent on its contents."""
    for folder in folders:
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
