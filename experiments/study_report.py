"""The report of a study (study.py): from the tables in csv/NAME-* to Markdown and a figure."""

import os
import platform
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pylon.scoring.metrics import accuracies, auroc
from pylon.scoring.reference_points import prior_hits
from pylon.scoring.rows import Rows, read_rows
from study_tables import ENERGY, GRADCAM, POOLED, Study

IN_WORDS = {"auroc": "AUROC", "point_localization": "points", "box_localization": "T(IoU .3)"}
TITLE = "# Does PYLON localize better than its baselines?"

REPORT = """{title}

Results on {about}. {images} test images with {boxes} boxes; each network was trained without
boxes, with the same encoder (`{encoder}`), images, learning rate and schedule, for
{epochs} epoch{e}, with {seeds} seed{s}. Training took {minutes} minutes in total, on {machine}.

```bash
{command}
```

{findings}

{caution}
{left_out}
![AUROC against localization](../{figure})

The bars in the figure are 95 % intervals over patients; small dots are single seeds.

{tables}
"""

TABLES = """**AUROC**: mean over seeds (95 % interval over patients) [each seed]:

{auroc}

**Point localization**, in the same format; `prior` is the single point that the other patients'
boxes of the class favour:

{points}

**T(IoU .3)**, the share of boxes that a region of the map meets with an intersection over union of
at least .3 ([how](evidence.md#do-the-regions-match-the-boxes)), in the same format; `prior box` is
the median box of the class in other patients:

{iou}

**Energy**, the share of a map's sum that lies inside the boxes, in the same format:

{energy}

**PYLON minus each of the others**, with the 95 % interval over patients (paired) and {over_seeds}.
"The same" means within .01 for AUROC and .04 for localization; the last column is the macro AUROC,
or all boxes pooled:

{differences}

**Small and large findings**: point localization of the boxes below and above the median area,
{median:.1%} of the image, mean over seeds; the last column is the share of maxima within 1/32 of
the image's side of one of its corners:

{sizes}
"""

SECOND = """## On {name}

The same networks, scored on other images and boxes: {boxes} boxes of {images} images.

{findings}

{tables}

**Whose labels?** AUROC on the {shared} test images that both have, against the labels of the first
data and those of {name}; mean over seeds, of the classes that both define:

{labels}
"""


def draw(study: Study, path: Path) -> None:
    """Plot AUROC against point localization, and against T(IoU .3): a large dot per network."""
    figure = Figure(figsize=(10.5, 4.4), dpi=120, layout="constrained")
    panels = {
        "point_localization": ("point localization", {"prior": "--", "image centre": ":"}),
        "box_localization": ("T(IoU .3)", {"prior box": "--", "random maps": ":"}),
    }
    for axes, (score, (title, controls)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for k, (name, network) in enumerate(study.titles.items()):
            auroc = study.table(name, "auroc")[POOLED["auroc"]]
            places = study.table(name, score)[POOLED[score]]
            labels = study.labels
            axes.scatter(auroc[labels], places[labels], s=14, color=f"C{k}", alpha=0.6)
            error = {"xerr": reach_of(auroc, study.mean), "yerr": reach_of(places, study.mean)}
            style = {"fmt": "o", "color": f"C{k}", "capsize": 3, "label": network}
            axes.errorbar(auroc[study.mean], places[study.mean], **error, **style)

        # controls: reachable without looking at the image
        of_pylon = study.table("pylon", score)[POOLED[score]]
        for label, style in controls.items():
            axes.axhline(of_pylon[label], color="grey", linestyle=style, linewidth=1, label=label)
        axes.set(xlabel="AUROC, mean of the classes (macro)", ylabel=title, ylim=(-0.02, 1.02))
        axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def reach_of(scores: pd.Series, label: str) -> list[list[float]]:
    """Return the distances from a score to the ends of its interval, as matplotlib expects."""
    below = max(scores[label] - scores[f"{label} low"], 0)
    above = max(scores[f"{label} high"] - scores[label], 0)
    return [[below], [above]]


def write_report(
    study: Study,
    about: str,
    command: str,
    figure: Path,
    is_phantom: bool,
    second: tuple[str, Study] | None = None,
    left_out: str = "",
) -> str:
    """Fill in the report: the setup, the findings in words, and the tables.

    Args:
        about: what the data is; completes "on ...".
        command: that runs the study.
        figure: its file.
        is_phantom: whether the images are synthetic.
        second: name of a second set of boxes, and the tables of the same networks on it.
        left_out: a sentence about what is not finished.
    """
    first = study.rows("pylon")[study.labels[0]]
    findings, tables = tables_of(study)

    # a finished run keeps its number of epochs, whatever --epochs is now
    logs = [
        pd.read_csv(study.folder(name) / f"{seed}.csv")
        for name in study.titles
        for seed in study.labels
        if name != GRADCAM
    ]
    epochs = sorted({min(map(len, logs)), max(map(len, logs))})
    torch_version = torch.__version__.split("+")[0]
    gpu = ", with a GPU" if torch.cuda.is_available() else ""
    machine = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch_version}{gpu}"
    synthetic = (
        "These are synthetic images, and one small encoder: the results show how the networks "
        "behave there, not how they would on patients."
    )
    real = (
        "A verdict is about this data and this training. Read a localization score beside the "
        "prior's: what does not exceed it needs no image."
    )
    text = REPORT.format(
        about=about,
        images=len(pd.read_csv(image_rows_of(study, "pylon"), usecols=["image_id"])),
        boxes=int((first.bboxes()[..., 2] > 0).sum()),
        encoder=first.about["card"]["options"]["encoder_name"],
        title=TITLE,
        epochs=" to ".join(map(str, epochs)),
        e="" if epochs == [1] else "s",
        seeds=len(study.seeds),
        s="s" if len(study.seeds) > 1 else "",
        minutes=round(sum(log["seconds"].sum() for log in logs) / 60),
        machine=machine,
        command=wrapped_command(command),
        findings="\n".join(wrapped(f"- {finding}") for finding in findings),
        caution=wrapped(synthetic if is_phantom else real),
        left_out=f"\n{wrapped(left_out)}\n" if left_out else "",
        figure=figure,
        tables=tables,
    )
    if second is not None:
        text = f"{text.rstrip()}\n\n{on_second(study, *second)}"
    return "\n\n".join(map(rewrapped, text.split("\n\n")))


