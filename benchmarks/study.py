"""Does PYLON localize better than its rivals at equal AUROC? Trains them on the phantom and writes what it finds.

    make study    # or: python benchmarks/study.py; 2 cores need some 40 minutes

Each network is trained by train.py and scored by eval_auc.py and eval_loc.py, several commands at a time; started again
after an interruption, it goes on where it was.

Reads  data/study, a phantom that it draws first.
Writes save/study-*, csv/study-*, RESULTS.md, figs/study.png.
"""

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))  # beside which the package is

from pylon.cli import UserError, require_at_least, run
from pylon.files import write_atomically
from pylon.progress import track

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "study"
# Small, middle and large ones that are anywhere in the lungs; one at either base; one that a prior can guess.
FINDINGS = ("Nodule", "Mass", "Infiltration", "Effusion", "Cardiomegaly")
NETWORKS = {  # dearest first, so that none is waited for alone at the end
    "fpn": ("--model", "fpn"),
    "pylon": ("--model", "pylon"),
    "backbone-max": ("--model", "backbone", "--pool", "max"),
    "backbone-avg": ("--model", "backbone", "--pool", "avg"),
}
TITLES = {
    "pylon": "PYLON", "backbone-max": "backbone, max", "backbone-avg": "backbone, avg (CAM)", "fpn": "FPN",
}  # fmt: skip
RUNNING: set[subprocess.Popen] = set()
SCORES = {"auroc": "macro", "point_localization": "micro"}

CORNERS = " are within 8 pixels of a corner of the picture, where no finding is ever drawn."
REPORT = """# Does PYLON localize better at equal AUROC?

What `make study` measured on the phantom, which is [not medicine](data/README.md): {images} pictures with up to three
findings each ({drawn}), {boxes} boxes in the test list. Each network from scratch, with the same encoder
(`tu-test_resnet`), images, learning rate and {epochs} epochs, {seeds} seed{s}; none ever saw a box.
Training took {minutes} minutes, one after another, on one of {machine}.

{findings}

One small encoder, trained for minutes on drawings: it tells how the networks behave there, not how they would on
patients.

![AUROC against point localization](figs/study.png)

Where the maxima lie (`csv/study-*/SEED_boxes.csv`): {corners}

**AUROC**, mean of the seeds, its 95 % interval over patients, in square brackets each seed:

{auroc}

**Point localization**, likewise; `prior` is the one point that the other patients' boxes of the class favour:

{points}

**PYLON less each of the others**, 95 % interval over patients, in pairs, and {over_seeds}; "the same" is within 0.01 of
AUROC, 0.04 of point localization; the last column is the macro AUROC, or all boxes pooled:

{differences}
"""


@dataclass
class Options:
    """Train PYLON and its rivals on the phantom, three seeds each, and write RESULTS.md and figs/study.png."""

    images: int = 740
    """Pictures of the phantom, drawn when data/study is not there; three quarters are for training and validation."""
    epochs: int = 5
    """Epochs of each network."""
    seeds: int = 3
    """Seeds of each network."""
    jobs: int = os.cpu_count() or 1
    """Commands at a time; the cores are shared out among them. 1 on a machine with one GPU."""


