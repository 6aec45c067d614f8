"""Time the page of heatmaps: to write it, to open it, to filter it.

    python benchmarks/page.py --data data/phantom

Needs Debian's chromium, and playwright (of `pip install -e '.[test]'`). The heatmaps are random
blobs: no network is run. Prints seconds and megabytes; writes nothing but a temporary folder.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pylon.data.images import width_height_of
from pylon.scoring.rows import Rows
from pylon.system.cli import parse, start
from pylon.system.errors import UserError
from pylon.viewer.page import page_of_boxes

CLASSES = ["Atelectasis", "Cardiomegaly", "Effusion", "Mass"]
FIRST_IMAGE = """document.addEventListener("load", (event) => {
    if (event.target.tagName === "IMG") window.firstImage ??= performance.now();
}, true)"""
OPENED = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
FILTER = """async () => {
    const start = performance.now();
    const select = document.querySelector("[name=finding]");
    select.value = select.options[1].value;
    select.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start;
}"""


@dataclass
class Options:
    """Time the page of heatmaps."""

    data: Path = Path("data/phantom")
    """Folder with images/*.png."""
    rows: int = 984
    """Rows of the page."""
    images: int = 880
    """Images of the rows, at most."""
    repeats: int = 3
    """How often the page is opened."""


def main(options: Options) -> None:
    files = sorted((options.data / "images").glob("*.png"))[: options.images]
    if not files:
        raise UserError(f"{options.data / 'images'} has no images; draw a phantom first")
    with tempfile.TemporaryDirectory() as folder:
        # write it
        rows, maps = invented(files, options.rows)
        table = pd.DataFrame(0.5, ["0", "0 low", "0 high", "prior", "called present"],
                             [*CLASSES, "micro"])  # fmt: skip
        paths = {path.name: str(path) for path in files}
        started = time.perf_counter()
        page_of_boxes(Path(folder), rows, maps, paths, table, "minmax", 2)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"{options.rows} rows on {len(files)} images: {seconds:.1f} s, {size / 1e6:.1f} MB")
        open_in_browser(Path(folder), options.repeats)


def invented(files: list[Path], count: int) -> tuple[Rows, np.ndarray]:
    """Rows of images, and heatmaps (count, 64, 64) of random blobs."""
    rng = np.random.default_rng(0)
    noise = rng.random((count, 64, 64), np.float32)
    maps = np.stack([cv2.GaussianBlur(each, (0, 0), 3) for each in noise])
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    chosen = [files[k % len(files)] for k in range(count)]
    sizes = {path: width_height_of(str(path)) for path in files}
    width, height = np.array([sizes[path] for path in chosen]).T
    table = pd.DataFrame({"image_id": [path.name for path in chosen], "patient_id": range(count)})
    table["pathology"] = [CLASSES[(k + k // len(files)) % 4] for k in range(count)]
    table["probability"] = maps.max(axis=(1, 2)).astype(np.float64)
    table["row"] = height // 2
    table["column"] = width // 2
    table["hit"] = rng.integers(0, 2, count)
    table["bbox_x"] = width // 4
    table["bbox_y"] = height // 4
    table["bbox_w"] = width // 2
    table["bbox_h"] = height // 2
    table["image_height"] = height
    table["image_width"] = width
    table["threshold"] = 0.6
    table["called"] = (table["probability"] >= 0.6).astype(float)
    about = {"class_names": CLASSES, "method": "map", "config": {}, "weights_sha256": "none"}
    return Rows(table, {**about, "synthetic": "Invented heatmaps."}), maps


def open_in_browser(folder: Path, repeats: int) -> None:
    """Print how long a browser takes to open a page, to show an image, and to filter."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("playwright is needed: pip install -e '.[test]'") from error
    if chromium is None:
        raise UserError("chromium is needed: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(repeats):
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            page.add_init_script(FIRST_IMAGE)
            page.goto((folder / "index.html").as_uri())
            page.wait_for_function("window.firstImage")
            opened = page.evaluate(OPENED)
            first = page.evaluate("window.firstImage")
            filtered = page.evaluate(FILTER)
            print(
                f"DOMContentLoaded {opened:.0f} ms, first image {first:.0f} ms, "
                f"a filter {filtered:.0f} ms (on the screen)"
            )
            page.close()
        browser.close()


if __name__ == "__main__":
    start(main, parse(Options))
