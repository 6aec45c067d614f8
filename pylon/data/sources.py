"""From options to `Radiographs`: choose the reader, read the files and check them.

To add a data set, write its reader in a file of its own and choose it in `read_radiographs`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pylon.data import chestxray14
from pylon.data.radiographs import Radiographs, no_boxes
from pylon.data.table import read_table
from pylon.data.table_boxes import add_boxes
from pylon.options import DataOptions
from pylon.system.errors import UserError


def read_radiographs(
    options: DataOptions,
    class_names: Sequence[str] = (),
    ignore_columns: Sequence[str] = (),
    boxes: Path | None = None,
    with_boxes: bool = False,
    asked_by: str = "--classes",
) -> Radiographs:
    """Read a data set; the path of a missing image is NaN.

    Args:
        options: a folder with NIH's files, or a table.
        class_names: classes to use; if empty, all.
        ignore_columns: columns of the table that are not classes.
        boxes: file with the boxes of the table.
        with_boxes: also read the boxes, which training does not use.
        asked_by: where the class names come from, in messages.

    Raises:
        UserError: a file or a column is missing, the contents are faulty (the first fault), or the
            options exclude each other.
    """
    if options.table is None:
        of_tables = {
            "--ignore-columns": ignore_columns,
            "--boxes": boxes,
            "--positive": options.positive,
            "--negative": options.negative,
        }
        for flag, value in of_tables.items():
            if value:
                raise UserError(f"{flag} is for a --table; leave it out for NIH's files")
        radiographs = read_chestxray14(options.data, with_boxes)
        return of_classes(radiographs, class_names, asked_by)

    # a table
    if options.data != DataOptions.data:
        raise UserError(
            f"--table {options.table} takes the place of NIH's files in --data {options.data}; "
            "leave one of them out"
        )
    marks = (options.positive, options.negative)
    radiographs = read_table(options.table, class_names, ignore_columns, asked_by, *marks)
    if not with_boxes:
        return radiographs
    if boxes is None:
        raise UserError(
            f"--table {options.table} has no boxes; give them with --boxes FILE, csv or COCO"
        )
    return add_boxes(radiographs, boxes, options.table)


def read_chestxray14(data: Path, with_boxes: bool = False) -> Radiographs:
    """Read a folder with NIH's files (see `read_radiographs`)."""
    images = chestxray14.read_images(data)
    boxes = no_boxes()
    if with_boxes:
        boxes = chestxray14.read_boxes(data)
        is_tested = boxes["image_id"].isin(images["image_id"][images["split"] == "test"])
        boxes = boxes[is_tested].reset_index(drop=True)
    hashes = chestxray14.list_hashes(data)
    synthetic = chestxray14.what_is_synthetic(data)
    return Radiographs(
        images,
        boxes,
        chestxray14.PATHOLOGIES,
        hashes,
        name=str(data),
        if_missing=f"are {chestxray14.about_missing(data, images)}",
        boxes_from=str(data / chestxray14.BOX_LIST),
        picked=chestxray14.PICKED,
        notes=() if synthetic is None else (synthetic,),
        synthetic=synthetic,
    )


def of_classes(
    radiographs: Radiographs, class_names: Sequence[str], asked_by: str = "--classes"
) -> Radiographs:
    """Keep only some classes and their boxes, in the given order; all if none are given."""
    unknown = [name for name in class_names if name not in radiographs.class_names]
    if unknown:
        raise UserError(
            f"{radiographs.name} has no class {unknown[0]!r}, which {asked_by} asks for; its "
            f"classes are {', '.join(radiographs.class_names)}"
        )
    if len(set(class_names)) < len(class_names):
        raise UserError(f"{asked_by} names a class twice; leave one out")
    if not class_names:
        return radiographs
    others = [name for name in radiographs.class_names if name not in class_names]
    boxes = radiographs.boxes[radiographs.boxes["pathology"].isin(class_names)]
    return replace(
        radiographs,
        images=radiographs.images.drop(columns=others),
        boxes=boxes.reset_index(drop=True),
        class_names=tuple(class_names),
    )
