"""Show a training in TensorBoard, Weights & Biases, MLflow or Trackio (`--track`), by Accelerate.

save/<name>/<seed>/<tracker>/logged.json  the last epoch that was logged, and the tracker's run
save/<name>/<seed>/tensorboard/events..   TensorBoard's files; the others keep theirs where their
                                          own viewers look for them

An epoch is logged when `last` is saved, after which it is never trained again. A run that is killed
between the two logs it when it is resumed, from the rows of the csv file.
"""

import importlib
import json
import math
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from pylon.baselines import Baseline
from pylon.data.cache import ImageCache
from pylon.data.dataset import RadiographDataset
from pylon.data.transforms import eval_transform, normalize
from pylon.drawing import Panel, draw_sheet, fit, overlay, title_of
from pylon.heatmaps import are_probabilities, probability, scaled
from pylon.model import Pylon
from pylon.system.cli import Track
from pylon.system.files import write_atomically

IMAGES = 8
SIDE = 256  # of an image in the picture, pixels
PICTURE = "heatmaps"  # its name in the tracker
# Offline, and without reports to the makers of a library, unless the user's environment says so.
ENVIRONMENT = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 would hold up training for minutes
}


class Tracker:
    """Log each epoch once, on the main process; without `--track`, do nothing.

    Whatever goes wrong in a tracker ends the tracking, with a note, and never the training.

    Args:
        save: folder of the run.
        options: of train.py, as they are written to the card.
        class_names: of the rows' AUROC.
        resumed: whether the run goes on; what an earlier one left in its folder is removed if not.
        accelerator: of the training processes, made with the tracker's name.
    """

    def __init__(
        self,
        save: Path,
        options: dict[str, Any],
        class_names: Sequence[str],
        resumed: bool,
        accelerator: Accelerator,
    ):
        self.name = options["track"] if accelerator.is_main_process else None
        self.options = options
        self.class_names = class_names
        self.accelerator = accelerator
        self.save = save
        self.started = False
        if accelerator.is_main_process and not resumed:
            for name in get_args(Track):
                shutil.rmtree(save / name, ignore_errors=True)

    def log(
        self, rows: Sequence[dict[str, Any]], draw: Callable[[], np.ndarray | None] | None = None
    ) -> None:
        """Log the epochs that have not been logged yet.

        Args:
            rows: of all epochs, as in the csv file.
            draw: makes the picture of the last of them, (H, W, 3) uint8 RGB, if there is one.
        """
        if self.name is None or not rows:
            return
        try:
            self.log_missing(rows, draw)
        except Exception as error:  # each library has its own, on a full disk or without a server
            self.give_up(error)

    def log_missing(
        self, rows: Sequence[dict[str, Any]], draw: Callable[[], np.ndarray | None] | None
    ) -> None:
        record = self.read_record()
        logged = min(record["epoch"], rows[-1]["epoch"])
        if logged < record["epoch"]:  # `last` is an older one, from a copy: epochs are repeated
            self.write_record({**record, "epoch": logged})
        missing = [row for row in rows if row["epoch"] > logged]
        if not missing:
            return
        if not self.started:
            record = self.start(record["run"], logged)
        for row in missing:
            epoch = row["epoch"]
            figures = figures_of(row, self.class_names)
            picture = draw() if draw is not None and row is rows[-1] else None
            if picture is not None:
                figures |= self.log_picture(picture, epoch)
            self.accelerator.log(figures, step=epoch)
            self.write_record({"epoch": epoch, "run": record["run"]})

    def start(self, run: str | None, logged: int) -> dict[str, Any]:
        """Start the tracker's run, or go on with it; return the record.

        Args:
            run: its id, or None for a new one.
            logged: the last epoch that was logged.
        """
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        unique = f"{self.options['seed']}-{uuid.uuid4().hex[:8]}"
        settings = {
            # TensorBoard then forgets later epochs, which a kill left without a record
            "tensorboard": {"purge_step": logged + 1},
            "wandb": {"id": run or unique, "name": run or unique, "resume": "allow"},
            "mlflow": {"run_id": run, "run_name": unique},
            "trackio": {"name": run or unique, "resume": "allow"},
        }
        name = self.options["name"]
        options = self.options if run is None else None
        if self.name == "tensorboard":
            name = f"{self.save.parent.name}/{self.save.name}/tensorboard"  # in the project's save/
            options = None  # it would write them as a run of their own
        threading.excepthook = show_unless_tensorboards
        self.accelerator.init_trackers(name, options, {self.name: settings[self.name]})
        self.started = True
        if self.name == "mlflow":  # chooses the id itself
            unique = self.accelerator.get_tracker("mlflow", unwrap=True).info.run_id
        record = {"epoch": logged, "run": run or unique}
        self.write_record(record)
        return record

    def log_picture(self, picture: np.ndarray, epoch: int) -> dict[str, Any]:
        """Log a picture, (H, W, 3) uint8 RGB, or return it to be logged with the figures."""
        library = importlib.import_module(self.name)
        if self.name == "tensorboard":
            tracker = self.accelerator.get_tracker("tensorboard")
            tracker.log_images({PICTURE: picture[None]}, step=epoch, dataformats="NHWC")
            return {}
        if self.name == "mlflow":
            library.log_image(picture, artifact_file=f"{PICTURE}/{epoch:03}.png")
            return {}
        return {PICTURE: library.Image(picture)}  # wandb, trackio

    def close(self) -> None:
        """Finish the tracker's run, before the run's folder is renamed."""
        try:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        except Exception as error:
            self.give_up(error)
        # or `end_training` would finish them again
        self.accelerator.trackers.clear()

    def give_up(self, error: Exception) -> None:
        said = " ".join(str(error).split())[:200]
        self.accelerator.print(
            f"note: --track {self.name} has stopped ({type(error).__name__}: {said}); training "
            "goes on, and the same command, given once more, logs what is missing"
        )
        self.name = None
        self.accelerator.trackers.clear()

    def read_record(self) -> dict[str, Any]:
        path = self.save / self.name / "logged.json"
        return json.loads(path.read_text()) if path.exists() else {"epoch": 0, "run": None}

    def write_record(self, record: dict[str, Any]) -> None:
        write_atomically(self.save / self.name / "logged.json", json.dumps(record).encode())


