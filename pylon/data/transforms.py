"""The paper's transforms: (H, W) uint8 -> (1, S, S) uint8, then float32 on the device."""

import random
from functools import partial
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch import Tensor


class OneWarp(A.ImageOnlyTransform):
    """Rotation, random resized crop and flip, sampled by albumentations, applied in one step.

    Given the same random numbers, an unrotated image is exactly what the three transforms give one
    after another; a rotated one differs by the rounding of the image between two interpolations,
    which is never computed here.

    Args:
        rotate, crop, flip: the three transforms, for images (H, W) uint8.
    """

    def __init__(self, rotate: A.Rotate, crop: A.RandomResizedCrop, flip: A.HorizontalFlip):
        super().__init__(p=1.0)
        self.rotate = rotate
        self.crop = crop
        self.flip = flip

    def set_random_state(
        self, random_generator: np.random.Generator, py_random: random.Random
    ) -> None:
        super().set_random_state(random_generator, py_random)
        for step in (self.rotate, self.crop, self.flip):
            step.set_random_state(random_generator, py_random)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        rotation = None
        if self.rotate.should_apply():
            rotation = self.rotate.get_params_dependent_on_data(params, data)["matrix"]
        x0y0x1y1 = self.crop.get_params_dependent_on_data(params, data)["crop_coords"]
        flipped = self.flip.should_apply()
        return {"rotation": rotation, "x0y0x1y1": x0y0x1y1, "flipped": flipped}

    def apply(
        self,
        img: np.ndarray,
        rotation: np.ndarray | None,
        x0y0x1y1: tuple[int, ...],
        flipped: bool,
        **_: Any,
    ) -> np.ndarray:
        x0, y0, x1, y1 = x0y0x1y1
        height, width = self.crop.size

        # not rotated: crop, resize, flip, as the three transforms do
        if rotation is None:
            part = img[y0:y1, x0:x1]
            crop = cv2.resize(part, (width, height), interpolation=self.crop.interpolation)
            return cv2.flip(crop, 1) if flipped else crop

        back = back_to_image(rotation, x0y0x1y1, flipped, (height, width))

        # OpenCV's cubic warp is twice as fast in float32 as in uint8
        warped = cv2.warpAffine(
            img.astype(np.float32),
            back[:2],
            (width, height),
            flags=self.rotate.interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=self.rotate.border_mode,
            borderValue=self.rotate.fill,
        )
        return cv2.add(warped, 0, dtype=cv2.CV_8U)  # rounds and clips to [0, 255]


def back_to_image(
    rotation: np.ndarray | None,
    x0y0x1y1: tuple[int, ...],
    flipped: bool,
    height_width: tuple[int, int],
) -> np.ndarray:
    """The map from pixels of the result to the image, whose pixel centres are at integers.

    Args:
        rotation: (3, 3), of the image; None if it is not rotated.
        x0y0x1y1: the crop, pixels of the rotated image.
        flipped: whether the result is flipped, left to right.
        height_width: of the result.

    Returns:
        (3, 3) float64, for (x, y, 1).
    """
    x0, y0, x1, y1 = x0y0x1y1
    height, width = height_width
    sx = (x1 - x0) / width
    sy = (y1 - y0) / height
    back = np.array([[sx, 0, x0 + (sx - 1) / 2], [0, sy, y0 + (sy - 1) / 2], [0, 0, 1]])
    if flipped:
        back = back @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    return back if rotation is None else np.linalg.inv(rotation) @ back


class HalfResolution(A.ImageOnlyTransform):
    """Reduce an image to half its sides and enlarge it again, so that its sharpness tells less."""

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        height, width = img.shape
        half = cv2.resize(img, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        return cv2.resize(half, (width, height), interpolation=cv2.INTER_CUBIC)


def train_transform(image_size: int, rotate: float = 90, blur: float = 0) -> A.Compose:
    """Augment. Set the random state for each sample, or workers and epochs repeat each other.

    Args:
        image_size: side of the result, pixels.
        rotate: half of the images are rotated, by at most so many degrees.
        blur: share of the images that are reduced to half the resolution of the result.
    """
    cubic = cv2.INTER_CUBIC
    black = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0}
    size = (image_size, image_size)
    return A.Compose([
        # Deviation: the first three are one interpolation, at output size, instead of two.
        OneWarp(
            A.Rotate(limit=rotate, p=0.5, interpolation=cubic, **black),
            A.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3), interpolation=cubic),
            A.HorizontalFlip(p=0.5),
        ),
        A.RandomBrightnessContrast(brightness_limit=0.5, contrast_limit=0.5, p=0.5),
        *([HalfResolution(p=blur)] if blur > 0 else []),
        ToTensorV2(),  # then `normalize`, on the device
    ])  # fmt: skip


def eval_transform(image_size: int) -> partial[dict[str, Tensor]]:
    """Resize with OpenCV: bicubic, no antialiasing, as in training.

    (A Compose with only this step takes 1.5 times as long.)
    """
    return partial(resize, size=image_size)


def resize(image: np.ndarray, size: int) -> dict[str, Tensor]:
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return {"image": torch.from_numpy(resized)[None]}  # (1, S, S)


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Convert uint8 images to the network's input, the last step of both transforms.

    Applied per batch on the network's device: uint8 transfers from the workers four times as fast
    as float32.

    Args:
        images: (B, 1, S, S) uint8.
        mean, std: of intensities in [0, 1].

    Returns:
        (B, 1, S, S) float32, channels last.
    """
    # torch.add is a single pass over the images, and does not synchronise a GPU
    shift = torch.tensor(-mean / std)
    scaled = torch.add(shift, images, alpha=1 / (255 * std))
    return scaled.contiguous(memory_format=torch.channels_last)
