"""Reference points: what is reachable without looking at the image, to compare networks with."""

import numpy as np

# points are the centres of 64 x 64 cells, the pixels of PYLON's map of a 256 x 256 input
GRID = 64


def inside_by_cell(bbox_xywh: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Which cells of the grid have their centres inside a box: the union of the boxes of a row.

    Args:
        bbox_xywh: (N, 4), or (N, K, 4) for up to K boxes each, pixels of the image file.
        image_size: (N, 2) height and width of the image files, pixels.

    Returns:
        (N, GRID, GRID) bool.
    """
    boxes = bbox_xywh.reshape(len(bbox_xywh), -1, 4)  # (N, K, 4)
    height, width = image_size.T[..., None]  # (N, 1) each
    centres = (np.arange(GRID) + 0.5) / GRID  # (GRID,)
    row = np.floor(height * centres)  # (N, GRID)
    column = np.floor(width * centres)  # (N, GRID)
    inside = np.zeros((len(boxes), GRID, GRID), bool)
    for box in np.moveaxis(boxes, 1, 0):  # the k-th box of every row
        x, y, w, h = box.T[..., None]  # (N, 1) each
        rows = (y <= row) & (row < y + h)  # (N, GRID)
        columns = (x <= column) & (column < x + w)
        inside |= rows[:, :, None] & columns[:, None, :]
    return inside


def centre_hits(bbox_xywh: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Hits of the image centre: the share of the four cells around it in each box, (N,) float64.

    Args:
        bbox_xywh, image_size: as for `inside_by_cell`.
    """
    middle = slice(GRID // 2 - 1, GRID // 2 + 1)
    return inside_by_cell(bbox_xywh, image_size)[:, middle, middle].mean(axis=(1, 2))


def prior_hits(
    bbox_xywh: np.ndarray, image_size: np.ndarray, classes: np.ndarray, patient_ids: np.ndarray
) -> np.ndarray:
    """Hits of the point that lies in most of the other patients' boxes of the same class.

    Among ties, the middle one in row-major order is taken. A patient's own boxes, in any image, are
    not used. Boxes of one class in one image count as their union.

    Args:
        bbox_xywh, image_size: as for `inside_by_cell`.
        classes, patient_ids: (N,) of each row.

    Returns:
        (N,) float64; 0 or 1; NaN where no other patient has a box of the class.
    """
    hits = np.full(len(bbox_xywh), np.nan)
    inside = inside_by_cell(bbox_xywh, image_size)
    for name in np.unique(classes):
        of_class = np.flatnonzero(classes == name)
        boxes_at = inside[of_class].sum(axis=0)  # (GRID, GRID) rows whose boxes contain each cell
        for patient_id in np.unique(patient_ids[of_class]):
            own = of_class[patient_ids[of_class] == patient_id]
            if len(own) == len(of_class):
                continue
            of_others = boxes_at - inside[own].sum(axis=0)
            favourites = np.flatnonzero(of_others == of_others.max())
            i, j = np.divmod(favourites[len(favourites) // 2], GRID)
            hits[own] = inside[own, i, j]
    return hits
