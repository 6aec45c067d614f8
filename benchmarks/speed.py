"""Compare the speed of the plain pipeline of 2020 (plain.py) and ours, alternately in one process.

    python benchmarks/speed.py --data DIR    # DIR as for train.py, 1024 x 1024 images
    python benchmarks/speed.py --device cuda

Prints markdown tables of medians, with the factor by which ours is better than the plain pipeline.
Fills DATA/cache/512 and DATA/cache/1024. On a GPU it measures training instead (gpu.py), and writes
gpu.csv.
"""

import os
import statistics
import tempfile
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

    data: Path | None = None
    """Folder with NIH's files; if not given, 320 images are drawn in a temporary folder."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the network."""
    encoder_name: str = "resnet50"
    """Encoder of the network."""
    batch_size: int = 16
    """Images per training step; 64 and 256 on a GPU."""
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
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    """Precisions to measure; if none is given, those that the CPU supports in hardware. On a GPU
    all are."""
    out: Path = Path("gpu.csv")
    """On a GPU: table to write."""
    budget: int = 420
    """On a GPU: seconds for everything; measurements for which they do not suffice are left out."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import plain
from drawn import write_radiographs
from fed import measure_fed_training
from gpu import Plan, Setting, measure_all
from measure import (
    Step,
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
    random_batch,
    repeat,
    seconds_of,
    show,
)
from memory import MemorySetting, measure_evaluation_memory, measure_training_memory
from metric_and_pages import measure_metric, measure_pages
from pylon.data.cache import ImageCache, open_cache
from pylon.data.checks import require_files
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.dataset import EpochSampler, eval_loader, train_loader
from pylon.data.gpu_augment import DrawnTransform
from pylon.data.radiographs import Radiographs
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, normalize, train_transform
from pylon.evaluation.evaluate import images_at_a_time, predict_logits
from pylon.model import STRIDE
from pylon.system.device import choose_device

# factor of images for a loader that reads a cache, so that it takes seconds like one that decodes
LONGER = 16
IMAGES = 320  # drawn where no data are given


def main(options: Options) -> None:
    end = time.perf_counter() + options.budget
    check(options)
    choose_device(options.device)  # or a UserError
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            data = write_radiographs(Path(folder) / "data", IMAGES, 1024)
            options = replace(options, data=data)
        radiographs = read_chestxray14(options.data)
        images = radiographs.images
        require_files(images, radiographs)
        place = options.data / "cache"
        caches = {
            size: open_cache(images, place, size, options.num_workers)
            for size in options.cache_sizes
        }
        if options.device == "cpu":
            measure_on_cpu(options, radiographs, caches)
        else:
            measure_on_gpu(options, radiographs, caches, end)


def measure_on_gpu(
    options: Options, radiographs: Radiographs, caches: dict[int, ImageCache], end: float
) -> None:
    plan = Plan(cache_sizes=options.cache_sizes)
    device = torch.device(options.device)
    workers = options.num_workers
    setting = Setting(device, radiographs, caches, options.encoder_name, workers, plan)
    table = measure_all(setting, options.out, end)
    print(table.to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    print(f"written: {options.out}; please send it and what is printed, as an issue")


def measure_on_cpu(
    options: Options, radiographs: Radiographs, caches: dict[int, ImageCache]
) -> None:
    device = torch.device("cpu")
    options = replace(options, precisions=options.precisions or precisions(device))
    images = radiographs.images
    workers = options.num_workers

    # compared with the plain pipeline
    head = f"{options.encoder_name}, 256 x 256, batches of {options.batch_size}"
    print(f"{machine(device)}\n{head}\n")
    print("| | plain | ours | times plain |\n|---|---|---|---|")
    for count in sorted({0, workers}):
        measure_loaders(options, radiographs, caches, count)
    measure_training(options, device)
    measure_evaluation(options, radiographs, caches, device)
    measure_metric(options.rounds)
    measure_pages(options.rounds, images)

    # memory, and the time that training waits for data
    smallest = min(options.cache_sizes, default=0)
    setting = MemorySetting(options.data, device, options.encoder_name, workers, smallest)
    measure_training_memory(setting, options.batch_size, options.precisions)
    measure_evaluation_memory(setting, options.images // 5)
    measure_fed_training(
        options.encoder_name,
        radiographs,
        caches,
        workers,
        device,
        options.batch_size,
        options.precisions,
    )


def check(options: Options) -> None:
    require_at_least(options, batch_size=2, num_workers=0, images=5, steps=1, rounds=1, budget=1)
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
        drawn = DrawnTransform(256, size)
        loader, sampler = train_loader(many, names, drawn, 64, workers, 0, cache)
        candidates[f"{size} cache, --augment device"] = loader_rate(loader, sampler)
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
            if isinstance(batch, dict) and "augmentation" not in batch:
                normalize(batch["image"], MEAN, STD)
            seen += len(batch["image"] if isinstance(batch, dict) else batch[0])
        return seen / (time.perf_counter() - start)

    return measure


# the network


def measure_training(options: Options, device: torch.device) -> None:
    images, labels = random_batch(options.batch_size, device)

    def rate(step: Step, batch: torch.Tensor) -> Callable[[int], float]:
        def measure(_: int) -> float:
            seconds = seconds_of(
                lambda: [step(batch, labels) for _ in range(options.steps)], device
            )
            return options.steps * options.batch_size / seconds

        return measure

    # images/s
    theirs = plain_trainer(options.encoder_name, device)
    floats = normalize(images, MEAN, STD).contiguous()
    candidates = {"plain": rate(theirs, floats)}
    for precision in options.precisions:
        _, step = our_trainer(options.encoder_name, device, precision)
        candidates[precision] = rate(step, images)
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
    table = repeat(radiographs.images, full_batches(options.images // 5, workers))

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
            loader = eval_loader(table, names, eval_transform(256), batch_size, workers, cache)
            loader = accelerator.prepare(loader)
            task = partial(predict_logits, net, loader, title="predicting", mean=MEAN, std=STD)
            candidates[f"{precision}, {name}"] = rate(precision, task)
    show("evaluation", "images/s", alternate(max(1, options.rounds // 2), candidates))


if __name__ == "__main__":
    start(main, OPTIONS)
