"""Build encoders from SMP or timm and check that they have the features that PYLON uses."""

import difflib
import warnings
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from pylon.encoder_weights import is_file_name, take_from_file

STRIDES = (4, 8, 16, 32)
TRIED_SIDE = 256  # side in pixels of the image used to check the strides


class ArgumentError(ValueError):
    """An invalid network argument; the message begins with the argument's name.

    Attributes:
        argument: name of the argument.
        problem: what is wrong with its value, and what to do.
    """

    def __init__(self, argument: str, problem: str):
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem


def build_encoder(name: str, weights: str | None, in_channels: int) -> nn.Module:
    """Build an encoder and check that it has features at strides 4, 8, 16 and 32.

    Args:
        name: SMP's name, or `tu-NAME` for a timm encoder.
        weights: "imagenet", or any weights that SMP lists for it; a file of weights (see
            encoder_weights.py); None for random weights.
        in_channels: number of input channels.

    Returns:
        The encoder; with `taken`, a sentence about what was taken, if the weights are a file.

    Raises:
        UserError: the file of weights is missing, damaged or of another network.
        ArgumentError: encoder_name is unknown or lacks a stride, or encoder_weights are
            unavailable.
    """
    require_known(name)
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        strides_fit = has_four_strides(encoder, in_channels)
    except Exception as error:  # unsuitable encoders raise all kinds of exceptions
        problem = f"{name} cannot be used: {str(error)[:200]}; choose another encoder"
        raise ArgumentError("encoder_name", problem) from error
    if not strides_fit:
        problem = f"{name} has no features at strides 4, 8, 16 and 32; choose another encoder"
        raise ArgumentError("encoder_name", problem)
    if weights is None:
        return encoder
    if is_file_name(weights):
        # Built again, as for weights that a library loads: the decoder's random weights are then
        # the same.
        encoder = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        encoder.taken = take_from_file(encoder, Path(weights))
        return encoder
    return with_weights(name, weights, in_channels)


def require_known(name: str) -> None:
    """Raise an ArgumentError if neither SMP nor timm has the encoder."""
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
    """Build the encoder with pretrained weights, downloaded or from the cache."""
    if name.startswith("tu-") and not timm.models.is_model_pretrained(name[3:]):
        problem = f"{weights}: timm has no weights for {name}; choose none"
        raise ArgumentError("encoder_weights", problem)
    try:
        with warnings.catch_warnings():
            # "imagenet" stands for timm's own weights
            warnings.filterwarnings("ignore", message="For 'tu-'")
            return smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=weights)
    except KeyError as error:  # SMP does not list these weights
        known = ", ".join(smp.encoders.encoders[name]["pretrained_settings"])
        problem = f"{weights} is unknown for {name}; choose {known} or none"
        raise ArgumentError("encoder_weights", problem) from error
    except Exception as error:  # offline, or a damaged file: the libraries raise anything
        problem = (
            f"{weights}: the weights of {name} could not be downloaded, or are damaged; "
            "connect to the internet once (and clear the Hugging Face cache), or choose none "
            "to train from scratch"
        )
        raise ArgumentError("encoder_weights", problem) from error


@torch.no_grad()
def has_four_strides(encoder: nn.Module, in_channels: int) -> bool:
    """Run the encoder to check that its last four features are at strides 4, 8, 16 and 32."""
    if any(parameter.is_meta for parameter in encoder.parameters()):
        return True  # built only for its shapes: it cannot be run
    features = encoder.eval()(torch.zeros(1, in_channels, TRIED_SIDE, TRIED_SIDE))
    encoder.train()
    sides = [feature.shape[-1] for feature in features[-4:]]
    return sides == [TRIED_SIDE // stride for stride in STRIDES]
