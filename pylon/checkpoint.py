"""Checkpoints: `best`, a folder for everybody, and `last`, a file for resuming. Nothing here runs a pickle's code.

Deviation: the original pickled its checkpoints; here they are safetensors, json and, for resuming, tensors alone.

save/<name>/<seed>/best/config.json        arguments that rebuild the network
                        model.safetensors  its weights, and their hash
                        training.json      class names, normalisation, options, versions, whether training has finished,
                                           hashes of the data, of the weights and its own
save/<name>/<seed>/last                    network, optimizer, schedule, scaler, rows of the csv
"""

import hashlib
import io
import json
import platform
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pylon.baselines import Baseline
from pylon.chestxray14 import PATHOLOGIES
from pylon.cli import UserError
from pylon.files import is_number, write_atomically, write_together
from pylon.model import Pylon
from pylon.transforms import MEAN, STD

RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152")
RESUMED = {
    "epoch", "lr", "best_loss", "rows", "model", "optimizer", "schedule", "scaler", "options", "split_sha256"
}  # fmt: skip
OF_TWO_EPOCHS = "is of two epochs: its training.json is not of its model.safetensors"
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations", "accelerate", "numpy")


def load_pylon(path: str | Path, encoder_name: str | None = None) -> Pylon | Baseline:
    """Rebuild a network from a checkpoint, on the CPU, in eval mode, without the network and without running code.

    Args:
        path: a folder with config.json and model.safetensors (`best`, or of `save_pretrained`), or a plain state dict
            such as the authors' model.pkl, whose keys may begin with "net.". The number of UP layers is read from it.
        encoder_name: encoder of a plain state dict; found out by itself where it is one of the ResNets.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it is one of another network.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is a part of a checkpoint; name the folder that it is in")
    if not path.exists():
        raise UserError(f"there is no checkpoint at {path}; train one first, or name another with --checkpoint")
    return (load_folder(path) if path.is_dir() else load_state_dict(path, encoder_name)).eval()


def load_folder(path: Path) -> Pylon | Baseline:
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise UserError(f"{path} is no checkpoint: it has no {name}; name a folder such as save/pylon/0/best")
    config = read_json(path / "config.json")
    try:
        weights, written = read_weights(path / "model.safetensors")
        network = Baseline if "model" in config else Pylon
        model = network(**{**config, "encoder_weights": None})
        model.load_state_dict(weights)
    except Exception as error:  # a damaged file raises whatever its bytes happen to lead to
        raise UserError(
            f"{path} does not hold the network of its config.json ({first_line(error)}); copy the whole folder again"
        ) from error
    if written is not None and written != hash_of_weights(weights):
        raise UserError(f"{path / 'model.safetensors'} is damaged: it is not what was saved; copy it again")
    require_finite_weights(weights, path)
    return model


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a safetensors file by name, and the hash of them that was saved with them, if one was."""
    with safetensors.safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
        return weights, (file.metadata() or {}).get("sha256")


def require_finite_weights(weights: dict[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path} has weights that are not finite numbers ({broken[0]}), so it cannot score; name another checkpoint"
        )


def load_state_dict(path: Path, encoder_name: str | None) -> Pylon:
    state = load_safely(path)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        hint = "; it is for resuming, the network is in `best` beside it" if path.name == "last" else ""
        raise UserError(f"{path} is no plain state dict: a dictionary of names and tensors alone{hint}")
    state = {key.removeprefix("net."): value for key, value in state.items()}
    shapes = {key: value.shape for key, value in state.items()}
    if "segmentation_head.0.weight" not in shapes:
        raise UserError(f"{path} is of another network: it has no segmentation_head.0.weight")
    classes, decoder_channels = shapes["segmentation_head.0.weight"][:2]
    config = {
        "encoder_weights": None,
        "in_channels": shapes.get("encoder.conv1.weight", (0, 1))[1],
        "classes": classes,
        "decoder_channels": decoder_channels,
        "up_layers": 2 if "decoder.up1.conv1.0.conv.weight" in shapes else 1,
    }
    for name in (encoder_name,) if encoder_name else RESNETS:
        with torch.device("meta"):  # shapes without memory
            candidate = Pylon(encoder_name=name, **config)
        if {key: value.shape for key, value in candidate.state_dict().items()} == shapes:
            model = Pylon(encoder_name=name, **config)
            model.load_state_dict(state)
            require_finite_weights(state, path)
            return model
    raise UserError(f"{path} does not hold a PYLON with the encoder {encoder_name or ' or '.join(RESNETS)}")


