"""Train PYLON on image-level labels.

    python train.py                                   # the paper's experiment, NIH's files in data/
    python train.py --data data/phantom --name demo   # on the phantom

Reads  DATA/images, Data_Entry_2017*.csv, train_val_list.txt, test_list.txt (or original_split_*.csv).
Writes csv/NAME/SEED.csv, a row an epoch; save/NAME/SEED/best, the network of the lowest validation loss;
       save/NAME/SEED/last, from which the same command goes on after an interruption.
"""

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pylon.baselines import Baseline, check_model
from pylon.cache import open_cache, unreadable_images
from pylon.checkpoint import has_ended, make_card, mark_finished, save_best, save_last
from pylon.chestxray14 import class_names, list_hashes, read_images, require_files, shared_patients, split_hash
from pylon.cli import UserError, check_name, require_at_least, run
from pylon.dataset import eval_loader, train_loader
from pylon.device import Device, Precision, make_accelerator, on_main_process, seed_epoch
from pylon.metrics import auroc, mean_auroc, youden_thresholds
from pylon.model import STRIDE, Pylon, freeze_unused_parameters
from pylon.predict import predict_logits
from pylon.progress import track
from pylon.results import write_csv
from pylon.runs import close_run, find_last, open_run
from pylon.transforms import eval_transform, normalize, train_transform


@dataclass
class Options:
    """Train PYLON on image-level labels. Defaults are the paper's."""

    data: Path = Path("data")
    """Folder with NIH's files."""
    name: str | None = None
    """Name of the experiment, that of --model if none is given: results go to csv/NAME and save/NAME."""
    seed: int = 0
    """Seed of initial weights, order and augmentation. The split of the data is the same for all seeds."""
    epochs: int = 40
    """Stop after this many epochs at the latest."""
    batch_size: int = 64
    """Images a step, over all processes together."""
    lr: float = 1e-4
    """Learning rate of Adam."""
    min_lr: float = 1e-6
    """Stop as soon as the learning rate is this low."""
    patience: int = 1
    """Epochs without a better validation loss that are borne before the learning rate falls."""
    lr_factor: float = 0.2
    """What the learning rate is then multiplied by."""
    image_size: int = 256
    """Side of the network's input, pixels; a multiple of 256."""
    encoder_name: str = "resnet50"
    """Any encoder of segmentation-models-pytorch, or tu-NAME for one of timm's."""
    encoder_weights: str = "imagenet"
    """imagenet (downloaded once) or none."""
    model: str = "pylon"
    """pylon; backbone, an encoder and a 1x1 convolution (the classic CAM net); or one of segmentation-models-pytorch's:
    unet, unetplusplus, manet, linknet, fpn, pspnet, pan, deeplabv3, deeplabv3plus, upernet, segformer."""
    pool: Literal["max", "avg"] = "max"
    """What makes a logit of a map; avg is for --model backbone alone."""
    up_layers: int = 1
    """Convolutions in an UP module of pylon: 1 (2020 code) or 2 (iScience paper)."""
    up_modules: int = 3
    """UP modules of pylon; with 2, 1, 0 of them, an ablation, its maps are at stride 8, 16, 32."""
    attention: bool = True
    """The attention branch of pylon; --no-attention leaves it out, an ablation."""
    precision: Precision = "auto"
    """auto: fp16 with loss scaling on CUDA, bf16 on a CPU that has it in hardware, else fp32 (on CUDA: TF32)."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, faster steps then. Needs a GPU and a C++ compiler."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read and augment images."""
    cache_size: int = 0
    """Read images from a cache of decoded ones in DATA/cache, no side above this many pixels; 1024 is exact for NIH's
    and takes 118 GB, 512 takes 29 GB. 0: decode the image files each time."""
    skip_unreadable: bool = False
    """Leave out, after naming them, images that cannot be read; for that all are decoded once before the first step.
    Without it, one such image stops the run at once."""
    overwrite: bool = False
    """Start afresh where an earlier run is: in save/NAME/SEED.new, which takes that run's place when it is finished."""
    deterministic: bool = False
    """The same result each time on a GPU, too (torch.use_deterministic_algorithms); slower. A CPU's always is."""


PYLON_ALONE = ("up_layers", "up_modules", "attention")


