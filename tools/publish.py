"""Make a folder to publish of an experiment that is trained, scored and drawn; say the verdict.

    make reproduce    # all of it; or, for the last step alone, python tools/publish.py

Reads  save/NAME, csv/NAME and figs/NAME.
Writes publish/NAME:
    README.md      the verdict, what was trained, what the files are
    networks/SEED  a network with its model card, as share.py pushes it
    scores/NAME/   tables, pictures and rows; `eval_auc.py --from OUT/scores/NAME` rebuilds them
    page/          the heatmaps of a seed to look through in a browser; figures/, as pages
    manifest.json  SHA-256 of every file
Prints in one sentence whether the published results are reproduced. Nothing is sent, and no file
holds a path, or the name of a user or a computer.
"""

from dataclasses import dataclass
from pathlib import Path

from pylon.system.cli import check_name, flag, parse, start


@dataclass
class Options:
    """Make a folder to publish of an experiment, and say whether the paper is reproduced."""

    name: str = "pylon"
    """Name of the experiment, as for train.py."""
    repo: str = "user/pylon"
    """USER/NAME on the Hugging Face hub, for the model cards; -SEED is added. Nothing is sent."""
    out: Path | None = None
    """Folder to publish; publish/NAME if none is given."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd
import torch

from pylon.checkpoints.training_json import versions
from pylon.model_card import CAVEAT, CITATION, LICENCE, plain, shared_card, table
from pylon.options import TrainOptions, as_json
from pylon.scoring.rows import Rows, read_rows, write_rows
from pylon.sharing.sharing import require_repo_name, shared_files, write_shared
from pylon.system.errors import UserError
from pylon.system.files import hashed_json, write_atomically

KINDS = ("networks", "scores", "page", "figures")
PICTURES = ("auroc", "reliability", "point_localization", "box_localization")
TABLES = (
    "auroc", "auroc_beside_published", "calibration", "point_localization",
    "point_localization_beside_published", "box_localization",
)  # fmt: skip
NO_VERDICT = "verdict: none"
COMMAND = re.compile(r'"command": "(?:[^"\\]|\\.)*"')  # in index.html of the page
FILES = """\
| file | what it is |
|---|---|
| `networks/SEED` | each network with its model card, as `share.py` pushes it; \
`pylon.load_pylon("networks/0")` loads it |
| `scores/NAME/*.csv`, `*.png` | the tables and their pictures; the training of each seed |
| `scores/NAME/SEED_images.csv`, `SEED_boxes.csv` | rows: every prediction. \
`python eval_auc.py --from scores/NAME` and `eval_loc.py --from scores/NAME` rebuild the tables of \
AUROC and of points from them, without network and data |
| `page/index.html` | the heatmaps of one seed on the boxed images, in any browser |
| `figures/` | the same as pages, and those of the paper's figure |
| `manifest.json` | SHA-256 of every file |"""
LICENCES = (
    "Networks, tables and rows: the licence that the networks' cards name. Code: Apache License "
    "2.0."
)
NIHS = (
    "The radiographs in `page/` and `figures/` are of ChestX-ray14, provided by the NIH Clinical "
    "Center (https://nihcc.app.box.com/v/ChestXray-NIHCC), which asks that they are cited with "
    "that link and with Wang et al., ChestX-ray8, CVPR 2017."
)


# options of train.py that say where and how fast a network is trained, and which of the seeds it is
NO_MATTER = {"seed", "device", "cache_size"}


class Made(NamedTuple):
    """What was trained, scored and drawn."""

    csv: Path  # csv/NAME
    figures: Path  # figs/NAME
    seeds: list[str]
    verdict: str


def main(options: Options) -> None:
    check_name(options.name)
    require_repo_name(options.repo)
    out = options.out or Path("publish") / options.name
    require_own_folder(out)
    csv = Path("csv") / options.name
    figures = Path("figs") / options.name
    seeds = seeds_in(csv)
    for path in (
        csv / "html/index.html",
        figures / "all",
        *(csv / f"{s}_boxes.csv" for s in seeds),
    ):
        if not path.exists():
            raise UserError(f"{path} is absent; run `make reproduce NAME={options.name}`")

    # the networks, then all that was made with them
    for seed in seeds:
        checkpoint = Path("save") / options.name / seed / "best"
        repo = f"{options.repo}-{seed}"
        files = shared_files(checkpoint, repo, csv, None, LICENCE, False, print)
        write_shared(out / "networks" / seed, files)
    made = Made(csv, figures, seeds, verdict(csv, seeds))
    write_folder(out, made)
    print(f"to publish: {out}")
    print(made.verdict)


def seeds_in(csv: Path) -> list[str]:
    """The seeds that were scored, as in the names of their files."""
    names = [path.name.removesuffix("_images.csv") for path in csv.glob("*_images.csv")]
    seeds = sorted((name for name in names if name.isdecimal()), key=int)
    if not seeds:
        raise UserError(f"{csv} has no scores; run `make reproduce NAME={csv.name}`")
    return seeds


def other_options(card: dict[str, Any]) -> list[str]:
    """Options of train.py, as typed, that differ from those of the published networks."""
    published = shared_card({"options": as_json(TrainOptions())})["options"]
    given = shared_card(card)["options"]
    differ = [name for name in given if given[name] != published[name] and name not in NO_MATTER]
    return [f"{flag(name)} {given[name]}" for name in differ]


def verdict(csv: Path, seeds: Sequence[str]) -> str:
    """Whether the published results are reproduced, in one sentence.

    Args:
        csv: csv/NAME, with the tables that stand beside the published ones.
        seeds: of the networks that were trained.
    """
    first = read_rows(csv / f"{seeds[0]}_images.csv").about
    of_boxes = read_rows(csv / f"{seeds[0]}_boxes.csv").about
    for about in (first, of_boxes):
        if about["not_official"] is not None:
            return f"{NO_VERDICT}: not compared with the published seeds: {about['not_official']}"
    areas = read_beside(csv / "auroc_beside_published.csv")
    points = read_beside(csv / "point_localization_beside_published.csv")

    # the means decide
    means = [areas.loc["weighted"], points.loc["micro"]]
    verdicts = [mean["verdict"] for mean in means]
    if all(each.startswith("reproduced") for each in verdicts):
        decided = "reproduced"
    elif any(each.startswith("differs") for each in verdicts):
        decided = "not reproduced"
    else:
        decided = "not decided"
    otherwise = ""
    if further := other_options(first["card"]):
        otherwise = f", trained with other options than the published ({' '.join(further)})"
    synthetic = ", on synthetic images: this says nothing about PYLON" if first["synthetic"] else ""
    figures = [
        f"{what} {mean['ours mean']:.3f} against {mean['published mean']:.3f} published{by_class}"
        for what, mean, by_class in (
            ("AUROC", means[0], of_classes(areas.drop(["weighted", "macro"]))),
            ("point localization", means[1], of_classes(points.drop("micro"))),
        )
    ]
    return (
        f"verdict: {decided} with {len(seeds)} seed{'s' * (len(seeds) > 1)}{otherwise}: "
        f"{'; '.join(figures)}{synthetic}"
    )


def read_beside(path: Path) -> pd.DataFrame:
    """Read a table of verdicts, one row per class and mean."""
    return pd.read_csv(path, index_col="class")


def of_classes(beside: pd.DataFrame) -> str:
    """How many classes are reproduced, and which are not, in brackets."""
    verdicts = beside["verdict"]
    others = [
        f"{what}: {', '.join(beside.index[verdicts.str.startswith(what)])}"
        for what in ("differs", "not decided")
        if verdicts.str.startswith(what).any()
    ]
    count = verdicts.str.startswith("reproduced").sum()
    return f" ({', '.join([f'{count} of {len(beside)} classes reproduced', *others])})"


def require_own_folder(out: Path) -> None:
    """Raise a UserError if a folder holds files of somebody else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    there = {path.name for path in out.glob("*")}
    # share.py writes the networks first
    ours = {*KINDS, "README.md", "manifest.json"} if "networks" in there else set()
    if strange := sorted(there - ours):
        raise UserError(f"--out {out} has {strange[0]}; choose another folder, or empty it")


