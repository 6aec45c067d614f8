"""What train.py trains on: tables of images, and loaders of batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from pylon.checkpoints.training_json import make_card
from pylon.data.cache import ImageCache, open_cache
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.columns import not_classes, read_columns
from pylon.data.dataset import EpochSampler, eval_loader, train_loader
from pylon.data.gpu_augment import DrawnTransform, augment_on_device
from pylon.data.radiographs import Radiographs, have_unknown, split_hash
from pylon.data.sources import read_radiographs
from pylon.data.transforms import eval_transform, train_transform
from pylon.options import TrainOptions, as_json, cache_folder
from pylon.system.parallel import on_main_process
from pylon.training import recipe
from pylon.training.preparation import (
    check_split,
    facts_about,
    leave_out_unreadable,
    measure_intensities,
)


@dataclass(frozen=True)
class Data:
    """The images of a training.

    Attributes:
        images: table of all splits; of the training patients only those of --train-share.
        offsets: of the logits in training, if any (--adjust-for).
    """

    radiographs: Radiographs
    images: pd.DataFrame
    offsets: recipe.Offsets | None

    @property
    def names(self) -> Sequence[str]:
        return self.radiographs.class_names

    @property
    def train(self) -> pd.DataFrame:
        return self.images[self.images["split"] == "train"]

    @property
    def val(self) -> pd.DataFrame:
        return self.images[self.images["split"] == "val"]

    @property
    def have_unknown(self) -> bool:
        """Whether a label that is used is unknown."""
        return have_unknown(pd.concat([self.train, self.val]), self.names)

    def card(self, options: TrainOptions) -> dict[str, Any]:
        """What is known of a network before it is trained."""
        return make_card(
            self.names,
            as_json(options),
            split_hash(self.images, self.names),
            self.radiographs.list_sha256,
            MEAN,
            STD,
            facts_about(self.images, self.radiographs),
        )


def read_data(options: TrainOptions, accelerator: Accelerator) -> Data:
    """Read the tables, check that the images are there, and say what there is.

    Raises:
        UserError: a file is missing or faulty, or there is nothing to learn from.
    """
    ignored = not_classes(options, options, options.adjust_for)
    read = partial(read_radiographs, options, options.classes, ignored)
    radiographs = on_main_process(accelerator, read)
    names = radiographs.class_names
    images = leave_out_unreadable(
        radiographs,
        cache_folder(options),
        options.cache_size,
        options.num_workers,
        options.skip_unreadable,
        accelerator,
    )
    images = recipe.share_of_patients(images, options.train_share)
    train = images[images["split"] == "train"]
    recipe.require_positives(train, names, options.train_share)
    check_split(images, radiographs, accelerator.print)

    # offsets of the logits in training, for what columns say already
    offsets = None
    if options.adjust_for:
        columns = read_columns(options, radiographs, options.adjust_for, "--adjust-for")
        offsets = recipe.Offsets(columns, train, names)
    return Data(radiographs, images, offsets)


@dataclass(frozen=True)
class Loaders:
    """Batches of the training and validation images, and where they come from."""

    train: DataLoader
    sampler: EpochSampler
    val: DataLoader
    cache: ImageCache | None
    augment_on_device: bool
    image_size: int

    def pixels(self, batch: dict[str, Tensor]) -> Tensor:
        """The images of a training batch, (B, 1, S, S) uint8, augmented."""
        return (
            augment_on_device(batch, self.image_size) if self.augment_on_device else batch["image"]
        )


def make_loaders(options: TrainOptions, data: Data, accelerator: Accelerator) -> Loaders:
    """Open the cache, if there is one, and make the loaders."""
    size = options.image_size
    batch_size = options.batch_size
    workers = options.num_workers
    pin = accelerator.device.type == "cuda"
    used = pd.concat([data.train, data.val])
    folder = cache_folder(options)
    cache = open_cache(used, folder, options.cache_size, workers, accelerator.print)
    on_device = options.augment == "device"
    if on_device:
        transform = DrawnTransform(size, options.cache_size, options.rotate)
    else:
        transform = train_transform(size, options.rotate, options.blur)
    train, sampler = train_loader(
        data.train, data.names, transform, batch_size, workers, options.seed, cache, pin,
        options.negatives,
    )  # fmt: skip
    if options.negatives is not None:
        without = " (none of them without a finding)" if options.negatives == 0 else ""
        accelerator.print(f"{len(sampler)} of the training images in each epoch{without}")
    val = eval_loader(data.val, data.names, eval_transform(size), batch_size, workers, cache, pin)
    return Loaders(train, sampler, val, cache, on_device, size)


def find_intensities(
    options: TrainOptions,
    data: Data,
    cache: ImageCache | None,
    last: dict[str, Any] | None,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Mean and standard deviation of intensities: those of an earlier run, NIH's, or measured.

    Args:
        last: what the earlier run left, if this one resumes it.
    """
    if last:
        return last["mean"], last["std"]
    if options.normalize == "nih":
        return MEAN, STD
    workers = options.num_workers
    measure = partial(
        measure_intensities, data.train, data.names, options.image_size, cache, workers
    )
    mean, std = on_main_process(accelerator, measure)
    accelerator.print(
        f"intensities of the training images: mean {mean:.4f}, standard deviation {std:.4f}"
    )
    return mean, std
