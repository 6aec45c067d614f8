import json

import pytest
import segmentation_models_pytorch as smp
import torch

import pylon
from pylon import baselines, checkpoint
from pylon.baselines import Baseline
from pylon.cli import UserError

ENCODER = "tu-test_resnet"
NETS = sorted(set(smp.MODEL_ARCHITECTURES_MAPPING) - {"dpt"})
IMAGES = torch.linspace(-2, 2, 2 * 256 * 256).reshape(2, 1, 256, 256).sin()


@pytest.mark.parametrize("name", ["backbone", *NETS])
def test_maps_and_logits(name):
    model = Baseline(name, ENCODER, None, classes=3).eval()
    with torch.no_grad():
        logits, maps = model(IMAGES)
    side = 8 if name == "backbone" else 256
    assert maps.shape == (2, 3, side, side)
    assert maps.dtype == torch.float32
    assert torch.equal(logits, maps.amax(dim=(2, 3)))


@pytest.mark.parametrize("name", ["unet", "fpn", "deeplabv3"])
def test_segmentation_nets_are_smps_own(name):
    model = Baseline(name, ENCODER, None, classes=3).eval()
    theirs = smp.create_model(name, ENCODER, None, 1, 3).eval()
    theirs.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES).maps, theirs(IMAGES))


def test_mean_of_maps_is_the_classic_cam_net():
    model = Baseline("backbone", ENCODER, None, classes=3, pool="avg").eval()
    with torch.no_grad():
        logits, maps = model(IMAGES)
        pooled = model.encoder(IMAGES)[-1].mean(dim=(2, 3))  # global average pooling, then a linear layer
        linear = torch.nn.functional.linear(pooled, model.segmentation_head[0].weight[:, :, 0, 0])
    torch.testing.assert_close(logits, linear + model.segmentation_head[0].bias)
    torch.testing.assert_close(logits, maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(("name", "pool"), [("backbone", "avg"), ("linknet", "max")])
def test_round_trip(tmp_path, name, pool):
    model = Baseline(name, ENCODER, None, classes=2, pool=pool).eval()
    card = checkpoint.make_card(["one", "two"], {"image_size": 256}, "abc", {})
    checkpoint.save_best(tmp_path / "best", model, card)
    assert json.loads((tmp_path / "best/config.json").read_text())["model"] == name
    again = pylon.load_pylon(tmp_path / "best")
    assert isinstance(again, Baseline)
    with torch.no_grad():
        assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)
    model.save_pretrained(tmp_path / "exported")
    assert isinstance(pylon.load_pylon(tmp_path / "exported"), Baseline)
    assert Baseline.from_pretrained(tmp_path / "exported").pool == pool


@pytest.mark.parametrize("name", ["backbone", "deeplabv3plus", "pspnet"])
def test_weights_of_the_encoder_are_taken_over(monkeypatch, name):
    torch.manual_seed(1)
    trained = baselines.build_encoder(ENCODER, None, 1)
    monkeypatch.setattr(baselines, "build_encoder", lambda *_: trained)
    model = Baseline(name, ENCODER, "imagenet", classes=2)
    theirs = trained.state_dict()
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, theirs[key])


def test_unknown_and_unfit():
    with pytest.raises(UserError, match="--model fnp is unknown; did you mean fpn"):
        Baseline("fnp", ENCODER, None)
    with pytest.raises(UserError, match="--model dpt is unknown"):
        Baseline("dpt", ENCODER, None)
    with pytest.raises(UserError, match="--pool avg is not for --model fpn"):
        Baseline("fpn", ENCODER, None, pool="avg")
    with pytest.raises(UserError, match="--encoder-name resnet51 is unknown"):
        Baseline("fpn", "resnet51", None)
    with pytest.raises(UserError, match="at least 2 images a batch"):
        Baseline("deeplabv3", ENCODER, None)(IMAGES[:1])
    with pytest.raises(UserError, match="--model linknet cannot be used with --encoder-name mit_b0"):
        Baseline("linknet", "mit_b0", None)
