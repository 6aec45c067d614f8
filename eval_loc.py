"""Localization on the boxed test images: is a heatmap's maximum in its box, do regions match it?

    python eval_loc.py                           # every seed under save/pylon/
    python eval_loc.py --checkpoint model.pkl    # the authors' weights, or any other
    python eval_loc.py --compare backbone        # paired comparison with save/backbone/
    python eval_loc.py --method gradcam          # Grad-CAM instead of the network's own maps
    python eval_loc.py --from csv/pylon          # rebuild the tables from saved rows
    python eval_loc.py --from csv/pylon --html   # and write a page to look through in a browser

Reads  checkpoints and DATA, with BBox_List_2017.csv, or --table and --boxes of your own; or, with
       --from, only rows and heatmaps (and the images, with --html).
Writes csv/NAME/SEED_boxes.csv, .json: one row per image and class with boxes; SEED_maps.npz, their
       heatmaps;
       csv/NAME/point_localization.csv: one row per seed, mean and standard deviation, intervals
       over patients, scores of reference points that do not use the image, and of the boxes whose
       finding the network calls present;
       csv/NAME/box_localization.csv: the same for the boxes around the regions of the heatmaps;
       csv/NAME/point_localization_beside_published.csv, .._beside_OTHER.csv: one row per class,
       with differences and verdicts; point_localization.png, box_localization.png: both tables as
       pictures;
       csv/NAME/maxima.csv, .png: for each class, how far the maxima of hits and misses lie from
       the centres of the boxes, and the mean map beside the mean box.
       (With a METHOD other than map: .._METHOD.csv, .png);
       with --html csv/NAME/html/index.html: the heatmaps of one seed, in a page.
"""

from dataclasses import dataclass
from pathlib import Path

from pylon.options import BoxOptions, Method, ScoreOptions
from pylon.system.cli import parse, start


