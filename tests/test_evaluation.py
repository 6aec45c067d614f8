from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pylon.cli import UserError
from pylon.evaluation import EvaluationOptions, images_at_a_time
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
