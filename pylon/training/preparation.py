"""What train.py needs around its loop: checks before the first step, and a watch on the loss."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pylon.data.cache import ImageCache, unreadable_images
from pylon.data.checks import require_files
from pylon.data.chestxray14 import why_not_official
from pylon.data.dataset import eval_loader
from pylon.data.radiographs import Radiographs, shared_patients, subject
from pylon.data.transforms import eval_transform
from pylon.model import STRIDE, criterion
from pylon.system.errors import UserError
from pylon.system.parallel import on_main_process
from pylon.system.progress import track

MEASURED_IMAGES = 1000  # enough for mean and standard deviation, to about .001


def leave_out_unreadable(
    radiographs: Radiographs,
    cache_folder: Path,
    cache_size: int,
    num_workers: int,
    skip: bool,
    accelerator: Accelerator,
) -> pd.DataFrame:
    """Return the images that can be read.

    Args:
        radiographs: the data; images of the test split are not checked.
        cache_folder: folder of the caches.
        cache_size: size of the cache, whose images are known to be readable; 0 for no cache.
        num_workers: processes that check the images.
        skip: leave out unreadable images, after decoding all that are not in the cache.

    Raises:
        UserError: an image is missing; or an image cannot be read, without `skip`.
    """
    images = radiographs.images
    used = images[images["split"] != "test"]
    require_files(used, radiographs, "train or val")
    faults = on_main_process(
        accelerator,
        lambda: unreadable_images(used, cache_folder, cache_size, num_workers, decode=skip),
    )
    if faults and not skip:
        raise UserError(
            f"{next(iter(faults.values()))} ({len(faults)} of {len(used)} images cannot be read: "
            "python tools/check_data.py lists them all, --skip-unreadable trains without them)"
        )
    for fault in faults.values():
        accelerator.print(f"skipped: {fault}")
    if faults:
        accelerator.print(f"skipped {len(faults)} of {len(used)} images, which cannot be read")
    return images[~images["image_id"].isin(faults)]


def check_split(images: pd.DataFrame, radiographs: Radiographs, say: Callable[[str], None]) -> None:
    """Print how many images there are, how many patients are in two splits, and notes on classes.

    Args:
        images: those of `radiographs` that are used.
        radiographs: the data.
        say: prints a sentence.

    Raises:
        UserError: there are too few images to train on, or none to validate on; or a class has no
            known label in training, or the validation split has none at all.
    """
    data = radiographs.name
    count = images["split"].value_counts()
    train = count.get("train", 0)
    val = count.get("val", 0)
    if train < 2 or val == 0:
        raise UserError(
            f"{data} has {train} training and {val} validation images; at least 2 and 1 are "
            "needed, so put some into these splits"
        )
    say(f"{data}: {train} images to train on, {val} to validate on")
    for split in ("val", "test"):
        shared, patients = shared_patients(images, split)
        if shared:
            say(
                f"note: {shared} of the {patients} patients of the {split} split are also in the "
                "training split"
            )

    for note in radiographs.notes:
        say(f"note: {note}")
    describe_classes(images, radiographs, say)


def facts_about(images: pd.DataFrame, radiographs: Radiographs) -> dict[str, Any]:
    """Facts about the training data for the card: no names, no paths.

    Args:
        images: those of `radiographs` that are used.
        radiographs: the data.
    """
    used = images[images["split"] != "test"].groupby("split")
    return {
        "official": radiographs.synthetic is None and why_not_official(radiographs) is None,
        "synthetic": radiographs.synthetic,
        "images": {split: int(count) for split, count in used.size().items()},
        "patients": {split: int(n) for split, n in used["patient_id"].nunique().items()},
    }


def describe_classes(
    images: pd.DataFrame, radiographs: Radiographs, say: Callable[[str], None]
) -> None:
    """Print which classes have no positive image to train on (see `check_split`)."""
    names = list(radiographs.class_names)
    train = images.loc[images["split"] == "train", names]
    unlabelled = [name for name in names if train[name].isna().all()]
    if unlabelled:
        raise UserError(
            f"{radiographs.name}: {subject(unlabelled)} unknown in all training images; label some "
            "or leave the class out"
        )
    if images.loc[images["split"] == "val", names].isna().all(axis=None):
        raise UserError(
            f"{radiographs.name} has no known label in the validation split; label some images"
        )
    absent = [name for name in names if not (train[name] == 1).any()]
    if absent:
        say(f"note: {', '.join(absent)}: no positive training image, so it cannot be learned")


def measure_intensities(
    images: pd.DataFrame,
    class_names: tuple[str, ...],
    image_size: int,
    cache: ImageCache | None,
    num_workers: int,
) -> tuple[float, float]:
    """Mean and standard deviation of intensities in [0, 1], as the network gets the images.

    Measured on all pixels of 1,000 images, drawn with a fixed seed, or of all if there are fewer.

    Args:
        images: table of the training images.
        image_size: side of the input, pixels.

    Raises:
        UserError: all pixels are equal.
    """
    chosen = np.random.default_rng(0).permutation(len(images))[:MEASURED_IMAGES]
    loader = eval_loader(
        images.iloc[np.sort(chosen)], class_names, eval_transform(image_size), 8, num_workers, cache
    )
    counts = np.zeros(256)  # pixels of each grey level
    for batch in track(loader, "measuring intensities", "batch"):
        counts += np.bincount(batch["image"].numpy().ravel(), minlength=256)
    if np.count_nonzero(counts) < 2:
        raise UserError("--normalize data: all training images have the same colour; check them")
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=counts)
    std = np.sqrt(np.average((levels - mean) ** 2, weights=counts))
    return float(mean), float(std)


def count_known(labels: Tensor, accelerator: Accelerator) -> Tensor:
    """Number of labels in a batch that are known, over all processes."""
    return accelerator.reduce((~labels.isnan()).sum(), reduction="sum")


def loss_of_known(
    logits: Tensor, labels: Tensor, known: Tensor | None = None, processes: int = 1
) -> Tensor:
    """Compute the loss over the labels that are known.

    The mean of the result over the processes, which is what their averaged gradients follow, is the
    mean over the known labels of all of them.

    Args:
        logits, labels: (B, C) float32; labels are 0, 1 or, if unknown, NaN.
        known: number of known labels over all processes; None if all labels are known: the loss is
            then that of `criterion` as it is.
        processes: how many there are.
    """
    if known is None:
        return criterion(logits, labels)
    # selected, not multiplied by 0, so that any criterion can be used; this waits for a GPU
    is_known = ~labels.isnan()
    here = is_known.sum()
    if here == 0:  # of this process; others have some
        return 0 * logits.sum()
    return criterion(logits[is_known], labels[is_known]) * (here * processes / known)


class LossWatch:
    """Iterate over the batches of an epoch with a progress bar, and check that the loss is finite.

    Pass each loss to `add`, and call `finish` after the last batch. The loop does not wait for a
    GPU: every ten steps the mean loss is copied from it, and checked ten steps later.

    Args:
        batches: of the epoch.
        epoch: its number, for the bar and for the error if the loss is not finite.
        lr: learning rate, for the bar.
        accelerator: of the training processes.
        save: folder of the run, for the error.
    """

    def __init__(
        self, batches: DataLoader, epoch: int, lr: float, accelerator: Accelerator, save: Path
    ):
        self.batches = batches
        self.epoch = epoch
        self.lr = lr
        self.accelerator = accelerator
        self.save = save
        device = accelerator.device
        self.losses = torch.zeros(len(batches), device=device)  # one per step
        self.loss_sum = torch.zeros((), device=device)  # over images
        self.seen = 0  # images in this process
        self.steps = 0
        self.steps_a_check = 1 if device.type == "cpu" else 10
        self.shown = torch.zeros((), pin_memory=device.type == "cuda")
        self.start = time.perf_counter()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        shown = self.accelerator.is_main_process
        self.bar = track(self.batches, f"epoch {self.epoch}", "batch", shown=shown)
        yield from self.bar

    def add(self, loss: Tensor, images: int) -> None:
        """Record the mean loss of a step and its number of images.

        Raises:
            UserError: the mean loss copied at the last check is not finite.
        """
        self.losses[self.steps] = loss.detach()
        self.loss_sum += loss.detach() * images
        self.seen += images
        if self.steps % self.steps_a_check == 0:
            if self.steps:
                self.show()
            self.shown.copy_(self.loss_sum / self.seen, non_blocking=True)
        self.steps += 1

    def show(self) -> None:
        """Check and show the mean loss copied at the last check, which has arrived by now."""
        mean = self.shown.item()
        require_finite(mean, self.losses, self.epoch, self.save)
        images = self.seen * self.accelerator.num_processes
        rate = images / self.seconds()
        figures = {"loss": f"{mean:.4f}", "lr": f"{self.lr:.1e}", "images/s": f"{rate:.0f}"}
        self.bar.set_postfix(figures, refresh=False)

    def finish(self) -> tuple[float, float]:
        """Return the mean loss of the epoch over all processes, and images per second.

        Raises:
            UserError: the mean loss is not finite.
        """
        totals = torch.stack([self.loss_sum, torch.full_like(self.loss_sum, self.seen)])
        totals = self.accelerator.reduce(totals, reduction="sum")
        train_loss = (totals[0] / totals[1]).item()  # waits for the GPU
        trained_on = totals[1].item()
        if trained_on == 0:
            raise UserError(
                f"epoch {self.epoch}: no batch had a known label; label more images. {self.save} "
                "is unchanged"
            )
        require_finite(train_loss, self.losses, self.epoch, self.save)
        return train_loss, trained_on / self.seconds()

    def seconds(self) -> float:
        """Seconds since the epoch began."""
        return time.perf_counter() - self.start


def require_finite(loss: float, losses: Tensor | None, epoch: int, save: Path) -> None:
    """Raise a UserError if a loss is not finite; saved files are kept.

    Args:
        losses: of the epoch's steps, to name the first that is not finite; None for validation.
    """
    if math.isfinite(loss):
        return
    where = f"epoch {epoch}"
    if losses is not None:
        broken = (~losses.isfinite()).nonzero().flatten().tolist()
        where += f", step {broken[0] + 1}" if broken else ""
    raise UserError(
        f"{where}: the loss is not finite; lower --lr, or try --precision fp32. {save} is unchanged"
    )


def require_images_a_process(model: str, image_size: int, batch_size: int, processes: int) -> None:
    """Raise a UserError if batch norm would have a single value per channel in training.

    Args:
        model: "pylon", whose smallest feature is at stride 256, or a baseline, which may pool all.
        image_size: side of the input, pixels.
        batch_size: images per step, over all processes.
        processes: that share them.
    """
    images = batch_size // processes
    values = images * (image_size // STRIDE) ** 2 if model == "pylon" else images
    if values < 2:
        raise UserError(
            "training needs at least 2 images per batch and process: increase --batch-size "
            f"({processes} processes share {batch_size})"
        )


def freeze_unused_parameters(model: nn.Module) -> list[str]:
    """Freeze the parameters that no gradient reaches; return their names.

    Some encoders have layers after the features that are used, such as the head of EfficientNet.
    With several processes, DistributedDataParallel would wait for their gradients.

    Args:
        model: a `Pylon` or a `Baseline`, on the CPU. Its mode and gradients and torch's random
            state are not changed.
    """
    training = model.training
    model.eval()  # in training mode, a layer dropped at random could hide a parameter
    with torch.random.fork_rng(devices=[]):
        model(torch.zeros(1, model.in_channels, STRIDE, STRIDE)).logits.sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad()
    model.train(training)
    return unused