def load_safely(path: Path) -> Any:
    """torch.load that refuses all but tensors and plain containers, after a look at the checksums, which it omits."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("a checksum differs")
        with warnings.catch_warnings():  # of an odd pickle: it is answered below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to lead to
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"{path} is damaged, or holds more than tensors and is not opened for safety") from error


def read_card(path: str | Path, model: Pylon | Baseline) -> dict[str, Any]:
    """What a checkpoint says of itself: at least class_names, mean, std, image_size.

    A checkpoint without a training.json in it (the authors' weights) has the paper's values, if it has the 14 classes.

    Raises:
        UserError: the card is damaged, or one of other weights than the model's, or lacks what is needed.
    """
    card = read_training_json(Path(path))
    if card is not None:
        if not is_card_of(card, hash_of_weights(model.state_dict())):
            raise UserError(
                f"{path} {OF_TWO_EPOCHS}; go on with the same train.py command (if that is running, try again in a "
                "moment), or copy the whole folder again"
            )
        return card
    classes = model.segmentation_head[0].out_channels
    if classes != len(PATHOLOGIES):
        raise UserError(f"{path} has {classes} classes and no training.json that names them")
    return {"class_names": list(PATHOLOGIES), "mean": MEAN, "std": STD, "image_size": 256}


def read_training_json(folder: Path) -> dict[str, Any] | None:
    """The card of a checkpoint, checked to be what was saved; None if it has none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    card = read_json(path)
    lacking = [key for key in ("class_names", "mean", "std", "image_size") if key not in card]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; copy the whole folder of the checkpoint again")
    if "sha256" in card and card.pop("sha256") != hash_of_card(card):
        raise UserError(f"{path} is damaged: it is not what was saved; copy it again")
    return card


def is_card_of(card: dict[str, Any], sha256: str) -> bool:
    """Whether a card names the weights of that hash, and not others, as after a kill between two renames."""
    return card.get("weights_sha256", sha256) == sha256  # a card of an earlier version names none


def fault_of_best(folder: Path, last_epoch: int) -> tuple[str, bool]:
    """What is wrong with a folder that `save_best` wrote, and whether the epoch after `last_epoch` mends it.

    Returns:
        A sentence without a cure, empty if nothing is wrong; and True where the folder is whole, but of two epochs,
        since the write of that next epoch was interrupted.
    """
    for name in ("config.json", "model.safetensors", "training.json"):
        if not (folder / name).is_file():
            return f"{folder / name} is gone", False
    try:
        read_json(folder / "config.json")
        card = read_training_json(folder)
        weights, written = read_weights(folder / "model.safetensors")
        sha256 = hash_of_weights(weights)
    except UserError as error:
        return str(error).rpartition("; ")[0], False
    except Exception:  # damaged weights raise whatever their bytes happen to lead to
        return f"{folder / 'model.safetensors'} is damaged", False
    if written not in (None, sha256):
        return f"{folder / 'model.safetensors'} is damaged", False
    if not is_card_of(card, sha256):
        return f"{folder} {OF_TWO_EPOCHS}", card.get("epoch") == last_epoch + 1
    return "", False


def mark_finished(folder: Path, finished: bool) -> None:
    """Write into the card of a checkpoint, if it has one, whether its training has finished."""
    card = read_training_json(folder)
    if card is not None and card.get("finished") != finished:
        write_atomically(folder / "training.json", card_file({**card, "finished": finished}))


def is_finished(folder: Path, card: dict[str, Any]) -> bool:
    """Whether the training of a checkpoint has finished; of a card of an earlier version `last` beside it tells."""
    last = folder.parent / "last"
    if "finished" in card or folder.name != "best" or not last.exists():
        return card.get("finished", True)
    state = load_last(last)
    return has_ended(state, state["options"])


def has_ended(last: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether nothing is left to do of what the options ask for."""
    return last["epoch"] >= options["epochs"] or last["lr"] <= options["min_lr"]


def make_card(
    class_names: list[str], options: dict[str, Any], split_hash: str, list_hashes: dict[str, str]
) -> dict[str, Any]:
    """The contents of training.json, less epoch, validation loss, thresholds and the hash of the weights."""
    return {
        "finished": False,
        "class_names": class_names,
        "mean": MEAN,
        "std": STD,
        "image_size": options["image_size"],
        "options": options,
        "split_sha256": split_hash,
        "list_sha256": list_hashes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def save_best(folder: Path, model: Pylon | Baseline, card: dict[str, Any]) -> None:
    """Write the folder that `load_pylon` opens; it opens at every moment, and a full disk leaves the one before.

    The card is the first to be renamed: after a kill it names weights that are not there yet, and `read_card` says so.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    config = {**model._hub_mixin_config, "encoder_weights": None}
    sha256 = hash_of_weights(weights)
    write_together({
        folder / "training.json": card_file({**card, "weights_sha256": sha256}),
        folder / "config.json": json.dumps(config, indent=2, sort_keys=True).encode(),
        folder / "model.safetensors": safetensors.torch.save(weights, metadata={"format": "pt", "sha256": sha256}),
    })  # fmt: skip


def hash_of_weights(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and numbers: neither safetensors nor torch notices a flipped bit."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def card_file(card: dict[str, Any]) -> bytes:
    return json.dumps({**card, "sha256": hash_of_card(card)}, indent=2).encode()


def hash_of_card(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def save_last(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_last(path: Path) -> dict[str, Any]:
    state = load_safely(path)
    if not isinstance(state, dict) or not state.keys() >= RESUMED:
        raise UserError(f"{path} is not a file that train.py wrote for resuming; --overwrite starts afresh")
    return state


def find_checkpoints(name: str, seeds: tuple[int, ...] = (), option: str = "--name") -> dict[str, Path]:
    """`best` of the seeds asked for, or of every seed under save/<name>/, by seed; `option` is what named it.

    Raises:
        UserError: there is none, or one asked for is not there; the sentence lists those that are.
    """
    folder = Path("save") / name
    found = {best.parent.name: best for best in folder.glob("*/best") if is_number(best.parent.name)}
    found = dict(sorted(found.items(), key=lambda item: int(item[0])))
    there = f"{folder} has seed {', '.join(found)}" if found else f"{folder} has none"
    lacking = [str(seed) for seed in seeds if str(seed) not in found]
    if lacking:
        raise UserError(f"seed {' '.join(lacking)} of {name} has no checkpoint; {there}; train it, or choose of those")
    if not found:
        other = "another" if option == "--compare" else "one with --checkpoint"
        raise UserError(f"{option} {name}: no checkpoint under {folder}; run train.py, or name {other}")
    return {str(seed): found[str(seed)] for seed in seeds} if seeds else found


def read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text())
        json.dumps(contents)  # what nests too deeply to be hashed is refused here
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it holds no names and values; copy it again")
    return contents


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
