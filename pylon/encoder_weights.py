"""Weights of an encoder from a file, in the names of timm, torchvision or SMP."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from pylon.system.errors import UserError
from pylon.system.tensors import is_state_dict, load_safely, read_safetensors

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt", ".tar")
NESTED = ("state_dict", "model")  # where training scripts keep the state dict


def is_file_name(weights: str) -> bool:
    """Whether `weights` is the name of a file and not of weights that a library lists."""
    return weights.endswith(ENDINGS) or "/" in weights or Path(weights).is_file()


def take_from_file(encoder: nn.Module, path: Path) -> str:
    """Load the weights of an encoder from a file; return how many tensors were taken.

    Names may have a prefix, and dots or underscores between their parts; what does not belong to
    the encoder, such as a classifier, is ignored. The kernels of a first convolution with three
    channels are summed if the encoder has one channel.

    Args:
        encoder: of segmentation-models-pytorch, on the CPU.
        path: a safetensors file, or a state dict saved by torch.

    Raises:
        UserError: the file is missing or damaged, contains code, or belongs to another network.
    """
    given = read_state(path)
    wanted = encoder.state_dict()
    found = matching(given, wanted)
    unlike = [name for name, value in found.items() if fitted(value, wanted[name]) is None]
    if unlike:
        name = unlike[0]
        raise UserError(
            f"{path} belongs to another network: {name} has the shape {tuple(found[name].shape)}, "
            f"in this encoder {tuple(wanted[name].shape)}; choose another file or --encoder-name"
        )
    if 2 * len(found) < len(wanted):
        raise UserError(
            f"{path} belongs to another network: it has {len(found)} of the {len(wanted)} tensors "
            "of this encoder; choose another file or --encoder-name"
        )
    taken = {name: fitted(value, wanted[name]) for name, value in found.items()}
    encoder.load_state_dict({**wanted, **taken})
    return f"{len(taken)} of {len(wanted)} tensors of the encoder taken from {path}"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read names and tensors; raise a UserError if the file holds anything else."""
    if not path.is_file():
        raise UserError(f"--encoder-weights {path}: there is no such file; check its name")
    if path.suffix == ".safetensors":
        try:
            return read_safetensors(path)[0]
        except Exception as error:  # a damaged file can raise anything
            raise UserError(f"{path} is damaged; copy it again") from error
    state = load_safely(path)
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not is_state_dict(state):
        raise UserError(f"{path} is not a state dict, names and tensors only; choose another file")
    return state


def matching(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file by the encoder's names, with the prefix that matches most names."""
    # SMP puts "model." before timm's names, and timm joins some of them by underscores
    of_timm = all(name.startswith("model.") for name in wanted)
    plain = {name.removeprefix("model.") if of_timm else name: name for name in wanted}
    plain = {name.replace(".", "_"): full for name, full in plain.items()}
    prefixes = {""}
    for name in islice(given, 50):
        parts = name.split(".")
        prefixes |= {".".join(parts[:k]) + "." for k in range(1, min(4, len(parts)))}
    best = {}
    for prefix in sorted(prefixes):
        found = {
            plain[short]: value
            for name, value in given.items()
            if name.startswith(prefix) and (short := name[len(prefix) :].replace(".", "_")) in plain
        }
        if len(found) > len(best):
            best = found
    return best


def fitted(value: Tensor, wanted: Tensor) -> Tensor | None:
    """A tensor in the shape that is wanted: kernels of three channels summed to one; else None."""
    if value.shape == wanted.shape:
        return value
    is_kernel = value.dim() == 4 and wanted.dim() == 4
    if is_kernel and value.shape[1] == 3 and wanted.shape[1] == 1:
        summed = value.to(torch.float32).sum(dim=1, keepdim=True)
        return summed.to(value.dtype) if summed.shape == wanted.shape else None
    return None
