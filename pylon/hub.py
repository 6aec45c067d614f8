"""Checkpoints that explain themselves: what config.json says of a network, and how it is saved.

    config.json        kind and arguments of the network; what its inputs and outputs mean
                       (`Description`); version of this layout; hash of all this
    model.safetensors  the weights and their hash
    training.json      how it was trained, if that is known (pylon/checkpoints/training_json.py)
    README.md          the model card (pylon/model_card.py), for people

`save_pretrained`, `from_pretrained` and `push_to_hub` of `Pylon` and `Baseline` keep all of it;
`push_to_hub` leaves out what is private in training.json, such as paths.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from torch import Tensor

from pylon.model_card import model_card, shared_card
from pylon.system.files import hash_of_json, hashed_json
from pylon.system.tensors import narrowed, widened

LAYOUT = 2  # version of config.json; 1 had only the arguments
DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")


@dataclass(frozen=True)
class Description:
    """What the inputs and outputs of a network mean; None if unknown.

    Attributes:
        class_names: in the order of the outputs.
        mean, std: of intensities in [0, 1], for normalising inputs.
        image_size: side of the input, pixels.
        thresholds: probability from which each class is called present, by name; None where there
            is none.
        calibration: slope (above 0) and intercept, by name, of the line that turns a logit into
            that of a calibrated probability (Platt scaling); None where there is none.
    """

    class_names: tuple[str, ...] | None = None
    mean: float | None = None
    std: float | None = None
    image_size: int | None = None
    thresholds: dict[str, float | None] | None = None
    calibration: dict[str, tuple[float, float] | None] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], classes: int) -> Self:
        """Take the description out of a config or card; other keys are ignored.

        Args:
            values: as in config.json.
            classes: number of outputs of the network.

        Raises:
            ValueError: a value is impossible.
        """
        given = {field.name: values.get(field.name) for field in fields(cls)}
        names = given["class_names"]
        if names is not None:
            if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
                raise ValueError("class_names must be a list of names")
            if len(names) != classes or len(set(names)) != classes:
                raise ValueError(
                    f"class_names must be {classes} different names, one per output of the network"
                )
            given["class_names"] = tuple(names)
        for key in ("mean", "std"):
            if given[key] is not None and not is_finite(given[key]):
                raise ValueError(f"{key} must be a number, got {given[key]!r}")
        if given["std"] is not None and given["std"] <= 0:
            raise ValueError(f"std must be above 0, got {given['std']}")
        thresholds = given["thresholds"]
        if thresholds is not None and (
            not isinstance(thresholds, dict)
            or not all(t is None or (is_finite(t) and 0 <= t <= 1) for t in thresholds.values())
        ):
            raise ValueError("thresholds must be probabilities by class name")
        lines = given["calibration"]
        if lines is not None and (
            not isinstance(lines, dict) or not all(n is None or is_line(n) for n in lines.values())
        ):
            raise ValueError("calibration must be a slope above 0 and an intercept by class name")
        return cls(**given)

    def stated(self) -> dict[str, Any]:
        """What is stated, as in config.json."""
        stated = {key: value for key, value in asdict(self).items() if value is not None}
        if self.class_names is not None:
            stated["class_names"] = list(self.class_names)
        return stated


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_line(value: Any) -> bool:
    """Whether it is a slope above 0 and an intercept."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(map(is_finite, value)) and value[0] > 0


# keys of config.json that are not arguments of the network
NOT_ARGUMENTS = {"kind", "layout", "sha256", *(field.name for field in fields(Description))}


