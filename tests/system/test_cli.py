"""Command line of the scripts: options, and one sentence and an exit code for an error."""

import errno
import gc
import io
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from conftest import ROOT

from pylon.system.cli import LAUNCHED, check_name, parse, require_at_least, start
from pylon.system.errors import UserError


@dataclass
class Options:
    up_layers: int = 1
    batch_size: int | None = None


@pytest.fixture(autouse=True)
def process_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    gc.unfreeze()
    gc.enable()


def ending_of(error: BaseException, capsys) -> tuple[int, str]:
    """Exit code and stderr of a script that raises an error."""

    def main(_):
        raise error

    with pytest.raises(SystemExit) as stopped:
        start(main, Options())
    return stopped.value.code, capsys.readouterr().err


def test_options_are_parsed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--up-layers", "2"])
    assert parse(Options) == Options(up_layers=2)


def test_garbage_is_not_collected_between_parsing_and_start(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    options = parse(Options)
    assert not gc.isenabled()
    frozen = gc.get_freeze_count()
    start(lambda _: None, options)
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_user_error_is_one_sentence(capsys):
    assert ending_of(UserError("--lr is too low"), capsys) == (2, "error: --lr is too low\n")
    worker = "Caught UserError in DataLoader worker process 0.\nTraceback ..\n"
    error = UserError(f"{worker}pylon.system.errors.UserError: a.png cannot be read")
    assert ending_of(error, capsys) == (2, "error: a.png cannot be read\n")


def test_full_shared_memory(capsys):
    reason = "No space left on device (28)"
    error = RuntimeError(f"unable to write to file </torch_7_8_9>: {reason}")
    assert ending_of(error, capsys) == (
        2,
        "error: processes that read images cannot share memory: /dev/shm cannot be written "
        f"({reason}); mend that, or use --num-workers 0\n",
    )


def test_letters_that_the_terminal_lacks_are_written_out(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    parse(Options)
    print("結節 Größe")
    terminal.flush()
    assert terminal.buffer.getvalue() == rb"\u7d50\u7bc0 Gr\xf6\xdfe" + b"\n"


@pytest.mark.parametrize(
    ("name", "value", "lacking"),
    [("WORLD_SIZE", "2", "RANK"), ("RANK", "1", "WORLD_SIZE"), ("LOCAL_RANK", "0", "RANK")],
)
def test_variables_of_torchrun_that_are_not_its_own(monkeypatch, capsys, name, value, lacking):
    for each in LAUNCHED:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        start(lambda _: None, Options())
    assert stopped.value.code == 2
    expected = f"error: the environment has {name}={value}, but no {lacking}: start several"
    assert capsys.readouterr().err.startswith(expected)
    for each in LAUNCHED:  # those of torchrun
        monkeypatch.setenv(each, "1")
    start(lambda _: None, Options())
    for each in LAUNCHED:
        monkeypatch.delenv(each)
    monkeypatch.setenv("WORLD_SIZE", "1")
    start(lambda _: None, Options())


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU is out of memory; lower --batch"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open; lower --num-work"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), "a.csv: No such file"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "lower --num-work",
        ),
    ],
)
def test_system_error_is_one_sentence(capsys, error, sentence):
    code, said = ending_of(error, capsys)
    assert code == 2
    assert said.startswith("error: ")
    assert sentence in said


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), RuntimeError("[gloo] a bug"), OSError("no file"), ValueError("a bug")],
)
def test_a_bug_is_not_hidden(error):
    def main(_):
        raise error

    with pytest.raises(type(error)):
        start(main, Options())


def test_stopped_while_it_imports():
    script = """
import os, signal, time
from dataclasses import dataclass
from pylon.system.cli import parse

@dataclass
class Options:
    seed: int = 0

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
parse(Options)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(5)
"""
    done = run(script)
    assert done.returncode == 130
    assert done.stderr == "\nstopped before it began\n"


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("raise KeyboardInterrupt", 130),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("raise RuntimeError('DataLoader worker is killed by signal: Terminated. ')", 143),
    ],
)
def test_stopped_script_says_how_to_continue(statement, code):
    script = f"""
import os, signal
from pylon.system.cli import start

def main(_):
    {statement}
    signal.pause()

start(main, None, after_stop="the same command resumes")
"""
    done = run(script)
    assert done.returncode == code
    assert done.stderr.endswith("stopped; the same command resumes\n")


GLOO = "[third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.7]:9"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("RuntimeError", GLOO),
        ("DistNetworkError", "Failed to recv, got 0 bytes. Connection was likely closed."),
        ("DistBackendError", "NCCL communicator was aborted on rank 0."),
    ],
)
def test_lost_process_is_one_sentence(kind, said):
    script = f"""
from pylon.system.cli import start

class DistNetworkError(RuntimeError): pass
class DistBackendError(RuntimeError): pass

def main(_):
    raise {kind}("{said}")

start(main, None, after_stop="the same command resumes")
"""
    done = run(script)
    assert done.returncode == 1
    *_, torch_says, sentence = done.stderr.splitlines()
    assert torch_says == said
    assert sentence.startswith("error: the connection to another process was lost: it has ended")
    assert sentence.endswith("; the same command resumes")
    assert "Traceback" not in done.stderr


def test_a_worker_that_ends_while_a_script_stops():
    script = """
import os, signal
from pylon.system.cli import start

def worker_ended(*_):
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

def main(_):
    signal.signal(signal.SIGCHLD, worker_ended)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGCHLD])  # both at once
    signal.pause()

start(main, None)
"""
    done = run(script)
    assert done.returncode == 143, done.stderr
    assert done.stderr.endswith("stopped; the same command starts over\n")
    assert "Traceback" not in done.stderr


def test_output_closed_by_its_reader_is_not_an_error():
    script = """
from pylon.system.cli import start

def main(_):
    for number in range(10**6):
        print(number)

start(main, None)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1


def run(script: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_bound_errors_name_the_option():
    require_at_least(Options(), up_layers=1, batch_size=2)  # batch_size is not given
    with pytest.raises(UserError, match=r"^--up-layers must be at least 2, not 1$"):
        require_at_least(Options(), up_layers=2)


def test_experiment_names_must_be_plain():
    check_name("pylon")
    for name in ("", "..", "a/b", "/a", "a/"):
        with pytest.raises(UserError, match=r"--compare '.*' must be the plain name of a folder"):
            check_name(name, "--compare")
