"""Scores of boxes, on hand-worked maps."""

import numpy as np
import pytest
import torch
import torchvision

from pylon.scoring.boxes import (
    FRACTIONS,
    GRID,
    SCORES,
    cross_fitted,
    folds_of,
    oracle,
    overlaps,
    prior_boxes,
    random_maps,
    score_maps,
    score_single,
)

HALF = list(FRACTIONS).index(0.5)
SIZE = np.array([[GRID, GRID]])  # one pixel per cell


def named(scores: np.ndarray) -> dict[str, float]:
    return dict(zip(SCORES, scores, strict=True))


def map_of(*regions: tuple[int, int, int, int, float]) -> np.ndarray:
    """A map (1, GRID, GRID) with rectangles x, y, w, h, value."""
    heatmap = np.zeros((1, GRID, GRID), np.float32)
    for x, y, w, h, value in regions:
        heatmap[0, y : y + h, x : x + w] = value
    return heatmap


def test_overlaps_equal_torchvisions():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0.5, 60, (2, 1000, 4))
    iou, iobb = overlaps(first, second)
    corners = [
        torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
        for xywh in (first, second)
    ]
    expected = torchvision.ops.box_iou(*corners).diagonal().numpy()
    np.testing.assert_allclose(iou, expected, atol=1e-12)
    assert 0.2 < (iou > 0).mean() < 0.99
    # intersection = IoU * union; over the first box
    areas = first[:, 2:].prod(axis=1), second[:, 2:].prod(axis=1)
    shared = iou * (areas[0] + areas[1]) / (1 + iou)
    np.testing.assert_allclose(iobb, shared / areas[0], atol=1e-12)


def test_worked_overlaps():
    iou, iobb = overlaps([0, 0, 4, 2], [[2, 0, 4, 2], [0, 0, 4, 2], [4, 0, 2, 2], [0, 0, 0, 0]])
    # shared 2 x 2 of 8 + 8 - 4; equal; touching; no box
    np.testing.assert_allclose(iou, [4 / 12, 1, 0, 0])
    np.testing.assert_allclose(iobb, [0.5, 1, 0, 0])


def test_a_perfect_map_scores_1():
    box = np.array([[10, 20, 8, 6]])
    scores = score_maps(map_of((10, 20, 8, 6, 0.3)), box, SIZE)
    assert scores.shape == (1, len(FRACTIONS), len(SCORES))
    for of_fraction in scores[0]:
        found = named(of_fraction)
        assert found.pop("false boxes") == 0
        assert set(found.values()) == {1.0}


def test_worked_map_with_two_regions():
    # the maximum beside the box; a lower region of 4 x 4 that shares 4 x 2 with the box of 4 x 4
    heatmap = map_of((40, 40, 2, 2, 1.0), (10, 12, 4, 4, 0.6))
    scores = score_maps(heatmap, np.array([[10, 10, 4, 4]]), SIZE)
    at_half = named(scores[0, HALF])
    # IoU 8 / 24, IoBB 8 / 16
    assert [at_half[f"T(IoU {t})"] for t in (0.1, 0.2, 0.3, 0.4)] == [1, 1, 1, 0]
    assert [at_half[f"T(IoBB {t})"] for t in (0.1, 0.25, 0.5)] == [1, 1, 1]
    assert at_half["false boxes"] == 1  # the region of the maximum
    assert at_half["IoU"] == 0  # of that region
    assert at_half["energy"] == pytest.approx(8 * 0.6 / (16 * 0.6 + 4))
    # above .6 only the wrong region is left
    high = named(scores[0, list(FRACTIONS).index(0.65)])
    assert high["T(IoU 0.1)"] == 0
    assert high["false boxes"] == 1


def test_boxes_between_cells_and_pixels():
    # 128 x 64 pixels on 64 x 64 cells: a cell is 2 pixels high and 1 wide
    heatmap = map_of((10, 20, 4, 4, 1.0))
    box = np.array([[10, 40, 4, 8]])
    scores = score_maps(heatmap, box, np.array([[128, 64]]))
    assert named(scores[0, HALF])["IoU"] == 1
    # a box that ends within a cell takes a part of the cell's energy
    scores = score_maps(heatmap, np.array([[10, 40, 4, 7]]), np.array([[128, 64]]))
    assert named(scores[0, HALF])["energy"] == pytest.approx(7 / 8)


def test_several_boxes_share_the_score():
    boxes = np.array([[[10, 10, 4, 4], [50, 50, 4, 4], [0, 0, 0, 0]]])
    scores = score_maps(map_of((10, 10, 4, 4, 1.0)), boxes, SIZE)
    at_half = named(scores[0, HALF])
    assert at_half["T(IoU 0.7)"] == 0.5
    assert at_half["false boxes"] == 0
    assert at_half["IoU"] == 1
    assert at_half["energy"] == 1


def test_energy_in_boxes_that_overlap_counts_once():
    # 16 cells of the map, 8 of them in the first box, 12 in both together
    heatmap = map_of((10, 10, 4, 4, 0.5))
    first, second = [8, 10, 4, 4], [10, 11, 4, 2]
    for boxes, expected in (
        ([first, [0, 0, 0, 0]], 8 / 16),
        ([first, first], 8 / 16),
        ([first, second], 12 / 16),
    ):
        scores = score_maps(heatmap, np.array([boxes]), SIZE)
        assert named(scores[0, HALF])["energy"] == pytest.approx(expected)


