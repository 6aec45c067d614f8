"""What a score of point localization is worth: hits of points that nobody looked at the image for."""

import numpy as np

GRID = 64  # points are chosen among the centres of 64 x 64 cells: the places of PYLON's map of a 256 x 256 input


def inside_by_cell(bbox_xywh: np.ndarray, image_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and which columns of the grid have their centres inside each box, (N, GRID) float32 each, 0 or 1."""
    centres = (np.arange(GRID) + 0.5) / GRID
    (y, x), (h, w) = bbox_xywh[:, [1, 0]].T[..., None], bbox_xywh[:, [3, 2]].T[..., None]
    row, column = (np.floor(size[:, None] * centres) for size in image_size.T)
    return ((y <= row) & (row < y + h)).astype(np.float32), ((x <= column) & (column < x + w)).astype(np.float32)


def centre_hits(bbox_xywh: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Hits of the centre of the image, around which four cells lie: the share of the four, (N,) float64.

    Args:
        bbox_xywh: (N, 4), pixels of the image file.
        image_size: (N, 2) height and width of the image files, pixels.
    """
    middle = slice(GRID // 2 - 1, GRID // 2 + 1)
    rows, columns = inside_by_cell(bbox_xywh, image_size)
    return rows[:, middle].mean(axis=1, dtype=float) * columns[:, middle].mean(axis=1, dtype=float)


def prior_hits(bbox_xywh: np.ndarray, image_size: np.ndarray, classes: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Hits of the one point, for each class, that lies in most of the other patients' boxes of that class.

    Of points in equally many the middle one is taken, by rows. A patient's own boxes, in whatever image, have no say.

    Args:
        bbox_xywh, image_size: as for `centre_hits`.
        classes, patients: (N,) of each box.

    Returns:
        (N,) float64; 0 or 1; NaN where no other patient has a box of the class.
    """
    hits = np.full(len(bbox_xywh), np.nan)
    rows, columns = inside_by_cell(bbox_xywh, image_size)
    for name in np.unique(classes):
        of_class = np.flatnonzero(classes == name)
        boxes_at = rows[of_class].T @ columns[of_class]  # (GRID, GRID)
        for patient in np.unique(patients[of_class]):
            own = of_class[patients[of_class] == patient]
            if len(own) == len(of_class):
                continue
            of_others = np.round(boxes_at - rows[own].T @ columns[own])
            favourites = np.flatnonzero(of_others == of_others.max())
            i, j = np.divmod(favourites[len(favourites) // 2], GRID)
            hits[own] = rows[own, i] * columns[own, j]
    return hits
