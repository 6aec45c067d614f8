"""Error messages for inconsistent files."""

import shutil

import pytest

from pylon.data.checks import require_files, select_boxed
from pylon.data.radiographs import subject
from pylon.data.sources import read_chestxray14
from pylon.system.errors import UserError

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


def test_missing_images_are_counted_and_named(by_hand):
    (by_hand / "images").mkdir()
    (by_hand / "images_002" / "images").mkdir(parents=True)
    (by_hand / "images" / "00000001_000.png").touch()
    (by_hand / "images_002" / "images" / "00000002_000.png").touch()
    radiographs = read_chestxray14(by_hand)
    images = radiographs.images
    missing = "00000001_001.png, 00000003_000.png"
    with pytest.raises(UserError, match=rf"3 of 5 images are missing .*: {missing}"):
        require_files(images, radiographs)
    with pytest.raises(UserError, match="has no images of the split test; add some"):
        require_files(images[:0], radiographs)


def test_finding_may_have_two_boxes_but_not_the_same_box_twice(by_hand):
    path = by_hand / "BBox_List_2017.csv"
    header, box, _ = path.read_text().splitlines()
    path.write_text("\n".join([header, box, box.replace(",10.", ",90.")]))
    assert read_chestxray14(by_hand, with_boxes=True).boxes["x"].tolist() == [10, 90]
    path.write_text("\n".join([header, box, box]))
    sentence = r"00000003_000.png has the same box of Infiltration twice; remove one"
    with pytest.raises(UserError, match=sentence):
        read_chestxray14(by_hand, with_boxes=True)


LABELS = "Data_Entry_2017.csv"
TRAIN = "train_val_list.txt"
BOXES = "BBox_List_2017.csv"


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        (LABELS, "Finding Labels", "Findings", "has no column 'Finding Labels'"),
        (LABELS, "Hernia", "Hernie", "'Hernie' is not one of the findings"),
        (LABELS, "Hernia", "", "00000002_000.png is without a finding"),
        (LABELS, "00000002_000", "00000001_000", "00000001_000.png is in more than one row"),
        (LABELS, "00000002_000", "00000009_000", "00000002_000.png is in the lists .* but not in"),
        (LABELS, "0,2\n", "0,\n", "whole number as 'Patient ID'"),
        (BOXES, HEADER, "", "must be NIH's header"),
        (TRAIN, "00000002_000.png", "00000003_000.png", "00000003_000.png is both in"),
        (TRAIN, "00000002_000.png", "00000001_000.png", "00000001_000.png is named more than once"),
        (BOXES, "Infiltrate", "Infiltrat", "'Infiltrat' is not one of the findings"),
        (BOXES, "30.99", "-30", "box of 00000003_000.png, Infiltration"),
        (BOXES, "30.99", "", "box of 00000003_000.png, Infiltration"),
        (BOXES, "30.99", "wide", "x, y, w, h in its first six columns"),
    ],
)
def test_faulty_files_are_reported(by_hand, name, old, new, sentence):
    text = (by_hand / name).read_text()
    assert old in text
    (by_hand / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=sentence):
        read_chestxray14(by_hand, with_boxes=True)


def test_subject_of_one_and_of_several_names():
    assert subject(["a"]) == "a is"
    assert subject(["a", "b", "c"]) == "a and 2 more are"


def test_box_beyond_its_image(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    path = data / BOXES
    header, first, *rest = path.read_text().splitlines()
    name, label, *_ = first.split(",")
    path.write_text("\n".join([header, f"{name},{label},100,100,29,20,,,", *rest]))
    radiographs = read_chestxray14(data, with_boxes=True)
    with pytest.raises(UserError, match=f"box of {name}, .* beyond the image"):
        select_boxed(radiographs)
