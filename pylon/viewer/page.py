"""A page to look through heatmaps in any browser: rows in, one self-contained folder out.

FOLDER/index.html              the rows, as JSON, which page.js draws
       style.css, page.js      (beside this file)
       radiographs/IMAGE.jpg
       heatmaps/IMAGE.png      the heatmaps of an image, one below the other

The heatmaps hold values, not colours: red is the probability, green the same from the minimum of
the map to its maximum. SVG filters in index.html colour them: a script cannot read the pixels of a
page that is opened from a disk.
"""

import hashlib
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd

from pylon.data.images import read_image
from pylon.drawing import COLOURS, LEVELS, MOST_OPAQUE, SHEET_PANEL, Scale, contour_path, fit
from pylon.scoring.rows import Rows
from pylon.system.files import as_text, write_atomically, write_together
from pylon.system.progress import track

LARGEST_MAP = 128  # side of a heatmap in its picture, pixels
MARGIN = 8  # part of its side above and below it, where its edge is repeated (CELL of page.js)

ENDING_OF = {
    "overlays": ".png",
    "maps": ".npz",
    "captures": ".dcm",
    "reports": ".dcm",
    "radiographs": ".jpg",
    "heatmaps": ".png",
}
LONGEST_NAME = 240  # bytes, of 255: leaves room for the ending of temporary names


class Finding(NamedTuple):
    """A row of the page: an image and a class. Coordinates are pixels of the image."""

    label: str
    score: float
    threshold: float | None
    present: bool | None  # None: the class has no threshold
    hit: bool | None  # whether the maximum is in a box; None: no boxes are known
    point: tuple[int, int] | None  # row, column of the maximum of the map; None if it is flat
    boxes: Sequence[Sequence[int]]  # those that are known, x, y, w, h
    region: Sequence[int] | None  # the network's, x, y, w, h
    contour: str  # from `contour_path`


class Pictured(NamedTuple):
    """An image of the page and its rows, in the order of the heatmaps of its picture."""

    image: str  # its files are named after it
    height: int
    width: int
    findings: list[Finding]


class About(NamedTuple):
    """What a page says about its rows."""

    title: str
    notes: list[str]
    class_names: Sequence[str]
    table: pd.DataFrame  # texts; the index holds classes, or what else is scored
    are_probabilities: bool  # whether the heatmaps are
    scale: Scale  # that the page starts with
    weights_sha256: str