def tables_of(study: Study) -> tuple[list[str], str]:
    """The findings in sentences, and all tables, of a study on one set of boxes."""
    rows = {name: study.rows(name) for name in study.titles}
    first = rows["pylon"][study.labels[0]]
    classes = [name for name in first.class_names if name in set(first.table["pathology"])]
    findings, differences = comparisons(study, classes)
    sizes, median = by_size(rows, study.titles)
    one_seed = "with one seed each: how much seeds vary is unknown"
    maps = ("prior box", "random maps")
    tables = TABLES.format(
        auroc=score_table(study, "auroc", classes, ()),
        points=score_table(study, "point_localization", classes, ("prior", "image centre")),
        iou=score_table(study, "box_localization", classes, maps),
        energy=score_table(study, ENERGY, classes, maps),
        over_seeds="over seeds" if len(study.seeds) > 1 else one_seed,
        differences=markdown("PYLON minus", differences, [*classes, "all"]),
        median=median,
        sizes=markdown("", sizes, ["smaller half", "larger half", "in corners"]),
    )
    return findings, tables


def on_second(study: Study, name: str, second: Study) -> str:
    """The part of the report about a second set of boxes."""
    findings, tables = tables_of(second)
    boxes = second.rows("pylon")[second.labels[0]]
    labels, shared = against_both(study, second, name)
    return SECOND.format(
        name=name,
        boxes=int((boxes.bboxes()[..., 2] > 0).sum()),
        images=boxes.table["image_id"].nunique(),
        findings="\n".join(wrapped(f"- {finding}") for finding in findings),
        tables=tables,
        shared=shared,
        labels=labels,
    )


def against_both(study: Study, second: Study, name: str) -> tuple[str, int]:
    """AUROC of the same images against two sets of labels: a table, and how many images."""
    found = {}
    for network, title in study.titles.items():
        if network == GRADCAM:
            continue
        areas = []
        for seed in study.labels:
            one = read_rows(image_rows_of(study, network, seed))
            other = read_rows(image_rows_of(second, network, seed))
            # the same file may have another folder in its id
            place = pd.Series(range(len(other.table)), files_of(other))
            place = place[~place.index.duplicated(keep=False)].reindex(files_of(one))
            both = place.notna().to_numpy()
            logits = one.logits()[both]
            of_both = (one.labels()[both], other.labels()[place[both].astype(int)])
            areas.append([auroc(labels, logits) for labels in of_both])
        found[f"{title}, first"], found[f"{title}, {name}"] = np.mean(areas, axis=0)
    table = pd.DataFrame(found, index=one.class_names).T
    table = table.loc[:, table.notna().all()]
    table["mean"] = table.mean(axis=1)
    rows = {label: [f"{area:.3f}" for area in row] for label, *row in table.itertuples()}
    return markdown("AUROC against", rows, list(table.columns)), int(both.sum())


def files_of(rows: Rows) -> list[str]:
    return [Path(image_id).name for image_id in rows.table["image_id"]]


def image_rows_of(study: Study, network: str, seed: str | None = None) -> Path:
    return study.folder(network) / f"{seed or study.labels[0]}_images.csv"