def write_folder(out: Path, made: Made) -> None:
    """Write the folder to publish, next to the networks that share.py has written; README.md last.

    Raises:
        UserError: rows are damaged, or the disk is full.
    """
    for name in ("README.md", "manifest.json"):
        (out / name).unlink(missing_ok=True)
    for folder in (out / "networks").glob("*"):  # of an earlier run with more seeds
        if folder.name not in made.seeds:
            shutil.rmtree(folder)
    for kind in KINDS[1:]:
        shutil.rmtree(out / kind, ignore_errors=True)
    try:
        copy_scores(made, out / "scores" / made.csv.name)  # the name is in the pictures
        shutil.copytree(made.csv / "html", out / "page")
        shutil.copytree(made.figures, out / "figures")
    except shutil.Error as error:
        raise UserError(f"{out} cannot be written ({error.args[0][0][2]})") from error

    # the page says by which command it was made, with the path of the data
    page = out / "page" / "index.html"
    text, count = COMMAND.subn('"command": "make reproduce"', page.read_text())
    if count != 1:
        raise RuntimeError(f"{page} names {count} commands")
    write_atomically(page, text.encode())

    about = read_rows(made.csv / f"{made.seeds[0]}_images.csv").about
    write_atomically(out / "README.md", readme(made, about).encode())
    files = sorted(path for path in out.rglob("*") if path.is_file())
    hashes = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    content = {"verdict": made.verdict, "code": code(), "versions": versions(), "files": hashes}
    write_atomically(out / "manifest.json", hashed_json(content))


