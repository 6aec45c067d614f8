"""What train.py does before its first batch, imports and network apart: seconds of each part.

    python benchmarks/startup.py --data DIR --cache-size 256    # DIR with a filled cache

Prints a markdown table: medians of the wall-clock and of this process's CPU time.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pylon.system.cli import parse, require_at_least, start


@dataclass
class Options:
    """Time what train.py does before its first batch."""

    data: Path = Path("data")
    """Folder with NIH's files."""
    cache_size: int = 1024
    """Cache of decoded images; it is filled first if it is not."""
    batch_size: int = 64
    """Images of the first batch."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""
    rounds: int = 5
    """Number of measurements; medians are printed."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from measure import machine
from pylon.data.cache import open_cache, unreadable_images
from pylon.data.checks import require_files
from pylon.data.dataset import eval_loader, train_loader
from pylon.data.radiographs import split_hash
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, train_transform


def main(options: Options) -> None:
    require_at_least(options, cache_size=256, batch_size=1, num_workers=0, rounds=1)
    images = read_chestxray14(options.data).images
    open_cache(images, options.data / "cache", options.cache_size, options.num_workers)
    rounds = [measure(options) for _ in range(options.rounds)]
    print(f"{machine(torch.device('cpu'))}\n{len(images)} images, {options.num_workers} workers\n")
    print("| before the first batch | seconds | of CPU |\n|---|---|---|")
    for part in rounds[0]:
        wall, cpu = (statistics.median(each[part][k] for each in rounds) for k in (0, 1))
        print(f"| {part} | {wall:.2f} | {cpu:.2f} |")
    for k, name in ((0, "seconds"), (1, "seconds of CPU")):
        total = statistics.median(sum(part[k] for part in each.values()) for each in rounds)
        print(f"{name} in all: {total:.2f}")


def measure(options: Options) -> dict[str, tuple[float, float]]:
    """Wall-clock and CPU seconds of each part, in the order of train.py."""
    seconds = {}

    def timed(part: str, task: Callable[[], Any]) -> Any:
        wall = time.perf_counter()
        cpu = time.process_time()
        answer = task()
        seconds[part] = (time.perf_counter() - wall, time.process_time() - cpu)
        return answer

    # the tables, the files
    folder = options.data / "cache"
    size = options.cache_size
    workers = options.num_workers
    radiographs = timed("reading lists, finding files", lambda: read_chestxray14(options.data))
    images = radiographs.images
    names = radiographs.class_names
    used = images[images["split"] != "test"]
    timed("are files missing?", lambda: require_files(used, radiographs))
    timed("are files new or changed?", lambda: unreadable_images(used, folder, size, workers))
    timed("checksum of split and labels", lambda: split_hash(images, names))
    cache = timed("opening the cache", lambda: open_cache(used, folder, size, workers))

    # the loaders, to the first batch
    train = images[images["split"] == "train"]
    val = images[images["split"] == "val"]
    arguments = (options.batch_size, workers)
    batches, sampler = timed(
        "training loader",
        lambda: train_loader(train, names, train_transform(256), *arguments, 0, cache),
    )
    sampler.epoch = 1
    timed(
        "validation loader", lambda: eval_loader(val, names, eval_transform(256), *arguments, cache)
    )
    timed("workers, first batch", lambda: next(iter(batches)))
    return seconds


if __name__ == "__main__":
    start(main, OPTIONS)
