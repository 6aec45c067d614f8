"""Preparing a network for training, and its loss."""

import dataclasses
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from pylon.data.radiographs import Radiographs, no_boxes
from pylon.model import Pylon, criterion
from pylon.system.errors import UserError
from pylon.training import preparation
from pylon.training.preparation import (
    LossWatch,
    check_split,
    count_known,
    facts_about,
    freeze_unused_parameters,
    leave_out_unreadable,
    loss_of_known,
    measure_intensities,
)


@pytest.mark.parametrize("name", ["efficientnet-b0", "tu-test_resnet"])
def test_parameters_without_gradients_are_frozen(name):
    model = Pylon(name, None, decoder_channels=8, classes=2)
    # with the statistics of a fresh batch norm, which no image may change
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    unused = freeze_unused_parameters(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {
        key for key, parameter in model.named_parameters() if not parameter.requires_grad
    } == set(unused)
    if name == "efficientnet-b0":
        assert "encoder._conv_head.weight" in unused
    else:
        assert unused == []
    with torch.random.fork_rng():
        model.train()(torch.randn(2, 1, 256, 256)).logits.sum().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is None} == set(
        unused
    )


def some_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    labels = torch.randint(0, 2, (6, 3), generator=generator).float()
    return logits, labels


def test_loss_of_known_labels_is_their_mean():
    logits, labels = some_labels()
    assert torch.equal(loss_of_known(logits, labels), criterion(logits, labels))
    labels[[0, 2, 5], [1, 0, 2]] = torch.nan
    is_known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    loss = loss_of_known(logits, labels, is_known.sum())
    assert loss.item() == pytest.approx(each[is_known].mean().item(), abs=1e-7)


@pytest.mark.parametrize("none_in_the_second", [False, True])
def test_loss_and_gradient_of_two_processes_average_to_those_of_one(none_in_the_second):
    logits, labels = some_labels()
    labels[[0, 1, 2, 3], [1, 1, 0, 2]] = torch.nan
    if none_in_the_second:
        labels[3:] = torch.nan
    logits.requires_grad_()

    def reduce(value, reduction):
        assert reduction == "sum"
        return (~labels.isnan()).sum()  # of both

    halves = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    known = count_known(labels[:3], SimpleNamespace(reduce=reduce))
    losses = [loss_of_known(*half, known, 2) for half in halves]
    (of_two,) = torch.autograd.grad(sum(losses) / 2, logits, retain_graph=True)
    whole = loss_of_known(logits, labels, known)
    (of_one,) = torch.autograd.grad(whole, logits)
    assert (sum(losses) / 2 - whole).abs() < 1e-6
    torch.testing.assert_close(of_two, of_one, atol=1e-6, rtol=0)
    assert (of_one[labels.isnan()] == 0).all()


def test_a_batch_of_few_images_weighs_less(tmp_path):
    """Two batches of five images and one of two: (5 * 1 + 5 * 2 + 2 * 9) / 12."""
    watch = LossWatch([5, 5, 2], 1, 1e-3, Accelerator(cpu=True), tmp_path)
    losses = {0: 1.0, 1: 2.0, 2: 9.0}
    for step, images in enumerate(watch):
        watch.add(torch.tensor(losses[step]), images)
    train_loss, images_per_second = watch.finish()
    assert train_loss == pytest.approx(33 / 12)
    assert images_per_second > 0
    # the first step that is not finite is named, counted from 1
    watch = LossWatch([5, 5, 2], 4, 1e-3, Accelerator(cpu=True), tmp_path)
    batches = iter(watch)
    watch.add(torch.tensor(1.0), next(batches))
    watch.add(torch.tensor(torch.nan), next(batches))
    with pytest.raises(UserError, match=r"epoch 4, step 2: the loss is not finite"):
        watch.add(torch.tensor(1.0), next(batches))


def radiographs_of(**labels) -> Radiographs:
    images = pd.DataFrame({
        "image_id": list("abcd"),
        "patient_id": range(4),
        "split": ["train", "train", "val", "test"],
        "path": "x",
        **labels,
    })  # fmt: skip
    return Radiographs(images, no_boxes(), tuple(labels), name="my.csv", notes=("read so",))


