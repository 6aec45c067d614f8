"""Train PYLON and baselines on the phantom: does PYLON localize better at equal AUROC?

    make study    # or: python benchmarks/study.py; takes about 40 minutes on 2 cores

Each network is trained by train.py and scored by eval_auc.py and eval_loc.py, several commands at a
time; after an interruption, the same command resumes.

Reads  data/study, a phantom that is drawn first.
Writes save/study-*, csv/study-*, docs/study.md, figs/study.png.
"""

import os
import platform
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from pylon.system.cli import parse, require_at_least, start
from pylon.system.errors import UserError
from pylon.system.files import write_atomically
from pylon.system.progress import track


@dataclass
class Options:
    """Train PYLON and baselines on the phantom, three seeds each, and write docs/study.md and
    figs/study.png."""

    images: int = 740
    """Images of the phantom, drawn if data/study does not exist; three quarters are for training
    and validation."""
    epochs: int = 5
    """Epochs per network."""
    seeds: int = 3
    """Seeds per network."""
    jobs: int = os.cpu_count() or 1
    """Commands to run at a time; they share the cores. Use 1 on a machine with one GPU."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import pandas as pd
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "study"
REPORT_FILE = Path("docs/study.md")
FIGURE_FILE = Path("figs/study.png")
# a small, a medium and a large finding, anywhere in the lungs; one at either base; one whose
# position a prior can guess
FINDINGS = ("Nodule", "Mass", "Infiltration", "Effusion", "Cardiomegaly")
NETWORKS = {  # slowest first, so that no slow one runs alone at the end
    "fpn": ("--model", "fpn"),
    "pylon": ("--model", "pylon"),
    "backbone-max": ("--model", "backbone", "--pool", "max"),
    "backbone-avg": ("--model", "backbone", "--pool", "avg"),
}
TITLES = {
    "pylon": "PYLON",
    "backbone-max": "backbone, max",
    "backbone-avg": "backbone, avg (CAM)",
    "fpn": "FPN",
}
RUNNING: set[subprocess.Popen] = set()
SCORES = {"auroc": "macro", "point_localization": "micro"}

REPORT = """# Does PYLON localize better at equal AUROC?

Results of `make study` on the phantom, which is [not medical data](../data/README.md):
{images} images with up to three findings each ({drawn}),
{boxes} boxes in the test list. Each network was trained from scratch, with the same encoder
(`tu-test_resnet`), images, learning rate and {epochs} epochs, {seeds} seed{s}, and without boxes.
Training took {minutes} minutes in total, with each run on one of {machine}.

{findings}

This is one small encoder, trained for minutes on synthetic images: the results show how the
networks behave there, not how they would on patients.

![AUROC against point localization](../figs/study.png)

Share of heatmap maxima within 8 pixels of a corner of the image (`csv/study-*/SEED_boxes.csv`):
{corners}.
No finding is ever drawn there.

**AUROC**: mean over seeds (95 % confidence interval over patients) [each seed]:

{auroc}

**Point localization**, in the same format; `prior` is the single point that the other patients'
boxes of the class favour:

{points}

**PYLON minus each of the others**, 95 % confidence interval over patients (paired) and
{over_seeds}; "the same" means within 0.01 for AUROC and 0.04 for point localization; the last
column is the macro AUROC, or all boxes pooled:

