"""Scores of boxes: how well do the regions of a heatmap agree with the radiologists' boxes?

A map is cut at a fraction of its own maximum; the boxes around its connected regions are the
predictions. The fraction of a class is chosen on the boxes of other patients, never on those that
are scored, among fractions down to 1e-5: around a finding probabilities fall by powers of ten,
maps that are scaled to their own range by tenths. So the rule suits both.

T(IoU): is the intersection of a box with a predicted one, over their union, at least .1 to .7? And
T(IoBB): over the predicted box alone? Both are those of Wang et al., ChestX-ray8 (CVPR 2017),
section 4 and table 4 (there for one fixed cut per network), with their thresholds. Choosing the cut
on held-out boxes follows Choe et al., Evaluating weakly supervised object localization methods
right (CVPR 2020; the code is wsolevaluation), whose MaxBoxAcc chooses it on the scored ones: here
that is the row "oracle". Energy is that of Wang et al., Score-CAM (CVPR workshops 2020). The paper
of PYLON has no scores of boxes.

Arrays in, numbers out: no network, no files.
"""

import cv2
import numpy as np
import torch

from pylon.scoring.metrics import enlarge

FRACTIONS = np.array([  # of a map's maximum
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, *(np.arange(1, 20) / 20),
])  # fmt: skip
IOU = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IOBB = (0.1, 0.25, 0.5)
FOLDS = 10
GRID = 64  # coarser maps are enlarged to this side: the boxes of an 8 x 8 map would be blocks

SCORES = (
    *(f"T(IoU {threshold})" for threshold in IOU),
    *(f"T(IoBB {threshold})" for threshold in IOBB),
    "false boxes",  # predicted boxes that have an IoU below .1 with every box
    "IoU",  # of the predicted box around the maximum
    "energy",  # share of the map's sum that lies inside the boxes
)
# those that are shares of boxes: means of what is found or not
SHARES = np.array([name.startswith("T(") for name in SCORES])
CHOSEN_BY = slice(0, len(IOU))  # the fraction with the highest mean T(IoU) is chosen


