"""Atomic writes, and locks that are released when their process dies."""

import os
import threading

import numpy as np
import pandas as pd
import pytest

from pylon.system.errors import UserError
from pylon.system.files import (
    as_text,
    hold_lock,
    is_number,
    locked,
    one_line,
    require_writable,
    write_atomically,
    write_csv,
    write_together,
)


def test_names_as_text():
    assert as_text(os.fsdecode(b"\xe9 \xc3\xa9.png")) == "\\xe9 é.png"
    assert one_line(os.fsdecode(b"a\nb\xe9\t.png is\r")) == "a\\nb\\xe9\\t.png is\\r"
    assert one_line("Größe 3 x 4, \\n") == "Größe 3 x 4, \\n"


def test_contents_in_parts(tmp_path):
    write_together({tmp_path / "a": iter([b"one", b"two"]), tmp_path / "b": b"three"})
    assert (tmp_path / "a").read_bytes() == b"onetwo"

    def parts():
        yield b"new"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a", parts())
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_files_and_then_renames_are_flushed(tmp_path, monkeypatch):
    """The files are flushed before they are renamed, and then the folder.

    Otherwise a power failure could undo the renames.
    """
    done = []
    fsync = os.fsync
    replace = os.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(str(paths[1])), replace(*paths)))
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    partial = [str(tmp_path / f".{name}.partial") for name in "ab"]
    assert done == [*partial, str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last"]


def test_failed_write_of_one_file_keeps_both(tmp_path, monkeypatch):
    write_together({tmp_path / "a": b"old", tmp_path / "b": b"old"})
    calls = []

    def full(_):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="b cannot be written"):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"old", b"old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_tables_read_back_exactly(tmp_path, rng):
    values = rng.normal(size=50).astype(np.float32).astype(np.float64)
    table = pd.DataFrame({"a": values, "b": np.where(values > 0, values, np.nan)})
    write_csv(tmp_path / "new" / "a.csv", table, index=False)
    again = pd.read_csv(tmp_path / "new" / "a.csv", dtype=str).astype(float)
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_is_number_accepts_ascii_digits_only():
    assert is_number("0")
    assert is_number("12")
    assert not any(map(is_number, ("", "\u00b2", "-1", "1.new", "one")))


def test_require_writable_reports_unwritable_folders(tmp_path):
    require_writable(tmp_path / "a", tmp_path / "b" / "c")
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/.writable-[0-9]+ cannot be written"):
        require_writable(tmp_path / "file")


def test_lock_is_exclusive(tmp_path):
    hold_lock(tmp_path / "lock", "held")
    child = os.fork()
    if child == 0:
        try:
            hold_lock(tmp_path / "lock", "held")
        except UserError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_locked_folder_is_waited_for(tmp_path):
    said = []
    waits = threading.Event()
    entered = threading.Event()

    def say(line):
        said.append(line)
        waits.set()

    def enter():
        with locked(tmp_path / "cache", say):
            entered.set()

    other = threading.Thread(target=enter, daemon=True)
    with locked(tmp_path / "cache", print):
        other.start()
        assert waits.wait(60)
        assert not entered.is_set()
    assert entered.wait(60)
    other.join()
    assert said == [f"waiting for another process to fill {tmp_path / 'cache'}"]
    with locked(tmp_path / "cache", say):
        assert len(said) == 1
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written and locked"):
        locked(tmp_path / "file", print).__enter__()
