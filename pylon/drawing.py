"""Draw heatmaps: overlays, pages of boxed images, sheets of predictions.

Two scales. "absolute": heatmaps are probabilities; colour and opacity stand for 0 to 1 in every
picture, so that an improbable finding leaves the radiograph as it is. "minmax": each heatmap from
its own minimum to its own maximum, as in the published figures.
"""

from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

Scale = Literal["absolute", "minmax"]

PANEL = 384  # longer side of a panel of a page, pixels
TITLE = 30  # height of a title, pixels
GAP = 12  # space between panels, pixels
BAR = 80  # width of the colour bar with its labels, pixels
DPI = 100
BOX_COLOUR = (0, 255, 0)
CONTOUR_COLOUR = (0, 229, 255)

SHEET_PANEL = 512  # longer side of a panel of a sheet, pixels
SHEET_COLUMN = 360  # least width of a column of a sheet, for its titles, pixels
SHEET_COLUMNS = 4
SHEET_TITLE = 48  # height of two lines of text, pixels
FONT = 15  # pixels

# The absolute scale, by level 0 to 255 of the probability: inferno is perceptually uniform, and its
# 256 colours differ. Opacity rises in proportion to the probability.
LEVELS = np.arange(256, dtype=np.uint8)
COLOURS = cv2.applyColorMap(LEVELS, cv2.COLORMAP_INFERNO)[:, 0, ::-1]  # (256, 3) RGB
MOST_OPAQUE = 0.75  # opacity where the probability is 1


@lru_cache(maxsize=8)
def blended(most_opaque: float = MOST_OPAQUE) -> np.ndarray:
    """Colours on a radiograph, (256, 256, 3) uint8 RGB, by level of probability and of grey.

    Args:
        most_opaque: opacity where the probability is 1.
    """
    opacity = most_opaque * LEVELS[:, None, None] / 255
    grey = LEVELS[None, :, None]
    return (grey * (1 - opacity) + COLOURS[:, None] * opacity).round().astype(np.uint8)


class Row(NamedTuple):
    """Contents of one row of a page."""

    image_id: str
    image: np.ndarray  # (H, W) uint8
    heatmap: np.ndarray  # (h, w) float32, probabilities
    title: str
    bbox_xywh: np.ndarray  # (K, 4) boxes in pixels of the image; without width: none
    threshold: float | None = None  # where the absolute scale draws a contour