def score_table(study: Study, score: str, classes: list[str], controls: tuple[str, ...]) -> str:
    """Build a table: one row per network (score, interval, each seed), and the controls."""
    columns = [*classes, POOLED.get(score, "micro")]
    bounds = [study.mean, f"{study.mean} low", f"{study.mean} high"]
    rows = {}
    for name, title in study.titles.items():
        if name == GRADCAM and score == "auroc":
            continue
        # a class of a single patient has no scores of boxes
        table = study.table(name, score).reindex(columns=columns)
        rows[title] = []
        for column in columns:
            interval = with_interval(*table.loc[bounds, column])
            each = ", ".join(f"{value:.3f}" for value in table.loc[study.labels, column])
            many = len(study.seeds) > 1 and interval != "-"
            rows[title].append(f"{interval} [{each}]" if many else interval)
    of_pylon = study.table("pylon", score).reindex(columns=columns)
    for control in controls:
        values = of_pylon.loc[control]
        rows[control] = ["-" if np.isnan(value) else f"{value:.3f}" for value in values]
    return markdown("", rows, columns)


def comparisons(study: Study, classes: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Compare PYLON with each of the others: a sentence, and a row of differences per score."""
    findings = []
    differences = {}
    for name, title in study.titles.items():
        if name == "pylon":
            continue
        pooled = {}
        for score, column in POOLED.items():
            beside = study.beside(name, score)
            pooled[score] = beside.loc[column]
            if name == GRADCAM and score == "auroc":
                continue
            differences[f"{title}: {IN_WORDS[score]}"] = [
                f"{with_interval(*row[['difference', 'low', 'high']], sign='+')} "
                f"{'' if pd.isna(row['verdict']) else row['verdict']}"
                for _, row in beside.reindex([*classes, column]).iterrows()
            ]
        findings.append(in_words(title, pooled))
    return findings, differences


def in_words(other: str, pooled: dict[str, pd.Series]) -> str:
    """Summarise the comparisons of PYLON with another network in a sentence."""
    auroc = pooled["auroc"]
    equal = {"the same": "At equal AUROC", "differs": "At a different AUROC"}.get(
        auroc["verdict"], "At an AUROC whose difference is undecided"
    )
    parts = []
    for score in ("point_localization", "box_localization"):
        row = pooled[score]
        better = "better" if row["difference"] > 0 else "worse"
        verdict = {"the same": "the same", "differs": better}.get(row["verdict"], "not decided")
        difference = with_interval(*row[["difference", "low", "high"]], sign="+")
        parts.append(
            f"{IN_WORDS[score]} {row['ours mean']:.3f} and {row.iloc[0]:.3f}: {verdict}, "
            f"{difference}"
        )
    return (
        f"{equal} ({auroc['ours mean']:.3f} and {auroc.iloc[0]:.3f}), PYLON against **{other}**: "
        f"{'; '.join(parts)}."
    )


def by_size(
    rows: dict[str, dict[str, Rows]], titles: dict[str, str]
) -> tuple[dict[str, list[str]], float]:
    """Points of small and of large boxes, and maxima in corners, per network; the median area."""
    first = next(iter(rows["pylon"].values()))
    image_size = first.table[["image_height", "image_width"]].to_numpy()
    boxes = first.bboxes()
    areas = (boxes[..., 2] * boxes[..., 3]).sum(axis=1) / image_size.prod(axis=1)
    median = float(np.median(areas))
    half = np.where(areas < median, "small", "large")
    table = {}
    for name, title in titles.items():
        hits = np.mean([of_seed.table["hit"] for of_seed in rows[name].values()], axis=0)
        corners = np.mean([corners_of(of_seed.table) for of_seed in rows[name].values()])
        table[title] = [*halves(hits, half), f"{corners:.0%}"]
    classes = first.table["pathology"].to_numpy()
    prior = prior_hits(boxes, image_size, classes, first.table["patient_id"].to_numpy())
    table["prior"] = [*halves(prior, half), ""]
    return table, median


def halves(hits: np.ndarray, half: np.ndarray) -> list[str]:
    return [f"{value:.3f}" for value in accuracies(hits, half, ["small", "large"])[:2]]


def corners_of(rows: pd.DataFrame) -> float:
    """The share of maxima within 1/32 of the image's side of one of its corners."""
    near = True
    for place, side in (("row", "image_height"), ("column", "image_width")):
        share = (rows[place] + 0.5) / rows[side]
        near = near & ((share < 1 / 32) | (share > 31 / 32))
    return float(near.mean())


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.700 (0.650 to 0.750), or a dash for what is undefined."""
    if np.isnan(value):
        return "-"
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def wrapped(item: str) -> str:
    """A paragraph or list item in lines of at most 100 characters."""
    indent = "  " if item.startswith("- ") else ""
    return textwrap.fill(item, 100, subsequent_indent=indent, break_on_hyphens=False)


def rewrapped(block: str) -> str:
    """A paragraph wrapped again, after its gaps are filled in; other blocks as they are."""
    if block.lstrip().startswith(("|", "#", "`", "!", "- ")):
        return block
    return wrapped(" ".join(block.split())) + "\n" * block.endswith("\n")


def wrapped_command(command: str) -> str:
    """A command in lines of at most 98 characters, joined by backslashes."""
    lines = textwrap.wrap(command, 94, break_on_hyphens=False, subsequent_indent="    ")
    return " \\\n".join(lines)


def markdown(corner: str, rows: dict[str, list[str]], columns: list[str]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[label, *cells] for label, cells in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
