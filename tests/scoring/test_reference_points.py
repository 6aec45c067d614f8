import numpy as np
import pandas as pd
import pytest

from pylon.scoring.metrics import accuracies
from pylon.scoring.reference_points import centre_hits, inside_by_cell, prior_hits

SIZE = np.array([(64, 128)])  # height, width: cells of 1 x 2 pixels


def test_cell_is_inside_if_its_centre_is():
    box = np.array([(10, 20, 4, 3)])  # columns 10 .. 13, rows 20 .. 22
    inside = inside_by_cell(box, SIZE)
    cells = [[row, column] for row in (20, 21, 22) for column in (5, 6)]  # centres 11 and 13
    assert np.argwhere(inside[0]).tolist() == cells


def test_several_boxes_count_as_their_union():
    one, other, none = (10, 20, 4, 3), (10, 22, 2, 2), (0, 0, 0, 0)
    inside = inside_by_cell(np.array([[one, other], [one, none]]), SIZE.repeat(2, axis=0))
    assert inside.sum(axis=(1, 2)).tolist() == [7, 6]  # one cell is in both, one new
    halves = np.array([[(0, 0, 64, 64), (64, 0, 64, 64)]])
    assert centre_hits(halves, SIZE).tolist() == [1]


def test_centre_hits_by_hand():
    boxes = np.array(
        [(0, 0, 128, 64), (0, 0, 64, 32), (0, 0, 128, 32), (0, 0, 20, 64), (66, 0, 9, 64)]
    )
    assert centre_hits(boxes, SIZE.repeat(5, axis=0)).tolist() == [1, 0.25, 0.5, 0, 0]


def test_prior_hits_by_hand():
    left = (0, 0, 64, 64)
    right = (64, 0, 64, 64)
    wide = (0, 0, 128, 64)
    boxes = np.array([left, left, wide, right, right, right])
    patients = np.array([1, 2, 3, 4, 4, 4])
    classes = np.array(["a"] * 6)
    # patients 1, 2, 3: the right half wins with the three boxes of patient 4; patient 4: without
    # them, the left half wins
    hits = prior_hits(boxes, SIZE.repeat(6, axis=0), classes, patients)
    assert hits.tolist() == [0, 0, 1, 0, 0, 0]
    # per class: only one patient has class b, so there is no other patient's box
    classes = np.array(["a", "a", "b", "a", "b", "a"])
    patients = np.array([1, 2, 3, 4, 3, 5])
    hits = prior_hits(boxes, SIZE.repeat(6, axis=0), classes, patients)
    assert np.isnan(hits).tolist() == [False, False, True, False, True, False]
    # among the others, the opposite half has two boxes to one
    assert hits[[0, 1, 3, 5]].tolist() == [0, 0, 0, 0]


def test_images_of_several_sizes_have_their_own_cells():
    """The same box is the left half of one image and the upper half of the other."""
    boxes = np.array([(0, 0, 64, 64), (0, 0, 64, 64)])
    left, upper = inside_by_cell(boxes, np.array([(64, 128), (128, 64)]))
    assert left[:, :32].all()
    assert not left[:, 32:].any()
    assert upper[:32].all()
    assert not upper[32:].any()


def test_prior_takes_the_middle_of_ties():
    boxes = np.array([(0, 0, 128, 64), (0, 32, 2, 1), (0, 0, 128, 32)])
    hits = prior_hits(boxes, SIZE.repeat(3, axis=0), np.full(3, "a"), np.arange(3))
    assert hits[0] == 1
    # the others agree on the upper half: its middle cell is not in the second box
    assert hits[1] == 0


def test_reference_points_on_nih_boxes(official_boxes):
    boxes = official_boxes
    xywh = boxes[["x", "y", "w", "h"]].to_numpy()
    size = np.full((984, 2), 1024)
    patients = boxes["image_id"].str[:8].to_numpy()
    names = sorted(boxes["pathology"].unique())
    assert accuracies(centre_hits(xywh, size), boxes["pathology"], names)[-1] == pytest.approx(
        0.216, abs=5e-4
    )
    hits = prior_hits(xywh, size, boxes["pathology"].to_numpy(), patients)
    prior = dict(
        zip([*names, "micro"], accuracies(hits, boxes["pathology"], names).round(3), strict=True)
    )
    assert (prior["Cardiomegaly"], prior["Pneumothorax"], prior["Nodule"]) == (0.993, 0.276, 0)
    assert prior["micro"] == 0.391  # with the boxes truncated, as in the metric


def test_prior_on_nih_boxes_without_truncation(official, official_boxes):
    exact = pd.read_csv(official / "BBox_List_2017.csv", skiprows=1, header=None)[
        [2, 3, 4, 5]
    ].to_numpy()
    classes = official_boxes["pathology"].to_numpy()
    patients = official_boxes["image_id"].str[:8].to_numpy()
    assert prior_hits(exact, np.full((984, 2), 1024), classes, patients).mean().round(3) == 0.388
