"""Draw the heatmaps of the boxed test images.

    python generate_heatmap.py                           # seed 0 of save/pylon/
    python generate_heatmap.py --checkpoint model.pkl    # the authors' weights, or any other
    python generate_heatmap.py --scale absolute          # colours stand for probabilities

Reads  one checkpoint and DATA, with BBox_List_2017.csv, or --table and --boxes of your own.
Writes figs/picked/PAGE.jpg, the images of the paper's figure, and figs/all/PAGE.jpg, all images:
       one row per image and class with boxes, ten rows per page;
       with --html figs/html/index.html: all of them in a page to look through in a browser.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pylon.options import BoxOptions, EvaluationOptions, Method
from pylon.system.cli import parse, start


@dataclass
class Options(BoxOptions, EvaluationOptions):
    """Draw the heatmaps of the boxed test images."""

    seed: int | None = None
    """Seed of the checkpoint to draw; if none is given, the lowest one under save/NAME."""
    out: Path = Path("figs")
    """Folder for the pages: OUT/picked and OUT/all; with a --method other than map,
    OUT/METHOD/picked and OUT/METHOD/all."""
    method: Method = "map"
    """Heatmaps to draw: map, the network's own maps; or a method of the grad-cam library, applied
    to the encoder's deepest feature."""
    scale: Literal["minmax", "absolute"] = "minmax"
    """minmax: each map from its own minimum to its own maximum, as in the published figures.
    absolute: colours stand for probabilities from 0 to 1, with a contour at the threshold."""
    html: bool = False
    """Write a page, too, to look through in a browser: OUT/html, or OUT/METHOD/html."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import numpy as np
import pandas as pd
from accelerate import Accelerator

from pylon.data.cache import open_cache
from pylon.data.dataset import eval_loader
from pylon.data.images import read_image
from pylon.data.transforms import eval_transform
from pylon.drawing import Row, Scale, draw_page, title_of
from pylon.evaluation.evaluate import (
    about_rows,
    boxes_with_images,
    images_at_a_time,
    load_network,
    localize_boxes,
    read_boxed_images,
    require_numbers,
)
from pylon.evaluation.selection import check_method, choose_checkpoints, leave_out_unfinished
from pylon.heatmaps import are_probabilities
from pylon.options import cache_folder
from pylon.scoring.rows import Rows, bboxes_of
from pylon.scoring.tables import add_reference_points, score_boxes, table_of_seeds
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.files import is_number, write_atomically
from pylon.system.parallel import on_main_process, require_shared
from pylon.system.progress import track
from pylon.viewer.page import page_of_boxes

ROWS_A_PAGE = 10


def main(options: Options) -> None:
    # the checkpoint
    asked = options.seed is not None
    check_method(options.method, options)
    accelerator = make_accelerator(options.device, options.precision)
    say = accelerator.print

    def find_checkpoint() -> Path:
        name, found = choose_checkpoints(options, (options.seed,) if asked else ())
        found = leave_out_unfinished(name, found, asked, say, option="--seed", enough=1)
        return next(iter(found.values()))

    path = on_main_process(accelerator, find_checkpoint)

    # the boxed test images
    radiographs, boxed = read_boxed_images(options, [path], accelerator, options.boxes)
    boxed = boxed.set_index("image_id", drop=False)

    # the network
    model, card = load_network(options, radiographs, path, accelerator)
    if options.scale == "absolute" and not are_probabilities(model, options.method):
        raise UserError("--scale absolute needs maps that are probabilities; leave it out")
    workers = options.num_workers
    cache = open_cache(boxed, cache_folder(options), options.cache_size, workers, say)
    count = len(radiographs.boxes)
    say(f"heatmaps of {path} for {count} boxes on {len(boxed)} images of {radiographs.name}")

    # the heatmaps
    out = options.out if options.method == "map" else options.out / options.method
    require_shared(accelerator, out)
    loader = eval_loader(
        boxed,
        radiographs.class_names,
        eval_transform(card["image_size"]),
        images_at_a_time(accelerator),
        workers,
        cache,
        accelerator.device.type == "cuda",
    )
    batches = track(
        accelerator.prepare(loader), "heatmaps", "batch", shown=accelerator.is_main_process
    )
    boxes = boxes_with_images(boxed, radiographs.boxes)
    with accelerator.autocast():
        table, maps = localize_boxes(model, card, batches, boxed, boxes, options.method)
    require_numbers(table["probability"].to_numpy(), path)
    require_numbers(maps, path)
    paths = boxed["path"].to_dict()

    # pages of the paper's images, with their boxes sorted by class
    order = list(radiographs.class_names).index
    by_class = table.sort_values("pathology", key=lambda names: names.map(order), kind="stable")
    wanted = radiographs.picked
    picked = [f"{stem}.png" for stem in wanted if f"{stem}.png" in boxed.index]
    lacking = [stem for stem in wanted if f"{stem}.png" not in boxed.index]
    if lacking:
        names = " ".join(lacking)
        count = f"{len(lacking)} of the paper's {len(wanted)} images"
        say(f"skipped {count}, which are not in {radiographs.name}: {names}")
    if picked:
        rows = rows_of_images(picked, by_class)
        draw_pages(out / "picked", rows, maps, paths, options.scale, accelerator)
    elif wanted:
        remove_pages_from(out / "picked", 1)

    # pages of all images
    rows = rows_of_images(list(boxed.index), by_class)
    draw_pages(out / "all", rows, maps, paths, options.scale, accelerator)
    if options.html:
        about = about_rows(model, card, radiographs, None, options.precision, options.method)
        rows = Rows(table, about)
        on_main_process(accelerator, lambda: write_html(out / "html", rows, maps, paths, options))
    accelerator.end_training()


def rows_of_images(image_ids: list[str], rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of some images, in the order of the images."""
    return pd.concat([rows[rows["image_id"] == image_id] for image_id in image_ids])