def copy_scores(made: Made, folder: Path) -> None:
    """Copy tables, pictures and rows, the last without what is private in them."""
    folder.mkdir(parents=True)
    compared = not made.verdict.startswith(NO_VERDICT)
    names = [f"{name}.csv" for name in TABLES if compared or "beside" not in name]
    names += [f"{name}.png" for name in PICTURES]
    names += [f"{seed}.{ending}" for seed in made.seeds for ending in ("csv", "png")]
    for name in names:
        if (made.csv / name).exists():
            shutil.copyfile(made.csv / name, folder / name)
    for seed in made.seeds:
        for what in ("images", "boxes"):
            rows = read_rows(made.csv / f"{seed}_{what}.csv")
            write_rows(folder, seed, what, Rows(rows.table, shared_about(rows.about)))


def shared_about(about: dict[str, Any]) -> dict[str, Any]:
    """What rows say about themselves, without paths."""
    card = about["card"]
    if card is None:
        return about
    options = shared_card(card)["options"]
    return {**about, "card": {**card, "options": options}}


def readme(made: Made, about: dict[str, Any]) -> str:
    """The README.md of the folder."""
    synthetic = about["synthetic"]
    logs = {seed: pd.read_csv(made.csv / f"{seed}.csv") for seed in made.seeds}
    trained = [[seed, len(log), f"{log['seconds'].sum() / 60:.1f}"] for seed, log in logs.items()]
    lists = about["list_sha256"].items()
    parts = [
        "# A reproduction of PYLON",
        f"**{plain(made.verdict[0].upper() + made.verdict[1:])}.**",
        CAVEAT,
        f"**Synthetic data.** {plain(synthetic)}" if synthetic else "",
        means_of(made.csv),
        "## What is here",
        FILES.replace("NAME", made.csv.name),
        "## How it was made",
        f"By `make reproduce`, on {machine()}; the networks' cards have the options.",
        table(["seed", "epochs", "minutes of training"], trained),
        table(["list", "SHA-256"], lists),
        f"Code: {code()}. Versions: "
        + ", ".join(f"{name} {each}" for name, each in versions().items())
        + ".",
        "## Licence and citation",
        LICENCES,
        "" if synthetic else NIHS,
        CITATION,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def code() -> str:
    """Version of this package and, in a clone, its commit."""
    release = f"pylon-localization {version('pylon-localization')}"
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return release
    return f"{release}, commit {commit}"


def machine() -> str:
    """The GPU, or the number of cores if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of a CPU"


def means_of(csv: Path) -> str:
    """A table of the means, ours and, if they can be compared, the published ones."""
    lines = []
    for name, title, row in (
        ("auroc", "AUROC, weighted by positives", "weighted"),
        ("auroc", "AUROC, mean of the classes", "macro"),
        ("point_localization", "point localization, all boxes", "micro"),
    ):
        ours = pd.read_csv(csv / f"{name}.csv", index_col="seed")[row]
        label = "mean" if "mean low" in ours else "0"  # of a single seed
        cells = [title, *(f"{ours[key]:.3f}" for key in (label, f"{label} low", f"{label} high"))]
        path = csv / f"{name}_beside_published.csv"
        if path.exists():
            beside = read_beside(path).loc[row]
            cells += [f"{beside['published mean']:.3f}", beside["verdict"]]
        lines.append(cells + [""] * (6 - len(cells)))
    header = ["score", "ours", "low", "high (95 %, over patients)", "published", "verdict"]
    return table(header, lines)


if __name__ == "__main__":
    start(main, OPTIONS)
