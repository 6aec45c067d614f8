"""How well each class can be told without looking at the radiograph.

A network is paid for telling sharp images from blurred ones, and patients who lie from patients who
stand, wherever that tells the label.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from pylon.data.appearance import PROPERTIES, Appearance, appearance_of
from pylon.data.columns import make_encoder, not_classes, read_columns, typed
from pylon.data.radiographs import Radiographs
from pylon.data.sources import read_radiographs
from pylon.options import ClassOptions, DataOptions
from pylon.scoring.bootstrap import FEWEST, bounds, patients_behind_auroc, resampled_auroc
from pylon.scoring.metrics import auroc
from pylon.system.errors import UserError
from pylon.system.files import require_writable, write_csv
from pylon.system.parallel import look_at
from pylon.system.progress import counted, track

OF_NIH = ("view", "sex", "age")  # the columns that are used unless others are named
FOLDS = 5
NOTABLE = 0.6  # AUROC above which a class is reported in a sentence


def report_shortcuts(
    options: DataOptions,
    class_options: ClassOptions,
    columns: Sequence[str],
    num_workers: int,
    out: Path,
) -> None:
    """Print how well each class can be told without looking, and write it as csv.

    Args:
        options: a folder with NIH's files, or a table.
        class_options: its classes.
        columns: names for `read_columns`; if empty, of NIH's files those of view, sex and age that
            differ between images.
        num_workers: processes that read images; without any image, columns alone are used.
        out: the csv file.

    Raises:
        UserError: as for `read_radiographs` and `read_columns`; or there is nothing to tell by, or
            nothing to tell.
    """
    require_writable(out.parent)
    ignored = not_classes(options, class_options, columns)
    radiographs = read_radiographs(options, class_options.classes, ignored)
    notes = [*radiographs.notes]
    properties = collect_columns(options, radiographs, columns, notes)
    images, of_files = collect_appearance(radiographs, num_workers, notes)
    properties |= of_files
    for note in notes:
        print(f"note: {note}")
    if not properties:
        raise UserError(
            f"{radiographs.name}: no property differs between its images; name some with --columns"
        )

    # tell the classes
    properties = {name: columns.loc[images.index] for name, columns in properties.items()}
    scores = tell_classes(
        images[list(radiographs.class_names)].astype(float), images["patient_id"], properties
    )
    write_csv(out, scores)
    print_scores(scores, list(properties), len(images))
    print(f"\nwritten to {out}")


def collect_columns(
    options: DataOptions, radiographs: Radiographs, names: Sequence[str], notes: list[str]
) -> dict[str, pd.DataFrame]:
    """Read the columns that were named, or NIH's, by property."""
    properties = {}
    for name in names or (OF_NIH if options.table is None else ()):
        try:
            columns = read_columns(options, radiographs, [name])
        except UserError as error:
            if names:
                raise
            reason, _, _ = str(error).partition("; leave it out")
            notes.append(f"left out {name}: {reason}")
        else:
            properties[f"column {name}" if name in PROPERTIES else name] = columns
    return properties


