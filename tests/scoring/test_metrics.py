import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pylon.heatmaps import probability
from pylon.scoring.metrics import (
    accuracies,
    auroc,
    in_box,
    mean_auroc,
    point_localization,
    validation_scores,
    youden_thresholds,
)


def test_auroc_by_hand():
    labels = np.array([[0, 0, 1], [1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]])
    scores = np.array([[0.1, 1, 1], [0.2, 2, 2], [0.3, 3, 3], [0.3, 4, 4], [0.9, 5, 5]])
    areas = auroc(labels, scores)
    # 6 pairs: 0.2 < 0.3 is wrong, 0.3 = 0.3 counts half, four are right
    np.testing.assert_allclose(areas, [4.5 / 6, np.nan, np.nan])
    assert mean_auroc(areas, labels) == (0.75, 0.75)
    assert np.isnan(mean_auroc(areas[1:], labels[:, 1:])).all()


def test_validation_scores_by_hand():
    labels = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, np.nan]])
    logits = np.array([[1, 2, 0], [-1, 2, 0], [1, 2, 0], [2, 2, 0], [3, 2, 0]], np.float32)
    scores = validation_scores(labels, logits, {"A": 0.5, "B": None, "C": 0.6})
    # healthy are the first three; four pairs of A, one wrong; C ties
    assert scores == {
        "A": {"auroc": 0.75, "called_healthy": pytest.approx(2 / 3)},
        "B": {"auroc": None, "called_healthy": None},
        "C": {"auroc": 0.5, "called_healthy": 0.0},
    }


def test_mean_auroc_by_hand():
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 0]])
    weighted, macro = mean_auroc(np.array([0.5, 0.9]), labels)
    assert weighted == pytest.approx((0.5 * 1 + 0.9 * 3) / 4)
    assert macro == pytest.approx(0.7)


def locate(heatmap, box, image_size, input_size):
    maps = torch.tensor([heatmap], dtype=torch.float32)
    hit, row, column = point_localization(maps, np.array([box]), np.array([image_size]), input_size)
    return hit[0], row[0], column[0]


# maximum in row 1, column 3
HEATMAP = [
    [0.1, 0.1, 0.1, 0.1, 0.1],
    [0.1, 0.1, 0.1, 0.9, 0.1],
    [0.1, 0.1, 0.1, 0.1, 0.1],
    [0.1, 0.1, 0.1, 0.1, 0.1],
]


@pytest.mark.parametrize(
    ("box", "hit"),
    [
        ((3, 1, 1, 1), 1),
        ((0, 0, 5, 4), 1),
        ((4, 1, 1, 1), 0),  # x, y are column, row: a box to the right
        ((1, 3, 1, 1), 0),
        ((2, 1, 1, 1), 0),  # columns 2 <= c < 3
        ((3, 0, 1, 1), 0),  # rows 0 <= r < 1
        ((3, 0, 1, 2), 1),
    ],
)
def test_localization_without_scaling(box, hit):
    assert locate(HEATMAP, box, (4, 5), (4, 5)) == (hit, 1, 3)


def test_maximum_is_scaled_by_floor():
    # Input 4 x 5 of an image 10 x 12: row 1 stands for floor(1 * 10 / 4) = 2, column 3 for
    # floor(3 * 12 / 5) = 7.
    assert locate(HEATMAP, (7, 2, 1, 1), (10, 12), (4, 5)) == (1, 2, 7)
    assert locate(HEATMAP, (6, 2, 1, 1), (10, 12), (4, 5)) == (0, 2, 7)
    assert locate(HEATMAP, (8, 2, 4, 1), (10, 12), (4, 5)) == (0, 2, 7)
    assert locate(HEATMAP, (7, 3, 1, 7), (10, 12), (4, 5)) == (0, 2, 7)


def test_ties_share_the_hit():
    flat = [[0.5, 0.5, 0.2], [0.5, 0.5, 0.2]]
    assert locate(flat, (1, 0, 2, 2), (2, 3), (2, 3)) == (0.5, 0, 0)
    assert locate(flat, (0, 0, 1, 1), (2, 3), (2, 3)) == (0.25, 0, 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_flat_map_has_no_place(value):
    # enlarged 7 times, by weights that need not add up to 1 exactly
    assert locate([[value] * 3] * 2, (0, 0, 64, 48), (48, 64), (14, 21)) == (0, -1, -1)


def test_several_maxima():
    heatmap = [[0.9, 0, 0, 0, 0.9], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0.8]]
    assert locate(heatmap, (4, 0, 1, 3), (3, 5), (3, 5))[0] == 0.5


def test_upsampling_does_not_align_corners():
    # At twice the size, pixels lie at -1/4, 1/4, 3/4, 5/4 of the two, so the outer ones equal the
    # maximum.
    assert locate([[0.0, 1.0], [0.0, 1.0]], (3, 0, 1, 4), (4, 4), (4, 4))[0] == 1
    # A single maximum between its neighbours appears twice in the doubled grid, symmetrically.
    assert locate([[0.0, 1.0, 0.0]], (2, 0, 1, 1), (1, 6), (1, 6))[0] == 0.5


