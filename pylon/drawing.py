"""Draw heatmaps: overlays, panels with boxes, pages of panels."""

from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL = 384  # side of a panel, pixels
TITLE = 30  # height of a title, pixels
GAP = 12  # space between panels, pixels
DPI = 100
BOX_COLOUR = (0, 255, 0)


class Row(NamedTuple):
    """Contents of one row of a page."""

    image_id: str
    image: np.ndarray  # (H, W) uint8
    heatmap: np.ndarray  # (h, w) float32, probabilities
    title: str
    bbox_xywh: np.ndarray  # (K, 4) boxes in pixels of the image; without width: none


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Overlay a heatmap on a radiograph as in the published figures: min-max scaled, JET, 50 %.

    Args:
        image: (H, W) uint8.
        heatmap: (h, w) float32, any range; a constant heatmap is drawn in the lowest colour.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    # scale to [0, 1], resize to the radiograph, colour
    low = float(heatmap.min())
    high = float(heatmap.max())
    scaled = (heatmap - low) / (high - low) if high > low else np.zeros_like(heatmap)
    scaled = cv2.resize(scaled, image.shape[::-1], interpolation=cv2.INTER_LINEAR)  # (H, W)
    levels = np.round(scaled * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]  # (H, W, 3) RGB

    # blend
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 0.5, np.ascontiguousarray(colours), 0.5, 0)


def draw_page(rows: list[Row]) -> bytes:
    """Draw rows of two panels, radiograph and heatmap with box; return the bytes of a JPEG file."""
    step = PANEL + TITLE + GAP
    width = 2 * PANEL + 3 * GAP
    height = len(rows) * step + GAP
    left = GAP
    right = PANEL + 2 * GAP
    tops = [k * step + TITLE + GAP // 2 for k in range(len(rows))]

    # matplotlib draws the text only: it would resample the images, which takes ten times as long
    # as everything else
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for top, row in zip(tops, rows, strict=True):
        for x, text in ((left, row.image_id), (right, row.title)):
            figure.text(x / width, 1 - (top - 7) / height, text, fontsize=12, parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # (height, width, 3) RGB

    # OpenCV draws the panels
    for top, row in zip(tops, rows, strict=True):
        image = cv2.resize(row.image, (PANEL, PANEL), interpolation=cv2.INTER_AREA)
        page[top : top + PANEL, left : left + PANEL] = image[..., None]
        page[top : top + PANEL, right : right + PANEL] = panel_with_box(image, row)
    jpeg_options = [cv2.IMWRITE_JPEG_QUALITY, 85]
    return cv2.imencode(".jpg", page[..., ::-1], jpeg_options)[1].tobytes()


def panel_with_box(image: np.ndarray, row: Row) -> np.ndarray:
    """Draw the overlay of a row, (PANEL, PANEL, 3) RGB, with its boxes scaled to the panel."""
    panel = overlay(image, row.heatmap)
    file_size = np.array(row.image.shape[::-1] * 2)  # width, height, width, height
    boxes = row.bbox_xywh[row.bbox_xywh[:, 2] > 0]
    for x, y, w, h in boxes * PANEL / file_size:
        corner = (round(x), round(y))
        opposite = (round(x + w) - 1, round(y + h) - 1)
        cv2.rectangle(panel, corner, opposite, BOX_COLOUR, 2)
    return panel
