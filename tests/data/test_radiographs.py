"""Requirements on the tables of any data set."""

import numpy as np
import pandas as pd
import pytest

from pylon.data.radiographs import (
    Radiographs,
    have_unknown,
    no_boxes,
    shared_patients,
    split_hash,
)
from pylon.data.sources import read_chestxray14


def test_split_hash_depends_on_labels_but_not_on_paths_or_order(phantom):
    radiographs = read_chestxray14(phantom)
    images = radiographs.images
    names = radiographs.class_names
    before = split_hash(images, names)
    assert before == split_hash(read_chestxray14(phantom).images, names)
    changed = images.copy()
    changed.loc[0, "Mass"] ^= 1
    assert split_hash(changed, names) != before
    elsewhere = images.sample(frac=1, random_state=0).assign(path="elsewhere", note="mine")
    assert split_hash(elsewhere, names) == before


def test_shared_patients_are_counted():
    images = pd.DataFrame(
        {
            "patient_id": [1, 1, 2, 2, 3, 4, 4],
            "split": ["train", "val", "train", "test", "val", "test", "test"],
        }
    )
    assert shared_patients(images, "val") == (1, 2)
    assert shared_patients(images, "test") == (1, 2)
    assert shared_patients(images[images["split"] == "val"], "val") == (0, 2)


def three_images(**changes):
    """A valid table of images, with some columns replaced."""
    columns = {
        "image_id": ["a", "b", "c"],
        "patient_id": [1, 2, 2],
        "split": ["train", "test", "train"],
        "path": ["a.png", np.nan, "c.png"],
        "age": [30, 40, 40],
        "Mass": [0, 1, 1],
    }
    return pd.DataFrame({**columns, **changes})


def test_images_of_a_split():
    radiographs = Radiographs(three_images(), no_boxes(), ("Mass",))
    assert radiographs.of_split("train")["image_id"].tolist() == ["a", "c"]
    assert radiographs.of_split("val").empty
    assert radiographs.list_sha256 == {}
    assert np.shape(radiographs.boxes) == (0, 6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_id": ["a", "a", "c"]}, "image_id must be unique"),
        ({"patient_id": [1.0, 2.0, 2.0]}, "patient_id must be integers or text"),
        ({"patient_id": ["p1", "p2", 2]}, "patient_id must be integers or text"),
        ({"split": ["train", "Test", "train"]}, r"split must be one of .*, got \['Test'\]"),
        ({"Mass": [0, 1, -1]}, "labels must be 0, 1 or NaN, but those of Mass are not"),
    ],
)
def test_invalid_images_are_rejected(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Radiographs(three_images(**changes), no_boxes(), ("Mass",))


def test_labels_may_be_unknown_and_patients_text():
    images = three_images(Mass=[0, 1, np.nan], patient_id=["p1", "p2", "p2"])
    radiographs = Radiographs(images, no_boxes(), ("Mass",))
    assert have_unknown(radiographs.images, ("Mass",))
    assert not have_unknown(radiographs.of_split("train")[:1], ("Mass",))


def test_missing_columns_and_unknown_pathologies_are_rejected():
    with pytest.raises(ValueError, match=r"missing: \['Nodule'\]"):
        Radiographs(three_images(), no_boxes(), ("Mass", "Nodule"))
    with pytest.raises(ValueError, match=r"missing: \['h'\]"):
        Radiographs(three_images(), no_boxes().drop(columns="h"), ("Mass",))
    box = {"image_id": "a", "pathology": "age", "x": 0, "y": 0, "w": 1, "h": 1}
    with pytest.raises(ValueError, match=r"pathology of boxes must be a class, got \['age'\]"):
        Radiographs(three_images(), pd.DataFrame([box]), ("Mass",))
