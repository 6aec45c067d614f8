"""Reference points: what is reachable without looking at the image, to compare networks with."""

import numpy as np

# points are the centres of 64 x 64 cells, the pixels of PYLON's map of a 256 x 256 input
GRID = 64


def inside_by_cell(bbox_xywh: np.ndarray, image_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and which columns of the grid have their centres inside each box.

    Returns:
        rows, columns: (N, GRID) float32 each, 0 or 1.
    """
    x, y, w, h = bbox_xywh.T[..., None]  # (N, 1) each
    height, width = image_size.T[..., None]  # (N, 1) each
    centres = (np.arange(GRID) + 0.5) / GRID  # (GRID,)
    row = np.floor(height * centres)  # (N, GRID)
    column = np.floor(width * centres)  # (N, GRID)
    rows = ((y <= row) & (row < y + h)).astype(np.float32)
    columns = ((x <= column) & (column < x + w)).astype(np.float32)
    return rows, columns


def centre_hits(bbox_xywh: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Hits of the image centre: the share of the four cells around it in each box, (N,) float64.

    Args:
        bbox_xywh: (N, 4), pixels of the image file.
        image_size: (N, 2) height and width of the image files, pixels.
    """
    middle = slice(GRID // 2 - 1, GRID // 2 + 1)
    rows, columns = inside_by_cell(bbox_xywh, image_size)
    of_rows = rows[:, middle].mean(axis=1, dtype=float)
    of_columns = columns[:, middle].mean(axis=1, dtype=float)
    return of_rows * of_columns


def prior_hits(
    bbox_xywh: np.ndarray, image_size: np.ndarray, classes: np.ndarray, patient_ids: np.ndarray
) -> np.ndarray:
    """Hits of the point that lies in most of the other patients' boxes of the same class.

    Among ties, the middle one in row-major order is taken. A patient's own boxes, in any image, are
    not used.

    Args:
        bbox_xywh, image_size: as for `centre_hits`.
        classes, patient_ids: (N,) of each box.

    Returns:
        (N,) float64; 0 or 1; NaN where no other patient has a box of the class.
    """
    hits = np.full(len(bbox_xywh), np.nan)
    rows, columns = inside_by_cell(bbox_xywh, image_size)
    for name in np.unique(classes):
        of_class = np.flatnonzero(classes == name)
        boxes_at = rows[of_class].T @ columns[of_class]  # (GRID, GRID) boxes that contain each cell
        for patient_id in np.unique(patient_ids[of_class]):
            own = of_class[patient_ids[of_class] == patient_id]
            if len(own) == len(of_class):
                continue
            of_others = np.round(boxes_at - rows[own].T @ columns[own])
            favourites = np.flatnonzero(of_others == of_others.max())
            i, j = np.divmod(favourites[len(favourites) // 2], GRID)
            hits[own] = rows[own, i] * columns[own, j]
    return hits
