"""The network: an SMP encoder, pyramid attention, three UP modules, a 1x1 head and a maximum.

image (B, 1, H, W) -> features at 1/4 .. 1/32 -> PA at 1/32 -> UP at 1/16, 1/8, 1/4
                   -> maps (B, C, H/4, W/4) -> their maximum: logits (B, C)
"""

import difflib
import warnings
from typing import NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from segmentation_models_pytorch.base import initialization
from torch import Tensor, nn

from pylon.cli import UserError

STRIDE = 256  # the attention branch halves the stride-32 feature three times more


class PylonOutput(NamedTuple):
    logits: Tensor  # (B, C) float32
    maps: Tensor  # (B, C, H/4, W/4) float32, logits a pixel


class ConvBnRelu(nn.Module):
    """Convolution ("same" padding, with bias), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Upsample to the height and width of `like`: bilinear, corners aligned."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class PyramidAttention(nn.Module):
    """PA: one attention channel, seen at three scales, times the projected feature; or, without it, that feature."""

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
        mid = self.mid(x)  # 1/32
        if not self.attention:
            return mid
        down1 = self.down1(x)  # 1/64
        down2 = self.down2(down1)  # 1/128
        down3 = self.down3(down2)  # 1/256
        attention = resize(self.conv3(down3), like=down2)
        attention = resize(self.conv2(down2) + attention, like=down1)
        attention = resize(self.conv1(down1) + attention, like=mid)
        return attention * mid


class Up(nn.Module):
    """UP: the deeper map, upsampled, plus the projected skip feature.

    One layer is the network of the 2020 code, two layers that of the iScience paper.
    """

    def __init__(self, skip_channels: int, out_channels: int, layers: int):
        super().__init__()
        last = ConvBnRelu(skip_channels, out_channels, 1)
        self.conv1 = last if layers == 1 else nn.Sequential(ConvBnRelu(skip_channels, skip_channels, 1), last)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        return resize(deeper, like=skip) + self.conv1(skip)


class PylonDecoder(nn.Module):
    """From the features at strides 4, 8, 16, 32 to one of `out_channels` at stride 4 (16, 32 with fewer modules)."""

    def __init__(
        self, encoder_channels: tuple[int, ...], out_channels: int, up_layers: int, up_modules: int, attention: bool
    ):
        super().__init__()
        c4, c8, c16, c32 = encoder_channels
        self.pa = PyramidAttention(c32, out_channels, attention)
        self.up3 = Up(c16, out_channels, up_layers) if up_modules >= 1 else None
        self.up2 = Up(c8, out_channels, up_layers) if up_modules >= 2 else None
        self.up1 = Up(c4, out_channels, up_layers) if up_modules >= 3 else None

    def forward(self, features: list[Tensor]) -> Tensor:
        f4, f8, f16, f32 = features
        x = self.pa(f32)  # 1/32
        for up, skip in ((self.up3, f16), (self.up2, f8), (self.up1, f4)):  # 1/16, 1/8, 1/4
            x = x if up is None else up(x, skip)
        return x


class Pylon(nn.Module, PyTorchModelHubMixin, library_name="pylon", tags=["chest-x-ray", "weak-localization"]):
    """Pyramid Localization Network.

    Args:
        encoder_name: any encoder of segmentation-models-pytorch, or `tu-NAME` for one of timm's,
            that has features at strides 4, 8, 16 and 32.
        encoder_weights: "imagenet" (the one download) or None. For `tu-` encoders anything but None
            means the weights that timm has.
        in_channels: channels of the input. With one, SMP sums the RGB kernels of the first convolution.
        classes: number of maps and logits.
        decoder_channels: width D of the decoder, 128 in the paper.
        up_layers: 1 (2020 code) or 2 (2021 code, iScience paper) convolutions in each UP module.
        up_modules: 3, or fewer as an ablation: maps are then at stride 8 (2), 16 (1) or 32 (0).
        attention: False leaves the attention branch out, as an ablation.

    Raises:
        UserError: the encoder is unknown, lacks a stride, or its weights cannot be had.
    """

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
    ):
        super().__init__()
        if up_layers not in (1, 2):
            raise UserError(f"--up-layers must be 1 or 2, not {up_layers}")
        if up_modules not in range(4):
            raise UserError(f"--up-modules must be 0, 1, 2 or 3, not {up_modules}")
        self.in_channels, self.pool = in_channels, "max"
        self.ablated = up_modules < 3 or not attention
        self.encoder = build_encoder(encoder_name, encoder_weights, in_channels)
        self.deepest = nn.Identity()  # where methods such as Grad-CAM listen
        channels = self.encoder.out_channels[-4:]
        self.decoder = PylonDecoder(channels, decoder_channels, up_layers, up_modules, attention)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels, classes, 1))
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)

    def forward(self, images: Tensor) -> PylonOutput:
        """Maps and logits of a batch.

        Args:
            images: (B, in_channels, H, W) float, normalised; H and W multiples of 256.

        Raises:
            UserError: a side is no multiple of 256, or batch norm would see a single value.
        """
        batch, _, height, width = images.shape
        if height % STRIDE or width % STRIDE:
            raise UserError(f"the sides of the input must be multiples of {STRIDE}, not {height} x {width}")
        if self.training and batch * (height // STRIDE) * (width // STRIDE) == 1:
            raise UserError("training needs at least 2 images a batch: batch norm has no variance of one value")
        *features, deepest = self.encoder(images)
        maps = self.segmentation_head(self.decoder([*features[-3:], self.deepest(deepest)])).float()
        return PylonOutput(logits=maps.amax(dim=(2, 3)), maps=maps)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs):
        """Rebuild from a folder or the hub: all weights come from the file, so none from ImageNet."""
        return super()._from_pretrained(strict=strict, **{**kwargs, "encoder_weights": None})


def build_encoder(name: str, weights: str | None, in_channels: int) -> nn.Module:
    """One of SMP's encoders, checked to have the four strides that PYLON uses."""
    if name.startswith("tu-"):
        known, wanted = timm.list_models(), name[3:].split(".")[0]
        near = [f"tu-{match}" for match in difflib.get_close_matches(wanted, known, n=3)]
    else:
        known, wanted = smp.encoders.get_encoder_names(), name
        near = difflib.get_close_matches(wanted, known, n=3)
    if wanted not in known:
        hint = f"did you mean {', '.join(near)}?" if near else "see segmentation-models-pytorch's list of encoders"
        raise UserError(f"--encoder-name {name} is unknown; {hint}")
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        strides_fit = has_four_strides(encoder, in_channels)
    except Exception as error:  # architectures that do not fit fail in as many ways as there are of them
        raise UserError(f"--encoder-name {name} cannot be used: {str(error)[:200]}; choose another encoder") from error
    if not strides_fit:
        raise UserError(f"--encoder-name {name} has no features at strides 4, 8, 16 and 32; choose another encoder")
    if weights is None:
        return encoder
    if name.startswith("tu-") and not timm.models.is_model_pretrained(name[3:]):
        raise UserError(f"--encoder-weights {weights}: timm has no weights of {name}; use --encoder-weights none")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="For 'tu-'")  # "imagenet" stands for timm's own weights
            return smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=weights)
    except KeyError as error:  # SMP's word for weights that it does not list
        raise UserError(f"--encoder-weights {weights}: {error.args[0]}") from error
    except Exception as error:  # without a network, or with a damaged file, whatever the libraries happen to raise
        raise UserError(
            f"the {weights} weights of {name} could not be downloaded, or are damaged; connect to the network once "
            "(and empty Hugging Face's cache), or train from scratch with --encoder-weights none"
        ) from error


def freeze_unused_parameters(model: nn.Module) -> list[str]:
    """Exclude from training the parameters that no gradient reaches; return their names.

    Some encoders have layers behind the features that are used, such as the head of EfficientNet. Processes that train
    one network (DistributedDataParallel) would wait for the gradients of these.

    Args:
        model: a `Pylon` or a `Baseline`, on the CPU. Mode, gradients and torch's random numbers stay as they are.
    """
    training = model.training
    model.eval()  # in training, a dropped layer could hide a parameter
    with torch.random.fork_rng(devices=[]):
        model(torch.zeros(1, model.in_channels, STRIDE, STRIDE)).logits.sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad()
    model.train(training)
    return unused


@torch.no_grad()
def has_four_strides(encoder: nn.Module, in_channels: int) -> bool:
    """Whether the last four features lie at strides 4, 8, 16 and 32, seen by trying."""
    if any(parameter.is_meta for parameter in encoder.parameters()):
        return True  # built for its shapes alone: there is nothing to try
    features = encoder.eval()(torch.zeros(1, in_channels, STRIDE, STRIDE))
    encoder.train()
    return [feature.shape[-1] for feature in features[-4:]] == [STRIDE // stride for stride in (4, 8, 16, 32)]
