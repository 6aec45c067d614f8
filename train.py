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

from functools import partial

from pylon.options import TrainOptions
from pylon.system.cli import parse, start

if __name__ == "__main__":
    OPTIONS = parse(TrainOptions)  # before the slow imports, which --help does not need

import numpy as np
import torch

from pylon.data.transforms import normalize
from pylon.evaluation.evaluate import predict_logits
from pylon.scoring.metrics import auroc, mean_auroc
from pylon.system.parallel import seed_epoch
from pylon.training import recipe
from pylon.training.data import find_intensities, make_loaders, read_data
from pylon.training.initial import make_networks
from pylon.training.preparation import LossWatch, count_known, loss_of_known, require_finite
from pylon.training.runs import Run
from pylon.training.tracking import draw_heatmaps
from pylon.training.train_options import start_device


def main(options: TrainOptions) -> None:
    # options, device, data
    options.name = options.name or options.model
    accelerator = start_device(options)
    data = read_data(options, accelerator)
    names = data.names
    some_unknown = data.have_unknown

    # run: resume an earlier one, or report that it is finished
    run = Run(options, data.card(options), accelerator)
    if run.has_ended():
        epochs = run.epoch
        place = run.finish()
        accelerator.print(
            f"{place} is finished: {epochs} epochs, lowest validation loss {run.best_loss:.4f}"
        )
        return

    # network, loaders
    networks = make_networks(options, data, pretrained=not run.last, accelerator=accelerator)
    net = networks.net
    average = networks.average
    loaders = make_loaders(options, data, accelerator)
    cache = loaders.cache
    mean, std = find_intensities(options, data, cache, run.last, accelerator)
    run.card |= {"mean": mean, "std": std}
    offsets = data.offsets
    if offsets is not None:
        run.card["adjustment"] = offsets.weights_by_column(names)
        train_offsets = torch.from_numpy(offsets.of(data.train)).to(accelerator.device)
        val_offsets = offsets.of(data.val)

    # optimizer, schedule
    adam = recipe.make_optimizer(net, options, accelerator.device)
    schedule = recipe.make_schedule(adam, options, len(loaders.train))
    model, optimizer, train_batches, val_batches = accelerator.prepare(
        net, adam, loaders.train, loaders.val
    )
    if options.compile:
        model.compile()

    # resume
    parts = {
        "model": net,
        "average": average,
        "optimizer": adam,
        "schedule": schedule,
        "scaler": accelerator.scaler,
    }
    run.draw = partial(
        draw_heatmaps, networks.saved, data.val, names, options.seed, options.image_size, cache,
        mean, std, accelerator,
    )  # fmt: skip
    run.resume(parts)

    for epoch in range(run.epoch + 1, options.epochs + 1):
        lr = adam.param_groups[0]["lr"]
        seed_epoch(options.seed, epoch, accelerator.process_index)
        loaders.sampler.epoch = epoch

        # train: forward under autocast, loss in float32, backward, step
        model.train()
        recipe.keep_frozen(networks.frozen)
        watch = LossWatch(train_batches, epoch, lr, accelerator, run.save)
        for batch in watch:
            known = count_known(batch["label"], accelerator) if some_unknown else None
            if known == 0:
                continue  # nothing to learn from, in any process
            output = model(normalize(loaders.pixels(batch), mean, std))
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
            watch.add(loss, len(batch["label"]))
        train_loss, images_per_second = watch.finish()

        # validate, step the schedule
        # (no name for either of them, which would keep the wrapped network: see the end)
        logits, labels = predict_logits(
            model if average is None else networks.saved,
            val_batches,
            accelerator,
            "validating",
            mean,
            std,
        )
        known = torch.tensor(np.isfinite(labels).sum()) if some_unknown else None
        adjusted = logits if offsets is None else logits + val_offsets
        val_loss = loss_of_known(torch.tensor(adjusted), torch.tensor(labels), known).item()
        require_finite(val_loss, None, epoch, run.save)
        areas = auroc(labels, logits)
        weighted, macro = mean_auroc(areas, labels)
        if options.schedule == "plateau":
            schedule.step(val_loss)

        # row of this epoch; save, and stop at the minimum learning rate
        row = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "val_loss": val_loss,
            **dict(zip(names, map(float, areas), strict=True)),
            "weighted": weighted,
            "macro": macro,
            "images_per_second": round(images_per_second, 2),
            "seconds": round(watch.seconds(), 2),
        }
        if offsets is not None:
            row["macro_adjusted"] = mean_auroc(auroc(labels, adjusted), labels)[1]
        run.end_epoch(row, adam.param_groups[0]["lr"], networks.saved, labels, logits, parts)
        if run.has_ended():
            break

    place = run.finish()
    accelerator.print(
        f"finished: {place / 'best'} has the lowest validation loss, {run.best_loss:.4f}"
    )
    # The wrapped network must not be the last to release the process group: torch would sometimes
    # deadlock (pytorch#56297).
    del model
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    start(main, OPTIONS, after_stop="the same command resumes after the last finished epoch")
