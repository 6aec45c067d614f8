"""What the three scripts that use a checkpoint ask for, and how they get it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from pylon.cache import open_cache
from pylon.checkpoint import find_checkpoints, is_finished, load_pylon, read_card, read_json, read_training_json
from pylon.chestxray14 import class_names, list_hashes
from pylon.cli import UserError, check_name, require_at_least
from pylon.dataset import eval_loader
from pylon.device import Device
from pylon.explain import Method
from pylon.model import STRIDE, Pylon
from pylon.runs import differences
from pylon.transforms import eval_transform


@dataclass
class EvaluationOptions:
    data: Path = Path("data")
    """Folder with NIH's files."""
    name: str | None = None
    """Name of the experiment, pylon if none is given: its checkpoints are in save/NAME, its results go to csv/NAME."""
    checkpoint: Path | None = None
    """Use this checkpoint instead: a folder, or the authors' model.pkl. Without --name, results go to csv/ and its
    name (save/pylon/0/best: csv/pylon-0)."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32: scores are those of every machine but for rounding. bf16: faster where the hardware has it; scores move,
    those of eval_loc.py too, since the maxima of coarser maps lie elsewhere or tie."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""
    cache_size: int = 0
    """Read images from a cache of decoded ones in DATA/cache, no side above this many pixels, filled when first used;
    1024 is exact for NIH's. 0: read the image files."""

    def require_float32(self, method: Method) -> None:
        """Raise a UserError if a method that needs gradients is asked for in another precision."""
        if method != "map" and self.precision != "fp32":
            raise UserError(f"--method {method} needs --precision fp32, not {self.precision}")

    def choose_checkpoints(self, seeds: tuple[int, ...]) -> tuple[str, dict[str, Path]]:
        """The name of the experiment and its checkpoints by what the tables call them: a seed, or the file's name."""
        require_at_least(self, num_workers=0)
        if self.cache_size != 0 and self.cache_size < STRIDE:
            raise UserError(f"--cache-size must be 0 or at least {STRIDE}, not {self.cache_size}")
        if self.name is not None:
            check_name(self.name)
        if self.checkpoint is None:
            return self.name or "pylon", find_checkpoints(self.name or "pylon", seeds)
        if seeds:
            raise UserError("--checkpoint names one checkpoint; leave the seeds out")
        label = label_of(self.checkpoint)
        check_name(label, "--checkpoint")
        return self.name or label, {label: self.checkpoint}

    def load(self, images: pd.DataFrame, path: Path, accelerator: Accelerator) -> tuple[Pylon, dict[str, Any]]:
        """Network, on the device, and card of a checkpoint, which must be one for the classes of the table."""
        model = load_pylon(path)
        card = read_card(path, model)
        if model.in_channels != 1:
            raise UserError(f"{path} takes {model.in_channels} channels, but radiographs are read as one grey channel")
        if card["class_names"] != class_names(images):
            raise UserError(
                f"{path} knows the classes {', '.join(card['class_names'])}, the data {', '.join(class_names(images))}"
            )
        if 0 < self.cache_size < card["image_size"]:
            raise UserError(f"--cache-size {self.cache_size} is below the {card['image_size']} pixels that {path} sees")
        now = list_hashes(self.data)
        others = [name for name, digest in card.get("list_sha256", {}).items() if now.get(name, digest) != digest]
        if others:
            accelerator.print(f"note: {path} was trained with another {', another '.join(others)} than {self.data} has")
        return model.to(accelerator.device, memory_format=torch.channels_last), card


def label_of(checkpoint: Path) -> str:
    """What results of a checkpoint are called: pylon-0 of save/pylon/0/best, else the name of the file or folder."""
    path = checkpoint.resolve()
    if path.name == "best":
        return "-".join(path.parts[1:][-3:-1]) or "best"  # less the root, which /weights/best is close to
    return path.name.removesuffix(".pkl") or "pkl"


def leave_out_unfinished(
    name: str,
    checkpoints: dict[str, Path],
    asked: bool,
    say: Callable[[str], None],
    option: str = "--seeds",
    enough: int | None = None,
) -> dict[str, Path]:
    """The checkpoints whose training has finished; the others, too, if they were asked for, or there is only one.

    Args:
        name: of the experiment.
        checkpoints: by seed.
        asked: whether each of them was named.
        say: how to tell which are unfinished.
        option: by which seeds are asked for.
        enough: how many finished ones are wanted; those behind them are not looked at. All, if it is None.

    Raises:
        UserError: there are several, and none is finished.
    """
    if asked or len(checkpoints) == 1:
        for path in checkpoints.values():
            if not has_finished(path, say):
                say(f"note: {path} has not finished training: this is what it is so far")
        return checkpoints
    finished = {}
    for seed, path in checkpoints.items():
        if len(finished) == enough:
            break
        if has_finished(path, say):
            finished[seed] = path
        else:
            say(f"note: {path} has not finished training: it is left out, unless {option} asks for it")
    if not finished:
        raise UserError(
            f"no seed of {name} has finished training; wait for one, or ask for what there is: {option} "
            f"{' '.join(checkpoints)}"
        )
    return finished


