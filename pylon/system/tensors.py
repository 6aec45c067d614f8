"""Read files of tensors without running any code in them."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from pylon.system.errors import UserError

FEWEST = 150  # weights for each output of a kernel that may be rounded to half precision


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a safetensors file, and the hash that was saved with them, if any.

    Those in half precision become float32, on every processor; hashes are of these.
    """
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        weights = {name: widened(file.get_tensor(name)) for name in names}
        return weights, (file.metadata() or {}).get("sha256")


def widened(value: Tensor) -> Tensor:
    """A tensor in half precision as float32, which holds it exactly; others as they are."""
    return value.float() if value.dtype == torch.float16 else value


def narrowed(value: Tensor) -> Tensor:
    """A float32 tensor in half precision, if it loses no bit by it; others as they are."""
    half = in_half(value)
    return value if half is None or not torch.equal(half.float(), value) else half


@torch.no_grad()
def round_to_half(model: torch.nn.Module) -> None:
    """Round the large kernels of a network to values that half precision holds (`in_half`)."""
    for value in model.state_dict().values():  # they share their memory with the network
        half = in_half(value)
        if half is not None:
            value.copy_(half)


def in_half(value: Tensor) -> Tensor | None:
    """A float32 kernel or matrix in half precision; None for what has to stay exact.

    That is what exceeds the range, vectors (variances and the like), and kernels with few weights
    for each output, such as depthwise ones: nearly all of the error comes from these, since their
    rounding errors do not average out, and they are small.
    """
    if value.dtype != torch.float32 or value.ndim < 2 or value[0].numel() < FEWEST:
        return None
    half = value.half()
    return half if half.isfinite().all() else None


def load_safely(path: Path) -> Any:
    """Load a file with torch.load, accepting only tensors and plain containers.

    Checksums are verified first, which torch does not do.

    Raises:
        UserError: the file is damaged, or contains anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("a checksum differs")
        with warnings.catch_warnings():  # about odd pickles, which are reported below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(
            f"{path} is damaged, or contains more than tensors and is not opened for safety; "
            "choose another file"
        ) from error


def is_state_dict(state: Any) -> bool:
    """Whether an object is a dictionary of names and dense tensors."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in state.items()
    )
