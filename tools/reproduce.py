"""Reproduce the paper in one command: check, train, score, draw, and make a folder to publish.

    make reproduce                                  # or: python tools/reproduce.py
    make reproduce REPRODUCE="--data /disk/nih --cache-size 256"

Reads  NIH's files in --data (tools/download.py fetches them).
Writes save/NAME, csv/NAME and figs/NAME as the scripts write them; publish/NAME, the folder to
       publish (publication.py says what is in it); save/NAME/reproduce.json, the steps that are
       done.
Prints at the end, in one sentence, whether the published results are reproduced. The scripts are
run as you would type them. Started again, it leaves out the steps that are done.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pylon.system.cli import Device, check_name, parse, require_at_least, start
from pylon.system.errors import UserError


@dataclass
class Options:
    """Reproduce the paper: check, train, score, draw, and make a folder to publish."""

    data: Path = Path("data")
    """Folder with NIH's files."""
    name: str = "pylon"
    """Name of the experiment, for save/NAME, csv/NAME, figs/NAME."""
    seeds: int = 5
    """Networks to train: seeds 0, 1, ..; the paper has five."""
    repo: str = "user/pylon"
    """USER/NAME on the Hugging Face hub, for the model cards; -SEED is added. Nothing is sent."""
    out: Path | None = None
    """Folder to publish; publish/NAME if none is given."""
    device: Device = "auto"
    """As for train.py."""
    cache_size: int = 0
    """As for train.py."""
    num_workers: int | None = None
    """As for train.py."""
    train: str = ""
    """Further options of train.py, in quotes: --train="--epochs 1". The verdict then says that the
    networks were trained with other options than the published ones."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import tyro

from publication import Made, publish, require_own_folder, verdict
from pylon.checkpoints.checkpoint import is_finished
from pylon.checkpoints.training_json import read_json, read_training_json
from pylon.data.chestxray14 import list_hashes
from pylon.sharing.sharing import require_repo_name
from pylon.system.files import hash_of_json, hashed_json, hold_lock, write_atomically
from pylon.training import train_options

ROOT = Path(__file__).resolve().parents[1]
OURS = ("save", "csv", "figs", "publish")  # folders
DATA = "DATA"  # stands for the folder of the data in the steps, which are published
GIVEN = {"--name", "--seed", "--data", "--table", "--device", "--cache-size", "--num-workers"}
WAIT = 60  # seconds for a script to end after SIGTERM


class Step(NamedTuple):
    """A script to run."""

    script: str
    arguments: tuple[str, ...]
    makes: tuple[Path, ...]  # what is there once it is done
    seed: int | None = None  # that it trains
    scores: bool = False  # whether its results depend on the trained networks
    further: int = 0  # number of the last arguments, which the user has written

    @property
    def title(self) -> str:
        return shlex.join(["python", self.script, *self.arguments])

    @property
    def published(self) -> str:
        """The title without folders of this computer."""
        own = len(self.arguments) - self.further
        words = [without_folder(word, OURS) for word in self.arguments[:own]]
        words += map(without_folder, self.arguments[own:])
        return shlex.join(["python", self.script, *words])


def main(options: Options) -> None:
    check(options)
    out = options.out or Path("publish") / options.name
    require_own_folder(out)
    save = Path("save") / options.name
    save.mkdir(parents=True, exist_ok=True)
    busy = f"another process is reproducing {options.name}; wait, or choose another --name"
    hold_lock(save / ".reproduce-lock", busy)

    # the steps
    done = Done(save, options)
    steps = list(steps_of(options, out))
    begin = time.monotonic()
    left_out = 0
    for number, step in enumerate(steps, start=1):
        if done.has(step):
            left_out += 1
            continue
        words = done.words_of(step)
        print(f"\n[{number}/{len(steps)}] {shlex.join(['python', *words])}", flush=True)
        done.run(step)

    # the folder to publish
    csv = Path("csv") / options.name
    further = [without_folder(word) for word in shlex.split(options.train)]
    sentence = verdict(csv, options.seeds, further)
    made = Made(
        csv,
        Path("figs") / options.name,
        [str(seed) for seed in range(options.seeds)],
        [(step.published, done.seconds_of(step)) for step in steps],
        sentence,
    )
    publish(out, made)
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{len(steps)} steps in {minutes:.1f} minutes, of which {left_out} were done before")
    print(f"to publish: {out}")
    print(sentence)


def check(options: Options) -> None:
    require_at_least(options, seeds=1, cache_size=0, num_workers=0)
    check_name(options.name)
    require_repo_name(options.repo)
    if not options.data.is_dir():
        raise UserError(
            f"--data {options.data} is not a folder; tools/download.py fetches NIH's files"
        )
    try:
        further = shlex.split(options.train)
    except ValueError as error:
        raise UserError(f"--train {options.train!r} is not closed: {error}") from error
    for word in further:
        if word.partition("=")[0].replace("_", "-") in GIVEN:
            raise UserError(f"--train must not set {word}: it is set for all scripts")
    require_options(options, further)


def require_options(options: Options, further: Sequence[str]) -> None:
    """Check options of train.py now, not after the data have been checked for minutes.

    Raises:
        UserError: one is out of range.
        SystemExit: there is no such option, or its value is none; tyro has printed which.
    """
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    train = importlib.util.module_from_spec(spec)
    sys.modules["train"] = train  # tyro looks up types there
    spec.loader.exec_module(train)
    common = ("--name", options.name, "--cache-size", str(options.cache_size))
    given = tyro.cli(train.Options, args=[*further, *common], prog="--train")
    train_options.check(given, train.OF_PYLON)


def without_folder(word: str, ours: tuple[str, ...] = ()) -> str:
    """A word of a command; of a path, on whatever system, or an address, only the name.

    Args:
        ours: folders whose names we have chosen, and which are kept.
    """
    option, equals, value = re.fullmatch(r"(?:(--[\w-]+)(=))?(.*)", word, re.DOTALL).groups("")
    is_ours = value.split("/")[0] in ours and ".." not in value
    if is_ours or (ours and option == "--repo"):
        return word
    name = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return f"{option}{equals}{name}"


def steps_of(options: Options, out: Path) -> Iterator[Step]:
    """The scripts to run, in order.

    Args:
        out: the folder to publish.
    """
    # options of the scripts
    data = ("--data", DATA)
    name = () if options.name == "pylon" else ("--name", options.name)
    reading: tuple[str, ...] = ()
    if options.num_workers is not None:
        reading = ("--num-workers", str(options.num_workers))
    yield Step("tools/check_data.py", (*data, *reading), ())
    if options.cache_size:
        reading += ("--cache-size", str(options.cache_size))
    running = reading if options.device == "auto" else (*reading, "--device", options.device)
    seeds = [str(seed) for seed in range(options.seeds)]

    # train
    save = Path("save") / options.name
    further = shlex.split(options.train)
    for seed in range(options.seeds):
        trained = (save / str(seed) / "best",)
        arguments = (*name, "--seed", str(seed), *data, *running, *further)
        yield Step("train.py", arguments, trained, seed=seed, further=len(further))

    # score, with the page; draw
    csv = Path("csv") / options.name
    figures = Path("figs") / options.name
    common = (*name, *data, *running)
    rows = [csv / f"{seed}_images.csv" for seed in seeds]
    made = (*rows, csv / "auroc.csv", csv / "auroc.png")
    yield Step("eval_auc.py", (*common, "--seeds", *seeds), made, scores=True)
    rows = [csv / f"{seed}_boxes.csv" for seed in seeds]
    made = (*rows, csv / "point_localization.csv", csv / "html" / "index.html")
    yield Step("eval_loc.py", (*common, "--seeds", *seeds, "--html"), made, scores=True)
    drawing = (*common, "--seed", "0", "--out", str(figures))
    yield Step("generate_heatmap.py", drawing, (figures / "all",), scores=True)

    # cards
    for seed in seeds:
        folder = out / "networks" / seed
        arguments = ("--checkpoint", str(save / seed / "best"), "--scores", str(csv))
        arguments += (f"--repo={options.repo}-{seed}", "--dry-run", "--out", str(folder))
        yield Step("share.py", arguments, (folder / "README.md",), scores=True)


class Done:
    """The steps that are done, in save/NAME/reproduce.json, with the seconds that they took.

    A step is done for the same command, lists of data and, if it depends on them, networks.
    """

    def __init__(self, save: Path, options: Options):
        self.save = save
        self.options = options
        self.path = save / "reproduce.json"
        self.lists = list_hashes(options.data)
        self.steps: dict[str, Any] = {}  # by title: key, seconds
        try:
            record = read_json(self.path)
            if record.pop("sha256", None) == hash_of_json(record):
                self.steps = record["steps"]
        except (OSError, UserError):
            pass  # none yet, or damaged: the scripts themselves go on where they stopped

    def key(self, step: Step) -> str:
        """A hash of what the results of a step depend on."""
        weights = self.weights() if step.scores else None
        return hash_of_json({"title": step.title, "lists": self.lists, "weights": weights})

    def weights(self) -> list[str | None]:
        """The hash of each network's weights."""
        cards = [self.card(seed) for seed in range(self.options.seeds)]
        return [card and card.get("weights_sha256") for card in cards]

    def card(self, seed: int) -> dict[str, Any] | None:
        return read_training_json(self.save / str(seed) / "best")

    def has(self, step: Step) -> bool:
        """Whether a step is done."""
        record = self.steps.get(step.title)
        if record is None or not all(path.exists() for path in step.makes):
            return False
        if step.seed is not None:
            card = self.card(step.seed)
            if card is None or not is_finished(self.save / str(step.seed) / "best", card):
                return False
        return record["key"] == self.key(step)

    def seconds_of(self, step: Step) -> float:
        """Seconds that a step took, without attempts that were killed."""
        return self.steps[step.title]["seconds"]

    def words_of(self, step: Step) -> list[str]:
        """The script and its arguments, as they are run."""
        arguments = [str(self.options.data) if each == DATA else each for each in step.arguments]
        return [str(ROOT / step.script), *arguments]

    def run(self, step: Step) -> None:
        """Run a step and record it; if it fails, exit with its code, below its own sentence."""
        begin = time.monotonic()
        code = call([sys.executable, *self.words_of(step)])
        if code in (130, 143):  # stopped by Ctrl-C or SIGTERM, as we are
            raise KeyboardInterrupt
        if code != 0:
            print(
                f"\nstopped at {step.script}, which says why; once that is mended, the same "
                "command goes on with it",
                file=sys.stderr,
            )
            sys.exit(2 if code == 2 else 1)
        seconds = round(time.monotonic() - begin, 1)
        self.steps[step.title] = {"key": self.key(step), "seconds": seconds}
        write_atomically(self.path, hashed_json({"steps": self.steps}))


def call(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code; stop it if we are stopped."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on with the step that was stopped")
