import os

import pytest
from entries import entry

from pylon.prediction import journal
from pylon.prediction.inputs import Found, fingerprint
from pylon.prediction.journal import Progress, Recorder, line_of, parse
from pylon.viewer.page import file_of


def test_entries_are_read_back_in_any_order(tmp_path):
    recorder = Recorder(tmp_path, "ab", 0, 1)
    recorder.add([entry("b"), entry("a\n\udcff")], ["bad"])
    recorder.add([entry("c", 1 / 3)], [])
    progress = Progress(tmp_path, "ab")
    assert progress.run == 1
    assert progress.bad == {"bad"}
    images = ["c", "a\n\udcff", "b"]
    assert list(progress.entries(images)) == [entry("c", 1 / 3), entry("a\n\udcff"), entry("b")]


WHOLE = line_of(1, [entry("b")], [])


@pytest.mark.parametrize(
    "torn", [WHOLE[:30], WHOLE[:-1], WHOLE.replace(b"40", b"41"), bytes(50), b"[]\n", b"[" * 99999]
)
def test_torn_line_is_left_out_and_removed(tmp_path, torn):
    Recorder(tmp_path, "ab", 0, 1).add([entry("a")], [])
    path = tmp_path / ".progress-ab-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    if torn != WHOLE[:-1]:
        path.write_bytes(whole + torn + WHOLE)  # nothing after it counts either
    assert list(Progress(tmp_path, "ab").places) == ["a"]
    Recorder(tmp_path, "ab", 0, 2)
    assert path.read_bytes() == whole


def test_later_run_counts_whatever_the_process(tmp_path):
    Recorder(tmp_path, "ab", 1, 1).add([entry("a", 0.1)], [])
    Recorder(tmp_path, "ab", 0, 2).add([entry("a", 0.2)], [])
    assert list(Progress(tmp_path, "ab").entries(["a"])) == [entry("a", 0.2)]


def test_progress_of_another_origin_does_not_count(tmp_path):
    Recorder(tmp_path, "cd", 0, 1).add([entry("a", 0.1)], ["b"])
    progress = Progress(tmp_path, "ab")
    assert (progress.places, progress.bad, progress.run) == ({}, set(), 0)


def test_image_that_has_become_unreadable_has_no_entry(tmp_path):
    Recorder(tmp_path, "ab", 0, 1).add([entry("a"), entry("b")], ["c"])
    Recorder(tmp_path, "ab", 0, 2).add([entry("c")], ["a"])
    progress = Progress(tmp_path, "ab")
    assert sorted(progress.places) == ["b", "c"]
    assert progress.bad == {"a"}


def test_entries_of_runs_that_alternate_are_parsed_once(tmp_path, monkeypatch):
    for run in (1, 2):
        names = [f"{k:03}" for k in range(run, 200, 2)]
        Recorder(tmp_path, "ab", 0, run).add([entry(name) for name in names], [])
    progress = Progress(tmp_path, "ab")
    lines = []
    monkeypatch.setattr(journal, "parse", lambda line: lines.append(line) or parse(line))
    assert [each.image for each in progress.entries(sorted(progress.places))] == [
        f"{k:03}" for k in range(1, 200)
    ]
    assert len(lines) == 2


def test_images_left(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "images" / name).write_text(name)
    files = {name: fingerprint(str(tmp_path / "images" / name)) for name in "abcd"}
    entries = [entry(name)._replace(bytes=size, modified_ns=ns)
               for name, (size, ns) in files.items()]  # fmt: skip
    Recorder(tmp_path, "ab", 0, 1).add(entries, ["0"])
    (tmp_path / "overlays").mkdir()
    for name in ("a", "b", "d"):
        (tmp_path / f"overlays/{name}.png").write_text("")
    os.utime(tmp_path / "images/b", ns=(1, 1))
    found = Found(str(tmp_path / "images"), ["0", "a", "b", "c", "d", "e"], {})
    # 0 could not be read, b has changed, c has no picture, e is new
    assert Progress(tmp_path, "ab").left(found, lambda _: ["overlays"]) == ["b", "c", "e", "0"]
    assert Progress(tmp_path, "ab").left(found, lambda _: []) == ["b", "e", "0"]


def test_names_of_files(tmp_path):
    assert file_of(tmp_path, "overlays", "a/x.tif") == tmp_path / "overlays/a/x.tif.png"
    long = file_of(tmp_path, "maps", "b/" + "é" * 125 + ".png")
    assert len(os.fsencode(long.name)) <= 240
    assert long != file_of(tmp_path, "maps", "b/" + "é" * 124 + "f.png")
    long.parent.mkdir(parents=True)
    long.with_name(f".{long.name}.partial").write_text("")  # the file system accepts it