def test_localization_equals_that_with_the_authors_masks(rng):
    sizes = [((1024, 1024), (256, 256)), ((1000, 1300), (256, 512))]
    for (height, width), (rows, columns) in sizes:
        # rounded, for many ties
        heatmaps = torch.from_numpy(rng.uniform(size=(20, 16, 16)).astype(np.float32).round(1))
        boxes = np.column_stack([rng.integers(0, 500, (20, 2)), rng.integers(1, 500, (20, 2))])
        hit, _, _ = point_localization(
            heatmaps, boxes, np.array([(height, width)] * 20), (rows, columns)
        )
        large = torch.nn.functional.interpolate(
            heatmaps[:, None], (rows, columns), mode="bilinear"
        )[:, 0].numpy()
        for n, (x, y, w, h) in enumerate(boxes):
            mask = np.zeros((height, width))
            mask[y : y + h, x : x + w] = 1
            nearest = mask[np.arange(rows) * height // rows][
                :, np.arange(columns) * width // columns
            ]
            assert hit[n] == nearest[large[n] == large[n].max()].mean()


def test_heatmaps_must_be_float32():
    with pytest.raises(ValueError, match="float32"):
        point_localization(
            torch.zeros(1, 2, 2, dtype=torch.bfloat16), np.ones((1, 4)), np.ones((1, 2)), (2, 2)
        )


def test_in_box_equals_the_resized_mask_at_every_pixel(official_boxes):
    i, j = np.mgrid[:256, :256]
    row = i * 1024 // 256
    column = j * 1024 // 256
    pixels = 0
    for xywh in official_boxes[["x", "y", "w", "h"]].to_numpy():
        x, y, w, h = xywh
        mask = np.zeros((1024, 1024), np.uint8)
        mask[y : y + h, x : x + w] = 1
        nearest = cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST)
        inside = in_box(row, column, xywh)
        assert (inside == nearest).all()
        pixels += inside.size
    assert pixels == 984 * 256 * 256


def test_accuracy_of_published_heatmaps(shared, official_boxes):
    boxes = official_boxes
    published = np.load(shared / "reference" / "published_heatmaps.npz")
    key = ["image_id", "pathology"]
    order = pd.DataFrame({name: published[name] for name in key}).reset_index(names="map")
    boxes = boxes.merge(order, on=key, validate="one_to_one")
    assert len(boxes) == 984
    heatmaps = torch.from_numpy(published["heatmap"][boxes["map"]].astype(np.float32) / 255)
    xywh = boxes[["x", "y", "w", "h"]].to_numpy()
    boxes["hit"], _, _ = point_localization(heatmaps, xywh, np.full((984, 2), 1024), (256, 256))
    assert round(boxes["hit"].mean(), 4) == 0.6148
    assert boxes.groupby("pathology")["hit"].mean().round(4).to_dict() == {
        "Atelectasis": 0.5278, "Cardiomegaly": 1.0, "Effusion": 0.5229, "Infiltration": 0.7236,
        "Mass": 0.6588, "Nodule": 0.4557, "Pneumonia": 0.7, "Pneumothorax": 0.1939,
    }  # fmt: skip


def test_threshold_maximises_sensitivity_plus_specificity():
    labels = np.array([[0, 1, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0]])
    logits = np.array(
        [[-2, 0, 0, 1], [-1, 0, 3, 0], [2, 0, -1, 0], [1, 0, 2, 2], [0, 0, -2, 1]], np.float32
    )
    thresholds = youden_thresholds(labels, logits, ["a", "all", "worse", "chance"])
    # a: from logit 0 on, both positives and one of three negatives; from 2 on, one positive and no
    # negative
    assert thresholds["a"] == pytest.approx(0.5)
    assert thresholds["all"] is None
    assert thresholds["worse"] is None  # every negative lies above every positive
    assert thresholds.keys() == {"a", "all", "worse", "chance"}


def test_a_score_at_the_threshold_reaches_it():
    """Thresholds are compared with float32 probabilities, so they are such themselves."""
    logits = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    best = []
    for k in range(50):  # the k-th image alone is positive, with those above it
        labels = (logits >= logits[k]).astype(np.float32)
        if 0 < labels.sum() < 50:
            threshold = youden_thresholds(labels, logits, ["a"])["a"]
            score = probability(torch.from_numpy(logits[k])).item()
            best.append((threshold, score))
    assert len(best) == 49
    assert [threshold for threshold, _ in best] == [score for _, score in best]


def test_accuracies_skip_nan():
    hits = np.array([1, 0, np.nan, 0.5])
    found = accuracies(hits, np.array(["b", "b", "b", "a"]), ["a", "b"])
    assert found.tolist() == [0.5, 0.5, 0.5]
    assert np.isnan(accuracies(np.full(2, np.nan), np.array(["a", "b"]), ["a", "b"])).all()
