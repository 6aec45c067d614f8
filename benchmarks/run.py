"""Measure the plain pipeline of 2020 (plain.py) and ours, side by side in one process and in alternation.

    python benchmarks/run.py --data DIR                  # DIR as for train.py, images of 1024 x 1024
    python benchmarks/run.py --data DIR --device cuda

Prints markdown tables: medians, and how many times the plain pipeline ours is. Fills DATA/cache/512 and .../1024.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import plain
import torch
from accelerate import Accelerator
from fed import measure_fed_training
from memory import measure_evaluation_memory, measure_training_memory
from tools import (
    Step,
    allow_tf32,
    alternate,
    flops_an_image,
    fresh,
    machine,
    matrix_rate,
    our_accelerator,
    our_trainer,
    plain_trainer,
    precisions,
    repeat,
    seconds_of,
    show,
    whole_batches,
)
from torch.utils.data import DataLoader

from pylon.cache import open_cache
from pylon.chestxray14 import class_names, read_images, require_files
from pylon.cli import UserError, require_at_least, run
from pylon.dataset import eval_loader, train_loader
from pylon.evaluation import images_at_a_time
from pylon.heatmap import Row, draw_page
from pylon.images import read_image
from pylon.metrics import point_localization
from pylon.model import STRIDE
from pylon.predict import predict_logits
from pylon.transforms import eval_transform, normalize, train_transform

LONGER = 16  # times as many images for a loader that reads a cache as for one that decodes: both take seconds


@dataclass
class Options:
    """Measure the plain pipeline of 2020 and ours, side by side."""

    data: Path = Path("data")
    """Folder with NIH's files."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is."""
    encoder_name: str = "resnet50"
    """Encoder of the network."""
    batch_size: int | None = None
    """Images a training step; 16 on a CPU, 64 on a GPU if none is given."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""
    images: int = 320
    """Images a measurement of a loader that decodes; sixteen times as many for one that reads a cache."""
    steps: int = 3
    """Training steps a measurement."""
    rounds: int = 5
    """Measurements of each; their median is shown."""
    cache_sizes: tuple[int, ...] = (512, 1024)
    """Caches to measure."""
    precisions: tuple[Literal["fp32", "fp16", "bf16"], ...] = ()
    """Precisions to measure; those that the device multiplies in hardware if none is named."""


def main(options: Options) -> None:
    check(options)
    images = read_images(options.data)
    require_files(images, options.data)
    device = torch.device(options.device)
    options.batch_size = options.batch_size or (16 if device.type == "cpu" else 64)
    options.precisions = options.precisions or precisions(device)
    for precision in options.precisions:
        our_accelerator(options.device, precision, training=True)  # or a UserError
    caches = {size: open_cache(images, options.data, size, options.num_workers) for size in options.cache_sizes}
    print(f"{machine(device)}\n{options.encoder_name}, 256 x 256, batches of {options.batch_size}\n")
    print("| | plain | ours | times plain |\n|---|---|---|---|")
    for workers in sorted({0, options.num_workers}):
        measure_loaders(options, images, caches, workers)
    measure_training(options, device)
    measure_evaluation(options, images, caches, device)
    measure_metric(options)
    measure_pages(options, images)
    batch_sizes = (options.batch_size,) if device.type == "cpu" else (64, 256)
    for batch_size in batch_sizes:
        measure_training_memory(options, device, batch_size)
    measure_evaluation_memory(options, device)
    measure_fed_training(
        options.encoder_name, images, caches, options.num_workers, device, batch_sizes, options.precisions
    )


def check(options: Options) -> None:
    require_at_least(options, batch_size=2, num_workers=0, images=5, steps=1, rounds=1)
    if min(options.cache_sizes, default=STRIDE) < STRIDE:
        raise UserError(f"--cache-sizes must be at least {STRIDE} each")


# loaders


def measure_loaders(options: Options, images: pd.DataFrame, caches: dict, workers: int) -> None:
    few, many = (repeat(images, whole_batches(options.images * times, workers)) for times in (1, LONGER))
    paths, labels = few["path"].tolist(), few[class_names(images)].to_numpy(np.float32)

    def rate(loader: DataLoader, sampler=None) -> Callable[[int], float]:
        def measure(k: int) -> float:
            if sampler is not None:
                sampler.epoch = k
            start, seen = time.perf_counter(), 0
            for batch in loader:
                batch = normalize(batch["image"]) if isinstance(batch, dict) else batch[0]
                seen += len(batch)
            return seen / (time.perf_counter() - start)

        return measure

    training, evaluation = train_transform(256), eval_transform(256)
    train = {
        "plain": rate(plain.loader(paths, labels, plain.train_transform(), 64, workers, shuffle=True)),
        "from the PNGs": rate(*train_loader(few, training, 64, workers, 0)),
        **{f"{size} cache": rate(*train_loader(many, training, 64, workers, 0, c)) for size, c in caches.items()},
    }
    show(f"training loader, {workers} workers", "images/s", alternate(options.rounds, train))
    evaluate = {
        "plain": rate(plain.loader(paths, labels, plain.eval_transform(), 64, workers)),
        "from the PNGs": rate(eval_loader(few, evaluation, 64, workers)),
        **{f"{size} cache": rate(eval_loader(many, evaluation, 64, workers, c)) for size, c in caches.items()},
    }
    show(f"evaluation loader, {workers} workers", "images/s", alternate(options.rounds, evaluate))


# the network


def random_batch(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 256, 256), dtype=torch.uint8, generator=generator)
    return images.to(device), (torch.rand(size, 14, generator=generator) < 0.1).float().to(device)


def measure_training(options: Options, device: torch.device) -> None:
    images, labels = random_batch(options.batch_size, device)

    def rate(step: Step, batch: torch.Tensor, tf32: bool) -> Callable[[int], float]:
        def measure(_: int) -> float:
            allow_tf32(tf32)
            seconds = seconds_of(lambda: [step(batch, labels) for _ in range(options.steps)], device)
            return options.steps * options.batch_size / seconds

        return measure

    theirs, floats = plain_trainer(options.encoder_name, device), normalize(images).contiguous()
    candidates = {"plain": rate(theirs, floats, tf32=False)}
    for precision in options.precisions:
        _, step = our_trainer(options.encoder_name, device, precision)
        candidates[precision] = rate(step, images, tf32=True)
    measured = alternate(options.rounds, candidates)
    show("training step", "images/s", measured)
    flops = flops_an_image(options.encoder_name, device)
    for precision in [p for p in options.precisions if p in precisions(device)]:  # others are emulated: no limit
        reached, limit = statistics.median(measured[precision]) * flops / 1e9, matrix_rate(device, precision) / 1e9
        print(
            f"| training step, {precision}, {flops / 1e9:.1f} GFLOP an image; matrix product: {limit:.0f} GFLOP/s "
            f"| | {reached:.0f} GFLOP/s | {reached / limit:.0%} of it |"
        )


def measure_evaluation(options: Options, images: pd.DataFrame, caches: dict, device: torch.device) -> None:
    count = options.images // 5 if device.type == "cpu" else options.images * LONGER
    some = repeat(images, whole_batches(count, options.num_workers))
    paths, labels = some["path"].tolist(), some[class_names(images)].to_numpy(np.float32)
    theirs = fresh(options.encoder_name, device, torch.contiguous_format).eval()
    net = fresh(options.encoder_name, device, torch.channels_last).eval()
    plain_loader = plain.loader(paths, labels, plain.eval_transform(), 64, options.num_workers)

    def rate(precision: str, task: Callable[[Accelerator], object]) -> Callable[[int], float]:
        def measure(_: int) -> float:
            # Accelerate keeps precision in a state of the process: the one that was made last rules.
            accelerator = our_accelerator(device.type, precision, training=False)
            return len(some) / seconds_of(lambda: task(accelerator), device)

        return measure

    candidates = {"plain": rate("fp32", lambda _: plain.predict(theirs, plain_loader, device))}
    for precision in options.precisions:
        for name, cache in {"from the PNGs": None, **{f"{size} cache": c for size, c in caches.items()}}.items():
            accelerator = our_accelerator(device.type, precision, training=False)
            batch_size = images_at_a_time(accelerator)
            pin = device.type == "cuda"
            loader = eval_loader(some, eval_transform(256), batch_size, options.num_workers, cache, pin)
            task = partial(predict_logits, net, accelerator.prepare(loader), title="predicting")
            candidates[f"{precision}, {name}"] = rate(precision, task)
    show("evaluation", "images/s", alternate(max(1, options.rounds // 2), candidates))


# metric and pages


def measure_metric(options: Options) -> None:
    rng, count = np.random.default_rng(0), 984
    maps = torch.from_numpy(rng.random((880, 14, 64, 64), np.float32))
    image = np.concatenate([np.arange(880), rng.choice(880, count - 880, replace=False)])
    image.sort()
    pathology = rng.permuted(np.tile(np.arange(14), (880, 1)), axis=1)[image, np.arange(count) % 14]
    bbox = np.column_stack([rng.integers(0, 500, (count, 2)), rng.integers(50, 500, (count, 2))])
    pairs = [[] for _ in range(880)]
    for n, c, xywh in zip(image, pathology, bbox, strict=True):
        pairs[n].append((c, xywh))
    hits, size = {}, np.full((count, 2), 1024)

    def theirs() -> None:
        hits["plain"] = plain.point_localization(maps, pairs)

    def ours() -> None:
        hits["ours"], _, _ = point_localization(maps[image, pathology], bbox, size, (256, 256))

    measured = alternate(
        options.rounds, {"plain": lambda _: seconds_of(theirs), "coordinates": lambda _: seconds_of(ours)}
    )
    show(f"metric, {count} boxes", "s", measured, more_is_better=False)
    assert (hits["plain"] == hits["ours"]).all()


def measure_pages(options: Options, images: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    paths, maps = images["path"].iloc[:10].tolist(), rng.random((10, 64, 64), np.float32)
    title, bbox = "Mass: 0.123", (20, 30, 60, 50)

    def theirs() -> None:
        plain.draw_page([(path, heatmap, title, bbox) for path, heatmap in zip(paths, maps, strict=True)])

    def ours() -> None:
        draw_page([
            Row(Path(path).name, read_image(path), heatmap, title, bbox)
            for path, heatmap in zip(paths, maps, strict=True)
        ])  # fmt: skip

    measured = alternate(options.rounds, {"plain": lambda _: seconds_of(theirs), "ours": lambda _: seconds_of(ours)})
    show("heatmap page of 20 panels, PNGs decoded", "s", measured, more_is_better=False)


if __name__ == "__main__":
    run(main, Options)
