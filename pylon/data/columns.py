"""Columns that are not labels, such as view, sex and age: from NIH's files or a table's own.

They never become classes: `Radiographs` does not hold them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pylon.data import chestxray14
from pylon.data.csv_cells import hint_on, read_cells
from pylon.data.radiographs import Radiographs
from pylon.data.table import KEYS
from pylon.options import ClassOptions, DataOptions
from pylon.system.errors import UserError

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

NIHS = {  # names that are short for columns of Data_Entry_2017*.csv, whichever it has
    "view": ("View Position",),
    "sex": ("Patient Sex", "Patient Gender"),
    "age": ("Patient Age",),
}
NIHS_KEYS = ("Image Index", "Patient ID")
NIHS_LABELS = "Finding Labels"
RESOLUTION = "resolution.csv"  # image, pixels: the side of the copy that an image was made from
MOST_GROUPS = 50  # of a column of text; each has weights of its own
FEW_NUMBERS = 10  # as many different numbers, or fewer, are groups: 128, 256 and 1024 pixels
LARGEST = 1e38  # about that of float32; the squares of larger ones overflow
OLDEST = 120  # years; NIH's first list has ages of up to 414
YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1}  # of DICOM's ages, such as 058Y


def read_columns(
    options: DataOptions,
    radiographs: Radiographs,
    names: Sequence[str],
    asked_by: str = "--columns",
) -> pd.DataFrame:
    """Read columns that are not labels, for all images of a data set.

    Args:
        options: as for `read_radiographs`, which has read `radiographs`.
        radiographs: the images; of a table, read with `ignore_columns=not_classes(..)`.
        names: of a table, its columns. Of NIH's files, view, sex, age, or another column of
            Data_Entry_2017*.csv; pixels is a column of resolution.csv in the same folder.
        asked_by: where the names come from, in messages.

    Returns:
        One row per row of `radiographs.images`, with its index; one column per name, in their
        order: float64, NaN where blank, or str, "" where blank. Columns of at most `FEW_NUMBERS`
        different numbers are str. Ages as in DICOM, 058Y, are float64, in years.

    Raises:
        UserError: a column is absent, named twice, a class, path, patient_id or split, the same in
            all images, a number beyond `LARGEST`, or text that differs in more than `MOST_GROUPS`
            ways.
    """
    is_nih = options.table is None
    keys = (*KEYS, *NIHS_KEYS) if is_nih else KEYS
    labels = (*radiographs.class_names, NIHS_LABELS) if is_nih else radiographs.class_names
    columns = pd.DataFrame(index=radiographs.images.index)
    cells_of = {}  # each file is read once
    for name in names:
        if name in columns:
            raise UserError(f"{asked_by} names {name!r} twice; leave one out")
        if name in (*keys, *labels):
            what = "only tells images apart" if name in keys else "is a class"
            if name == NIHS_LABELS:
                what = "holds the classes"
            raise UserError(f"{asked_by} {name}: this column {what}; leave it out")
        path, image_column = file_with(name, options)
        if path not in cells_of:
            cells_of[path] = read_by_image(path, image_column)
        cells = cells_of[path]
        candidates = NIHS.get(name, (name,)) if is_nih else (name,)
        present = [column for column in candidates if column in cells]
        if not present:
            short = NIHS if is_nih else ()
            hint = hint_on(name, [*short, *cells])
            wanted = " or ".join(map(repr, candidates))
            raise UserError(f"{path} has no column {wanted}, which {asked_by} asks for; {hint}")
        texts = cells[present[0]].reindex(radiographs.images["image_id"]).fillna("")
        texts.index = columns.index
        columns[name] = typed(
            texts, f"{path}: the column {present[0]!r}", of_nih=is_nih and name == "age"
        )
    return columns


def not_classes(options: DataOptions, class_options: ClassOptions, names: Sequence[str]) -> tuple:
    """Columns to ignore when reading a table: the user's, and those for `read_columns`."""
    ignored = tuple(class_options.ignore_columns)
    if options.table is None or class_options.classes:
        return ignored
    cells = read_cells(options.table, "path")
    return (*ignored, *(name for name in names if name in cells and name not in KEYS))


