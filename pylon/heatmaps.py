"""Heatmaps of a network: its own maps, or those of a method of the grad-cam library; averages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pylon.model import PylonOutput
from pylon.options import METHODS

PAIRS_AT_A_TIME = 8  # of image and class, for methods with gradients: each copies its image


def heatmaps_of(
    model: nn.Module,
    images: Tensor,
    image_of: Sequence[int],
    class_of: Sequence[int],
    method: str = "map",
) -> tuple[Tensor, Tensor]:
    """Compute one heatmap for each pair of an image in the batch and a class.

    "map" returns the network's own maps. The other methods (`METHODS` of options.py) explain a
    logit by the last feature of the encoder, in every network, as published. They miss what a
    decoder adds from earlier features; but on PYLON's own last feature Grad-CAM would only
    reproduce the map (without its bias, negative values cut off), since only a 1x1 convolution and
    a maximum follow it.

    Args:
        model: a `Pylon` or a `Baseline`, in eval mode.
        images: (B, 1, S, S) float32, normalised.
        image_of, class_of: N indices each, of the image in the batch and of the class.

    Returns:
        heatmaps (N, h, w) float32 in [0, 1]: probabilities per pixel, whose maximum is the image's
            if a logit is the maximum of its map. If it is the mean, the logit of a single pixel has
            no meaning, and the map is min-max scaled, as CAM is; so are the heatmaps of the other
            methods.
        probabilities (N,) float32, NaN where a logit is not finite.

    Raises:
        ValueError: the method is unknown.
    """
    if method == "map":
        return own_maps(model, images, image_of, class_of)
    if method not in METHODS:
        raise ValueError(f"method must be map or one of {', '.join(METHODS)}, got {method}")
    return explained(model, images, image_of, class_of, method)


def are_probabilities(model: nn.Module, method: str = "map") -> bool:
    """Whether heatmaps are probabilities per pixel, or only scaled to [0, 1]."""
    return method == "map" and model.pool != "avg"


@torch.inference_mode()
def own_maps(
    model: nn.Module, images: Tensor, image_of: Sequence[int], class_of: Sequence[int]
) -> tuple[Tensor, Tensor]:
    output = model(images)
    maps = output.maps[image_of, class_of]  # (N, h, w)
    probabilities = probability(output.logits[image_of, class_of])  # (N,)
    return scaled(maps, model), probabilities


def scaled(maps: Tensor, model: nn.Module) -> Tensor:
    """Scale a network's own maps, (.., h, w) float32, to [0, 1], as `heatmaps_of` says."""
    if are_probabilities(model):
        return maps.sigmoid()
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def explained(
    model: nn.Module,
    images: Tensor,
    image_of: Sequence[int],
    class_of: Sequence[int],
    method: str,
) -> tuple[Tensor, Tensor]:
    # an optional dependency, slow to import, that the maps do not need
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    make = getattr(pytorch_grad_cam, METHODS[method])
    heatmaps = []
    logits = []
    for first in range(0, len(class_of), PAIRS_AT_A_TIME):
        pairs = slice(first, first + PAIRS_AT_A_TIME)
        targets = [ClassifierOutputTarget(c) for c in class_of[pairs]]
        with (
            # whatever the caller has switched off; images that need gradients do for frozen weights
            torch.inference_mode(False),
            torch.enable_grad(),
            make(LogitsAlone(model), [model.deepest]) as cam,  # it holds the activations of a call
        ):
            copies = images[image_of[pairs]].clone().requires_grad_()
            heatmaps.append(torch.from_numpy(cam(copies, targets)))  # (n, S, S)
            logits.append(cam.outputs.detach()[range(len(targets)), class_of[pairs]])  # (n,)
    return torch.cat(heatmaps).float(), probability(torch.cat(logits))


def probability(logits: Tensor) -> Tensor:
    """Return the sigmoid, on the CPU, with NaN for infinite logits, which mean a broken network."""
    # In float32 the last bit would depend on the number of logits: torch computes most of them with
    # vector instructions, and the last few without.
    logits = logits.cpu()
    return logits.double().sigmoid().float().where(logits.isfinite(), torch.nan)


def average(networks: Sequence[nn.Module], mirrored: bool = False) -> None:
    """Let the first network return the mean of several, such as seeds, from now on.

    Averaged are the probabilities, of images and of pixels (if maps are no probabilities, their
    values); returned are the logits of these means. A logit is then no longer the maximum of its
    map, but may be higher, since the maxima of the single maps need not meet.

    Args:
        networks: of the same classes, input and kind of maps, in eval mode. Maps of another size
            than the first one's are resized.
        mirrored: whether to average also what they find in the mirror image.
    """
    runs = [network.forward for network in networks]
    first = networks[0]

    def forward(images: Tensor) -> PylonOutput:
        outputs = [run(images) for run in runs]
        if mirrored:
            others = [run(images.flip(-1)) for run in runs]
            outputs += [PylonOutput(other.logits, other.maps.flip(-1)) for other in others]
        size = outputs[0].maps.shape[-2:]
        sized = [F.interpolate(output.maps, size, mode="bilinear") for output in outputs]
        maps = torch.stack(sized)  # (N, B, C, h, w)
        maps = logit_of_mean(maps) if are_probabilities(first) else maps.mean(dim=0)
        logits = torch.stack([output.logits for output in outputs])  # (N, B, C)
        return PylonOutput(logit_of_mean(logits), maps)

    first.forward = forward
    first.is_mirrored = mirrored


def logit_of_mean(logits: Tensor) -> Tensor:
    """The logits of the mean probabilities along the first dimension."""
    # not from the probabilities: those near 1 are rounded to it, whose logit is infinite
    return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)


class LogitsAlone(nn.Module):
    """Wrap a network for the grad-cam library: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits
