"""Peak memory, measured in a new process each time, since the peak of a process never falls."""

import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import plain
from measure import (
    fresh,
    our_accelerator,
    our_trainer,
    paths_and_labels,
    plain_trainer,
    repeat,
    show,
)
from pylon.data.cache import open_cache
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.dataset import eval_loader, train_loader
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, train_transform
from pylon.evaluation.evaluate import predict_logits
from pylon.system.workers import end_with_parent

PRELOADED = [
    "torch",
    "accelerate",
    "segmentation_models_pytorch",
    "albumentations",
    "matplotlib.pyplot",
    "sklearn.metrics",
]


@dataclass(frozen=True)
class MemorySetting:
    """Setting of a process whose peak memory is measured."""

    data: Path
    device: torch.device
    encoder_name: str
    num_workers: int
    cache_size: int  # 0: no cache


def measure_training_memory(
    setting: MemorySetting, batch_size: int, precisions: tuple[str, ...]
) -> None:
    plain_peak = in_own_process(plain_training_peak, setting, batch_size)
    peaks = {"plain": [plain_peak]}
    for precision in precisions:
        name = f"{precision}, {setting.cache_size} cache"
        peaks[name] = [in_own_process(training_peak, setting, batch_size, precision)]
    what = f"peak memory of training, batch {batch_size}"
    show(what, "GB", peaks, more_is_better=False)


def measure_evaluation_memory(setting: MemorySetting, count: int) -> None:
    few, many = (in_own_process(evaluation_peak, setting, n) for n in (count, 4 * count))
    print(
        f"| peak memory of evaluation, fp32 | {count} images: {few:.2f} GB "
        f"| {4 * count}: {many:.2f} GB | |"
    )


def plain_training_peak(setting: MemorySetting, batch_size: int) -> float:
    radiographs = read_chestxray14(setting.data)
    step = plain_trainer(setting.encoder_name, setting.device)
    images = radiographs.images[: batch_size * 4]
    paths, labels = paths_and_labels(images, radiographs.class_names)
    transform = plain.train_transform()
    for image, label in plain.loader(
        paths, labels, transform, batch_size, setting.num_workers, True
    ):
        step(image, label)
    return peak(setting.device)


def training_peak(setting: MemorySetting, batch_size: int, precision: str) -> float:
    radiographs = read_chestxray14(setting.data)
    images = radiographs.images[: batch_size * 4]
    workers = setting.num_workers
    cache = open_cache(images, setting.data / "cache", setting.cache_size, workers)
    batches, sampler = train_loader(
        images,
        radiographs.class_names,
        train_transform(256),
        batch_size,
        workers,
        seed=0,
        cache=cache,
        pin_memory=setting.device.type == "cuda",
    )
    accelerator, step = our_trainer(setting.encoder_name, setting.device, precision)
    sampler.epoch = 1
    for batch in accelerator.prepare(batches):
        step(batch["image"], batch["label"])
    return peak(setting.device)


def evaluation_peak(setting: MemorySetting, count: int) -> float:
    radiographs = read_chestxray14(setting.data)
    images = repeat(radiographs.images, count)
    accelerator = our_accelerator(setting.device.type, "fp32", training=False)
    workers = setting.num_workers
    cache = open_cache(images, setting.data / "cache", setting.cache_size, workers)
    loader = eval_loader(
        images,
        radiographs.class_names,
        eval_transform(256),
        64,
        workers,
        cache,
        pin_memory=setting.device.type == "cuda",
    )
    net = fresh(setting.encoder_name, setting.device, torch.channels_last)
    predict_logits(net, accelerator.prepare(loader), accelerator, "predicting", MEAN, STD)
    return peak(setting.device)


def in_own_process(function: Callable[..., float], *arguments: object) -> float:
    """Call a function in a process forked from one that has only imported torch and the rest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context, end_with_parent) as executor:
        return executor.submit(function, *arguments).result()


def peak(device: torch.device) -> float:
    """Return the peak in GB of GPU memory, or of this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss starts at the parent's peak
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)
        return int(kilobytes) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
