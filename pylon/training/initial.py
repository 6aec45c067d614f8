"""Build the network to train, with its first weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pylon.baselines import Baseline, build_network
from pylon.checkpoints.checkpoint import find_checkpoint, load_pylon, read_card
from pylon.checkpoints.training_json import require_own_split
from pylon.data.radiographs import Radiographs
from pylon.encoders import ArgumentError
from pylon.hub import config_of
from pylon.model import Pylon
from pylon.options import OF_PYLON, TrainOptions, options_with
from pylon.system.cli import flag
from pylon.system.errors import UserError
from pylon.system.parallel import on_main_process
from pylon.training import recipe
from pylon.training.data import Data
from pylon.training.preparation import freeze_unused_parameters

HEAD = "segmentation_head.0."


class Networks(NamedTuple):
    """The network of a training on its device, and what belongs to it."""

    net: Pylon | Baseline
    average: AveragedModel | None  # of its weights, if there is one
    frozen: list[nn.Module]  # batch norms that must stay in evaluation mode

    @property
    def saved(self) -> Pylon | Baseline:
        """The network that is validated and saved."""
        return self.net if self.average is None else self.average.module


def make_networks(
    options: TrainOptions, data: Data, pretrained: bool, accelerator: Accelerator
) -> Networks:
    """Make the network as the options say, and put it on the device.

    Args:
        pretrained: whether its first weights matter; a run that is resumed has others.
    """
    torch.manual_seed(options.seed)
    net, sentences = on_main_process(  # only one process downloads
        accelerator, lambda: build(options, data.radiographs, pretrained)
    )
    for sentence in sentences:
        accelerator.print(sentence)
    if options.prevalence_bias:
        recipe.start_at_prevalences(net, data.train, data.names)
    freeze_unused_parameters(net)
    frozen = recipe.freeze_up_to(net, options.freeze)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net = net.to(accelerator.device, memory_format=torch.channels_last)
    return Networks(net, recipe.make_average(net, options.average_weights), frozen)


def build(
    options: TrainOptions, radiographs: Radiographs, pretrained: bool
) -> tuple[Pylon | Baseline, list[str]]:
    """Build the network from the options, and say which weights were taken from files.

    Args:
        options: of train.py.
        radiographs: the data, which name the classes.
        pretrained: whether to take weights from files, as the options say.

    Raises:
        UserError: that is not possible.
    """
    config = {
        "encoder_name": options.encoder_name,
        "encoder_weights": options.encoder_weights if pretrained else None,
        "classes": len(radiographs.class_names),
        "pool": options.pool,
    }
    if options.encoder_weights.lower() == "none" or options.init_from is not None:
        config["encoder_weights"] = None
    if options.model == "pylon":
        of_pylon = {key: getattr(options, key) for key in options_with(OF_PYLON)}
        config |= {"kind": "pylon", **of_pylon}
    else:
        config |= {"kind": "baseline", "model": options.model}
    try:
        net = build_network(config)
    except ArgumentError as error:
        raise UserError(f"{flag(error.argument)} {error.problem}") from error
    if options.init_from is not None and pretrained:
        names = radiographs.class_names
        return net, take_from_checkpoint(net, names, options.init_from, radiographs.drawn_from)
    taken = getattr(net.encoder, "taken", None)  # from a file of --encoder-weights
    return net, [taken] if taken else []


def take_from_checkpoint(
    net: Pylon | Baseline, class_names: Sequence[str], path: Path, drawn_from: str | None = None
) -> list[str]:
    """Load all weights of a checkpoint that fit; return sentences about what was taken.

    Of the head, the rows of classes with the same name are taken; rows of other classes keep their
    random weights.

    Args:
        net: the network to train, on the CPU.
        class_names: of its outputs.
        path: the checkpoint.
        drawn_from: of the data to train on (see radiographs.py).

    Raises:
        UserError: the checkpoint is missing or damaged, or has another encoder; or a random split
            could test images that it was trained on.
    """
    place = find_checkpoint(path)
    other = load_pylon(place)
    card = read_card(place, other)
    require_own_split(path, card, drawn_from)
    names = card["class_names"]
    ours = config_of(net)
    theirs = config_of(other)
    if theirs["encoder_name"] != ours["encoder_name"] or other.in_channels != net.in_channels:
        raise UserError(
            f"--init-from {path} has the encoder {theirs['encoder_name']} with {other.in_channels} "
            f"input channels, not {ours['encoder_name']} with {net.in_channels}; choose "
            f"--encoder-name {theirs['encoder_name']}, or another checkpoint"
        )

    # weights of one name mean the same only in networks of one kind; encoder weights always do
    same_kind = [(each["kind"], each.get("model")) for each in (ours, theirs)]
    part = "" if same_kind[0] == same_kind[1] else "encoder."
    state = net.state_dict()
    given = other.state_dict()
    taken = {
        name: value
        for name, value in given.items()
        if name.startswith(part)
        and not name.startswith(HEAD)
        and name in state
        and state[name].shape == value.shape
    }

    # rows of the head by class
    shared = [name for name in class_names if name in names] if part == "" else []
    rows = [class_names.index(name) for name in shared]
    rows_there = [names.index(name) for name in shared]
    for name in (f"{HEAD}weight", f"{HEAD}bias"):
        if fits(state[name], given[name]) and shared:
            value = state[name].clone()
            value[rows] = given[name][rows_there]
            taken[name] = value
    net.load_state_dict({**state, **taken})

    # what the user should know
    sentences = [f"{len(taken)} of {len(state)} tensors taken from {path}"]
    new = [name for name in class_names if name not in shared or f"{HEAD}weight" not in taken]
    if part != "":
        sentences.append("only its encoder fits: it is another kind of network")
    elif new:
        kept = [name for name in class_names if name not in new]
        head = f"of the head, the rows of {', '.join(kept)} were taken" if kept else "random head"
        sentences.append(f"new classes: {', '.join(new)}; {head}")
    sentences.append(
        f"it was trained with intensities of mean {card['mean']:.4f} and standard deviation "
        f"{card['std']:.4f}"
    )
    return sentences


def fits(row: Tensor, given: Tensor) -> bool:
    """Whether tensors differ at most in their number of rows."""
    return row.shape[1:] == given.shape[1:]
