"""Rehearse the whole experiment at its true size, 112,120 images whose pixels are invented.

    python benchmarks/rehearsal.py --metadata FOLDER --out DIR               # NIH's four lists
    python benchmarks/rehearsal.py --metadata FOLDER --out DIR --share 10    # a tenth of it

Writes DIR/data, NIH's names, lists, labels and boxes with invented pixels (see invented.py; 1 GB),
       DIR/data/cache (7 GB), DIR/save, DIR/csv, DIR/figs, DIR/logs, as the scripts write them;
       DIR/rehearsal.csv: seconds, peak memory of all processes and disk of each step.
Prints the last as a markdown table. The scripts are run unchanged, as a user types them; the first
training is killed in its second epoch and resumed. Started again, it leaves out what is done.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pylon.system.cli import parse, require_at_least, start
from pylon.system.errors import UserError


@dataclass
class Options:
    """Rehearse the whole experiment on NIH's lists with invented pixels."""

    metadata: Path
    """Folder with NIH's four lists, as they are or compressed (.gz)."""
    out: Path
    """Folder for data and results."""
    share: int = 100
    """Percent of the patients. Only all of them are compared with the published seeds."""
    size: int = 64
    """Cells per side of an invented image, which is 1024 x 1024 pixels."""
    seeds: int = 2
    """Networks to train: the first for 2 epochs, the others for one."""
    encoder_name: str = "tu-test_resnet"
    """Encoder of the networks, not pretrained."""
    cache_size: int = 256
    """Cache of decoded images for training and evaluation."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that draw and read images."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import sys
import time

import pandas as pd
import torch

from invented import write_data_set
from measure import machine
from pylon.system.files import write_csv
from watched import disk_of, watch

ROOT = Path(__file__).resolve().parents[1]
FILL = """
from pathlib import Path
from pylon.data.cache import open_cache
from pylon.data.sources import read_chestxray14
if __name__ == "__main__":
    images = read_chestxray14(Path("data")).images
    open_cache(images, Path("data/cache"), {size}, {workers})
"""
IN_EPOCH_2 = 20  # seconds that the killed training has spent in it


def main(options: Options) -> None:
    check(options)
    out = options.out.resolve()
    started = time.monotonic()
    count = write_data_set(
        options.metadata, out / "data", options.share, options.size, options.num_workers
    )
    steps = Steps(out, count)
    steps.add("drawing the images", time.monotonic() - started)
    workers = ("--num-workers", options.num_workers)
    steps.run("check_data.py", "tools/check_data.py", *workers)
    fill = FILL.format(size=options.cache_size, workers=options.num_workers)
    steps.run("filling the cache", "-c", fill)

    # train; the first network is killed in its second epoch, and resumed
    common = (*workers, "--cache-size", options.cache_size)
    network = ("--encoder-name", options.encoder_name, "--encoder-weights", "none", "--lr", "1e-3")
    train = ("train.py", *network, *common)
    in_epoch_2 = SomeTimeAfter(out / "csv/pylon/0.csv")
    steps.run("train.py, killed in epoch 2", *train, "--epochs", 2, until=in_epoch_2)
    steps.run("train.py, resumed", *train, "--epochs", 2)
    for seed in range(1, options.seeds):
        steps.run(f"train.py, seed {seed}, 1 epoch", *train, "--epochs", 1, "--seed", seed)

    # score, draw
    steps.run("eval_auc.py", "eval_auc.py", *common)
    steps.run("eval_loc.py", "eval_loc.py", *common)
    steps.run("generate_heatmap.py", "generate_heatmap.py", *common)
    steps.show()


def check(options: Options) -> None:
    require_at_least(options, size=16, seeds=1, cache_size=256, num_workers=0, share=1)
    if options.share > 100:
        raise UserError(f"--share must be at most 100 percent, not {options.share}")
    if 1024 % options.size:
        raise UserError(f"--size must divide 1024, not {options.size}")


class SomeTimeAfter:
    """Whether some seconds have passed since a file appeared, which an epoch ends with."""

    def __init__(self, path: Path):
        self.path = path
        self.appeared = None

    def __call__(self) -> bool:
        if self.appeared is None and self.path.exists():
            self.appeared = time.monotonic()
        return self.appeared is not None and time.monotonic() - self.appeared > IN_EPOCH_2


class Steps:
    """The steps of a rehearsal, written to OUT/rehearsal.csv one after another.

    Args:
        out: folder of the rehearsal.
        images: how many it has.
    """

    def __init__(self, out: Path, images: int):
        self.out = out
        self.images = images
        self.path = out / "rehearsal.csv"
        self.rows = pd.read_csv(self.path).to_dict("records") if self.path.exists() else []

    def add(self, step: str, seconds: float, memory: float = float("nan")) -> None:
        """Record a step, unless it was recorded by an earlier run."""
        if any(row["step"] == step for row in self.rows):
            return
        figures = {"images": self.images, "seconds": round(seconds, 1), "peak GB": round(memory, 2)}
        disk = round(disk_of(self.out), 2)
        self.rows.append({"step": step, **figures, "disk GB": disk})
        write_csv(self.path, pd.DataFrame(self.rows), index=False)

    def run(self, step: str, *arguments: object, until: SomeTimeAfter | None = None) -> None:
        """Run a script of this repository in the folder of the rehearsal, unless it is done.

        Raises:
            UserError: it fails, or ends before it can be killed.
        """
        if any(row["step"] == step for row in self.rows):
            return
        print(f"{step} ..", flush=True)
        script, *others = map(str, arguments)
        script = script if script == "-c" else str(ROOT / script)
        log = self.out / "logs" / f"{len(self.rows):02} {step}.txt"
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, script, *others]
        done = watch(command, self.out, log, {"PYTHONPATH": str(ROOT)}, until)
        if done.code != (0 if until is None else -9):
            raise UserError(f"{step} ended with exit code {done.code}; see {log}")
        self.add(step, done.seconds, done.memory)

    def show(self) -> None:
        print(f"\n{machine(torch.device('cpu'))}\n{self.images} images\n")
        print("| step | seconds | peak GB | disk GB |\n|---|---|---|---|")
        for row in self.rows:
            print(f"| {row['step']} | {row['seconds']} | {row['peak GB']} | {row['disk GB']} |")


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on with the step that was stopped")
