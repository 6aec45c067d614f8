"""Encoders that are unknown or unsuitable, and weights that are unavailable."""

import pytest
import torch

from pylon.encoders import ArgumentError, build_encoder, has_four_strides
from pylon.model import Pylon


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet5", "unknown; did you mean resnet"),
        ("tu-resnet188", "unknown; did you mean tu-resnet1"),
        ("tu-vit_tiny_patch16_224", "tu-vit_tiny_patch16_224"),
        ("tu-swin_tiny_patch4_window7_224", "cannot be used: Input height"),
        ("tu-inception_v3", "strides 4, 8, 16 and 32"),
        ("qqqqqqqq", "see segmentation-models-pytorch's list"),
    ],
)
def test_unknown_or_unsuitable_encoder(name, sentence):
    with pytest.raises(ValueError, match=rf"^encoder_name .*{sentence}"):
        Pylon(name, None)


def test_unavailable_encoder_weights():
    with pytest.raises(ValueError, match=r"^encoder_weights flowers"):
        Pylon("resnet18", "flowers")
    sentence = r"^encoder_weights imagenet: timm has no weights for tu-cspresnet50d"
    with pytest.raises(ValueError, match=sentence):
        Pylon("tu-cspresnet50d", "imagenet")


def test_errors_name_the_argument():
    with pytest.raises(ArgumentError, match=r"^encoder_name resnet5 is unknown; .*\?$") as raised:
        build_encoder("resnet5", None, 1)
    assert raised.value.argument == "encoder_name"
    with pytest.raises(ArgumentError) as raised:
        build_encoder("resnet18", "flowers", 1)
    assert raised.value.argument == "encoder_weights"


def test_strides_are_checked_by_running_the_encoder():
    encoder = build_encoder("tu-test_resnet", None, 1)
    assert has_four_strides(encoder, 1)
    assert encoder.training
    with torch.device("meta"):  # built only for its shapes
        assert has_four_strides(build_encoder("resnet18", None, 1), 1)
