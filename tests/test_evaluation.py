from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pylon.checkpoint import make_card, save_best
from pylon.chestxray14 import PATHOLOGIES, list_hashes, read_images
from pylon.cli import UserError
from pylon.evaluation import EvaluationOptions, ScoreOptions, images_at_a_time
from pylon.model import Pylon
from pylon.predict import predict_logits


def test_names_of_checkpoints():
    def label(path, **others):
        return EvaluationOptions(checkpoint=Path(path), **others).choose_checkpoints(())[0]

    assert label("save/pylon/0/best") == "pylon-0"
    assert label("elsewhere/model.pkl") == "model"
    assert label("elsewhere/exported") == "exported"
    assert label("elsewhere/exported", name="mine") == "mine"
    assert label("/weights/best") == "weights"
    assert label("/best") == "best"
    assert label("/a/best") == "a"
    assert label("/x/.pkl") == "pkl"
    with pytest.raises(UserError, match="--checkpoint names one checkpoint; leave the seeds out"):
        EvaluationOptions(checkpoint=Path("a")).choose_checkpoints((1,))


def test_checkpoint_and_data_must_fit(phantom, tmp_path, capsys):
    images, hashes = read_images(phantom), list_hashes(phantom)
    options = EvaluationOptions(data=phantom, cache_size=256)
    accelerator = Accelerator(cpu=True)

    def load(names=PATHOLOGIES, channels=1, image_size=256, lists=hashes):
        model = Pylon("tu-test_resnet", None, in_channels=channels, classes=len(names), decoder_channels=8)
        save_best(tmp_path / "best", model, make_card(list(names), {"image_size": image_size}, "", lists))
        return options.load(images, tmp_path / "best", accelerator)

    _, card = load()
    assert card["class_names"] == list(PATHOLOGIES)
    assert capsys.readouterr().out == ""
    load(lists={**hashes, "test_list.txt": "0", "train_val_list.txt": "1"})
    assert "was trained with another test_list.txt, another train_val_list.txt than" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"best knows the classes Mass, Hernia, the data Atelectasis, "):
        load(names=("Mass", "Hernia"))
    with pytest.raises(UserError, match=r"best knows the classes Cardiomegaly, Atelectasis, "):
        load(names=(PATHOLOGIES[1], PATHOLOGIES[0], *PATHOLOGIES[2:]))
    with pytest.raises(UserError, match="best takes 3 channels, but radiographs are read as one grey channel"):
        load(channels=3)
    with pytest.raises(UserError, match=r"--cache-size 256 is below the 512 pixels that .*best sees"):
        load(image_size=512)
    options = ScoreOptions(data=phantom, num_workers=0, batch_size=2)
    _, _, _, loader = next(options.networks({"0": tmp_path / "best"}, images[:2], accelerator))
    assert next(iter(loader))["image"].shape == (2, 1, 512, 512)


def test_predictions_are_those_of_the_network():
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
