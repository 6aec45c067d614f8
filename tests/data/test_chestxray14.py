"""NIH's files as they are distributed -> the two tables."""

import time

import pandas as pd
import pytest

from pylon.data.chestxray14 import PATHOLOGIES, PICKED, why_not_official
from pylon.data.radiographs import Radiographs, shared_patients
from pylon.data.sources import read_chestxray14


def test_tables(by_hand):
    (by_hand / "images").mkdir()
    (by_hand / "images_002" / "images").mkdir(parents=True)
    (by_hand / "images" / "00000001_000.png").touch()
    (by_hand / "images_002" / "images" / "00000002_000.png").touch()
    radiographs = read_chestxray14(by_hand)
    images = radiographs.images.set_index("image_id")
    assert list(radiographs.images.columns[4:]) == list(PATHOLOGIES)
    assert list(radiographs.class_names) == list(PATHOLOGIES)
    assert len(images) == 5  # 00000004_000.png is in neither list
    labelled = images.columns[images.loc["00000001_000.png"] == 1]
    assert list(labelled) == ["patient_id", "Mass", "Nodule"]
    assert images.loc["00000001_001.png", list(PATHOLOGIES)].sum() == 0
    assert set(images["split"][images["patient_id"] == 3]) == {"test"}
    splits = images.groupby("patient_id")["split"].unique()
    assert sorted(splits[1].tolist() + splits[2].tolist()) == ["train", "val"]
    first = by_hand / "images" / "00000001_000.png"
    second = by_hand / "images_002" / "images" / "00000002_000.png"
    assert images.loc["00000001_000.png", "path"] == str(first)
    assert images.loc["00000002_000.png", "path"] == str(second)


def test_boxes(by_hand):
    boxes = read_chestxray14(by_hand, with_boxes=True).boxes
    expected = [["00000003_000.png", "Infiltration", 10, 20, 30, 40]]
    assert boxes.to_numpy().tolist() == expected


def test_windows_line_ends_and_byte_order_mark(by_hand):
    expected = read_chestxray14(by_hand).images
    for path in by_hand.iterdir():
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    radiographs = read_chestxray14(by_hand, with_boxes=True)
    pd.testing.assert_frame_equal(radiographs.images, expected)
    assert len(radiographs.boxes) == 1


def test_splits_share_no_patients(phantom):
    images = read_chestxray14(phantom).images
    assert shared_patients(images, "val")[0] == 0
    patients = images.groupby("split")["patient_id"].agg(set)
    assert not patients["train"] & patients["test"]
    share = len(patients["val"]) / len(patients["val"] | patients["train"])
    assert 0.05 < share < 0.15


def test_official_files(official):
    start = time.perf_counter()
    radiographs = read_chestxray14(official, with_boxes=True)
    print(f"{time.perf_counter() - start:.2f} s")
    images = radiographs.images
    assert len(images) == 112_120
    assert (images["split"] == "test").sum() == 25_596
    assert (images["split"] != "test").sum() == 86_524
    assert images["patient_id"].nunique() == 30_805
    assert images.loc[images["split"] == "test", "patient_id"].nunique() == 2_797
    assert shared_patients(images, "val")[0] == 0
    boxes = radiographs.boxes
    assert len(boxes) == 984
    assert boxes["image_id"].nunique() == 880
    assert boxes["pathology"].nunique() == 8
    assert not boxes.duplicated(["image_id", "pathology"]).any()
    assert dict(zip(*images[["image_id", "Hernia"]].to_numpy()[:3].T, strict=True)) == {
        "00000001_000.png": 0,
        "00000001_001.png": 0,
        "00000001_002.png": 0,
    }
    assert {f"{name}.png" for name in PICKED} <= set(boxes["image_id"])


@pytest.fixture(scope="module")
def nih(official) -> Radiographs:
    return read_chestxray14(official, with_boxes=True)


def why_not(nih: Radiographs, images: pd.DataFrame, boxes: pd.DataFrame | None = None):
    """`why_not_official` of these tables, with NIH's boxes by default."""
    given = Radiographs(images, nih.boxes if boxes is None else boxes, nih.class_names)
    return why_not_official(given, with_boxes=boxes is not None)


def test_official_test_set_and_boxes_are_recognised(nih):
    images = nih.images
    boxes = nih.boxes
    assert why_not_official(nih) is None
    assert why_not_official(nih, with_boxes=True) is None
    shuffled = [table.sample(frac=1, random_state=0) for table in (images, boxes)]
    assert why_not(nih, *shuffled) is None
    assert "its boxes are not the 984" in why_not(nih, images, boxes[1:])
    first = images.index[images["split"] == "test"][0]
    assert "its test images are not those" in why_not(nih, images.drop(first), boxes)


def test_phantom_is_not_official(phantom):
    assert why_not_official(read_chestxray14(phantom)) is not None


def test_relabelled_test_images_are_not_official(nih):
    images = nih.images
    first, last = images.index[images["split"] == "test"][[0, -1]]
    for row, column in ((first, "Mass"), (last, "Hernia")):
        relabelled = images.copy()
        relabelled.loc[row, column] = 1 - relabelled.loc[row, column]
        assert why_not(nih, relabelled) == "its test labels are not NIH's"
    relabelled = images.copy()
    relabelled.loc[images["split"] != "test", "Mass"] = 0  # a user may correct these
    assert why_not(nih, relabelled) is None
