"""The benchmark of training on a GPU, run on a CPU with a small network."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT

import drawn
import gpu
import gpu_page
import speed
from gpu_page import LEFT_OUT, NOT_MEASURED, Figures, Plan, Row, write_page
from pylon.data.cache import open_cache
from pylon.data.sources import read_chestxray14
from pylon.system.errors import UserError

PLAN = Plan(batch_sizes=(2,), precisions=("tf32", "bf16"), cache_sizes=(256,))


@pytest.fixture
def setting(tmp_path, monkeypatch):
    folder = drawn.write_radiographs(tmp_path / "data", count=4, size=256)
    radiographs = read_chestxray14(folder)
    caches = {256: open_cache(radiographs.images, folder / "cache", 256, 0)}
    monkeypatch.setattr(gpu, "matrix_rate", lambda device, precision: 1e12)
    for name in ("PREFETCHED", "WARM_STEPS", "ROUNDS"):
        monkeypatch.setattr(gpu, name, 1)
    compiled = []
    device = torch.device("cpu")
    small = (device, radiographs, caches, "tu-test_resnet", 0, PLAN, 0.01, compiled.append)
    yield gpu.Setting(*small)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_committed_page_is_what_the_code_writes_without_results():
    page = write_page(Plan(), {}, {})
    assert (ROOT / "docs/gpu.md").read_text() == page
    cells = [cell for line in page.splitlines() if line[:4] in ("| 64", "| 25") for cell in
             line.split("|")[3:-1]]  # fmt: skip
    assert cells
    assert {cell.strip() for cell in cells} == {NOT_MEASURED, "the workers", "the GPU"}


def test_every_row_is_measured(setting, tmp_path):
    page = tmp_path / "gpu.md"
    results = gpu.measure_all(setting, page, math.inf, "python this")
    assert list(results) == PLAN.rows()
    for row, figures in results.items():
        assert isinstance(figures, Figures), (row, figures)
        assert figures.rate > 0
        assert figures.share > 0
        assert figures.peak > 0
        assert (figures.first_step > 0) == (row.source == "memory")
        assert 0 <= figures.waited < 1
    assert len(setting.compile.__self__) == 2  # networks
    text = page.read_text()
    assert "| command | `python this` |" in text
    assert "tf32 1 TFLOP/s" in text
    assert NOT_MEASURED not in text
    assert f"| {LEFT_OUT} |" not in text


def test_what_there_is_no_time_for_is_left_out(setting, tmp_path):
    page = tmp_path / "gpu.md"
    results = gpu.measure_all(setting, page, -math.inf, "python this")
    assert set(results.values()) == {LEFT_OUT}
    count = len(PLAN.rows())
    assert f"did not suffice for {count} of the {count} measurements" in page.read_text()


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("a | b\nsecond line"), "failed: a / b"),
        (RuntimeError(), "failed: RuntimeError"),
        (UserError("--precision bf16: no"), "failed: --precision bf16: no"),
    ],
)
def test_failure_is_a_result(setting, tmp_path, monkeypatch, error, result):
    def fail(*_):
        raise error

    monkeypatch.setattr(gpu, "plain_trainer", fail)
    plan = Plan(batch_sizes=(2,), precisions=(), cache_sizes=())
    monkeypatch.setattr(Plan, "rows", lambda self: self.steps())
    page = tmp_path / "gpu.md"
    results = gpu.measure_all(replace(setting, plan=plan), page, math.inf, "")
    assert results == {Row(2, "fp32"): result}


def test_figures_are_written_as_worked_out():
    memory, plain = Row(2, "tf32"), Row(2, "fp32", "the PNGs")
    results = {
        plain: Figures(50, 0.1, 1, 0.8),
        memory: Figures(400, 0.5, 2, first_step=3),
        replace(memory, source="256", on_device=True): Figures(300, 0.4, 2.5, 0.25),
        Row(2, "fp32"): "out of memory",
    }
    page = write_page(PLAN, results, {"machine": "mine"})
    assert "| 2 | tf32 | 400 | not measured | 50% | 2.0 GB | 3.0 s |" in page
    assert "| 2 | plain, fp32 | out of memory |" in page
    fed = "| 2 | tf32: the 256 cache | the GPU | 300 | 6.00 | 75% | 25% | 40% | 2.5 GB |"
    assert fed in page
    assert "| 2 | plain, fp32: the PNGs | the workers | 50 | 1.00 | not measured | 80% |" in page


def test_compiler_starts_without_what_others_left(monkeypatch):
    inductor = pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr(inductor, "force_disable_caches", False)
    model = torch.nn.Linear(2, 2)
    gpu.compile_cold(model)
    assert inductor.force_disable_caches
    assert model._compiled_call_impl is not None


def test_memory_of_a_gpu_is_counted_from_each_row(monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: called.append("reset"))
    gpu.start_counting_memory(torch.device("cpu"))
    assert called == []
    gpu.start_counting_memory(torch.device("cuda"))
    assert called == ["empty", "reset"]


def test_command_draws_images_and_writes_the_page(tmp_path, monkeypatch):
    seen = []

    def note(setting, page, end, command):
        seen.append(
            (setting, page, command, {size: c.read(0) for size, c in setting.caches.items()})
        )

    monkeypatch.setattr(speed, "measure_all", note)
    monkeypatch.setattr(speed, "choose_device", lambda device: device)
    monkeypatch.setattr(speed, "IMAGES", 3)
    speed.main(speed.Options(device="cuda", num_workers=0, page=tmp_path / "gpu.md"))
    ((setting, page, command, first),) = seen
    assert (setting.device.type, setting.plan) == ("cuda", Plan())
    assert page == tmp_path / "gpu.md"
    assert command.startswith("python benchmarks/speed.py")
    assert {size: image.shape for size, image in first.items()} == {
        512: (512, 512),
        1024: (1024, 1024),
    }
    assert not setting.caches[512].folder.exists()  # the temporary folder


def test_drawn_images_take_as_much_as_radiographs(tmp_path):
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / drawn.write_image(k, tmp_path, 1024) for k in range(2)]
    assert 350_000 < paths[0].stat().st_size < 500_000  # NIH's: about 400 KB
    one, other = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths)
    assert one.shape == (1024, 1024)
    assert one.dtype == np.uint8
    assert one.std() > 10
    assert (one != other).any()


def test_gpu_is_required(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="--device cuda is not supported by this hardware"):
        speed.main(speed.Options(device="cuda", page=tmp_path / "gpu.md"))


def test_page_has_a_row_for_each_measurement():
    lines = write_page(Plan(), {}, {}).splitlines()
    measured = [line for line in lines if line.startswith(("| 64 |", "| 256 |"))]
    assert len(measured) == len(set(measured)) == len(set(Plan().rows()))
    assert gpu_page.COMMAND in lines
