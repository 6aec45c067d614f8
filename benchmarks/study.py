"""Train PYLON and baselines on one data set: does PYLON localize better at equal AUROC?

    make study    # or: python benchmarks/study.py, on the phantom
    python benchmarks/study.py --data data --name nih --encoder-name resnet50 \\
        --encoder-weights imagenet --batch-size 64 --lr 1e-4 --seeds 5 --jobs 1    # NIH's images

Each network is trained by train.py and scored by eval_auc.py and eval_loc.py, several commands at a
time; after an interruption, the same command resumes.

Reads  --data, NIH's files, or --table and --boxes, your own; without them data/study, a phantom
       that is drawn first.
Writes save/NAME-*, csv/NAME-*, docs/NAME.md, figs/NAME.png.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pylon.system.cli import check_name, parse, require_at_least, start
from pylon.system.errors import UserError
from pylon.system.progress import track

Network = Literal["pylon", "backbone-max", "backbone-avg", "fpn"]


@dataclass
class Options:
    """Train PYLON and baselines on one data set, several seeds each, and write docs/NAME.md and
    figs/NAME.png. Without --data or --table, the data is a phantom."""

    data: Path | None = None
    """Folder with NIH's files."""
    table: Path | None = None
    """Instead of --data: a csv file of your own images, as for train.py."""
    boxes: Path | None = None
    """With --table: a csv file of boxes, as for eval_loc.py."""
    about: str | None = None
    """What the data is, for the report: completes "on ..."."""
    name: str = "study"
    """Begins the names of the experiments, and names the report and the figure."""
    networks: tuple[Network, ...] = ("pylon", "backbone-max", "backbone-avg", "fpn")
    """Networks to train; pylon, which the others are compared with, must be among them."""
    seeds: int = 3
    """Seeds per network."""
    epochs: int = 40
    """Maximum number of epochs per network."""
    batch_size: int = 4
    """Images per step."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    patience: int = 2
    """Epochs without improvement that are tolerated before the learning rate is reduced."""
    encoder_name: str = "tu-test_resnet"
    """Encoder of all networks."""
    encoder_weights: str = "none"
    """Its first weights: imagenet, none, or a file."""
    cache_size: int = 0
    """Side of the images in a cache, as for train.py; 0: none."""
    images: int = 1500
    """Images of the phantom, if it is to be drawn."""
    jobs: int = os.cpu_count() or 1
    """Commands to run at a time; they share the cores. Use 1 on a machine with one GPU."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

from pylon.data.checks import require_files, select_boxed
from pylon.data.options import DataOptions
from pylon.data.sources import read_radiographs
from pylon.system.files import write_atomically
from study_report import TITLE, Study, draw, write_report

ROOT = Path(__file__).parent.parent
PHANTOM = Path("data/study")
NETWORKS = {  # slowest first, so that no slow one runs alone at the end
    "fpn": ("--model", "fpn"),
    "pylon": ("--model", "pylon"),
    "backbone-max": ("--model", "backbone", "--pool", "max"),
    "backbone-avg": ("--model", "backbone", "--pool", "avg"),
}
RUNNING: set[subprocess.Popen] = set()


def main(options: Options) -> None:
    check(options)
    begin = time.perf_counter()
    options = with_whole_paths(options)
    data = data_of(options)
    os.chdir(ROOT)
    if data == ("--data", str(PHANTOM)):
        draw_phantom(options.images)
    check_data(options)
    train_all(options, data)
    score_all(options, data)

    # the report
    study = Study(options.name, options.networks, options.seeds)
    report = Path(f"docs/{options.name}.md")
    figure = Path(f"figs/{options.name}.png")
    draw(study, figure)
    text = write_report(study, about(options), command(options), figure, is_phantom(options))
    write_atomically(report, text.encode())
    minutes = (time.perf_counter() - begin) / 60
    print(f"wrote {report} and {figure}, {minutes:.0f} minutes after the start")


def check(options: Options) -> None:
    require_at_least(options, images=20, epochs=1, seeds=1, jobs=1, batch_size=2, patience=0)
    check_name(options.name)
    if "pylon" not in options.networks or len(set(options.networks)) < len(options.networks):
        raise UserError(
            f"--networks {' '.join(options.networks)} must name pylon, and each network once"
        )
    if options.data is not None and options.table is not None:
        raise UserError("--data and --table are two sources of images; leave one of them out")
    if options.boxes is not None and options.table is None:
        raise UserError("--boxes is for --table; NIH's files have their own")
    if options.table is not None and options.boxes is None:
        raise UserError("--table needs --boxes: without boxes there is no localization to compare")
    report = ROOT / f"docs/{options.name}.md"
    if report.exists() and not report.read_text().startswith(TITLE):
        raise UserError(f"--name {options.name}: {report} is not a study's report; choose another")


