"""Tools of speed.py: timing, the limits of the hardware, and the training steps."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plain
from pylon.data.chestxray14 import MEAN, STD
from pylon.data.transforms import normalize
from pylon.model import Pylon, criterion
from pylon.system.cli import Device
from pylon.system.device import cpu_has_bf16, make_accelerator
from pylon.system.progress import track

Step = Callable[[torch.Tensor, torch.Tensor], object]


def show(
    what: str, unit: str, measured: dict[str, list[float]], more_is_better: bool = True
) -> None:
    """Print one table row for each of our variants; the first of `measured` is the plain one."""
    medians = {name: statistics.median(values) for name, values in measured.items()}
    (_, base), *ours = medians.items()
    for name, value in ours:
        ratio = value / base if more_is_better else base / value
        row = f"| {what}, {name} | {base:.3g} {unit} | {value:.3g} {unit} | {ratio:.2f} |"
        print(row, flush=True)


def alternate(rounds: int, candidates: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Call the candidates in turn with the round number: a warm-up round, then `rounds` rounds."""
    results: dict[str, list[float]] = {name: [] for name in candidates}
    for k in track(range(rounds + 1), "measuring", "round"):
        for name, measure in candidates.items():
            value = measure(k)
            if k:
                results[name].append(value)
    return results


def seconds_of(task: Callable[[], object], device: torch.device | None = None) -> float:
    start = time.perf_counter()
    task()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()


def fresh(encoder_name: str, device: torch.device, memory_format: torch.memory_format) -> Pylon:
    torch.manual_seed(0)
    return Pylon(encoder_name, None).to(device, memory_format=memory_format)


def our_accelerator(device: Device, precision: str, training: bool) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # meant to be set once
    return make_accelerator(device, precision, training=training)


def allow_tf32(allowed: bool) -> None:
    """Switch TF32: make_accelerator allows it in training, the code of 2020 did not use it."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True  # used in 2020, too


def repeat(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return `count` rows, repeating the table as often as needed."""
    return images.iloc[np.arange(count) % len(images)]


def paths_and_labels(
    images: pd.DataFrame, class_names: tuple[str, ...]
) -> tuple[list[str], np.ndarray]:
    """Return the inputs of the plain loader: image files, and labels (N, C) float32."""
    return images["path"].tolist(), images[list(class_names)].to_numpy(np.float32)


def full_batches(count: int, num_workers: int) -> int:
    """Round `count` up to full batches of 64, the same number for each worker."""
    unit = 64 * max(1, num_workers)
    return -(-count // unit) * unit


def plain_trainer(encoder_name: str, device: torch.device) -> Step:
    """Build the training step of 2020."""
    net = fresh(encoder_name, device, torch.contiguous_format)
    adam = torch.optim.Adam(net.parameters(), lr=1e-4)
    return lambda images, labels: plain.train_step(net, adam, images.to(device), labels.to(device))


def our_trainer(
    encoder_name: str,
    device: torch.device,
    precision: str,
    compiler: Callable[[nn.Module], None] | None = None,
) -> tuple[Accelerator, Step]:
    """Build the training step of train.py; `compiler` compiles the network."""
    accelerator = our_accelerator(device.type, precision, training=True)
    net = fresh(encoder_name, device, torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    model, optimizer = accelerator.prepare(net, adam)
    if compiler is not None:
        compiler(model)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = criterion(model(normalize(images, MEAN, STD)).logits, labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return accelerator, step


def random_batch(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, 256, 256) uint8 and labels (B, 14) float32."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 256, 256), dtype=torch.uint8, generator=generator)
    labels = (torch.rand(size, 14, generator=generator) < 0.1).float()
    return images.to(device), labels.to(device)


def precisions(device: torch.device) -> tuple[str, ...]:
    if device.type == "cpu":
        return ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    return ("fp32", "fp16", "bf16")


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measure the FLOP/s of a large matrix product, as the upper limit of the device."""
    n = 2048 if device.type == "cpu" else 8192
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(8))


def flops_an_image(encoder_name: str, device: torch.device) -> float:
    """Count the FLOP of a training step, forward and backward, per image of 256 x 256."""
    net = fresh(encoder_name, device, torch.channels_last)
    images = torch.zeros(2, 1, 256, 256, device=device)
    with FlopCounterMode(display=False) as counter:
        net(images).logits.sum().backward()
    return counter.get_total_flops() / 2


def machine(device: torch.device) -> str:
    """Describe processor, cores, memory, GPU and versions in one line."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text() + "\nmodel name: unknown"
        cpu = re.search(r"model name\s*: (.*)", text).group(1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = f", {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    bf16 = "with" if cpu_has_bf16() else "without"
    return (
        f"{cpu}, {os.cpu_count()} cores, {bf16} bfloat16, {memory:.0f} GB{gpu}; "
        f"torch {torch.__version__}"
    )
