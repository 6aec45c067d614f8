"""Make ChestX-Det's annotations of NIH's radiographs a table and boxes, for --table and --boxes.

    python tools/chestx_det.py train.json test.json --data data --out data/chestx_det
    python eval_loc.py --table data/chestx_det/table.csv --boxes data/chestx_det/boxes.csv

Reads  ChestX-Det10's or ChestX-Det's files as published (Deepwise-AILab on GitHub), NIH's lists and
       images in DATA, and data/chestx_det_names.csv: what NIH calls their images.
Writes OUT/table.csv: path, patient_id, split by the lists in DATA, and NIH's fourteen classes: 1 or
       0 by the radiologists, blank where they had no such class;
       OUT/boxes.csv: path, class, x, y, w, h, in pixels of the image files.
Prints how often NIH's labels agree with the radiologists.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pylon.system.cli import parse, start
from pylon.system.errors import UserError
from pylon.system.files import csv_file, write_together


@dataclass
class Options:
    """Make ChestX-Det's annotations of NIH's radiographs a table and boxes."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """train.json and test.json of ChestX-Det10 or of ChestX-Det, or one of them; also gzipped."""
    out: Path
    """Folder for table.csv and boxes.csv."""
    data: Path = Path("data")
    """Folder with NIH's files."""
    keep_missing: bool = False
    """Keep images without a file, with boxes in pixels of NIH's 1024 x 1024: enough for
    benchmarks/controls.py."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import numpy as np
import pandas as pd

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.images import width_height_of
from pylon.data.sources import read_chestxray14
from pylon.data.table_boxes import is_number

NAMES = Path(__file__).parent.parent / "data/chestx_det_names.csv"
NIH_NAME = r"\d{8}_\d{3}\.png"
SIDE = 1024  # pixels of NIH's images, in which the boxes are published
IN_DET10 = (
    "Atelectasis", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Mass", "Nodule",
    "Pneumothorax",
)  # fmt: skip
LUNGS = "Diffuse Nodule"  # its boxes surround the lungs: a label of Nodule, but not a place
ONLY_IN_DET = ("Cardiomegaly", "Pleural Thickening", LUNGS)
WITHOUT_CLASS = ("Calcification", "Fracture")  # NIH has none
CLASS_OF = {name: name.replace(" ", "_") for name in (*IN_DET10, *ONLY_IN_DET)} | {LUNGS: "Nodule"}
CORNERS = ["x1", "y1", "x2", "y2"]


def main(options: Options) -> None:
    if not options.files:
        raise UserError("no files are named; name ChestX-Det's train.json and test.json")
    entries = read_annotations(options.files)
    boxes = boxes_of(entries)
    nih = images_there(entries["image_id"], options)
    entries = entries[entries["image_id"].isin(nih.index)]
    boxes = boxes[boxes["image_id"].isin(nih.index)]
    nih = nih.loc[entries["image_id"]]
    table = table_of(nih, boxes, entries["is_det"].to_numpy(), options.out)
    print_agreement(table, nih, boxes)

    # the boxes of single findings
    is_place = boxes["class"].notna() & (boxes["finding"] != LUNGS)
    for name, count in boxes["finding"][~is_place].value_counts().items():
        why = "they surround the lungs" if name == LUNGS else "no class of NIH's"
        print(f"note: boxes of {name} are left out ({count:,}): {why}")
    places = in_pixels(boxes[is_place].drop_duplicates(), nih["path"])
    places.insert(0, "path", places.pop("image_id").map(table["path"]))

    # write both
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {"table.csv": table, "boxes.csv": places}
    write_together({options.out / name: csv_file(each, False) for name, each in tables.items()})
    tested = places["path"][places["path"].isin(table["path"][table["split"] == "test"])]
    print(
        f"{len(table):,} images of {table['patient_id'].nunique():,} patients and {len(places):,} "
        f"boxes ({len(tested):,} of them on {tested.nunique():,} test images) are in {options.out}"
    )


def read_annotations(paths: Iterable[Path]) -> pd.DataFrame:
    """Read published files: file_name, image_id at NIH, syms, boxes, is_det, file; a row an image.

    The image_id of an image whose name at NIH is lost is its file_name.

    Raises:
        UserError: a file has another form or unknown names, or an image is in two entries.
    """
    entries = pd.concat([read_entries(path) for path in paths], ignore_index=True)
    names = pd.read_csv(NAMES, keep_default_na=False).set_index("file_name")["nih_image"]
    found = entries["file_name"].map(names).replace("", None)
    entries["image_id"] = found.fillna(entries["file_name"])

    # published numbers, or, as in earlier versions, NIH's own names
    fits = entries["file_name"].isin(names.index) | entries["file_name"].str.fullmatch(NIH_NAME)
    for entry in entries[~fits].itertuples():
        raise UserError(
            f"{entry.file}: {entry.file_name!r} is a name neither of ChestX-Det's, such as "
            "36199.png, nor of NIH's, such as 00000003_003.png; give the files as published"
        )
    for entry in entries[entries["image_id"].duplicated()].itertuples():
        first = entries["file"][entries["image_id"] == entry.image_id].iloc[0]
        raise UserError(
            f"{entry.file_name} is in {first} and again in {entry.file}; give each image once"
        )
    return entries


def read_entries(path: Path) -> pd.DataFrame:
    """Read one published file: a row an entry."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        entries = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a JSON file ({str(error)[:100]}); download it again") from (
            error
        )
    fit = [*map(is_entry, entries)] if isinstance(entries, list) else []
    if not fit or not all(fit):
        which = f" (entry {fit.index(False) + 1} is not)" if fit else ""
        raise UserError(
            f"{path} is not a file of ChestX-Det's, a list of objects with file_name, syms and as "
            f"many boxes of x1, y1, x2, y2{which}; download it again"
        )
    is_det = any("polygons" in entry or {*ONLY_IN_DET} & {*entry["syms"]} for entry in entries)
    table = pd.DataFrame(entries)[["file_name", "syms", "boxes"]]
    return table.assign(file=str(path), is_det=is_det)


