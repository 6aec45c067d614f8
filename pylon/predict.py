"""A network over all images of a loader, on every process."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from pylon.progress import track
from pylon.transforms import MEAN, STD, normalize


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    title: str,
    mean: float = MEAN,
    std: float = STD,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of all images, (N, C) float32 each, in the loader's order; maps are dropped batch by batch."""
    model.eval()
    logits, labels = [], []
    for batch in track(loader, title, "batch", shown=accelerator.is_main_process):
        with accelerator.autocast():
            output = model(normalize(batch["image"], mean, std))
        logits_batch, labels_batch = accelerator.gather_for_metrics((output.logits, batch["label"]))
        logits.append(logits_batch.cpu())
        labels.append(labels_batch.cpu())
    return torch.cat(logits).numpy(), torch.cat(labels).numpy()
