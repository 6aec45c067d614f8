"""Training fed by the loader: does the network ever wait for data?"""

import time

import numpy as np
import pandas as pd
import plain
import torch
from tools import Step, allow_tf32, flops_an_image, fresh, matrix_rate, our_trainer, peak, wait_for
from torch.utils.data import DataLoader

from pylon.chestxray14 import class_names
from pylon.dataset import train_loader
from pylon.images import ImageCache
from pylon.transforms import train_transform

WARM = 3  # batches before the clock starts


def measure_fed_training(
    encoder_name: str,
    images: pd.DataFrame,
    caches: dict[int, ImageCache],
    num_workers: int,
    device: torch.device,
    batch_sizes: tuple[int, ...],
) -> None:
    """Print a row for the plain pipeline and for each cache: images/s, waiting, share of the matrix rate, memory."""
    print("\n| training fed by the loader | images/s | waiting for data | of the matrix product | peak memory |")
    print("|---|---|---|---|---|")
    precision = "fp32" if device.type == "cpu" else "fp16"
    limit = matrix_rate(device, precision) / flops_an_image(encoder_name, device)  # images/s
    paths, labels = images["path"].tolist(), images[class_names(images)].to_numpy(np.float32)
    for batch_size in batch_sizes:
        net = fresh(encoder_name, device, torch.contiguous_format)
        adam = torch.optim.Adam(net.parameters(), lr=1e-4)

        def plain_step(image: torch.Tensor, label: torch.Tensor, net=net, adam=adam) -> None:
            plain.train_step(net, adam, image.to(device), label.to(device))

        allow_tf32(False)
        loader = plain.loader(paths, labels, plain.train_transform(), batch_size, num_workers, True)
        feed(f"plain, fp32, batch {batch_size}", loader, plain_step, device, limit)
        for size, cache in caches.items():
            accelerator, step = our_trainer(encoder_name, device, precision)
            loader, sampler = train_loader(images, train_transform(256), batch_size, num_workers, 0, cache)
            sampler.epoch = 1
            feed(f"{size} cache, {precision}, batch {batch_size}", accelerator.prepare(loader), step, device, limit)


def feed(name: str, loader: DataLoader, step: Step, device: torch.device, limit: float) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    batches = iter(loader)
    for k in range(len(loader)):
        if k == WARM:
            wait_for(device)
            begin, seen, waited = time.perf_counter(), 0, 0.0
        start = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        image, label = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        step(image, label)
        if k >= WARM:
            waited, seen = waited + got - start, seen + len(label)
    wait_for(device)
    seconds = time.perf_counter() - begin
    rate, memory = seen / seconds, peak(device)
    print(f"| {name} | {rate:.3g} | {waited / seconds:.1%} | {rate / limit:.1%} | {memory:.2f} GB |", flush=True)
