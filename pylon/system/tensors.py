"""Read files of tensors without running any code in them."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from pylon.system.errors import UserError


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a safetensors file, and the hash that was saved with them, if any."""
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        weights = {name: file.get_tensor(name) for name in names}
        return weights, (file.metadata() or {}).get("sha256")


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
