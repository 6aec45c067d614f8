"""Checkpoints: `best`, a folder to use and share, and `last`, a file for resuming.

Loading never runs pickled code. Deviation: the original pickled its checkpoints; here they are
safetensors, json and, for resuming, tensors only.

save/<name>/<seed>/best/config.json        what rebuilds and describes the network: arguments,
                                           class names, normalisation, thresholds (pylon/hub.py)
                        model.safetensors  its weights and their hash
                        training.json      the card (training_json.py): options, versions, whether
                                           training has finished, hashes of the data, of the weights
                                           and of itself
                        README.md          the model card, for people (pylon/model_card.py)
save/<name>/<seed>/last                    network, optimizer, schedule, scaler, rows of the csv
"""

import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from pylon.baselines import Baseline, build_network
from pylon.checkpoints.training_json import read_json, read_training_json
from pylon.encoder_weights import ENDINGS
from pylon.encoders import ArgumentError
from pylon.hub import Description, files_of, hash_of_weights, is_card_of, require_layout
from pylon.model import Pylon
from pylon.system.errors import UserError
from pylon.system.files import hash_of_json, write_atomically, write_together
from pylon.system.tensors import is_state_dict, load_safely, read_safetensors

FILES = ("config.json", "model.safetensors", "training.json")  # of a folder
RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152")
RESUMED = {
    "epoch", "lr", "best_loss", "rows", "model", "optimizer", "schedule", "scaler", "options",
    "split_sha256", "average", "mean", "std",
}  # fmt: skip
OF_TWO_EPOCHS = "mixes two epochs: its training.json does not belong to its model.safetensors"


def load_pylon(path: str | Path, encoder_name: str | None = None) -> Pylon | Baseline:
    """Rebuild a network from a checkpoint: on the CPU, in eval mode, offline, running no code.

    Args:
        path: a folder with config.json and model.safetensors (`best`, or from `save_pretrained`),
            or a plain state dict such as the authors' model.pkl, whose keys may begin with "net."
            and from which the number of UP layers is inferred; or "user/name" on the Hugging Face
            hub, downloaded once.
        encoder_name: encoder of a plain state dict; inferred if it is one of the ResNets.

    Returns:
        The network, with its `description` and `card` as far as they are known.

    Raises:
        UserError: the checkpoint is missing, damaged, or belongs to another network.
    """
    path = find_checkpoint(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is only part of a checkpoint; choose the folder it is in")
    if not path.exists():
        raise UserError(f"there is no checkpoint at {path}; check the path, or train one")
    model = load_folder(path) if path.is_dir() else load_state_dict(path, encoder_name)
    return model.eval()


def find_checkpoint(path: str | Path, must_exist: bool = False) -> Path:
    """Return where a checkpoint is on this machine; "user/name" is downloaded from the hub.

    Without a connection, a copy in the hub's cache is used.

    Raises:
        UserError: it is not on the hub; or, if it `must_exist`, not at the path.
    """
    path = Path(path)
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()) and path.suffix not in ENDINGS
    if path.exists() or not is_id or path.parent.exists():
        if must_exist and not path.exists():
            raise UserError(f"there is no checkpoint at {path}; check the path, or train one")
        return path
    try:
        return Path(snapshot_download(path.as_posix(), allow_patterns=list(FILES)))
    except Exception as error:  # no connection, no such name, no permission, ..
        raise UserError(
            f"there is no checkpoint {path} in this folder, on the Hugging Face hub, or in the "
            f"hub's cache ({type(error).__name__}); check the name and the connection"
        ) from error


def class_names_of(path: Path) -> tuple[str, ...]:
    """The class names of a checkpoint, without reading its weights; NIH's if it names none.

    Raises:
        UserError: a file is damaged.
    """
    if not path.is_dir() or not (path / "config.json").is_file():
        return papers_classes()  # a state dict; or load_pylon will say what is missing
    config = read_config(path)
    names = config.get("class_names") or (read_training_json(path) or {}).get("class_names")
    if names is None:
        return papers_classes()
    return description_of(path, {"class_names": names}, config.get("classes", 14)).class_names


def description_of(path: Path, values: dict[str, Any], classes: int) -> Description:
    """The description in a checkpoint's files; a UserError names the checkpoint if it is wrong."""
    try:
        return Description.of(values, classes)
    except ValueError as error:
        raise UserError(f"{path}: {error} (in config.json or training.json); correct it") from error


