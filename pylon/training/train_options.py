"""Checks of train.py's options, before anything is read or written."""

import math
import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from pylon.checkpoints.checkpoint import find_checkpoint
from pylon.encoder_weights import is_file_name
from pylon.encoders import STRIDES, ArgumentError, require_known
from pylon.evaluation.evaluate import LARGEST_INPUT
from pylon.evaluation.runtime import require_installed
from pylon.model import STRIDE
from pylon.options import OF_PYLON, TrainOptions, options_with, require_cache_size
from pylon.system.cli import check_name, require_at_least
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.training.preparation import require_images_a_process

SMALLEST_INPUT = 64  # pixels; the map of 32 would have one pixel


def start_device(options: TrainOptions) -> Accelerator:
    """Check the options, and start the device and the processes of the training.

    Raises:
        UserError: an option is out of range, or does not fit the device.
    """
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
    return accelerator


def check(options: TrainOptions) -> None:
    """Raise a UserError that names the first option out of range."""
    require_at_least(options, epochs=1, batch_size=2, patience=0, num_workers=0, seed=0)
    if options.seed >= 2**32:
        raise UserError(f"--seed must be below 2**32, not {options.seed}")
    if not 0 < options.lr < math.inf or not 0 <= options.min_lr < options.lr:
        raise UserError(
            f"--lr {options.lr} and --min-lr {options.min_lr} must satisfy 0 <= min-lr < lr"
        )
    if not 0 < options.lr_factor < 1:
        raise UserError(f"--lr-factor must be between 0 and 1, not {options.lr_factor}")
    stride = STRIDES[-1] if options.model == "backbone" else STRIDE
    if options.image_size < max(stride, SMALLEST_INPUT) or options.image_size % stride:
        least = f", at least {SMALLEST_INPUT}," if options.model == "backbone" else ""
        raise UserError(
            f"--image-size must be a multiple of {stride}{least} for --model {options.model}, not "
            f"{options.image_size}"
        )
    if options.image_size > LARGEST_INPUT:
        raise UserError(
            f"--image-size must be at most {LARGEST_INPUT} (no radiograph is larger), not "
            f"{options.image_size}"
        )
    check_recipe(options)
    require_cache_size(options, options.cache_size)
    if options.cache_size != 0 and options.cache_size < options.image_size:
        raise UserError(f"--cache-size must be 0 or at least --image-size, {options.image_size}")
    if options.augment == "device" and options.cache_size == 0:
        raise UserError(
            "--augment device needs images of one size from a cache; add --cache-size 1024"
        )
    if options.compile and not has_compiler():
        raise UserError(
            "--compile needs a GPU and a C++ compiler; install g++, or leave --compile out"
        )
    if options.track is not None:
        require_installed(options.track, f"--track {options.track}")
    check_network(options)
    check_name(options.name)


def check_recipe(options: TrainOptions) -> None:
    """Raise a UserError for the first option of pylon/training/recipe.py that is out of range."""
    if not 0 < options.train_share <= 1:
        raise UserError(f"--train-share must be above 0 and at most 1, not {options.train_share:g}")
    if options.negatives is not None and options.negatives < 0:
        raise UserError(f"--negatives must be at least 0, not {options.negatives}")
    if not 0 <= options.rotate <= 180:
        raise UserError(f"--rotate must be between 0 and 180 degrees, not {options.rotate:g}")
    if not 0 <= options.blur <= 1:
        raise UserError(f"--blur must be between 0 and 1, not {options.blur:g}")
    if options.blur > 0 and options.augment == "device":
        raise UserError("--blur is done by the workers; leave --augment device out")
    if not 0 < options.encoder_lr < math.inf:
        raise UserError(
            f"--encoder-lr must be a number above 0, not {options.encoder_lr:g}; see --freeze"
        )
    if not 0 <= options.average_weights < 1:
        raise UserError(
            f"--average-weights must be at least 0 and below 1, not {options.average_weights:g}"
        )


def check_network(options: TrainOptions) -> None:
    """Raise a UserError if the options of the network exclude each other or are unknown."""
    of_pylon = options_with(OF_PYLON)
    changed = [key for key in of_pylon if getattr(options, key) != getattr(TrainOptions, key)]
    if options.model != "pylon" and changed:
        raise UserError(
            "--up-layers, --up-modules and --no-attention are only for --model pylon, "
            f"not {options.model}"
        )
    try:
        require_known(options.encoder_name)
    except ArgumentError as error:
        raise UserError(f"--encoder-name {error.problem}") from error

    # where the first weights come from; a run that is resumed does not need them any more
    run = f"{options.seed}.new" if options.overwrite else str(options.seed)
    if not Path("save", options.name, run, "last").exists():
        check_first_weights(options)


def check_first_weights(options: TrainOptions) -> None:
    """Raise a UserError if the options on initial weights cannot be followed."""
    weights = options.encoder_weights
    is_listed = weights.lower() in ("none", "imagenet")
    if is_file_name(weights) and not Path(weights).is_file():
        raise UserError(f"--encoder-weights {weights}: there is no such file; check its name")
    if options.encoder_name.startswith("tu-") and not is_listed and not is_file_name(weights):
        raise UserError(
            f"--encoder-weights {weights!r} must be imagenet, none or a file for a timm encoder"
        )
    if options.init_from is None:
        return
    if not is_listed:
        raise UserError(
            f"--init-from takes the place of --encoder-weights {weights}; leave one of them out"
        )
    find_checkpoint(options.init_from, must_exist=True)


def has_compiler() -> bool:
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))


def check_on_device(options: TrainOptions, accelerator: Accelerator) -> None:
    """Raise a UserError if the options do not fit the device or the number of processes."""
    if options.compile and accelerator.device.type == "cpu":
        # In torch 2.12 the gradient of bilinear upsampling crashes, or writes out of bounds:
        # pytorch#160391, #191837.
        raise UserError(
            "--compile needs a GPU: torch cannot compile this network for a CPU; "
            "leave --compile out"
        )
    processes = accelerator.num_processes
    require_images_a_process(options.model, options.image_size, options.batch_size, processes)
