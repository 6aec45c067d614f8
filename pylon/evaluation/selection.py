"""Select the checkpoints to evaluate: existing, finished, and trained alike if averaged.

Checkpoints are keyed by their name in the tables: the seed, or the name of a file.
"""

import importlib.util
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pylon.baselines import kind_of
from pylon.checkpoints.checkpoint import find_checkpoint
from pylon.checkpoints.training_json import (
    differences,
    has_finished,
    read_json,
    read_training_json,
)
from pylon.hub import arguments_of
from pylon.model import STRIDE
from pylon.options import EvaluationOptions, Method, ScoreOptions, require_cache_size
from pylon.system.cli import check_name, require_at_least
from pylon.system.errors import UserError
from pylon.system.files import is_number
from pylon.system.parallel import on_main_process


def choose_checkpoints(
    options: EvaluationOptions, seeds: tuple[int, ...]
) -> tuple[str, dict[str, Path]]:
    """Return the name of the experiment and its checkpoints.

    Raises:
        UserError: an option is out of range, or a checkpoint is missing.
    """
    require_at_least(options, num_workers=0)
    if options.cache_size != 0 and options.cache_size < STRIDE:
        raise UserError(f"--cache-size must be 0 or at least {STRIDE}, not {options.cache_size}")
    require_cache_size(options, options.cache_size)
    if options.name is not None:
        check_name(options.name)
    if options.checkpoint is None:
        name = options.name or "pylon"
        return name, find_checkpoints(name, seeds)
    if seeds:
        raise UserError("--checkpoint selects a single checkpoint; leave the seeds out")
    label = label_of(options.checkpoint)
    check_name(label, "--checkpoint")
    return options.name or label, {label: find_checkpoint(options.checkpoint)}


def find_checkpoints(
    name: str, seeds: tuple[int, ...] = (), option: str = "--name"
) -> dict[str, Path]:
    """Find `best` of the given seeds, or of every seed under save/<name>/.

    Raises:
        UserError: there is none, or a given one is missing; the sentence lists those that exist,
            and names `option`.
    """
    folder = Path("save") / name
    found = {best.parent.name: best for best in folder.glob("*/best")}
    found = {seed: best for seed, best in found.items() if is_number(seed)}
    found = dict(sorted(found.items(), key=lambda item: int(item[0])))
    lacking = [str(seed) for seed in seeds if str(seed) not in found]
    if lacking:
        there = f"{folder} has seed {', '.join(found)}" if found else f"{folder} has none"
        raise UserError(
            f"seed {' '.join(lacking)} of {name} has no checkpoint; {there}; train it, "
            "or choose one of these"
        )
    if not found:
        other = "another" if option == "--compare" else "one with --checkpoint"
        raise UserError(
            f"{option} {name}: no checkpoint under {folder}; run train.py, or choose {other}"
        )
    return {str(seed): found[str(seed)] for seed in seeds} if seeds else found


def label_of(checkpoint: Path) -> str:
    """Name of the results: pylon-0 for save/pylon/0/best, otherwise the name of the checkpoint."""
    path = checkpoint.resolve()
    if path.name == "best":
        # without the root directory, for paths like /weights/best
        return "-".join(path.parts[1:][-3:-1]) or "best"
    return path.name.removesuffix(".pkl") or "pkl"


def find_experiments(options: ScoreOptions, accelerator: Accelerator) -> dict[str, dict[str, Path]]:
    """Return the finished checkpoints of all experiments; every process calls it.

    Raises:
        UserError: as `choose_experiments` and `settle`.
    """

    def find() -> dict[str, dict[str, Path]]:
        return settle(choose_experiments(options), options, accelerator.print)

    return on_main_process(accelerator, find)


def choose_experiments(options: ScoreOptions) -> dict[str, dict[str, Path]]:
    """Return the checkpoints of the experiment and of those it is compared with, by name.

    Raises:
        UserError: an option is out of range, or a checkpoint is missing.
    """
    name, checkpoints = choose_checkpoints(options, options.seeds)
    experiments = {name: checkpoints}
    for other in options.compare:
        check_name(other, "--compare")
        folder = Path("save", other).resolve()
        itself = options.checkpoint and options.checkpoint.resolve().is_relative_to(folder)
        check_other(other, experiments, bool(itself))
        experiments[other] = find_checkpoints(other, options.seeds, "--compare")
    return experiments


def check_other(other: str, experiments: dict[str, Any], itself: bool = False) -> None:
    """Raise a UserError if an experiment cannot be compared with those selected so far."""
    if other in experiments or other == "published" or itself:
        raise UserError(
            f"--compare {other} is the experiment itself, named twice, or a reserved name"
        )


def settle(
    experiments: dict[str, dict[str, Path]], options: ScoreOptions, say: Callable[[str], None]
) -> dict[str, dict[str, Path]]:
    """Return the experiments without the seeds that are still training.

    Raises:
        UserError: no seed of an experiment has finished, or its seeds were not trained alike.
    """
    settled = {}
    for name, checkpoints in experiments.items():
        settled[name] = leave_out_unfinished(name, checkpoints, bool(options.seeds), say)
        if len(settled[name]) > 1:
            require_trained_alike(name, settled[name], say)
    return settled


