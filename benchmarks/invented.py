"""NIH's whole data set with invented pixels: its names, folders, lists, labels and boxes.

Each image is a grid of SIZE x SIZE grey cells, enlarged to 1024 x 1024 pixels without smoothing: a
PNG of a few kilobytes. Every finding has a sign, a pattern of cells, in its box or, where NIH gives
none, anywhere. The files are said to be and are 1024 x 1024, because NIH's boxes are pixels of such
images: with scaled boxes the evaluations would rightly refuse the comparison with published scores.
"""

import gzip
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pylon.data import chestxray14
from pylon.data.chestxray14 import BOX_LIST, MARK, PATHOLOGIES
from pylon.system.errors import UserError
from pylon.system.files import write_atomically
from pylon.system.parallel import start_worker
from pylon.system.progress import track

SIDE = 1024  # pixels, of NIH's images
FOLDERS = 12
LISTS = ("train_val_list.txt", "test_list.txt", BOX_LIST)
SIGN = 6  # cells, height and width
STEP = 15  # between the three grey levels of the noise; few levels compress well
# Each row of cells is 16 equal rows of pixels; OpenCV has the filter since 4.12.
UP = (
    [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    if hasattr(cv2, "IMWRITE_PNG_FILTER")
    else []
)
FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1, *UP]
SENTENCE = "These pixels are invented (benchmarks/rehearsal.py): only names and labels are NIH's."
Box = tuple[str, float, float, float, float]  # finding, x, y, w, h in pixels


def write_data_set(metadata: Path, out: Path, share: int, size: int, num_workers: int) -> int:
    """Write the data set, or a share of its patients; return the number of images.

    Args:
        metadata: folder with NIH's four lists, as they are or compressed (.gz).
        out: folder to write; images that are there are kept, so it goes on where it was stopped.
        share: percent of the patients.
        size: cells per side of an image.
        num_workers: processes that draw.

    Raises:
        UserError: a list is missing, or `out` is not empty and is no such data set.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(f"{out} is not empty and is no rehearsal; choose a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / MARK, f"{SENTENCE}\n".encode())
    names = copy_lists(metadata, out, share)

    # what to draw
    images = chestxray14.read_images(out).set_index("image_id")
    boxes = {}
    for box in chestxray14.read_boxes(out).itertuples(index=False):
        boxes.setdefault(box.image_id, []).append(tuple(box)[1:])
    labels = images.loc[names, list(PATHOLOGIES)].to_numpy()
    findings = [[PATHOLOGIES[c] for c in np.flatnonzero(row)] for row in labels]
    a_folder = -(-len(names) // FOLDERS)
    jobs = []
    for k, (name, found) in enumerate(zip(names, findings, strict=True)):
        path = out / f"images_{k // a_folder + 1:03}" / "images" / name
        if pd.isna(images.at[name, "path"]):
            jobs.append((path, found, boxes.get(name, [])))

    # draw it
    for folder in {path.parent for path, _, _ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    start = {"initializer": start_worker, "initargs": (0,)}
    with ProcessPoolExecutor(max(1, num_workers), **start) as pool:
        drawn = pool.map(partial(write_image, size=size), jobs, chunksize=64)
        for _ in track(drawn, "drawing", "image", total=len(jobs), with_rate=True):
            pass
    return len(names)


def copy_lists(metadata: Path, out: Path, share: int) -> list[str]:
    """Copy NIH's lists, or the rows of a share of the patients; return the names of the images.

    Whole lists are copied byte by byte, so that their hashes are NIH's.
    """
    entries = [*sorted(metadata.glob("Data_Entry_2017*.csv")),
               *sorted(metadata.glob("Data_Entry_2017*.csv.gz"))][:1]  # fmt: skip
    sources = [*entries, *(each for name in LISTS for each in sorted(metadata.glob(f"{name}*")))]
    if len(sources) < 1 + len(LISTS):
        raise UserError(
            f"--metadata {metadata} must hold Data_Entry_2017*.csv, {', '.join(LISTS)}, as NIH "
            "distributes them or compressed (.gz)"
        )
    for source in sources:
        opened = gzip.open if source.suffix == ".gz" else open
        with opened(source, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        if share < 100:
            lines = [line for line in lines if not is_image(line) or is_chosen(line, share)]
        write_atomically(out / source.name.removesuffix(".gz"), b"".join(lines))
    listed = [name for name in LISTS if name.endswith(".txt")]
    return sorted(name for list_ in listed for name in (out / list_).read_text().split())


def is_image(line: bytes) -> bool:
    """Whether a line of a list begins with the name of an image; otherwise it is the header."""
    return line[:8].isdigit()


def is_chosen(line: bytes, share: int) -> bool:
    """Whether the patient of a line is in a share of all; smaller shares are parts of larger."""
    return random.Random(int(line[:8])).random() * 100 < share


def write_image(job: tuple[Path, list[str], list[Box]], size: int) -> None:
    path, findings, boxes = job
    image = enlarge(draw(path.name, findings, boxes, size))
    _, encoded = cv2.imencode(".png", image, FAST)
    # renamed, so that a stopped run leaves no half of an image; not flushed, which takes longer
    part = path.with_suffix(".part")
    part.write_bytes(encoded)
    part.rename(path)


def draw(name: str, findings: list[str], boxes: list[Box], size: int) -> np.ndarray:
    """Draw the cells of an image, (size, size) uint8, always the same for a name.

    Args:
        name: of the image.
        findings: whose signs are drawn.
        boxes: of the image, in pixels of 1024 x 1024.
    """
    rng = np.random.default_rng(int("".join(filter(str.isdigit, name))))
    cells = 90 + rng.integers(0, 60) + STEP * rng.integers(0, 3, (size, size))
    places = {finding: (x + w / 2, y + h / 2) for finding, x, y, w, h in boxes}
    for finding in findings:
        x, y = places.get(finding, rng.uniform(SIDE / 8, 7 * SIDE / 8, 2))
        left, top = (int(at * size / SIDE - SIGN / 2) for at in (x, y))
        left, top = (min(max(at, 0), size - SIGN) for at in (left, top))
        cells[top : top + SIGN, left : left + SIGN] = sign_of(finding)
    return cells.clip(0, 255).astype(np.uint8)


def sign_of(finding: str) -> np.ndarray:
    """The sign of a finding, (SIGN, SIGN): cells that are black, grey or white."""
    rng = np.random.default_rng(PATHOLOGIES.index(finding))
    blocks = rng.choice([10, 128, 245], (SIGN // 2, SIGN // 2))
    return blocks.repeat(2, axis=0).repeat(2, axis=1)


def enlarge(cells: np.ndarray) -> np.ndarray:
    """Enlarge cells to an image of SIDE x SIDE pixels, without smoothing."""
    return cv2.resize(cells, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
