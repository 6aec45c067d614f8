"""The network: an SMP encoder, pyramid attention, three UP modules, a 1x1 head and a maximum.

image (B, 1, H, W) -> features at 1/4 .. 1/32 -> PA at 1/32 -> UP at 1/16, 1/8, 1/4
                   -> maps (B, C, H/4, W/4) -> their maximum: logits (B, C)
"""

import math
from typing import NamedTuple

import torch.nn.functional as F
from segmentation_models_pytorch.base import initialization
from torch import Tensor, nn

from pylon.encoders import ArgumentError, build_encoder
from pylon.hub import Checkpointed

POOLS = ("max", "avg", "lse", "top", "pcam")  # see `pool_maps`
LSE = 5
TOP_SHARE = 1 / 64
STRIDE = 256  # the attention branch halves the stride-32 feature three more times


class PylonOutput(NamedTuple):
    logits: Tensor  # (B, C) float32
    maps: Tensor  # (B, C, H/4, W/4) float32, logits per pixel


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss: binary cross entropy, averaged over images and classes.

    Args:
        logits, labels: (B, C) float32; labels are 0 or 1.
    """
    return F.binary_cross_entropy_with_logits(logits, labels)


def check_pool(pool: str) -> None:
    """Raise an ArgumentError if the pooling is unknown."""
    if pool not in POOLS:
        raise ArgumentError("pool", f"must be one of {', '.join(POOLS)}, got {pool}")


def pool_maps(maps: Tensor, pool: str) -> Tensor:
    """Pool each map into the logit of its image.

    The gradient of a maximum reaches one pixel of a map; the other poolings reach more, which makes
    learning from few images faster.

    Args:
        maps: (B, C, h, w) float32, logits per pixel.
        pool: one of POOLS. max is PYLON's and avg CAM's; lse is the logarithm of the mean of
            exp(5 m), divided by 5 (Pinheiro and Collobert, CVPR 2015); top the mean of the largest
            64th of the pixels; pcam the mean weighted by each pixel's probability (Ye et al.,
            arXiv 2005.14480).

    Returns:
        (B, C) float32.
    """
    pixels = maps.flatten(2)  # (B, C, h w)
    if pool == "max":
        return pixels.amax(dim=2)
    if pool == "avg":
        return pixels.mean(dim=2)
    if pool == "lse":
        return ((LSE * pixels).logsumexp(dim=2) - math.log(pixels.shape[2])) / LSE
    if pool == "top":
        return pixels.topk(math.ceil(pixels.shape[2] * TOP_SHARE), dim=2).values.mean(dim=2)
    probabilities = pixels.sigmoid()
    return (probabilities * pixels).sum(dim=2) / probabilities.sum(dim=2).clamp(min=1e-12)


class ConvBnRelu(nn.Module):
    """Convolution ("same" padding, with bias), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Upsample to the height and width of `like`: bilinear, with aligned corners."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class PyramidAttention(nn.Module):
    """PA: one attention channel, computed at three scales, times the projected feature.

    Without attention (an ablation) it returns the projected feature alone.
    """

    def __init__(self, in_channels: int, out_channels: int, attention: bool = True):
        super().__init__()
        self.attention = attention
        self.mid = nn.Sequential(ConvBnRelu(in_channels, out_channels, 1))
        if not attention:
            return
        self.down1 = nn.Sequential(nn.MaxPool2d(2), ConvBnRelu(in_channels, 1, 7))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), ConvBnRelu(1, 1, 5))
        self.down3 = nn.Sequential(nn.MaxPool2d(2), ConvBnRelu(1, 1, 3))
        self.conv3 = ConvBnRelu(1, 1, 3)
        self.conv2 = ConvBnRelu(1, 1, 5)
        self.conv1 = ConvBnRelu(1, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        mid = self.mid(x)  # (B, D, H/32, W/32)
        if not self.attention:
            return mid

        # downsample: one channel each
        down1 = self.down1(x)  # (B, 1, H/64, W/64)
        down2 = self.down2(down1)  # (B, 1, H/128, W/128)
        down3 = self.down3(down2)  # (B, 1, H/256, W/256)

        # upsample again
        attention = resize(self.conv3(down3), like=down2)  # (B, 1, H/128, W/128)
        attention = resize(self.conv2(down2) + attention, like=down1)  # (B, 1, H/64, W/64)
        attention = resize(self.conv1(down1) + attention, like=mid)  # (B, 1, H/32, W/32)
        return attention * mid


class Up(nn.Module):
    """UP: the deeper feature, upsampled, plus the projected skip feature.

    The 2020 code has one layer, the iScience paper two.
    """

    def __init__(self, skip_channels: int, out_channels: int, layers: int):
        super().__init__()
        last = ConvBnRelu(skip_channels, out_channels, 1)
        if layers == 1:
            self.conv1 = last
        else:
            self.conv1 = nn.Sequential(ConvBnRelu(skip_channels, skip_channels, 1), last)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        return resize(deeper, like=skip) + self.conv1(skip)


class PylonDecoder(nn.Module):
    """Combine the features at strides 4, 8, 16, 32 into one of `out_channels` at stride 4.

    With fewer UP modules (an ablation) the stride is 8, 16 or 32.
    """

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        out_channels: int,
        up_layers: int,
        up_modules: int,
        attention: bool,
    ):
        super().__init__()
        c4, c8, c16, c32 = encoder_channels
        self.pa = PyramidAttention(c32, out_channels, attention)
        self.up3 = Up(c16, out_channels, up_layers) if up_modules >= 1 else None
        self.up2 = Up(c8, out_channels, up_layers) if up_modules >= 2 else None
        self.up1 = Up(c4, out_channels, up_layers) if up_modules >= 3 else None

    def forward(self, features: list[Tensor]) -> Tensor:
        f4, f8, f16, f32 = features
        x = self.pa(f32)  # (B, D, H/32, W/32)
        if self.up3 is not None:
            x = self.up3(x, f16)  # (B, D, H/16, W/16)
        if self.up2 is not None:
            x = self.up2(x, f8)  # (B, D, H/8, W/8)
        if self.up1 is not None:
            x = self.up1(x, f4)  # (B, D, H/4, W/4)
        return x


