"""Checkpoints: `best`, a folder to use and share, and `last`, a file for resuming.

Loading never runs pickled code. Deviation: the original pickled its checkpoints; here they are
safetensors, json and, for resuming, tensors only.

save/<name>/<seed>/best/config.json        arguments that rebuild the network
                        model.safetensors  its weights and their hash
                        training.json      the card (card.py): class names, normalisation, options,
                                           versions, whether training has finished, hashes of the
                                           data, of the weights and of itself
save/<name>/<seed>/last                    network, optimizer, schedule, scaler, rows of the csv
"""

import hashlib
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pylon.baselines import Baseline, build_network, kind_of
from pylon.encoders import ArgumentError
from pylon.experiment.card import (
    card_file,
    has_ended,
    is_card_of,
    read_json,
    read_training_json,
)
from pylon.model import Pylon
from pylon.system.errors import UserError
from pylon.system.files import write_atomically, write_together

RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152")
RESUMED = {
    "epoch", "lr", "best_loss", "rows", "model", "optimizer", "schedule", "scaler", "options",
    "split_sha256",
}  # fmt: skip
OF_TWO_EPOCHS = "mixes two epochs: its training.json does not belong to its model.safetensors"


def load_pylon(path: str | Path, encoder_name: str | None = None) -> Pylon | Baseline:
    """Rebuild a network from a checkpoint: on the CPU, in eval mode, offline, running no code.

    Args:
        path: a folder with config.json and model.safetensors (`best`, or from `save_pretrained`),
            or a plain state dict such as the authors' model.pkl, whose keys may begin with "net."
            and from which the number of UP layers is inferred.
        encoder_name: encoder of a plain state dict; inferred if it is one of the ResNets.

    Raises:
        UserError: the checkpoint is missing, damaged, or belongs to another network.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is only part of a checkpoint; choose the folder it is in")
    if not path.exists():
        raise UserError(
            f"there is no checkpoint at {path}; train one, or choose another with --checkpoint"
        )
    model = load_folder(path) if path.is_dir() else load_state_dict(path, encoder_name)
    return model.eval()


def load_folder(path: Path) -> Pylon | Baseline:
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise UserError(
                f"{path} is not a checkpoint: it has no {name}; choose a folder such as "
                "save/pylon/0/best"
            )
    config = read_json(path / "config.json")
    try:
        weights, written = read_weights(path / "model.safetensors")
        model = build_network({**config, "encoder_weights": None})
        model.load_state_dict(weights)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{path} does not contain the network of its config.json ({first_line(error)}); "
            "copy the whole folder again"
        ) from error
    if written is not None and written != hash_of_weights(weights):
        raise UserError(
            f"{path / 'model.safetensors'} is damaged: its hash does not match; copy it again"
        )
    require_finite_weights(weights, path)
    return model


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a safetensors file, and the hash that was saved with them, if any."""
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        weights = {name: file.get_tensor(name) for name in names}
        return weights, (file.metadata() or {}).get("sha256")


def require_finite_weights(weights: dict[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path} has weights that are not finite numbers ({broken[0]}) and cannot be used; "
            "choose another checkpoint"
        )


def load_state_dict(path: Path, encoder_name: str | None) -> Pylon:
    # only names and tensors, with our names
    state = load_safely(path)
    if not is_state_dict(state):
        hint = ""
        if path.name == "last":
            hint = "; it is for resuming, the network is in `best` next to it"
        raise UserError(
            f"{path} is not a plain state dict, a dictionary of names and tensors only{hint}"
        )
    state = {key.removeprefix("net."): value for key, value in state.items()}
    shapes = {key: value.shape for key, value in state.items()}
    if "segmentation_head.0.weight" not in shapes:
        raise UserError(f"{path} belongs to another network: it has no segmentation_head.0.weight")

    # arguments of the network that follow from the shapes
    classes, decoder_channels = shapes["segmentation_head.0.weight"][:2]
    config = {
        "kind": "pylon",
        "encoder_weights": None,
        "in_channels": shapes.get("encoder.conv1.weight", (0, 1))[1],
        "classes": classes,
        "decoder_channels": decoder_channels,
        "up_layers": 2 if "decoder.up1.conv1.0.conv.weight" in shapes else 1,
    }

    # find the encoder that has these shapes
    for name in (encoder_name,) if encoder_name else RESNETS:
        if shapes_of({**config, "encoder_name": name}) == shapes:
            model = build_network({**config, "encoder_name": name})
            model.load_state_dict(state)
            require_finite_weights(state, path)
            return model
    raise UserError(
        f"{path} does not contain a PYLON with the encoder {encoder_name or ' or '.join(RESNETS)}"
    )


def is_state_dict(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())


