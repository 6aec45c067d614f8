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
    network: all that its decoder knows of the findings went through it. (Of a decoder's last feature nothing is to be
    explained: behind it stand a 1x1 convolution and a maximum, so Grad-CAM of it is the map itself.)

    Args:
        model: a `Pylon` or a `Baseline`, in eval mode.
        images: (B, 1, S, S) float32, normalised.
        image_of, class_of: (N,) index of the image in the batch, index of the class.

    Returns:
        heatmaps (N, h, w) float32 in [0, 1]: probabilities of the map, or, of the others, relevance over its maximum.
        probabilities (N,) float32.
    """
    if method == "map":
        with torch.inference_mode():
            output = model(images)
        return output.maps[image_of, class_of].sigmoid(), output.logits[image_of, class_of].sigmoid()

    import pytorch_grad_cam as library  # seconds, which the maps do without
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    make = {
        "gradcam": library.GradCAM, "gradcam++": library.GradCAMPlusPlus, "xgradcam": library.XGradCAM,
        "hirescam": library.HiResCAM, "layercam": library.LayerCAM, "eigencam": library.EigenCAM,
        "eigengradcam": library.EigenGradCAM,
    }[method]  # fmt: skip
    with make(LogitsAlone(model), [model.deepest]) as cam:
        heatmaps = cam(images[image_of], [ClassifierOutputTarget(c) for c in class_of])
        probabilities = cam.outputs.detach()[range(len(class_of)), class_of].sigmoid()
    return torch.from_numpy(heatmaps).float(), probabilities


class LogitsAlone(nn.Module):
    """A network as the grad-cam library expects it: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits
