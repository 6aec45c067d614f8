import random

import cv2
import numpy as np
import pytest
import torch

from pylon.data.cache import shrink
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.dataset import train_loader
from pylon.data.gpu_augment import DrawnTransform, augment_on_device, cubic_weights
from pylon.data.images import read_image
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import train_transform

SIZE = 300  # of the images, as a cache would have them
RESULT = 128
SHAPES = ((300, 300), (300, 210), (180, 300), (90, 120))


@pytest.fixture(scope="module")
def images(phantom):
    """60 radiographs in four shapes: those of the phantom, the first of them again."""
    paths = np.resize(read_chestxray14(phantom).images["path"].to_numpy(), 60)
    return [
        cv2.resize(read_image(path), SHAPES[k % 4][::-1], interpolation=cv2.INTER_CUBIC)
        for k, path in enumerate(paths)
    ]


def augment(transform, images) -> list[dict]:
    """Augment each image with its own random numbers."""
    results = []
    for k, image in enumerate(images):
        transform.set_random_state(np.random.default_rng(k), random.Random(k))
        results.append(transform(image=image))
    return results


def test_images_are_those_of_the_workers(images):
    transform = train_transform(RESULT)
    expected = []
    kinds = []
    for k, image in enumerate(images):
        transform.set_random_state(np.random.default_rng(k), random.Random(k))
        expected.append(transform(image=image)["image"])
        warp, light, _ = transform
        kind = (warp.params["rotation"] is not None, warp.params["flipped"], bool(light.params))
        kinds.append((*kind, k % 4))
    assert len({kind[:3] for kind in kinds}) == 8  # all occur
    assert len({(rotated, shape) for rotated, _, _, shape in kinds}) == 8

    items = augment(DrawnTransform(RESULT, SIZE), images)
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    assert batch["image"].shape == (60, 1, SIZE, SIZE)
    ours = augment_on_device(batch, RESULT)
    assert ours.shape == (60, 1, RESULT, RESULT)
    assert ours.dtype == torch.uint8
    apart = (ours.int() - torch.stack(expected).int()).abs().flatten(1).float()
    assert apart.mean(1).max() < 0.02  # grey levels, on average over any image
    is_rotated = torch.tensor([kind[0] for kind in kinds])
    assert apart[~is_rotated].max() <= 2


def test_same_random_numbers_as_the_workers():
    image = np.zeros((60, 50), np.uint8)
    plain = train_transform(256)
    drawn = DrawnTransform(256, 64)
    for seed in range(200):
        for transform in (plain, drawn):
            transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
            transform(image=image)
        warp, light, _ = plain
        for key in ("x0y0x1y1", "flipped"):
            assert warp.params[key] == drawn.warp.params[key]
        np.testing.assert_array_equal(warp.params["rotation"], drawn.warp.params["rotation"])
        light_of = [{key: step.params.get(key) for key in ("alpha", "beta")} for step in (
            light, drawn.light
        )]  # fmt: skip
        assert light_of[0] == light_of[1]


def test_brightness_and_contrast_are_equal_to_albumentations(rng):
    """On every grey level: a crop that is not resized, as interpolation would round otherwise."""
    image = rng.integers(0, 256, (256, 256), dtype=np.uint8)
    light = train_transform(256)[1]
    for alpha, beta in ((0.5, 100.3), (1.5, -127.5), (1.2345, 0.1), (0.77, -3.9)):
        expected = light.apply(image, alpha=alpha, beta=beta)
        row = [1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 0, alpha, beta]
        batch = {
            "image": torch.from_numpy(image)[None, None],
            "augmentation": torch.tensor([row], dtype=torch.float32),
        }
        np.testing.assert_array_equal(augment_on_device(batch, 256)[0, 0], expected)


def test_each_image_of_a_batch_has_its_own_parameters(images):
    items = augment(DrawnTransform(RESULT, SIZE), images[:4])
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    together = augment_on_device(batch, RESULT)
    for k in range(4):
        alone = augment_on_device({key: value[k : k + 1] for key, value in batch.items()}, RESULT)
        assert torch.equal(alone[0], together[k])


def test_pixels_beyond_a_smaller_image_are_never_read(images):
    items = augment(DrawnTransform(RESULT, SIZE), images[:12])
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    expected = augment_on_device(batch, RESULT)
    for picture, image in zip(batch["image"], images, strict=False):
        height, width = image.shape
        picture[:, height:] = 255
        picture[:, :, width:] = 255
    assert torch.equal(augment_on_device(batch, RESULT), expected)


def test_weights_are_those_of_torch():
    """Upsampled by two, a place lies a quarter of a pixel before or behind one of the image."""
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4] = 1
    large = torch.nn.functional.interpolate(impulse, scale_factor=2, mode="bicubic")[0, 0, :, 0]
    far, near, next_, last = cubic_weights(torch.tensor(0.25))
    expected = torch.stack([far, near, next_, last]).flip(0)
    torch.testing.assert_close(large[5:13:2], expected)


def test_loader_passes_parameters_on(phantom, images):
    table = read_chestxray14(phantom).images[:6]
    drawn = DrawnTransform(256, 128)
    batches = []
    for workers in (0, 2):
        loader, sampler = train_loader(table, PATHOLOGIES, drawn, 3, workers, seed=1)
        sampler.epoch = 2
        batches.append(list(loader))
    for one, other in zip(*batches, strict=True):
        assert one["augmentation"].shape == (3, 13)
        assert torch.equal(one["augmentation"], other["augmentation"])
        assert torch.equal(one["image"], other["image"])
    whole = shrink(read_image(table["path"].iloc[int(batches[0][0]["index"][0])]), 128)
    filled = batches[0][0]["image"][0, 0, : whole.shape[0], : whole.shape[1]]
    np.testing.assert_array_equal(filled, whole)