def shapes_of(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a network, without allocating them."""
    try:
        with torch.device("meta"):
            network = build_network(config)
    except ArgumentError as error:  # unknown `encoder_name`
        raise UserError(str(error)) from error
    return {key: value.shape for key, value in network.state_dict().items()}


def load_safely(path: Path) -> Any:
    """Load a file with torch.load, accepting only tensors and plain containers.

    Checksums are verified first, which torch does not do.
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
            f"{path} is damaged, or contains more than tensors and is not opened for safety"
        ) from error


def read_card(path: str | Path, model: Pylon | Baseline) -> dict[str, Any]:
    """Read the card of a checkpoint: at least class_names, mean, std, image_size.

    weights_sha256, the hash of the model's weights, is added if it is not in the file.

    Without a training.json (the authors' weights), the paper's values are returned, provided that
    the network has 14 classes.

    Raises:
        UserError: the card is damaged or incomplete, or belongs to other weights than the model's.
    """
    sha256 = hash_of_weights(model.state_dict())
    card = read_training_json(Path(path))
    if card is None:
        card = papers_card(path, model)
    if not is_card_of(card, sha256):
        raise UserError(
            f"{path} {OF_TWO_EPOCHS}; resume with the same train.py command (if it is running, "
            "try again in a moment), or copy the whole folder again"
        )
    return {**card, "weights_sha256": sha256}


def papers_card(path: str | Path, model: Pylon | Baseline) -> dict[str, Any]:
    from pylon.data.chestxray14 import MEAN, PATHOLOGIES, STD  # pandas, not needed for loading

    classes = model.segmentation_head[0].out_channels
    if classes != len(PATHOLOGIES):
        raise UserError(f"{path} has {classes} classes and no training.json that names them")
    return {"class_names": list(PATHOLOGIES), "mean": MEAN, "std": STD, "image_size": 256}


def fault_of_best(folder: Path, last_epoch: int) -> tuple[str, bool]:
    """Describe what is wrong with a `best`, and whether the epoch after `last_epoch` repairs it.

    Returns:
        A sentence without a cure, empty if nothing is wrong; and True if each file is intact but
        they belong to two epochs, because writing that next epoch was interrupted.
    """
    for name in ("config.json", "model.safetensors", "training.json"):
        if not (folder / name).is_file():
            return f"{folder / name} is missing", False
    try:
        read_json(folder / "config.json")
        card = read_training_json(folder)
        weights, written = read_weights(folder / "model.safetensors")
        sha256 = hash_of_weights(weights)
    except UserError as error:
        return str(error).rpartition("; ")[0], False
    except Exception:  # damaged weights can raise anything
        return f"{folder / 'model.safetensors'} is damaged", False
    if written not in (None, sha256):
        return f"{folder / 'model.safetensors'} is damaged", False
    if not is_card_of(card, sha256):
        return f"{folder} {OF_TWO_EPOCHS}", card.get("epoch") == last_epoch + 1
    return "", False


def is_finished(folder: Path, card: dict[str, Any]) -> bool:
    """Whether the training of a checkpoint has finished; for older cards, read from `last`."""
    last = folder.parent / "last"
    if "finished" in card or folder.name != "best" or not last.exists():
        return card.get("finished", True)
    state = load_last(last)
    return has_ended(state, state["options"])


def save_best(folder: Path, model: Pylon | Baseline, card: dict[str, Any]) -> None:
    """Write the folder that `load_pylon` opens; if the disk is full, the previous one is kept.

    The card is renamed first: after a kill it refers to weights that are not there yet, which
    `read_card` reports.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    sha256 = hash_of_weights(weights)
    metadata = {"format": "pt", "sha256": sha256}
    write_together({
        folder / "training.json": card_file({**card, "weights_sha256": sha256}),
        folder / "config.json": json.dumps(config_of(model), indent=2, sort_keys=True).encode(),
        folder / "model.safetensors": safetensors.torch.save(weights, metadata=metadata),
    })  # fmt: skip


def config_of(model: Pylon | Baseline) -> dict[str, Any]:
    """Arguments from which `build_network` rebuilds a network, without pretrained weights."""
    arguments = model._hub_mixin_config
    return {**arguments, "kind": kind_of(arguments), "encoder_weights": None}


def hash_of_weights(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values; no library used here detects a flipped bit."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_last(path: Path, state: dict[str, Any]) -> None:
    """Write everything that resuming needs (`RESUMED`)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_last(path: Path) -> dict[str, Any]:
    """Read what `save_last` wrote; raise a UserError if it is damaged or another file."""
    state = load_safely(path)
    if not isinstance(state, dict) or not state.keys() >= RESUMED:
        raise UserError(
            f"{path} is not a file that train.py wrote for resuming; start over with --overwrite"
        )
    return state


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