def main(options: Options) -> None:
    require_at_least(options, images=20, epochs=1, seeds=1, jobs=1)
    os.chdir(ROOT)
    start = time.perf_counter()
    if not (DATA / "PHANTOM.txt").exists():
        findings = ("--findings", *FINDINGS)
        run_script("data/make_phantom.py", "--out", DATA, "--images", options.images, "--seed", 1, *findings)
    drawn = len(pd.read_csv(DATA / "Data_Entry_2017.csv", index_col=False))
    if drawn != options.images:
        raise UserError(f"{DATA} holds {drawn} images, not --images {options.images}; remove it and save/study-*")

    train = ("--data", DATA, "--encoder-name", "tu-test_resnet", "--encoder-weights", "none", "--batch-size", 4)
    train += ("--epochs", options.epochs, "--lr", 1e-3, "--patience", 6, "--num-workers", 0)
    commands = [
        ("train.py", *train, "--name", f"study-{name}", "--seed", seed, *network)
        for name, network in NETWORKS.items()
        for seed in range(options.seeds)
    ]
    at_once(commands, "training", options.jobs)
    others = [f"study-{name}" for name in NETWORKS if name != "pylon"]
    score = ("--data", DATA, "--num-workers", 0, "--seeds", *range(options.seeds))
    compared = ("--name", "study-pylon", "--compare", *others)
    runs = [compared, *(("--name", name) for name in others)]  # again alone: a comparison leaves the others' tables
    scripts = ("eval_auc.py", "eval_loc.py")
    at_once([(script, *score, *names) for names in runs for script in scripts], "scoring", options.jobs)

    draw(Path("figs/study.png"))
    write_atomically(Path("RESULTS.md"), report(options).encode())
    print(
        f"RESULTS.md and figs/study.png are written, {(time.perf_counter() - start) / 60:.0f} minutes after this start"
    )


def at_once(commands: list[tuple], title: str, jobs: int) -> None:
    """Run commands, `jobs` at a time; after one that fails, none is started any more."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_script, *command, jobs=jobs) for command in commands]
        try:
            for finished in track(as_completed(waiting), title, "command", total=len(waiting), leave=True):
                finished.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in RUNNING:
                process.terminate()
            raise


def run_script(*command: object, jobs: int = 1) -> None:
    """Run one script with its share of the cores; exit with its code after what it said if it fails."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    arguments = [sys.executable, *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        RUNNING.add(process)
        out, err = process.communicate()
        RUNNING.remove(process)
    if process.returncode:
        print(f"{' '.join(arguments)}\n{out[-2000:]}{err[-2000:]}", file=sys.stderr)
        sys.exit(process.returncode)


def scores_of(name: str, score: str) -> pd.DataFrame:
    return pd.read_csv(f"csv/study-{name}/{score}.csv", index_col="seed")


def draw(path: Path) -> None:
    """AUROC against point localization: a dot a seed, a cross with 95 % intervals (patients resampled) a network."""
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    for k, (name, title) in enumerate(TITLES.items()):
        auroc, points = (scores_of(name, score)[column] for score, column in SCORES.items())
        seeds = [label for label in auroc.index if label.isdigit()]
        axes.scatter(auroc[seeds], points[seeds], s=14, color=f"C{k}", alpha=0.6)
        label = "mean" if len(seeds) > 1 else seeds[0]
        (x, left, right), (y, low, high) = (
            (scores[label], scores[label] - scores[f"{label} low"], scores[f"{label} high"] - scores[label])
            for scores in (auroc, points)
        )
        error = {"xerr": [[left], [right]], "yerr": [[low], [high]]}
        axes.errorbar(x, y, **error, fmt="o", color=f"C{k}", capsize=3, label=title)
    points = scores_of("pylon", "point_localization")["micro"]
    for label, style in (("prior", "--"), ("image centre", ":")):
        axes.axhline(points[label], color="grey", linestyle=style, linewidth=1, label=label)
    axes.set(
        xlabel="AUROC, mean of the classes (macro)", ylabel="point localization, all boxes (micro)", ylim=(-0.02, 1.02)
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path)


