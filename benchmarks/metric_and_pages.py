"""Point localization and pages of heatmaps: the plain pipeline of 2020 and ours."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import plain
from measure import alternate, seconds_of, show
from pylon.data.images import read_image
from pylon.drawing import Row, draw_page
from pylon.scoring.metrics import point_localization


def measure_metric(rounds: int) -> None:
    # 984 boxes on 880 images, at most one per class and image
    rng = np.random.default_rng(0)
    count = 984
    maps = torch.from_numpy(rng.random((880, 14, 64, 64), np.float32))
    image = np.concatenate([np.arange(880), rng.choice(880, count - 880, replace=False)])
    image.sort()
    classes = rng.permuted(np.tile(np.arange(14), (880, 1)), axis=1)
    pathology = classes[image, np.arange(count) % 14]
    bbox = np.column_stack([rng.integers(0, 500, (count, 2)), rng.integers(50, 500, (count, 2))])
    pairs = [[] for _ in range(880)]
    for n, c, xywh in zip(image, pathology, bbox, strict=True):
        pairs[n].append((c, xywh))
    size = np.full((count, 2), 1024)
    hits = {}

    def theirs() -> None:
        hits["plain"] = plain.point_localization(maps, pairs)

    def ours() -> None:
        hits["ours"], _, _ = point_localization(maps[image, pathology], bbox, size, (256, 256))

    candidates = {
        "plain": lambda _: seconds_of(theirs),
        "coordinates": lambda _: seconds_of(ours),
    }
    measured = alternate(rounds, candidates)
    show(f"metric, {count} boxes", "s", measured, more_is_better=False)
    assert (hits["plain"] == hits["ours"]).all()


def measure_pages(rounds: int, images: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    paths = images["path"].iloc[:10].tolist()
    maps = rng.random((10, 64, 64), np.float32)
    title = "Mass: 0.123"
    bbox = np.array([20, 30, 60, 50])

    def theirs() -> None:
        plain.draw_page(
            [(path, heatmap, title, bbox) for path, heatmap in zip(paths, maps, strict=True)]
        )

    def ours() -> None:
        draw_page([
            Row(Path(path).name, read_image(path), heatmap, title, bbox[None])
            for path, heatmap in zip(paths, maps, strict=True)
        ])  # fmt: skip

    candidates = {"plain": lambda _: seconds_of(theirs), "ours": lambda _: seconds_of(ours)}
    measured = alternate(rounds, candidates)
    what = "heatmap page of 20 panels, PNGs decoded"
    show(what, "s", measured, more_is_better=False)
