import itertools
import random

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from scipy.stats import kstest

from pylon.data.chestxray14 import MEAN, PATHOLOGIES, STD
from pylon.data.dataset import RadiographDataset
from pylon.data.images import read_image
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import (
    HalfResolution,
    OneWarp,
    eval_transform,
    normalize,
    train_transform,
)

MEAN_DIFFERENCE = 0.29  # grey levels


def the_steps_one_by_one(transform: A.Compose) -> A.Compose:
    """The chain of albumentations' own transforms that the training transform replaces."""
    warp, *rest = transform
    return A.Compose([warp.rotate, warp.crop, warp.flip, *rest])


def apply(transform: A.Compose, image: np.ndarray, seed: int) -> np.ndarray:
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform(image=image)["image"].numpy()[0].astype(int)


def differences(images: list[np.ndarray], seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare the one warp with the plain chain, for each image and seed.

    Returns:
        (N,) mean difference, grey levels; (N,) whether the image was rotated.
    """
    ours = train_transform(256)
    chain = the_steps_one_by_one(train_transform(256))
    means = []
    rotated = []
    for seed, (image, _) in enumerate(itertools.product(images, range(seeds))):
        means.append(np.abs(apply(ours, image, seed) - apply(chain, image, seed)).mean())
        rotated.append(ours[0].params["rotation"] is not None)
    return np.array(means), np.array(rotated)


def test_one_warp_matches_the_plain_chain(phantom):
    paths = read_chestxray14(phantom).images["path"][:6]
    shapes = ((400, 400), (300, 400))
    images = [
        cv2.resize(read_image(path), shape, interpolation=cv2.INTER_CUBIC)
        for path in paths
        for shape in shapes
    ]
    means, rotated = differences(images, 20)
    assert 0.3 < rotated.mean() < 0.7
    assert (means[~rotated] == 0).all()
    assert means.mean() <= MEAN_DIFFERENCE
    assert means[rotated].mean() > 0  # they are different implementations


@pytest.mark.parametrize("size", [512, 1024])
def test_one_warp_matches_the_plain_chain_on_radiographs(shared, size):
    paths = sorted((shared / "nih14" / "images").iterdir())[:12]
    images = [
        cv2.resize(read_image(str(path)), (size, size), interpolation=cv2.INTER_AREA)
        for path in paths
    ]
    means, rotated = differences(images, 10)
    assert (means[~rotated] == 0).all()
    assert means.mean() <= MEAN_DIFFERENCE


def test_same_parameters_as_the_plain_chain():
    image = np.zeros((60, 50), np.uint8)
    warp = train_transform(256)[0]
    chain = A.Compose([warp.rotate, warp.crop, warp.flip], save_applied_params=True)
    ours = A.Compose([warp], save_applied_params=True)
    angles = []
    areas = []
    flips = []
    for seed in range(2000):
        drawn = []
        for transform in (chain, ours):
            transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
            drawn.append(dict(transform(image=image)["applied_transforms"]))
        plain = drawn[0]
        one = drawn[1]["OneWarp"]
        assert ("HorizontalFlip" in plain) == one["flipped"]
        assert plain["RandomResizedCrop"]["crop_coords"] == one["x0y0x1y1"]
        if "Rotate" in plain:
            np.testing.assert_array_equal(plain["Rotate"]["matrix"], one["rotation"])
            angles.append(np.rad2deg(np.arctan2(one["rotation"][0, 1], one["rotation"][0, 0])))
        else:
            assert one["rotation"] is None
        x0, y0, x1, y1 = one["x0y0x1y1"]
        areas.append((x1 - x0) * (y1 - y0) / image.size)
        flips.append(one["flipped"])
    assert abs(len(angles) / 2000 - 0.5) < 0.05
    assert abs(np.mean(flips) - 0.5) < 0.05
    assert kstest(angles, "uniform", args=(-90, 180)).pvalue > 0.001
    assert 0.65 < min(areas) < 0.75 < max(areas)


def test_random_choices_for_one_image_are_independent(phantom):
    images = read_chestxray14(phantom).images[:1]
    dataset = RadiographDataset(images, PATHOLOGIES, train_transform(256), seed=5)
    counts = dict.fromkeys(itertools.product((False, True), repeat=3), 0)
    for epoch in range(400):
        dataset[(epoch, 0)]
        warp, light, *_ = dataset.transform
        counts[warp.params["rotation"] is not None, warp.params["flipped"], bool(light.params)] += 1
    assert min(counts.values()) > 25  # 50 of each are expected
    assert max(counts.values()) < 80


def test_training_transform_follows_the_protocol():
    kinds = [type(step) for step in train_transform(256)]
    assert kinds[1:] == [A.RandomBrightnessContrast, A.pytorch.ToTensorV2]
    warp, light, _ = train_transform(512)
    assert isinstance(warp, OneWarp)
    assert (warp.rotate.limit, warp.rotate.p, warp.rotate.fill) == ((-90, 90), 0.5, 0)
    assert warp.rotate.interpolation == warp.crop.interpolation == cv2.INTER_CUBIC
    crop = warp.crop
    assert (crop.size, crop.scale) == ((512, 512), (0.7, 1.0))
    assert (crop.ratio, crop.p) == ((3 / 4, 4 / 3), 1)
    assert warp.flip.p == light.p == 0.5
    assert light.brightness_limit == light.contrast_limit == (-0.5, 0.5)


def test_normalize_matches_albumentations(rng):
    image = rng.integers(0, 256, (256, 256), dtype=np.uint8)
    expected = A.Normalize(mean=(MEAN,), std=(STD,), max_pixel_value=255.0)(image=image)["image"]
    batch = torch.stack([eval_transform(256)(image=image)["image"]] * 2)
    out = normalize(batch, MEAN, STD)
    assert out.dtype == torch.float32
    assert out.shape == (2, 1, 256, 256)
    np.testing.assert_allclose(out[1, 0], expected, atol=1e-6)
    np.testing.assert_allclose(normalize(batch, 0.5, 0.25)[0, 0], image / 255 / 0.25 - 2, atol=1e-6)


def test_half_resolution_keeps_size_and_loses_detail():
    stripes = np.zeros((6, 8), np.uint8)
    stripes[:, ::2] = 200  # columns of one pixel
    stripes[3:] = 40
    blurred = HalfResolution(p=1)(image=stripes)["image"]
    assert blurred.shape == (6, 8)
    assert np.ptp(blurred[0].astype(int)) == 0
    assert int(blurred[0, 0]) == pytest.approx(100, abs=9)  # cubic, so it overshoots a little
    assert int(blurred[5, 0]) == pytest.approx(40, abs=9)


def test_train_transform_blurs_and_rotates_as_asked():
    assert [type(step) for step in train_transform(256)].count(HalfResolution) == 0
    warp, _, blur, _ = train_transform(256, rotate=10, blur=0.25)
    assert warp.rotate.limit == (-10, 10)
    assert blur.p == 0.25
