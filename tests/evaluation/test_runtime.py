import json

import numpy as np
import pytest
import torch

import pylon
from pylon.baselines import Baseline
from pylon.data.transforms import normalize
from pylon.evaluation import runtime
from pylon.heatmaps import heatmaps_of
from pylon.model import Pylon
from pylon.prediction import onnx_export as export
from pylon.system.errors import UserError

NAMES = ("Mass", "Nodule", "Hernia")
NETWORKS = {
    "pylon": lambda: Pylon("tu-test_resnet", None, classes=3),
    "backbone avg": lambda: Baseline("backbone", "tu-test_resnet", None, classes=3, pool="avg"),
    # they pool to 3 and 6 cells, which do not divide theirs
    "pspnet": lambda: Baseline("pspnet", "tu-test_resnet", None, classes=3),
    "upernet": lambda: Baseline("upernet", "tu-test_resnet", None, classes=3),
}


def make(name: str) -> Pylon | Baseline:
    """A random network, whose batch norm has seen images."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        model.train()(torch.randn(4, 1, 256, 256))
    return model.eval()


@pytest.mark.parametrize("library", ["onnx", "openvino"])
@pytest.mark.parametrize("name", NETWORKS)
def test_runtimes_give_what_torch_gives(name, library):
    for needed in runtime.NEEDED[library]:
        pytest.importorskip(needed)
    model = make(name)
    images = torch.randn(3, 1, 256, 256)
    with torch.inference_mode():
        expected = model(images)
    assert runtime.run_with(model, 256, library) > 0
    for batch in (1, 3):
        with torch.inference_mode():
            output = model(images[:batch])
        assert type(output) is pylon.PylonOutput
        torch.testing.assert_close(output.logits, expected.logits[:batch], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.maps, expected.maps[:batch], rtol=1e-4, atol=1e-4)
        assert output.maps.dtype == torch.float32
        assert not torch.equal(output.maps, expected.maps[:batch])  # torch rounds otherwise


@pytest.mark.parametrize("output_size", [3, (6, 1), (7, 4)])
def test_average_pool(output_size):
    x = torch.randn(2, 3, 7, 10)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, output_size)
    torch.testing.assert_close(runtime.average_pool(x, output_size), expected)


def test_unknown_layer_is_one_sentence(capfd):
    class Odd(torch.nn.Module):
        def forward(self, image):
            return torch.linalg.qr(image)[0].amax(dim=(2, 3)), image

    with pytest.raises(UserError, match="this network cannot be exported to ONNX; use torch"):
        runtime.graph_of(Odd(), 8, ("logits", "maps"))
    assert capfd.readouterr() == ("", "")


def test_torch_leaves_the_network_alone():
    model = make("pylon")
    assert runtime.run_with(model, 256, "torch", "bf16") == 0
    assert "forward" not in vars(model)


def test_precisions_of_openvino(monkeypatch):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    settings = []

    class Core:
        def get_property(self, device, name):
            return ["FP32"]

        def read_model(self, graph):
            return graph

        def compile_model(self, graph, device, given):
            settings.append(given)

    monkeypatch.setattr(openvino, "Core", Core)
    runtime.openvino_of(b"", "fp32")
    assert settings[0]["INFERENCE_PRECISION_HINT"] == "f32"  # bf16 by itself where there is any
    with pytest.raises(UserError, match="--precision bf16: OpenVINO knows no bfloat16"):
        runtime.openvino_of(b"", "bf16")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("openvino", "auto", "fp32", "gradcam"), "--method gradcam needs gradients"),
        (("onnx", "cuda"), "--runtime onnx runs on the CPU, not on --device cuda"),
        (("openvino", "mps"), "--runtime openvino runs on the CPU"),
        (("onnx", "auto", "bf16"), "--runtime onnx needs --precision fp32, not bf16"),
    ],
)
def test_combinations_that_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        runtime.device_for(*arguments)


def test_device_of_a_runtime():
    assert runtime.device_for("torch", "cuda", "bf16", "gradcam") == "cuda"
    with pytest.raises(ValueError, match="runtime must be one of torch, onnx, openvino"):
        runtime.device_for("jax", "auto")


@pytest.fixture
def saved(tmp_path):
    """Save a random network; return a function of its name."""

    def save(name):
        model = make(name)
        thresholds = {"Mass": 0.25, "Nodule": None}
        model.description = pylon.Description(NAMES, 0.5, 0.25, 256, thresholds)
        model.save_pretrained(tmp_path / "best")
        return model, tmp_path / "best"

    return save


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_file_stands_alone(saved, name, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, best = saved(name)
    file = tmp_path / "network.onnx"
    assert str(file) in export.export_onnx(best, file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "network.onnx"]

    # what it says
    said = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert json.loads(said["class_names"]) == list(NAMES)
    assert json.loads(said["thresholds"]) == {"Mass": 0.25, "Nodule": None, "Hernia": None}
    assert (said["mean"], said["std"], said["image_size"]) == ("0.5", "0.25", "256")
    assert len(said["weights_sha256"]) == 64
    assert "research use only" in said["note"]

    # what it computes
    session = onnxruntime.InferenceSession(file)
    image = np.random.default_rng(1).integers(0, 256, (3, 1, 256, 256)).astype(np.uint8)
    images = normalize(torch.from_numpy(image), 0.5, 0.25)
    maps, scores = heatmaps_of(model, images, [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2] * 3)
    for batch in (1, 3):
        names = ("probabilities", "maps")
        got = dict(zip(names, session.run(names, {"image": image[:batch]}), strict=True))
        assert got["maps"].shape[:2] == (batch, 3)
        size = maps.shape[-2:]
        np.testing.assert_allclose(got["probabilities"].ravel(), scores[: batch * 3], atol=1e-4)
        np.testing.assert_allclose(got["maps"].reshape(-1, *size), maps[: batch * 3], atol=1e-4)


@pytest.mark.parametrize("added", [(2e-4, 0), (0, 2e-4), (0, float("nan"))])
def test_file_that_differs_from_torch_is_not_written(saved, tmp_path, monkeypatch, added):
    """In its probabilities, or in its maps alone."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run = export.onnxruntime_of
    monkeypatch.setattr(
        export, "onnxruntime_of",
        lambda graph: lambda images: list(map(np.add, run(graph)(images), added)),
    )  # fmt: skip
    file = tmp_path / "network.onnx"
    file.write_bytes(b"earlier")
    with pytest.raises(UserError, match=r"--export-onnx .* was not written: probabilities"):
        export.export_onnx(saved("backbone avg")[1], file)
    assert file.read_bytes() == b"earlier"