def has_finished(path: Path, say: Callable[[str], None]) -> bool:
    """Whether the training of a checkpoint has finished, as far as can be told."""
    card = read_training_json(path)
    if card is None:
        return True
    try:
        return is_finished(path, card)
    except UserError as error:
        say(f"note: whether {path} has finished training is not known: {error}")
        return True


def require_alike(name: str, checkpoints: dict[str, Path], say: Callable[[str], None]) -> None:
    """Raise a UserError if seeds, of which a mean is to be, are not of one network, trained alike on the same data.

    What may change when a run is resumed is not compared; but a note says where `--epochs` differ.
    """
    read = {seed: read_training_json(path) for seed, path in checkpoints.items()}
    cards = {seed: card for seed, card in read.items() if card is not None}
    for seed in read.keys() - cards.keys():
        say(f"note: {checkpoints[seed]} has no training.json: whether it was trained like the other seeds is not known")
    first, *others = cards or [None]
    for seed in others:
        card, other = cards[first], cards[seed]
        unlike = differences(without_identity(card), without_identity(other), "{} {} and {}")
        networks = [read_json(checkpoints[number] / "config.json") for number in (first, seed)]
        if not unlike and networks[0] != networks[1]:
            unlike.append("another network (config.json)")
        if unlike:
            raise UserError(
                f"seeds {first} and {seed} of {name} were not trained alike: {'; '.join(unlike)}. "
                "Choose seeds with --seeds, or train them alike"
            )
    epochs = {seed: card["options"]["epochs"] for seed, card in cards.items() if "epochs" in card.get("options", {})}
    if len(set(epochs.values())) > 1:
        each = ", ".join(f"{count} (seed {seed})" for seed, count in epochs.items())
        say(f"note: the seeds of {name} were trained with different --epochs: {each}")


def without_identity(card: dict[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in card.get("options", {}).items() if key not in ("seed", "name")}
    return {"options": options, "split_sha256": card.get("split_sha256")}


def require_numbers(scores: np.ndarray, path: Path) -> None:
    """Raise a UserError if a network, however finite its weights, gives no numbers."""
    if not np.isfinite(scores).all():
        raise UserError(f"{path} gives scores that are not finite numbers; name another checkpoint with --checkpoint")


@dataclass
class ScoreOptions(EvaluationOptions):
    seeds: tuple[int, ...] = ()
    """Seeds to score; every seed under save/NAME if none is named."""
    batch_size: int | None = None
    """Images at a time, over all processes together; if none is given, 128 a GPU, or 8 a process on a CPU."""
    compare: tuple[str, ...] = ()
    """Names of other experiments: their seeds (or --seeds) are scored, too, and compared with this one's in pairs.
    What was written of them stays as it is."""

    def choose_runs(self) -> dict[str, dict[str, Path]]:
        """Checkpoints by seed, of the experiment and then of those that it is compared with, by their names."""
        name, checkpoints = self.choose_checkpoints(self.seeds)
        runs = {name: checkpoints}
        for other in self.compare:
            check_name(other, "--compare")
            of_it = self.checkpoint and self.checkpoint.resolve().is_relative_to(Path("save", other).resolve())
            if other in runs or other == "published" or of_it:
                raise UserError(f"--compare {other} is the experiment itself, named twice, or no name for one")
            runs[other] = find_checkpoints(other, self.seeds, "--compare")
        return runs

    def settle_runs(self, runs: dict[str, dict[str, Path]], say: Callable[[str], None]) -> dict[str, dict[str, Path]]:
        """The same, less seeds that are still in training; raise a UserError if those of one run are not alike."""
        settled = {}
        for name, checkpoints in runs.items():
            settled[name] = leave_out_unfinished(name, checkpoints, bool(self.seeds), say)
            if len(settled[name]) > 1:
                require_alike(name, settled[name], say)
        return settled

    def networks(
        self, checkpoints: dict[str, Path], images: pd.DataFrame, accelerator: Accelerator
    ) -> Iterator[tuple[str, Pylon, dict[str, Any], DataLoader]]:
        """Seed, network and card of each checkpoint, and the images as that network sees them."""
        cache, batch_size = None, self.batch_size or images_at_a_time(accelerator)
        for seed, path in checkpoints.items():
            model, card = self.load(images, path, accelerator)  # its image size is needed before the cache is filled
            cache = cache or open_cache(images, self.data, self.cache_size, self.num_workers, accelerator.print)
            pin = accelerator.device.type == "cuda"
            loader = eval_loader(images, eval_transform(card["image_size"]), batch_size, self.num_workers, cache, pin)
            yield seed, model, card, accelerator.prepare(loader)
            accelerator.free_memory()  # it would keep every seed's loader, and those their workers


def images_at_a_time(accelerator: Accelerator) -> int:
    # A CPU is half as fast again with few images, whose features it keeps in memory that it already has.
    return accelerator.num_processes * (8 if accelerator.device.type == "cpu" else 128)