def draw_pages(
    folder: Path,
    rows: pd.DataFrame,
    maps: np.ndarray,
    path_of: dict[str, str],
    scale: Scale,
    accelerator: Accelerator,
) -> None:
    """Write pages of ten rows, an image and a class with boxes each; processes take turns.

    Args:
        folder: folder for the pages.
        rows: from `localize_boxes`, with their index.
        maps: (N, h, w) float32, the heatmaps by that index.
        path_of: file of each image, by image_id.
    """
    starts = range(0, len(rows), ROWS_A_PAGE)
    shown = accelerator.is_main_process
    for page, first in enumerate(track(starts, str(folder), "page", shown=shown, leave=True)):
        if page % accelerator.num_processes != accelerator.process_index:
            continue
        of_page = rows.iloc[first : first + ROWS_A_PAGE]
        panels = []
        for row, bboxes in zip(of_page.itertuples(), bboxes_of(of_page), strict=True):
            heatmap = maps[row.Index]
            has_threshold = scale == "absolute" and not np.isnan(row.threshold)
            threshold = row.threshold if has_threshold else None
            present = row.called == 1 if has_threshold else None
            title = title_of(row.pathology, row.probability, present)
            if heatmap.min() == heatmap.max():
                title += " (the same everywhere)"
            elif present:
                title += f" (contour: {threshold:.3f})"
            image = read_image(path_of[row.image_id])
            panels.append(Row(row.image_id, image, heatmap, title, bboxes, threshold))
        write_atomically(folder / f"{page + 1}.jpg", draw_page(panels, scale))
    remove_pages_from(folder, len(starts) + 1)


def write_html(
    folder: Path, rows: Rows, maps: np.ndarray, path_of: dict[str, str], options: Options
) -> None:
    """Write the page for a browser, with the rows and scores of eval_loc.py."""
    scores = table_of_seeds(score_boxes({"0": rows}))
    add_reference_points(scores, {"0": rows})
    page_of_boxes(folder, rows, maps, path_of, scores, options.scale, options.num_workers)


def remove_pages_from(folder: Path, first: int) -> None:
    """Remove pages numbered `first` and above, left by an earlier run on more images."""
    for page in folder.glob("*.jpg"):
        if is_number(page.stem) and int(page.stem) >= first:
            page.unlink(missing_ok=True)


if __name__ == "__main__":
    start(main, OPTIONS)
