"""The forms that a prediction can take, of two classes by hand."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from pylon.prediction.prediction import COLUMNS, Prediction
from pylon.system.errors import UserError

MAPS = np.array([[[0.1, 0.3]], [[0.9, 0.2]]], np.float32)  # of a row and two columns


@pytest.fixture
def prediction() -> Prediction:
    """An image of 20 x 40 pixels: Mass is found in the left half; the map of Edema has no place."""
    mass = {"label": "Mass", "score": 0.9, "present": True, "point": (3, 5), "box": (1, 2, 9, 8)}
    edema = {"label": "Edema", "score": 0.3, "present": None, "point": None, "box": None}
    return Prediction(
        [{**mass, "outline": [(1, 2), (9, 9)]}, {**edema, "outline": []}],
        MAPS,
        ("Edema", "Mass"),
        {"Mass": 0.5, "Edema": None},
        True,
        np.full((20, 40), 100, np.uint8),
        np.array([[20, 0, 9.5], [0, 20, 9.5]]),
    )


def test_map_in_two_sizes(prediction):
    np.testing.assert_array_equal(prediction.map("Mass", "map"), MAPS[1])
    large = prediction.map("Mass")
    assert large.shape == (20, 40)
    # from the centre of one pixel, 9.5, to that of the other, 29.5
    row = [0.9, 0.9 - 0.7 * 10.5 / 20, 0.2]
    np.testing.assert_allclose(large[7, [0, 20, 39]], row, atol=1e-6)
    with pytest.raises(ValueError, match="size must be image or map, got 'input'"):
        prediction.map("Mass", "input")
    with pytest.raises(ValueError, match="label must be one of Edema, Mass"):
        prediction.map("Mas")


def test_overlay_with_another_threshold_and_opacity(prediction):
    assert (prediction.overlay("Mass") == prediction.overlay("Mass", threshold=0.5)).all()
    assert (prediction.overlay("Mass", alpha=0.75) == prediction.overlay("Mass")).all()
    half = prediction.overlay("Mass", "minmax", alpha=0.5)
    assert (half == prediction.overlay("Mass", "minmax")).all()
    # without opacity the radiograph is left; a threshold that is not reached has no contour
    for scale in ("absolute", "minmax"):
        drawn = prediction.overlay("Mass", scale, threshold=0.95, alpha=0)
        assert (drawn == 100).all()
    contour = (prediction.overlay("Mass", threshold=0.5, alpha=0) != 100).any(axis=(0, 2))
    wider = (prediction.overlay("Mass", threshold=0.3, alpha=0) != 100).any(axis=(0, 2))
    assert np.flatnonzero(wider).max() > np.flatnonzero(contour).max()
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2"):
        prediction.overlay("Mass", alpha=2)


def test_forms(prediction, tmp_path):
    table = prediction.to_frame()
    assert tuple(table) == COLUMNS
    assert table.iloc[0].tolist() == ["Mass", 0.9, 1, 3, 5, 1, 2, 9, 8]
    assert table.iloc[1, :2].tolist() == ["Edema", 0.3]
    assert table.iloc[1, 2:].isna().all()
    coco = [{"image_id": 7, "category_id": 2, "bbox": (1, 2, 9, 8), "score": 0.9}]
    assert prediction.to_coco(7) == coco
    assert repr(prediction) == "<Prediction of 20 x 40 pixels, present: Mass 0.900>"

    # files
    for name in ("a.csv", "a.json", "a.npz", "a.png"):
        prediction.save(tmp_path / name)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv", dtype=dict(table.dtypes)), table)
    assert json.loads((tmp_path / "a.json").read_text())[0]["bbox"] == [1, 2, 9, 8]
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["maps"], MAPS)
        assert file["class_names"].tolist() == ["Edema", "Mass"]
    picture = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    np.testing.assert_array_equal(picture, prediction.overlay("Mass"))
    with pytest.raises(ValueError, match=r"path must end in \.csv, .* got a\.bmp"):
        prediction.save("a.bmp")
    with pytest.raises(UserError, match="cannot be written"):
        prediction.save(tmp_path / "a.csv/b.csv")
