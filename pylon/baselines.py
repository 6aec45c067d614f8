"""Baselines for PYLON: the classic CAM net, and SMP's segmentation nets, unchanged.

image (B, 1, H, W) -> maps (B, C, h, w) -> pooled: logits (B, C)

`build_network` builds any network, PYLON or a baseline, from a checkpoint's config.
"""

import difflib
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import initialization
from torch import Tensor, nn

from pylon.encoders import ArgumentError, build_encoder
from pylon.hub import Checkpointed, arguments_of
from pylon.model import Pylon, PylonOutput, check_pool, pool_maps


def build_network(config: dict[str, Any]) -> "Pylon | Baseline":
    """Build a network from its arguments.

    Args:
        config: `kind`, "pylon" or "baseline", and the arguments of `Pylon` or `Baseline`; a
            description is ignored. If there is no `kind`, as in checkpoints of earlier versions,
            `model` marks a baseline.

    Raises:
        ValueError: the kind is unknown, or `Pylon` or `Baseline` rejects the arguments.
    """
    networks = {"pylon": Pylon, "baseline": Baseline}
    kind = kind_of(config)
    if kind not in networks:
        raise ArgumentError("kind", f"must be one of {', '.join(networks)}, got {kind}")
    return networks[kind](**arguments_of(config))


def kind_of(config: dict[str, Any]) -> str:
    """Return the kind of network that a config describes: "pylon" or "baseline"."""
    return config.get("kind", "baseline" if "model" in config else "pylon")


class Baseline(
    nn.Module,
    Checkpointed,
    library_name="pylon",
    tags=["chest-x-ray", "weak-localization"],
):
    """A baseline network, trained, scored and drawn like PYLON.

    Args:
        model: "backbone", an encoder and a 1x1 convolution, with class activation maps (CAM, Zhou
            et al. 2016) of shape (B, C, H/32, W/32); or an architecture of
            segmentation-models-pytorch, such as "unet" or "fpn", with its own decoder and head
            and maps of shape (B, C, H, W).
        encoder_name, encoder_weights, in_channels, classes: as for `pylon.model.Pylon`.
        pool: how a map becomes a logit; see `pool_maps` of model.py.

    Raises:
        ValueError: the architecture or the encoder is unknown, the two are incompatible, or
            weights are unavailable. The message begins with the argument's name.
    """

    kind = "baseline"

    def __init__(
        self,
        model: str,
        encoder_name: str = "resnet50",
        encoder_weights: str | None = "imagenet",
        in_channels: int = 1,
        classes: int = 14,
        pool: str = "max",
    ):
        super().__init__()
        check_architecture(model)
        check_pool(pool)
        self.in_channels = in_channels
        self.classes = classes
        self.pool = pool
        encoder = build_encoder(encoder_name, encoder_weights, in_channels)
        self.deepest = nn.Identity()  # hook point for methods such as Grad-CAM

        # the classic CAM net
        if model == "backbone":
            self.encoder = encoder
            self.decoder = None
            self.segmentation_head = nn.Sequential(nn.Conv2d(encoder.out_channels[-1], classes, 1))
            initialization.initialize_head(self.segmentation_head)
            return

        # SMP's nets; dilated or shallower encoders take the same weights
        net = build_segmentation_net(model, encoder_name, in_channels, classes)
        self.encoder = net.encoder
        self.decoder = net.decoder
        self.segmentation_head = net.segmentation_head
        if encoder_weights is not None:
            known = encoder.state_dict()
            self.encoder.load_state_dict({key: known[key] for key in self.encoder.state_dict()})
            self.encoder.taken = getattr(encoder, "taken", None)

    def forward(self, images: Tensor) -> PylonOutput:
        """Compute the maps and logits of a batch.

        Args:
            images: (B, in_channels, H, W) float, normalised; H and W multiples of 32.

        Raises:
            ValueError: a training batch of one image, which batch norm rejects after the global
                pooling of some nets.
        """
        if self.training and len(images) < 2:
            raise ValueError("training needs at least 2 images per batch and process")
        *features, deepest = self.encoder(images)
        deepest = self.deepest(deepest)  # (B, c, H/32, W/32), larger if dilated
        x = deepest if self.decoder is None else self.decoder([*features, deepest])
        maps = self.segmentation_head(x).float()  # (B, C, h, w)
        return PylonOutput(logits=pool_maps(maps, self.pool), maps=maps)


def check_architecture(model: str) -> None:
    """Raise an ArgumentError if the baseline is unknown."""
    known = ["backbone", *smp.MODEL_ARCHITECTURES_MAPPING]
    known.remove("dpt")  # its encoder must be a vision transformer, which has no strides
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3) or known
        raise ArgumentError("model", f"{model} is unknown; did you mean {', '.join(near)}?")


def build_segmentation_net(
    model: str, encoder_name: str, in_channels: int, classes: int
) -> nn.Module:
    try:
        return smp.create_model(model, encoder_name, None, in_channels, classes)
    except Exception as error:  # incompatible encoders raise all kinds of exceptions
        problem = (
            f"{model} cannot be used with the encoder {encoder_name}: {str(error)[:200]}; "
            "choose another"
        )
        raise ArgumentError("model", problem) from error
