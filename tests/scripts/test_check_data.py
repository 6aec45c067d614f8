"""tools/check_data.py, as a user runs it."""

import gzip
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import HEIGHT, IMAGES, WIDTH, run_script, sentence_of

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.sources import read_chestxray14


def check(data, code=0):
    options = ("--data", data, "--num-workers", 0)
    return run_script("tools/check_data.py", *options, cwd=data.parent, code=code)


def counts_of(done):
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [line.strip("|").split("|") for line in lines]
    return {row[0].strip(): row[1].strip() for row in rows}


def test_complete_data_is_ready(phantom):
    done = check(phantom)
    assert done.stdout.endswith("\nready\n")
    counts = counts_of(done)
    assert counts["images in the lists"] == str(IMAGES)
    assert (
        counts["images missing"]
        == counts["images unreadable"]
        == counts["duplicate file names"]
        == "0"
    )
    assert "matches NIH" not in done.stdout


def test_all_faults_are_listed_at_once(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    train, test = (
        (data / f"{name}_list.txt").read_text().split() for name in ("train_val", "test")
    )
    (data / "images" / train[0]).unlink()
    (data / "images" / train[1]).write_bytes(b"")
    cut = data / "images" / train[2]
    cut.write_bytes(cut.read_bytes()[:500])
    cv2.imwrite(str(data / "images" / train[3]), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    cv2.imwrite(str(data / "images" / train[4]), np.zeros((64, 128), np.uint8))
    cv2.imwrite(str(data / "images" / train[5]), np.zeros((15, 128), np.uint8))
    (data / "images_001/images").mkdir(parents=True)
    shutil.copy(data / "images" / train[6], data / "images_001/images")
    # a patient of both lists
    (data / "train_val_list.txt").write_text("\n".join(train[:-1]))
    (data / "test_list.txt").write_text("\n".join([*test, train[-1]]))
    header, *boxes = (data / "BBox_List_2017.csv").read_text().splitlines()
    image = boxes[0].split(",")[0]
    ours = [f"{image},Mass,90,2,7,4", f"{image},Edema,1,2,3,4", f"{train[8]},Mass,1,2,3,4"]
    (data / "BBox_List_2017.csv").write_text("\n".join([header, *ours, *boxes]))
    done = check(data, code=2)
    assert "is not ready; fix what is listed above" in sentence_of(done)
    for sentence in (
        f"{train[0]} is missing",
        f"{train[1]} cannot be read as an image",
        f"{train[2]} cannot be read as an image",
        f"{train[5]} is 128 x 15 pixels, too small",
        f"note: {train[3]} is not greyscale",
        f"note: {train[4]} is not {WIDTH} x {HEIGHT}, the most common size",
        f"{train[6]} is in more than one folder",
        f"the box of {image}, Mass, reaches beyond the image ({WIDTH} x {HEIGHT})",
        f"{image} has a box of Edema but not that label",
        f"note: {train[8]} is in BBox_List_2017.csv but not in the test list",
        "1 patients are in both the test list and training",
    ):
        assert sentence in done.stdout, sentence
    counts = counts_of(done)
    assert (
        counts["images missing"],
        counts["images unreadable"],
        counts["images not greyscale"],
    ) == (
        "1",
        "3",
        "1",
    )


def test_first_fault_of_the_lists_is_reported(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    (data / "BBox_List_2017.csv").unlink()
    done = check(data, code=2)
    assert "1. " + str(data / "BBox_List_2017.csv") + " is missing" in done.stdout
    assert counts_of(done)["images missing"] == "0"
    (data / "train_val_list.txt").write_text((data / "train_val_list.txt").read_text().split()[0])
    assert "must contain at least 2 patients" in sentence_of(check(data, code=2))


def test_nih_lists_are_recognised(shared, tmp_path):
    for path in (shared / "nih14" / "official").glob("*.gz"):
        (tmp_path / path.stem).write_bytes(
            gzip.decompress(path.read_bytes()).replace(b"\n", b"\r\n")
        )
    # NIH's own list is sorted, the copy is not
    names = (tmp_path / "test_list.txt").read_text().split()
    (tmp_path / "test_list.txt").write_text("\n".join(sorted(names)))
    done = check(tmp_path, code=2)
    assert done.stdout.count("(matches NIH)") == 4
    assert "00000001_000.png and 112119 more are missing" in done.stdout
    for what in (
        "images in the lists",
        "to train and validate on",
        "to test on",
        "patients",
        "boxes",
    ):
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {what} "))
        _, _, here, theirs, _ = row.split("|")
        assert here == theirs


def test_shortcuts_are_scored_instead_of_checking(phantom):
    cwd = phantom.parent
    options = ("--data", phantom, "--num-workers", 2, "--shortcuts")
    done = run_script("tools/check_data.py", *options, cwd=cwd)
    assert "left out view: " in done.stdout  # the phantom stands
    assert "by sex, age, sharpness, border, intensity:" in done.stdout
    assert "classes, " in done.stderr
    assert done.stdout.count(": too few; its rarer label is that of ") == 13  # of so few images
    assert "\nready\n" not in done.stdout
    scores = pd.read_csv(cwd / "csv/shortcuts.csv", index_col="class")
    assert scores.index.tolist() == [*PATHOLOGIES, "macro"]
    assert f"| {scores['auroc']['macro']:.3f} (" in done.stdout

    # one column of NIH's, into another file
    options = (*options, "--columns", "Follow-up #", "--out", "other.csv", "--num-workers", 0)
    done = run_script("tools/check_data.py", *options, cwd=cwd)
    assert "by Follow-up #, sharpness, border, intensity:" in done.stdout
    assert "by Follow-up #" in pd.read_csv(cwd / "other.csv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--columns", "view"), "--columns and --out are for --shortcuts"),
        (("--out", "a.csv"), "--columns and --out are for --shortcuts"),
        (("--shortcuts", "--boxes", "b.csv"), "--shortcuts does not use --boxes"),
        (("--shortcuts", "--columns", "weight"), "has no column 'weight', which --columns asks"),
    ],
)
def test_options_that_do_not_fit_shortcuts_are_refused(phantom, options, words):
    done = run_script(
        "tools/check_data.py", "--data", phantom, *options, cwd=phantom.parent, code=2
    )
    assert words in sentence_of(done)


