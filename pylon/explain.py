"""Heatmaps of a network: its own maps, or what a method of the grad-cam library makes of its deepest feature."""

from typing import Literal

import torch
from torch import Tensor, nn

Method = Literal["map", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam", "eigengradcam"]


def heatmaps_of(
    model: nn.Module, images: Tensor, image_of: list[int], class_of: list[int], method: Method = "map"
) -> tuple[Tensor, Tensor]:
    """One heatmap for each pair of an image of the batch and a class.

    "map" takes the network's own maps. The other methods explain a logit by the last feature of the encoder, in every
    network, as they were published for classifiers. What a decoder adds from earlier features they do not see; but of
    PYLON's own last feature Grad-CAM would only be the map again (less its bias, negative values cut off), since
    nothing but a 1x1 convolution and a maximum comes after it.

    Args:
        model: a `Pylon` or a `Baseline`, in eval mode.
        images: (B, 1, S, S) float32, normalised.
        image_of, class_of: (N,) index of the image in the batch, index of the class.

    Returns:
        heatmaps (N, h, w) float32 in [0, 1]: probabilities, where a logit is the maximum of its map; where it is the
            mean, single logits mean nothing, and the map is scaled to its own range, as CAM is; likewise other methods.
        probabilities (N,) float32, NaN where a logit is no finite number.
    """
    if method == "map":
        with torch.inference_mode():
            output = model(images)
            maps, probabilities = output.maps[image_of, class_of], probability(output.logits[image_of, class_of])
            if model.pool == "max":
                return maps.sigmoid(), probabilities
            low, high = (extreme(maps, dim=(1, 2), keepdim=True) for extreme in (torch.amin, torch.amax))
            return (maps - low) / (high - low).clamp(min=1e-12), probabilities

    import pytorch_grad_cam as library  # seconds, which the maps do without
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    make = {
        "gradcam": library.GradCAM, "gradcam++": library.GradCAMPlusPlus, "xgradcam": library.XGradCAM,
        "hirescam": library.HiResCAM, "layercam": library.LayerCAM, "eigencam": library.EigenCAM,
        "eigengradcam": library.EigenGradCAM,
    }[method]  # fmt: skip
    with make(LogitsAlone(model), [model.deepest]) as cam:
        heatmaps = cam(images[image_of], [ClassifierOutputTarget(c) for c in class_of])
        probabilities = probability(cam.outputs.detach()[range(len(class_of)), class_of])
    return torch.from_numpy(heatmaps).float(), probabilities


def probability(logits: Tensor) -> Tensor:
    """The sigmoid, but NaN of an infinite logit, which is a broken network's and not a certain one's."""
    return logits.sigmoid().where(logits.isfinite(), torch.nan)


class LogitsAlone(nn.Module):
    """A network as the grad-cam library expects it: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits
