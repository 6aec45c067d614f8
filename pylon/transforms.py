"""The paper's transforms: (H, W) uint8 -> (1, S, S) uint8, and from there to float32 on the device."""

import random
from functools import partial
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch import Tensor

MEAN, STD = 0.4984, 0.2483  # of intensities in [0, 1], protocol of the 2020 code


class OneWarp(A.ImageOnlyTransform):
    """Rotation, random resized crop and flip, drawn by albumentations' own transforms, done to the image at once.

    Given the same random numbers, an image that is not rotated is what the three would make of it one after another,
    exactly; a rotated one differs by the rounding of a picture between two interpolations that is never made.

    Args:
        rotate, crop, flip: the three transforms, of images (H, W) uint8.
    """

    def __init__(self, rotate: A.Rotate, crop: A.RandomResizedCrop, flip: A.HorizontalFlip):
        super().__init__(p=1.0)
        self.rotate, self.crop, self.flip = rotate, crop, flip

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        super().set_random_state(random_generator, py_random)
        for step in (self.rotate, self.crop, self.flip):
            step.set_random_state(random_generator, py_random)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        rotation = None
        if self.rotate.should_apply():
            rotation = self.rotate.get_params_dependent_on_data(params, data)["matrix"]
        x0y0x1y1 = self.crop.get_params_dependent_on_data(params, data)["crop_coords"]
        return {"rotation": rotation, "x0y0x1y1": x0y0x1y1, "flipped": self.flip.should_apply()}

    def apply(
        self, img: np.ndarray, rotation: np.ndarray | None, x0y0x1y1: tuple[int, ...], flipped: bool, **_: Any
    ) -> np.ndarray:
        x0, y0, x1, y1 = x0y0x1y1
        height, width = self.crop.size
        if rotation is None:
            crop = cv2.resize(img[y0:y1, x0:x1], (width, height), interpolation=self.crop.interpolation)
            return cv2.flip(crop, 1) if flipped else crop
        # From a pixel of the result back to the image. Centres of pixels lie at whole numbers.
        sx, sy = (x1 - x0) / width, (y1 - y0) / height
        back = np.array([[sx, 0, x0 + (sx - 1) / 2], [0, sy, y0 + (sy - 1) / 2], [0, 0, 1]])
        if flipped:
            back = back @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
        back = np.linalg.inv(rotation) @ back
        flags = self.rotate.interpolation | cv2.WARP_INVERSE_MAP
        floats = img.astype(np.float32)  # OpenCV's cubic warp is twice as fast in float32 as in uint8
        border = {"borderMode": self.rotate.border_mode, "borderValue": self.rotate.fill}
        warped = cv2.warpAffine(floats, back[:2], (width, height), flags=flags, **border)
        return cv2.add(warped, 0, dtype=cv2.CV_8U)  # rounds, and cuts at 0 and 255


def train_transform(image_size: int) -> A.Compose:
    """Augment. The caller sets the random state for each sample, or every worker and epoch repeats itself."""
    return A.Compose([
        # Deviation: the first three are one interpolation instead of two, of the size of the result.
        OneWarp(
            A.Rotate(limit=90, p=0.5, interpolation=cv2.INTER_CUBIC, border_mode=cv2.BORDER_CONSTANT, fill=0),
            A.RandomResizedCrop(
                (image_size, image_size), scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_CUBIC
            ),
            A.HorizontalFlip(p=0.5),
        ),
        A.RandomBrightnessContrast(brightness_limit=0.5, contrast_limit=0.5, p=0.5),
        ToTensorV2(),  # and `normalize`, on the device
    ])  # fmt: skip


def eval_transform(image_size: int) -> partial[dict[str, Tensor]]:
    """Resize: bicubic, no antialiasing, OpenCV's, as in training. (A Compose of it alone takes half as long again.)"""
    return partial(resize, size=image_size)


def resize(image: np.ndarray, size: int) -> dict[str, Tensor]:
    return {"image": torch.from_numpy(cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC))[None]}


def normalize(images: Tensor, mean: float = MEAN, std: float = STD) -> Tensor:
    """Bytes to the network's input, the last step of both transforms.

    It is done a batch, where the network is: a worker's bytes travel four times as fast as its floats.

    Args:
        images: (B, 1, S, S) uint8.
        mean, std: of intensities in [0, 1].

    Returns:
        (B, 1, S, S) float32, channels last.
    """
    shift = torch.tensor(-mean / std)  # torch.add goes over the images once, and a GPU does not wait for it
    return torch.add(shift, images, alpha=1 / (255 * std)).contiguous(memory_format=torch.channels_last)
