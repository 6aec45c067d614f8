"""Where a training run keeps its files, and how one run takes the place of another."""

import math
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pylon.experiment.card import has_ended, mark_finished, read_json
from pylon.experiment.checkpoint import fault_of_best, load_last
from pylon.system.cli import flag
from pylon.system.errors import UserError
from pylon.system.files import flush_folder, hold_lock, require_writable
from pylon.system.parallel import on_main_process

MAY_CHANGE = {  # options that do not tell a run from another: it may be resumed with others
    "data", "epochs", "num_workers", "device", "compile", "skip_unreadable", "overwrite",
}  # fmt: skip


def open_run(name: str, seed: int, overwrite: bool, accelerator: Accelerator) -> tuple[Path, Path]:
    """The folder and the csv file of a run, locked for this process; every process calls it.

    They are save/NAME/SEED and csv/NAME/SEED.csv, or, to overwrite these, SEED.new and SEED.new.csv
    beside them until `close_run`.

    Raises:
        UserError: another process has the run, or a folder cannot be written.
    """
    place = Path("save") / name / str(seed)
    csv = Path("csv") / name / f"{seed}.csv"
    save = replacement(place) if overwrite else place

    def claim() -> None:
        require_writable(place.parent, csv.parent)
        sentence = f"another process trains {place}; wait for it, or choose another --name"
        hold_lock(place.with_name(f"{seed}.lock"), sentence)
        if aside(place).exists():  # killed in the middle of `close_run`
            replace(place)
        require_writable(save)

    on_main_process(accelerator, claim)
    return save, replacement(csv) if overwrite else csv


def find_last(
    save: Path,
    card: dict[str, Any],
    defaults: dict[str, Any],
    overwrite: bool,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """What an earlier run left for resuming, if anything; every process calls it.

    Args:
        save: the run's folder.
        card: what the run that now begins would write beside its network (`make_card`).
        defaults: of the options; what a run of an earlier version had, which did not know them all.
        overwrite: whether what was made with others is to be ignored.

    Where `best` is of two epochs since its write was interrupted, the lowest loss so far is
    forgotten, so that the next epoch, which is the later of them once more, writes it anew; a note
    says so.

    Raises:
        UserError: it was made with other options or data, and the sentence says which; or a part of
            it is gone or damaged.
    """
    # what is there; all processes look before one of them writes
    last = load_last_unless_overwritten(save / "last", overwrite)
    lost = lost_part(save, last)
    fault = ""
    mends = False
    if last is not None and lost != "best":
        fault, mends = fault_of_best(save / "best", last["epoch"])
        mends = mends and not has_ended(last, card["options"])  # or there is no next epoch
    accelerator.wait_for_everyone()
    if lost and not overwrite:
        raise UserError(
            f"{save}/{lost} is gone: the run cannot go on; choose another --name, or --overwrite"
        )
    if last is None:
        return None

    # whether this run may go on with it
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
                f"note: {fault}; going on from {save / 'last'}, the next epoch writes it anew"
            )
            last["best_loss"] = math.inf
        return last

    # or its `last` might one day go on beside the best network of this one
    if accelerator.is_main_process:
        (save / "last").unlink()
    return None


def load_last_unless_overwritten(path: Path, overwrite: bool) -> dict[str, Any] | None:
    """What is there for resuming, None if nothing, or nothing that can be read is overwritten."""
    if not path.exists():
        return None
    try:
        return load_last(path)
    except UserError as error:
        if overwrite:
            return None
        raise UserError(f"{error}; copy it again, choose another --name, or --overwrite") from error


def lost_part(save: Path, last: dict[str, Any] | None) -> str:
    """Which of a run's two parts is gone though the other is there: "best", "last" or neither."""
    has_network = (save / "best/model.safetensors").exists()
    if last is not None:
        return "" if has_network else "best"
    card = save / "best/training.json"
    trained = read_json(card).get("epoch", 0) if has_network and card.exists() else 0
    return "last" if trained > 1 else ""  # 1: killed before the first `last`


def differences(before: dict[str, Any], now: dict[str, Any], phrase: str) -> list[str]:
    """In what two trainings differ, a phrase each.

    An option that one of them does not know is not compared.

    Args:
        before, now: cards (`make_card`), or of them `options` and `split_sha256`.
        phrase: how an option is put, with places for its name and the two values.
    """
    found = []
    for key, value in now["options"].items():
        if key in MAY_CHANGE or key not in before["options"]:
            continue
        earlier = before["options"][key]
        if earlier != value:
            found.append(phrase.format(flag(key), earlier, value))
    if before["split_sha256"] != now["split_sha256"]:
        found.append("other images, labels or split")
    return found


def close_run(save: Path, csv: Path) -> Path:
    """Mark a run as finished and put it in the place of the one that it overwrites, if it does.

    Returns:
        The folder of the run.
    """
    mark_finished(save / "best", True)
    if not save.name.endswith(".new"):
        return save
    csv.rename(csv.with_name(csv.name.replace(".new", "")))
    place = save.with_name(save.name.removesuffix(".new"))
    if place.exists():
        place.rename(aside(place))
    replace(place)
    return place


def replace(place: Path) -> None:
    """The second half of the exchange, which goes on wherever it was killed."""
    if not place.exists():
        replacement(place).rename(place)
        flush_folder(place.parent)
    if aside(place).exists():
        shutil.rmtree(aside(place))


def replacement(place: Path) -> Path:
    return place.with_name(f"{place.stem}.new{place.suffix}")


def aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.old")
