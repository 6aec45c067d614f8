"""What the scripts share at their edge: options in, one clear sentence out when something is wrong."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import tyro


class UserError(ValueError):
    """A mistake that a user can mend: one sentence that names the file or the option, and the cure."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def run(main: Callable[[Any], None], options: type, after_stop: str = "the same command starts anew") -> None:
    """Parse the command line into `options` and run `main` on it; a user's mistake exits with code 2.

    Ctrl-C and SIGTERM exit with 130 and 143, after a line with what `after_stop` says.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # for downloaded weights, which other libraries open
    parsed = tyro.cli(options)
    signal.signal(signal.SIGTERM, terminate)
    try:
        main(parsed)
    except UserError as error:
        # Raised in a loader's worker, the error arrives with the worker's traceback in front of its sentence.
        sentence = str(error).splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
        fail(sentence)
    except torch.OutOfMemoryError:
        fail("the GPU has too little memory for this; lower --batch-size")
    except BrokenPipeError:  # whoever read what is printed has had enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.EMFILE:
            fail("too many files are open; lower --num-workers, or raise the limit (ulimit -n)")
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if str(error).endswith("Terminated. "):  # SIGTERM to all processes, as by `timeout`, and a worker was quicker
            stop(143, after_stop)
        fail("a process that reads images was killed, maybe for want of (shared) memory; lower --num-workers")
    except KeyboardInterrupt as error:
        stop(143 if isinstance(error, Terminated) else 130, after_stop)


def stop(code: int, after_stop: str) -> NoReturn:
    """Say how to go on and end at once: files are whole at every moment, and the loaders' clean-up would only show."""
    print(f"\nstopped; {after_stop}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def terminate(_number: int, _frame: Any) -> None:
    raise Terminated


def require_at_least(options: Any, **lows: int) -> None:
    """Raise a UserError that names the first option below its bound; one that is None has not been given."""
    for name, low in lows.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, not {value}")


def check_name(name: str, option: str = "--name") -> None:
    """Raise a UserError if the name of an experiment is not the plain name of a folder."""
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"{option} {name!r} must be the plain name of a folder")


def refuse(sentence: str) -> None:
    raise UserError(sentence)


def fail(sentence: str) -> None:
    """Print one sentence to stderr and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
