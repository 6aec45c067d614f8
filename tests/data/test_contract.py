"""What holds of the tables of any data set."""

import numpy as np
import pandas as pd

from pylon.data.contract import Radiographs, no_boxes, shared_patients, split_hash
from pylon.data.sources import read_radiographs


def test_hash_of_the_split_is_of_what_is_trained_on(phantom):
    radiographs = read_radiographs(phantom)
    images = radiographs.images
    names = radiographs.class_names
    before = split_hash(images, names)
    assert before == split_hash(read_radiographs(phantom).images, names)
    changed = images.copy()
    changed.loc[0, "Mass"] ^= 1
    assert split_hash(changed, names) != before
    elsewhere = images.sample(frac=1, random_state=0).assign(path="elsewhere", note="mine")
    assert split_hash(elsewhere, names) == before


def test_patients_of_two_splits():
    images = pd.DataFrame(
        {
            "patient_id": [1, 1, 2, 2, 3, 4, 4],
            "split": ["train", "val", "train", "test", "val", "test", "test"],
        }
    )
    assert shared_patients(images, "val") == (1, 2)
    assert shared_patients(images, "test") == (1, 2)
    assert shared_patients(images[images["split"] == "val"], "val") == (0, 2)


def test_images_of_a_split():
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "split": ["train", "test", "train"]})
    radiographs = Radiographs(images, no_boxes(), ("Mass",))
    assert radiographs.of_split("train")["image_id"].tolist() == ["a", "c"]
    assert radiographs.of_split("val").empty
    assert radiographs.list_sha256 == {}
    assert np.shape(radiographs.boxes) == (0, 6)