def collect_appearance(
    radiographs: Radiographs, num_workers: int, notes: list[str]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Look at the image files: the images to use, and what their files give away, by property.

    Without any file, all images are used; otherwise those that can be read.
    """
    # look
    images = radiographs.images
    paths = images["path"].dropna()
    if len(paths) == 0:
        notes.append(f"no image is there; left out: {', '.join(PROPERTIES)}")
        return images, {}
    answers = look_at(paths, appearance_of, num_workers, "looking at files")
    faults = [answer for answer in answers if isinstance(answer, str)]
    readable = [not isinstance(answer, str) for answer in answers]
    rows = [answer for answer in answers if not isinstance(answer, str)]
    found = pd.DataFrame(rows, paths.index[readable], columns=list(Appearance._fields))

    # count what is left out
    if len(paths) < len(images):
        missing, _, _ = radiographs.if_missing.partition("; ")
        notes.append(f"left out: {len(images) - len(paths)} of {len(images)} images {missing}")
    if faults:
        notes.append(f"left out: {counted(len(faults))} that cannot be read ({faults[0]})")
    if not rows:
        raise UserError(f"{radiographs.name} has no image that can be read: {faults[0]}")
    same = [name for name in found if found[name].nunique() == 1]
    if same:
        values = ", ".join(f"{name} ({found[name].iloc[0]})" for name in same)
        notes.append(f"left out, since all images have the same: {values}")

    # by property
    typed_columns = {
        name: typed(found[name].astype(str), name) for name in found.drop(columns=same)
    }
    properties = {}
    for name, members in PROPERTIES.items():
        columns = {member: typed_columns[member] for member in members if member in typed_columns}
        if columns:
            properties[name] = pd.DataFrame(columns)
    return images.loc[found.index], properties


def tell_classes(
    labels: pd.DataFrame, patient_ids: pd.Series, properties: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Tell each class by logistic regressions on properties, cross-validated over patients.

    AUROC is the mean over the folds. Over all folds at once it would be too low: a fold with many
    positives of a group is scored by a regression that saw few of them.

    Args:
        labels: (N, C) 0 or 1, NaN if unknown; one column per class.
        patient_ids: (N,) patient of each image.
        properties: (N, k) columns as from `read_columns`, by property.

    Returns:
        One row per class: positives and negatives; patients with its rarer label; auroc, low and
        high, by all properties together; most, the property that tells most alone; AUROC by each
        alone. Scores are NaN for a class with fewer than 10 such patients. The last row, macro, is
        the mean of the others.

    Raises:
        UserError: no class has as many patients.
    """
    of_rarer = patients_behind_auroc(labels.to_numpy(), patient_ids.to_numpy())
    of_rarer = pd.Series(of_rarer[: labels.shape[1]], labels.columns)
    told = list(of_rarer.index[of_rarer >= FEWEST])
    if not told:
        raise UserError(
            f"no class has positive images of {FEWEST} patients and negative images of {FEWEST}; "
            "fewer tell nothing"
        )

    # decision values: of each property alone, and of all together
    together = pd.concat([part.add_prefix(f"{of} ") for of, part in properties.items()], axis=1)
    parts = {f"by {of}": part for of, part in properties.items()} | {"auroc": together}
    values = {of: np.full((len(labels), len(told)), np.nan) for of in parts}
    truth = np.full((len(labels), len(told), FOLDS), np.nan)  # NaN outside the fold
    for c, name in enumerate(track(told, "telling classes without looking", "class")):
        known = np.flatnonzero(labels[name].notna())
        of_class = labels[name].iloc[known]
        splitter = StratifiedGroupKFold(FOLDS)
        folds = list(splitter.split(known, of_class, patient_ids.iloc[known]))
        for k, (_, tested) in enumerate(folds):
            truth[known[tested], c, k] = of_class.iloc[tested]
        for of, part in parts.items():
            values[of][known, c] = cross_val_predict(
                make_pipeline(make_encoder(part), LogisticRegression(max_iter=1000)),
                part.iloc[known],
                of_class,
                cv=folds,
                method="decision_function",
            )

    # AUROC of each fold, as of a class of its own, and their means
    truth = truth.reshape(len(labels), -1)
    scores = pd.DataFrame(index=[*told, "macro"])
    for of in ("auroc", *parts):
        areas = auroc(truth, values[of].repeat(FOLDS, axis=1)).reshape(-1, FOLDS)
        scores[of] = with_mean(np.nanmean(areas, axis=1))
    resamples = resampled_auroc(
        truth, values["auroc"].repeat(FOLDS, axis=1), patient_ids.to_numpy()
    )[:, :-2]
    resamples = np.nanmean(resamples.reshape(len(resamples), -1, FOLDS), axis=2)
    patients = [*of_rarer[told], patient_ids.nunique()]
    both = bounds(with_mean(resamples), np.array(patients), scores["auroc"].to_numpy())
    scores.insert(1, "low", both[0])
    scores.insert(2, "high", both[1])
    most = scores.filter(regex="^by ").idxmax(axis=1)
    scores.insert(3, "most", most.str.removeprefix("by "))

    # with the classes that are left blank
    scores = scores.reindex([*labels, "macro"])
    counts = {"positives": labels.eq(1).sum(), "negatives": labels.eq(0).sum()}
    counts["patients"] = of_rarer
    for place, (what, count) in enumerate(counts.items()):
        scores.insert(place, what, count.reindex(scores.index).astype("Int64"))
    return scores.rename_axis("class")


def with_mean(scores: np.ndarray) -> np.ndarray:
    """Scores, (.., C), and their mean: (.., C + 1)."""
    return np.concatenate([scores, scores.mean(axis=-1, keepdims=True)], axis=-1)


def print_scores(scores: pd.DataFrame, names: Sequence[str], images: int) -> None:
    """Print the table of `tell_classes`, and a sentence for each class that can be told."""
    told = scores[scores["auroc"].notna()]
    width = max(len(name) for name in [*scores.index, "class"])
    print(f"\nAUROC without looking, {images:,} images, by {', '.join(names)}:\n")
    print(f"| {'class':{width}} | positives | {'AUROC (95 % interval)':22} | {'most alone':20} |")
    print(f"| {'-' * width} | --------: | {'-' * 22} | {'-' * 20} |")
    for name, row in scores.iterrows():
        positives = "" if name == "macro" else f"{row['positives']:,}"
        area = most = ""
        if name in told.index:
            area = f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            most = f"{row['most']} {row['by ' + row['most']]:.3f}"
        print(f"| {name:{width}} | {positives:>9} | {area:22} | {most:20} |")
    print()

    # in sentences
    for name, row in scores.drop(index=told.index).iterrows():
        print(f"{name}: too few; its rarer label is that of {row['patients']} patients")
    is_notable = (told["auroc"] > NOTABLE) & (told["low"] > 0.5)
    notable = told[is_notable].drop(index="macro", errors="ignore")
    for name, row in notable.iterrows():
        print(
            f"{name} can be told without looking at the radiograph (AUROC {row['auroc']:.2f}), "
            f"most by {row['most']} ({row['by ' + row['most']]:.2f} alone)"
        )
    if len(notable):
        print(
            "A network may learn that instead of the findings, unless it is an effect of theirs, "
            "as sharpness and intensity can be: see docs/evidence.md"
        )