class Pylon(
    nn.Module,
    Checkpointed,
    library_name="pylon",
    tags=["chest-x-ray", "weak-localization"],
):
    """Pyramid Localization Network.

    Args:
        encoder_name: any encoder of segmentation-models-pytorch, or `tu-NAME` for a timm encoder,
            that has features at strides 4, 8, 16 and 32.
        encoder_weights: "imagenet" (the only download), a file of weights, or None. For `tu-`
            encoders any other name means timm's own weights.
        in_channels: number of input channels. With one, SMP sums the RGB kernels of the first
            convolution.
        classes: number of maps and logits.
        decoder_channels: width D of the decoder, 128 in the paper.
        up_layers: 1 (2020 code) or 2 (2021 code, iScience paper) convolutions in each UP module.
        up_modules: 3, or fewer as an ablation, with maps at stride 8 (2), 16 (1) or 32 (0).
        attention: False removes the attention branch, as an ablation.
        pool: how a map becomes a logit, "max" in the paper; see `pool_maps`.

    Raises:
        ValueError: the encoder is unknown, lacks a stride, or its weights are unavailable; or
            up_layers, up_modules or pool is out of range. The message begins with the argument's
            name.
    """

    kind = "pylon"

    def __init__(
        self,
        encoder_name: str = "resnet50",
        encoder_weights: str | None = "imagenet",
        in_channels: int = 1,
        classes: int = 14,
        decoder_channels: int = 128,
        up_layers: int = 1,
        up_modules: int = 3,
        attention: bool = True,
        pool: str = "max",
    ):
        super().__init__()
        check_pool(pool)
        if up_layers not in (1, 2):
            raise ArgumentError("up_layers", f"must be 1 or 2, got {up_layers}")
        if up_modules not in range(4):
            raise ArgumentError("up_modules", f"must be 0, 1, 2 or 3, got {up_modules}")
        self.in_channels = in_channels
        self.classes = classes
        self.pool = pool
        self.ablated = up_modules != 3 or not attention or pool != "max"

        # encoder, decoder, head; `deepest` is a hook point for methods such as Grad-CAM
        self.encoder = build_encoder(encoder_name, encoder_weights, in_channels)
        self.deepest = nn.Identity()
        channels = self.encoder.out_channels[-4:]
        self.decoder = PylonDecoder(channels, decoder_channels, up_layers, up_modules, attention)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels, classes, 1))
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)

    def forward(self, images: Tensor) -> PylonOutput:
        """Compute the maps and logits of a batch.

        Args:
            images: (B, in_channels, H, W) float, normalised; H and W multiples of 256.

        Raises:
            ValueError: a side is not a multiple of 256, or a training batch leaves batch norm a
                single value.
        """
        batch, _, height, width = images.shape
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"images must have sides that are multiples of {STRIDE}, got {height} x {width}"
            )
        if self.training and batch * (height // STRIDE) * (width // STRIDE) == 1:
            raise ValueError(
                "training needs at least 2 images per batch: batch norm needs more than one value"
            )
        *features, deepest = self.encoder(images)  # strides 2, 4, 8, 16; 32
        x = self.decoder([*features[-3:], self.deepest(deepest)])  # (B, D, H/4, W/4)
        maps = self.segmentation_head(x).float()  # (B, C, H/4, W/4)
        return PylonOutput(logits=pool_maps(maps, self.pool), maps=maps)
