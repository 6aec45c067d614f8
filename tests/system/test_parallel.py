"""Workers that read files, and processes that train one network."""

import errno
import multiprocessing.synchronize

import pytest
import torch
from accelerate import Accelerator

from pylon.data.dataset import make_loader
from pylon.system import parallel
from pylon.system.errors import UserError
from pylon.system.parallel import look_at


@pytest.mark.parametrize("workers", [0, 2])
def test_look_at_keeps_the_order(workers):
    paths = [str(number) for number in range(70)]
    assert look_at(paths, float, workers, "counting") == list(map(float, paths))
    assert look_at([], float, workers, "counting") == []


def test_read_only_shared_memory_is_one_sentence(monkeypatch):
    def no_lock(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", no_lock)
    assert look_at(["1"], float, 0, "counting") == [1]
    expected = r"/dev/shm cannot be written \(Read-only file system\); .*--num-workers 0"
    with pytest.raises(UserError, match=expected):
        look_at(["1"], float, 1, "counting")
    with pytest.raises(UserError, match=expected):
        make_loader([1], 1, 1, False)


def test_each_epoch_and_process_has_its_own_random_numbers():
    def numbers(*key):
        parallel.seed_epoch(*key)
        return tuple(torch.rand(3).tolist())

    keys = [
        (seed, epoch, process)
        for seed in (0, 1, 2**32 - 1)
        for epoch in (1, 2)
        for process in (0, 1)
    ]
    with torch.random.fork_rng():
        assert len({numbers(*key) for key in keys}) == len(keys)
        assert numbers(0, 1, 0) == numbers(0, 1, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_look_at_raises_errors_of_workers(workers):
    with pytest.raises(UserError, match="b is bad"):
        look_at(["a", "b"], refuse, workers, "looking")


def refuse(path):
    if path == "b":
        raise UserError("b is bad")


def test_on_main_process_returns_results_and_raises_errors():
    accelerator = Accelerator(cpu=True)
    assert parallel.on_main_process(accelerator, lambda: 3) == 3

    def fail():
        raise UserError("no such file")

    with pytest.raises(UserError, match=r"^no such file$"):
        parallel.on_main_process(accelerator, fail)


def test_worker_ignores_a_closed_connection(capsys):
    for error in (EOFError(), ConnectionResetError(104, "Connection reset by peer")):
        parallel.show_unless_stopped(type(error), error, None)
    assert capsys.readouterr().err == ""
    parallel.show_unless_stopped(ValueError, ValueError("something else"), None)
    assert "something else" in capsys.readouterr().err
