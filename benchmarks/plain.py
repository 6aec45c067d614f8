"""The pipeline as published in 2020, reimplemented plainly: the baseline of `speed.py`.

Each PNG is decoded for each sample and rotated at full size; the network trains in float32, in
PyTorch's default memory format, with default Adam; boxes are drawn as masks; a page of heatmaps is
a matplotlib figure with one axes per panel.
"""

import io

import albumentations as A
import cv2
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from albumentations.pytorch import ToTensorV2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

MEAN = 0.4984
STD = 0.2483


def train_transform(size: int = 256) -> A.Compose:
    border = cv2.BORDER_CONSTANT
    return A.Compose([
        A.Rotate(limit=90, p=0.5, interpolation=cv2.INTER_CUBIC, border_mode=border, fill=0),
        A.RandomResizedCrop(
            (size, size), scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_CUBIC
        ),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.5, contrast_limit=0.5, p=0.5),
        A.Normalize(mean=(MEAN,), std=(STD,), max_pixel_value=255.0),
        ToTensorV2(),
    ])  # fmt: skip


def eval_transform(size: int = 256) -> A.Compose:
    return A.Compose([
        A.Resize(size, size, interpolation=cv2.INTER_CUBIC),
        A.Normalize(mean=(MEAN,), std=(STD,), max_pixel_value=255.0),
        ToTensorV2(),
    ])  # fmt: skip


class PlainDataset(Dataset):
    def __init__(self, paths: list[str], labels: np.ndarray, transform: A.Compose):
        self.paths = paths
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = cv2.imread(self.paths[index], cv2.IMREAD_GRAYSCALE)
        return self.transform(image=image)["image"], torch.tensor(self.labels[index])


def loader(
    paths: list[str],
    labels: np.ndarray,
    transform: A.Compose,
    batch_size: int,
    workers: int,
    shuffle: bool = False,
) -> DataLoader:
    return DataLoader(
        PlainDataset(paths, labels, transform),
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def train_step(
    net: nn.Module, adam: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    loss = F.binary_cross_entropy_with_logits(net(images).logits, labels)
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.item()


def predict(net: nn.Module, batches: DataLoader, device: torch.device) -> Tensor:
    net.eval()
    with torch.no_grad():
        return torch.cat([net(images.to(device)).logits.sigmoid().cpu() for images, _ in batches])


def point_localization(
    maps: Tensor, pairs: list[list[tuple[int, np.ndarray]]], image_size: int = 1024, size: int = 256
) -> np.ndarray:
    """Score hits with masks.

    A box is drawn as a mask, the mask is resized like the image, and read at the map's maximum.

    Args:
        maps: (N, C, h, w) probabilities.
        pairs: for each image, its (class, bbox_xywh).
    """
    hits = []
    for n, boxes in enumerate(pairs):
        large = F.interpolate(maps[n : n + 1], (size, size), mode="bilinear", align_corners=False)[
            0
        ].numpy()
        masks = np.zeros((maps.shape[1], image_size, image_size), np.uint8)
        for c, (x, y, w, h) in boxes:
            masks[c, y : y + h, x : x + w] = 1
        masks = [cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST) for mask in masks]
        hits += [masks[c][large[c] == large[c].max()].mean() for c, _ in boxes]
    return np.array(hits)


def draw_page(rows: list[tuple[str, np.ndarray, str, tuple[int, int, int, int]]]) -> bytes:
    """Draw rows of (image file, heatmap, title, bbox_xywh), two axes per row; return JPEG bytes."""
    figure, axes = plt.subplots(len(rows), 2, figsize=(10, 5 * len(rows)))
    for (left, right), (file, heatmap, title, bbox_xywh) in zip(axes, rows, strict=True):
        x, y, w, h = bbox_xywh
        image = cv2.imread(file, cv2.IMREAD_GRAYSCALE)
        left.imshow(image, cmap="gray")
        right.imshow(image, cmap="gray")
        scaled = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
        right.imshow(cv2.resize(scaled, image.shape[::-1]), cmap="jet", alpha=0.5)
        right.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="lime"))
        right.set_title(title)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg")
    plt.close(figure)
    return buffer.getvalue()
