"""Train PYLON and baselines on one data set: does PYLON localize better at equal AUROC?

    make study    # or: python experiments/study.py, on the phantom
    python experiments/study.py --data data --name nih --encoder-name resnet50 \\
        --encoder-weights imagenet --batch-size 64 --lr 1e-4 --seeds 5 --jobs 1    # NIH's images

    python experiments/study.py --data xl --name xl --networks pylon backbone-max backbone-avg \\
        gradcam --second-table det/table.csv --second-boxes det/boxes.csv --second-name Det \\
        --train="--min-lr 1e-6"    # scored on two sets of boxes; --partial reports what is there

Each network is trained by train.py and scored by eval_auc.py and eval_loc.py, several commands at a
time; after an interruption, the same command resumes.

Reads  --data, NIH's files, or --table and --boxes, your own; without them data/study, a phantom
       that is drawn first.
Writes save/NAME-*, csv/NAME-*, docs/NAME.md, figs/NAME.png; for a second set of boxes
       csv/NAME-SECOND_NAME-*, and links in save/ to the networks.
"""

import os
import shlex
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

Network = Literal["pylon", "backbone-max", "backbone-avg", "fpn", "gradcam"]


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
    second_table: Path | None = None
    """Another csv file of images to score, as --table, such as one whose labels are radiologists':
    its test images are scored too, and none may be among those that the networks are trained on."""
    second_boxes: Path | None = None
    """The boxes of --second-table."""
    second_name: str = "second"
    """What that set is called in the report and in csv/NAME-SECOND_NAME-*."""
    about: str | None = None
    """What the data is, for the report: completes "on ..."."""
    name: str = "study"
    """Begins the names of the experiments, and names the report and the figure."""
    networks: tuple[Network, ...] = ("pylon", "backbone-max", "backbone-avg", "fpn")
    """Networks to train; pylon, which the others are compared with, must be among them. gradcam is
    Grad-CAM of backbone-avg, which is not trained again."""
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
    train: str = ""
    """More options of train.py, for all networks, in one text and after an equals sign:
    --train="--min-lr 1e-6 --precision bf16"."""
    partial: bool = False
    """Train nothing: score and report the networks and seeds that are there, finished or not."""
    images: int = 1500
    """Images of the phantom, if it is to be drawn."""
    jobs: int = os.cpu_count() or 1
    """Commands to run at a time; they share the cores. Use 1 on a machine with one GPU."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

from pylon.checkpoints.training_json import has_finished
from pylon.data.checks import require_files, select_boxed
from pylon.data.sources import read_radiographs
from pylon.options import DataOptions
from pylon.system.files import write_atomically
from study_report import TITLE, draw, write_report
from study_tables import Study

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
    if not options.partial:
        train_all(options, data)
    study, left_out = what_is_there(options)
    boxes = () if options.boxes is None else ("--boxes", options.boxes)
    score_all(options, study, data, boxes)
    second = None
    if options.second_table is not None:
        name = f"{options.name}-{options.second_name}"
        second = (options.second_name, study._replace(name=name))
        link_networks(study, second[1])
        data = ("--table", options.second_table)
        score_all(options, second[1], data, ("--boxes", options.second_boxes))

    # the report
    report = Path(f"docs/{options.name}.md")
    figure = Path(f"figs/{options.name}.png")
    draw(study, figure)
    synthetic = is_phantom(options)
    said = (about(options), command(options))
    text = write_report(study, *said, figure, synthetic, second, left_out)
    write_atomically(report, text.encode())
    minutes = (time.perf_counter() - begin) / 60
    print(f"wrote {report} and {figure}, {minutes:.0f} minutes after the start")


def check(options: Options) -> None:
    require_at_least(options, images=20, epochs=1, seeds=1, jobs=1, batch_size=2, patience=0)
    check_name(options.name)
    check_name(options.second_name, "--second-name")
    if (options.second_table is None) != (options.second_boxes is None):
        raise UserError("--second-table and --second-boxes belong together; give both, or neither")
    if "gradcam" in options.networks and "backbone-avg" not in options.networks:
        raise UserError("--networks gradcam needs backbone-avg, whose logits it explains; add it")
    try:
        shlex.split(options.train)
    except ValueError as error:
        raise UserError(f"--train {options.train!r} is not a list of options: {error}") from error
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
    words = ["python experiments/study.py"]
    for name, value in vars(options).items():
        if value == getattr(Options, name) or name == "about":
            continue
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
            continue
        is_path = isinstance(value, Path) or (name != "train" and "/" in str(value))
        shown = Path(value).name if is_path else value
        values = " ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)
        if name == "train":
            words.append(f"--train={shlex.quote(values)}")
            continue
        words.append(f"--{name.replace('_', '-')} {values}")
    return " ".join(words)


def draw_phantom(count: int) -> None:
    if not (PHANTOM / "PHANTOM.txt").exists():
        options = ("--images", count, "--seed", 1)
        run_script("tools/phantom/make_phantom.py", "--out", PHANTOM, *options)
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
    if options.second_table is None:
        return

    # the second set, whose images must not have been trained on
    data = DataOptions(table=options.second_table)
    second = read_radiographs(
        data, radiographs.class_names, boxes=options.second_boxes, with_boxes=True
    )
    test = second.of_split("test")
    require_files(test, second)
    select_boxed(second)
    images = radiographs.images
    trained = {Path(name).name for name in images["image_id"][images["split"] != "test"]}
    seen = [name for name in test["image_id"] if Path(name).name in trained]
    if seen:
        raise UserError(
            f"{options.second_table}: {len(seen)} of its test images are among those that the "
            f"networks are trained on ({seen[0]}); leave them out of its split test"
        )


def what_is_there(options: Options) -> tuple[Study, str]:
    """The networks and seeds to report: all, or with --partial those that have a checkpoint.

    Returns:
        The study, and a sentence about what is missing or has not finished.
    """
    seeds = tuple(range(options.seeds))
    if not options.partial:
        return Study(options.name, options.networks, seeds), ""
    found = {}
    for name in options.networks:
        folder = Path("save", f"{options.name}-{'backbone-avg' if name == 'gradcam' else name}")
        found[name] = {seed for seed in seeds if (folder / f"{seed}/best/config.json").exists()}
    if not found["pylon"]:
        raise UserError(f"--partial: there is no network under save/{options.name}-pylon yet")
    networks = tuple(name for name in found if found[name] & found["pylon"])
    common = sorted(set.intersection(*(found[name] for name in networks)))
    if not common:
        raise UserError("--partial: no seed is there for all networks; choose fewer --networks")

    # what is left out, and what has not finished
    missing = [f"{n} {s}" for n in found for s in seeds if n not in networks or s not in common]
    trained = [(name, seed) for name in networks if name != "gradcam" for seed in common]
    best = {f"{n} {s}": Path(f"save/{options.name}-{n}/{s}/best") for n, s in trained}
    begun = [each for each, path in best.items() if not has_finished(path)]
    parts = []
    if missing:
        parts.append(f"Left out (network and seed): {', '.join(missing)}.")
    if begun:
        parts.append(f"Not finished, the best epoch so far: {', '.join(begun)}.")
    return Study(options.name, networks, tuple(common)), " ".join(parts)


def link_networks(study: Study, second: Study) -> None:
    """Let the networks of a study be found under the names of another set of boxes."""
    for network in study.networks:
        if network == "gradcam":
            continue
        link = Path("save", f"{second.name}-{network}")
        if not link.is_symlink():
            link.symlink_to(f"{study.name}-{network}", target_is_directory=True)


def train_all(options: Options, data: tuple[str, ...]) -> None:
    train = (
        "train.py", *data, "--encoder-name", options.encoder_name,
        "--encoder-weights", options.encoder_weights, "--batch-size", options.batch_size,
        "--epochs", options.epochs, "--lr", options.lr, "--patience", options.patience,
        "--cache-size", options.cache_size, "--num-workers", 0, *shlex.split(options.train),
    )  # fmt: skip
    commands = [
        (*train, "--name", f"{options.name}-{network}", "--seed", seed, *NETWORKS[network])
        for seed in range(options.seeds)
        for network in NETWORKS
        if network in options.networks
    ]
    at_once(commands, "training", options.jobs)


def score_all(options: Options, study: Study, data: tuple, boxes: tuple) -> None:
    """Score the networks of a study on images and boxes; Grad-CAM by a command of its own."""
    # score the others on their own, too: a comparison does not write their tables
    trained = [name for name in study.networks if name != "gradcam"]
    others = [f"{study.name}-{name}" for name in trained if name != "pylon"]
    compared = ("--name", f"{study.name}-pylon", *(("--compare", *others) if others else ()))
    named = [compared, *(("--name", name) for name in others)]
    score = (*data, "--cache-size", options.cache_size, "--num-workers", 0)
    score = (*score, "--seeds", *study.seeds)
    commands = [("eval_auc.py", *score, *names) for names in named]
    commands += [("eval_loc.py", *score, *boxes, *names) for names in named]
    if "gradcam" in study.networks:
        of_cam = ("--name", f"{study.name}-backbone-avg", "--method", "gradcam")
        commands.append(("eval_loc.py", *score, *boxes, *of_cam))
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
