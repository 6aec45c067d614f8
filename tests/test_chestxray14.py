import shutil
import time

import pandas as pd
import pytest

from pylon.chestxray14 import (
    PATHOLOGIES,
    class_names,
    read_boxes,
    read_images,
    require_files,
    select_boxed,
    shared_patients,
    split_hash,
)
from pylon.cli import UserError


@pytest.fixture
def data(tmp_path):
    """Six images of four patients, written by hand."""
    (tmp_path / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID\n"
        "00000001_000.png,Mass|Nodule,0,1\n"
        "00000001_001.png,No Finding,1,1\n"
        "00000002_000.png,Hernia,0,2\n"
        "00000003_000.png,Infiltration,0,3\n"
        "00000003_001.png,Mass,1,3\n"
        "00000004_000.png,Edema,0,4\n"
    )
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000002_000.png")
    (tmp_path / "test_list.txt").write_text("00000003_000.png\n00000003_001.png\n")
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000003_000.png,Infiltrate,10.9,20.2,30.99,40,,,\n"
        "00000004_000.png,Mass,1,2,3,4,,,\n"
    )
    return tmp_path


def test_tables(data):
    (data / "images").mkdir()
    (data / "images_002" / "images").mkdir(parents=True)
    (data / "images" / "00000001_000.png").touch()
    (data / "images_002" / "images" / "00000002_000.png").touch()
    images = read_images(data).set_index("image_id")
    assert class_names(images.reset_index()) == list(PATHOLOGIES)
    assert len(images) == 5  # 00000004_000.png is in neither list
    assert list(images.columns[images.loc["00000001_000.png"] == 1]) == ["patient_id", "Mass", "Nodule"]
    assert images.loc["00000001_001.png", list(PATHOLOGIES)].sum() == 0
    assert set(images["split"][images["patient_id"] == 3]) == {"test"}
    splits = images.groupby("patient_id")["split"].unique()
    assert sorted(splits[1].tolist() + splits[2].tolist()) == ["train", "val"]
    assert images.loc["00000001_000.png", "path"] == str(data / "images" / "00000001_000.png")
    assert images.loc["00000002_000.png", "path"] == str(data / "images_002" / "images" / "00000002_000.png")
    with pytest.raises(UserError, match=r"3 of 5 images are missing .*: 00000001_001.png, 00000003_000.png"):
        require_files(images.reset_index(), data)


def test_boxes(data):
    boxes = read_boxes(data, read_images(data))
    assert boxes.to_numpy().tolist() == [["00000003_000.png", "Infiltration", 10, 20, 30, 40]]


def test_a_finding_may_have_two_boxes_but_not_the_same_twice(data):
    path = data / "BBox_List_2017.csv"
    header, box, _ = path.read_text().splitlines()
    path.write_text("\n".join([header, box, box.replace(",10.", ",90.")]))
    assert read_boxes(data, read_images(data))["x"].tolist() == [10, 90]
    path.write_text("\n".join([header, box, box]))
    with pytest.raises(UserError, match=r"00000003_000.png has the same box of Infiltration twice; remove one"):
        read_boxes(data, read_images(data))


