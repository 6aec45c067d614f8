"""What the four scripts share at their edge: options in, one clear sentence out when something is wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro


class UserError(ValueError):
    """A mistake that a user can mend: one sentence that names the file or the option, and the cure."""


def run(main: Callable[[Any], None], options: type) -> None:
    """Parse the command line into `options` and run `main` on it; a user's mistake exits with code 2."""
    parsed = tyro.cli(options)
    try:
        main(parsed)
    except UserError as error:
        # Raised in a loader's worker, the error arrives with the worker's traceback in front of its sentence.
        sentence = str(error).splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
        fail(sentence)
    except torch.OutOfMemoryError:
        fail("the GPU has too little memory for this; lower --batch-size")
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last finished epoch or starts anew", file=sys.stderr)
        sys.exit(130)


def require_at_least(options: Any, **lows: int) -> None:
    """Raise a UserError that names the first option below its bound; one that is None has not been given."""
    for name, low in lows.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, not {value}")


def check_name(name: str) -> None:
    """Raise a UserError if the name of an experiment is not the plain name of a folder."""
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"--name {name!r} must be the plain name of a folder")


def fail(sentence: str) -> None:
    """Print one sentence to stderr and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