def overlaps(predicted: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union, and over the predicted box.

    Args:
        predicted, boxes: (..., 4) x, y, w, h, in the same unit; they are broadcast.

    Returns:
        IoU and IoBB, (...) float64 each; 0 where a box has no area.
    """
    x, y, w, h = np.moveaxis(np.asarray(predicted, np.float64), -1, 0)
    true_x, true_y, true_w, true_h = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
    wide = np.minimum(x + w, true_x + true_w) - np.maximum(x, true_x)
    high = np.minimum(y + h, true_y + true_h) - np.maximum(y, true_y)
    shared = wide.clip(0) * high.clip(0)
    union = w * h + true_w * true_h - shared
    area = np.broadcast_to(w * h, shared.shape)
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    iobb = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
    return iou, iobb


def score_maps(maps: np.ndarray, bbox_xywh: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Score every map at every fraction of its maximum.

    Args:
        maps: (N, h, w) float32, finite, not negative; one per image and class that has boxes.
        bbox_xywh: (N, 4), or (N, K, 4) for up to K boxes each, where boxes of width and height 0
            stand for none; pixels of the image file.
        image_size: (N, 2) height and width of the image files, pixels.

    Returns:
        (N, len(FRACTIONS), len(SCORES)) float64. A box counts as found if any predicted box reaches
        the threshold; a row with several boxes scores the share of them that is found. A flat map,
        the same everywhere, shows no place: it predicts nothing and scores 0.

    Raises:
        ValueError: a map is negative or not finite.
    """
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise ValueError("maps must be finite and not negative")
    is_flat = np.ptp(maps, axis=(1, 2), keepdims=True) == 0
    maps = enlarged(np.where(is_flat, np.float32(0), maps))
    boxes = in_cells(bbox_xywh, image_size, maps.shape[1:])  # (N, K, 4)
    row, cut, regions, around = regions_of(maps)
    scores = score_predicted(row * len(FRACTIONS) + cut, regions, around, boxes, len(FRACTIONS))
    scores[..., -1] = np.array([energy(*pair) for pair in zip(maps, boxes, strict=True)])[:, None]
    return scores


def score_single(predicted: np.ndarray, bbox_xywh: np.ndarray) -> np.ndarray:
    """Score one predicted box a row, such as a prior: (N, len(SCORES)) float64.

    A box is, as a map, the same everywhere inside it: its energy is its IoBB (of the largest, if
    there are several boxes).

    Args:
        predicted: (N, 4) x, y, w, h; rows of NaN are not scored, NaN.
        bbox_xywh: (N, 4) or (N, K, 4), in the same unit.
    """
    boxes = bbox_xywh.reshape(len(bbox_xywh), -1, 4)
    known = ~np.isnan(predicted).any(axis=1)
    scores = np.full((len(boxes), len(SCORES)), np.nan)
    count = int(known.sum())
    everywhere = np.ones(count, bool)
    of_known = score_predicted(np.arange(count), predicted[known], everywhere, boxes[known], 1)
    scores[known] = of_known[:, 0]
    scores[known, -1] = overlaps(predicted[known, None], boxes[known])[1].max(axis=1)
    return scores


def enlarged(maps: np.ndarray) -> np.ndarray:
    """Maps coarser than GRID, enlarged to it: bilinear, corners not aligned, as for points."""
    height, width = (max(side, GRID) for side in maps.shape[1:])
    if (height, width) == maps.shape[1:]:
        return maps
    return torch.cat(list(enlarge(torch.from_numpy(maps), (height, width)))).numpy()


def in_cells(
    bbox_xywh: np.ndarray, image_size: np.ndarray, map_size: tuple[int, int]
) -> np.ndarray:
    """Boxes (N, K, 4) float64 in cells of the map, of which (h, w) cover the whole image."""
    boxes = np.asarray(bbox_xywh, np.float64).reshape(len(bbox_xywh), -1, 4)
    by_row, by_column = (np.asarray(map_size) / image_size).T  # (N,) cells per pixel
    return boxes * np.stack([by_column, by_row, by_column, by_row], axis=-1)[:, None]


def regions_of(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the boxes around the connected regions of each map at each fraction.

    Diagonal neighbours are connected. Of several equal maxima, the first one, row by row, counts.

    Returns:
        row (R,), index of the fraction (R,), box (R, 4) x, y, w, h in cells, and whether the region
        holds the map's maximum (R,) bool, of all regions of all maps at all fractions.
    """
    rows = []
    cuts = []
    boxes = []
    around = []
    for n, heatmap in enumerate(maps):
        top = int(heatmap.argmax())
        if heatmap.flat[top] <= 0:
            continue  # an empty map predicts nothing
        for k, fraction in enumerate(FRACTIONS):
            high = (heatmap >= np.float32(fraction) * heatmap.flat[top]).view(np.uint8)
            found, labels, found_boxes, _ = cv2.connectedComponentsWithStats(high, connectivity=8)
            boxes.append(found_boxes[1:, :4])  # the first is what lies below
            around.append(np.arange(1, found) == labels.flat[top])
            rows += [n] * (found - 1)
            cuts += [k] * (found - 1)
    if not rows:
        boxes = [np.zeros((0, 4), np.int32)]
        around = [np.zeros(0, bool)]
    return (
        np.array(rows, np.int64),
        np.array(cuts, np.int64),
        np.concatenate(boxes).astype(np.float64),
        np.concatenate(around),
    )


def score_predicted(
    place: np.ndarray, predicted: np.ndarray, around: np.ndarray, boxes: np.ndarray, cuts: int
) -> np.ndarray:
    """Score predicted boxes, all but the energy.

    Args:
        place: (R,) of each predicted box: row * cuts + index of the fraction.
        predicted: (R, 4).
        around: (R,) bool, whether it is the one around the maximum.
        boxes: (N, K, 4).
        cuts: number of fractions.

    Returns:
        (N, cuts, len(SCORES)) float64.
    """
    iou, iobb = overlaps(predicted[:, None], boxes[place // cuts])  # (R, K)
    is_box = boxes[..., 2] > 0  # (N, K)
    places = len(boxes) * cuts

    # the best predicted box of each true one, then the share of the true ones that are found
    scores = np.zeros((places, len(SCORES)))
    counted = np.repeat(is_box, cuts, axis=0)  # (places, K)
    column = 0
    for overlap, thresholds in ((iou, IOU), (iobb, IOBB)):
        best = np.zeros(counted.shape)
        np.maximum.at(best, place, overlap)
        for threshold in thresholds:
            found = (best >= threshold - 1e-9) & counted
            scores[:, column] = found.sum(axis=1) / counted.sum(axis=1)
            column += 1

    # predicted boxes that find nothing, and the one around the maximum
    best_of_predicted = iou.max(axis=1, initial=0)
    is_false = best_of_predicted < IOU[0] - 1e-9
    scores[:, column] = np.bincount(place, is_false, minlength=places)
    scores[place[around], column + 1] = best_of_predicted[around]
    return scores.reshape(len(boxes), cuts, len(SCORES))


def energy(heatmap: np.ndarray, boxes: np.ndarray) -> float:
    """Share of a map's sum inside its boxes (K, 4); cells on a rim count by the part inside."""
    height, width = heatmap.shape
    inside = np.zeros(heatmap.shape)
    for x, y, w, h in boxes:
        inside = np.maximum(inside, np.outer(covered(y, h, height), covered(x, w, width)))
    total = heatmap.sum(dtype=np.float64)
    return float((heatmap * inside).sum() / total) if total > 0 else 0.0


def covered(start: float, length: float, count: int) -> np.ndarray:
    """Part of each of `count` cells that lies in [start, start + length): (count,)."""
    low = np.arange(count)
    return (np.minimum(start + length, low + 1) - np.maximum(start, low)).clip(0, 1)


def folds_of(patient_ids: np.ndarray) -> np.ndarray:
    """The fold of each row of a class, 0 to FOLDS - 1; all rows of a patient are in one."""
    patients, patient_of = np.unique(np.asarray(patient_ids).astype(str), return_inverse=True)
    order = np.random.default_rng(0).permutation(len(patients))
    return order[patient_of] % FOLDS


def cross_fitted(
    scores: np.ndarray, classes: np.ndarray, patient_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of each row at the fraction that is best for its class in the other folds.

    The best fraction is the one with the highest mean T(IoU) over all thresholds, the lowest such
    one if there are several.

    Args:
        scores: (N, len(FRACTIONS), len(SCORES)) from `score_maps`.
        classes, patient_ids: (N,) of each row.

    Returns:
        scores (N, len(SCORES)), and the index of the fraction of each row (N,) int64. NaN, and -1,
        where no other patient has a box of the class.
    """
    chosen = np.full(len(scores), -1)
    for others, held_out in splits(classes, patient_ids):
        chosen[held_out] = best_fraction(scores[others])
    picked = scores[np.arange(len(scores)), chosen].copy()
    picked[chosen < 0] = np.nan
    return picked, chosen


def oracle(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The scores of each row at the fraction that is best for its class on the rows themselves.

    An upper bound for the choice of the fraction, not a result. Args as for `cross_fitted`.
    """
    picked = np.empty((len(scores), scores.shape[2]))
    for name in np.unique(classes):
        of_class = classes == name
        picked[of_class] = scores[of_class, best_fraction(scores[of_class])]
    return picked


def best_fraction(scores: np.ndarray) -> int:
    return int(scores[..., CHOSEN_BY].mean(axis=(0, 2)).argmax())


def splits(classes: np.ndarray, patient_ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of a class in all folds but one, and in that one, for every class and fold that has any.

    A class of a single patient is left out.
    """
    found = []
    for name in np.unique(classes):
        of_class = np.flatnonzero(classes == name)
        folds = folds_of(np.asarray(patient_ids)[of_class])
        for fold in np.unique(folds):
            others = of_class[folds != fold]
            if len(others):
                found.append((others, of_class[folds == fold]))
    return found


def prior_boxes(
    bbox_xywh: np.ndarray, image_size: np.ndarray, classes: np.ndarray, patient_ids: np.ndarray
) -> np.ndarray:
    """A control that does not look at the image: the median box of the class in the other folds.

    Args:
        bbox_xywh, image_size: as for `score_maps`.
        classes, patient_ids: (N,) of each row.

    Returns:
        (N, 4) float64 x, y, w, h in pixels; NaN where the other folds have no box of the class.
    """
    relative = in_cells(bbox_xywh, image_size, (1, 1))  # (N, K, 4) in shares of the image
    height, width = image_size.T
    boxes = np.full((len(relative), 4), np.nan)
    for others, held_out in splits(classes, patient_ids):
        of_others = relative[others].reshape(-1, 4)
        boxes[held_out] = np.median(of_others[of_others[:, 2] > 0], axis=0)
    return boxes * np.stack([width, height, width, height], axis=1)


def random_maps(count: int, seed: int = 0) -> np.ndarray:
    """A control: smooth noise, (count, GRID, GRID) float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    return enlarged(rng.random((count, 8, 8), np.float32))
