"""Compare the runtimes of an evaluation on a CPU with each other and with the published way.

    python benchmarks/runtimes.py --data DIR    # NIH's files, such as data/

First the network alone, at several batch sizes; then the whole way from file to probability: the
pipeline as published in 2020 (plain.py) from the PNGs, ours from a cache of decoded images. The
network has random weights and a batch norm that has seen radiographs. All in alternation; prints
two markdown tables of medians, with the largest difference of a probability from torch in fp32.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pylon.system.cli import parse, require_at_least, start


@dataclass
class Options:
    """Compare the runtimes of an evaluation on a CPU."""

    data: Path = Path("data")
    """Folder of NIH's files."""
    encoder_name: str = "resnet50"
    """Encoder of the network."""
    runtimes: tuple[str, ...] = ("torch", "onnx", "openvino")
    """Runtimes to measure."""
    batch_sizes: tuple[int, ...] = (1, 8, 16, 32)
    """Images per batch of the network alone."""
    images: int = 64
    """Images of the whole way."""
    cache_size: int = 1024
    """Sides of the images in the cache."""
    rounds: int = 3
    """Number of measurements of each; the median is printed."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Worker processes that read images."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import copy
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

import plain
from measure import alternate, machine, paths_and_labels, precisions, repeat, seconds_of
from pylon.data.cache import open_cache
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.dataset import eval_loader
from pylon.data.images import read_image
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, normalize
from pylon.evaluation.evaluate import images_of_a_batch
from pylon.evaluation.runtime import device_for, run_with
from pylon.model import Pylon

SIZE = 256
CPU = torch.device("cpu")
Predict = Callable[[Tensor], Tensor]  # (B, 1, S, S) float32, normalised -> probabilities (B, C)


def main(options: Options) -> None:
    require_at_least(options, images=2, rounds=1, num_workers=0, cache_size=SIZE)
    radiographs = read_chestxray14(options.data)
    images = repeat(radiographs.images, options.images)
    net = random_network(options.encoder_name, images["path"].tolist()[:16])
    ours = networks(net, options)
    print(machine(CPU))
    print(f"{options.encoder_name}, {len(images)} images, {options.num_workers} workers\n")
    measure_network(net, ours, options)
    measure_whole_way(net, ours, images, radiographs.class_names, options)


def measure_network(net: Pylon, ours: dict[str, Predict], options: Options) -> None:
    """Print images per second of the network alone, by batch size."""
    print(f"| network alone | {' | '.join(f'batch {b}' for b in options.batch_sizes)} |")
    print("|---" * (len(options.batch_sizes) + 1) + "|")
    rates = {name: [] for name in ["plain", *ours]}
    for batch in options.batch_sizes:
        inputs = normalize(torch.randint(0, 256, (batch, 1, SIZE, SIZE), dtype=torch.uint8),
                           MEAN, STD)  # fmt: skip
        candidates = {"plain": partial(probabilities, net), **ours}
        measured = alternate(
            options.rounds,
            {name: partial(rate, run, inputs) for name, run in candidates.items()},
        )
        for name, values in measured.items():
            rates[name].append(statistics.median(values))
    for name, values in rates.items():
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in values)} |")


def measure_whole_way(
    net: Pylon,
    ours: dict[str, Predict],
    images: pd.DataFrame,
    class_names: Sequence[str],
    options: Options,
) -> None:
    """Print images per second from file to probability, and the largest differences."""
    workers = options.num_workers
    batch = images_of_a_batch("cpu")
    paths, labels = paths_and_labels(images, class_names)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        unique = images.drop_duplicates("path")
        cache = open_cache(unique, Path(folder), options.cache_size, workers, print)
        given = plain.loader(paths, labels, plain.eval_transform(), 64, workers)

        def published(_: int) -> float:
            def task() -> None:
                found["plain"] = plain.predict(net, given, CPU)

            return len(images) / seconds_of(task)

        def evaluated(name: str, _: int) -> float:
            loader = eval_loader(
                images, class_names, eval_transform(SIZE), batch, workers, cache, False
            )

            def task() -> None:
                inputs = (normalize(each["image"], MEAN, STD) for each in loader)
                found[name] = torch.cat([ours[name](each) for each in inputs])

            return len(images) / seconds_of(task)

        candidates = {name: partial(evaluated, name) for name in ours}
        measured = alternate(options.rounds, {"plain": published, **candidates})

    print(f"\n| from file to probability, {options.cache_size} cache | images/s | times plain "
          "| largest difference |\n|---|---|---|---|")  # fmt: skip
    base = statistics.median(measured["plain"])
    for name, values in measured.items():
        median = statistics.median(values)
        difference = (found[name] - found["torch fp32"]).abs().max().item()
        print(f"| {name} | {median:.3g} | {median / base:.2f} | {difference:.1g} |")


def random_network(encoder_name: str, files: list[str]) -> Pylon:
    """A network with random weights, in PyTorch's default memory format."""
    torch.manual_seed(0)
    net = Pylon(encoder_name, None)
    inputs = torch.stack([eval_transform(SIZE)(read_image(file))["image"] for file in files])
    with torch.no_grad():
        for _ in range(5):
            net.train()(normalize(inputs, MEAN, STD))
    return net.eval()


def networks(net: Pylon, options: Options) -> dict[str, Predict]:
    """What is compared, by name; torch in fp32 first, from which the others differ."""
    candidates = {}
    for runtime in options.runtimes:
        for precision in precisions(CPU):
            if runtime == "onnx" and precision != "fp32":
                continue
            device_for(runtime, "cpu", precision)  # or a sentence about what is not installed
            model = copy.deepcopy(net).to(memory_format=torch.channels_last)
            seconds = run_with(model, SIZE, runtime, precision)
            if runtime != "torch":
                print(f"{runtime} {precision}: compiled in {seconds:.1f} s")
            lower = runtime == "torch" and precision == "bf16"
            candidates[f"{runtime} {precision}"] = partial(probabilities, model, lower=lower)
    return candidates


def probabilities(net: nn.Module, inputs: Tensor, lower: bool = False) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
        return net(inputs).logits.sigmoid()


def rate(run: Predict, inputs: Tensor, _: int) -> float:
    """Images per second of the network alone, over at least 16 images."""
    times = -(-16 // len(inputs))
    seconds = seconds_of(lambda: [run(inputs) for _ in range(times)])
    return times * len(inputs) / seconds


if __name__ == "__main__":
    start(main, OPTIONS)