{differences}
"""


def main(options: Options) -> None:
    require_at_least(options, images=20, epochs=1, seeds=1, jobs=1)
    os.chdir(ROOT)
    begin = time.perf_counter()
    draw_phantom(options.images)
    train_all(options)
    score_all(options)
    draw(FIGURE_FILE)
    write_atomically(REPORT_FILE, report(options).encode())
    minutes = (time.perf_counter() - begin) / 60
    print(f"wrote {REPORT_FILE} and {FIGURE_FILE}, {minutes:.0f} minutes after the start")


def draw_phantom(count: int) -> None:
    if not (DATA / "PHANTOM.txt").exists():
        what = ("--images", count, "--seed", 1, "--findings", *FINDINGS)
        run_script("tools/make_phantom.py", "--out", DATA, *what)
    drawn = len(pd.read_csv(DATA / "Data_Entry_2017.csv", index_col=False))
    if drawn != count:
        raise UserError(
            f"{DATA} has {drawn} images, not --images {count}; remove it and save/study-*"
        )


def train_all(options: Options) -> None:
    train = (
        "train.py", "--data", DATA, "--encoder-name", "tu-test_resnet",
        "--encoder-weights", "none", "--batch-size", 4, "--epochs", options.epochs, "--lr", 1e-3,
        "--patience", 6, "--num-workers", 0,
    )  # fmt: skip
    commands = [
        (*train, "--name", f"study-{name}", "--seed", seed, *network)
        for name, network in NETWORKS.items()
        for seed in range(options.seeds)
    ]
    at_once(commands, "training", options.jobs)


def score_all(options: Options) -> None:
    # score the others on their own, too: a comparison does not write their tables
    others = [f"study-{name}" for name in NETWORKS if name != "pylon"]
    compared = ("--name", "study-pylon", "--compare", *others)
    named = [compared, *(("--name", name) for name in others)]
    score = ("--data", DATA, "--num-workers", 0, "--seeds", *range(options.seeds))
    commands = [
        (script, *score, *names) for names in named for script in ("eval_auc.py", "eval_loc.py")
    ]
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
    """Run one script with its share of the cores; if it fails, print its output and exit as it."""
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
    if process.returncode:
        print(f"{' '.join(arguments)}\n{out[-2000:]}{err[-2000:]}", file=sys.stderr)
        sys.exit(process.returncode)


def scores_of(name: str, score: str) -> pd.DataFrame:
    return pd.read_csv(f"csv/study-{name}/{score}.csv", index_col="seed")


def draw(path: Path) -> None:
    """Plot AUROC against point localization: a small dot per seed, a large one per network.

    The error bars are 95 % bootstrap intervals over patients.
    """
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()

    # the networks
    for k, (name, title) in enumerate(TITLES.items()):
        auroc, points = (scores_of(name, score)[column] for score, column in SCORES.items())
        seeds = [label for label in auroc.index if label.isdigit()]
        axes.scatter(auroc[seeds], points[seeds], s=14, color=f"C{k}", alpha=0.6)
        label = "mean" if len(seeds) > 1 else seeds[0]
        error = {"xerr": reach_of(auroc, label), "yerr": reach_of(points, label)}
        style = {"fmt": "o", "color": f"C{k}", "capsize": 3, "label": title}
        axes.errorbar(auroc[label], points[label], **error, **style)

    # reference points: reachable without looking at the image
    points = scores_of("pylon", "point_localization")["micro"]
    for label, style in (("prior", "--"), ("image centre", ":")):
        axes.axhline(points[label], color="grey", linestyle=style, linewidth=1, label=label)
    axes.set(
        xlabel="AUROC, mean of the classes (macro)",
        ylabel="point localization, all boxes (micro)",
        ylim=(-0.02, 1.02),
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path)


def reach_of(scores: pd.Series, label: str) -> list[list[float]]:
    """Return the distances from a score to the ends of its interval, as matplotlib expects."""
    below = scores[label] - scores[f"{label} low"]
    above = scores[f"{label} high"] - scores[label]
    return [[below], [above]]


def report(options: Options) -> str:
    """Fill in the report: the setup, the findings in words, and the tables."""
    # the tables of scores
    seeds = [str(seed) for seed in range(options.seeds)]
    tables = {score: {name: scores_of(name, score) for name in TITLES} for score in SCORES}
    classes = list(tables["point_localization"]["pylon"].columns.drop("micro"))
    scored = {score: score_table(score, tables[score], classes, seeds) for score in SCORES}
    findings, differences = comparisons(classes)

    # a finished run keeps its number of epochs, whatever --epochs is now
    logs = [pd.read_csv(f"csv/study-{name}/{seed}.csv") for name in TITLES for seed in seeds]
    epochs = sorted({min(map(len, logs)), max(map(len, logs))})
    torch_version = torch.__version__.split("+")[0]
    machine = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch_version}"
    gpu = ", with a GPU" if torch.cuda.is_available() else ""
    shares = [f"{corners(name, seeds):.0%} for {title}" for name, title in TITLES.items()]
    one_seed = "with one seed each, so the variation between seeds is unknown"
    asked = asdict(options) | {"epochs": " to ".join(map(str, epochs))}
    return REPORT.format(
        findings="\n".join(wrapped(f"- {finding}") for finding in findings),
        auroc=scored["auroc"],
        points=scored["point_localization"],
        differences=markdown("PYLON minus", differences, [*classes, "all"]),
        boxes=len(pd.read_csv("csv/study-pylon/0_boxes.csv")),
        machine=machine + gpu,
        drawn=", ".join(FINDINGS),
        corners="; ".join(shares),
        minutes=round(sum(log["seconds"].sum() for log in logs) / 60),
        over_seeds="over seeds" if options.seeds > 1 else one_seed,
        s="s" if options.seeds > 1 else "",
        **asked,
    )


def score_table(
    score: str, tables: dict[str, pd.DataFrame], classes: list[str], seeds: list[str]
) -> str:
    """Build a table: one row per network (score, interval, each seed), and the reference points."""
    columns = [*classes, SCORES[score]]
    label = "mean" if len(seeds) > 1 else "0"
    bounds = [label, f"{label} low", f"{label} high"]
    rows = {}
    for name, title in TITLES.items():
        rows[title] = []
        for column in columns:
            each = ", ".join(f"{value:.3f}" for value in tables[name].loc[seeds, column])
            interval = with_interval(*tables[name].loc[bounds, column])
            rows[title].append(f"{interval} [{each}]")
    if score == "point_localization":
        for point in ("prior", "image centre"):
            rows[point] = [f"{value:.3f}" for value in tables["pylon"].loc[point]]
    return markdown("", rows, columns)


def comparisons(classes: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Compare PYLON with each of the others: a sentence, and a row of differences per score."""
    findings = []
    differences = {}
    for name, title in TITLES.items():
        if name == "pylon":
            continue
        pooled_rows = []
        for score, pooled in SCORES.items():
            path = f"csv/study-pylon/{score}_beside_study-{name}.csv"
            beside = pd.read_csv(path, index_col="class")
            pooled_rows.append(beside.loc[pooled])
            differences[f"{title}: {score.replace('_', ' ')}"] = [
                f"{with_interval(*row[['difference', 'low', 'high']], sign='+')} {row['verdict']}"
                for _, row in beside.loc[[*classes, pooled]].iterrows()
            ]
        findings.append(in_words(title, *pooled_rows))
    return findings, differences