def load_folder(path: Path) -> Pylon | Baseline:
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            within = sorted([*path.glob("best/config.json"), *path.glob("*/best/config.json")])
            example = within[0].parent if within else "save/pylon/0/best"
            raise UserError(
                f"{path} is not a checkpoint: it has no {name}; choose a folder such as {example}"
            )
    config = read_config(path)
    try:
        weights, written = read_safetensors(path / "model.safetensors")
        model = build_network({**config, "encoder_weights": None})
        model.load_state_dict(weights)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{path} does not contain the network of its config.json ({first_line(error)}); "
            "copy the whole folder again"
        ) from error
    sha256 = hash_of_weights(weights)
    model.loaded_sha256 = sha256
    if written not in (None, sha256):
        raise UserError(
            f"{path / 'model.safetensors'} is damaged: its hash does not match; copy it again"
        )
    require_finite_weights(weights, path)

    # what is known about it; earlier versions described the network in training.json
    with suppress(UserError):  # `read_card` reports a damaged one
        card = read_training_json(path)
        if card is not None and is_card_of(card, sha256):
            model.card = {**card, "weights_sha256": sha256}
    values = {**(model.card or {}), **config}
    model.description = description_of(path, values, model.classes)
    return model


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json of a folder, verified by its hash, if it has one."""
    config = read_json(path / "config.json")
    if "sha256" in config and config.pop("sha256") != hash_of_json(config):
        raise UserError(
            f"{path / 'config.json'} is damaged: its hash does not match; copy it again, or, if "
            "you have edited it, remove the line sha256"
        )
    try:
        require_layout(config)
    except ValueError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    return config


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
    if len(shapes.get("segmentation_head.0.weight", ())) != 4:
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


def shapes_of(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a network, without allocating them."""
    try:
        with torch.device("meta"):
            network = build_network(config)
    except ArgumentError as error:  # unknown `encoder_name`
        raise UserError(str(error)) from error
    return {key: value.shape for key, value in network.state_dict().items()}


def read_card(path: str | Path, model: Pylon | Baseline) -> dict[str, Any]:
    """Read the card of a checkpoint: at least class_names, mean, std, image_size.

    The network's description counts, training.json adds the rest, and weights_sha256, the hash of
    the weights as they were loaded, is added if it is not in the file. What neither says (the
    authors' weights) is as in the paper, provided that the network has 14 classes.

    Raises:
        UserError: the card is damaged or incomplete, or belongs to other weights than the model's;
            or the classes have no names.
    """
    sha256 = model.loaded_sha256 or hash_of_weights(model.state_dict())
    card = read_training_json(Path(path)) or {}
    card = {**card, **model.description.stated()}
    if "class_names" not in card and model.classes != len(papers_classes()):
        raise UserError(
            f"{path} has {model.classes} classes, but neither config.json nor training.json names "
            "them; add class_names to config.json (and remove its line sha256)"
        )
    card = {**papers_card(), **card}
    if not is_card_of(card, sha256):
        raise UserError(
            f"{path} {OF_TWO_EPOCHS}; resume with the same train.py command (if it is running, "
            "try again in a moment), or copy the whole folder again"
        )
    return {**card, "weights_sha256": sha256}


def papers_card() -> dict[str, Any]:
    from pylon.data.chestxray14 import MEAN, PATHOLOGIES, STD  # pandas, not needed for loading

    return {"class_names": list(PATHOLOGIES), "mean": MEAN, "std": STD, "image_size": 256}


def papers_classes() -> tuple[str, ...]:
    return tuple(papers_card()["class_names"])


def fault_of_best(folder: Path, last_epoch: int) -> tuple[str, bool]:
    """Describe what is wrong with a `best`, and whether the epoch after `last_epoch` repairs it.

    Returns:
        A sentence without a cure, empty if nothing is wrong; and True if each file is intact but
        they belong to two epochs, because writing that next epoch was interrupted.
    """
    for name in FILES:
        if not (folder / name).is_file():
            return f"{folder / name} is missing", False
    try:
        read_config(folder)
        card = read_training_json(folder)
        weights, written = read_safetensors(folder / "model.safetensors")
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


def save_best(folder: Path, model: Pylon | Baseline, card: dict[str, Any]) -> None:
    """Write the folder that `load_pylon` opens; if the disk is full, the previous one is kept.

    The card is renamed first: after a kill it refers to weights that are not there yet, which
    `read_card` reports.
    """
    model.description = Description.of(card, model.classes)
    model.card = card
    files = {**files_of(model), "README.md": str(model.generate_model_card()).encode()}
    write_together({folder / name: content for name, content in files.items()})


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