class Checkpointed(PyTorchModelHubMixin):
    """Saving and loading of networks, with their description and card.

    Attributes:
        description: what inputs and outputs mean; set it before saving a network of your own.
        card: how it was trained (training.json), or None. It and the thresholds are saved again as
            long as the weights are those that it belongs to.
        loaded_sha256: hash of the weights as `load_pylon` read them from a folder, or None.

    config.json is always written from these; a `config` given to `save_pretrained` is not used.
    """

    kind: str
    description = Description()
    card: dict[str, Any] | None = None
    loaded_sha256: str | None = None

    def _save_pretrained(self, save_directory: Path) -> None:
        files = files_of(self)
        if "training.json" not in files and (save_directory / "training.json").exists():
            for name in ("training.json", "README.md"):  # of other weights
                (save_directory / name).unlink(missing_ok=True)
        for name, content in files.items():
            (save_directory / name).write_bytes(content)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Upload as huggingface_hub does, without what is private in the card."""
        card = self.card
        if card is not None:
            self.card = shared_card(card)
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            self.card = card

    def generate_model_card(self, **kwargs) -> ModelCard:
        """Write README.md, which `save_pretrained` adds where there is none; see `model_card`."""
        config, card = stated_by(self, hash_of_weights(weights_of(self)))
        return model_card(config, card, **kwargs)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, strict: bool = True, **kwargs
    ) -> Self:
        """Load from a folder or the hub; all weights come from the file, so skip ImageNet's."""
        require_layout(config or {})
        arguments = {**kwargs, "encoder_weights": None}
        model = super()._from_pretrained(model_id=model_id, strict=strict, **arguments)
        card = find_card(model_id, {key: kwargs.get(key) for key in DOWNLOAD})
        sha256 = hash_of_weights(model.state_dict())
        if card is not None and is_card_of(card, sha256):
            model.card = {**card, "weights_sha256": sha256}
        model.description = Description.of({**(model.card or {}), **(config or {})}, model.classes)
        return model


def require_layout(config: dict[str, Any]) -> None:
    """Raise a ValueError if a config.json was written by a later version than this one."""
    layout = config.get("layout", 1)
    if type(layout) is not int or not 1 <= layout <= LAYOUT:
        raise ValueError(
            f"layout is {layout!r}, but this version reads 1 to {LAYOUT}; update the code"
        )


def find_card(model_id: str, download: dict[str, Any]) -> dict[str, Any] | None:
    """The card in a folder or on the hub; None if there is none, or it is damaged."""
    try:
        if os.path.isdir(model_id):
            path = Path(model_id, "training.json")
        else:
            path = Path(hf_hub_download(model_id, "training.json", **download))
        card = json.loads(path.read_text())
        written = card.pop("sha256", None)
    except Exception:  # no such file, no connection, not JSON: the network needs none
        return None
    return card if written in (None, hash_of_json(card)) else None


def is_card_of(card: dict[str, Any], sha256: str) -> bool:
    """Whether a card belongs to the weights with that hash; not so after a kill while writing."""
    return card.get("weights_sha256", sha256) == sha256  # none in cards of earlier versions


def arguments_of(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a network in its config.json."""
    return {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}


def config_of(model: Checkpointed) -> dict[str, Any]:
    """Kind and arguments from which `build_network` rebuilds a network, without its description."""
    return {**arguments_of(model._hub_mixin_config), "kind": model.kind, "encoder_weights": None}


def stated_by(model: Checkpointed, sha256: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What config.json and training.json say of a network.

    Args:
        sha256: hash of its weights. A card of other weights is left out, with the thresholds and
            calibration that were chosen for those.

    Raises:
        ValueError: the description does not fit the network.
    """
    card = model.card
    described = Description.of(model.description.stated(), model.classes).stated()
    if card is not None and not is_card_of(card, sha256):
        card = None
        for chosen in ("thresholds", "calibration"):
            described.pop(chosen, None)
    config = {**config_of(model), **described, "layout": LAYOUT}
    return dict(sorted(config.items())), card and {**card, "weights_sha256": sha256}


def files_of(model: Checkpointed) -> dict[str, bytes]:
    """The files of a checkpoint, by name, but README.md; training.json only for these weights.

    Tensors that half precision holds exactly (`round_to_half`) are written so. The hash is of the
    float32 tensors that are read back.

    Raises:
        ValueError: the description does not fit the network.
    """
    weights = weights_of(model)
    sha256 = hash_of_weights(weights)
    config, card = stated_by(model, sha256)
    files = {
        "config.json": hashed_json(config),
        "model.safetensors": safetensors.torch.save(
            {name: narrowed(value) for name, value in weights.items()},
            metadata={"format": "pt", "sha256": sha256},
        ),
    }
    return files if card is None else {"training.json": hashed_json(card), **files}


def weights_of(model: Checkpointed) -> dict[str, Tensor]:
    """The weights as they are read back: on the CPU, contiguous, none in half precision."""
    state = model.state_dict()
    return {key: widened(value.detach().cpu().contiguous()) for key, value in state.items()}


def hash_of_weights(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values; no library used here detects a flipped bit."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
