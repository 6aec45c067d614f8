"""training.json, what a checkpoint says of itself, and whether its training has finished."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pylon.system.errors import UserError
from pylon.system.files import hash_of_json, write_atomically

NEEDED = ("class_names", "mean", "std", "image_size")
PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations", "accelerate",
    "numpy",
)  # fmt: skip


def make_card(
    class_names: Sequence[str],
    options: dict[str, Any],
    split_sha256: str,
    list_sha256: dict[str, str],
    mean: float,
    std: float,
) -> dict[str, Any]:
    """The contents of training.json, less epoch, validation loss, thresholds and weights' hash.

    Args:
        class_names: in the order of the network's outputs.
        options: of train.py; `image_size` among them.
        split_sha256, list_sha256: of the data (see contract.py).
        mean, std: of intensities in [0, 1], that inputs are normalised with.
    """
    return {
        "finished": False,
        "class_names": list(class_names),
        "mean": mean,
        "std": std,
        "image_size": options["image_size"],
        "options": options,
        "split_sha256": split_sha256,
        "list_sha256": list_sha256,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def read_training_json(folder: Path) -> dict[str, Any] | None:
    """The card of a checkpoint, checked to be what was saved; None if it has none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    card = read_json(path)
    lacking = [key for key in NEEDED if key not in card]
    if lacking:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}; copy the whole folder of the checkpoint again"
        )
    if "sha256" in card and card.pop("sha256") != hash_of_json(card):
        raise UserError(f"{path} is damaged: it is not what was saved; copy it again")
    return card


def is_card_of(card: dict[str, Any], sha256: str) -> bool:
    """Whether a card names the weights of that hash, and not others, as after a kill in a write."""
    return card.get("weights_sha256", sha256) == sha256  # an earlier version's card names none


def mark_finished(folder: Path, finished: bool) -> None:
    """Write into the card of a checkpoint, if it has one, whether its training has finished."""
    card = read_training_json(folder)
    if card is not None and card.get("finished") != finished:
        write_atomically(folder / "training.json", card_file({**card, "finished": finished}))


def has_ended(last: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether nothing is left to do of what the options ask for."""
    return last["epoch"] >= options["epochs"] or last["lr"] <= options["min_lr"]


def card_file(card: dict[str, Any]) -> bytes:
    """A card as it is written, with its own hash."""
    return json.dumps({**card, "sha256": hash_of_json(card)}, indent=2).encode()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of names and values; a UserError if it is none."""
    try:
        contents = json.loads(path.read_text())
        json.dumps(contents)  # what nests too deeply to be hashed is refused here
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it holds no names and values; copy it again")
    return contents