def file_with(name: str, options: DataOptions) -> tuple[Path, str]:
    """The file that has a column, and its column of image ids."""
    if options.table is not None:
        return options.table, "path"
    if name == "pixels":
        return options.data / RESOLUTION, "image"
    entries = sorted(options.data.glob("Data_Entry_2017*.csv"))
    return (entries or [options.data / "Data_Entry_2017.csv"])[0], "Image Index"


def read_by_image(path: Path, image_column: str) -> pd.DataFrame:
    """The cells of a csv file as text, by image; the first row of each repeated name."""
    if path.name == RESOLUTION and not path.exists():
        raise UserError(
            f"{path} is missing, whose columns image and pixels say how large a copy each image "
            "was made from; write it, or leave pixels out"
        )
    if image_column != "Image Index":
        cells = read_cells(path, image_column)
    elif path.exists():  # NIH's header may end in a comma, which `read_cells` refuses
        cells = chestxray14.read_table(path, [image_column])
        cells = cells.astype(object).where(cells.notna(), "").astype(str)
    else:
        raise UserError(f"{path} is missing, which has view, sex and age; download it too")
    return cells[~cells[image_column].duplicated()].set_index(image_column)


def typed(texts: pd.Series, subject: str, of_nih: bool = False) -> pd.Series:
    """Text as numbers or groups (see `read_columns`); `of_nih` is whether it is NIH's age."""
    texts = texts.str.strip()
    filled = texts[texts != ""]
    ages = filled.str.extract(r"^(\d{3})([DWMY])$")
    if len(filled) and ages.notna().all(axis=None):
        numbers = ages[0].astype(float) * ages[1].map(YEARS)
    else:
        numbers = pd.to_numeric(filled, errors="coerce")
        too_large = numbers.abs() > LARGEST
        if numbers.notna().all() and too_large.any():
            raise UserError(
                f"{subject} has {filled[too_large].iloc[0][:40]!r}, but numbers must lie between "
                f"{-LARGEST:g} and {LARGEST:g}; correct it, or leave it blank if it is unknown"
            )
        numbers = numbers.replace([np.inf, -np.inf], np.nan)
    if of_nih:
        texts = texts.where(~(numbers > OLDEST).reindex(texts.index, fill_value=False), "")
        numbers = numbers[~(numbers > OLDEST)]

    # numbers, unless they are few
    different = texts.unique()
    if len(different) < 2:
        only = f"{different[0]!r} in every image" if different[0] else "blank"
        raise UserError(f"{subject} is {only}, so it says nothing; leave it out")
    if numbers.notna().all() and numbers.nunique() > FEW_NUMBERS:
        return numbers.reindex(texts.index).astype(float)
    if len(different) > MOST_GROUPS:
        odd = next(iter(filled[numbers.reindex(filled.index).isna()]), filled.iloc[0])
        raise UserError(
            f"{subject} has {len(different):,} different texts, such as {odd[:40]!r}; name a "
            f"column of numbers (blank if unknown), or of at most {MOST_GROUPS} groups"
        )
    return texts


def make_encoder(columns: pd.DataFrame) -> "ColumnTransformer":
    """An encoder of columns from `read_columns` as numbers, to be fitted on training images.

    Numbers are standardised, with the mean where blank and a column of its own that says so; of
    text, each group is a column of 0 and 1, and blank is a group. Groups that the images it was
    fitted on lack are all 0. `fit_transform(columns)` gives (N, K) float64.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name in columns if pd.api.types.is_numeric_dtype(columns[name])]
    groups = [name for name in columns if name not in numbers]
    of_numbers = make_pipeline(
        SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    of_groups = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return ColumnTransformer(
        [("numbers", of_numbers, numbers), ("groups", of_groups, groups)],
        verbose_feature_names_out=False,
    )
