"""Running networks on images: compatibility checks and predictions."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pylon.baselines import Baseline
from pylon.data.chestxray14 import PATHOLOGIES, list_hashes
from pylon.data.sources import read_chestxray14
from pylon.experiment.card import make_card
from pylon.experiment.checkpoint import save_best
from pylon.experiment.evaluate import (
    images_at_a_time,
    images_of_a_batch,
    load_network,
    name_of_network,
    open_networks,
    predict_logits,
    require_numbers,
)
from pylon.experiment.options import EvaluationOptions, ScoreOptions
from pylon.model import Pylon
from pylon.system.errors import UserError


def test_checkpoint_and_data_must_fit(phantom, tmp_path, capsys):
    radiographs = read_chestxray14(phantom)
    hashes = list_hashes(phantom)
    best = tmp_path / "best"
    options = EvaluationOptions(data=phantom, cache_size=256)
    accelerator = Accelerator(cpu=True)

    def load(names=PATHOLOGIES, channels=1, image_size=256, lists=hashes):
        model = Pylon("tu-test_resnet", None, channels, len(names), decoder_channels=8)
        save_best(best, model, make_card(names, {"image_size": image_size}, "", lists, 0.5, 0.25))
        return load_network(options, radiographs, best, accelerator)

    _, card = load()
    assert card["class_names"] == list(PATHOLOGIES)
    assert capsys.readouterr().out == ""
    load(lists={**hashes, "test_list.txt": "0", "train_val_list.txt": "1"})
    note = "was trained with other versions of test_list.txt, train_val_list.txt than those of"
    assert note in capsys.readouterr().out
    sentence = "best was trained on the classes Mass, Hernia, which are not the Atelectasis, "
    with pytest.raises(UserError, match=sentence):
        load(names=("Mass", "Hernia"))
    with pytest.raises(UserError, match=r"trained on the classes Cardiomegaly, Atelectasis, "):
        load(names=(PATHOLOGIES[1], PATHOLOGIES[0], *PATHOLOGIES[2:]))
    sentence = "best takes 3 channels, but radiographs are read as one grey channel"
    with pytest.raises(UserError, match=sentence):
        load(channels=3)
    sentence = r"--cache-size 256 is below 512, the input size of .*best"
    with pytest.raises(UserError, match=sentence):
        load(image_size=512)
    options = ScoreOptions(data=phantom, num_workers=0, batch_size=2)
    images = radiographs.images[:2]
    opened = open_networks(options, {"0": best}, radiographs, images, accelerator)
    seed, model, card, loader = next(opened)
    assert (seed, model.training, card["image_size"]) == ("0", False, 512)
    assert next(iter(loader))["image"].shape == (2, 1, 512, 512)


def test_predictions_equal_the_network_output():
    accelerator = Accelerator(cpu=True)
    assert images_at_a_time(accelerator) == 8
    model = Pylon("tu-test_resnet", None, decoder_channels=8, classes=2)
    images = torch.randint(0, 256, (3, 1, 256, 256), dtype=torch.uint8)
    labels = torch.tensor([[0.0, 1], [1, 0], [1, 1]])
    items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    loader = accelerator.prepare(torch.utils.data.DataLoader(items))
    logits, read = predict_logits(model, loader, accelerator, "predicting", mean=0.5, std=0.25)
    with torch.no_grad():
        expected = model.eval()((images / 255 - 0.5) / 0.25).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_array_equal(read, labels)


def test_name_of_network():
    tiny = {"encoder_name": "tu-test_resnet", "encoder_weights": None}
    assert name_of_network(Pylon(**tiny)) == "pylon"
    assert name_of_network(Pylon(**tiny, up_modules=2)) == "ablated pylon"
    assert name_of_network(Pylon(**tiny, attention=False)) == "ablated pylon"
    assert name_of_network(Baseline("backbone", **tiny)) == "backbone"
    assert name_of_network(Baseline("unet", **tiny)) == "unet"


def test_scores_must_be_finite(tmp_path):
    require_numbers(np.array([[0.5, -3]]), tmp_path)
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="gives scores that are not finite numbers"):
            require_numbers(np.array([[0.5, value]]), tmp_path)


def test_batches_are_smaller_for_larger_images():
    assert [images_of_a_batch("cpu", size) for size in (256, 512, 1024)] == [8, 2, 1]
    assert [images_of_a_batch("cuda", size) for size in (256, 512, 4096)] == [128, 32, 1]