def write_pictures(folder: Path, image: str, radiograph: np.ndarray, heatmaps: np.ndarray) -> None:
    """Write the pictures of an image: the radiograph (H, W) uint8, its heatmaps (K, h, h)."""
    jpeg = cv2.imencode(".jpg", radiograph, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    write_atomically(file_of(folder, "radiographs", image), jpeg.tobytes())
    write_atomically(file_of(folder, "heatmaps", image), picture_of(heatmaps))


def picture_of(heatmaps: np.ndarray) -> bytes:
    """A PNG file of heatmaps (K, h, h) float32 in [0, 1], one below the other, with margins.

    Margins keep a browser, which interpolates, from mixing a heatmap with the next one. A side that
    is no multiple of `MARGIN`, or above `LARGEST_MAP`, is changed.
    """
    side = min(-(-heatmaps.shape[1] // MARGIN) * MARGIN, LARGEST_MAP)
    cells = []
    for heatmap in heatmaps:
        if len(heatmap) != side:
            heatmap = cv2.resize(heatmap, (side, side), interpolation=cv2.INTER_AREA)
        low = heatmap.min()
        span = heatmap.max() - low
        scaled = (heatmap - low) / span if span > 0 else np.zeros_like(heatmap)
        cell = np.stack([np.zeros_like(heatmap), scaled, heatmap], axis=-1)  # BGR for OpenCV
        margin = side // MARGIN
        cells.append(np.pad(cell, ((margin, margin), (0, 0), (0, 0)), mode="edge"))
    levels = np.round(np.concatenate(cells) * 255).clip(0, 255).astype(np.uint8)
    return cv2.imencode(".png", levels)[1].tobytes()


def write_page(
    folder: Path, about: About, images: Sequence[str], pictured: Iterable[Pictured]
) -> None:
    """Write a page, whose pictures are there; remove pictures of other images.

    Args:
        images: the names of all images.
        pictured: the images, in the same order.

    Raises:
        UserError: the folder cannot be written.
    """
    own = files("pylon") / "viewer"
    write_together(
        {
            folder / "style.css": (own / "style.css").read_bytes(),
            folder / "page.js": (own / "page.js").read_bytes(),
            folder / "index.html": index_of(about, images, pictured),
        }
    )
    for kind in ("radiographs", "heatmaps"):
        kept = {file_of(folder, kind, image) for image in images}
        for path in (folder / kind).rglob(f"*{ENDING_OF[kind]}"):
            if path not in kept:
                path.unlink(missing_ok=True)


def index_of(about: About, images: Sequence[str], pictured: Iterable[Pictured]) -> Iterator[bytes]:
    """The parts of index.html."""
    template = (files("pylon") / "viewer" / "index.html").read_text()
    start, _, rest = template.partition("<!-- FILTERS -->")
    middle, _, end = rest.partition("<!-- DATA -->")
    yield (start + filters() + middle).encode()
    head = {
        "title": about.title,
        "notes": about.notes,
        "classes": list(about.class_names),
        "head": [about.table.index.name, *about.table.columns],
        "table": [list(row) for row in about.table.itertuples()],
        "are_probabilities": about.are_probabilities,
        "scale": about.scale,
        "weights": f"SHA-256 {about.weights_sha256}",
        "command": as_text(shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
    yield in_script(head)[:-1] + b',\n"images": ['

    # an image is linked to without the ending of its name, if that tells it from the others
    stems = Counter(os.path.splitext(image)[0] for image in images)
    for k, each in enumerate(pictured):
        stem = os.path.splitext(each.image)[0]
        file = file_of(Path(), "radiographs", each.image).relative_to("radiographs")
        about_image = {
            "name": as_text(each.image),
            "id": as_text(stem if stems[stem] == 1 else each.image),
            "file": quote(os.fsencode(str(file).removesuffix(ENDING_OF["radiographs"]))),
            "width": each.width,
            "height": each.height,
            "findings": [finding._asdict() for finding in each.findings],
        }
        yield (b"" if k == 0 else b",") + b"\n" + in_script(about_image)
    yield b"]}" + end.encode()


def in_script(values: dict[str, Any]) -> bytes:
    """JSON that can stand in a script element: ASCII, and no name closes the element."""
    return json.dumps(values).replace("<", "\\u003c").encode()


def filters() -> str:
    """SVG filters that colour heatmaps as pylon/drawing.py does: `absolute` and `minmax`."""
    jet = cv2.applyColorMap(LEVELS, cv2.COLORMAP_JET)[:, 0, ::-1]  # (256, 3) RGB
    absolute = filter_of("absolute", "1 0 0 0 0", COLOURS, f"{MOST_OPAQUE} 0 0 0 0")
    minmax = filter_of("minmax", "0 1 0 0 0", jet, "0 0 0 0 0.5")
    return f'<svg class="filters" aria-hidden="true">\n{absolute}{minmax}</svg>'


def filter_of(name: str, level: str, colours: np.ndarray, opacity: str) -> str:
    """An SVG filter.

    Args:
        level: what gives the level of a pixel, a row of a colour matrix: R G B A 1.
        colours: (256, 3) uint8 RGB, by level.
        opacity: what gives the opacity, another row.
    """
    functions = ""
    for channel, values in zip("RGB", colours.T, strict=True):
        shares = " ".join(f"{value / 255:.3g}" for value in values)
        functions += f'<feFunc{channel} type="table" tableValues="{shares}"/>\n'
    return f"""\
<filter id="{name}" x="0" y="0" width="1" height="1" color-interpolation-filters="sRGB">
<feColorMatrix values="{level} {level} {level} 0 0 0 0 1"/>
<feComponentTransfer result="colours">{functions}</feComponentTransfer>
<feColorMatrix in="SourceGraphic" result="opacity" values="{" 0 0 0 0 0" * 3} {opacity}"/>
<feComposite in="colours" in2="opacity" operator="in"/>
</filter>
"""


def page_of_boxes(
    folder: Path,
    rows: Rows,
    maps: np.ndarray,
    path_of: dict[str, str],
    table: pd.DataFrame,
    scale: Scale,
    num_workers: int,
) -> None:
    """Write the page of an evaluation on boxed images.

    Args:
        rows: of one network, from eval_loc.py.
        maps: (N, h, w) float32, their heatmaps.
        path_of: file of each image, by image_id.
        table: of point localization, which starts with the scores of these rows.
        scale: that the page starts with; always minmax where heatmaps are no probabilities.
        num_workers: threads that draw.
    """
    # the pictures
    of_image = rows.table.groupby("image_id", sort=False).indices
    name_of = {image_id: name_in_folder(image_id) for image_id in of_image}

    def draw(image_id: str) -> None:
        radiograph = read_image(path_of[image_id])
        if max(radiograph.shape) > SHEET_PANEL:
            radiograph = fit(radiograph, SHEET_PANEL)
        write_pictures(folder, name_of[image_id], radiograph, maps[of_image[image_id]])

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        drawn = pool.map(draw, of_image)
        for _ in track(drawn, str(folder), "image", len(of_image), leave=True):
            pass

    # the rows
    config = rows.about["config"]
    probabilities = rows.about["method"] == "map" and config.get("pool", "max") != "avg"
    findings = {image_id: [] for image_id in of_image}
    for row, heatmap, boxes in zip(rows.table.itertuples(), maps, rows.bboxes(), strict=True):
        present = None if np.isnan(row.called) else row.called == 1
        contour = contour_path(heatmap, row.threshold) if present and probabilities else ""
        known = boxes[boxes[:, 2] > 0].tolist()
        place = None if pd.isna(row.row) else (int(row.row), int(row.column))
        threshold = None if np.isnan(row.threshold) else row.threshold
        scores = (row.probability, threshold, present, row.hit >= 0.5)
        finding = Finding(row.pathology, *scores, place, known, None, contour)
        findings[row.image_id].append(finding)
    first = rows.table.drop_duplicates("image_id").set_index("image_id")
    sizes = first[["image_height", "image_width"]].to_dict("split")
    pictured = [
        Pictured(name_of[image_id], *size, findings[image_id])
        for image_id, size in zip(sizes["index"], sizes["data"], strict=True)
    ]

    # the page
    synthetic = rows.about.get("synthetic")
    notes = ["A row is a hit if the maximum of its map is in a box."]
    about = About(
        title_of_page(len(rows.table), len(pictured), synthetic),
        notes if synthetic is None else [synthetic, *notes],
        rows.class_names,
        scores_of_boxes(rows, table),
        probabilities,
        scale if probabilities else "minmax",
        rows.about["weights_sha256"],
    )
    write_page(folder, about, list(name_of.values()), pictured)


def name_in_folder(image_id: str) -> str:
    """A name for the files of an image whose id may be any path."""
    parts = ["__" if part == ".." else part for part in Path(image_id).parts]
    return str(Path(*parts).relative_to(Path(image_id).anchor))


def title_of_page(rows: int, images: int, synthetic: str | None) -> str:
    kind = "" if synthetic is None else "synthetic "
    return f"{rows:,} heatmaps of {images:,} {kind}image{'s' * (images != 1)}"


def scores_of_boxes(rows: Rows, table: pd.DataFrame) -> pd.DataFrame:
    """The table on top of the page: point localization by class, with intervals."""
    # here, as predictions do without it, and its statistics take half a second
    from pylon.scoring.tables import boxed_classes

    seed = table.index[0]
    shown = table.map(lambda score: "" if np.isnan(score) else f"{score:.3f}")
    counts = rows.table["pathology"].value_counts()
    lines = {}
    for name in [*boxed_classes(rows), "micro"]:
        of_class = shown[name]
        lines["all" if name == "micro" else name] = {
            "rows": str(counts.get(name, len(rows.table))),
            "hits": of_class[seed],
            "95 % interval": f"{of_class[f'{seed} low']} to {of_class[f'{seed} high']}",
            "hits of the best fixed point": of_class["prior"],
            "called present": of_class["called present"],
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("finding")


def file_of(out: Path, kind: str, image: str) -> Path:
    """The file of an image of a kind (see `ENDING_OF`): its path with an ending added.

    Very long names are cut, and end in a hash.

    Args:
        kind: a key of `ENDING_OF`, perhaps in a folder.
        image: path relative to the folder of all inputs.
    """
    ending = ENDING_OF[os.path.basename(kind)]
    place, name = os.path.split(image)
    encoded = os.fsencode(name)
    if len(encoded) + len(ending) > LONGEST_NAME:
        kept = encoded[: LONGEST_NAME - 40].decode(errors="ignore")
        name = f"{kept}-{hashlib.sha256(encoded).hexdigest()[:16]}"
    return out / kind / place / f"{name}{ending}"