def report(options: Options) -> str:
    """RESULTS.md: how it was made, in words what it says, and the tables."""
    label = "mean" if options.seeds > 1 else "0"
    seeds = [str(seed) for seed in range(options.seeds)]
    logs = [pd.read_csv(f"csv/study-{name}/{seed}.csv") for name in TITLES for seed in seeds]
    epochs = [len(log) for log in logs]  # of a finished run they are what it had, whatever is asked for now
    tables = {(name, score): scores_of(name, score) for name in TITLES for score in SCORES}
    classes = list(tables["pylon", "point_localization"].columns.drop("micro"))
    scored = {}
    for score, pooled in SCORES.items():
        rows = {
            title: [
                with_interval(*tables[name, score].loc[[label, f"{label} low", f"{label} high"], column])
                + f" [{', '.join(f'{value:.3f}' for value in tables[name, score].loc[seeds, column])}]"
                for column in [*classes, pooled]
            ]
            for name, title in TITLES.items()
        }
        if score == "point_localization":
            worth = tables["pylon", score].loc[["prior", "image centre"]]
            rows |= {control: [f"{value:.3f}" for value in worth.loc[control]] for control in worth.index}
        scored[score] = markdown("", rows, [*classes, pooled])

    findings, differences = [], {}
    for name in (name for name in TITLES if name != "pylon"):
        beside = {
            score: pd.read_csv(f"csv/study-pylon/{score}_beside_study-{name}.csv", index_col="class")
            for score in SCORES
        }
        findings.append(in_words(TITLES[name], *(beside[score].loc[SCORES[score]] for score in SCORES)))
        for score, pooled in SCORES.items():
            differences[f"{TITLES[name]}: {score.replace('_', ' ')}"] = [
                f"{with_interval(*row[['difference', 'low', 'high']], sign='+')} {row['verdict']}"
                for _, row in beside[score].loc[[*classes, pooled]].iterrows()
            ]
    return REPORT.format(
        findings="\n".join(f"- {finding}" for finding in findings),
        auroc=scored["auroc"],
        points=scored["point_localization"],
        differences=markdown("PYLON less", differences, [*classes, "all"]),
        boxes=len(pd.read_csv("csv/study-pylon/0_boxes.csv")),
        machine=f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__.split('+')[0]}"
        + (", with a GPU" if torch.cuda.is_available() else ""),
        drawn=", ".join(FINDINGS),
        corners=", ".join(f"{corners(name, seeds):.0%} of {title}'s" for name, title in TITLES.items()) + CORNERS,
        minutes=round(sum(log["seconds"].sum() for log in logs) / 60),
        over_seeds="over seeds" if options.seeds > 1 else "of one network a kind: how much seeds differ is not known",
        s="s" if options.seeds > 1 else "",
        **{**asdict(options), "epochs": " to ".join(map(str, sorted({min(epochs), max(epochs)})))},
    )


def corners(name: str, seeds: list[str]) -> float:
    """Share of a network's maxima that lie within 8 of the 256 pixels of a corner."""
    boxes = pd.concat(pd.read_csv(f"csv/study-{name}/{seed}_boxes.csv") for seed in seeds)
    return float((~boxes[["row", "column"]].apply(lambda pixel: pixel.between(8, 247))).all(axis=1).mean())


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.700 (0.650 to 0.750)."""
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def in_words(other: str, auroc: pd.Series, points: pd.Series) -> str:
    """What the two comparisons of PYLON with another network say together."""
    equal = {"the same": "At equal AUROC", "differs": "At an AUROC that differs"}.get(
        auroc["verdict"], "At an AUROC whose difference is not decided"
    )
    better = "better" if points["difference"] > 0 else "worse"
    localizes = {"the same": "localizes as well as", "differs": f"localizes {better} than"}.get(
        points["verdict"], "is not shown to localize better or worse than"
    )
    return (
        f"{equal} ({auroc['ours mean']:.3f}, {auroc.iloc[0]:.3f}) PYLON {localizes} **{other}**: "
        f"{points['ours mean']:.3f}, {points.iloc[0]:.3f}; the difference is "
        f"{with_interval(*points[['difference', 'low', 'high']], sign='+')}."
    )


def markdown(corner: str, rows: dict[str, list[str]], columns: list[str]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1), *([label, *cells] for label, cells in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    run(main, Options, after_stop="the same command goes on where it was")
