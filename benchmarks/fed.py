"""Training fed by the loader: how long does the network wait for data?"""

import time

import torch
from torch.utils.data import DataLoader

import plain
from measure import (
    Step,
    allow_tf32,
    flops_an_image,
    matrix_rate,
    our_trainer,
    paths_and_labels,
    plain_trainer,
    repeat,
    wait_for,
)
from pylon.data.cache import ImageCache
from pylon.data.contract import Radiographs
from pylon.data.dataset import train_loader
from pylon.data.transforms import train_transform


def measure_fed_training(
    encoder_name: str,
    radiographs: Radiographs,
    caches: dict[int, ImageCache],
    num_workers: int,
    device: torch.device,
    batch_sizes: tuple[int, ...],
    precisions: tuple[str, ...],
) -> None:
    """Print one table row for the plain pipeline and one for each cache.

    Columns: images/s, share of the time spent waiting for data, and images/s as a share of what
    the rate of a matrix product would allow.
    """
    precision = "fp16" if "fp16" in precisions else precisions[-1]
    head = f"images/s | waiting for data | of the {precision} matrix product"
    print(f"\n| training fed by the loader | {head} |\n|---|---|---|---|")
    limit = matrix_rate(device, precision) / flops_an_image(encoder_name, device)  # images/s

    # Each worker prefetches up to four batches, which are used up before the clock starts; on a CPU
    # the workers keep ahead in any case.
    warm = 2 if device.type == "cpu" else 4 * max(1, num_workers)
    class_names = radiographs.class_names
    for batch_size in batch_sizes:
        # the plain pipeline
        table = repeat(radiographs.images, batch_size * warm * 4)
        paths, labels = paths_and_labels(table, class_names)
        plain_step = plain_trainer(encoder_name, device)
        allow_tf32(False)
        transform = plain.train_transform()
        loader = plain.loader(paths, labels, transform, batch_size, num_workers, True)
        feed(f"plain, fp32, batch {batch_size}", loader, plain_step, device, limit, warm)

        # ours
        for size, cache in caches.items():
            accelerator, step = our_trainer(encoder_name, device, precision)
            loader, sampler = train_loader(
                table,
                class_names,
                train_transform(256),
                batch_size,
                num_workers,
                seed=0,
                cache=cache,
                pin_memory=device.type == "cuda",
            )
            sampler.epoch = 1
            loader = accelerator.prepare(loader)
            name = f"{size} cache, {precision}, batch {batch_size}"
            feed(name, loader, step, device, limit, warm)


def feed(
    name: str, loader: DataLoader, step: Step, device: torch.device, limit: float, warm: int
) -> None:
    """Train on a loader's batches; print one row, measured after the first `warm` batches."""
    begin = 0.0
    waited = 0.0
    seen = 0
    batches = iter(loader)
    for k in range(len(loader)):
        if k == warm:
            wait_for(device)
            begin = time.perf_counter()
        start = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        image, label = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        step(image, label)
        if k >= warm:
            waited += got - start
            seen += len(label)
    wait_for(device)
    seconds = time.perf_counter() - begin
    rate = seen / seconds
    row = f"| {name} | {rate:.3g} | {waited / seconds:.1%} | {rate / limit:.1%} |"
    print(row, flush=True)
