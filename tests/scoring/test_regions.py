import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.scoring.metrics import point_localization
from pylon.scoring.regions import locate, outline_of


def located(heatmap, image_size, share=0.5):
    """Point and box of one heatmap, at its own size."""
    heatmaps = torch.tensor(heatmap, dtype=torch.float32)[None]
    size = np.array([image_size])
    points, boxes, _ = locate(heatmaps, size, tuple(heatmaps.shape[1:]), share)
    return points[0].tolist(), boxes[0].tolist()


HEATMAP = [
    [0.0, 0.0, 0.0, 0.0, 0.9],
    [0.0, 0.4, 0.6, 0.0, 0.0],
    [0.0, 0.5, 1.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.7, 0.0],
]


def test_hand_worked_region():
    # the .9 is not connected, the .7 is, by a corner; the .4 is below half
    assert located(HEATMAP, (4, 5)) == ([2, 2], [1, 1, 3, 3])
    assert located(HEATMAP, (4, 5), share=0.6) == ([2, 2], [2, 1, 2, 3])
    assert located(HEATMAP, (4, 5), share=0.95) == ([2, 2], [2, 2, 1, 1])


def test_box_is_in_pixels_of_the_file():
    # 10 x 25 pixels: a row is 2.5 of them, a column 5; halves are rounded outward
    assert located(HEATMAP, (10, 25)) == ([5, 10], [5, 2, 15, 8])
    # a file smaller than the input: each box has at least one pixel
    assert located(HEATMAP, (2, 2), share=1) == ([1, 0], [0, 1, 2, 1])


def test_first_of_several_maxima():
    assert located([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]], (3, 2)) == ([0, 1], [1, 0, 1, 1])


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_flat_heatmap_has_no_place(value):
    # between others; enlarged 7 times, by weights that need not add up to 1 exactly
    heatmaps = np.full((3, 4, 5), value, np.float32)
    heatmaps[[0, 2], 3, 1] += 0.5
    points, boxes, outlines = locate(torch.tensor(heatmaps), np.array([[28, 35]] * 3), (28, 35))
    assert points[1].tolist() == [-1, -1]
    assert boxes[1, 2:].tolist() == [0, 0]
    assert outlines[1].shape == (0, 2)
    for other in (0, 2):
        assert points[other, 0] >= 21
        assert points[other, 1] == 10
        assert len(outlines[other]) > 0


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(16, 5000),
    width=st.integers(16, 5000),
    share=st.floats(0.01, 1),
)
def test_point_is_that_of_point_localization_and_in_the_box(seed, height, width, share):
    heatmaps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) ** 4
    size = np.array([[height, width]] * 3)
    points, boxes, outlines = locate(heatmaps, size, (32, 32), share)
    hit, row, column = point_localization(heatmaps, boxes, size, (32, 32))
    assert hit.tolist() == [1, 1, 1]
    assert points.tolist() == np.stack([row, column], axis=1).tolist()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [width, height]).all()
    for (x, y, w, h), outline in zip(boxes, outlines, strict=True):
        assert np.floor(outline.min(axis=0)).tolist() == [x, y]
        assert np.ceil(outline.max(axis=0)).tolist() == [x + w, y + h]


def outlined(region):
    """Corners of a region of a mask."""
    return outline_of(2 * np.array(region, np.uint8)).tolist()


def test_hand_worked_outlines():
    # corners in the order of OpenCV, against the clock on the screen; holes are left out
    assert outlined([[1]]) == [[0, 0], [0, 1], [1, 1], [1, 0]]
    assert outlined([[1, 1], [1, 0]]) == [[0, 0], [0, 2], [1, 2], [1, 1], [2, 1], [2, 0]]
    assert outlined([[1, 1, 1], [1, 0, 1], [1, 1, 1]]) == [[0, 0], [0, 3], [3, 3], [3, 0]]
    notched = [[0, 0], [0, 2], [3, 2], [3, 0], [2, 0], [2, 1], [1, 1], [1, 0]]
    assert outlined([[1, 0, 1], [1, 1, 1]]) == notched
    # by a corner: passed twice
    by_corner = [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1], [1, 0]]
    assert outlined([[1, 0], [0, 1]]) == by_corner


def test_outline_is_in_pixels_of_the_file():
    size = np.array([[10, 25]])
    [outline] = locate(torch.tensor(HEATMAP)[None], size, (4, 5), 0.95).outlines
    assert outline.tolist() == [[10, 5], [10, 7.5], [15, 7.5], [15, 5]]


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="must be float32"):
        locate(torch.zeros(1, 4, 4, dtype=torch.bfloat16), np.array([[4, 4]]), (4, 4))
