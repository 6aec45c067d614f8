"""Where a training run keeps its files, how it resumes, and how one run replaces another."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator

from pylon.baselines import Baseline
from pylon.checkpoints.checkpoint import fault_of_best, load_last, save_best, save_last
from pylon.checkpoints.training_json import differences, has_ended, mark_finished, read_json
from pylon.model import Pylon
from pylon.options import TrainOptions, as_json
from pylon.scoring.calibration import platt_scaling
from pylon.scoring.charts import training_chart
from pylon.scoring.metrics import validation_scores, youden_thresholds
from pylon.system.errors import UserError
from pylon.system.files import (
    flush_folder,
    hold_lock,
    require_writable,
    write_atomically,
    write_csv,
)
from pylon.system.parallel import on_main_process, require_shared
from pylon.training.tracking import Tracker


class Run:
    """The files of a training, and what is known of it so far; every process has one.

    Args:
        options: of train.py.
        card: of the network, before it is trained.
        accelerator: of the training processes.

    Attributes:
        save: folder of the run.
        card: of the best network.
        last: what an earlier run left to resume from; None if there was none.
        rows: of the epochs so far, as in the csv file.
        best_loss: lowest validation loss so far.

    Raises:
        UserError: the run cannot be opened or resumed (see `open_run`, `find_last`).
    """

    def __init__(self, options: TrainOptions, card: dict[str, Any], accelerator: Accelerator):
        self.accelerator = accelerator
        self.card = card
        self.save, self.csv = open_run(options.name, options.seed, options.overwrite, accelerator)
        defaults = as_json(TrainOptions())
        self.last = find_last(self.save, card, defaults, options.overwrite, accelerator)
        resumed = self.last is not None
        self.tracker = Tracker(
            self.save, card["options"], card["class_names"], resumed, accelerator
        )
        self.draw: Callable[[], np.ndarray | None] | None = None  # the tracker's picture
        self.rows = self.last["rows"] if resumed else []
        self.best_loss = self.last["best_loss"] if resumed else math.inf
        if resumed and accelerator.is_main_process:  # a killed run may not have written it
            write_csv(self.csv, pd.DataFrame(self.rows), index=False)

    @property
    def epoch(self) -> int:
        """The last epoch that is finished; 0 if none is."""
        return self.last["epoch"] if self.last else 0

    def has_ended(self) -> bool:
        """Whether no epoch is left to train."""
        return self.last is not None and has_ended(self.last, self.card["options"])

    def resume(self, parts: dict[str, Any]) -> None:
        """Restore the network, the optimizer and so on from an earlier run, if there was one.

        Args:
            parts: by their names in `last`; None for those that this training does not have.
        """
        if not self.last:
            return
        for name, part in parts.items():
            if part is not None and self.last[name] is not None:
                part.load_state_dict(self.last[name])
        if self.accelerator.is_main_process and self.best_loss < math.inf:
            mark_finished(self.save / "best", False)
        self.accelerator.print(f"resuming {self.save} at epoch {self.epoch + 1}")
        # an earlier run may have been killed before logging its last epoch
        self.tracker.log(self.rows, self.draw)

    def end_epoch(
        self,
        row: dict[str, Any],
        lr: float,
        network: Pylon | Baseline,
        labels: np.ndarray,
        logits: np.ndarray,
        parts: dict[str, Any],
    ) -> None:
        """Save the network if it is the best, the rows, and the state to resume from; say so.

        Args:
            row: of this epoch.
            lr: learning rate of the next one.
            network: that was validated.
            labels, logits: (N, C), of the validation images.
            parts: as for `resume`.
        """
        epoch = row["epoch"]
        val_loss = row["val_loss"]
        improved = val_loss < self.best_loss
        self.best_loss = min(val_loss, self.best_loss)
        self.rows.append(row)
        states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        self.last = {
            "epoch": epoch,
            "lr": lr,
            "best_loss": self.best_loss,
            "rows": self.rows,
            "options": self.card["options"],
            "split_sha256": self.card["split_sha256"],
            "mean": self.card["mean"],
            "std": self.card["std"],
        }
        if self.accelerator.is_main_process:
            if improved:
                names = list(self.card["class_names"])
                thresholds = youden_thresholds(labels, logits, names)
                self.card |= {
                    "epoch": epoch,
                    "val_loss": val_loss,
                    "thresholds": thresholds,
                    "validation": validation_scores(labels, logits, thresholds),
                    "calibration": platt_scaling(labels, logits, names),
                }
                save_best(self.save / "best", network, self.card)
            table = pd.DataFrame(self.rows)
            write_csv(self.csv, table, index=False)
            write_atomically(self.csv.with_suffix(".png"), training_chart(table))
            save_last(self.save / "last", {**self.last, **states})
        macro = row["macro"]
        self.accelerator.print(
            f"epoch {epoch:2d}  train loss {row['train_loss']:.4f}  "
            f"validation loss {val_loss:.4f}{'*' if improved else ' '}"
            f"  AUROC {'-' if np.isnan(macro) else format(macro, '.3f')}"
            f"  {row['images_per_second']:.1f} images/s"
        )
        self.tracker.log(self.rows, self.draw)

    def finish(self) -> Path:
        """Mark the run as finished, in its final folder, and return that."""
        self.tracker.log(self.rows, self.draw)
        self.tracker.close()
        if self.accelerator.is_main_process:
            return close_run(self.save, self.csv)
        return self.save


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

    # what exists
    def read() -> tuple[dict[str, Any] | None, str, str, bool]:
        last = load_last_unless_overwritten(save / "last", overwrite)
        lost = lost_part(save, last)
        fault = ""
        mends = False
        if last is not None and lost != "best":
            fault, mends = fault_of_best(save / "best", last["epoch"])
            mends = mends and not has_ended(last, card["options"])  # otherwise no epoch follows
        return last, lost, fault, mends

    last, lost, fault, mends = on_main_process(accelerator, read)
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