def is_entry(entry: Any) -> bool:
    """Whether an object is an entry of a published file: as many boxes as findings."""
    try:
        return (
            all(isinstance(name, str) for name in [entry["file_name"], *entry["syms"]])
            and all(len(box) == 4 and all(map(is_number, box)) for box in entry["boxes"])
            and len(entry["syms"]) == len(entry["boxes"])
        )
    except (KeyError, TypeError):
        return False


def boxes_of(entries: pd.DataFrame) -> pd.DataFrame:
    """One row per box: image_id, finding, class (NaN if NIH has none), x1, y1, x2, y2 of 1024.

    Raises:
        UserError: a finding is unknown, or a box is not inside its image.
    """
    boxes = entries.explode(["syms", "boxes"]).dropna(subset="syms").reset_index(drop=True)
    boxes = boxes.rename(columns={"syms": "finding"})
    boxes["class"] = boxes["finding"].map(CLASS_OF)
    corners = np.array([*boxes["boxes"]], float).reshape(-1, 4)
    boxes[CORNERS] = corners
    low, high = corners[:, :2], corners[:, 2:]
    is_inside = ((low >= 0) & (low < high) & (high <= SIDE)).all(axis=1)
    is_known = boxes["finding"].isin((*CLASS_OF, *WITHOUT_CLASS))
    for box in boxes[~(is_inside & is_known)].itertuples():
        raise UserError(
            f"{box.file}: the box of {box.file_name}, {box.finding}, is {box.boxes}; it must be "
            f"left, top, right, bottom, inside {SIDE} x {SIDE} pixels, of one of the findings "
            f"{', '.join((*CLASS_OF, *WITHOUT_CLASS))}; correct it"
        )
    return boxes[["image_id", "finding", "class", *CORNERS]]


def images_there(image_ids: pd.Series, options: Options) -> pd.DataFrame:
    """NIH's rows of the images that have a file, by image_id; count annotated ones without."""
    radiographs = read_chestxray14(options.data)
    if radiographs.synthetic is not None:
        raise UserError(f"{options.data} holds no radiographs: {radiographs.synthetic}")
    nih = radiographs.images.set_index("image_id")
    if options.keep_missing:
        folder = options.data / "images"
        nih["path"] = [
            path if isinstance(path, str) else str(folder / name)
            for name, path in nih["path"].items()
        ]
    nih = nih[nih["path"].notna()]

    # count the others
    is_named = image_ids.str.fullmatch(NIH_NAME)
    absent = f"not in the lists and among the images of {options.data}"
    if not image_ids.isin(nih.index).any():
        raise UserError(
            f"all {len(image_ids):,} images are {absent}; name NIH's folder with --data"
        )
    for names, why in (
        (image_ids[~is_named], "what NIH calls them is lost"),
        (image_ids[is_named & ~image_ids.isin(nih.index)], absent),
    ):
        if len(names):
            named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            print(f"note: {len(names):,} of {len(image_ids):,} images are left out: {why}: {named}")
    return nih


def table_of(nih: pd.DataFrame, boxes: pd.DataFrame, is_det: np.ndarray, out: Path) -> pd.DataFrame:
    """The table that is written: a label says if a box is there, blank if none was looked for."""
    table = nih[["path", "patient_id", "split"]].copy()
    table["path"] = [os.path.relpath(path, out) for path in nih["path"]]
    for name in PATHOLOGIES:
        known = (name in IN_DET10) | (is_det & (name in CLASS_OF.values()))
        marked = table.index.isin(boxes["image_id"][boxes["class"] == name])
        table[name] = pd.array(np.where(known, marked, np.nan), "Int64")
    return table


def in_pixels(boxes: pd.DataFrame, paths: pd.Series) -> pd.DataFrame:
    """Boxes as image_id, class, x, y, w, h, in pixels of their files; sides are at least 1."""
    sizes = {
        name: width_height_of(path) if os.path.exists(path) else (SIDE, SIDE)
        for name, path in paths.items()
    }
    size = np.array([sizes[name] for name in boxes["image_id"]]).reshape(-1, 2)
    low, high = (boxes[two].to_numpy() * size / SIDE for two in (CORNERS[:2], CORNERS[2:]))
    sides = np.maximum(high - low, 1)
    placed = boxes[["image_id", "class"]].copy()
    placed[["x", "y"]] = np.minimum(low, size - sides)
    placed[["w", "h"]] = sides
    return placed


def print_agreement(table: pd.DataFrame, nih: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Print how many images of each class NIH labels so among those marked, and the reverse."""
    print("\n| class | marked: so labelled by NIH | labelled by NIH: so marked |\n|---|---|---|")
    pairs = {name: (table[name], nih[name]) for name in PATHOLOGIES}
    is_marked = table.index.isin(boxes["image_id"])
    pairs["nothing"] = pd.Series(~is_marked, nih.index), ~nih[list(PATHOLOGIES)].any(axis=1)
    for name, (marked, labelled) in pairs.items():
        known = marked.notna()
        marked, labelled = (each[known].astype(bool) for each in (marked, labelled))
        if known.any():
            both = (marked & labelled).sum()
            cells = [share_of(both, marked.sum()), share_of(both, labelled.sum())]
            print(f"| {name} | {' | '.join(cells)} |")
    print()


def share_of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" + (f" ({part / whole:.0%})" if whole else "")


if __name__ == "__main__":
    start(main, OPTIONS)