def test_classes_are_described():
    said = []
    data = radiographs_of(Mass=[0, 1, 0, 1], Edema=[0.0, np.nan, 1, 1], Hernia=[0, 0, 1, 1])
    check_split(data.images, data, said.append)
    assert said == [
        "my.csv: 2 images to train on, 1 to validate on",
        "note: read so",
        "note: Edema, Hernia: no positive training image, so it cannot be learned",
    ]
    data = radiographs_of(Mass=[0, 1, 0, 1], Edema=[np.nan, np.nan, 1, 1])
    with pytest.raises(UserError, match=r"my.csv: Edema is unknown in all training images; label"):
        check_split(data.images, data, said.append)
    data = radiographs_of(Mass=[0, 1, np.nan, 1])
    with pytest.raises(UserError, match=r"my.csv has no known label in the validation split"):
        check_split(data.images, data, said.append)


def test_images_of_the_test_split_are_not_looked_at(tmp_path):
    """They may be missing or damaged while a network is trained."""
    data = radiographs_of(Mass=[0, 1, 0, 1])
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for path in paths[:3]:
        cv2.imwrite(str(path), np.zeros((32, 48), np.uint8))
    paths[3].write_bytes(b"no image")
    images = data.images.assign(path=list(map(str, paths)))
    data = dataclasses.replace(data, images=images)
    accelerator = Accelerator(cpu=True)
    left = leave_out_unreadable(data, tmp_path, 0, 0, False, accelerator)
    assert left["image_id"].tolist() == list("abcd")
    paths[1].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b.png cannot be read .*\(1 of 3 images cannot be read"):
        leave_out_unreadable(data, tmp_path, 0, 0, False, accelerator)
    left = leave_out_unreadable(data, tmp_path, 0, 0, True, accelerator)
    assert left["image_id"].tolist() == list("acd")


def test_facts_count_patients_not_images():
    """Of the five training images four are of one patient, who has another in the test split."""
    data = radiographs_of(Mass=0)
    images = pd.concat([data.images[:1]] * 4 + [data.images]).reset_index(drop=True)
    images["image_id"] = images.index.astype(str)
    images["patient_id"] = [1, 1, 1, 1, 1, 2, 3, 1]
    facts = facts_about(images, data)
    assert facts["images"] == {"train": 6, "val": 1}
    assert facts["patients"] == {"train": 2, "val": 1}
    said = []
    check_split(images, data, said.append)
    assert said[1] == "note: 1 of the 1 patients of the test split are also in the training split"


def test_intensities_are_measured_on_the_networks_input(tmp_path, rng, monkeypatch):
    paths = []
    for k in range(3):
        paths.append(str(tmp_path / f"{k}.png"))
        cv2.imwrite(paths[k], rng.integers(0, 256, (256, 256), np.uint8))
    images = pd.DataFrame({"image_id": paths, "path": paths, "Mass": 0})
    mean, std = measure_intensities(images, ("Mass",), 256, None, 0)
    pixels = np.stack([cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths]) / 255
    assert mean == pytest.approx(pixels.mean(), abs=1e-9)
    assert std == pytest.approx(pixels.std(), abs=1e-9)
    # some of many: any two, not the first two
    monkeypatch.setattr(preparation, "MEASURED_IMAGES", 2)
    few = [measure_intensities(images.iloc[order], ("Mass",), 256, None, 0)[0] * 255
           for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1])]  # fmt: skip
    means = pixels.mean(axis=(1, 2)) * 255
    pairs = sorted([means[[0, 1]].mean(), means[[1, 2]].mean(), means[[0, 2]].mean()])
    assert sorted(few) == pytest.approx(pairs)
    assert few[0] != pytest.approx(means[:2].mean())
    for path in paths:
        cv2.imwrite(path, np.full((32, 32), 7, np.uint8))
    with pytest.raises(UserError, match="--normalize data: all training images have the same"):
        measure_intensities(images, ("Mass",), 256, None, 0)
