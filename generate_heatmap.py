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

from typing import Any

import pandas as pd
from accelerate import Accelerator
from torch import nn

from pylon.data.cache import ImageCache, open_cache
from pylon.data.dataset import eval_loader
from pylon.data.images import read_image
from pylon.data.radiographs import Radiographs
from pylon.data.transforms import eval_transform, normalize
from pylon.drawing import Row, draw_page, title_of
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
from pylon.heatmaps import are_probabilities, heatmaps_of
from pylon.options import cache_folder
from pylon.scoring.rows import Rows, bboxes_of, merge_boxes
from pylon.scoring.tables import add_reference_points, score_boxes, table_of_seeds
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.files import is_number, write_atomically
from pylon.system.parallel import on_main_process, require_shared, same_on_all
from pylon.system.progress import track
from pylon.viewer.page import page_of_boxes

ROWS_A_PAGE = 10


@dataclass
class Network:
    """A network and the metadata of its checkpoint."""

    path: Path
    model: nn.Module
    card: dict[str, Any]


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

    path = same_on_all(accelerator, find_checkpoint, "checkpoints")

    # the boxed test images, and their boxes sorted by class
    radiographs, boxed = read_boxed_images(options, [path], accelerator, options.boxes)
    boxed = boxed.set_index("image_id", drop=False)
    order = list(radiographs.class_names).index
    by_class = {"key": lambda names: names.map(order), "kind": "stable"}
    boxes = merge_boxes(radiographs.boxes.sort_values("pathology", **by_class))

    # the network
    model, card = load_network(options, radiographs, path, accelerator)
    network = Network(path, model, card)
    if options.scale == "absolute" and not are_probabilities(model, options.method):
        raise UserError("--scale absolute needs maps that are probabilities; leave it out")
    workers = options.num_workers
    cache = open_cache(boxed, cache_folder(options), options.cache_size, workers, say)
    count = len(radiographs.boxes)
    say(f"heatmaps of {path} for {count} boxes on {len(boxed)} images of {radiographs.name}")

    # pages of the paper's images
    out = options.out if options.method == "map" else options.out / options.method
    require_shared(accelerator, out)
    wanted = radiographs.picked
    picked = [f"{stem}.png" for stem in wanted if f"{stem}.png" in boxed.index]
    lacking = [stem for stem in wanted if f"{stem}.png" not in boxed.index]
    if lacking:
        names = " ".join(lacking)
        count = f"{len(lacking)} of the paper's {len(wanted)} images"
        say(f"skipped {count}, which are not in {radiographs.name}: {names}")
    if picked:
        rows = boxes_of_images(picked, boxes)
        draw_pages(out / "picked", rows, boxed, cache, network, options, accelerator)
    elif wanted:
        remove_pages_from(out / "picked", 1)

    # pages of all images
    rows = boxes_of_images(list(boxed.index), boxes)
    draw_pages(out / "all", rows, boxed, cache, network, options, accelerator)
    if options.html:
        write_html(out / "html", radiographs, boxed, cache, network, options, accelerator)
    accelerator.end_training()


def boxes_of_images(image_ids: list[str], boxes: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of some images, in the order of the images."""
    return pd.concat([boxes[boxes["image_id"] == image_id] for image_id in image_ids])


def draw_pages(
    folder: Path,
    rows: pd.DataFrame,
    boxed: pd.DataFrame,
    cache: ImageCache | None,
    network: Network,
    options: Options,
    accelerator: Accelerator,
) -> None:
    """Write pages of ten rows, an image and a class with boxes each; processes take turns.

    Args:
        folder: folder for the pages.
        rows: from `merge_boxes`.
        boxed: table of their images, indexed by image_id.
        cache: cache of the images.
    """
    # the image of each row
    loader = eval_loader(
        boxed.loc[rows["image_id"]],
        network.card["class_names"],
        eval_transform(network.card["image_size"]),
        ROWS_A_PAGE,
        options.num_workers,
        cache,
        accelerator.device.type == "cuda",
    )
    shown = accelerator.is_main_process
    for page, batch in enumerate(track(loader, str(folder), "page", shown=shown, leave=True)):
        if page % accelerator.num_processes != accelerator.process_index:
            continue

        # the heatmap of each row's class
        of_page = rows.iloc[page * ROWS_A_PAGE : (page + 1) * ROWS_A_PAGE]
        positions = list(range(len(of_page)))
        classes = of_page["pathology"].map(network.card["class_names"].index).tolist()
        bytes_ = batch["image"].to(accelerator.device)
        images = normalize(bytes_, network.card["mean"], network.card["std"])
        with accelerator.autocast():
            heatmaps, probabilities = heatmaps_of(
                network.model, images, positions, classes, options.method
            )
        require_numbers(probabilities.cpu().numpy(), network.path)

        # the page
        panels = []
        values = (heatmaps.cpu().numpy(), probabilities.tolist(), bboxes_of(of_page))
        for row, heatmap, probability, bboxes in zip(of_page.itertuples(), *values, strict=True):
            image = read_image(boxed.at[row.image_id, "path"])
            threshold = None
            if options.scale == "absolute":
                threshold = network.card.get("thresholds", {}).get(row.pathology)
            present = None if threshold is None else probability >= threshold
            title = title_of(row.pathology, probability, present)
            if heatmap.min() == heatmap.max():
                title += " (the same everywhere)"
            elif present:
                title += f" (contour: {threshold:.3f})"
            panels.append(Row(row.image_id, image, heatmap, title, bboxes, threshold))
        write_atomically(folder / f"{page + 1}.jpg", draw_page(panels, options.scale))
    remove_pages_from(folder, len(loader) + 1)


def write_html(
    folder: Path,
    radiographs: Radiographs,
    boxed: pd.DataFrame,
    cache: ImageCache | None,
    network: Network,
    options: Options,
    accelerator: Accelerator,
) -> None:
    """Write the page for a browser, with the rows and scores of eval_loc.py.

    Args:
        boxed, cache: as for `draw_pages`.
    """
    loader = eval_loader(
        boxed,
        radiographs.class_names,
        eval_transform(network.card["image_size"]),
        images_at_a_time(accelerator),
        options.num_workers,
        cache,
        accelerator.device.type == "cuda",
    )
    shown = accelerator.is_main_process
    batches = track(accelerator.prepare(loader), "scoring", "batch", shown=shown)
    boxes = boxes_with_images(boxed, radiographs.boxes)
    with accelerator.autocast():
        table, maps = localize_boxes(
            network.model, network.card, batches, boxed, boxes, options.method
        )
    about = about_rows(
        network.model, network.card, radiographs, None, options.precision, options.method
    )
    rows = Rows(table, about)

    def write() -> None:
        scores = table_of_seeds(score_boxes({"0": rows}))
        add_reference_points(scores, {"0": rows})
        paths = boxed["path"].to_dict()
        page_of_boxes(folder, rows, maps, paths, scores, options.scale, options.num_workers)

    on_main_process(accelerator, write)


def remove_pages_from(folder: Path, first: int) -> None:
    """Remove pages numbered `first` and above, left by an earlier run on more images."""
    for page in folder.glob("*.jpg"):
        if is_number(page.stem) and int(page.stem) >= first:
            page.unlink(missing_ok=True)


if __name__ == "__main__":
    start(main, OPTIONS)
