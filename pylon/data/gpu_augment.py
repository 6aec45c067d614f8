"""Augmentation on the device: the workers only draw the random numbers of `train_transform`.

For where they cannot feed a GPU. The steps, and the random numbers, are those of transforms.py.
"""

import random
from typing import Any

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from pylon.data.transforms import OneWarp, back_to_image, train_transform

# columns of a row of parameters, (13,) float32
BACK = slice(0, 6)  # from pixels of the result to the image, (2, 3)
LOW = slice(6, 8)  # the first x and y that may be read
HIGH = slice(8, 10)  # the last ones
ROTATED = 10  # 0 or 1: what lies beyond these is black, not the nearest pixel
LIGHT = slice(11, 13)  # grey levels are multiplied by the first and increased by the second
LENGTH = 13


class Unapplied:
    """Makes a transform draw its random numbers and leave the image as it is."""

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        return img


class UnappliedWarp(Unapplied, OneWarp):
    pass


class UnappliedLight(Unapplied, A.RandomBrightnessContrast):
    pass


class DrawnTransform:
    """Draw the random numbers of the training transform, and apply nothing.

    Args:
        image_size: side of the result, pixels.
        rotate: as for `train_transform`.
        cache_size: side of the images that are passed on; no side of an image is above it.

    Given (h, w) uint8, returns a dict: image (1, cache_size, cache_size) uint8, with the image in
    its upper left corner; augmentation (13,) float32, for `augment_on_device`.
    """

    def __init__(self, image_size: int, cache_size: int, rotate: float = 90):
        self.cache_size = cache_size
        self.size = (image_size, image_size)
        warp, light, *_ = train_transform(image_size, rotate)
        self.warp = UnappliedWarp(warp.rotate, warp.crop, warp.flip)
        self.light = UnappliedLight(light.brightness_limit, light.contrast_limit, p=light.p)
        self.steps = A.Compose([self.warp, self.light])

    def set_random_state(
        self, random_generator: np.random.Generator, py_random: random.Random
    ) -> None:
        self.steps.set_random_state(random_generator, py_random)

    def __call__(self, image: np.ndarray) -> dict[str, Tensor]:
        self.steps(image=image)
        height, width = image.shape
        padded = np.zeros((1, self.cache_size, self.cache_size), np.uint8)
        padded[0, :height, :width] = image
        return {
            "image": torch.from_numpy(padded),
            "augmentation": torch.from_numpy(self.parameters(height, width)),
        }

    def parameters(self, height: int, width: int) -> np.ndarray:
        """What was drawn, as a row of parameters."""
        rotation = self.warp.params["rotation"]
        crop = self.warp.params["x0y0x1y1"]
        x0, y0, x1, y1 = crop if rotation is None else (0, 0, width, height)
        back = back_to_image(rotation, crop, self.warp.params["flipped"], self.size)
        light = self.light.params  # empty if it is not changed
        row = np.empty(LENGTH, np.float32)
        row[BACK] = back[:2].ravel()
        row[LOW] = x0, y0
        row[HIGH] = x1 - 1, y1 - 1
        row[ROTATED] = rotation is not None
        row[LIGHT] = light.get("alpha", 1), light.get("beta", 0)
        return row


def augment_on_device(batch: dict[str, Tensor], image_size: int) -> Tensor:
    """Augment a batch as the workers would have; nothing waits for a GPU.

    Args:
        batch: of a loader with a `DrawnTransform`: image (B, 1, cache_size, cache_size) uint8;
            augmentation (B, 13) float32.
        image_size: side of the result, pixels.

    Returns:
        (B, 1, image_size, image_size) uint8.
    """
    rows = batch["augmentation"]
    factor, shift = rows[:, LIGHT, None, None].unbind(1)
    levels = warp(batch["image"][:, 0], rows, image_size)
    # as albumentations does: whole grey levels to whole grey levels, cut off
    return (levels * factor + shift).clamp(0, 255).to(torch.uint8)[:, None]


def warp(images: Tensor, rows: Tensor, size: int) -> Tensor:
    """Interpolate bicubically as OpenCV does, in the one gather that both of its functions are.

    Args:
        images: (B, H, W) uint8.
        rows: (B, 13) float32.
        size: side of the result, pixels.

    Returns:
        (B, size, size) float32, whole numbers in [0, 255].
    """
    count, _, stride = images.shape

    # where in the image each pixel of the result lies
    steps = torch.arange(size, dtype=torch.float32, device=images.device)
    back = rows[:, BACK].view(count, 2, 3, 1, 1)
    place = back[:, :, 0] * steps + back[:, :, 1] * steps[:, None] + back[:, :, 2]  # (B, 2, S, S)
    rotated = rows[:, ROTATED].bool().view(count, 1, 1, 1)
    place = torch.where(rotated, (place * 32).round() / 32, place)  # cv2.warpAffine's grid

    # the 4 x 4 pixels around it, and their weights
    first = place.floor()
    weights = cubic_weights(place - first)
    low = rows[:, LOW].view(count, 2, 1, 1)
    high = rows[:, HIGH].view(count, 2, 1, 1)
    taps = []
    for k in range(4):
        wanted = first + (k - 1)
        nearest = wanted.clamp(low, high)
        weight = weights[k] * ~(rotated & (wanted != nearest))
        taps.append((nearest.long(), weight))

    # their sum
    flat = images.reshape(count, -1)
    result = torch.zeros(count, size * size, device=images.device)
    for y, y_weight in taps:
        for x, x_weight in taps:
            index = y[:, 1] * stride + x[:, 0]
            grey = flat.gather(1, index.view(count, -1))
            result += grey * (y_weight[:, 1] * x_weight[:, 0]).view(count, -1)
    return result.view(count, size, size).round().clamp(0, 255)


def cubic_weights(t: Tensor) -> list[Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2 for a place t in [0, 1), with OpenCV's a = -0.75."""
    a = -0.75

    def near(d: Tensor) -> Tensor:  # at a distance up to 1
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:  # from 1 to 2
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
