"""Preparing a network for training."""

import pytest
import torch

from pylon.experiment.training import freeze_unused_parameters
from pylon.model import Pylon


@pytest.mark.parametrize("name", ["efficientnet-b0", "tu-test_resnet"])
def test_parameters_without_gradients_are_frozen(name):
    model = Pylon(name, None, decoder_channels=8, classes=2)
    model.encoder.eval()  # with batch norm frozen, which must stay so
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
