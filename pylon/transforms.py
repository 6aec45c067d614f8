"""The paper's transforms: (H, W) uint8 -> (1, S, S) float32, normalised."""

import albumentations as A
import cv2
from albumentations.pytorch import ToTensorV2

MEAN, STD = 0.4984, 0.2483  # of intensities in [0, 1], protocol of the 2020 code


def train_transform(image_size: int) -> A.Compose:
    """Augment. The caller seeds it for each sample, `set_random_seed`, or every worker and epoch repeats itself."""
    return A.Compose([
        A.Rotate(limit=90, p=0.5, interpolation=cv2.INTER_CUBIC, border_mode=cv2.BORDER_CONSTANT, fill=0),
        A.RandomResizedCrop(
            (image_size, image_size), scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_CUBIC
        ),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.5, contrast_limit=0.5, p=0.5),
        A.Normalize(mean=(MEAN,), std=(STD,), max_pixel_value=255.0),
        ToTensorV2(),
    ])  # fmt: skip


def eval_transform(image_size: int, mean: float = MEAN, std: float = STD) -> A.Compose:
    """Resize (bicubic, no antialiasing: OpenCV's, as in training) and normalise."""
    return A.Compose([
        A.Resize(image_size, image_size, interpolation=cv2.INTER_CUBIC),
        A.Normalize(mean=(mean,), std=(std,), max_pixel_value=255.0),
        ToTensorV2(),
    ])  # fmt: skip
