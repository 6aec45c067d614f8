"""Device, precision and processes, by Accelerate."""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from pylon.cli import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


def make_accelerator(
    device: Device,
    precision: Precision,
    batch_size: int | None = None,
    training: bool = False,
    deterministic: bool = False,
) -> Accelerator:
    """The one object that knows the device, the precision and the other processes (`torchrun`).

    Args:
        device: "auto" takes CUDA, then Apple's MPS, then the CPU.
        precision: "auto" is fp16 with loss scaling on CUDA, bf16 on a CPU that has it in hardware, else fp32.
        batch_size: images a step over all processes, to be checked.
        training: on a GPU, let fp32 multiply in TF32, and cuDNN try which of its convolutions is fastest. Scores shall
            not move with the machine: an evaluation in fp32 is one in float32.
        deterministic: let torch use only operations that give the same result each time, and fail where it has none.

    Raises:
        UserError: the device is not there or cannot do the precision, or the batch cannot be shared evenly.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    chosen = next(name for name, there in available.items() if there) if device == "auto" else device
    if not available[chosen]:
        raise UserError(f"--device {chosen}: this machine or this build of torch has none; try --device auto")
    if precision == "auto":
        # Deviation: the original ran apex O1. torch.amp is its successor: fp16 autocast with loss scaling.
        precision = {"cuda": "fp16", "cpu": "bf16" if cpu_has_bf16() else "fp32", "mps": "fp32"}[chosen]
    if precision == "fp16" and chosen != "cuda":
        raise UserError(f"--precision fp16 needs a CUDA device, not {chosen}; try --precision auto")
    torch.backends.cudnn.allow_tf32 = training or precision != "fp32"  # TF32 has the mantissa of fp16
    torch.backends.cuda.matmul.allow_tf32 = training
    torch.backends.cudnn.benchmark = training and not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch; read when CUDA starts
        torch.use_deterministic_algorithms(True)
    try:
        accelerator = Accelerator(
            cpu=chosen == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],  # another node may fill its cache
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),  # --batch-size is global
        )
    except ValueError as error:  # a GPU without bfloat16
        raise UserError(f"--precision {precision}: {error}") from error
    processes = accelerator.num_processes
    if batch_size is not None and (batch_size < 1 or batch_size % processes):
        raise UserError(f"--batch-size must be a positive multiple of the number of processes, {processes}")
    return accelerator


def on_main_process(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """What a function returns that the first process alone calls, on every process; likewise its UserError."""
    answer, fault = None, None
    if accelerator.is_main_process:
        try:
            answer = function()
        except UserError as error:
            fault = str(error)
    answer, fault = broadcast_object_list([answer, fault])
    if fault is not None:
        raise UserError(fault)
    return answer


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed torch for an epoch: a resumed epoch drops out what it would have dropped, each process something else."""
    numbers = np.random.SeedSequence([seed, epoch, process])
    torch.manual_seed(int(numbers.generate_state(1)[0]))  # 32 bits, since a CPU's generator heeds no more


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without, torch emulates it, slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text()) is not None
