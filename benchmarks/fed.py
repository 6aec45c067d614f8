"""Training fed by the loader: how long does the network wait for data?"""

import math
import time

import torch
from torch.utils.data import DataLoader

import plain
from measure import (
    Step,
    flops_an_image,
    matrix_rate,
    our_trainer,
    paths_and_labels,
    plain_trainer,
    repeat,
    wait_for,
)
from pylon.data.cache import ImageCache
from pylon.data.dataset import train_loader
from pylon.data.gpu_augment import augment_on_device
from pylon.data.radiographs import Radiographs
from pylon.data.transforms import train_transform

WARM = 2  # batches before the clock starts; on a CPU the workers keep ahead in any case


def measure_fed_training(
    encoder_name: str,
    radiographs: Radiographs,
    caches: dict[int, ImageCache],
    num_workers: int,
    device: torch.device,
    batch_size: int,
    precisions: tuple[str, ...],
) -> None:
    """Print one table row for the plain pipeline and one for each cache.

    Columns: images/s, share of the time spent waiting for data, and images/s as a share of what
    the rate of a matrix product would allow.
    """
    precision = precisions[-1]
    head = f"images/s | waiting for data | of the {precision} matrix product"
    print(f"\n| training fed by the loader | {head} |\n|---|---|---|---|")
    limit = matrix_rate(device, precision) / flops_an_image(encoder_name, device)  # images/s

    table = repeat(radiographs.images, batch_size * WARM * 4)
    class_names = radiographs.class_names

    def show(name: str, loader: DataLoader, step: Step) -> None:
        rate, waited = feed(loader, step, device, WARM)
        print(f"| {name} | {rate:.3g} | {waited:.1%} | {rate / limit:.1%} |", flush=True)

    # the plain pipeline
    paths, labels = paths_and_labels(table, class_names)
    plain_step = plain_trainer(encoder_name, device)
    transform = plain.train_transform()
    loader = plain.loader(paths, labels, transform, batch_size, num_workers, True)
    show(f"plain, fp32, batch {batch_size}", loader, plain_step)

    # ours
    for size, cache in caches.items():
        accelerator, step = our_trainer(encoder_name, device, precision)
        transform = train_transform(256)
        loader, sampler = train_loader(
            table, class_names, transform, batch_size, num_workers, seed=0, cache=cache
        )
        sampler.epoch = 1
        loader = accelerator.prepare(loader)
        show(f"{size} cache, {precision}, batch {batch_size}", loader, step)


def feed(
    loader: DataLoader, step: Step, device: torch.device, warm: int, seconds: float = math.inf
) -> tuple[float, float]:
    """Train on a loader's batches, at most for some seconds after the first `warm` batches.

    Returns:
        Images/s, and the share of the time spent waiting for batches, both after these.
    """
    begin = math.inf
    waited = 0.0
    seen = 0
    batches = iter(loader)
    for k in range(len(loader)):
        if k == warm:
            wait_for(device)
            begin = time.perf_counter()
        start = time.perf_counter()
        if start - begin > seconds:
            break
        batch = next(batches)
        got = time.perf_counter()
        if not isinstance(batch, dict):
            image, label = batch
        else:
            on_device = "augmentation" in batch
            image = augment_on_device(batch, 256) if on_device else batch["image"]
            label = batch["label"]
        step(image, label)
        if k >= warm:
            waited += got - start
            seen += len(label)
    wait_for(device)
    total = time.perf_counter() - begin
    return seen / total, waited / total
