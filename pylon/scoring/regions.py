"""Where a heatmap is highest, and the region around that place: its box and its outline."""

from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from pylon.scoring.metrics import are_flat, enlarge


class Places(NamedTuple):
    """Where N heatmaps are highest, in pixels of the image files.

    A flat heatmap, the same everywhere, has no place: its point is (-1, -1), its box has no width
    and no height, its outline no corners.
    """

    points: np.ndarray  # (N, 2) int64: row, column of the maximum
    boxes: np.ndarray  # (N, 4) int64: x, y, w, h of the region
    # N arrays (K, 2) float64: x, y of the region's corners, from (0, 0), the top left corner of the
    # image; the last corner is joined to the first
    outlines: list[np.ndarray]


def locate(
    heatmaps: Tensor, image_size: np.ndarray, input_size: tuple[int, int], share: float = 0.5
) -> Places:
    """Find the maximum of each heatmap, and the box of the region around it.

    Heatmaps are upsampled, and pixels of the image file found, as in `point_localization`: the
    points are the same. The region is the connected one, diagonal neighbours included, that holds
    the (first) maximum and in which the heatmap is at least `share` of it. The box is the smallest
    one of whole pixels of the file that covers the region, so it contains the point. The outline
    is exact, and leaves out holes.

    Args:
        heatmaps: (N, h, w) float32, not negative.
        image_size: (N, 2) height and width of the image files, pixels.
        input_size: height and width of the network's input, pixels.
        share: in (0, 1].
    """
    height, width = input_size
    corners = []  # of each region, in pixels of the input
    maxima = []
    outlines = []
    flat = are_flat(heatmaps)
    for large in enlarge(heatmaps, input_size):
        for heatmap in large.cpu().numpy():
            if flat[len(maxima)]:
                maxima.append((0, 0))
                corners.append((0, 0, 0, 0))
                outlines.append(np.empty((0, 2)))
                continue
            i, j = divmod(int(heatmap.argmax()), width)
            maxima.append((i, j))
            region, (x, y, w, h) = region_around(heatmap, i, j, share)
            corners.append((x, y, x + w, y + h))
            corner = np.array([x, y])
            outlines.append(corner + outline_of(region[y : y + h, x : x + w]))
    ij = np.array(maxima, np.int64).reshape(-1, 2)
    x0y0x1y1 = np.array(corners, np.int64).reshape(-1, 4)

    # pixels of the files: input pixel (i, j) covers i * H / S to (i + 1) * H / S
    points = np.where(flat[:, None], -1, ij * image_size // (height, width))
    low = x0y0x1y1[:, :2] * image_size[:, ::-1] // (width, height)
    high = -(-x0y0x1y1[:, 2:] * image_size[:, ::-1] // (width, height))  # rounded up
    boxes = np.concatenate([low, high - low], axis=1)
    scales = image_size[:, ::-1] / (width, height)
    return Places(points, boxes, [a * scale for a, scale in zip(outlines, scales, strict=True)])


def region_around(
    heatmap: np.ndarray, i: int, j: int, share: float
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The region around pixel (i, j), the maximum of a heatmap, as a mask of its shape; x, y, w, h.

    The mask is uint8, 2 in the region.
    """
    high = (heatmap >= share * heatmap[i, j]).astype(np.uint8)
    _, _, _, box = cv2.floodFill(high, None, (j, i), 2, flags=8)  # 8 neighbours
    return high, box


def outline_of(region: np.ndarray) -> np.ndarray:
    """The corners of a connected region in a mask where it is 2: (K, 2) float64, x, y."""
    # of pixels doubled, the contour passes through the outer quarter nearest to each corner
    doubled = (region == 2).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    (contour,), _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    corners = (contour[:, 0] + 1) // 2  # (K, 2)

    # drop what repeats a corner or lies on a straight line between two
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    before = corners - np.roll(corners, 1, axis=0)
    after = np.roll(corners, -1, axis=0) - corners
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return corners[turns].astype(np.float64)
