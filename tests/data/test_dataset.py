import cv2
import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.dataset import EpochSampler, RadiographDataset, eval_loader, train_loader
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, train_transform
from pylon.system.errors import UserError
from pylon.system.parallel import look_at


def epochs_of(images, num_workers, seed=0, epochs=(1, 2)):
    """Augmented images by index, one dictionary per epoch."""
    loader, sampler = train_loader(images, PATHOLOGIES, train_transform(256), 4, num_workers, seed)
    result = []
    for epoch in epochs:
        sampler.epoch = epoch
        images_of_epoch = {}
        for batch in loader:
            images_of_epoch |= dict(zip(batch["index"].tolist(), batch["image"], strict=True))
        result.append(images_of_epoch)
    return result


@pytest.fixture(scope="module")
def images(phantom):
    return read_chestxray14(phantom).images[:12]


def test_augmentation_depends_only_on_epoch_and_seed(images):
    first, second = epochs_of(images, num_workers=0)
    assert first.keys() == second.keys() == set(range(12))
    assert all(not torch.equal(first[i], second[i]) for i in first)
    assert len({tuple(x.flatten()[::999].tolist()) for x in first.values()}) == 12
    for again in (epochs_of(images, num_workers=2), epochs_of(images, num_workers=0)):
        for before, now in zip((first, second), again, strict=True):
            assert all(torch.equal(before[i], now[i]) for i in before)
    (resumed,) = epochs_of(images, num_workers=2, epochs=(2,))
    assert all(torch.equal(second[i], resumed[i]) for i in second)
    (other,) = epochs_of(images, num_workers=0, seed=1, epochs=(1,))
    assert all(not torch.equal(first[i], other[i]) for i in first)


def test_augmentation_differs_between_images(images):
    same = images.iloc[[0, 0, 0, 0]].reset_index(drop=True)
    (epoch,) = epochs_of(same, num_workers=2, epochs=(1,))
    assert len({tuple(x.flatten()[::999].tolist()) for x in epoch.values()}) == 4


def test_sampler_gives_a_fixed_permutation_per_epoch():
    sampler = EpochSampler(np.zeros(50, bool), seed=3)
    sampler.epoch = 1
    order = list(sampler)
    assert order == list(sampler)
    assert sorted(index for _, index in order) == list(range(50))
    assert {epoch for epoch, _ in order} == {1}
    sampler.epoch = 2
    assert [index for _, index in sampler] != [index for _, index in order]


def test_sampler_draws_other_negatives_in_each_epoch():
    has_finding = np.arange(50) % 10 == 3
    sampler = EpochSampler(has_finding, seed=3, negatives=7)
    drawn = []
    for sampler.epoch in (1, 2):
        order = [index for _, index in sampler]
        assert len(sampler) == len(order) == len(set(order)) == 12
        assert {3, 13, 23, 33, 43} < set(order)
        assert sorted(order[:5]) != [3, 13, 23, 33, 43]  # mixed
        drawn.append(set(order))
    assert drawn[0] != drawn[1]
    assert len(EpochSampler(has_finding, seed=3, negatives=70)) == 50


def test_drawn_negatives_are_spread_over_the_epoch():
    """Few of many negatives: the last quarter of an epoch has its share of them, a fifth here."""
    has_finding = np.arange(10_000) % 10 < 4
    sampler = EpochSampler(has_finding, seed=3, negatives=1000)
    order = [index for _, index in sampler]
    quarters = (~has_finding[order]).reshape(4, -1).mean(axis=1)
    assert len(order) == 5000
    assert np.abs(quarters - 0.2).max() < 0.04


def test_no_two_seeds_and_epochs_share_order_or_augmentation(images):
    """Seed 0 in epoch 2 is not seed 1 in epoch 1, nor seed 1 in epoch 12 seed 11 in epoch 2."""
    orders = set()
    pictures = set()
    pairs = [(0, 2), (1, 1), (2, 0), (1, 2), (2, 1), (1, 12), (11, 2), (12, 1)]
    for seed, epoch in pairs:
        sampler = EpochSampler(np.zeros(50, bool), seed)
        sampler.epoch = epoch
        orders.add(tuple(index for _, index in sampler))
        dataset = RadiographDataset(images, PATHOLOGIES, train_transform(256), seed)
        pictures.add(dataset[epoch, 3]["image"].numpy().tobytes())
    assert len(orders) == len(pictures) == len(pairs)


def test_last_batch_of_one_image_is_dropped(images):
    loader, _ = train_loader(images, PATHOLOGIES, train_transform(256), 11, 0, 0)
    assert [len(batch["label"]) for batch in loader] == [11]
    loader, _ = train_loader(images, PATHOLOGIES, train_transform(256), 5, 0, 0)
    assert [len(batch["label"]) for batch in loader] == [5, 5, 2]


def test_memory_is_pinned_only_on_request(images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader, _ = train_loader(images, PATHOLOGIES, train_transform(256), 4, 0, 0)
    assert not loader.pin_memory
    assert not eval_loader(images, PATHOLOGIES, eval_transform(256), 4, 0).pin_memory
    assert eval_loader(images, PATHOLOGIES, eval_transform(256), 4, 0, None, True).pin_memory


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_do_not_change_torchs_random_state(images, num_workers):
    loader, sampler = train_loader(images, PATHOLOGIES, train_transform(256), 4, num_workers, 0)
    state = torch.get_rng_state()
    for sampler.epoch in (1, 2):
        list(loader)
    list(eval_loader(images, PATHOLOGIES, eval_transform(256), 4, num_workers))
    look_at(images["path"], len, num_workers, "looking")
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_item(images):
    loader = eval_loader(images, PATHOLOGIES, eval_transform(256), 5, 0)
    batch = next(iter(loader))
    assert batch["image"].shape == (5, 1, 256, 256)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == torch.float32
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]
    assert batch["height_width"].tolist() == [[HEIGHT, WIDTH]] * 5
    grey = cv2.imread(images["path"][0], cv2.IMREAD_GRAYSCALE)
    expected = cv2.resize(grey, (256, 256), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(batch["image"][0, 0], expected)
    np.testing.assert_array_equal(batch["label"][0], images.iloc[0, 4:].astype(float))


def test_worker_error_keeps_its_message(images, tmp_path):
    (tmp_path / "bad.png").touch()
    images = images.copy()
    images.loc[3, "path"] = str(tmp_path / "bad.png")
    with pytest.raises(UserError, match=r"bad.png cannot be read as an image"):
        list(eval_loader(images, PATHOLOGIES, eval_transform(256), 4, num_workers=1))