def leave_out_unfinished(
    name: str,
    checkpoints: dict[str, Path],
    asked: bool,
    say: Callable[[str], None],
    option: str = "--seeds",
    enough: int | None = None,
) -> dict[str, Path]:
    """Return the finished checkpoints; all, if they were requested or there is only one.

    Args:
        name: of the experiment.
        checkpoints: by seed.
        asked: whether they were requested explicitly.
        say: prints a note about unfinished ones.
        option: that selects seeds.
        enough: number of finished ones to return, after which no more are checked; None for all.

    Raises:
        UserError: there are several, and none is finished.
    """
    # requested, or the only one: scored as it is
    if asked or len(checkpoints) == 1:
        for path in checkpoints.values():
            if not has_finished(path):
                say(f"note: {path} has not finished training: using its best epoch so far")
        return checkpoints

    # only the finished ones
    finished = {}
    for seed, path in checkpoints.items():
        if len(finished) == enough:
            break
        if has_finished(path):
            finished[seed] = path
        else:
            say(f"note: {path} has not finished training: left out unless selected by {option}")
    if not finished:
        raise UserError(
            f"no seed of {name} has finished training; wait for one, or select unfinished ones: "
            f"{option} {' '.join(checkpoints)}"
        )
    return finished


def require_trained_alike(
    name: str, checkpoints: dict[str, Path], say: Callable[[str], None]
) -> None:
    """Raise a UserError if checkpoints were not trained alike (see `require_alike`)."""
    cards = {seed: read_training_json(path) for seed, path in checkpoints.items()}
    for seed, card in cards.items():
        if card is None:
            say(not_known(checkpoints[seed]))
    cards = {seed: card for seed, card in cards.items() if card is not None}
    configs = {seed: read_json(checkpoints[seed] / "config.json") for seed in cards}
    require_alike(name, cards, configs, say)


def not_known(checkpoint: Path | str) -> str:
    """Note about a checkpoint, one of several, that has no card."""
    return (
        f"note: {checkpoint} has no training.json: whether it was trained like the other seeds is "
        "not known"
    )


def require_alike(
    name: str,
    cards: dict[str, dict[str, Any]],
    configs: dict[str, dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Raise a UserError if seeds to be averaged are not of one network, trained alike.

    Options that may change when a run is resumed are not compared, but a note is printed if
    `--epochs` differ.

    Args:
        name: of the experiment.
        cards, configs: training.json and config.json of the checkpoints, by seed.
        say: prints a note.
    """
    first, *others = cards or [None]
    for seed in others:
        before = without_identity(cards[first])
        unlike = differences(before, without_identity(cards[seed]), "{} {} and {}")
        if not unlike and with_kind(configs[first]) != with_kind(configs[seed]):
            unlike.append("another network (config.json)")
        if unlike:
            raise UserError(
                f"seeds {first} and {seed} of {name} were not trained alike: {'; '.join(unlike)}. "
                "Choose seeds with --seeds, or train them alike"
            )
    trained = {seed: card.get("options", {}).get("epochs") for seed, card in cards.items()}
    epochs = {seed: count for seed, count in trained.items() if count is not None}
    if len(set(epochs.values())) > 1:
        each = ", ".join(f"{count} (seed {seed})" for seed, count in epochs.items())
        say(f"note: the seeds of {name} were trained with different --epochs: {each}")


def without_identity(card: dict[str, Any]) -> dict[str, Any]:
    """Return the options, without those that identify a seed, and the split."""
    options = card.get("options", {})
    options = {key: value for key, value in options.items() if key not in ("seed", "name")}
    return {"options": options, "split_sha256": card.get("split_sha256")}


def with_kind(config: dict[str, Any]) -> dict[str, Any]:
    return {**arguments_of(config), "kind": kind_of(config)}  # earlier versions did not write it


def require_classes(wanted: Sequence[str], class_names: Sequence[str], checkpoint: Path) -> None:
    """Raise a UserError if a network does not have a class of --classes; it names those like it."""
    for name in wanted:
        if name not in class_names:
            near = get_close_matches(name, class_names, n=3, cutoff=0.4)
            if near:
                hint = f"did you mean {', '.join(near)}?"
            else:
                hint = f"choose among {', '.join(class_names)}"
            raise UserError(f"--classes {name} is not a class of {checkpoint}; {hint}")


def check_method(method: Method, options: EvaluationOptions) -> None:
    """Raise a UserError if a method is not installed, or does not support the precision."""
    if method == "map":
        return
    if getattr(options, "tta", False):
        raise UserError(f"--method {method} is for a single network and image; leave out --tta")
    if options.precision != "fp32":
        raise UserError(f"--method {method} needs --precision fp32, not {options.precision}")
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise UserError(
            f"--method {method} needs the grad-cam library, which is not installed: "
            "pip install 'grad-cam>=1.5.7'"
        )
