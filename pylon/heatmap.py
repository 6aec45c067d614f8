"""Heatmaps as pictures: an overlay, a panel with its box, pages of panels."""

from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL = 384  # side of a panel, pixels
TITLE, GAP, DPI = 30, 12, 100  # height of a title and space between panels, pixels
BOX_COLOUR = (0, 255, 0)


class Row(NamedTuple):
    """What one row of a page shows."""

    image_id: str
    image: np.ndarray  # (H, W) uint8
    heatmap: np.ndarray  # (h, w) float32, probabilities
    title: str
    bbox_xywh: tuple[int, int, int, int]  # pixels of the image


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Lay a heatmap over a radiograph as the published figures do: min-max scaled, JET, half and half.

    Args:
        image: (H, W) uint8.
        heatmap: (h, w) float32, any range; a constant one is drawn as nothing but the lowest colour.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    low, high = float(heatmap.min()), float(heatmap.max())
    scaled = (heatmap - low) / (high - low) if high > low else np.zeros_like(heatmap)
    scaled = cv2.resize(scaled, image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.round(scaled * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 0.5, np.ascontiguousarray(colours), 0.5, 0)


def draw_page(rows: list[Row]) -> bytes:
    """Draw rows of two panels, the radiograph and its heatmap with the box. Returns a JPEG file."""
    width, step = 2 * PANEL + 3 * GAP, PANEL + TITLE + GAP
    height = len(rows) * step + GAP
    left, right, tops = GAP, PANEL + 2 * GAP, [k * step + TITLE + GAP // 2 for k in range(len(rows))]
    # matplotlib writes the text; it would resample the pictures, which takes ten times as long as all the rest
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for top, row in zip(tops, rows, strict=True):
        for x, text in ((left, row.image_id), (right, row.title)):
            figure.text(x / width, 1 - (top - 7) / height, text, fontsize=12, parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    for top, row in zip(tops, rows, strict=True):
        image = cv2.resize(row.image, (PANEL, PANEL), interpolation=cv2.INTER_AREA)
        panel = overlay(image, row.heatmap)
        x, y, w, h = np.array(row.bbox_xywh) * PANEL / np.array(row.image.shape[::-1] * 2)
        cv2.rectangle(panel, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), BOX_COLOUR, 2)
        page[top : top + PANEL, left : left + PANEL] = image[..., None]
        page[top : top + PANEL, right : right + PANEL] = panel
    return cv2.imencode(".jpg", page[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
