"""Training on a GPU: what speed.py measures there, within a number of seconds.

The table is written after each measurement, so a run that is stopped leaves those that it has made.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import plain
from fed import feed
from measure import (
    Step,
    allow_tf32,
    flops_an_image,
    machine,
    matrix_rate,
    our_trainer,
    paths_and_labels,
    plain_trainer,
    random_batch,
    repeat,
    seconds_of,
    wait_for,
)
from memory import peak
from pylon.data.cache import ImageCache
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.dataset import train_loader
from pylon.data.gpu_augment import DrawnTransform
from pylon.data.radiographs import Radiographs
from pylon.data.transforms import normalize, train_transform
from pylon.system.errors import UserError
from pylon.system.files import write_csv
from pylon.system.progress import track

MEMORY = "memory"  # one batch that is already on the GPU
PNGS = "the PNGs"
# seconds expected of a measurement, until the first of its kind is made
EXPECTED = {"step": 15, "fed": 30, "compiled": 90}
WARM_STEPS = 3
ROUNDS = 3
PREFETCHED = 4  # batches per worker, used up before the clock starts


def compile_cold(model: nn.Module) -> None:
    """Compile as train.py does, but without what earlier compilations left."""
    import torch._dynamo  # takes seconds
    import torch._inductor.config

    torch._dynamo.reset()
    torch._inductor.config.force_disable_caches = True
    model.compile()


@dataclass(frozen=True)
class Row:
    """A measurement, which is a row of the table."""

    batch_size: int
    precision: str  # fp16, bf16, tf32, or fp32 for the plain pipeline
    source: str = MEMORY  # of the batches: MEMORY, PNGS, or the side of a cache as text
    on_device: bool = False  # augmentation
    compiled: bool = False

    @property
    def plain(self) -> bool:
        return self.precision == "fp32"


@dataclass(frozen=True)
class Figures:
    """Results of a measurement; `note` says why there are none."""

    images_per_second: float | None = None
    of_matrix_product: float | None = None  # share of the FLOP/s of one in this precision
    peak_gb: float | None = None  # of GPU memory
    waited: float | None = None  # share of the time that the loop waited for a batch
    first_step: float | None = None  # seconds, compiling included
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Which measurements there are."""

    batch_sizes: tuple[int, ...] = (64, 256)
    precisions: tuple[str, ...] = ("fp16", "bf16", "tf32")  # the loader is measured with the first
    cache_sizes: tuple[int, ...] = (512, 1024)

    def rows(self) -> list[Row]:
        """In the order of measuring: what comes last is left out first."""
        steps = [
            Row(size, name) for size in self.batch_sizes for name in ("fp32", *self.precisions)
        ]
        fed = []
        for batch_size in self.batch_sizes:
            fed.append(Row(batch_size, "fp32", PNGS))
            for size in map(str, self.cache_sizes):
                row = Row(batch_size, self.precisions[0], size)
                fed += [row, replace(row, on_device=True)]
        compiled = [
            Row(size, name, compiled=True) for name in self.precisions for size in self.batch_sizes
        ]
        return [*steps, *fed, *compiled]


@dataclass(frozen=True)
class Setting:
    """What is measured, on what."""

    device: torch.device
    radiographs: Radiographs
    caches: dict[int, ImageCache]
    encoder_name: str
    num_workers: int
    plan: Plan = field(default_factory=Plan)
    seconds: float = 3.0  # of a measurement, without what goes before it
    compile: Callable[[nn.Module], None] = compile_cold


def measure_all(setting: Setting, path: Path, end: float) -> pd.DataFrame:
    """Measure all rows of the plan for which there is time; write and return their table.

    Args:
        path: csv file to write.
        end: by then all measurements should be made, in seconds of `time.perf_counter`.
    """
    device = setting.device
    print(machine(device))
    limits = {}
    for precision in ("fp32", *setting.plan.precisions):
        allow_tf32(precision == "tf32")
        limits[precision] = matrix_rate(device, "fp32" if precision == "tf32" else precision)
        print(f"a matrix product in {precision}: {limits[precision] / 1e12:.3g} TFLOP/s")
    flops = flops_an_image(setting.encoder_name, device)

    results = {}
    seconds = {}  # longest of each kind
    for row in track(setting.plan.rows(), "measuring", "row"):
        kind = "compiled" if row.compiled else "step" if row.source == MEMORY else "fed"
        start = time.perf_counter()
        if start + seconds.get(kind, EXPECTED[kind]) > end:
            results[row] = Figures(note="left out: no time")
        else:
            results[row] = attempt(row, setting, limits[row.precision] / flops)
            seconds[kind] = max(seconds.get(kind, 0), time.perf_counter() - start)
        write_csv(path, table_of(results), index=False)
    return table_of(results)


