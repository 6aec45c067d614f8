"""Where a training run keeps its files, and how one run replaces another."""

import math
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pylon.checkpoints.checkpoint import fault_of_best, load_last
from pylon.checkpoints.training_json import differences, has_ended, mark_finished, read_json
from pylon.system.errors import UserError
from pylon.system.files import flush_folder, hold_lock, require_writable
from pylon.system.parallel import on_main_process, require_shared, same_on_all


def open_run(name: str, seed: int, overwrite: bool, accelerator: Accelerator) -> tuple[Path, Path]:
    """Return the folder and the csv file of a run, locked for this process; every process calls it.

    They are save/NAME/SEED and csv/NAME/SEED.csv or, to overwrite these, SEED.new and SEED.new.csv
    next to them until `close_run`.

    Raises:
        UserError: another process is training the run; a folder is not writable, or is not the
            same for all processes.
    """
    place = Path("save") / name / str(seed)
    csv = Path("csv") / name / f"{seed}.csv"
    save = replacement(place) if overwrite else place

    def claim() -> None:
        require_writable(place.parent, csv.parent)
        sentence = f"another process is training {place}; wait for it, or choose another --name"
        hold_lock(place.with_name(f"{seed}.lock"), sentence)
        if aside(place).exists():  # killed in the middle of `close_run`
            replace(place)
        require_writable(save)

    on_main_process(accelerator, claim)
    require_shared(accelerator, place.parent)  # each process reads it when the run is resumed
    return save, replacement(csv) if overwrite else csv


def find_last(
    save: Path,
    card: dict[str, Any],
    defaults: dict[str, Any],
    overwrite: bool,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """Load what an earlier run left for resuming, if anything; every process calls it.

    Args:
        save: the run's folder.
        card: of the run that is starting (`make_card`).
        defaults: of the options, for those that the version of the earlier run did not have.
        overwrite: whether to discard a run with other options or data.

    If `best` mixes two epochs because its write was interrupted, the lowest loss so far is
    discarded, so that the next epoch, which repeats the later of them, writes it again; a note is
    printed.

    Raises:
        UserError: it was trained with other options or data, which the sentence lists; or a part of
            it is missing or damaged.
    """

    # what exists; all processes read before one of them writes
    def read() -> tuple[dict[str, Any] | None, str, str, bool]:
        last = load_last_unless_overwritten(save / "last", overwrite)
        lost = lost_part(save, last)
        fault = ""
        mends = False
        if last is not None and lost != "best":
            fault, mends = fault_of_best(save / "best", last["epoch"])
            mends = mends and not has_ended(last, card["options"])  # otherwise no epoch follows
        return last, lost, fault, mends

    last, lost, fault, mends = same_on_all(
        accelerator,
        read,
        f"files in {save}",
        key=lambda found: (found[0] and found[0]["epoch"], found[1:]),
    )
    if lost and not overwrite:
        raise UserError(
            f"{save}/{lost} is missing: cannot resume; choose another --name, or --overwrite"
        )
    if last is None:
        return None

    # whether this run may resume from it
    before = {**last, "options": {**defaults, **last["options"]}}
    other = differences(before, card, "{} {} (now {})")
    if other and not overwrite:
        raise UserError(
            f"{save} was trained with {', '.join(other)}; choose another --name, or --overwrite it"
        )
    if fault and not mends and not overwrite:
        raise UserError(f"{fault}; copy it again, choose another --name, or --overwrite")
    if not other and not lost and (not fault or mends):
        if mends:
            accelerator.print(
                f"note: {fault}; resuming from {save / 'last'}, the next epoch writes it again"
            )
            last["best_loss"] = math.inf
        return last

    # otherwise its `last` might one day be resumed together with this run's `best`
    if accelerator.is_main_process:
        (save / "last").unlink()
    return None


def load_last_unless_overwritten(path: Path, overwrite: bool) -> dict[str, Any] | None:
    """Load `last`; None if there is none, or if it is unreadable and will be overwritten."""
    if not path.exists():
        return None
    try:
        return load_last(path)
    except UserError as error:
        if overwrite:
            return None
        raise UserError(f"{error}; copy it again, choose another --name, or --overwrite") from error


def lost_part(save: Path, last: dict[str, Any] | None) -> str:
    """Which of a run's two parts is missing while the other exists: "best", "last" or ""."""
    has_network = (save / "best/model.safetensors").exists()
    if last is not None:
        return "" if has_network else "best"
    card = save / "best/training.json"
    trained = read_json(card).get("epoch", 0) if has_network and card.exists() else 0
    return "last" if trained > 1 else ""  # 1: killed before the first `last`


def close_run(save: Path, csv: Path) -> Path:
    """Mark a run as finished and, if it overwrites another, move it into that one's place.

    Returns:
        The folder of the run.
    """
    mark_finished(save / "best", True)
    if not save.name.endswith(".new"):
        return save
    for path in (csv, csv.with_suffix(".png")):
        if path.exists():
            path.rename(path.with_name(path.name.replace(".new", "")))
    place = save.with_name(save.name.removesuffix(".new"))
    if place.exists():
        place.rename(aside(place))
    replace(place)
    return place


def replace(place: Path) -> None:
    """Do the second half of the replacement; safe to repeat wherever it was killed."""
    if not place.exists():
        replacement(place).rename(place)
        flush_folder(place.parent)
    if aside(place).exists():
        shutil.rmtree(aside(place))


def replacement(place: Path) -> Path:
    return place.with_name(f"{place.stem}.new{place.suffix}")


def aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.old")