def test_flat_and_faulty_maps():
    box = np.array([[0, 0, GRID, GRID // 2]])
    for value, side in ((0, GRID), (0.2, GRID), (0.1, 7)):
        flat = score_maps(np.full((1, side, side), value, np.float32), box, SIZE)
        assert (flat == 0).all()
    for value in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match="finite and not negative"):
            score_maps(np.full((1, GRID, GRID), value, np.float32), box, SIZE)


def test_of_equal_maxima_the_first_counts():
    heatmap = map_of((50, 10, 2, 2, 1.0), (10, 30, 2, 2, 1.0))
    first = score_maps(heatmap, np.array([[50, 10, 2, 2]]), SIZE)
    second = score_maps(heatmap, np.array([[10, 30, 2, 2]]), SIZE)
    assert named(first[0, HALF])["IoU"] == 1
    assert named(second[0, HALF])["IoU"] == 0
    assert named(second[0, HALF])["T(IoU 0.7)"] == 1


def test_diagonal_neighbours_are_connected():
    heatmap = map_of((10, 10, 1, 1, 1.0), (11, 11, 1, 1, 1.0))
    at_half = named(score_maps(heatmap, np.array([[10, 10, 2, 2]]), SIZE)[0, HALF])
    assert at_half["IoU"] == 1
    assert at_half["false boxes"] == 0


def test_coarse_maps_are_enlarged():
    coarse = np.zeros((1, 8, 8), np.float32)
    coarse[0, 2, 3] = 1
    scores = score_maps(coarse, np.array([[24, 16, 8, 8]]), SIZE)
    # at half its maximum, the bilinear peak is as wide as the coarse cell
    assert named(scores[0, HALF])["IoU"] == 1


def test_single_boxes():
    predicted = np.array([[0.0, 0, 4, 4], [np.nan, np.nan, np.nan, np.nan]])
    scores = score_single(predicted, np.array([[2, 0, 4, 4], [0, 0, 4, 4]]))
    first = named(scores[0])
    assert first["IoU"] == pytest.approx(8 / 24)
    assert first["energy"] == 0.5  # half of the predicted box
    assert np.isnan(scores[1]).all()


def test_the_fraction_is_chosen_on_other_patients():
    # of each class half a map's maximum is best, but for one patient, who must not choose it
    count = 40
    patient_ids = np.arange(count)
    classes = np.array(["a", "b"] * (count // 2))
    scores = np.zeros((count, len(FRACTIONS), len(SCORES)))
    scores[:, HALF, :7] = 0.5
    scores[0, :, :7] = 0
    scores[0, 3, :7] = 1
    picked, chosen = cross_fitted(scores, classes, patient_ids)
    assert chosen[0] == HALF
    assert picked[0, 0] == 0
    assert picked[2, 0] == 0.5

    # all in one: a strong patient decides alone only where it is not scored
    scores[0, 3, :7] = 100
    _, chosen = cross_fitted(scores, classes, patient_ids)
    of_a = classes == "a"
    folds = folds_of(patient_ids[of_a])
    assert (chosen[of_a][folds == folds[0]] == HALF).all()
    assert (chosen[of_a][folds != folds[0]] == 3).all()
    assert oracle(scores, classes)[0, 0] == 100

    # rows of a patient are in one fold; a class with a single patient has no others
    assert len(set(folds_of(np.array(["x", "y", "x"]))[[0, 2]])) == 1
    _, chosen = cross_fitted(scores[:2], np.array(["a", "a"]), np.array([1, 2]))
    assert (chosen >= 0).all()
    picked, chosen = cross_fitted(scores[:2], np.array(["a", "a"]), np.array([1, 1]))
    assert (chosen == -1).all()
    assert np.isnan(picked).all()


def test_the_fraction_is_chosen_by_iou_alone():
    """Two patients; at another fraction all other scores are higher, and the boxes smaller."""
    scores = np.zeros((2, len(FRACTIONS), len(SCORES)))
    scores[:, HALF, :7] = 0.5
    scores[:, 3, 6:] = 9  # also the last of the IoU
    scores[:, 3, 6] = 3
    _, chosen = cross_fitted(scores, np.array(["a", "a"]), np.array([1, 2]))
    assert chosen.tolist() == [HALF, HALF]
    scores[:, 3, 6] = 4  # of seven thresholds, one of 4 is more than seven of .5
    _, chosen = cross_fitted(scores, np.array(["a", "a"]), np.array([1, 2]))
    assert chosen.tolist() == [3, 3]


def test_prior_of_images_of_several_sizes():
    """A quarter of the height and half of the width, from the left: of each image's own sides."""
    sizes = np.array([[128, 96], [96, 128], [40, 200]])
    boxes = np.array([[0, 32, 48, 32], [0, 24, 64, 24], [0, 10, 100, 10]])
    prior = prior_boxes(boxes, sizes, np.array(["a"] * 3), np.array([1, 2, 3]))
    np.testing.assert_allclose(prior, boxes)


def test_prior_is_the_median_of_other_patients_boxes():
    sizes = np.array([[100, 200]] * 4)
    boxes = np.array([[20, 10, 40, 20]] * 3 + [[0, 0, 200, 100]])
    prior = prior_boxes(boxes, sizes, np.array(["a"] * 4), np.arange(4))
    np.testing.assert_allclose(prior, [[20, 10, 40, 20]] * 4)
    alone = prior_boxes(boxes, sizes, np.array(["a", "b", "c", "d"]), np.arange(4))
    assert np.isnan(alone).all()


def test_random_maps_are_seeded():
    assert random_maps(3).shape == (3, GRID, GRID)
    np.testing.assert_array_equal(random_maps(3), random_maps(3))
    assert not np.array_equal(random_maps(3), random_maps(3, seed=1))
