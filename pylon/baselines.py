"""Networks to compare PYLON with: the classic CAM net, and SMP's segmentation nets as they are.

image (B, 1, H, W) -> maps (B, C, h, w) -> their maximum or mean: logits (B, C)
"""

import difflib

import segmentation_models_pytorch as smp
from huggingface_hub import PyTorchModelHubMixin
from segmentation_models_pytorch.base import initialization
from torch import Tensor, nn

from pylon.cli import UserError
from pylon.model import PylonOutput, build_encoder


class Baseline(nn.Module, PyTorchModelHubMixin, library_name="pylon", tags=["chest-x-ray", "weak-localization"]):
    """A network that is trained, scored and drawn as PYLON is.

    Args:
        model: "backbone", an encoder and a 1x1 convolution, whose maps (B, C, H/32, W/32) are class activation maps
            (CAM, Zhou et al. 2016); or an architecture of segmentation-models-pytorch, such as "unet" or "fpn", with
            its own decoder and head, whose maps are (B, C, H, W).
        encoder_name, encoder_weights, in_channels, classes: as for `pylon.model.Pylon`.
        pool: "max" or "avg", what makes a logit of a map; "avg" is for the backbone alone.

    Raises:
        UserError: the architecture or the encoder is unknown, they do not fit, or weights cannot be had.
    """

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
        check_model(model, pool)
        self.in_channels, self.pool = in_channels, pool
        encoder = build_encoder(encoder_name, encoder_weights, in_channels)
        self.deepest = nn.Identity()  # where methods such as Grad-CAM listen
        if model == "backbone":
            self.encoder, self.decoder = encoder, None
            self.segmentation_head = nn.Sequential(nn.Conv2d(encoder.out_channels[-1], classes, 1))
            initialization.initialize_head(self.segmentation_head)
            return
        net = build_segmentation_net(model, encoder_name, in_channels, classes)
        self.encoder, self.decoder, self.segmentation_head = net.encoder, net.decoder, net.segmentation_head
        if encoder_weights is not None:  # a net that is dilated, or needs less depth, takes the same ones
            known = encoder.state_dict()
            self.encoder.load_state_dict({key: known[key] for key in self.encoder.state_dict()})

    def forward(self, images: Tensor) -> PylonOutput:
        """Maps and logits of a batch.

        Args:
            images: (B, in_channels, H, W) float, normalised; H and W multiples of 32.

        Raises:
            UserError: batch norm would see a single value, as behind some nets' global pooling.
        """
        if self.training and len(images) < 2:
            raise UserError("training needs at least 2 images a batch and process: raise --batch-size")
        *features, deepest = self.encoder(images)
        features = [*features, self.deepest(deepest)]
        maps = self.segmentation_head(features[-1] if self.decoder is None else self.decoder(features)).float()
        return PylonOutput(logits=maps.amax(dim=(2, 3)) if self.pool == "max" else maps.mean(dim=(2, 3)), maps=maps)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs):
        """Rebuild from a folder or the hub: all weights come from the file, so none from ImageNet."""
        return super()._from_pretrained(strict=strict, **{**kwargs, "encoder_weights": None})


def check_model(model: str, pool: str) -> None:
    """Raise a UserError if there is no such network, or if it does not pool so."""
    known = ["pylon", "backbone", *smp.MODEL_ARCHITECTURES_MAPPING]
    known.remove("dpt")  # its encoder must be a vision transformer, which has no strides
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3) or known
        raise UserError(f"--model {model} is unknown; did you mean {', '.join(near)}?")
    if pool != "max" and (model, pool) != ("backbone", "avg"):
        raise UserError(f"--pool {pool} is not for --model {model}: avg is for backbone, max for all")


def build_segmentation_net(model: str, encoder_name: str, in_channels: int, classes: int) -> nn.Module:
    try:
        return smp.create_model(model, encoder_name, None, in_channels, classes)
    except Exception as error:  # architectures that an encoder does not fit fail in as many ways as there are of them
        raise UserError(
            f"--model {model} cannot be used with --encoder-name {encoder_name}: {str(error)[:200]}; choose another"
        ) from error
