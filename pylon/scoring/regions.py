"""Points and boxes of findings: where a heatmap is highest, and the region around that place."""

import cv2
import numpy as np
from torch import Tensor

from pylon.scoring.metrics import enlarge


def locate(
    heatmaps: Tensor, image_size: np.ndarray, input_size: tuple[int, int], share: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Find the maximum of each heatmap, and the box of the region around it.

    Heatmaps are upsampled, and pixels of the image file found, as in `point_localization`: the
    points are the same. The region is the connected one, diagonal neighbours included, that holds
    the (first) maximum and in which the heatmap is at least `share` of it. The box is the smallest
    one of whole pixels of the file that covers the region, so it contains the point.

    Args:
        heatmaps: (N, h, w) float32, not negative.
        image_size: (N, 2) height and width of the image files, pixels.
        input_size: height and width of the network's input, pixels.
        share: in (0, 1].

    Returns:
        points (N, 2) int64: row, column; boxes (N, 4) int64: x, y, w, h; pixels of the files.
    """
    height, width = input_size
    corners = []  # of each region, in pixels of the input
    maxima = []
    for large in enlarge(heatmaps, input_size):
        for heatmap in large.cpu().numpy():
            i, j = divmod(int(heatmap.argmax()), width)
            maxima.append((i, j))
            corners.append(region_around(heatmap, i, j, share))
    ij = np.array(maxima, np.int64).reshape(-1, 2)
    x0y0x1y1 = np.array(corners, np.int64).reshape(-1, 4)

    # pixels of the files: input pixel (i, j) covers i * H / S to (i + 1) * H / S
    points = ij * image_size // (height, width)
    low = x0y0x1y1[:, :2] * image_size[:, ::-1] // (width, height)
    high = -(-x0y0x1y1[:, 2:] * image_size[:, ::-1] // (width, height))  # rounded up
    return points, np.concatenate([low, high - low], axis=1)


def region_around(heatmap: np.ndarray, i: int, j: int, share: float) -> tuple[int, int, int, int]:
    """Corners x0, y0, x1, y1 of the region around pixel (i, j), the maximum of a heatmap."""
    high = (heatmap >= share * heatmap[i, j]).astype(np.uint8)
    _, _, _, (x, y, w, h) = cv2.floodFill(high, None, (j, i), 2, flags=8)  # 8 neighbours
    return x, y, x + w, y + h