LAYOUTS = {
    "jpg": ("images/{}.jpg", "but the lists name {}.png: convert them to PNG"),
    "capitals": ("images/{}.PNG", "but the lists name {}.png: rename such files"),
    "nested": ("images/images/{}.png", "move the images of its folder into {data}/images"),
    "beside the lists": ("{}.png", "move the images of its folder into {data}/images"),
    "nested archives": ("images_003/images/images/{}.png", "move the images of its folder into"),
    "nothing": (None, "unpack all of NIH's image archives there"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_in_the_place_of_images_is_named(by_hand, layout):
    place, cure = LAYOUTS[layout]
    stem = "00000001_000"
    if place is not None:
        file = by_hand / place.format(stem)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    radiographs = read_chestxray14(by_hand)
    where, _, said = radiographs.if_missing.partition("; ")
    assert where == f"are missing from {by_hand}/images"
    assert cure.format(stem, data=by_hand) in said
    assert (place is None) or f"{file} lies there" in said
    done = check(by_hand, code=2)
    assert said in done.stdout


def test_boxes_are_checked_in_whole_pixels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((24, 32), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((24, 32), np.uint8) + 9)
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((24, 32), np.uint8) + 99)
    text = "path,split,Mass\na.png,test,1\nb.png,train,1\nc.png,val,0\n"
    (tmp_path / "my.csv").write_text(text)
    options = ("--table", tmp_path / "my.csv", "--boxes", tmp_path / "boxes.csv")
    # 26.9 + 5.6 are more than 32, but eval_loc.py takes 26 + 5
    for box, code in (("26.9,3,5.6,4", 0), ("26.9,3,6.6,4", 0), ("26.9,3,7.6,4", 2)):
        (tmp_path / "boxes.csv").write_text(f"path,class,x,y,w,h\na.png,Mass,{box}\n")
        done = run_script("tools/check_data.py", *options, cwd=tmp_path, code=code)
        assert ("reaches beyond the image (32 x 24)" in done.stdout) == (code == 2)
