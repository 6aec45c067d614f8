import os
from pathlib import Path

import pytest

from pylon.prediction.inputs import find_images
from pylon.system.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in (
        "in/a.png", "in/b.JPG", "in/c.tiff", "in/d.txt", "in/.hidden.png", "in/deep/er/a.png",
        "in/.git/x.png", "in/x.png/y.png", "other/a.png",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


def found(folder: Path, *given: str) -> tuple[str, list[str], dict[str, str]]:
    answer = find_images([folder / each for each in given], folder / "out")
    return os.path.relpath(answer.folder, folder), answer.images, answer.faults


INSIDE = ["a.png", "b.JPG", "c.tiff", "deep/er/a.png", "x.png/y.png"]


def test_folders_are_searched(folder):
    assert found(folder, "in") == ("in", INSIDE, {})
    assert found(folder, "in/", "in/a.png", "in") == ("in", INSIDE, {})


def test_images_of_several_folders_do_not_meet(folder):
    both = [*(f"in/{name}" for name in INSIDE), "other/a.png"]
    assert found(folder, "other", "in") == (".", both, {})
    assert found(folder, "in/a.png", "other/a.png") == (".", ["in/a.png", "other/a.png"], {})


def test_files_are_taken_whatever_their_name(folder):
    assert found(folder, "in/d.txt", "in/.hidden.png") == ("in", [".hidden.png", "d.txt"], {})


def test_folder_without_images_and_missing_file(folder):
    (folder / "none").mkdir()
    where, images, faults = found(folder, "none", "in/a.png", "nowhere.png")
    assert where == "."
    assert images == ["in/a.png"]
    assert sorted(faults) == ["none", "nowhere.png"]
    assert f"{folder / 'none'} has no images" in faults["none"]
    assert "nowhere.png cannot be read (No such file or directory)" in faults["nowhere.png"]


def test_a_linked_folder_is_searched_once(folder):
    os.symlink(folder / "other", folder / "in/deep/link")
    os.symlink(folder / "in", folder / "in/deep/circle")
    os.symlink(folder / "in/deep/er", folder / "in/aa")  # before the folder itself
    os.symlink(folder / "in", folder / "other/back")
    os.symlink(folder / "other/a.png", folder / "in/z.png")
    assert found(folder, "in")[1] == sorted([*INSIDE, "deep/link/a.png", "z.png"])
    # `other`, now under its own name, and `in`, which is linked there
    both = found(folder, "other", "in/deep", "in")
    inside = [f"in/{name}" for name in (*INSIDE, "z.png")]
    assert both == (".", sorted([*inside, "other/a.png"]), {})


def test_folder_of_results_behind_a_link_is_left_out(folder):
    (folder / "out/overlays").mkdir(parents=True)
    (folder / "out/overlays/a.png.png").write_text("")
    os.symlink(folder / "out", folder / "in/results")
    assert found(folder, "in")[1] == INSIDE
    faults = found(folder, "out/overlays", "in")[2]
    assert "is no result of predict.py" in faults["out/overlays"]


def test_folder_of_other_results_is_left_out(folder):
    (folder / "in/predictions/overlays").mkdir(parents=True)
    (folder / "in/predictions/overlays/a.png.png").write_text("")
    (folder / "in/predictions/.progress-ab-0.sqlite").write_text("")
    assert found(folder, "in")[1] == INSIDE


def test_path_that_the_system_refuses(folder):
    _, images, faults = found(folder, "in/" + "a" * 300, "in/a.png")
    assert images == ["a.png"]
    assert "cannot be read (File name too long)" in faults["a" * 300]


def test_files_of_other_kinds_are_counted(folder):
    for name in ("a.HEIC", "b.heic", "deep/c.heic", "DICOMDIR", "README", "e.BMP", "f.webp"):
        (folder / "in" / name).write_text("")
    answer = find_images([folder / "in", folder / "in/deep"], folder / "out")
    assert answer.images == sorted([*INSIDE, "e.BMP", "f.webp"])
    assert answer.note == "5 files of other kinds left out (.heic 3, no ending 1, .txt 1)"
    assert find_images([folder / "other"], folder / "out").note == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_named(folder):
    (folder / "in/deep").chmod(0)
    _, images, faults = found(folder, "in")
    (folder / "in/deep").chmod(0o700)
    assert "deep/er/a.png" not in images
    assert "cannot be read (Permission denied)" in faults["deep"]


@pytest.mark.parametrize("out", ["in", "in/results", "in/deep/../new"])
def test_results_inside_an_input_are_refused(folder, out):
    with pytest.raises(UserError, match=r"--out .* is in the folder .*in, where"):
        find_images([folder / "in"], folder / out)


def test_nothing_given():
    with pytest.raises(UserError, match="name the images or folders"):
        find_images([], Path("out"))
