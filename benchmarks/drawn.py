"""Images for a benchmark without data: they decode like NIH's radiographs, and show nothing."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.system.parallel import start_worker

GRAIN = 1.8  # grey levels; a PNG of 1024 x 1024 then takes about 400 KB, as NIH's do


def write_radiographs(folder: Path, count: int, size: int) -> Path:
    """Write grey PNGs of `size` x `size` and lists, in NIH's layout; returns the folder."""
    (folder / "images").mkdir(parents=True)
    start = {"initializer": start_worker, "initargs": (0,)}
    with ProcessPoolExecutor(os.cpu_count(), **start) as pool:
        names = list(pool.map(partial(write_image, folder=folder, size=size), range(count)))
    rows = [f"{name},{PATHOLOGIES[k % 14]},0,{k}" for k, name in enumerate(names)]
    head = "Image Index,Finding Labels,Follow-up #,Patient ID"
    (folder / "Data_Entry_2017.csv").write_text("\n".join([head, *rows]) + "\n")
    (folder / "train_val_list.txt").write_text("\n".join(names[1:]) + "\n")
    (folder / "test_list.txt").write_text(names[0] + "\n")
    return folder


def write_image(k: int, folder: Path, size: int) -> str:
    """Write image `k`, smooth shapes under grain; returns its file's name."""
    rng = np.random.default_rng(k)
    shapes = rng.uniform(30, 225, (8, 8)).astype(np.float32)
    smooth = cv2.resize(shapes, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((size, size), np.float32) * GRAIN
    name = f"{k:08d}_000.png"
    image = cv2.add(smooth, grain, dtype=cv2.CV_8U)
    if not cv2.imwrite(str(folder / "images" / name), image):
        raise OSError(f"{folder / 'images' / name} could not be written")
    return name