def corners(name: str, seeds: list[str]) -> float:
    """Compute the share of a network's maxima within 8 pixels (of 256) of a corner."""
    boxes = pd.concat(pd.read_csv(f"csv/study-{name}/{seed}_boxes.csv") for seed in seeds)
    at_edge = ~boxes[["row", "column"]].apply(lambda pixel: pixel.between(8, 247))
    return float(at_edge.all(axis=1).mean())


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.700 (0.650 to 0.750)."""
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def in_words(other: str, auroc: pd.Series, points: pd.Series) -> str:
    """Summarise the two comparisons of PYLON with another network in a sentence."""
    equal = {"the same": "At equal AUROC", "differs": "At a different AUROC"}.get(
        auroc["verdict"], "At an AUROC whose difference is undecided"
    )
    better = "better" if points["difference"] > 0 else "worse"
    localizes = {"the same": "localizes as well as", "differs": f"localizes {better} than"}.get(
        points["verdict"], "is not shown to localize better or worse than"
    )
    return (
        f"{equal} ({auroc['ours mean']:.3f} and {auroc.iloc[0]:.3f}), "
        f"PYLON {localizes} **{other}**: "
        f"{points['ours mean']:.3f} and {points.iloc[0]:.3f}; the difference is "
        f"{with_interval(*points[['difference', 'low', 'high']], sign='+')}."
    )


def wrapped(item: str) -> str:
    """A list item in lines of at most 100 characters."""
    return textwrap.fill(item, 100, subsequent_indent="  ", break_on_hyphens=False)


def markdown(corner: str, rows: dict[str, list[str]], columns: list[str]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[label, *cells] for label, cells in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    start(main, OPTIONS, after_stop="the same command resumes where it stopped")
