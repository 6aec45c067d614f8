"""Fit thresholds and calibration of a finished network to patients of your own.

    python calibrate.py --table my.csv --checkpoint save/pylon/0/best --out save/mine/0/best
    python calibrate.py --table my.csv --checkpoint save/pylon/0/best --out save/sure/0/best \\
        --operating-point specificity=.9

Reads  the checkpoint, and the images of the split val of DATA or of a --table.
Writes OUT: a checkpoint with the same weights, and thresholds and calibration fitted to these
       images; its training.json says to which, in `fitted_on`.
Prints sensitivity, specificity and positive predictive value of each class on the same images.
"""

from dataclasses import dataclass
from pathlib import Path

from pylon.options import EvaluationOptions
from pylon.system.cli import parse, start


@dataclass
class Options(EvaluationOptions):
    """Fit thresholds and calibration of a finished network to patients of your own."""

    out: Path | None = None
    """Folder of the new checkpoint, such as save/mine/0/best. Needed."""
    operating_point: str = "youden"
    """From which probability on a class is called present: youden, where sensitivity + specificity
    is highest; or as the value says, sensitivity=.9, specificity=.9 or ppv=.5 on these images."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import shutil

import numpy as np
from accelerate import Accelerator

from pylon.checkpoints.checkpoint import find_checkpoint, save_best
from pylon.checkpoints.starter import TRAINED_ON, require_unseen
from pylon.data.checks import require_files
from pylon.data.radiographs import Radiographs, split_hash
from pylon.data.transforms import eval_transform
from pylon.evaluation.evaluate import (
    eval_loader,
    images_at_a_time,
    load_network,
    open_cache,
    predict_logits,
    read_data,
    require_numbers,
)
from pylon.options import cache_folder
from pylon.scoring.calibration import platt_scaling
from pylon.scoring.metrics import validation_scores
from pylon.scoring.operating_points import as_text, parse_point, rates_at, thresholds_at
from pylon.scoring.tables import print_table
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.parallel import on_main_process


def main(options: Options) -> None:
    # the options
    if options.checkpoint is None or options.out is None:
        raise UserError("name the network with --checkpoint, and the new folder with --out")
    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another folder with --out")
    point = parse_point(options.operating_point)
    accelerator = make_accelerator(options.device, options.precision)
    say = accelerator.print

    # the validation images, and the network
    path = on_main_process(accelerator, lambda: find_checkpoint(options.checkpoint, True))
    radiographs = on_main_process(accelerator, lambda: read_images(options, path, accelerator))
    val = radiographs.of_split("val")
    names = list(radiographs.class_names)
    model, card = load_network(options, radiographs, path, accelerator)
    workers = options.num_workers
    cache = open_cache(val, cache_folder(options), options.cache_size, workers, say)
    loader = eval_loader(
        val,
        radiographs.class_names,
        eval_transform(card["image_size"]),
        images_at_a_time(accelerator),
        workers,
        cache,
        accelerator.device.type == "cuda",
    )

    # its logits
    logits, labels = predict_logits(
        model, accelerator.prepare(loader), accelerator, "predicting", card["mean"], card["std"]
    )
    require_numbers(logits, path)
    logits = logits[:, [card["class_names"].index(name) for name in names]]

    # fit
    thresholds, reasons = thresholds_at(labels, logits, names, point)
    lines = platt_scaling(labels, logits, names)
    absent = [name for name in card["class_names"] if name not in names]
    if absent:
        say(f"note: without labels, neither threshold nor calibration: {', '.join(absent)}")
    for name, reason in reasons.items():
        say(f"note: {name} gets no threshold: {reason}")
    for name in (name for name in names if name not in reasons and lines[name] is None):
        say(f"note: {name} gets no calibration: a higher logit does not mean a likelier finding")

    # write the checkpoint
    others = dict.fromkeys(absent)
    unknown = {name: {"auroc": None, "called_healthy": None} for name in absent}
    fitted = {
        "thresholds": {**others, **thresholds},
        "calibration": {**others, **lines},
        "operating_point": options.operating_point,
        "validation": {**unknown, **validation_scores(labels, logits, thresholds)},
        "fitted_on": {
            "images": len(val),
            "patients": int(val["patient_id"].nunique()),
            "positives": {name: int(np.nansum(labels[:, c])) for c, name in enumerate(names)},
            "split_sha256": split_hash(radiographs.images, radiographs.class_names),
        },
    }
    if accelerator.is_main_process:
        save_best(options.out, model, {**card, **fitted})
        if (path / TRAINED_ON).is_file():
            shutil.copy(path / TRAINED_ON, options.out / TRAINED_ON)
        print_table(as_text(rates_at(labels, logits, thresholds)))
    say(f"\nmeasured on the {len(val)} images that it was fitted to; {options.out} is ready")


def read_images(options: Options, path: Path, accelerator: Accelerator) -> Radiographs:
    """Read the data; a UserError if a validation image is missing, or was trained on."""
    radiographs = read_data(options, [path], accelerator.print)
    val = radiographs.of_split("val")
    require_files(val, radiographs, "val")
    require_unseen(path, val, "validation")
    return radiographs


if __name__ == "__main__":
    start(main, OPTIONS)
