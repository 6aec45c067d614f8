"""From a folder to `Radiographs`, or to the first fault in it."""

import pytest

from pylon.data.chestxray14 import PATHOLOGIES, list_hashes
from pylon.data.radiographs import BOX_COLUMNS, shared_patients
from pylon.data.sources import read_chestxray14
from pylon.system.errors import UserError

LISTS = ("Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt", "BBox_List_2017.csv")


def test_boxes_are_read_only_on_request(by_hand):
    assert len(read_chestxray14(by_hand, with_boxes=True).boxes) == 1
    (by_hand / "BBox_List_2017.csv").write_text("no table")
    radiographs = read_chestxray14(by_hand)
    assert len(radiographs.boxes) == 0
    assert list(radiographs.boxes.columns) == list(BOX_COLUMNS)
    assert radiographs.list_sha256 == list_hashes(by_hand)
    assert radiographs.list_sha256.keys() == set(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_missing_and_empty_files_are_named(by_hand, name):
    text = (by_hand / name).read_text()
    (by_hand / name).write_text("")
    with pytest.raises(UserError, match=name):
        read_chestxray14(by_hand, with_boxes=True)
    (by_hand / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*https://"):
        read_chestxray14(by_hand, with_boxes=True)
    (by_hand / name).write_text(text)
    read_chestxray14(by_hand, with_boxes=True)


def test_original_split_takes_precedence(by_hand):
    def write(split, names):
        labels = ",".join("1" if name == "Mass" else "0" for name in PATHOLOGIES)
        lines = [",".join(["Image Index", *PATHOLOGIES]), *(f"{name},{labels}" for name in names)]
        (by_hand / f"original_split_{split}.csv").write_text("\n".join(lines) + "\n")

    write("train", ["00000001_000.png", "00000002_000.png"])
    with pytest.raises(UserError, match=r"original_split_val.csv is missing"):
        read_chestxray14(by_hand)
    write("val", ["00000001_001.png", "00000004_000.png"])
    write("test", ["00000003_000.png"])
    images = read_chestxray14(by_hand).images
    assert images["split"].tolist() == ["train", "train", "val", "val", "test"]
    assert images["patient_id"].tolist() == [1, 2, 1, 4, 3]
    assert images["Mass"].all()
    assert not images["Hernia"].any()
    assert shared_patients(images, "val") == (1, 2)
    write("test", ["00000001_000.png"])
    with pytest.raises(UserError, match=r"00000001_000.png is in two of"):
        read_chestxray14(by_hand)
