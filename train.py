"""Train PYLON on image-level labels.

    python train.py                                   # the paper's experiment, NIH's files in data/
    python train.py --data data/phantom --name demo   # on the phantom
    python train.py --table my.csv --name mine        # on your own images

Reads  DATA/images, Data_Entry_2017*.csv, train_val_list.txt, test_list.txt (or
       original_split_*.csv); or TABLE and its images.
Writes csv/NAME/SEED.csv, one row per epoch, and SEED.png, its curves; save/NAME/SEED/best, the
       network with the lowest validation loss; save/NAME/SEED/last, from which the same command
       resumes after an interruption.
"""

import math
from functools import partial

from pylon.options import TrainOptions
from pylon.system.cli import parse, start

if __name__ == "__main__":
    OPTIONS = parse(TrainOptions)  # before the slow imports, which --help does not need

import numpy as np
import pandas as pd
import torch
from torch import nn

from pylon.checkpoints.checkpoint import save_best, save_last
from pylon.checkpoints.training_json import has_ended, make_card, mark_finished
from pylon.data.cache import open_cache
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.columns import not_classes, read_columns
from pylon.data.dataset import eval_loader, train_loader
from pylon.data.gpu_augment import DrawnTransform, augment_on_device
from pylon.data.radiographs import have_unknown, split_hash
from pylon.data.sources import read_radiographs
from pylon.data.transforms import eval_transform, normalize, train_transform
from pylon.evaluation.evaluate import predict_logits
from pylon.options import as_json, cache_folder
from pylon.scoring.calibration import platt_scaling
from pylon.scoring.charts import training_chart
from pylon.scoring.metrics import auroc, mean_auroc, youden_thresholds
from pylon.system.device import make_accelerator
from pylon.system.files import write_atomically, write_csv
from pylon.system.parallel import main_process_first, on_main_process, same_on_all, seed_epoch
from pylon.training import recipe
from pylon.training.initial import build
from pylon.training.preparation import (
    LossWatch,
    count_known,
    describe_split,
    facts_about,
    freeze_unused_parameters,
    leave_out_unreadable,
    loss_of_known,
    measure_intensities,
    require_finite,
)
from pylon.training.runs import close_run, find_last, open_run
from pylon.training.tracking import Tracker, draw_heatmaps
from pylon.training.train_options import check, check_on_device