def with_whole_paths(options: Options) -> Options:
    """The options with paths that stay valid when the working directory changes."""
    given = vars(options).items()
    whole = {name: value.resolve() for name, value in given if isinstance(value, Path)}
    weights = Path(options.encoder_weights)
    if weights.is_file():
        whole["encoder_weights"] = str(weights.resolve())
    return replace(options, **whole)


def data_of(options: Options) -> tuple[str, ...]:
    """The options of the scripts that name the data."""
    if options.table is not None:
        return ("--table", str(options.table))
    return ("--data", str(options.data or PHANTOM))


def about(options: Options) -> str:
    """What the networks were trained on: completes "on ..."."""
    if options.about is not None:
        return options.about
    if is_phantom(options):
        return "the phantom, which is [not medical data](../data/README.md)"
    return f"`{(options.table or options.data).name}`"


def is_phantom(options: Options) -> bool:
    return options.table is None and ((options.data or PHANTOM) / "PHANTOM.txt").exists()


def command(options: Options) -> str:
    """The command that runs this study, with the options that are not the defaults.

    Paths are written without their folders: they are those of another machine.
    """
    words = ["python benchmarks/study.py"]
    for name, value in vars(options).items():
        if value == getattr(Options, name) or name == "about":
            continue
        is_path = isinstance(value, Path) or "/" in str(value)
        shown = Path(value).name if is_path else value
        values = " ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)
        words.append(f"--{name.replace('_', '-')} {values}")
    return " ".join(words)


def draw_phantom(count: int) -> None:
    if not (PHANTOM / "PHANTOM.txt").exists():
        options = ("--images", count, "--seed", 1)
        run_script("tools/make_phantom.py", "--out", PHANTOM, *options)
    lines = (PHANTOM / "Data_Entry_2017.csv").read_text().splitlines()
    drawn = len(lines) - 1
    if drawn != count:
        raise UserError(
            f"{PHANTOM} has {drawn} images, not --images {count}; remove it and save/study-*"
        )


def check_data(options: Options) -> None:
    """Raise a UserError for faulty data or boxes now, not after days of training."""
    data = DataOptions(table=options.table)
    if options.table is None:
        data.data = options.data or PHANTOM
    radiographs = read_radiographs(data, boxes=options.boxes, with_boxes=True)
    require_files(radiographs.images, radiographs)
    select_boxed(radiographs)


def train_all(options: Options, data: tuple[str, ...]) -> None:
    train = (
        "train.py", *data, "--encoder-name", options.encoder_name,
        "--encoder-weights", options.encoder_weights, "--batch-size", options.batch_size,
        "--epochs", options.epochs, "--lr", options.lr, "--patience", options.patience,
        "--cache-size", options.cache_size, "--num-workers", 0,
    )  # fmt: skip
    commands = [
        (*train, "--name", f"{options.name}-{network}", "--seed", seed, *NETWORKS[network])
        for seed in range(options.seeds)
        for network in NETWORKS
        if network in options.networks
    ]
    at_once(commands, "training", options.jobs)


def score_all(options: Options, data: tuple[str, ...]) -> None:
    # score the others on their own, too: a comparison does not write their tables
    others = [f"{options.name}-{name}" for name in options.networks if name != "pylon"]
    compared = ("--name", f"{options.name}-pylon", *(("--compare", *others) if others else ()))
    named = [compared, *(("--name", name) for name in others)]
    score = (*data, "--cache-size", options.cache_size, "--num-workers", 0)
    score = (*score, "--seeds", *range(options.seeds))
    boxes = () if options.boxes is None else ("--boxes", options.boxes)
    commands = [("eval_auc.py", *score, *names) for names in named]
    commands += [("eval_loc.py", *score, *boxes, *names) for names in named]
    at_once(commands, "scoring", options.jobs)


def at_once(commands: list[tuple], title: str, jobs: int) -> None:
    """Run commands, `jobs` at a time; if one fails, start no more and stop the others."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_script, *command, jobs=jobs) for command in commands]
        ended = as_completed(waiting)
        try:
            for finished in track(ended, title, "command", total=len(waiting), leave=True):
                finished.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in RUNNING:
                process.terminate()
            raise


def run_script(*command: object, jobs: int = 1) -> None:
    """Run one script with its share of the cores; if it fails, print its output and exit as it.

    Raises:
        UserError: with the sentence of the script, if it has refused its input.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    arguments = [sys.executable, *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        arguments, env=environment, stdout=pipe, stderr=pipe, text=True
    ) as process:
        RUNNING.add(process)
        out, err = process.communicate()
        RUNNING.remove(process)
    refused = [line for line in err.splitlines() if line.startswith("error: ")]
    if process.returncode == 2 and refused:
        raise UserError(refused[0].removeprefix("error: "))
    if process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        sys.exit(128 + signal.SIGTERM)  # stopped by `at_once`, which tells why
    if process.returncode:
        print(f"{' '.join(arguments)}\n{out[-2000:]}{err[-2000:]}", file=sys.stderr)
        sys.exit(process.returncode)


if __name__ == "__main__":
    start(main, OPTIONS, after_stop="the same command resumes where it stopped")