def main(options: Options) -> None:
    options.name = options.name or options.model
    check(options)
    accelerator = make_accelerator(
        options.device, options.precision, options.batch_size, training=True, deterministic=options.deterministic
    )
    if options.compile and accelerator.device.type == "cpu":
        # In torch 2.12 the gradient of bilinear upsampling crashes, or writes out of bounds: pytorch#160391, #191837.
        raise UserError("--compile needs a GPU: torch cannot compile this network for a CPU; leave --compile out")
    say = accelerator.print

    # tables, split
    images = leave_out_unreadable(read_images(options.data), options, accelerator)
    train, val = (images[images["split"] == split] for split in ("train", "val"))
    if len(train) < 2 or len(val) == 0:
        raise UserError(f"{options.data} has {len(train)} training and {len(val)} validation images; it takes 2 and 1")
    names = class_names(images)
    say(f"{options.data}: {len(train)} images to train on, {len(val)} to validate on")
    for split in ("val", "test"):
        shared, of = shared_patients(images, split)
        if shared:
            say(f"note: {shared} of the {of} patients of the {split} split are also in training")

    # what an earlier run left: resume, or find it finished
    save, csv = open_run(options.name, options.seed, options.overwrite, accelerator)
    card = make_card(
        names, {**asdict(options), "data": str(options.data)}, split_hash(images), list_hashes(options.data)
    )
    last = find_last(save, card, asdict(Options()), options.overwrite, accelerator)
    if last:
        if accelerator.is_main_process:
            write_csv(csv, pd.DataFrame(last["rows"]), index=False)  # a killed process may not have come so far
        if has_ended(last, card["options"]):
            place = close_run(save, csv) if accelerator.is_main_process else save
            say(f"{place} is finished: {last['epoch']} epochs, lowest validation loss {last['best_loss']:.4f}")
            return

    # network
    torch.manual_seed(options.seed)
    weights = None if last or options.encoder_weights.lower() == "none" else options.encoder_weights
    with accelerator.main_process_first():  # one process downloads
        if options.model == "pylon":
            of_pylon = {key: getattr(options, key) for key in PYLON_ALONE}
            net = Pylon(options.encoder_name, weights, classes=len(names), **of_pylon)
        else:
            net = Baseline(options.model, options.encoder_name, weights, classes=len(names), pool=options.pool)
    freeze_unused_parameters(net)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if last:
        net.load_state_dict(last["model"])
    net = net.to(accelerator.device, memory_format=torch.channels_last)

    # loaders, optimizer, schedule
    cache = open_cache(pd.concat([train, val]), options.data, options.cache_size, options.num_workers, say)
    pin = accelerator.device.type == "cuda"
    train_batches, sampler = train_loader(
        train, train_transform(options.image_size), options.batch_size, options.num_workers, options.seed, cache, pin
    )
    val_batches = eval_loader(
        val, eval_transform(options.image_size), options.batch_size, options.num_workers, cache, pin
    )
    adam = torch.optim.Adam(net.parameters(), lr=options.lr, fused=accelerator.device.type != "mps")
    schedule = ReduceLROnPlateau(adam, factor=options.lr_factor, patience=options.patience)
    model, optimizer, train_batches, val_batches = accelerator.prepare(net, adam, train_batches, val_batches)
    if options.compile:
        model.compile()
    rows, best_loss, first = [], math.inf, 1
    if last:
        adam.load_state_dict(last["optimizer"])
        schedule.load_state_dict(last["schedule"])
        if accelerator.scaler is not None and last["scaler"] is not None:
            accelerator.scaler.load_state_dict(last["scaler"])
        rows, best_loss, first = last["rows"], last["best_loss"], last["epoch"] + 1
        if accelerator.is_main_process and best_loss < math.inf:
            mark_finished(save / "best", False)
        say(f"resuming {save} at epoch {first}")
    every = 1 if accelerator.device.type == "cpu" else 10  # steps between two looks at the loss, for which a GPU waits

    for epoch in range(first, options.epochs + 1):
        start, lr = time.perf_counter(), adam.param_groups[0]["lr"]
        seed_epoch(options.seed, epoch, accelerator.process_index)
        sampler.epoch = epoch

        # train: forward under autocast, loss in float32, backward, step
        model.train()
        losses = torch.zeros(len(train_batches), device=accelerator.device)
        loss_sum, seen = torch.zeros((), device=accelerator.device), 0
        shown = torch.zeros((), pin_memory=pin)
        progress = track(train_batches, f"epoch {epoch}", "batch", shown=accelerator.is_main_process)
        for step, batch in enumerate(progress):
            output = model(normalize(batch["image"]))
            loss = F.binary_cross_entropy_with_logits(output.logits, batch["label"])
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses[step] = loss.detach()
            loss_sum += loss.detach() * len(batch["label"])
            seen += len(batch["label"])
            if step % every == 0:
                if step:  # `shown` is the mean loss of one look ago: it has come from the GPU without being waited for
                    require_finite(shown.item(), losses, epoch, save)
                    rate = seen * accelerator.num_processes / (time.perf_counter() - start)
                    figures = {"loss": f"{shown.item():.4f}", "lr": f"{lr:.1e}", "images/s": f"{rate:.0f}"}
                    progress.set_postfix(figures, refresh=False)
                shown.copy_(loss_sum / seen, non_blocking=True)
        totals = accelerator.reduce(torch.stack([loss_sum, torch.full_like(loss_sum, seen)]), reduction="sum")
        train_loss, trained_on = (totals[0] / totals[1]).item(), totals[1].item()  # here the GPU is waited for
        require_finite(train_loss, losses, epoch, save)
        images_per_second = trained_on / (time.perf_counter() - start)

        # validate, step the schedule
        logits, labels = predict_logits(model, val_batches, accelerator, "validating")
        val_loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        require_finite(val_loss, None, epoch, save)
        areas = auroc(labels, logits)
        weighted, macro = mean_auroc(areas, labels)
        schedule.step(val_loss)

        # write: the best network, the row of this epoch, then what resuming needs
        rows.append({
            "epoch": epoch, "lr": lr, "train_loss": train_loss, "val_loss": val_loss,
            **dict(zip(names, map(float, areas), strict=True)), "weighted": weighted, "macro": macro,
            "images_per_second": round(images_per_second, 2), "seconds": round(time.perf_counter() - start, 2),
        })  # fmt: skip
        improved, best_loss, lr = val_loss < best_loss, min(val_loss, best_loss), adam.param_groups[0]["lr"]
        if accelerator.is_main_process:
            if improved:
                card |= {"epoch": epoch, "val_loss": val_loss, "thresholds": youden_thresholds(labels, logits, names)}
                save_best(save / "best", net, card)
            write_csv(csv, pd.DataFrame(rows), index=False)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            save_last(save / "last", {
                "epoch": epoch, "lr": lr, "best_loss": best_loss, "rows": rows, "model": net.state_dict(),
                "optimizer": adam.state_dict(), "schedule": schedule.state_dict(), "scaler": scaler,
                "options": card["options"], "split_sha256": card["split_sha256"],
            })  # fmt: skip
        say(
            f"epoch {epoch:2d}  train loss {train_loss:.4f}  validation loss {val_loss:.4f}{'*' if improved else ' '}"
            f"  AUROC {'-' if np.isnan(macro) else format(macro, '.3f')}  {images_per_second:.1f} images/s"
        )
        if lr <= options.min_lr:
            break
    place = close_run(save, csv) if accelerator.is_main_process else save
    say(f"finished: {place / 'best'} has the lowest validation loss, {best_loss:.4f}")
    # The wrapped network must not be the last to let go of the process group: torch would now and then wait for itself
    # (pytorch#56297).
    del model
    accelerator.free_memory()
    accelerator.end_training()


