"""Compare the speed of the plain pipeline of 2020 (plain.py) and ours, alternately in one process.

    python benchmarks/speed.py --data DIR                # DIR as for train.py, 1024 x 1024 images
    python benchmarks/speed.py --data DIR --device cuda

Prints markdown tables of medians, with the factor by which ours is better than the plain pipeline.
Fills DATA/cache/512 and DATA/cache/1024.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pylon.system.cli import parse, require_at_least, start
from pylon.system.errors import UserError


@dataclass
class Options:
    """Compare the speed of the plain pipeline of 2020 and ours."""

    data: Path = Path("data")
    """Folder with NIH's files."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the network."""
    encoder_name: str = "resnet50"
    """Encoder of the network."""
    batch_size: int | None = None
    """Images per training step ; if not given, 16 on a CPU, 64 on a GPU."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Worker processes that read images."""
    images: int = 320
    """Images per measurement of a loader that decodes; a loader that reads a cache gets sixteen
    times as many."""
    steps: int = 3
    """Training steps per measurement."""
    rounds: int = 5
    """Number of measurements of each; the median is printed."""
    cache_sizes: tuple[int, ...] = (512, 1024)
    """Cache sizes to measure."""
    precisions: tuple[Literal["fp32", "fp16", "bf16"], ...] = ()
    """Precisions to measure; if none is given, those that the device supports in hardware."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import plain
from fed import measure_fed_training
from measure import (
    Step,
    allow_tf32,
    alternate,
    flops_an_image,
    fresh,
    full_batches,
    machine,
    matrix_rate,
    our_accelerator,
    our_trainer,
    paths_and_labels,
    plain_trainer,
    precisions,
    repeat,
    seconds_of,
    show,
)
from memory import Setting, measure_evaluation_memory, measure_training_memory
from pylon.data.cache import ImageCache, open_cache
from pylon.data.checks import require_files
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.contract import Radiographs
from pylon.data.dataset import EpochSampler, eval_loader, train_loader
from pylon.data.images import read_image
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, normalize, train_transform
from pylon.drawing import Row, draw_page
from pylon.experiment.evaluate import images_at_a_time, predict_logits
from pylon.model import STRIDE
from pylon.scoring.metrics import point_localization

# factor of images for a loader that reads a cache, so that it takes seconds like one that decodes
LONGER = 16


def main(options: Options) -> None:
    check(options)
    radiographs = read_chestxray14(options.data)
    images = radiographs.images
    require_files(images, radiographs)
    device = torch.device(options.device)
    options = replace(
        options,
        batch_size=options.batch_size or (16 if device.type == "cpu" else 64),
        precisions=options.precisions or precisions(device),
    )
    for precision in options.precisions:
        our_accelerator(options.device, precision, training=True)  # or a UserError
    workers = options.num_workers
    folder = options.data / "cache"
    caches = {size: open_cache(images, folder, size, workers) for size in options.cache_sizes}

    # compared with the plain pipeline
    head = f"{options.encoder_name}, 256 x 256, batches of {options.batch_size}"
    print(f"{machine(device)}\n{head}\n")
    print("| | plain | ours | times plain |\n|---|---|---|---|")
    for count in sorted({0, workers}):
        measure_loaders(options, radiographs, caches, count)
    measure_training(options, device)
    measure_evaluation(options, radiographs, caches, device)
    measure_metric(options)
    measure_pages(options, images)

    # memory, and the time that training waits for data
    batch_sizes = (options.batch_size,) if device.type == "cpu" else (64, 256)
    smallest = min(options.cache_sizes, default=0)
    setting = Setting(options.data, device, options.encoder_name, workers, smallest)
    for batch_size in batch_sizes:
        measure_training_memory(setting, batch_size, options.precisions)
    measure_evaluation_memory(setting, options.images // 5)
    encoder = options.encoder_name
    measure_fed_training(
        encoder, radiographs, caches, workers, device, batch_sizes, options.precisions
    )


def check(options: Options) -> None:
    require_at_least(options, batch_size=2, num_workers=0, images=5, steps=1, rounds=1)
    if min(options.cache_sizes, default=STRIDE) < STRIDE:
        raise UserError(f"--cache-sizes must be at least {STRIDE} each")


# loaders


def measure_loaders(
    options: Options, radiographs: Radiographs, caches: dict[int, ImageCache], workers: int
) -> None:
    names = radiographs.class_names
    few, many = (
        repeat(radiographs.images, full_batches(options.images * times, workers))
        for times in (1, LONGER)
    )
    paths, labels = paths_and_labels(few, names)

    # training
    ours = train_transform(256)
    theirs = plain.loader(paths, labels, plain.train_transform(), 64, workers, shuffle=True)
    candidates = {
        "plain": loader_rate(theirs),
        "from the PNGs": loader_rate(*train_loader(few, names, ours, 64, workers, 0)),
    }
    for size, cache in caches.items():
        loader, sampler = train_loader(many, names, ours, 64, workers, 0, cache)
        candidates[f"{size} cache"] = loader_rate(loader, sampler)
    measured = alternate(options.rounds, candidates)
    show(f"training loader, {workers} workers", "images/s", measured)

    # evaluation
    ours = eval_transform(256)
    theirs = plain.loader(paths, labels, plain.eval_transform(), 64, workers)
    candidates = {
        "plain": loader_rate(theirs),
        "from the PNGs": loader_rate(eval_loader(few, names, ours, 64, workers)),
    }
    for size, cache in caches.items():
        loader = eval_loader(many, names, ours, 64, workers, cache)
        candidates[f"{size} cache"] = loader_rate(loader)
    measured = alternate(options.rounds, candidates)
    show(f"evaluation loader, {workers} workers", "images/s", measured)


def loader_rate(loader: DataLoader, sampler: EpochSampler | None = None) -> Callable[[int], float]:
    """Build a function that iterates over a loader once and returns images/s."""

    def measure(k: int) -> float:
        if sampler is not None:
            sampler.epoch = k
        start = time.perf_counter()
        seen = 0
        for batch in loader:
            ours = isinstance(batch, dict)
            ready = normalize(batch["image"], MEAN, STD) if ours else batch[0]
            seen += len(ready)
        return seen / (time.perf_counter() - start)

    return measure


# the network


def random_batch(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, 256, 256) uint8 and labels (B, 14) float32."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 256, 256), dtype=torch.uint8, generator=generator)
    labels = (torch.rand(size, 14, generator=generator) < 0.1).float()
    return images.to(device), labels.to(device)


def measure_training(options: Options, device: torch.device) -> None:
    images, labels = random_batch(options.batch_size, device)

    def rate(step: Step, batch: torch.Tensor, tf32: bool) -> Callable[[int], float]:
        def measure(_: int) -> float:
            allow_tf32(tf32)
            seconds = seconds_of(
                lambda: [step(batch, labels) for _ in range(options.steps)], device
            )
            return options.steps * options.batch_size / seconds

        return measure

    # images/s
    theirs = plain_trainer(options.encoder_name, device)
    floats = normalize(images, MEAN, STD).contiguous()
    candidates = {"plain": rate(theirs, floats, tf32=False)}
    for precision in options.precisions:
        _, step = our_trainer(options.encoder_name, device, precision)
        candidates[precision] = rate(step, images, tf32=True)
    measured = alternate(options.rounds, candidates)
    show("training step", "images/s", measured)

    # as a share of the device's limit, which emulated precisions do not have
    flops = flops_an_image(options.encoder_name, device) / 1e9
    for precision in [name for name in options.precisions if name in precisions(device)]:
        reached = statistics.median(measured[precision]) * flops
        limit = matrix_rate(device, precision) / 1e9
        print(
            f"| training step, {precision}, {flops:.1f} GFLOP per image; "
            f"matrix product: {limit:.0f} GFLOP/s "
            f"| | {reached:.0f} GFLOP/s | {reached / limit:.0%} of it |"
        )


def measure_evaluation(
    options: Options,
    radiographs: Radiographs,
    caches: dict[int, ImageCache],
    device: torch.device,
) -> None:
    names = radiographs.class_names
    workers = options.num_workers
    count = options.images // 5 if device.type == "cpu" else options.images * LONGER
    table = repeat(radiographs.images, full_batches(count, workers))

    def rate(precision: str, task: Callable[[Accelerator], object]) -> Callable[[int], float]:
        def measure(_: int) -> float:
            # Accelerate keeps the precision per process: the last accelerator built sets it.
            accelerator = our_accelerator(device.type, precision, training=False)
            return len(table) / seconds_of(lambda: task(accelerator), device)

        return measure

    # the plain pipeline
    paths, labels = paths_and_labels(table, names)
    theirs = fresh(options.encoder_name, device, torch.contiguous_format).eval()
    plain_loader = plain.loader(paths, labels, plain.eval_transform(), 64, workers)
    candidates = {"plain": rate("fp32", lambda _: plain.predict(theirs, plain_loader, device))}

    # ours, with each precision and source
    net = fresh(options.encoder_name, device, torch.channels_last).eval()
    sources = {"from the PNGs": None, **{f"{size} cache": c for size, c in caches.items()}}
    for precision in options.precisions:
        for name, cache in sources.items():
            accelerator = our_accelerator(device.type, precision, training=False)
            batch_size = images_at_a_time(accelerator)
            pin = device.type == "cuda"
            transform = eval_transform(256)
            loader = eval_loader(table, names, transform, batch_size, workers, cache, pin)
            loader = accelerator.prepare(loader)
            task = partial(predict_logits, net, loader, title="predicting", mean=MEAN, std=STD)
            candidates[f"{precision}, {name}"] = rate(precision, task)
    show("evaluation", "images/s", alternate(max(1, options.rounds // 2), candidates))


# metric and pages


def measure_metric(options: Options) -> None:
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
    measured = alternate(options.rounds, candidates)
    show(f"metric, {count} boxes", "s", measured, more_is_better=False)
    assert (hits["plain"] == hits["ours"]).all()


def measure_pages(options: Options, images: pd.DataFrame) -> None:
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
    measured = alternate(options.rounds, candidates)
    what = "heatmap page of 20 panels, PNGs decoded"
    show(what, "s", measured, more_is_better=False)


if __name__ == "__main__":
    start(main, OPTIONS)
