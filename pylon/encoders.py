"""Encoders: found among SMP's and timm's, and checked to have the features that PYLON uses."""

import difflib
import warnings

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

STRIDES = (4, 8, 16, 32)
TRIED_SIDE = 256  # pixels of the image on which the strides are tried


class ArgumentError(ValueError):
    """An argument of a network that cannot be used; the text begins with its name.

    Attributes:
        argument: name of the argument.
        problem: what is wrong with its value, and what to do.
    """

    def __init__(self, argument: str, problem: str):
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem


def build_encoder(name: str, weights: str | None, in_channels: int) -> nn.Module:
    """One of SMP's encoders, checked to have features at strides 4, 8, 16 and 32.

    Args:
        name: as SMP calls it, or `tu-NAME` for one of timm's.
        weights: "imagenet", or whatever SMP lists for it; None for random ones.
        in_channels: channels of the input.

    Raises:
        ArgumentError: of encoder_name, which is unknown or lacks a stride, or of encoder_weights,
            which cannot be had.
    """
    require_known(name)
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        strides_fit = has_four_strides(encoder, in_channels)
    except Exception as error:  # encoders that do not fit fail in as many ways as there are of them
        problem = f"{name} cannot be used: {str(error)[:200]}; choose another encoder"
        raise ArgumentError("encoder_name", problem) from error
    if not strides_fit:
        problem = f"{name} has no features at strides 4, 8, 16 and 32; choose another encoder"
        raise ArgumentError("encoder_name", problem)
    if weights is None:
        return encoder
    return with_weights(name, weights, in_channels)


def require_known(name: str) -> None:
    """Raise an ArgumentError if neither SMP nor timm has such an encoder."""
    if name.startswith("tu-"):
        known = timm.list_models()
        wanted = name[3:].split(".")[0]
        near = [f"tu-{match}" for match in difflib.get_close_matches(wanted, known, n=3)]
    else:
        known = smp.encoders.get_encoder_names()
        wanted = name
        near = difflib.get_close_matches(wanted, known, n=3)
    if wanted in known:
        return
    hint = "see segmentation-models-pytorch's list of encoders"
    if near:
        hint = f"did you mean {', '.join(near)}?"
    raise ArgumentError("encoder_name", f"{name} is unknown; {hint}")


def with_weights(name: str, weights: str, in_channels: int) -> nn.Module:
    """The encoder with weights that are downloaded, or found in the cache of earlier downloads."""
    if name.startswith("tu-") and not timm.models.is_model_pretrained(name[3:]):
        problem = f"{weights}: timm has no weights of {name}; choose none"
        raise ArgumentError("encoder_weights", problem)
    try:
        with warnings.catch_warnings():
            # "imagenet" stands for timm's own weights
            warnings.filterwarnings("ignore", message="For 'tu-'")
            return smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=weights)
    except KeyError as error:  # SMP's word for weights that it does not list
        raise ArgumentError("encoder_weights", f"{weights}: {error.args[0]}") from error
    except Exception as error:  # no network, or a damaged file: whatever the libraries raise
        problem = (
            f"{weights}: the weights of {name} could not be downloaded, or are damaged; "
            "connect to the network once (and empty Hugging Face's cache), or choose none, "
            "to train from scratch"
        )
        raise ArgumentError("encoder_weights", problem) from error


@torch.no_grad()
def has_four_strides(encoder: nn.Module, in_channels: int) -> bool:
    """Whether the last four features lie at strides 4, 8, 16 and 32, seen by trying."""
    if any(parameter.is_meta for parameter in encoder.parameters()):
        return True  # built for its shapes alone: there is nothing to try
    features = encoder.eval()(torch.zeros(1, in_channels, TRIED_SIDE, TRIED_SIDE))
    encoder.train()
    sides = [feature.shape[-1] for feature in features[-4:]]
    return sides == [TRIED_SIDE // stride for stride in STRIDES]
