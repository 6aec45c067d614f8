"""Training fed by the loader: does the network ever wait for data?"""

import time

import numpy as np
import pandas as pd
import plain
import torch
from tools import (
    Step,
    allow_tf32,
    flops_an_image,
    matrix_rate,
    our_trainer,
    plain_trainer,
    repeat,
    wait_for,
)
from torch.utils.data import DataLoader

from pylon.cache import ImageCache
from pylon.chestxray14 import class_names
from pylon.dataset import train_loader
from pylon.transforms import train_transform


def measure_fed_training(
    encoder_name: str,
    images: pd.DataFrame,
    caches: dict[int, ImageCache],
    num_workers: int,
    device: torch.device,
    batch_sizes: tuple[int, ...],
    precisions: tuple[str, ...],
) -> None:
    """Print a row for the plain pipeline and for each cache: images/s, waiting, share of the matrix rate."""
    precision = "fp16" if "fp16" in precisions else precisions[-1]
    print(f"\n| training fed by the loader | images/s | waiting for data | of the {precision} matrix product |")
    print("|---|---|---|---|")
    limit = matrix_rate(device, precision) / flops_an_image(encoder_name, device)  # images/s
    # The workers are up to four batches ahead each when the clock starts; on a CPU they are so in any case.
    warm = 2 if device.type == "cpu" else 4 * max(1, num_workers)
    pin = device.type == "cuda"
    for batch_size in batch_sizes:
        table = repeat(images, batch_size * warm * 4)
        paths, labels = table["path"].tolist(), table[class_names(images)].to_numpy(np.float32)
        plain_step = plain_trainer(encoder_name, device)
        allow_tf32(False)
        loader = plain.loader(paths, labels, plain.train_transform(), batch_size, num_workers, True)
        feed(f"plain, fp32, batch {batch_size}", loader, plain_step, device, limit, warm)
        for size, cache in caches.items():
            accelerator, step = our_trainer(encoder_name, device, precision)
            loader, sampler = train_loader(table, train_transform(256), batch_size, num_workers, 0, cache, pin)
            sampler.epoch = 1
            loader = accelerator.prepare(loader)
            feed(f"{size} cache, {precision}, batch {batch_size}", loader, step, device, limit, warm)


def feed(name: str, loader: DataLoader, step: Step, device: torch.device, limit: float, warm: int) -> None:
    batches = iter(loader)
    for k in range(len(loader)):
        if k == warm:
            wait_for(device)
            begin, seen, waited = time.perf_counter(), 0, 0.0
        start = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        image, label = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        step(image, label)
        if k >= warm:
            waited, seen = waited + got - start, seen + len(label)
    wait_for(device)
    seconds = time.perf_counter() - begin
    rate = seen / seconds
    print(f"| {name} | {rate:.3g} | {waited / seconds:.1%} | {rate / limit:.1%} |", flush=True)
