"""The `images` table and a transform -> torch Dataset and loaders."""

from collections.abc import Iterator

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pylon.chestxray14 import class_names
from pylon.cli import UserError


def read_image(path: str) -> np.ndarray:
    """Read any PNG or JPEG as grey, (H, W) uint8.

    Raises:
        UserError: it is missing, truncated or no image.
    """
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UserError(f"{path} cannot be read as an image; copy it again from NIH's archive")
    return image


class RadiographDataset(Dataset):
    """Radiographs with their labels.

    An item is asked for as `index`, or as `(epoch, index)` where the transform is random: its random numbers are
    a function of seed, epoch and index, so they do not depend on the number of workers nor on what was drawn before.

    Args:
        images: the table of `pylon.chestxray14.read_images`, or some of its rows.
        transform: one of `pylon.transforms`.
        seed: seed of the transform's random numbers.

    Items are dicts: image (1, S, S) float32; label (C,) float32; index, the row; height_width (2,) of the file, pixels.
    """

    def __init__(self, images: pd.DataFrame, transform: A.Compose, seed: int = 0):
        self.paths = images["path"].to_numpy(dtype=str)
        self.labels = images[class_names(images)].to_numpy(np.float32)
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = read_image(self.paths[index])
        # Deviation: not from the state of albumentations, which 2.0.8 makes the same in every worker and epoch.
        self.transform.set_random_seed(int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]))
        return {
            "image": self.transform(image=image)["image"],
            "label": torch.tensor(self.labels[index]),
            "index": torch.tensor(index),
            "height_width": torch.tensor(image.shape),
        }


class EpochSampler(Sampler):
    """Every index once, in an order that seed and epoch fix; yields (epoch, index), so workers learn the epoch.

    Set `epoch` before each one. (It is no method `set_epoch`: Accelerate would call that with a count of its own, which
    starts at 0 again when a run is resumed.)
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order])


def train_loader(
    images: pd.DataFrame, transform: A.Compose, batch_size: int, num_workers: int, seed: int
) -> tuple[DataLoader, EpochSampler]:
    """Shuffled, augmented batches. Set the sampler's `epoch` before each one."""
    sampler = EpochSampler(len(images), seed)
    # Deviation: batch norm cannot train on one image; where one would be left over, each epoch leaves another one out.
    drop_last = len(images) % batch_size == 1
    dataset = RadiographDataset(images, transform, seed)
    return make_loader(dataset, batch_size, num_workers, sampler=sampler, drop_last=drop_last), sampler


def eval_loader(images: pd.DataFrame, transform: A.Compose, batch_size: int, num_workers: int) -> DataLoader:
    """All images in the order of the table."""
    return make_loader(RadiographDataset(images, transform), batch_size, num_workers)


def make_loader(dataset: Dataset, batch_size: int, num_workers: int, **options) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