def check(options: Options) -> None:
    """Raise a UserError that names the first option out of range."""
    require_at_least(options, epochs=1, batch_size=2, patience=0, num_workers=0, seed=0)
    if options.seed >= 2**32:
        raise UserError(f"--seed must be below 2**32, not {options.seed}")
    if not 0 < options.lr < math.inf or not 0 <= options.min_lr < options.lr:
        raise UserError(f"--lr {options.lr} and --min-lr {options.min_lr}: it takes 0 <= min-lr < lr")
    if not 0 < options.lr_factor < 1:
        raise UserError(f"--lr-factor must be between 0 and 1, not {options.lr_factor}")
    if options.image_size < STRIDE or options.image_size % STRIDE:
        raise UserError(f"--image-size must be a multiple of {STRIDE}, not {options.image_size}")
    if options.image_size > 4096:
        raise UserError(f"--image-size must be at most 4096, which no radiograph exceeds, not {options.image_size}")
    if options.cache_size != 0 and options.cache_size < options.image_size:
        raise UserError(f"--cache-size must be 0 or at least --image-size, {options.image_size}")
    if options.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("--compile needs a GPU and a C++ compiler; install g++, or leave --compile out")
    check_model(options.model, options.pool)
    if options.model != "pylon" and any(getattr(options, key) != getattr(Options, key) for key in PYLON_ALONE):
        raise UserError(f"--up-layers, --up-modules and --no-attention are for --model pylon, not {options.model}")
    check_name(options.name)


def leave_out_unreadable(images: pd.DataFrame, options: Options, accelerator: Accelerator) -> pd.DataFrame:
    """The images that can be read; raise a UserError if that is not all and --skip-unreadable was not given."""
    used = images[images["split"] != "test"]
    require_files(used, options.data)
    faults = on_main_process(
        accelerator,
        lambda: unreadable_images(
            used, options.data, options.cache_size, options.num_workers, decode=options.skip_unreadable
        ),
    )
    if faults and not options.skip_unreadable:
        raise UserError(
            f"{next(iter(faults.values()))} ({len(faults)} of {len(used)} images cannot be read: python data/check.py "
            "names them all, --skip-unreadable trains without them)"
        )
    for fault in faults.values():
        accelerator.print(f"skipped: {fault}")
    if faults:
        accelerator.print(f"skipped {len(faults)} of {len(used)} images, which cannot be read")
    return images[~images["image_id"].isin(faults)]


def require_finite(loss: float, losses: Tensor | None, epoch: int, save: Path) -> None:
    """Raise a UserError that names the epoch and, given the losses of its steps, the step; what is saved stays."""
    if not math.isfinite(loss):
        broken = [] if losses is None else (~losses.isfinite()).nonzero().flatten().tolist()
        where = f"epoch {epoch}" + (f", step {broken[0] + 1}" if broken else "")
        raise UserError(f"{where}: the loss is not finite; lower --lr, or try --precision fp32. {save} is as it was")


if __name__ == "__main__":
    run(main, Options, after_stop="the same command goes on from the last finished epoch")
