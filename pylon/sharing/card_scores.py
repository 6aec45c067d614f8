"""Scores for the model card, computed again from the rows that the evaluations wrote.

Rows name the weights that they are of, and are verified by their hashes, so a card cannot get the
scores of another network or of another epoch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult

from pylon.model_card import Scores, name_of_data, plain, table, three_digits
from pylon.scoring.box_tables import POOLED, SHOWN, box_table, score_heatmaps
from pylon.scoring.boxes import SCORES
from pylon.scoring.calibration import table_of_calibration
from pylon.scoring.rows import Rows, read_about, read_maps, read_rows
from pylon.scoring.tables import add_reference_points, score_boxes, score_images, table_of_seeds

CLASSIFICATION = "image-classification"
DETECTION = "object-detection"


def scores_of(
    folder: Path,
    weights_sha256: str,
    card: dict[str, Any] | None,
    data_name: str | None,
    say: Callable[[str], None],
) -> Scores | None:
    """Score a network from its rows in a folder; None if there are none.

    Args:
        folder: csv/NAME.
        weights_sha256: of the network.
        card: training.json, which says what it was trained on; None if that is not known.
        data_name: name of the training data, which is that of the scored ones only if they are on
            the same lists; if not given, they are named as far as it is known.
        say: prints a note about what is missing.

    Raises:
        UserError: rows are damaged.
    """
    parts = []
    results = []
    synthetic = None
    for what, script, score in (
        ("images", "eval_auc.py", of_images),
        ("boxes", "eval_loc.py", of_boxes),
    ):
        label = label_of_rows(folder, what, weights_sha256)
        if label is None:
            say(f"note: {folder} has no rows of {what} of this network; {script} writes them")
            continue
        rows = read_rows(folder / f"{label}_{what}.csv")
        synthetic = synthetic or rows.about.get("synthetic")
        name = data_name if is_of_trained(rows, card) else None
        found, text = score(rows, folder, label, name)
        parts += [text, provenance(rows, card)]
        results += [each for each in found if each.metric_value == each.metric_value]
    return Scores(results, "\n\n".join(parts), synthetic) if parts else None


def has_rows_of(folder: Path, weights_sha256: str) -> bool:
    """Whether a folder has rows of the network with these weights."""
    return any(label_of_rows(folder, what, weights_sha256) for what in ("images", "boxes"))


def label_of_rows(folder: Path, what: str, weights_sha256: str) -> str | None:
    """Name, in a folder of rows, of the network with these weights; None if it is not there."""
    ending = f"_{what}.json"
    for path in sorted(folder.glob(f"*{ending}")):
        if read_about(path).get("weights_sha256") == weights_sha256:
            return path.name.removesuffix(ending)
    return None


def of_images(
    rows: Rows, folder: Path, label: str, data_name: str | None
) -> tuple[list[EvalResult], str]:
    """AUROC and calibration: results for the metadata, and a section for the card."""
    areas = table_of_seeds(score_images({label: rows}))
    others = table_of_calibration({label: rows}).loc[label]
    positives = (rows.labels() == 1).sum(axis=0)
    count = dict(zip(rows.class_names, positives, strict=True))
    lines = []
    for name in [*rows.class_names, "macro", "weighted"]:
        # means of calibration are only those over classes
        of_class = others["mean" if name == "macro" else name] if name != "weighted" else None
        cells = [] if of_class is None else [three_digits(of_class.get(key)) for key in CALIBRATION]
        cells += [""] * (len(CALIBRATION) - len(cells))
        lines.append([name, count.get(name, ""), *with_interval(areas, label, name), *cells])
    results = [
        result(
            rows, data_name, CLASSIFICATION, "roc_auc", f"AUROC, {name}", areas, label, name, 0.5
        )
        for name in ("macro", "weighted")
    ]
    images = f"{len(rows.table):,} test images of {rows.table['patient_id'].nunique():,} patients"
    text = [
        f"### Is the finding there? {images}",
        'macro: mean of the classes; weighted: by positive images (the published "micro"). '
        "Chance, the control: AUROC .5, AUPRC the share of positives.",
        table(
            ["finding", "positive images", "AUROC", "95 % interval", *CALIBRATION.values()], lines
        ),
    ]
    return results, "\n\n".join(text)


CALIBRATION = {  # row of the table of calibration -> column of the card
    "positives": "share of positives",
    "AUPRC": "AUPRC",
    "Brier score": "Brier score",
    "Brier score of the share": "Brier score of the share",
    "calibration error": "calibration error",
    "calibration error, calibrated": "calibrated",
}


def of_boxes(
    rows: Rows, folder: Path, label: str, data_name: str | None
) -> tuple[list[EvalResult], str]:
    """Localization: results for the metadata, and sections for the card."""
    points = table_of_seeds(score_boxes({label: rows}))
    add_reference_points(points, {label: rows})
    count = rows.table["pathology"].value_counts()
    lines = []
    for name in points.columns:
        lift = with_interval(points, "lift over prior", name)
        controls = [three_digits(points.loc[key, name]) for key in ("image centre", "prior")]
        called = [
            three_digits(points.loc[key, name])
            for key in ("called present", "hit if called present")
        ]
        boxes = len(rows.table) if name == "micro" else count[name]
        lines.append([name, boxes, *with_interval(points, label, name), *controls, *lift, *called])
    header = [
        "finding", "boxes", "hits", "95 % interval", "image centre", "prior", "lift over prior",
        "95 % interval", "called present", "hits if called present",
    ]  # fmt: skip
    prior = points.loc["prior", "micro"]
    results = [
        result(
            rows,
            data_name,
            DETECTION,
            "accuracy",
            "point localization",
            points,
            label,
            "micro",
            prior,
        )
    ]
    text = [
        f"### Is the maximum of its heatmap in the box? {len(rows.table):,} findings with boxes on "
        f"{rows.table['image_id'].nunique():,} images",
        "Controls that do not look at the image: its centre, and the point that most other "
        "patients' boxes of the class contain (prior).",
        table(header, lines),
    ]

    # regions, if the heatmaps were saved
    maps = read_maps(folder, label, "boxes", len(rows.table))
    tables = {} if maps is None else box_table({label: rows}, {label: score_heatmaps(maps, rows)})
    if tables:
        pooled = tables[POOLED]
        prior = pooled.loc["prior box", SHOWN]
        results.append(
            result(rows, data_name, DETECTION, "accuracy", SHOWN, pooled, label, SHOWN, prior)
        )
        controls = ["prior box", "random maps", "whole image", "oracle"]
        lines = [
            [
                name,
                *with_interval(pooled, label, name),
                *(three_digits(pooled.loc[c, name]) for c in controls),
            ]
            for name in SCORES
        ]
        text += [
            "### Do its regions match the boxes?",
            "All findings together. A map is cut at a fraction of its maximum that is chosen on "
            "other patients' boxes; oracle: at the best fraction for the scored boxes themselves.",
            table(["score", "network", "95 % interval", *controls], lines),
        ]
    return results, "\n\n".join(text)


def with_interval(scores: pd.DataFrame, row: str, column: str) -> list[str]:
    """A score and its interval, as two cells."""
    low = scores.loc[f"{row} low", column]
    high = scores.loc[f"{row} high", column]
    interval = "" if pd.isna(low) or pd.isna(high) else f"{low:.3f} to {high:.3f}"
    return [three_digits(scores.loc[row, column]), interval]


def result(
    rows: Rows,
    data_name: str | None,
    task: str,
    metric: str,
    name: str,
    scores: pd.DataFrame,
    row: str,
    column: str,
    control: float,
) -> EvalResult:
    """A score for the metadata of the card, with its interval and control.

    Args:
        scores: table of seeds, with the interval in the rows `ROW low` and `ROW high`.
        control: score of what does not look at the image.
    """
    data = data_of(rows)
    kind = "synthetic" if data["synthetic"] else "chestx-ray14" if data["official"] else "other"
    further = {"low": scores.loc[f"{row} low", column], "high": scores.loc[f"{row} high", column]}
    further["control"] = control
    return EvalResult(
        task_type=task,
        dataset_type=kind,
        dataset_name=name_of_data(data, data_name),
        dataset_split="test",
        metric_type=metric,
        metric_name=name,
        metric_value=round(float(scores.loc[row, column]), 4),
        metric_args={
            key: round(float(value), 4) for key, value in further.items() if not pd.isna(value)
        },
    )


def data_of(rows: Rows) -> dict[str, Any]:
    """What is known of the scored data, as in a card."""
    about = rows.about
    return {"official": about["not_official"] is None, "synthetic": about.get("synthetic")}


def is_of_trained(rows: Rows, card: dict[str, Any] | None) -> bool:
    """Whether the scored data are on the lists of those that the network was trained on."""
    trained_on = set((card or {}).get("list_sha256", {}).values())
    return not trained_on.isdisjoint(rows.about["list_sha256"].values())


def provenance(rows: Rows, card: dict[str, Any] | None) -> str:
    """What the rows are of, a paragraph."""
    about = rows.about
    if about["synthetic"]:
        kind = plain(about["synthetic"])
    elif about["not_official"] is None:
        kind = "NIH's official test list."
    else:
        kind = "Not NIH's official test data, so not to be compared with published scores."
    if (card or {}).get("list_sha256") and not is_of_trained(rows, card):
        kind += " Other lists than those that it was trained on."
    return (
        f"{kind} Intervals: 95 %, bootstrap over patients, of this network alone. Computed with "
        f"{about['precision']}, {about.get('runtime', 'torch')}."
    )
