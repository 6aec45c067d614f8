"""The baselines, and building a network from its config."""

import json

import pytest
import segmentation_models_pytorch as smp
import torch

import pylon
from pylon import baselines
from pylon.baselines import Baseline, build_network
from pylon.checkpoints.checkpoint import save_best
from pylon.checkpoints.training_json import make_card
from pylon.model import Pylon

ENCODER = "tu-test_resnet"
NETS = sorted(set(smp.MODEL_ARCHITECTURES_MAPPING) - {"dpt"})
IMAGES = torch.linspace(-2, 2, 2 * 256 * 256).reshape(2, 1, 256, 256).sin()


@pytest.mark.parametrize("name", ["backbone", *NETS])
def test_shape_of_maps_and_logits_are_their_maxima(name):
    model = Baseline(name, ENCODER, None, classes=3).eval()
    with torch.no_grad():
        logits, maps = model(IMAGES)
    side = 8 if name == "backbone" else 256
    assert maps.shape == (2, 3, side, side)
    assert maps.dtype == torch.float32
    assert torch.equal(logits, maps.amax(dim=(2, 3)))


@pytest.mark.parametrize("name", ["unet", "fpn", "deeplabv3"])
def test_segmentation_nets_equal_those_of_smp(name):
    model = Baseline(name, ENCODER, None, classes=3).eval()
    theirs = smp.create_model(name, ENCODER, None, 1, 3).eval()
    theirs.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES).maps, theirs(IMAGES))


def test_backbone_with_average_pooling_is_the_classic_cam_net():
    model = Baseline("backbone", ENCODER, None, classes=3, pool="avg").eval()
    with torch.no_grad():
        logits, maps = model(IMAGES)
        # global average pooling, then a linear layer
        pooled = model.encoder(IMAGES)[-1].mean(dim=(2, 3))
        linear = torch.nn.functional.linear(pooled, model.segmentation_head[0].weight[:, :, 0, 0])
    torch.testing.assert_close(logits, linear + model.segmentation_head[0].bias)
    torch.testing.assert_close(logits, maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(("name", "pool"), [("backbone", "avg"), ("linknet", "max")])
def test_save_and_load_round_trip(tmp_path, name, pool):
    model = Baseline(name, ENCODER, None, classes=2, pool=pool).eval()
    card = make_card(["one", "two"], {"image_size": 256}, "abc", {}, 0.5, 0.25)
    save_best(tmp_path / "best", model, card)
    config = json.loads((tmp_path / "best/config.json").read_text())
    assert config["model"] == name
    assert config["kind"] == "baseline"
    again = pylon.load_pylon(tmp_path / "best")
    assert isinstance(again, Baseline)
    with torch.no_grad():
        assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)
    model.save_pretrained(tmp_path / "exported")
    assert isinstance(pylon.load_pylon(tmp_path / "exported"), Baseline)
    assert Baseline.from_pretrained(tmp_path / "exported").pool == pool


@pytest.mark.parametrize("name", ["backbone", "deeplabv3plus", "pspnet"])
def test_pretrained_encoder_weights_are_copied(monkeypatch, name):
    torch.manual_seed(1)
    trained = baselines.build_encoder(ENCODER, None, 1)
    monkeypatch.setattr(baselines, "build_encoder", lambda *_: trained)
    model = Baseline(name, ENCODER, "imagenet", classes=2)
    theirs = trained.state_dict()
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, theirs[key])


def test_invalid_arguments():
    with pytest.raises(ValueError, match=r"^model fnp is unknown; did you mean fpn"):
        Baseline("fnp", ENCODER, None)
    with pytest.raises(ValueError, match=r"^model dpt is unknown"):
        Baseline("dpt", ENCODER, None)
    with pytest.raises(ValueError, match=r"^pool must be one of max, avg, lse, top, pcam, got sum"):
        Baseline("fpn", ENCODER, None, pool="sum")
    with pytest.raises(ValueError, match=r"^encoder_name resnet51 is unknown"):
        Baseline("fpn", "resnet51", None)
    with pytest.raises(ValueError, match="at least 2 images per batch"):
        Baseline("deeplabv3", ENCODER, None)(IMAGES[:1])
    with pytest.raises(ValueError, match=r"^model linknet cannot be used with the encoder mit_b0"):
        Baseline("linknet", "mit_b0", None)


def test_networks_are_built_from_their_configs():
    arguments = {"encoder_name": ENCODER, "encoder_weights": None, "classes": 2}
    pylon_of = {**arguments, "decoder_channels": 8, "up_layers": 2}
    for config in (pylon_of, {**pylon_of, "kind": "pylon"}):  # earlier versions have no kind
        network = build_network(config)
        assert isinstance(network, Pylon)
        assert len(network.decoder.up3.conv1) == 2
    baseline = {**arguments, "model": "backbone", "pool": "avg"}
    for config in (baseline, {**baseline, "kind": "baseline"}):
        network = build_network(config)
        assert isinstance(network, Baseline)
        assert (network.pool, network.decoder) == ("avg", None)
        assert config["model"] == "backbone"  # the config is not modified
    with pytest.raises(ValueError, match=r"^kind must be one of pylon, baseline, got tree"):
        build_network({**arguments, "kind": "tree"})
