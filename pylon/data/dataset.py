"""A table of images and a transform -> torch Dataset and loaders."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pylon.data.cache import ImageCache
from pylon.data.images import read_image
from pylon.system.parallel import loader_generator, require_shared_memory, start_worker

Transform = Callable[..., dict[str, Tensor]]


class RadiographDataset(Dataset):
    """Radiographs with their labels.

    Items are indexed by `index`, or by `(epoch, index)` if the transform is random: its random
    numbers are then a function of seed, epoch and index, so they depend neither on the number of
    workers nor on earlier draws.

    Args:
        images: a table of images (see radiographs.py), or some of its rows.
        class_names: the label columns.
        transform: a transform from transforms.py or gpu_augment.py.
        seed: seed of the transform's random numbers.
        cache: read the images from here instead of their files; must contain all of the table.

    Items are dicts: what the transform returns, image (1, S, S) uint8 at least, to be passed to
    `normalize` of transforms.py; label (C,) float32, NaN if unknown; index, the row; height_width
    (2,) of the file, pixels.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        class_names: Sequence[str],
        transform: Transform,
        seed: int = 0,
        cache: ImageCache | None = None,
    ):
        self.paths = images["path"].to_numpy(dtype=str)
        self.labels = torch.tensor(images[list(class_names)].to_numpy(np.float32))  # (N, C)
        self.transform = transform
        self.seed = seed
        self.cache = cache
        self.rows = None if cache is None else cache.rows_of(images["path"])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)

        # the pixels, (H, W) uint8
        if self.cache is None:
            image = read_image(self.paths[index])
            height_width = image.shape
        else:
            image = self.cache.read(self.rows[index])
            height_width = self.cache.height_width[self.rows[index]]

        # Deviation: albumentations' own random state is not used, since 2.0.8 makes it the same in
        # every worker and epoch. All steps share one state: its set_random_seed would start each
        # with the same numbers, so their random choices would be identical.
        if isinstance(key, tuple):
            numbers = random.Random(f"{self.seed} {epoch} {index}")
            generator = np.random.default_rng(numbers.getrandbits(64))
            self.transform.set_random_state(generator, numbers)
        return {
            **self.transform(image=image),  # image (1, S, S) uint8
            "label": self.labels[index],
            "index": torch.tensor(index),
            "height_width": torch.tensor(height_width),
        }


class EpochSampler(Sampler):
    """Yield every index once, as (epoch, index), in an order that depends on seed and epoch.

    Args:
        has_finding: (N,) bool, an image an entry.
        seed: of the order.
        negatives: how many images without a finding to draw in each epoch; None for all.

    Set `epoch` before each epoch. (There is no method `set_epoch`: Accelerate would call it with a
    count of its own, which restarts at 0 when a run is resumed.)
    """

    def __init__(self, has_finding: np.ndarray, seed: int, negatives: int | None = None):
        self.has_finding = has_finding
        self.seed = seed
        self.negatives = negatives
        self.epoch = 0

    def __len__(self) -> int:
        every = len(self.has_finding)
        if self.negatives is None:
            return every
        positives = int(self.has_finding.sum())
        return min(every, positives + self.negatives)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random_numbers = np.random.default_rng([self.seed, self.epoch])
        order = random_numbers.permutation(len(self.has_finding))
        if self.negatives is not None:
            is_negative = ~self.has_finding[order]
            drawn = order[~is_negative | (is_negative.cumsum() <= self.negatives)]
            # Without a second shuffle an epoch would end with positives alone.
            order = random_numbers.permutation(drawn)
        return iter([(self.epoch, int(index)) for index in order])


def train_loader(
    images: pd.DataFrame,
    class_names: Sequence[str],
    transform: Transform,
    batch_size: int,
    num_workers: int,
    seed: int,
    cache: ImageCache | None = None,
    pin_memory: bool = False,
    negatives: int | None = None,
) -> tuple[DataLoader, EpochSampler]:
    """Shuffled, augmented batches. Set the sampler's `epoch` first; `pin_memory` is for a GPU."""
    has_finding = (images[list(class_names)] == 1).any(axis=1).to_numpy()
    sampler = EpochSampler(has_finding, seed, negatives)
    # Deviation: batch norm cannot train on one image; a last batch of one is dropped, a different
    # image in each epoch.
    drop_last = len(sampler) % batch_size == 1
    dataset = RadiographDataset(images, class_names, transform, seed, cache)
    options = {"sampler": sampler, "drop_last": drop_last}
    return make_loader(dataset, batch_size, num_workers, pin_memory, **options), sampler


def eval_loader(
    images: pd.DataFrame,
    class_names: Sequence[str],
    transform: Transform,
    batch_size: int,
    num_workers: int,
    cache: ImageCache | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """All images in the order of the table. `pin_memory` is for a GPU."""
    dataset = RadiographDataset(images, class_names, transform, cache=cache)
    return make_loader(dataset, batch_size, num_workers, pin_memory)


def make_loader(
    dataset: Dataset, batch_size: int, num_workers: int, pin_memory: bool, **options
) -> DataLoader:
    require_shared_memory(num_workers)
    return DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        pin_memory=pin_memory,
        generator=loader_generator(),
        **options,
    )
