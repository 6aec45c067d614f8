"""Boxes of a table as csv and as COCO: read as written, or refused in a sentence."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import write_coco

from pylon.data.checks import select_boxed
from pylon.data.sources import read_radiographs
from pylon.options import DataOptions
from pylon.system.errors import UserError

TABLE = """\
path,split,Mass,Nodule
images/1.png,train,1,0
images/2.png,test,1,1
images/3.png,test,0,1
other/3.png,val,0,1
"""
BOXES = """\
path,class,x,y,w,h
images/1.png,Mass,1,2,3,4
images/2.png,Mass,10.9,20,30.5,4
images/2.png,Mass,40,20,5,6
images/2.png,Nodule,1e1,0,1,1
"""
COCO = {
    "images": [{"id": 1, "file_name": "2.png"}, {"id": "b", "file_name": "images/3.png"}],
    "categories": [{"id": 7, "name": "Mass"}, {"id": 8, "name": "Nodule"}],
    "annotations": [
        {"image_id": 1, "category_id": 7, "bbox": [10.9, 20, 30.5, 4]},
        {"image_id": "b", "category_id": 8, "bbox": [0, 0, 60, 50], "iscrowd": 0, "area": 3000},
    ],
}


@pytest.fixture
def folder(tmp_path):
    for name in ("images/1.png", "images/2.png", "images/3.png", "other/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 60), np.uint8))
    (tmp_path / "my.csv").write_text(TABLE)
    return tmp_path


def read(folder: Path, boxes: str | dict, classes=()):
    """Write boxes, as csv or COCO, and read them."""
    is_csv = isinstance(boxes, str)
    path = folder / ("boxes.csv" if is_csv else "boxes.json")
    path.write_text(boxes if is_csv else json.dumps(boxes))
    options = DataOptions(table=folder / "my.csv")
    return read_radiographs(options, classes, boxes=path, with_boxes=True)


def test_boxes_of_test_images_are_read_in_whole_pixels(folder):
    data = read(folder, BOXES)
    assert data.boxes.to_numpy().tolist() == [
        ["images/2.png", "Mass", 10, 20, 30, 4],
        ["images/2.png", "Mass", 40, 20, 5, 6],
        ["images/2.png", "Nodule", 10, 0, 1, 1],
    ]
    assert sorted(data.list_sha256) == ["boxes.csv", "my.csv"]
    assert select_boxed(data)["image_id"].tolist() == ["images/2.png"]


def test_boxes_of_a_coco_file(folder):
    data = read(folder, COCO)
    assert data.boxes.to_numpy().tolist() == [
        ["images/2.png", "Mass", 10, 20, 30, 4],  # found by the end of its path
        ["images/3.png", "Nodule", 0, 0, 60, 50],
    ]
    assert data.boxes_from == f"{folder}/boxes.json"


def test_images_have_several_names(folder):
    """Absolute, through a link, or only its end."""
    (folder / "link").symlink_to(folder / "images")
    names = [folder / "images/2.png", "link/2.png", "2.png"]
    rows = [f"{name},Mass,{k},2,3,4" for k, name in enumerate(names)]
    data = read(folder, "\n".join(["path,class,x,y,w,h", *rows]))
    assert data.boxes["image_id"].tolist() == ["images/2.png"] * 3


def test_the_end_of_a_path_begins_at_a_folder(folder):
    """a/1.png is the end of deep/a/1.png, and no more than letters of deep/xa/1.png."""
    for name in ("deep/a/1.png", "deep/xa/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((50, 60), np.uint8))
    lines = ["path,split,Mass,Nodule", "deep/xa/1.png,test,1,0", "deep/a/1.png,test,1,0"]
    (folder / "my.csv").write_text("\n".join(lines))
    data = read(folder, "path,class,x,y,w,h\na/1.png,Mass,1,2,3,4\n")
    assert data.boxes["image_id"].tolist() == ["deep/a/1.png"]


def test_boxes_of_other_classes_are_left_out_with_a_note(folder):
    data = read(folder, BOXES, ["Nodule"])
    assert data.boxes["pathology"].tolist() == ["Nodule"]
    note = "boxes.csv: boxes of Mass are left out, which are not classes here"
    assert note in data.notes[-1]


def test_boxes_outside_their_image_are_refused(folder):
    data = read(folder, BOXES.replace("40,20,5,6", "56,20,5,6"))
    said = r"boxes.csv: the box of images/2.png, Mass, reaches beyond the image \(60 x 50\)"
    with pytest.raises(UserError, match=said):
        select_boxed(data)
    data = read(folder, BOXES.partition("images/2")[0])
    with pytest.raises(UserError, match=r"boxes.csv has no boxes for the test images of .*my.csv"):
        select_boxed(data)


CSV_FAULTS = [
    ("images/1", "images/9", "the image 'images/9.png' fits none of"),
    ("images/1.png", "3.png", "the image '3.png' fits 2 images of"),
    (",Mass,1,", ",Mas,1,", "'Mas' is not a class of the table; did you mean 'Mass'?"),
    ("1,2,3,4", "1,2,3,0", "the box of images/1.png, Mass, is 1, 2, 3, 0; x and y must be at"),
    ("1,2,3,4", "1,2,0.9,4", "is 1, 2, 0.9, 4; x and y must be at least 0, w and h at least 1,"),
    ("1,2,3,4", "-1,2,3,4", "is -1, 2, 3, 4"),
    ("1,2,3,4", "a,2,3,4", "is a, 2, 3, 4; x and y"),
    ("1,2,3,4", "inf,2,3,4", "is inf, 2, 3, 4"),
    (
        "1,2,3,4",
        "1,2,1e9,4",
        "is 1, 2, 1e9, 4; x and y must be at least 0, w and h at least 1, all",
    ),
    ("40,20,5,6", "10.9,20,30.5,4", "images/2.png has the same box of Mass twice; remove one"),
    ("class,", "label,", "has no column 'class'; boxes need the columns path, class, x, y, w, h"),
    ("path,", "image,", "has no column 'path'"),
    (
        ",w,h",
        ",right,bottom",
        "has no column 'w'; boxes need the columns path, class, x, y, w, h (w",
    ),
]


@pytest.mark.parametrize(("old", "new", "sentence"), CSV_FAULTS)
def test_faulty_boxes_are_refused(folder, old, new, sentence):
    assert BOXES.count(old) >= 1
    with pytest.raises(UserError) as caught:
        read(folder, BOXES.replace(old, new))
    assert str(caught.value).startswith(f"{folder}/boxes.csv")
    assert sentence in str(caught.value)


def coco(part: str, number: int = 0, **changes):
    """COCO with one object changed; a value of None removes the key."""
    changed = {**COCO, part: [dict(each) for each in COCO[part]]}
    changed[part][number] |= changes
    for key in [key for key, value in changes.items() if value is None]:
        del changed[part][number][key]
    return changed


COCO_FAULTS = [
    ({**COCO, "annotations": [{"keypoints": [1, 2, 2]}]}, "is a COCO file of keypoints; boxes are"),
    (coco("images", 1, file_name="2.png"), "has the image 2.png twice; give each image one entry"),
    (coco("images", 1, id=1), "has two images of the id 1; correct one"),
    (coco("images", 0, file_name=None), "each of the images must have 'file_name'; add it"),
    (
        coco("images", 0, width=120, height=100),
        "says that 2.png has 120 x 100 pixels, but the file",
    ),
    (
        coco("images", 0, width=60, height=60),
        "says that 2.png has 60 x 60 pixels, but the file has",
    ),
    (
        coco("images", 0, width=50, height=50),
        "says that 2.png has 50 x 50 pixels, but the file has",
    ),
    (
        coco("images", 0, width=50, height=60),
        "says that 2.png has 50 x 60 pixels, but the file has",
    ),
    (coco("annotations", 0, category_id=9), "annotation 1 has the category_id 9, which is not in"),
    (coco("annotations", 1, image_id=3), "annotation 2 has the image_id 3, which is not in the"),
    (coco("annotations", 1, image_id=None), "annotation 2 has the image_id None"),
    (coco("annotations", 0, image_id={"a": [1]}), "annotation 1 has the image_id {'a': [1]}"),
    (coco("annotations", 0, bbox=[1, 2, 3]), "annotation 1 has no bbox of four numbers; correct"),
    (coco("annotations", 0, bbox=["1", 2, 3, 4]), "annotation 1 has no bbox of four numbers"),
    (coco("annotations", 0, bbox=[1, 2, 3, 10**400]), "annotation 1 has no bbox of four numbers"),
    (coco("annotations", 0, bbox=None), "annotation 1 has no bbox of four numbers"),
    (
        coco("annotations", 0, bbox=[1, 2, 3, float("nan")]),
        "annotation 1 has no bbox of four numbers",
    ),
    (coco("categories", 0, name="Mas"), "'Mas' is not a class of the table"),
    ({"images": [], "annotations": []}, "is not a COCO file: it has no list 'categories'"),
    ({**COCO, "images": {"1": "a"}}, "is not a COCO file: it has no list 'images'"),
    ({**COCO, "annotations": [7]}, "is not a COCO file: it has no list 'annotations'"),
]


@pytest.mark.parametrize(("content", "sentence"), COCO_FAULTS)
def test_faulty_coco_files_are_refused(folder, content, sentence):
    with pytest.raises(UserError) as caught:
        read(folder, content)
    assert str(caught.value).startswith(f"{folder}/boxes.json")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b"\xff\xfe{\0}\0", "is not a JSON file"),
        (b"[1]", "is not a COCO file"),
        (None, "cannot be read (No such file or directory); check its name"),
    ],
)
def test_files_that_are_not_coco(folder, content, sentence):
    path = folder / "boxes.json"
    if content is not None:
        path.write_bytes(content)
    options = DataOptions(table=folder / "my.csv")
    with pytest.raises(UserError) as caught:
        read_radiographs(options, boxes=path, with_boxes=True)
    assert f"{path} {sentence}" in str(caught.value)


EXAMPLES = 100 if "PYLON_LONG" in os.environ else 25  # each writes and reads files
ROW = st.tuples(
    st.sampled_from(["images/2.png", "images/3.png"]),
    st.sampled_from(["Mass", "Nodule"]),
    *(st.floats(0, 50).filter(np.isfinite) for _ in "xy"),
    *(st.floats(1, 50) for _ in "wh"),
)


@given(
    st.lists(
        ROW,
        min_size=1,
        max_size=8,
        unique_by=lambda row: tuple(map(str, row[:2])) + tuple(map(int, row[2:])),
    )
)
@settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_boxes_round_trip_in_both_forms(folder, rows):
    boxes = pd.DataFrame(rows, columns=["path", "class", "x", "y", "w", "h"])
    expected = [[*row[:2], *map(int, row[2:])] for row in rows]
    assert read(folder, boxes.to_csv(index=False)).boxes.to_numpy().tolist() == expected
    files = ["images/2.png", "images/3.png"]
    write_coco(folder / "coco.json", boxes, files, ["Mass", "Nodule"])
    as_coco = json.loads((folder / "coco.json").read_text())
    assert read(folder, as_coco).boxes.to_numpy().tolist() == expected