@dataclass
class Options(BoxOptions, ScoreOptions):
    """Point localization accuracy on the boxed test images."""

    method: Method = "map"
    """Heatmaps to score: map, the network's own maps; or a method of the grad-cam library, applied
    to the encoder's deepest feature."""
    save_maps: bool = True
    """Save the heatmaps of the boxes in csv/NAME/SEED_maps.npz: maps, (N, h, w) float32, in the
    order of the rows; 16 MB for NIH's 984 boxes. Without them, --from cannot score boxes again."""
    html: bool = False
    """Write a page of the first seed's heatmaps, to look through in a browser. With --from, it
    needs the images (--data, or --table and --boxes)."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import pandas as pd
from accelerate import Accelerator

from pylon.data.checks import select_boxed
from pylon.data.chestxray14 import why_not_official
from pylon.evaluation.classes import read_common
from pylon.evaluation.evaluate import (
    about_rows,
    boxes_with_images,
    localize_boxes,
    open_networks,
    read_boxed_images,
    require_numbers,
)
from pylon.evaluation.from_rows import read_experiments
from pylon.evaluation.runtime import device_for
from pylon.evaluation.selection import check_method, find_experiments
from pylon.scoring.box_tables import BoxScores, score_heatmaps, write_box_tables
from pylon.scoring.charts import scores_chart
from pylon.scoring.compare import print_beside, published, why_not_published
from pylon.scoring.maxima import write_maxima
from pylon.scoring.rows import BOX_ROW_COLUMNS, Rows, read_maps, write_rows
from pylon.scoring.tables import add_reference_points, print_table, score_boxes, table_of_seeds
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.files import write_atomically, write_csv
from pylon.system.parallel import is_first_process
from pylon.system.progress import track
from pylon.viewer.page import page_of_boxes


def main(options: Options) -> None:
    # from saved rows: needs no network, and only for --html the data
    if options.html and not options.save_maps:
        raise UserError("--html draws the heatmaps that are saved; leave out --no-save-maps")
    suffix = "" if options.method == "map" else f"_{options.method}"
    if options.from_ is not None:
        if is_first_process():
            table = f"point_localization{suffix}.csv"
            rows = read_experiments(options, f"boxes{suffix}", table)
            points = write_tables(rows, options.from_, suffix)
            scores = scores_from_maps(rows, options.from_, f"boxes{suffix}")
            if next(iter(rows)) in scores:
                write_box_tables(rows, scores, options.from_, suffix)
            write_maxima(rows, scores, options.from_, suffix)
            if options.html:
                write_html(rows, points, options.from_, suffix, options, None)
        return

    # from networks
    check_method(options.method, options)
    device = device_for(options.runtime, options.device, options.precision, options.method)
    accelerator = make_accelerator(device, options.precision, options.batch_size)
    experiments = find_experiments(options, accelerator)
    rows, scores, boxed = localize(experiments, options, suffix, accelerator)
    if accelerator.is_main_process:
        folder = Path("csv") / next(iter(rows))
        points = write_tables(rows, folder, suffix)
        write_box_tables(rows, scores, folder, suffix)
        write_maxima(rows, scores, folder, suffix)
        if options.html:
            write_html(rows, points, folder, suffix, options, boxed)
    accelerator.end_training()


def localize(
    experiments: dict[str, dict[str, Path]], options: Options, suffix: str, accelerator: Accelerator
) -> tuple[dict[str, dict[str, Rows]], dict[str, dict[str, BoxScores]], pd.DataFrame]:
    """Localize the boxes with every network.

    Returns rows and scores by experiment and seed, and the table of the images that have boxes.

    Only the first experiment's rows are written to disk; the other experiments' files are left
    unchanged.
    """
    # the boxed test images
    first = next(iter(experiments))
    paths = [path for checkpoints in experiments.values() for path in checkpoints.values()]
    radiographs, boxed = read_boxed_images(options, paths, accelerator, options.boxes)
    boxes = boxes_with_images(boxed, radiographs.boxes)

    not_official = why_not_official(radiographs, with_boxes=True)
    rows = {}
    scores = {}
    for name, checkpoints in experiments.items():
        rows[name] = {}
        scores[name] = {}
        networks = open_networks(options, checkpoints, radiographs, boxed, accelerator)
        for seed, model, card, loader in networks:
            # one row per image and class
            shown = accelerator.is_main_process
            loader = track(loader, f"{name} {seed}", "batch", shown=shown, leave=True)
            with accelerator.autocast():
                table, maps = localize_boxes(model, card, loader, boxed, boxes, options.method)
            require_numbers(table["probability"].to_numpy(), checkpoints[seed])
            require_numbers(maps, checkpoints[seed])
            about = about_rows(
                model, card, radiographs, not_official, options.precision, options.method,
                options.runtime,
            )  # fmt: skip
            columns = [column for column in BOX_ROW_COLUMNS if column in table]
            rows[name][seed] = Rows(table[columns], about)

            # the other experiments' files are left unchanged
            if not accelerator.is_main_process:
                continue
            if name == first:
                what = f"boxes{suffix}"
                kept = maps if options.save_maps else None
                write_rows(Path("csv") / name, seed, what, rows[name][seed], kept)
            scores[name][seed] = score_heatmaps(maps, rows[name][seed])
    return rows, scores, boxed


def scores_from_maps(
    rows: dict[str, dict[str, Rows]], folder: Path, what: str
) -> dict[str, dict[str, BoxScores]]:
    """Score the saved heatmaps of rows; without experiments whose heatmaps were not all saved.

    Args:
        rows: by experiment and seed.
        folder: of the first experiment; the others are next to it.
        what: "boxes" or "boxes_METHOD".
    """
    scores = {}
    for k, (name, rows_of_seed) in enumerate(rows.items()):
        place = folder.resolve().parent / name if k else folder
        maps = {
            seed: read_maps(place, seed, what, len(rows_of_seed[seed].table))
            for seed in rows_of_seed
        }
        lacking = [seed for seed, of_seed in maps.items() if of_seed is None]
        if lacking:
            print(
                f"note: no scores of boxes of {name}: {place} has no heatmaps of seed "
                f"{lacking[0]}; they are saved when a network is scored, unless with --no-save-maps"
            )
            continue
        scores[name] = {seed: score_heatmaps(maps[seed], rows_of_seed[seed]) for seed in maps}
    return scores


def write_tables(rows: dict[str, dict[str, Rows]], folder: Path, suffix: str) -> pd.DataFrame:
    """Print and write the first experiment's scores, compared with the published and other ones.

    The table of point localization is returned.

    Args:
        rows: rows by experiment and seed.
        folder: folder for the tables.
        suffix: suffix of their file names, which names the method.
    """
    scored = {name: score_boxes(rows_of_seed) for name, rows_of_seed in rows.items()}
    name = next(iter(rows))
    first = next(iter(rows[name].values()))

    # the table, with reference points
    table = table_of_seeds(scored[name])
    lone = add_reference_points(table, rows[name])
    path = folder / f"point_localization{suffix}.csv"
    write_csv(path, table)
    print_table(table)
    boxes = int((first.bboxes()[..., 2] > 0).sum())
    several = f" ({boxes} boxes)" if boxes > len(first.table) else ""
    unit = "boxes" if several == "" else "findings"
    print(
        f"{len(first.table)} {unit}{several} on {first.table['image_id'].nunique()} images; "
        f"low, high: 95 % interval over patients; written to {path}"
    )
    if any(of_seed.table["called"].isna().any() for of_seed in rows[name].values()):
        print(
            "note: the checkpoint has no threshold for some classes: their boxes are left out of "
            "`called present` and `hit if called present`"
        )
    flat = {seed: int(of_seed.table["row"].isna().sum()) for seed, of_seed in rows[name].items()}
    for seed, count in flat.items():
        if count:
            print(
                f"note: {count} maps of {seed} are the same everywhere: they show no place, and "
                "hit no box"
            )
    if lone:
        print(
            f"note: prior and lift leave out {lone} boxes, since no other patient has a box of "
            "their class"
        )

    # comparisons
    why_not = why_not_published(rows[name], "of the complete PYLON network's own maps")
    print_beside(
        "point_localization", scored, folder, suffix, why_not, first.about.get("synthetic")
    )

    # the picture
    means = published("point_localization").mean() if why_not is None else None
    picture = scores_chart(table, "point localization", means, ("prior", "image centre"))
    write_atomically(folder / f"point_localization{suffix}.png", picture)
    return table


def write_html(
    rows: dict[str, dict[str, Rows]],
    table: pd.DataFrame,
    folder: Path,
    suffix: str,
    options: Options,
    boxed: pd.DataFrame | None,
) -> None:
    """Write the page of the first experiment's first seed, from its saved heatmaps.

    Args:
        rows: by experiment and seed.
        table: of point localization.
        folder: of the experiment's rows.
        suffix: of file names, which names the method.
        boxed: table of the images that have boxes; None if the data are still to be read.
    """
    seed, of_seed = next(iter(next(iter(rows.values())).items()))
    maps = read_maps(folder, seed, f"boxes{suffix}", len(of_seed.table))
    if maps is None:
        raise UserError(
            f"{folder} has no heatmaps of seed {seed}, which --html draws; they are saved when a "
            "network is scored without --no-save-maps"
        )
    if boxed is None:
        boxed = read_boxed_of(of_seed, folder, options)
    paths = boxed.set_index("image_id")["path"].to_dict()
    out = folder / f"html{suffix}"
    page_of_boxes(out, of_seed, maps, paths, table, "minmax", options.num_workers)
    print(f"the heatmaps of seed {seed} are in {out / 'index.html'}")


def read_boxed_of(rows: Rows, folder: Path, options: Options) -> pd.DataFrame:
    """Read the table of the images that rows in a folder are of."""
    radiographs = read_common(
        options, rows.class_names, str(folder), options.boxes, with_boxes=True
    )
    if radiographs.list_sha256 != rows.about["list_sha256"]:
        raise UserError(
            f"the rows in {folder} are not of {radiographs.name}; name the data that was scored, "
            "with --data, or with --table and --boxes"
        )
    return select_boxed(radiographs)


if __name__ == "__main__":
    start(main, OPTIONS)
