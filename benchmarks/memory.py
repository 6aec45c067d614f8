"""Peaks of memory, each in a process of its own, since a process remembers its peak."""

import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plain
import torch
from tools import fresh, our_accelerator, our_trainer, plain_trainer, repeat, show

from pylon.cache import open_cache
from pylon.chestxray14 import class_names, read_images
from pylon.dataset import eval_loader, train_loader
from pylon.predict import predict_logits
from pylon.transforms import eval_transform, train_transform

if TYPE_CHECKING:
    from run import Options

PRELOADED = [
    "torch",
    "accelerate",
    "segmentation_models_pytorch",
    "albumentations",
    "matplotlib.pyplot",
    "sklearn.metrics",
]


def measure_training_memory(options: "Options", device: torch.device, batch_size: int) -> None:
    size = min(options.cache_sizes, default=0)
    plain_peak = in_own_process(training_peak, options, device, batch_size, None, 0)
    peaks = {
        f"{precision}, {size} cache": [in_own_process(training_peak, options, device, batch_size, precision, size)]
        for precision in options.precisions
    }
    show(f"peak memory of training, batch {batch_size}", "GB", {"plain": [plain_peak], **peaks}, more_is_better=False)


def measure_evaluation_memory(options: "Options", device: torch.device) -> None:
    size = min(options.cache_sizes, default=0)
    peaks = [in_own_process(evaluation_peak, options, device, size, share) for share in (1, 4)]
    count = options.images // 5
    print(f"| peak memory of evaluation, fp32 | {count} images: {peaks[0]:.2f} GB | {4 * count}: {peaks[1]:.2f} GB | |")


def training_peak(options: "Options", device: torch.device, batch_size: int, precision: str | None, size: int) -> float:
    images = read_images(options.data)[: batch_size * 4]
    if precision is None:
        step = plain_trainer(options.encoder_name, device)
        paths, labels = images["path"].tolist(), images[class_names(images)].to_numpy(np.float32)
        batches = plain.loader(paths, labels, plain.train_transform(), batch_size, options.num_workers, True)
        for image, label in batches:
            step(image, label)
    else:
        cache = open_cache(images, options.data, size, options.num_workers)
        pin = device.type == "cuda"
        batches, sampler = train_loader(images, train_transform(256), batch_size, options.num_workers, 0, cache, pin)
        accelerator, step = our_trainer(options.encoder_name, device, precision)
        sampler.epoch, batches = 1, accelerator.prepare(batches)
        for batch in batches:
            step(batch["image"], batch["label"])
    return peak(device)


def evaluation_peak(options: "Options", device: torch.device, size: int, share: int) -> float:
    images = repeat(read_images(options.data), options.images // 5 * share)
    accelerator = our_accelerator(device.type, "fp32", training=False)
    cache = open_cache(images, options.data, size, options.num_workers)
    pin = device.type == "cuda"
    loader = accelerator.prepare(eval_loader(images, eval_transform(256), 64, options.num_workers, cache, pin))
    predict_logits(fresh(options.encoder_name, device, torch.channels_last), loader, accelerator, "predicting")
    return peak(device)


def in_own_process(function: Callable, *arguments) -> float:
    """Call a function in a process that is forked from one that has imported torch and the rest, and no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as executor:
        return executor.submit(function, *arguments).result()


def peak(device: torch.device) -> float:
    """GB: of the GPU, or of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with the peak of the parent
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
