"""Export a checkpoint as an ONNX file that explains itself.

    image (B, 1, S, S) uint8 -> probabilities (B, C), maps (B, C, h, w), float32 in [0, 1]

`image` has grey levels, resized as predict.py does. They are uint8, as they come out of a file:
floats could be taken for intensities from 0 to 1. The outputs are those of `Prediction`,
uncalibrated. Metadata properties say the rest: class_names and thresholds (JSON), mean, std,
image_size, weights_sha256 and a note.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pylon.baselines import Baseline
from pylon.checkpoints.checkpoint import find_checkpoint
from pylon.data.transforms import normalize
from pylon.evaluation.evaluate import open_checkpoint
from pylon.evaluation.runtime import graph_of, onnxruntime_of
from pylon.heatmaps import heatmaps_of, scaled
from pylon.model import Pylon
from pylon.system.errors import UserError
from pylon.system.files import write_atomically

TOLERANCE = 1e-4  # of probabilities
BATCHES = (1, 2, 3, 8)  # with which a file is checked


class WithNormalisation(nn.Module):
    """A network with what is before and after it: grey levels in, probabilities and maps out."""

    def __init__(self, model: Pylon | Baseline, mean: float, std: float):
        super().__init__()
        self.model = model
        self.mean = mean
        self.std = std

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probabilities (B, C) and maps (B, C, h, w), as `heatmaps_of` does.

        Args:
            image: (B, 1, S, S) uint8.
        """
        normalised = image.float() / (255 * self.std) - self.mean / self.std
        output = self.model(normalised)
        return output.logits.sigmoid(), scaled(output.maps, self.model)


def export_onnx(checkpoint: Path, path: Path) -> str:
    """Write a network as an ONNX file, checked against torch; return a sentence about it.

    Args:
        checkpoint: as for `load_pylon`.
        path: of the file, which is replaced only by one that has passed the check.

    Raises:
        UserError: the checkpoint cannot be used; the file cannot be written, or differs from torch.
    """
    import onnx  # an optional dependency

    model, card = open_checkpoint(find_checkpoint(checkpoint))

    whole = WithNormalisation(model, card["mean"], card["std"])
    graph = graph_of(whole, card["image_size"], ("probabilities", "maps"), dtype=torch.uint8)
    proto = onnx.load_from_string(graph)
    onnx.checker.check_model(proto)
    onnx.helper.set_model_props(proto, metadata_of(card))

    # a file that has not passed the check never gets its name
    content = proto.SerializeToString()
    difference = difference_from_torch(model, card, content)
    if not difference <= TOLERANCE:  # or not a number
        raise UserError(
            f"--export-onnx {path} was not written: probabilities of the ONNX file differ from "
            f"those of torch by {difference:.2g}, more than {TOLERANCE:g}"
        )
    write_atomically(path, content)
    return f"{path} written; probabilities differ from torch's by at most {difference:.1g}"


def metadata_of(card: dict[str, Any]) -> dict[str, str]:
    """Metadata properties of an exported file; lists and dicts are JSON."""
    thresholds = card.get("thresholds") or {}
    return {
        "class_names": json.dumps(list(card["class_names"])),
        "thresholds": json.dumps({name: thresholds.get(name) for name in card["class_names"]}),
        "mean": repr(card["mean"]),
        "std": repr(card["std"]),
        "image_size": str(card["image_size"]),
        "weights_sha256": card["weights_sha256"],
        "note": "research use only, not for diagnosis",
    }


def difference_from_torch(model: Pylon | Baseline, card: dict[str, Any], content: bytes) -> float:
    """The largest difference of probabilities and maps of an exported file, over batch sizes."""
    run = onnxruntime_of(content)
    side = card["image_size"]
    generator = np.random.default_rng(0)
    count = len(card["class_names"])
    largest = []
    for batch in BATCHES:
        # noise, as dark as radiographs differ
        brightest = generator.integers(64, 256, (batch, 1, 1, 1))
        image = generator.integers(0, brightest, (batch, 1, side, side)).astype(np.uint8)
        images = normalize(torch.from_numpy(image), card["mean"], card["std"])
        image_of = np.arange(batch).repeat(count).tolist()
        maps, scores = heatmaps_of(model, images, image_of, list(range(count)) * batch)
        got = run(image)  # probabilities (B, C), maps (B, C, h, w)
        largest.append(np.abs(got[0].ravel() - scores.numpy()).max())
        largest.append(np.abs(got[1].reshape(maps.shape) - maps.numpy()).max())
    return float(np.max(largest))  # NaN if one is
