"""Starting from another checkpoint: what fits is taken, by class name in the head."""

from types import SimpleNamespace

import pytest
import torch

from pylon.baselines import Baseline
from pylon.checkpoints.checkpoint import save_best
from pylon.checkpoints.training_json import make_card
from pylon.hub import Description
from pylon.model import Pylon
from pylon.options import TrainOptions
from pylon.system.errors import UserError
from pylon.training import initial
from pylon.training.initial import take_from_checkpoint

ENCODER = ("tu-test_resnet", None)


def saved(folder, names, model=None):
    torch.manual_seed(5)
    model = model or Pylon(*ENCODER, classes=len(names), decoder_channels=8)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape))
    model.description = Description(tuple(names), 0.5, 0.25, 256)
    model.save_pretrained(folder)
    return model


def test_rows_of_the_head_follow_the_class_names(tmp_path):
    other = saved(tmp_path / "other", ["Mass", "Edema", "Hernia"])
    net = Pylon(*ENCODER, classes=2, decoder_channels=8)
    head = net.segmentation_head[0]
    before = (head.weight[0].clone(), head.bias[0].clone())
    said = take_from_checkpoint(net, ("Nodule", "Edema"), tmp_path / "other")
    count = len(net.state_dict())
    assert said == [
        f"{count} of {count} tensors taken from {tmp_path}/other",
        "new classes: Nodule; of the head, the rows of Edema were taken",
        "it was trained with intensities of mean 0.5000 and standard deviation 0.2500",
    ]
    for name, value in net.state_dict().items():
        if not name.startswith("segmentation_head"):
            assert torch.equal(value, other.state_dict()[name]), name
    assert torch.equal(head.weight[1], other.segmentation_head[0].weight[1])
    assert torch.equal(head.bias[1], other.segmentation_head[0].bias[1])
    assert torch.equal(head.weight[0], before[0])
    assert torch.equal(head.bias[0], before[1])


def test_same_classes_in_another_order(tmp_path):
    other = saved(tmp_path / "other", ["a", "b"])
    net = Pylon(*ENCODER, classes=2, decoder_channels=8)
    said = take_from_checkpoint(net, ("b", "a"), tmp_path / "other")
    assert len(said) == 2
    assert "tensors taken" in said[0]
    assert torch.equal(net.segmentation_head[0].weight.flip(0), other.segmentation_head[0].weight)


def test_another_kind_of_network_gives_its_encoder(tmp_path):
    other = saved(tmp_path / "other", ["a"], Baseline("backbone", *ENCODER, classes=1))
    net = Pylon(*ENCODER, classes=1, decoder_channels=8)
    decoder = {key: value.clone() for key, value in net.decoder.state_dict().items()}
    said = take_from_checkpoint(net, ("a",), tmp_path / "other")
    assert said[1] == "only its encoder fits: it is another kind of network"
    for name, value in net.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[name])
    assert all(torch.equal(value, decoder[key]) for key, value in net.decoder.state_dict().items())


def test_a_network_of_the_same_library_gives_its_encoder_alone(tmp_path):
    """Decoders of U-Net and MA-Net have tensors of one name and shape that mean other things."""
    other = saved(tmp_path / "other", ["a"], Baseline("unet", *ENCODER, classes=1))
    net = Baseline("manet", *ENCODER, classes=1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    given = other.state_dict()
    alike = [name for name in given if name in before and given[name].shape == before[name].shape]
    assert any(name.startswith("decoder.") for name in alike)
    assert any(name.startswith("segmentation_head.") for name in alike)
    said = take_from_checkpoint(net, ("a",), tmp_path / "other")
    assert said[1] == "only its encoder fits: it is another kind of network"
    for name, value in net.state_dict().items():
        expected = given if name.startswith("encoder.") else before
        assert torch.equal(value, expected[name]), name


def test_a_wider_decoder_takes_what_fits(tmp_path):
    saved(tmp_path / "other", ["a"])
    net = Pylon(*ENCODER, classes=1, decoder_channels=16)
    said = take_from_checkpoint(net, ("a",), tmp_path / "other")
    assert said[1] == "new classes: a; random head"
    assert net.segmentation_head[0].bias.item() != 0  # fits, and is taken


def test_a_split_that_was_drawn_must_be_that_of_the_other_checkpoint(tmp_path):
    """Or what the other network has learnt from might be in the test split."""
    torch.manual_seed(0)
    other = Pylon(*ENCODER, classes=1, decoder_channels=8)
    card = make_card(["a"], {"image_size": 256}, "", {"my.csv": "drawn"}, 0.5, 0.25)
    save_best(tmp_path / "other", other, card)
    net = Pylon(*ENCODER, classes=1, decoder_channels=8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"other was not trained on it as it is now: a random"):
        take_from_checkpoint(net, ("a",), tmp_path / "other", "another")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    take_from_checkpoint(net, ("a",), tmp_path / "other", "drawn")
    given = other.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("weights", "init_from", "pretrained", "expected"),
    [
        ("imagenet", None, True, "imagenet"),
        ("None", None, True, None),
        ("imagenet", None, False, None),  # a run that is resumed
        ("imagenet", "other", True, None),  # the checkpoint's take their place
    ],
)
def test_what_is_downloaded(tmp_path, monkeypatch, weights, init_from, pretrained, expected):
    saved(tmp_path / "other", ["a"])
    asked = []

    def build_network(config):
        asked.append(config["encoder_weights"])
        return Pylon(*ENCODER, classes=1, decoder_channels=8)

    monkeypatch.setattr(initial, "build_network", build_network)
    options = TrainOptions(
        encoder_name=ENCODER[0],
        encoder_weights=weights,
        init_from=init_from and tmp_path / init_from,
    )
    radiographs = SimpleNamespace(class_names=("a",), drawn_from=None)
    _, said = initial.build(options, radiographs, pretrained)
    assert asked[0] == expected
    assert (said != []) == (init_from is not None)


def test_other_encoders_are_refused(tmp_path):
    saved(tmp_path / "other", ["a"])
    net = Pylon("resnet18", None, classes=1)
    with pytest.raises(UserError, match=r"--init-from .* has the encoder tu-test_resnet with 1"):
        take_from_checkpoint(net, ("a",), tmp_path / "other")
    net = Pylon(*ENCODER, in_channels=3, classes=1)
    with pytest.raises(UserError, match=r"not tu-test_resnet with 3; choose"):
        take_from_checkpoint(net, ("a",), tmp_path / "other")
    with pytest.raises(UserError, match="there is no checkpoint at"):
        take_from_checkpoint(net, ("a",), tmp_path / "nowhere")
