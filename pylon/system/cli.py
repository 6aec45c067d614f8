"""What the scripts share at their edge: options in; one clear sentence when something is wrong."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import tyro

from pylon.system.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
Options = TypeVar("Options")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a script as Ctrl-C does."""


def parse(options: type[Options]) -> Options:
    """Parse the command line into a dataclass; `--help` and what tyro refuses end here.

    Scripts call it before their imports of torch and the like, which take seconds.
    """
    # for downloaded weights, which other libraries open
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    return tyro.cli(options)


def start(
    main: Callable[[Options], None],
    options: Options,
    after_stop: str = "the same command starts anew",
) -> None:
    """Run `main` on the options; a user's mistake exits with code 2.

    Ctrl-C and SIGTERM exit with 130 and 143, after a line with what `after_stop` says.
    """
    signal.signal(signal.SIGTERM, terminate)
    try:
        main(options)
    except UserError as error:
        # Raised in a loader's worker, the error arrives with the worker's traceback in front.
        sentence = str(error).splitlines()[-1]
        fail(sentence.removeprefix(f"{UserError.__module__}.UserError: "))
    except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.EMFILE:
            fail("too many files are open; lower --num-workers, or raise the limit (ulimit -n)")
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported here
            fail("the GPU has too little memory for this; lower --batch-size")
        if "DataLoader worker" not in str(error):
            raise
        # SIGTERM to all processes, as by `timeout`, and a worker was quicker
        if str(error).endswith("Terminated. "):
            stop(143, after_stop)
        fail(
            "a process that reads images was killed, maybe for want of (shared) memory; "
            "lower --num-workers"
        )
    except KeyboardInterrupt as error:
        stop(143 if isinstance(error, Terminated) else 130, after_stop)


def stop(code: int, after_stop: str) -> NoReturn:
    """Say how to go on and end at once: no file is ever half written, so nothing needs cleaning."""
    print(f"\nstopped; {after_stop}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def terminate(_number: int, _frame: Any) -> None:
    raise Terminated


def require_at_least(options: Any, **lows: int) -> None:
    """Raise a UserError that names the first option below its bound; None has not been given."""
    for name, low in lows.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"{flag(name)} must be at least {low}, not {value}")


def flag(name: str) -> str:
    """`--up-layers` of `up_layers`."""
    return f"--{name.replace('_', '-')}"


def check_name(name: str, option: str = "--name") -> None:
    """Raise a UserError if the name of an experiment is not the plain name of a folder."""
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"{option} {name!r} must be the plain name of a folder")


def fail(sentence: str) -> NoReturn:
    """Print one sentence to stderr and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
