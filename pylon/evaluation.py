"""What the three scripts that use a checkpoint ask for, and how they get it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pylon.checkpoint import find_checkpoints, load_pylon, read_card
from pylon.chestxray14 import class_names
from pylon.cli import UserError
from pylon.device import Device
from pylon.model import Pylon


@dataclass
class EvaluationOptions:
    data: Path = Path("data")
    """Folder with NIH's files."""
    name: str = "pylon"
    """Name of the experiment: checkpoints are looked for in save/NAME, results go to csv/NAME."""
    checkpoint: Path | None = None
    """Use this checkpoint instead: a folder, or the authors' model.pkl. Results go to csv/ and its name,
    unless --name says otherwise."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""

    def choose_checkpoints(self, seeds: tuple[int, ...]) -> dict[str, Path]:
        """The checkpoints asked for, by the word that the tables call them: the seed, or the name of the file."""
        if self.num_workers < 0:
            raise UserError(f"--num-workers must be at least 0, not {self.num_workers}")
        if self.checkpoint is None:
            return find_checkpoints(self.name, seeds)
        if seeds:
            raise UserError("--checkpoint names one checkpoint and --seeds others; give one of the two")
        if self.name == EvaluationOptions.name:
            self.name = self.checkpoint.resolve().stem
        return {self.checkpoint.resolve().stem: self.checkpoint}


def load_for(images: pd.DataFrame, path: Path) -> tuple[Pylon, dict[str, Any]]:
    """Network and card of a checkpoint, which must be one for the classes of the table."""
    model = load_pylon(path)
    card = read_card(path, model)
    if card["class_names"] != class_names(images):
        raise UserError(
            f"{path} knows the classes {', '.join(card['class_names'])}, the data {', '.join(class_names(images))}"
        )
    return model, card
