"""Command line of the scripts: parse options, and report an error in one clear sentence."""

import errno
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import tyro

from pylon.system.errors import UserError
from pylon.system.files import one_line
from pylon.system.workers import end_with_parent

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
Track = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Options = TypeVar("Options")
NO_SHARED_MEMORY = (
    "processes that read images cannot share memory: /dev/shm cannot be written ({}); mend that, "
    "or use --num-workers 0"
)
# what torchrun tells each process
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which ends a script as Ctrl-C does."""


def parse(options: type[Options]) -> Options:
    """Parse the command line into a dataclass; exit on `--help` and on invalid options.

    Scripts call it before they import torch and other libraries that take seconds to load.
    """
    # Ctrl-C while the slow imports run; `start` takes over
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
    # letters that the terminal does not have, as of classes named in Chinese, are written out
    sys.stdout.reconfigure(errors="backslashreplace")
    # for downloaded weights, which other libraries load
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    parsed = tyro.cli(options)
    # looking for garbage among all that the slow imports create takes seconds; `start` resumes
    gc.disable()
    return parsed


def start(
    main: Callable[[Options], None],
    options: Options,
    after_stop: str = "the same command starts over",
) -> None:
    """Run `main` on the options; a user's mistake exits with code 2.

    Ctrl-C and SIGTERM exit with 130 and 143, the loss of another process with 1, after a line that
    ends with `after_stop`.
    """
    # what was imported stays until the end
    gc.freeze()
    gc.enable()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try_to_run(main, options)
    except (KeyboardInterrupt, RuntimeError) as error:
        code = code_of_signal(error)
        if code is not None:
            stop(code, f"\nstopped; {after_stop}")
        if not is_lost_connection(error):
            raise
        print(f"\n{one_line(str(error))}", file=sys.stderr)
        stop(
            1,
            "error: the connection to another process was lost: it has ended (then it says why), "
            f"was killed, or its computer is gone; {after_stop}",
        )


def try_to_run(main: Callable[[Options], None], options: Options) -> None:
    """Run `main` on the options; errors that a user can mend exit with code 2."""
    try:
        clean_environment()
        main(options)
    except UserError as error:
        # an error raised in a loader's worker is preceded by the worker's traceback
        sentence = str(error).rpartition(f"{UserError.__module__}.UserError: ")[-1]
        fail(one_line(sentence.rstrip("\n")))
    except BrokenPipeError:  # the output was closed by its reader, as by `| head`
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
            fail("the GPU is out of memory; lower --batch-size")
        if "</torch_" in str(error):  # a file of shared memory
            fail(NO_SHARED_MEMORY.format(str(error).rpartition(": ")[2].strip()))
        if "DataLoader worker" not in str(error) or code_of_signal(error) is not None:
            raise
        fail(
            "a process that reads images was killed, perhaps for lack of (shared) memory; "
            "lower --num-workers"
        )


def clean_environment() -> None:
    """Let the command line alone decide: remove what Accelerate reads from the environment.

    `accelerate launch` leaves such variables in notebooks and job scripts; one of them changes the
    number of steps, another one compiles the network.

    Raises:
        UserError: some of torchrun's variables are set, but not all of them.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    alone = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "-1"}  # of a single process
    odd = [name for name, value in alone.items() if os.environ.get(name, value) != value]
    lacking = [name for name in LAUNCHED if name not in os.environ]
    if odd and lacking:
        raise UserError(
            f"the environment has {odd[0]}={os.environ[odd[0]]}, but no {lacking[0]}: start "
            "several processes with torchrun, which sets both, or a single one after "
            f"`unset {odd[0]}`"
        )


def code_of_signal(error: BaseException) -> int | None:
    """The exit code for an error that a signal raised; None for other errors."""
    # SIGTERM was sent to all processes, as by `timeout`, and a worker ended first
    ended_worker = "DataLoader worker" in str(error) and str(error).endswith("Terminated. ")
    if isinstance(error, Terminated) or ended_worker:
        return 143
    return 130 if isinstance(error, KeyboardInterrupt) else None


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process is gone."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # of NCCL and of torchrun's store, whose classes need not be imported here
    if "DistBackendError" in kinds or "DistNetworkError" in kinds or "DistStoreError" in kinds:
        return True
    words = ("connection closed", "connection reset", "broken pipe", "timed out", "timeout")
    said = str(error).lower()
    return "gloo" in said and any(word in said for word in words)


def stop(code: int, sentence: str) -> NoReturn:
    """Print a sentence and exit at once; no cleanup, since no file is ever half written."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, ignore)
    print(sentence, file=sys.stderr, flush=True)
    sys.stdout.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def stop_at_once(_number: int, _frame: Any) -> NoReturn:
    stop(130, "\nstopped before it began")


def terminate(_number: int, _frame: Any) -> None:
    # workers end at the same moment, for which torch's handler would raise another error
    signal.signal(signal.SIGCHLD, ignore)
    raise Terminated


def ignore(_number: int, _frame: Any) -> None:
    """Handle a signal by doing nothing; SIG_IGN would print a warning if one has just arrived."""


def require_at_least(options: Any, **lows: int) -> None:
    """Raise a UserError that names the first option below its bound; None is not checked."""
    for name, low in lows.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"{flag(name)} must be at least {low}, not {value}")


def flag(name: str) -> str:
    """`--up-layers` of `up_layers`."""
    return f"--{name.replace('_', '-')}"


def check_name(name: str, option: str = "--name") -> None:
    """Raise a UserError if an experiment's name is not the plain name of a folder."""
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"{option} {name!r} must be the plain name of a folder")


def fail(sentence: str) -> NoReturn:
    """Print one sentence to stderr and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
