"""Weights of an encoder from a file, in names of timm, torchvision, SMP, EfficientNet-PyTorch."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from pylon.system.errors import UserError
from pylon.system.tensors import is_state_dict, load_safely, read_safetensors

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt", ".tar")
NESTED = ("state_dict", "model")  # where training scripts keep the state dict


def is_file_name(weights: str) -> bool:
    """Whether `weights` is the name of a file and not of weights that a library lists."""
    if weights.lower() in ("imagenet", "none"):
        return False
    return weights.endswith(ENDINGS) or "/" in weights or Path(weights).exists()


def take_from_file(encoder: nn.Module, path: Path) -> str:
    """Load the weights of an encoder from a file; return how many tensors were taken.

    Names may have a prefix, and dots or underscores between their parts; what does not belong to
    the encoder, such as a classifier, is ignored. The kernels of a first convolution with three
    channels are summed if the encoder has one channel. Tensors that the file lacks stay random.

    Args:
        encoder: of segmentation-models-pytorch, on the CPU.
        path: a safetensors file, or a state dict saved by torch.

    Raises:
        UserError: the file is missing or damaged, contains code, or belongs to another network.
    """
    given = {in_smps_names(name): value for name, value in read_state(path).items()}
    wanted = encoder.state_dict()
    given = in_timms_names(given, wanted)
    found, others = matching(given, wanted)
    taken = {name: fitted(value, wanted[name]) for name, value in found.items()}
    unlike = [name for name, value in taken.items() if value is None]
    if unlike:
        name = unlike[0]
        shape = f"{tuple(found[name].shape)}, {found[name].dtype}"
        raise UserError(
            f"{path} belongs to another network, or is damaged: {name} has the shape {shape}, in "
            f"this encoder {tuple(wanted[name].shape)}, finite numbers; choose another file or "
            "--encoder-name"
        )
    if others:
        raise UserError(
            f"{path} belongs to a larger network: this encoder has no {others[0]}; choose another "
            "file or --encoder-name"
        )
    if 2 * len(found) < len(wanted):
        raise UserError(
            f"{path} belongs to another network: it has {len(found)} of the {len(wanted)} tensors "
            "of this encoder; choose another file or --encoder-name"
        )
    encoder.load_state_dict({**wanted, **taken})
    lacking = [name for name in wanted if name not in taken and "num_batches" not in name]
    random = f"; random: {lacking[0]}" if lacking else ""
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"{len(taken)} of {len(wanted)} tensors of the encoder taken from {path}{random}{more}"


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


def in_smps_names(name: str) -> str:
    """`denselayer1.norm1` of `denselayer1.norm.1`, as torchvision's files of DenseNet have it."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name)


# of EfficientNets in lukemelas/EfficientNet-PyTorch, whose first stage has no expansion
STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
PARTS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
UNEXPANDED = {**PARTS, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def in_timms_names(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an EfficientNet of EfficientNet-PyTorch for one of timm.

    `_blocks.3._bn1.weight` counts blocks from the first to the last, `blocks.2.0.bn2.weight` the
    stages and the blocks in them. Other files and encoders are left as they are.
    """
    places = [re.search(r"(?:^|\.)blocks\.(\d+)\.(\d+)\.", name) for name in wanted]
    blocks = sorted({(int(place[1]), int(place[2])) for place in places if place})
    if not blocks or not any(name.startswith("_blocks.") for name in given):
        return given
    expanded = {re.sub(r"\._expand_conv\..*", "", name) for name in given if "_expand" in name}
    renamed = {}
    for name, value in given.items():
        block, *rest = name.removeprefix("_blocks.").split(".")
        if not name.startswith("_blocks."):
            renamed[".".join([STEM.get(block, block), *rest])] = value
        elif int(block) < len(blocks):
            stage, position = blocks[int(block)]
            parts = PARTS if f"_blocks.{block}" in expanded else UNEXPANDED
            ends = [parts.get(rest[0], rest[0]), *rest[1:]]
            renamed[".".join(["blocks", str(stage), str(position), *ends])] = value
    return renamed


def matching(
    given: dict[str, Tensor], wanted: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the tensors of an encoder in a file, with the prefix that matches most names.

    Returns:
        The tensors by the encoder's names; and names in parts of the encoder that it does not have,
        such as a third block of layer1, by which a larger network of its family is known.
    """
    # SMP puts "model." before timm's names, and timm joins some of them by underscores
    of_timm = all(name.startswith("model.") for name in wanted)
    plain = {name.removeprefix("model.") if of_timm else name: name for name in wanted}
    plain = {name.replace(".", "_"): full for name, full in plain.items()}
    prefixes = {""}
    for name in given:
        parts = name.split(".")
        prefixes |= {".".join(parts[:k]) + "." for k in range(1, min(4, len(parts)))}
    best = {}
    best_prefix = ""
    for prefix in sorted(prefixes):
        found = {
            plain[short]: value
            for name, value in given.items()
            if name.startswith(prefix) and (short := name[len(prefix) :].replace(".", "_")) in plain
        }
        if len(found) > len(best):
            best = found
            best_prefix = prefix
    known = {name.removeprefix("model.").split(".")[0] for name in wanted}
    shorts = [name.removeprefix(best_prefix) for name in given if name.startswith(best_prefix)]
    others = [
        short
        for short in shorts
        if short.split(".")[0] in known and short.replace(".", "_") not in plain
    ]
    return best, others


def fitted(value: Tensor, wanted: Tensor) -> Tensor | None:
    """A tensor in the shape that is wanted: kernels of three channels summed to one; else None.

    None also if it holds other than finite numbers of the wanted kind.
    """
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex():
        return None
    if not value.isfinite().all():
        return None
    if value.shape == wanted.shape:
        return value
    is_kernel = value.dim() == 4 and wanted.dim() == 4
    if is_kernel and value.shape[1] == 3 and wanted.shape[1] == 1:
        summed = value.to(torch.float32).sum(dim=1, keepdim=True)
        return summed.to(value.dtype) if summed.shape == wanted.shape else None
    return None
