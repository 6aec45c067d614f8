import os

import pytest
from entries import entry

from pylon.experiment.done import Progress, Recorder, file_of, line_of
from pylon.experiment.inputs import Found, fingerprint


def test_entries_are_read_back_in_any_order(tmp_path):
    recorder = Recorder(tmp_path, 0, 1)
    recorder.add([entry("b"), entry("a\n\udcff")], ["bad"])
    recorder.add([entry("c", 1 / 3)], [])
    progress = Progress(tmp_path)
    assert progress.run == 1
    assert progress.bad == {"bad"}
    images = ["c", "a\n\udcff", "b"]
    assert list(progress.entries(images)) == [entry("c", 1 / 3), entry("a\n\udcff"), entry("b")]


WHOLE = line_of(1, [entry("b")], [])


@pytest.mark.parametrize(
    "torn", [WHOLE[:30], WHOLE[:-1], WHOLE.replace(b"40", b"41"), bytes(50), b"[]\n", b"[" * 99999]
)
def test_torn_line_is_left_out_and_removed(tmp_path, torn):
    Recorder(tmp_path, 0, 1).add([entry("a")], [])
    path = tmp_path / ".progress-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    if torn != WHOLE[:-1]:
        path.write_bytes(whole + torn + WHOLE)  # nothing after it counts either
    assert list(Progress(tmp_path).places) == ["a"]
    Recorder(tmp_path, 0, 2)
    assert path.read_bytes() == whole


def test_later_run_counts_whatever_the_process(tmp_path):
    Recorder(tmp_path, 1, 1).add([entry("a", 0.1)], [])
    Recorder(tmp_path, 0, 2).add([entry("a", 0.2)], [])
    assert list(Progress(tmp_path).entries(["a"])) == [entry("a", 0.2)]


def test_images_left(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "images" / name).write_text(name)
    files = {name: fingerprint(str(tmp_path / "images" / name)) for name in "abcd"}
    entries = [entry(name)._replace(bytes=size, modified_ns=ns)
               for name, (size, ns) in files.items()]  # fmt: skip
    Recorder(tmp_path, 0, 1).add(entries, ["0"])
    (tmp_path / "overlays").mkdir()
    for name in ("a", "b", "d"):
        (tmp_path / f"overlays/{name}.png").write_text("")
    os.utime(tmp_path / "images/b", ns=(1, 1))
    found = Found(str(tmp_path / "images"), ["0", "a", "b", "c", "d", "e"], {})
    # 0 could not be read, b has changed, c has no picture, e is new
    assert Progress(tmp_path).left(found, ["overlays"]) == ["b", "c", "e", "0"]
    assert Progress(tmp_path).left(found, []) == ["b", "e", "0"]


def test_names_of_files(tmp_path):
    assert file_of(tmp_path, "overlays", "a/x.tif") == tmp_path / "overlays/a/x.tif.png"
    long = file_of(tmp_path, "maps", "b/" + "é" * 125 + ".png")
    assert len(os.fsencode(long.name)) <= 240
    assert long != file_of(tmp_path, "maps", "b/" + "é" * 124 + "f.png")
    long.parent.mkdir(parents=True)
    long.with_name(f".{long.name}.partial").write_text("")  # the file system accepts it
