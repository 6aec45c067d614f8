"""Set up device and precision with Accelerate."""

import ctypes
import os
import re
import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs

from pylon.system.cli import Device, Precision
from pylon.system.errors import UserError

# options of glibc's mallopt, from malloc.h
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4


def make_accelerator(
    device: Device,
    precision: Precision,
    batch_size: int | None = None,
    training: bool = False,
    deterministic: bool = False,
    log_with: str | None = None,
) -> Accelerator:
    """Create the Accelerator for the device, the precision and all processes (`torchrun`).

    Args:
        device: "auto" prefers CUDA, then Apple's MPS, then the CPU.
        precision: "auto" is fp16 with loss scaling on CUDA, bf16 on a CPU that supports it in
            hardware, else fp32.
        batch_size: images per step over all processes, to be validated.
        training: on a GPU, allow TF32 in fp32 products, and let cuDNN find its fastest
            convolutions. Scores must not depend on the hardware, so evaluation in fp32 uses
            float32 throughout.
        deterministic: let torch use only deterministic operations, and fail where there is none.
        log_with: a tracker that Accelerate knows, which keeps its files in save/, if any.

    Raises:
        UserError: the device is unavailable or does not support the precision, or the batch cannot
            be split evenly.
    """
    chosen = choose_device(device)
    if chosen == "cpu":
        keep_freed_memory()
    if precision == "auto":
        # Deviation: the original used apex O1. torch.amp is its successor: fp16 autocast with loss
        # scaling.
        on_cpu = "bf16" if cpu_has_bf16() else "fp32"
        precision = {"cuda": "fp16", "cpu": on_cpu, "mps": "fp32"}[chosen]
    if precision == "fp16" and chosen != "cuda":
        raise UserError(f"--precision fp16 needs a CUDA device, not {chosen}; try --precision auto")

    # numerical precision on a GPU
    torch.backends.cudnn.allow_tf32 = training or precision != "fp32"  # TF32: the mantissa of fp16
    torch.backends.cuda.matmul.allow_tf32 = training
    torch.backends.cudnn.benchmark = training and not deterministic
    if deterministic:
        # required by torch; read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    # an hour, since another node may be filling its cache; --batch-size is over all processes
    try:
        accelerator = Accelerator(
            cpu=chosen == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            log_with=log_with,
            project_dir=None if log_with is None else "save",
        )
    except ValueError as error:
        if "precision" not in str(error):
            raise UserError(f"the processes could not be joined: {error}") from error
        raise UserError(f"--precision {precision}: {error}") from error  # a GPU without bfloat16
    processes = accelerator.num_processes
    if batch_size is not None and (batch_size < 1 or batch_size % processes):
        raise UserError(
            f"--batch-size must be a positive multiple of the number of processes, {processes}"
        )
    return accelerator


def choose_device(device: Device) -> str:
    """Choose "cuda", "mps" or "cpu"; raise a UserError if the requested one is unavailable."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise UserError(
            f"--device {device} is not supported by this hardware or build of torch; "
            "try --device auto"
        )
    return device


@cache
def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, for the next step, which needs them too.

    By default glibc returns each to the system, which then clears it page by page when it is asked
    for again: up to half of a training step.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        return
    library.mallopt(M_MMAP_MAX, 0)  # large blocks, too, come from the heap,
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # which keeps up to 2 GB of free memory
    library.mallopt(M_TOP_PAD, 2**28)  # and grows in steps of 256 MB
    # A worker would otherwise keep its own copy of what is free when it is forked.
    os.register_at_fork(before=lambda: library.malloc_trim(0))


def cpu_has_bf16() -> bool:
    """Whether the CPU supports bfloat16 in hardware; else torch emulates it, slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text()) is not None
