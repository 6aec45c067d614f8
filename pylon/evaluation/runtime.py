"""Run a network on a CPU by onnxruntime or OpenVINO instead of torch.

Both read the ONNX graph of the network that torch exports. OpenVINO could convert from torch, too:
that takes longer, and has code that reports its use to OpenVINO's makers.
"""

import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from pylon.baselines import Baseline
from pylon.model import Pylon, PylonOutput
from pylon.options import Runtime
from pylon.system.errors import UserError

NEEDED = {
    "demo": ("gradio",),
    "dicom": ("pydicom", "highdicom"),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}  # by extra, or by the name of a tracker
TITLES = {"onnx": "onnxruntime", "openvino": "OpenVINO"}
OPSET = 17


def device_for(runtime: Runtime, device: Any, precision: str = "fp32", method: str = "map") -> Any:
    """The device of a runtime: "cpu", except for torch, which runs on the one that is given.

    Raises:
        UserError: the runtime is not installed, or does not support another option.
        ValueError: the runtime is unknown.
    """
    if runtime not in get_args(Runtime):
        raise ValueError(f"runtime must be one of {', '.join(get_args(Runtime))}, got {runtime}")
    if runtime == "torch":
        return device
    if method != "map":
        raise UserError(
            f"--method {method} needs gradients, which --runtime {runtime} cannot compute; leave "
            "out one of them"
        )
    if str(device) not in ("auto", "cpu"):
        raise UserError(f"--runtime {runtime} runs on the CPU, not on --device {device}")
    if runtime == "onnx" and precision != "fp32":
        raise UserError(
            f"--runtime onnx needs --precision fp32, not {precision}; try --runtime openvino"
        )
    require_installed(runtime, f"--runtime {runtime}")
    return "cpu"


def require_installed(extra: str, option: str) -> None:
    """Raise a UserError that names the option if a library it needs (`NEEDED`) is not installed."""
    for name in NEEDED[extra]:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{option} needs the library {name}, which is not installed: "
                f"pip install {' '.join(NEEDED[extra])}"
            )


def run_with(
    model: Pylon | Baseline, image_size: int, runtime: Runtime, precision: str = "fp32"
) -> float:
    """Let a runtime compute what a network's `forward` returns; return the seconds to compile it.

    The network stays the object that it is, with its description and weights.

    Args:
        model: in eval mode, on the CPU.
        image_size: side of the input, pixels.
        precision: "fp32", or "bf16" (OpenVINO). With torch, autocast does that.

    Raises:
        UserError: the CPU does not support the precision.
    """
    if runtime == "torch":
        return 0.0
    started = time.monotonic()
    make = {"onnx": onnxruntime_of, "openvino": openvino_of}[runtime]
    run = make(graph_of(model, image_size, ("logits", "maps")), precision)

    def forward(images: Tensor) -> PylonOutput:
        logits, maps = run(images.contiguous().numpy())
        return PylonOutput(torch.from_numpy(logits), torch.from_numpy(maps))

    model.forward = forward
    return time.monotonic() - started


def sentence_about(runtime: Runtime, seconds: float) -> str | None:
    """What to print about the time that compiling took, if it is worth a line."""
    return f"compiled for {TITLES[runtime]} in {seconds:.1f} s" if seconds >= 1 else None


Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # (B, 1, S, S) -> logits, maps


def onnxruntime_of(graph: bytes, precision: str = "fp32") -> Run:
    import onnxruntime

    if precision != "fp32":
        raise UserError(f"onnxruntime runs networks in fp32, not {precision}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def openvino_of(graph: bytes, precision: str = "fp32") -> Run:
    import openvino

    core = openvino.Core()
    wanted = {"fp32": "f32", "bf16": "bf16"}[precision]
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("--precision bf16: OpenVINO knows no bfloat16 of this CPU; leave it out")
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,  # if not set, bf16 wherever the CPU has it
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch, since one batch is run at a time
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    return lambda images: list(compiled([images]).values())


def graph_of(model: nn.Module, image_size: int, outputs: Sequence[str], **image: Any) -> bytes:
    """Export a network as an ONNX graph whose batch size is free.

    Args:
        model: in eval mode, on the CPU.
        image_size: side of the input, pixels.
        outputs: names of its outputs.
        image: dtype of the input; float32 if none is given.

    Raises:
        UserError: the network has a layer that ONNX does not know.
    """
    example = torch.zeros(2, 1, image_size, image_size, **image)
    buffer = io.BytesIO()
    try:
        export(model, example, outputs, buffer)
    except OnnxExporterError as error:
        why, *_ = str(error).strip().splitlines()
        raise UserError(f"this network cannot be exported to ONNX; use torch ({why})") from error
    return buffer.getvalue()


def export(model: nn.Module, example: Tensor, outputs: Sequence[str], buffer: io.BytesIO) -> None:
    with (
        warnings.catch_warnings(),
        torch.inference_mode(),
        mock.patch.object(F, "adaptive_avg_pool2d", average_pool),
        # an exporter that fails prints the whole graph
        mock.patch.object(torch._C, "_jit_onnx_log"),
    ):
        # of the tracer, about the check of the input's sides, and of the exporter, that another
        # one is the default: it needs one more library, and twice the time
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (example,),
            buffer,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("image", *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )


def average_pool(x: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """`F.adaptive_avg_pool2d` as two products, which ONNX has for all sizes.

    The exporter knows only sizes of the output that divide those of the input: not 3 and 6, which
    pspnet and upernet have.
    """
    height, width = nn.modules.utils._pair(output_size)
    rows = averaging_matrix(int(x.shape[2]), height)
    columns = averaging_matrix(int(x.shape[3]), width)
    return rows @ x @ columns.T


def averaging_matrix(size: int, parts: int) -> Tensor:
    """The (parts, size) matrix of adaptive average pooling along one side."""
    matrix = np.zeros((parts, size), np.float32)
    for k in range(parts):
        part = slice(k * size // parts, -(-(k + 1) * size // parts))  # parts may overlap
        matrix[k, part] = 1 / (part.stop - part.start)
    return torch.from_numpy(matrix)