class Panel(NamedTuple):
    """A panel of a sheet."""

    picture: np.ndarray  # (H, W, 3) uint8, RGB
    title: str
    subtitle: str = ""


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    scale: Scale = "minmax",
    threshold: float | None = None,
    opacity: float | None = None,
) -> np.ndarray:
    """Overlay a heatmap on a radiograph.

    Args:
        image: (H, W) uint8.
        heatmap: (h, w) float32: probabilities, or with "minmax" any range; a constant heatmap is
            then drawn in the lowest colour.
        scale: "minmax": JET at 50 %, as in the published figures. "absolute": inferno, its opacity
            in proportion to the probability, up to 75 %.
        threshold: with "absolute", draw a contour where the probability reaches it.
        opacity: instead of these 50 % and 75 %, a share.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    size = image.shape[::-1]
    if scale == "absolute":
        large = cv2.resize(heatmap, size, interpolation=cv2.INTER_LINEAR)  # (H, W)
        levels = np.round(large * 255).astype(np.intp)
        colours = blended(MOST_OPAQUE if opacity is None else opacity)
        picture = colours.reshape(-1, 3).take(256 * levels + image, axis=0)  # 4 times as fast as []
        if threshold is not None and reaches(heatmap, threshold):
            draw_contour(picture, large, threshold)
        return picture

    # scale to [0, 1], resize to the radiograph, colour
    low = float(heatmap.min())
    high = float(heatmap.max())
    scaled = (heatmap - low) / (high - low) if high > low else np.zeros_like(heatmap)
    scaled = cv2.resize(scaled, size, interpolation=cv2.INTER_LINEAR)  # (H, W)
    levels = np.round(scaled * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]  # (H, W, 3) RGB

    # blend
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    share = 0.5 if opacity is None else opacity
    return cv2.addWeighted(grey, 1 - share, np.ascontiguousarray(colours), share, 0)


def reaches(heatmap: np.ndarray, threshold: float) -> bool:
    """Whether a heatmap reaches a threshold anywhere."""
    # a score may differ from the maximum of its map by the last bit
    return bool(heatmap.max() >= threshold * (1 - 1e-6))


def draw_contour(picture: np.ndarray, heatmap: np.ndarray, threshold: float) -> None:
    """Draw, in place, where a heatmap (H, W) reaches a threshold."""
    # interpolation lowers the maximum a little
    high = (heatmap >= min(threshold, heatmap.max())).astype(np.uint8)

    # a little outside, so that it does not hide a region of few pixels
    thickness = max(1, round(max(picture.shape) / 400))
    high = cv2.dilate(high, np.ones((3, 3), np.uint8), iterations=thickness + 1)
    contours, _ = cv2.findContours(high, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, CONTOUR_COLOUR, thickness)


def contour_path(heatmap: np.ndarray, threshold: float) -> str:
    """Where a heatmap (h, w) reaches a threshold, for the `d` of an SVG path; 1000 x 1000 units."""
    side = 256
    large = cv2.resize(heatmap, (side, side), interpolation=cv2.INTER_LINEAR)
    high = (large >= min(threshold, large.max())).astype(np.uint8)
    high = cv2.dilate(high, np.ones((3, 3), np.uint8))  # a little outside, as in a picture
    contours, _ = cv2.findContours(high, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    path = ""
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.6, closed=True)[:, 0]  # (N, 2) x, y of pixels
        units = np.round((points + 0.5) * 1000 / side).astype(int)
        path += "M" + " ".join(f"{x} {y}" for x, y in units.tolist()) + "z"
    return path


def title_of(label: str, probability: float, present: bool | None) -> str:
    """Title of an overlay; `present` is None where there is no threshold."""
    return f"{label}: {probability:.3f}" + (", not called present" if present is False else "")


def draw_page(rows: list[Row], scale: Scale = "minmax") -> bytes:
    """Draw rows of two panels, radiograph and heatmap with box; return the bytes of a JPEG file."""
    step = PANEL + TITLE + GAP
    with_bar = scale == "absolute"
    width = 2 * PANEL + 3 * GAP + with_bar * BAR
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
        image = fit(row.image, PANEL)
        place(page, top, left, np.repeat(image[..., None], 3, axis=2))
        place(page, top, right, panel_with_box(image, row, scale))
        if with_bar:
            place(page, top, right + PANEL + GAP, colour_bar(PANEL))
    jpeg_options = [cv2.IMWRITE_JPEG_QUALITY, 85]
    return cv2.imencode(".jpg", page[..., ::-1], jpeg_options)[1].tobytes()


def panel_with_box(image: np.ndarray, row: Row, scale: Scale) -> np.ndarray:
    """Draw the overlay of a row on its image (h, w) of a panel, with its boxes; (h, w, 3) RGB."""
    panel = overlay(image, row.heatmap, scale, row.threshold)
    size = np.array(image.shape[::-1] * 2)  # width, height, width, height
    file_size = np.array(row.image.shape[::-1] * 2)
    boxes = row.bbox_xywh[row.bbox_xywh[:, 2] > 0]
    for x, y, w, h in boxes * size / file_size:
        corner = (round(x), round(y))
        opposite = (round(x + w) - 1, round(y + h) - 1)
        cv2.rectangle(panel, corner, opposite, BOX_COLOUR, 2)
    return panel


def fit(image: np.ndarray, side: int, to_enlarge: int = cv2.INTER_AREA) -> np.ndarray:
    """Resize an image (H, W) so that its longer side is `side` pixels.

    Args:
        to_enlarge: OpenCV's interpolation for smaller images; larger ones are averaged.
    """
    height, width = image.shape
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else to_enlarge)


def place(page: np.ndarray, top: int, left: int, picture: np.ndarray) -> None:
    """Copy a picture onto a page."""
    height, width = picture.shape[:2]
    page[top : top + height, left : left + width] = picture


def draw_sheet(panels: list[Panel], with_bar: bool) -> bytes:
    """Draw panels of one image, at most `SHEET_COLUMNS` in a row, with titles; a PNG file.

    Args:
        panels: with pictures of one size.
        with_bar: draw the colour bar of the absolute scale.
    """
    height, width = panels[0].picture.shape[:2]
    column = max(width, SHEET_COLUMN) + GAP
    row = SHEET_TITLE + height + GAP
    columns = min(len(panels), SHEET_COLUMNS)
    rows = -(-len(panels) // SHEET_COLUMNS)
    size = (rows * row + GAP, columns * column + GAP + with_bar * BAR, 3)
    sheet = np.full(size, 255, np.uint8)

    for k, panel in enumerate(panels):
        top = k // SHEET_COLUMNS * row + GAP
        left = k % SHEET_COLUMNS * column + GAP
        place(sheet, top, left, title_strip(panel, column - GAP))
        place(sheet, top + SHEET_TITLE, left, panel.picture)
    if with_bar:
        place(sheet, GAP + SHEET_TITLE, columns * column + GAP, colour_bar(height))
    return cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes()


def title_strip(panel: Panel, width: int) -> np.ndarray:
    """The title of a panel and the line below it, (SHEET_TITLE, width, 3) uint8."""
    strip = Image.new("RGB", (width, SHEET_TITLE), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    for line, text in enumerate((panel.title, panel.subtitle)):
        position = (0, line * (FONT + 6))
        draw.text(position, shortened(text, width), fill=(0, 0, 0), font=font())
    return np.asarray(strip)


@cache
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), FONT)


def shortened(text: str, width: int) -> str:
    """A text in one line of at most `width` pixels; the middle is left out if it is longer."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if font().getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        short = f"{text[: kept // 2]} .. {text[len(text) - (kept - kept // 2) :]}"
        if font().getlength(short) <= width:
            break
    return short


@cache
def colour_bar(height: int) -> np.ndarray:
    """The colour bar of the absolute scale, (height, BAR, 3) uint8 RGB.

    Left the colours themselves, from which probabilities can be read back; right as they look on
    medium grey.
    """
    levels = np.linspace(255, 0, height).round().astype(np.uint8)
    bar = np.full((height, BAR, 3), 255, np.uint8)
    bar[:, :16] = COLOURS[levels][:, None]
    bar[:, 16:32] = blended()[levels, 128][:, None]
    page = Image.fromarray(bar)
    draw = ImageDraw.Draw(page)
    ticks = (0, 0.25, 0.5, 0.75, 1) if height >= 6 * FONT else (0, 1)
    for tick in ticks:
        y = (1 - tick) * (height - 1)
        top = min(max(0, y - FONT * 0.6), height - FONT - 3)
        draw.text((38, top), f"{tick:g}", fill=(0, 0, 0), font=font())
    return np.asarray(page)