def main(options: TrainOptions) -> None:
    # options, device
    options.name = options.name or options.model
    check(options)
    accelerator = make_accelerator(
        options.device,
        options.precision,
        options.batch_size,
        training=True,
        deterministic=options.deterministic,
        log_with=options.track,
    )
    check_on_device(options, accelerator)
    say = accelerator.print

    # tables, split
    ignored = not_classes(options, options, options.adjust_for)
    read = partial(read_radiographs, options, options.classes, ignored)
    radiographs = same_on_all(accelerator, read, "data", key=lambda data: data.list_sha256)
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
    val = images[images["split"] == "val"]
    used = pd.concat([train, val])
    some_unknown = have_unknown(used, names)
    describe_split(images, radiographs, say)

    # offsets of the logits in training, for what columns say already
    offsets = None
    if options.adjust_for:
        columns = read_columns(options, radiographs, options.adjust_for, "--adjust-for")
        offsets = recipe.Offsets(columns, train, names)

    # earlier run: resume it, or report that it is finished
    save, csv = open_run(options.name, options.seed, options.overwrite, accelerator)
    card = make_card(
        names,
        as_json(options),
        split_hash(images, names),
        radiographs.list_sha256,
        MEAN,
        STD,
        facts_about(images, radiographs),
    )
    last = find_last(save, card, as_json(TrainOptions()), options.overwrite, accelerator)
    tracker = Tracker(save, card["options"], names, last is not None, accelerator)
    if last:
        if accelerator.is_main_process:  # a killed run may not have written it
            write_csv(csv, pd.DataFrame(last["rows"]), index=False)
        if has_ended(last, card["options"]):
            tracker.log(last["rows"])
            tracker.close()
            place = close_run(save, csv) if accelerator.is_main_process else save
            best_loss = last["best_loss"]
            say(
                f"{place} is finished: {last['epoch']} epochs, "
                f"lowest validation loss {best_loss:.4f}"
            )
            return

    # network
    torch.manual_seed(options.seed)
    net, sentences = main_process_first(  # only one process downloads
        accelerator, lambda: build(options, radiographs, pretrained=not last)
    )
    for sentence in sentences:
        say(sentence)
    if options.prevalence_bias:
        recipe.start_at_prevalences(net, train, names)
    freeze_unused_parameters(net)
    frozen = recipe.freeze_up_to(net, options.freeze)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if last:
        net.load_state_dict(last["model"])
    net = net.to(accelerator.device, memory_format=torch.channels_last)
    average = recipe.make_average(net, options.average_weights)
    if last and average is not None:
        average.load_state_dict(last["average"])
    saved = net if average is None else average.module  # what is validated and saved

    # loaders
    size = options.image_size
    batch_size = options.batch_size
    workers = options.num_workers
    pin = accelerator.device.type == "cuda"
    cache = open_cache(used, cache_folder(options), options.cache_size, workers, say)
    on_device = options.augment == "device"
    if on_device:
        transform = DrawnTransform(size, options.cache_size, options.rotate)
    else:
        transform = train_transform(size, options.rotate, options.blur)
    train_batches, sampler = train_loader(
        train, names, transform, batch_size, workers, options.seed, cache, pin, options.negatives
    )
    if options.negatives is not None:
        say(f"{len(sampler)} of the training images in each epoch")
    val_batches = eval_loader(val, names, eval_transform(size), batch_size, workers, cache, pin)

    # mean and standard deviation of intensities
    mean = last.get("mean", MEAN) if last else MEAN
    std = last.get("std", STD) if last else STD
    if options.normalize == "data" and not last:
        mean, std = on_main_process(
            accelerator, lambda: measure_intensities(train, names, size, cache, workers)
        )
        say(f"intensities of the training images: mean {mean:.4f}, standard deviation {std:.4f}")
    card |= {"mean": mean, "std": std}
    if offsets is not None:
        card["adjustment"] = offsets.weights_by_column(names)
        train_offsets = torch.from_numpy(offsets.of(train)).to(accelerator.device)
        val_offsets = offsets.of(val)

    # optimizer, schedule
    adam = recipe.make_optimizer(net, options, accelerator.device)
    schedule = recipe.make_schedule(adam, options, len(train_batches))
    model, optimizer, train_batches, val_batches = accelerator.prepare(
        net, adam, train_batches, val_batches
    )
    if options.compile:
        model.compile()

    # training state
    rows = []
    best_loss = math.inf
    first = 1
    if last:
        adam.load_state_dict(last["optimizer"])
        schedule.load_state_dict(last["schedule"])
        if accelerator.scaler is not None and last["scaler"] is not None:
            accelerator.scaler.load_state_dict(last["scaler"])
        rows = last["rows"]
        best_loss = last["best_loss"]
        first = last["epoch"] + 1
        if accelerator.is_main_process and best_loss < math.inf:
            mark_finished(save / "best", False)
        say(f"resuming {save} at epoch {first}")

    # tracker, for what an earlier run was killed before logging
    draw = partial(
        draw_heatmaps, saved, val, names, options.seed, size, cache, mean, std, accelerator
    )
    tracker.log(rows, draw)

    for epoch in range(first, options.epochs + 1):
        lr = adam.param_groups[0]["lr"]
        seed_epoch(options.seed, epoch, accelerator.process_index)
        sampler.epoch = epoch

        # train: forward under autocast, loss in float32, backward, step
        model.train()
        recipe.keep_frozen(frozen)
        watch = LossWatch(train_batches, epoch, lr, accelerator, save)
        for batch in watch:
            known = count_known(batch["label"], accelerator) if some_unknown else None
            if known == 0:
                continue  # nothing to learn from, in any process
            pixels = augment_on_device(batch, size) if on_device else batch["image"]
            output = model(normalize(pixels, mean, std))
            logits = output.logits
            if offsets is not None:
                logits = logits + train_offsets[batch["index"]]
            loss = loss_of_known(logits, batch["label"], known, accelerator.num_processes)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if options.schedule == "cosine":
                schedule.step()
            if average is not None:
                average.update_parameters(net)
            watch.see(loss, len(batch["label"]))
        train_loss, images_per_second = watch.finish()

        # validate, step the schedule
        # (no name for either of them, which would keep the wrapped network: see the end)
        logits, labels = predict_logits(
            model if average is None else saved, val_batches, accelerator, "validating", mean, std
        )
        known = torch.tensor(np.isfinite(labels).sum()) if some_unknown else None
        adjusted = logits if offsets is None else logits + val_offsets
        val_loss = loss_of_known(torch.tensor(adjusted), torch.tensor(labels), known).item()
        require_finite(val_loss, None, epoch, save)
        areas = auroc(labels, logits)
        weighted, macro = mean_auroc(areas, labels)
        if options.schedule == "plateau":
            schedule.step(val_loss)

        # row of this epoch
        rows.append({
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "val_loss": val_loss,
            **dict(zip(names, map(float, areas), strict=True)),
            "weighted": weighted,
            "macro": macro,
            "images_per_second": round(images_per_second, 2),
            "seconds": round(watch.seconds(), 2),
        })  # fmt: skip
        if offsets is not None:
            rows[-1]["macro_adjusted"] = mean_auroc(auroc(labels, adjusted), labels)[1]
        improved = val_loss < best_loss
        best_loss = min(val_loss, best_loss)
        lr = adam.param_groups[0]["lr"]

        # save: the best network, the rows, then the state to resume from
        if accelerator.is_main_process:
            if improved:
                thresholds = youden_thresholds(labels, logits, list(names))
                scaling = platt_scaling(labels, logits, list(names))
                card |= {"epoch": epoch, "val_loss": val_loss, "thresholds": thresholds}
                card["calibration"] = scaling
                save_best(save / "best", saved, card)
            table = pd.DataFrame(rows)
            write_csv(csv, table, index=False)
            write_atomically(csv.with_suffix(".png"), training_chart(table))
            scaler = accelerator.scaler
            save_last(save / "last", {
                "epoch": epoch,
                "lr": lr,
                "best_loss": best_loss,
                "rows": rows,
                "model": net.state_dict(),
                "average": None if average is None else average.state_dict(),
                "optimizer": adam.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "options": card["options"],
                "split_sha256": card["split_sha256"],
                "mean": mean,
                "std": std,
            })  # fmt: skip
        say(
            f"epoch {epoch:2d}  train loss {train_loss:.4f}  "
            f"validation loss {val_loss:.4f}{'*' if improved else ' '}"
            f"  AUROC {'-' if np.isnan(macro) else format(macro, '.3f')}"
            f"  {images_per_second:.1f} images/s"
        )
        tracker.log(rows, draw)
        if has_ended({"epoch": epoch, "lr": lr}, card["options"]):
            break
    tracker.close()

    # mark the run as finished, in its final folder
    place = close_run(save, csv) if accelerator.is_main_process else save
    say(f"finished: {place / 'best'} has the lowest validation loss, {best_loss:.4f}")
    # The wrapped network must not be the last to release the process group: torch would sometimes
    # deadlock (pytorch#56297).
    del model
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    start(main, OPTIONS, after_stop="the same command resumes after the last finished epoch")