def test_windows_line_ends_and_byte_order_mark(data):
    expected = read_images(data)
    for path in data.iterdir():
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    pd.testing.assert_frame_equal(read_images(data), expected)
    assert len(read_boxes(data, expected)) == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("Data_Entry_2017.csv", "Finding Labels", "Findings", "has no column 'Finding Labels'"),
        ("Data_Entry_2017.csv", "Hernia", "Hernie", "'Hernie' is none of the findings"),
        ("Data_Entry_2017.csv", "Hernia", "", "00000002_000.png is without a finding"),
        ("Data_Entry_2017.csv", "00000002_000", "00000001_000", "00000001_000.png is in more than one row"),
        ("Data_Entry_2017.csv", "00000002_000", "00000009_000", "00000002_000.png is in the lists .* no row of it"),
        ("Data_Entry_2017.csv", "0,2\n", "0,\n", "whole number as 'Patient ID'"),
        ("BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,\n", "", "must be NIH's header"),
        ("train_val_list.txt", "00000002_000.png", "00000003_000.png", "00000003_000.png is both in"),
        (
            "train_val_list.txt",
            "00000002_000.png",
            "00000001_000.png",
            "00000001_000.png is named more than once",
        ),
        ("BBox_List_2017.csv", "Infiltrate", "Infiltrat", "'Infiltrat' is none of the findings"),
        ("BBox_List_2017.csv", "30.99", "-30", "box of 00000003_000.png, Infiltration"),
        ("BBox_List_2017.csv", "30.99", "", "box of 00000003_000.png, Infiltration"),
        ("BBox_List_2017.csv", "30.99", "wide", "x, y, w, h in its first six columns"),
    ],
)
def test_bad_files(data, name, old, new, sentence):
    text = (data / name).read_text()
    assert old in text
    (data / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=sentence):
        read_boxes(data, read_images(data))


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt", "BBox_List_2017.csv"])
def test_missing_and_empty_files(data, name):
    text = (data / name).read_text()
    (data / name).write_text("")
    with pytest.raises(UserError, match=name):
        read_boxes(data, read_images(data))
    (data / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*https://"):
        read_boxes(data, read_images(data))
    (data / name).write_text(text)
    read_boxes(data, read_images(data))


def test_original_split_rules(data):
    def write(split, names):
        rows = [",".join([name, *("1" if c == "Mass" else "0" for c in PATHOLOGIES)]) for name in names]
        header = ",".join(["Image Index", *PATHOLOGIES])
        (data / f"original_split_{split}.csv").write_text("\n".join([header, *rows]) + "\n")

    write("train", ["00000001_000.png", "00000002_000.png"])
    with pytest.raises(UserError, match=r"original_split_val.csv is missing"):
        read_images(data)
    write("val", ["00000001_001.png", "00000004_000.png"])
    write("test", ["00000003_000.png"])
    images = read_images(data)
    assert images["split"].tolist() == ["train", "train", "val", "val", "test"]
    assert images["patient_id"].tolist() == [1, 2, 1, 4, 3]
    assert images["Mass"].all()
    assert not images["Hernia"].any()
    assert shared_patients(images, "val") == (1, 2)
    write("test", ["00000001_000.png"])
    with pytest.raises(UserError, match=r"00000001_000.png is in two of"):
        read_images(data)


def test_box_beyond_its_image(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    path = data / "BBox_List_2017.csv"
    header, first, *rest = path.read_text().splitlines()
    name, label, *_ = first.split(",")
    path.write_text("\n".join([header, f"{name},{label},100,100,29,20,,,", *rest]))
    images = read_images(data)
    with pytest.raises(UserError, match=f"box of {name}, .* beyond the image"):
        select_boxed(images, read_boxes(data, images), data)


def test_validation_is_disjoint_and_always_the_same(phantom):
    images = read_images(phantom)
    assert shared_patients(images, "val")[0] == 0
    patients = images.groupby("split")["patient_id"].agg(set)
    assert not patients["train"] & patients["test"]
    share = len(patients["val"]) / len(patients["val"] | patients["train"])
    assert 0.05 < share < 0.15
    assert split_hash(images) == split_hash(read_images(phantom))
    changed = images.copy()
    changed.loc[0, "Mass"] ^= 1
    assert split_hash(changed) != split_hash(images)


def test_official_files(official):
    start = time.perf_counter()
    images = read_images(official)
    boxes = read_boxes(official, images)
    print(f"{time.perf_counter() - start:.2f} s")
    assert len(images) == 112_120
    assert (images["split"] == "test").sum() == 25_596
    assert (images["split"] != "test").sum() == 86_524
    assert images["patient_id"].nunique() == 30_805
    assert images.loc[images["split"] == "test", "patient_id"].nunique() == 2_797
    assert shared_patients(images, "val")[0] == 0
    assert len(boxes) == 984
    assert boxes["image_id"].nunique() == 880
    assert boxes["pathology"].nunique() == 8
    assert not boxes.duplicated(["image_id", "pathology"]).any()
    assert dict(zip(*images[["image_id", "Hernia"]].to_numpy()[:3].T, strict=True)) == {
        "00000001_000.png": 0,
        "00000001_001.png": 0,
        "00000001_002.png": 0,
    }
