"""Metrics: arrays in, numbers out, no model."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor

MAPS_AT_A_TIME = 16  # upsampled together; as many as fit in a processor's cache


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, over the images whose label is known.

    Args:
        labels: (N, C), 0 or 1, NaN if unknown.
        scores: (N, C), higher for more likely; logits or probabilities.

    Returns:
        (C,) float64; NaN where a class has no positive or no negative.
    """
    # here, as predictions do without it, and it takes half a second
    from sklearn.metrics import roc_auc_score

    areas = np.full(labels.shape[1], np.nan)
    has_both = (labels == 0).any(axis=0) & (labels == 1).any(axis=0)  # (C,)
    for c in np.flatnonzero(has_both):
        known = ~np.isnan(labels[:, c])
        areas[c] = roc_auc_score(labels[known, c], scores[known, c])
    return areas


def mean_auroc(areas: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Means over the classes that have an AUROC; NaN if none has.

    Args:
        areas: (C,), NaN where undefined.
        labels: (N, C), 0 or 1, NaN if unknown.

    Returns:
        weighted: by the number of positives; the published tables call this "micro".
        macro: unweighted.
    """
    defined = np.isfinite(areas)
    if not defined.any():
        return np.nan, np.nan
    positives = np.nansum(labels, axis=0)[defined]
    weighted = float(np.average(areas[defined], weights=positives))
    macro = float(areas[defined].mean())
    return weighted, macro


def youden_thresholds(
    labels: np.ndarray, logits: np.ndarray, names: list[str]
) -> dict[str, float | None]:
    """Probability from which each class is called present, by Youden's index.

    It maximises sensitivity + specificity.

    Args:
        labels: (N, C), 0 or 1; images whose label is unknown, NaN, are left out.
        logits: (N, C) float32.
        names: of the C classes.

    Returns:
        By class; None where a class has no positive or no negative, or is predicted no better than
        by chance.
    """
    # here, as predictions do without it, and it takes half a second
    from sklearn.metrics import roc_curve

    thresholds = {}
    for c, name in enumerate(names):
        best = np.inf
        known = ~np.isnan(labels[:, c])
        if 0 < labels[known, c].sum() < known.sum():
            false_positives, true_positives, levels = roc_curve(labels[known, c], logits[known, c])
            best = levels[np.argmax(true_positives - false_positives)]  # the first one is infinite
        # float32 of a float64 sigmoid, as the probabilities that are compared with it
        probability = float(np.float32(expit(np.float64(best))))
        thresholds[name] = probability if np.isfinite(best) else None
    return thresholds


def validation_scores(
    labels: np.ndarray, logits: np.ndarray, thresholds: dict[str, float | None]
) -> dict[str, dict[str, float | None]]:
    """How a network does on validation images, by class.

    Args:
        labels: (N, C), 0 or 1, NaN if unknown.
        logits: (N, C) float32.
        thresholds: from `youden_thresholds`, in the order of the columns.

    Returns:
        By class: auroc, and called_healthy, the share of the images without any finding in which it
        is called present; None where there is none.
    """
    healthy = logits[(labels == 0).all(axis=1)]
    scores = {}
    for c, (name, area) in enumerate(zip(thresholds, auroc(labels, logits), strict=True)):
        threshold = thresholds[name]
        called = None
        if threshold is not None and len(healthy):
            probabilities = expit(healthy[:, c].astype(np.float64)).astype(np.float32)
            called = float((probabilities >= threshold).mean())
        scores[name] = {"auroc": None if np.isnan(area) else float(area), "called_healthy": called}
    return scores


def point_localization(
    heatmaps: Tensor, bbox_xywh: np.ndarray, image_size: np.ndarray, input_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check whether the maximum of each heatmap lies in its box, or in one of its boxes.

    Heatmaps are upsampled to the input size of the network (bilinear, corners not aligned). Pixel
    (i, j) of that S x S grid stands for pixel (floor(i * H / S), floor(j * W / S)) of the image,
    and is inside if x <= column < x + w and y <= row < y + h. If several pixels share the maximum,
    the hit is the share of them that is inside. A flat map, the same everywhere, has no place.

    Args:
        heatmaps: (N, h, w) float32 probabilities; one per image and class that has boxes.
        bbox_xywh: (N, 4) integers, pixels of the image file; or (N, K, 4) for up to K boxes each,
            where boxes of width and height 0 stand for none.
        image_size: (N, 2) height and width of the image files, pixels.
        input_size: height and width of the network's input, pixels.

    Returns:
        hit (N,) float64 in [0, 1]; row (N,) and column (N,) int64 of the (first) maximum, in pixels
        of the image file. Of a flat map: 0, -1 and -1.
    """
    # Deviation: the authors drew each box as a mask, resized it (nearest neighbour) and looked up
    # the maximum in it. Comparing coordinates gives the same result for every pixel.

    # (map, i, j) of every pixel that equals the maximum of its map
    maxima = []
    for first, large in enumerate(enlarge(heatmaps, input_size)):
        n, i, j = maxima_of(large)
        maxima.append(torch.stack([n + first * MAPS_AT_A_TIME, i, j]).cpu().numpy())
    n, i, j = np.concatenate(maxima, axis=1)  # (maxima,) each

    # convert to pixels of the image and compare with the box
    height, width = input_size
    row = i * image_size[n, 0] // height
    column = j * image_size[n, 1] // width
    boxes = bbox_xywh.reshape(len(bbox_xywh), -1, 4)  # (N, K, 4)
    inside = in_box(row[:, None], column[:, None], boxes[n]).any(axis=1)  # (maxima,)
    hit = np.bincount(n, inside) / np.bincount(n)  # (N,)
    _, first_of_map = np.unique(n, return_index=True)
    flat = are_flat(heatmaps)
    places = (np.where(flat, -1, each[first_of_map]) for each in (row, column))
    return np.where(flat, 0, hit), *places


def are_flat(heatmaps: Tensor) -> np.ndarray:
    """Whether heatmaps (N, h, w) are the same everywhere: then they show no place. (N,) bool."""
    heatmaps = heatmaps.flatten(1)
    return (heatmaps.amin(dim=1) == heatmaps.amax(dim=1)).cpu().numpy()


def enlarge(heatmaps: Tensor, input_size: tuple[int, int]) -> Iterator[Tensor]:
    """Upsample heatmaps (N, h, w) to the size of the network's input, `MAPS_AT_A_TIME`.

    Raises:
        ValueError: they are not float32.
    """
    if heatmaps.dtype != torch.float32:
        raise ValueError(f"heatmaps must be float32, not {heatmaps.dtype}: rounding causes ties")
    for chunk in heatmaps[:, None].split(MAPS_AT_A_TIME):
        yield F.interpolate(chunk, size=input_size, mode="bilinear", align_corners=False)[:, 0]


def maxima_of(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Map, row, column of every pixel of (N, H, W) that equals the maximum of its map, in order."""
    of_rows = maps.amax(dim=2)  # (N, H): then only a few rows are searched
    n, i = torch.nonzero(of_rows == of_rows.amax(dim=1, keepdim=True), as_tuple=True)
    k, j = torch.nonzero(maps[n, i] == of_rows[n, i, None], as_tuple=True)
    return n[k], i[k], j


def accuracies(hits: np.ndarray, classes: np.ndarray, names: list[str]) -> np.ndarray:
    """Mean hit of the rows of each class in `names`, then of all: (len(names) + 1,); skips NaN."""
    hits = pd.Series(np.asarray(hits))
    return np.append(hits.groupby(np.asarray(classes)).mean()[names], hits.mean())


def in_box(row: np.ndarray, column: np.ndarray, bbox_xywh: np.ndarray) -> np.ndarray:
    """Whether pixels are inside boxes (..., 4): x <= column < x + w and y <= row < y + h."""
    x, y, w, h = np.moveaxis(bbox_xywh, -1, 0)
    return (x <= column) & (column < x + w) & (y <= row) & (row < y + h)
