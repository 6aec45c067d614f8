"""training.json, the metadata of a checkpoint (its "card", as in "model card")."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pylon.hub import is_line
from pylon.options import MAY_CHANGE, options_with
from pylon.system.cli import flag
from pylon.system.errors import UserError
from pylon.system.files import hash_of_json, hashed_json, write_atomically

NEEDED = ("class_names", "mean", "std", "image_size")
PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations", "accelerate",
    "numpy", "opencv-python-headless", "pillow",
)  # fmt: skip


def make_card(
    class_names: Sequence[str],
    options: dict[str, Any],
    split_sha256: str,
    list_sha256: dict[str, str],
    mean: float,
    std: float,
    data: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Build a card without epoch, validation loss, thresholds and the hash of the weights.

    Args:
        class_names: in the order of the network's outputs.
        options: of train.py, including `image_size`.
        split_sha256, list_sha256: hashes of the data (see radiographs.py).
        mean, std: of intensities in [0, 1], for normalising inputs.
        data: facts about it, from `facts_about`.
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
        "data": data,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that scores may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def read_training_json(folder: Path) -> dict[str, Any] | None:
    """Read the card of a checkpoint, verified by its hash; None if it has none."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    card = read_json(path)
    lacking = [key for key in NEEDED if key not in card]
    if lacking:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}; copy the whole folder of the checkpoint again"
        )
    if not isinstance(card.get("list_sha256", {}), dict):
        raise UserError(f"{path} is damaged: list_sha256 is not a JSON object; copy it again")
    if "sha256" in card and card.pop("sha256") != hash_of_json(card):
        raise UserError(f"{path} is damaged: its hash does not match; copy it again")
    return card


def calibration_of(card: dict[str, Any], path: Path) -> dict[str, tuple[float, float]]:
    """The lines of Platt scaling that a checkpoint holds; a UserError if there are none."""
    lines = lines_of(card)
    if not lines:
        raise UserError(
            f"{path} holds no calibration (it was trained before there was one, or its validation "
            "split was too small); train again, or leave out --calibrated"
        )
    return lines


def lines_of(card: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """The lines of Platt scaling in a card, by class; classes without a line are skipped."""
    given = card.get("calibration")
    given = given if isinstance(given, dict) else {}
    return {name: tuple(line) for name, line in given.items() if is_line(line)}


def require_own_split(path: Path, card: dict[str, Any] | None, drawn_from: str | None) -> None:
    """Raise a UserError if a random split could test images that a network was trained on.

    Args:
        path: of the checkpoint.
        card: its card, if it has one.
        drawn_from: hash of the list whose images were split at random, if they were.
    """
    if drawn_from is None or drawn_from in (card or {}).get("list_sha256", {}).values():
        return
    raise UserError(
        f"the table has no column split, and {path} was not trained on it as it is now: a random "
        "split could test images that the network was trained on; add the column split (test for "
        "images to score)"
    )


def has_finished(folder: Path) -> bool:
    """Whether the training of a checkpoint has finished; assumed if that is not known."""
    card = read_training_json(folder)
    return card is None or card.get("finished", True)


def mark_finished(folder: Path, finished: bool) -> None:
    """Record in the card of a checkpoint, if it has one, whether its training has finished."""
    card = read_training_json(folder)
    if card is not None and card.get("finished") != finished:
        write_atomically(folder / "training.json", hashed_json({**card, "finished": finished}))


def has_ended(last: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether training has reached the number of epochs or, on a plateau, the minimum rate."""
    at_minimum = options["schedule"] == "plateau" and last["lr"] <= options["min_lr"]
    return last["epoch"] >= options["epochs"] or at_minimum


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise a UserError if the file is damaged or is not one."""
    try:
        contents = json.loads(path.read_text())
        json.dumps(contents)  # fails here if nested too deeply to be hashed
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; copy it again")
    return contents


def differences(before: dict[str, Any], now: dict[str, Any], phrase: str) -> list[str]:
    """List how two trainings differ, one phrase per difference.

    Options that only one of them has are not compared.

    Args:
        before, now: cards (`make_card`), or only their `options` and `split_sha256`.
        phrase: format string for an option's name and its two values.
    """
    found = []
    # a cosine ends with the last epoch, so more epochs would change those that were trained
    may_change = set(options_with(MAY_CHANGE))
    if now["options"].get("schedule") == "cosine":
        may_change.remove("epochs")
    for key, value in now["options"].items():
        if key in may_change or key not in before["options"]:
            continue
        earlier = before["options"][key]
        if earlier != value:
            found.append(phrase.format(flag(key), typed(earlier), typed(value)))
    if before["split_sha256"] != now["split_sha256"]:
        found.append("other images, labels or split")
    return found


def typed(value: Any) -> str:
    """The value of an option as on a command line."""
    if value is None or value == []:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
