"""The folder to publish of tools/reproduce.py, and the verdict.

OUT/README.md      the verdict, the steps and what they took, what the files are
    networks/SEED  a network with its model card, as share.py pushes it
    scores/NAME/   tables, pictures and rows; `eval_auc.py --from OUT/scores/NAME` rebuilds them
    page/          the heatmaps of seed 0 to look through in a browser; figures/, as pages
    manifest.json  SHA-256 of every file

No file holds a path, or the name of a user or a computer.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from pylon.checkpoints.training_json import versions
from pylon.model_card import CAVEAT, CITATION, plain, shared_card, table
from pylon.scoring.rows import Rows, read_rows, write_rows
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
| `page/index.html` | the heatmaps of seed 0 on the boxed images, in any browser |
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


class Made(NamedTuple):
    """What the steps have made."""

    csv: Path  # csv/NAME
    figures: Path  # figs/NAME
    seeds: list[str]
    steps: list[tuple[str, float]]  # command, seconds
    verdict: str


def verdict(csv: Path, seeds: int, further: Sequence[str]) -> str:
    """Whether the published results are reproduced, in one sentence.

    Args:
        csv: csv/NAME, with the tables that stand beside the published ones.
        seeds: networks that were trained.
        further: options of train.py that the published networks were not trained with.
    """
    first = read_rows(csv / "0_images.csv").about
    of_boxes = read_rows(csv / "0_boxes.csv").about
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
    if further:
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
        f"verdict: {decided} with {seeds} seed{'s' * (seeds > 1)}{otherwise}: "
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


def publish(out: Path, made: Made) -> None:
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

    about = read_rows(made.csv / "0_images.csv").about
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
    seconds = sum(seconds for _, seconds in made.steps)
    steps = [[f"`{command}`", f"{taken / 60:.1f}"] for command, taken in made.steps]
    lists = [[plain(name), f"`{digest}`"] for name, digest in about["list_sha256"].items()]
    parts = [
        "# A reproduction of PYLON",
        f"**{plain(made.verdict[0].upper() + made.verdict[1:])}.**",
        CAVEAT,
        f"**Synthetic data.** {plain(synthetic)}" if synthetic else "",
        means_of(made.csv),
        "## What is here",
        FILES.replace("NAME", made.csv.name),
        "## How it was made",
        f"`make reproduce`, {seconds / 60:.0f} minutes in all on {machine()}:",
        "| step | minutes |\n|---|---|\n"
        + "\n".join(f"| {command} | {minutes} |" for command, minutes in steps),
        table(["list", "SHA-256"], []) + "\n" + "\n".join(f"| {a} | {b} |" for a, b in lists),
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