def show_unless_tensorboards(fault: threading.ExceptHookArgs) -> None:
    """Print an error in a thread, unless it is TensorBoard's, which raises it in ours as well."""
    if not type(fault.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(fault)


def figures_of(row: dict[str, Any], class_names: Sequence[str]) -> dict[str, float]:
    """The numbers of an epoch by their names in the tracker; undefined ones are left out."""
    figures = {
        "loss/train": row["train_loss"],
        "loss/validation": row["val_loss"],
        "lr": row["lr"],
        "images_per_second": row["images_per_second"],
        **{f"auroc/{name}": row[name] for name in (*class_names, "weighted", "macro")},
    }
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def choose_images(
    val: pd.DataFrame, class_names: Sequence[str], seed: int
) -> list[tuple[int, int]]:
    """Choose the images of the picture: rows of the table, and for each one of its classes.

    Args:
        val: table of the validation images; those without a finding are not chosen.
        class_names: its label columns.
        seed: on which alone the choice depends.
    """
    present = val[list(class_names)].to_numpy() == 1  # (N, C); unknown labels are not
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(present.any(axis=1)))[:IMAGES]
    return [(int(row), int(rng.choice(np.flatnonzero(present[row])))) for row in rows]


@torch.inference_mode()
def draw_heatmaps(
    net: Pylon | Baseline,
    val: pd.DataFrame,
    class_names: Sequence[str],
    seed: int,
    image_size: int,
    cache: ImageCache | None,
    mean: float,
    std: float,
    accelerator: Accelerator,
) -> np.ndarray | None:
    """Draw the heatmaps of the chosen validation images.

    Args:
        net: the network, not wrapped; it is left in eval mode.
        val, class_names, seed: as for `choose_images`.
        image_size: side of the network's input, pixels.
        cache: of the images, if there is one.
        mean, std: of intensities in [0, 1], for `normalize`.

    Returns:
        (H, W, 3) uint8, RGB; None if no validation image has a finding.
    """
    chosen = choose_images(val, class_names, seed)
    if not chosen:
        return None
    net.eval()
    images = val.iloc[[row for row, _ in chosen]]
    dataset = RadiographDataset(images, class_names, eval_transform(image_size), cache=cache)
    scale = "absolute" if are_probabilities(net) else "minmax"
    panels = []
    for k, (_, c) in enumerate(chosen):
        pixels = dataset[k]["image"]  # (1, S, S) uint8
        batch = normalize(pixels[None].to(accelerator.device), mean, std)
        # not net(batch), which --compile would compile again for a batch of one
        with accelerator.autocast():
            output = net.forward(batch)
        heatmap = scaled(output.maps[0, c].float(), net).cpu().numpy()  # (h, w)
        chance = probability(output.logits[0, c].float()).item()
        picture = overlay(fit(pixels[0].numpy(), SIDE), heatmap, scale)
        title = title_of(class_names[c], chance, None)
        panels.append(Panel(picture, title, images["image_id"].iloc[k]))
    sheet = np.frombuffer(draw_sheet(panels, with_bar=scale == "absolute"), np.uint8)
    return cv2.cvtColor(cv2.imdecode(sheet, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