def table_of(results: dict[Row, Figures]) -> pd.DataFrame:
    """A row per measurement, with its speed as a multiple of the plain pipeline's."""
    table = pd.DataFrame([asdict(row) | asdict(figures) for row, figures in results.items()])
    table["fed"] = table["source"] != MEMORY
    plain = table[table["precision"] == "fp32"].set_index(["batch_size", "fed"])
    of_plain = plain["images_per_second"].reindex(pd.MultiIndex.from_frame(
        table[["batch_size", "fed"]]
    ))  # fmt: skip
    table["times_plain"] = table["images_per_second"].astype(float) / of_plain.to_numpy(float)
    return table.drop(columns="fed")


def attempt(row: Row, setting: Setting, limit: float) -> Figures:
    """Measure one row; a failure is its result, so that the others are not lost."""
    try:
        return measure(row, setting, limit)
    except torch.OutOfMemoryError:
        return Figures(note="out of memory")
    except (RuntimeError, UserError) as error:
        sentence = (str(error).splitlines() or [type(error).__name__])[0]
        return Figures(note=f"failed: {sentence[:80]}")


def measure(row: Row, setting: Setting, limit: float) -> Figures:
    """Train as the row says.

    Args:
        limit: images/s at the rate of a matrix product.
    """
    device = setting.device
    start_counting_memory(device)
    accelerator, step = trainer(row, setting)
    if row.source != MEMORY:
        loader = loader_of(row, setting)
        if accelerator is not None:
            loader = accelerator.prepare(loader)
        warm = PREFETCHED * max(1, setting.num_workers)
        rate, waited = feed(loader, step, device, warm, setting.seconds)
        return Figures(rate, rate / limit, peak(device), waited)

    images, labels = random_batch(row.batch_size, device)
    if row.plain:
        images = normalize(images, MEAN, STD).contiguous()
    first_step = seconds_of(lambda: step(images, labels), device)
    rate = rate_of(lambda: step(images, labels), row.batch_size, setting.seconds, device)
    return Figures(rate, rate / limit, peak(device), first_step=first_step)


def trainer(row: Row, setting: Setting) -> tuple[Accelerator | None, Step]:
    """The training step of a row; `feed` passes batches to it as they come from the loader."""
    if row.plain:
        step = plain_trainer(setting.encoder_name, setting.device)
        allow_tf32(False)
        return None, step
    precision = "fp32" if row.precision == "tf32" else row.precision
    compiler = setting.compile if row.compiled else None
    accelerator, step = our_trainer(setting.encoder_name, setting.device, precision, compiler)
    return accelerator, step


def loader_of(row: Row, setting: Setting) -> DataLoader:
    """The training loader of a row, with more images than can be used."""
    batches = PREFETCHED * max(1, setting.num_workers) + 1 + round(100 * setting.seconds)
    table = repeat(setting.radiographs.images, row.batch_size * batches)
    names = setting.radiographs.class_names
    workers = setting.num_workers
    if row.source == PNGS:
        paths, labels = paths_and_labels(table, names)
        transform = plain.train_transform()
        return plain.loader(paths, labels, transform, row.batch_size, workers, True)
    size = int(row.source)
    transform = DrawnTransform(256, size) if row.on_device else train_transform(256)
    pin = setting.device.type == "cuda"
    cache = setting.caches[size]
    loader, _ = train_loader(table, names, transform, row.batch_size, workers, 0, cache, pin)
    return loader


def rate_of(
    step: Callable[[], object], batch_size: int, seconds: float, device: torch.device
) -> float:
    """Images/s of a step: median of some rounds that take the given seconds together."""
    for _ in range(WARM_STEPS):
        step()
    wait_for(device)
    steps = max(1, round(seconds / ROUNDS / seconds_of(step, device)))
    rounds = [seconds_of(lambda: [step() for _ in range(steps)], device) for _ in range(ROUNDS)]
    return batch_size * steps / statistics.median(rounds)


def start_counting_memory(device: torch.device) -> None:
    """Free what earlier measurements left, and start the peak of GPU memory from there."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
