"""Progress on stderr, with and without a terminal."""

import re
import threading

import pytest
from tqdm import tqdm

from pylon.system import progress


class Listener:
    """A stand-in for stderr that can wait for output."""

    def __init__(self, terminal):
        self.text = ""
        self.terminal = terminal
        self.came = threading.Condition()

    def isatty(self):
        return self.terminal

    def write(self, text):
        with self.came:
            self.text += text
            self.came.notify_all()

    def flush(self):
        pass

    def wait_for_lines(self, count):
        with self.came:
            assert self.came.wait_for(lambda: self.text.count("\n") >= count, timeout=60)


def test_lines_are_printed_during_a_long_step(monkeypatch):
    log = Listener(terminal=False)
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)

    def steps():
        yield "a"
        log.wait_for_lines(3)  # printed during the second step
        yield "b"

    seen = []
    threads = set(threading.enumerate())  # those of other tests may end meanwhile
    lines = progress.track(steps(), "epoch 1", "batch", total=2)
    for step in lines:
        seen.append(step)
        lines.set_postfix({"loss": "0.5"}, refresh=False)
    assert seen == ["a", "b"]
    assert set(threading.enumerate()) <= threads  # the thread that prints has ended
    *others, last = log.text.splitlines()
    some_time = r"epoch 1: {} of 2 batches, \d+:\d\d, loss 0.5"
    assert any(re.fullmatch(some_time.format(1), line) for line in others)
    assert re.fullmatch(some_time.format(2), last)
    assert "\r" not in log.text


def test_short_stage_prints_one_line(monkeypatch):
    log = Listener(terminal=False)
    monkeypatch.setattr("sys.stderr", log)
    assert list(progress.track(["page"] * 3, "figs/all", "page")) == ["page"] * 3
    assert log.text == "figs/all: 3 of 3 pages, 0:00\n"
    list(progress.track(["image"] * 3, "predicting", "image", with_rate=True))
    last = log.text.splitlines()[-1]
    assert re.fullmatch(r"predicting: 3 of 3 images, 0:00, [\d.]+ images/s", last)
    assert list(progress.track([1], "silent", "page", shown=False)) == [1]
    assert "silent" not in log.text
    assert progress.SECONDS_BETWEEN_LINES <= 30


def test_interrupted_loop_prints_nothing_more(monkeypatch):
    log = Listener(terminal=False)
    monkeypatch.setattr("sys.stderr", log)

    def steps():
        yield "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(progress.track(steps(), "epoch 1", "batch", total=2))
    assert log.text == ""


def test_terminal_shows_a_bar(monkeypatch):
    log = Listener(terminal=True)
    monkeypatch.setattr("sys.stderr", log)
    bar = progress.track([1, 2], "epoch 1", "batch")
    assert isinstance(bar, tqdm)
    assert list(bar) == [1, 2]
    assert "\repoch 1" in log.text
