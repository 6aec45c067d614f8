"""The benchmark of training on a GPU, run on a CPU with a small network."""

import math

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState

import drawn
import gpu
import speed
from gpu import Figures, Plan, Row, table_of
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


def test_every_row_is_measured(setting, tmp_path, capsys):
    table = gpu.measure_all(setting, tmp_path / "gpu.csv", math.inf)
    rows = [Row(*values) for values in table.iloc[:, :5].itertuples(index=False)]
    assert rows == PLAN.rows()
    assert set(table["note"]) == {""}
    assert (table[["images_per_second", "of_matrix_product", "peak_gb"]] > 0).all(axis=None)
    from_memory = table["source"] == "memory"
    assert (table["first_step"] > 0).tolist() == from_memory.tolist()
    assert table.loc[~from_memory, "waited"].between(0, 1).all()
    assert len(setting.compile.__self__) == 2  # networks
    assert "a matrix product in tf32: 1 TFLOP/s" in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "gpu.csv")
    assert written["images_per_second"].tolist() == table["images_per_second"].tolist()


def test_what_there_is_no_time_for_is_left_out(setting, tmp_path):
    table = gpu.measure_all(setting, tmp_path / "gpu.csv", -math.inf)
    assert len(table) == len(PLAN.rows())
    assert set(table["note"]) == {"left out: no time"}


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("a, b\nsecond line"), "failed: a, b"),
        (RuntimeError(), "failed: RuntimeError"),
        (UserError("--precision bf16: no"), "failed: --precision bf16: no"),
    ],
)
def test_failure_is_a_result(setting, monkeypatch, error, note):
    def fail(*_):
        raise error

    monkeypatch.setattr(gpu, "plain_trainer", fail)
    assert gpu.attempt(Row(2, "fp32"), setting, 1.0) == Figures(note=note)


def test_speed_is_compared_with_the_plain_pipeline_on_the_same_batch():
    table = table_of({
        Row(2, "fp32"): Figures(100),
        Row(2, "tf32"): Figures(400),
        Row(4, "fp32"): Figures(note="out of memory"),
        Row(4, "tf32"): Figures(500),
        Row(2, "fp32", "the PNGs"): Figures(50),
        Row(2, "tf32", "256", on_device=True): Figures(300),
    })  # fmt: skip
    expected = [1, 4, math.nan, math.nan, 1, 6]
    np.testing.assert_array_equal(table["times_plain"], expected)


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


def test_command_draws_images_and_writes_the_table(tmp_path, monkeypatch):
    seen = []

    def note(setting, path, end):
        seen.append((setting, path, {size: c.read(0) for size, c in setting.caches.items()}))
        return pd.DataFrame()

    monkeypatch.setattr(speed, "measure_all", note)
    monkeypatch.setattr(speed, "choose_device", lambda device: device)
    monkeypatch.setattr(speed, "IMAGES", 3)
    speed.main(speed.Options(device="cuda", num_workers=0, out=tmp_path / "gpu.csv"))
    ((setting, path, first),) = seen
    assert (setting.device.type, setting.plan) == ("cuda", Plan())
    assert path == tmp_path / "gpu.csv"
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
        speed.main(speed.Options(device="cuda", out=tmp_path / "gpu.csv"))
