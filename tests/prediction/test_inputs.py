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
    assert images == ["in/a.png", "nowhere.png"]  # reading it will say that it is missing
    assert list(faults) == ["none"]
    assert f"{folder / 'none'} has no images" in faults["none"]


def test_links_are_followed_but_not_in_circles(folder):
    os.symlink(folder / "other", folder / "in/deep/link")
    os.symlink(folder / "in", folder / "in/deep/circle")
    os.symlink(folder / "in/deep/er", folder / "in/aa")  # before the folder itself
    os.symlink(folder / "in", folder / "other/back")
    os.symlink(folder / "other/a.png", folder / "in/z.png")
    linked = ["aa/a.png", "deep/link/a.png", "z.png"]
    assert found(folder, "in")[1] == sorted([*INSIDE, *linked])


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


def test_paths_that_the_system_refuses_are_left_to_reading(folder):
    assert found(folder, "in/" + "a" * 300, "in/a.png")[1] == ["a.png", "a" * 300]


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
