"""Read data for a network that knows other classes: those in common, by the network's names."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.csv_cells import read_cells
from pylon.data.radiographs import Radiographs
from pylon.data.sources import read_radiographs
from pylon.data.table import KEYS, LABELS, number_labels
from pylon.options import EvaluationOptions
from pylon.system.errors import UserError


def read_common(
    options: EvaluationOptions,
    class_names: Sequence[str],
    asked_by: str,
    boxes: Path | None = None,
    with_boxes: bool = False,
) -> Radiographs:
    """Read the data with those classes of a network that it has.

    Args:
        options: the data, and --class-map.
        class_names: of the network.
        asked_by: where they come from, in messages.
        boxes, with_boxes: as for `read_radiographs`.

    Returns:
        The data; classes have the network's names and order. A note names the classes that only one
        of the two has.

    Raises:
        UserError: they have no class in common, or as `read_class_map` and `read_radiographs`.
    """
    columns, classes = names_in(options)
    own_name = {name: name for name in class_names}
    if options.class_map is not None:
        own_name |= read_class_map(options.class_map, class_names, columns, asked_by)
    common = [name for name in class_names if own_name[name] in columns]
    used = [own_name[name] for name in common]
    again = next((name for k, name in enumerate(used) if name in used[:k]), None)
    if again is not None:
        both = " and ".join(name for name in common if own_name[name] == again)
        raise UserError(
            f"{options.class_map}: {both} of {asked_by} are both {again!r} of your data; map one "
            "of them to another name"
        )
    source = options.table or options.data
    lacking = [name for name in class_names if name not in common]
    unused = [name for name in classes if name not in used]
    similar = near_misses(lacking, unused)
    if not common:
        raise UserError(
            f"{source} has no class of {asked_by}, which knows {', '.join(class_names)}{similar}; "
            "name synonyms in a file, with --class-map"
        )
    radiographs = read_radiographs(
        options, used, boxes=boxes, with_boxes=with_boxes, asked_by=asked_by
    )
    notes = radiographs.notes
    if lacking or unused:
        parts = [f"{len(common)} of the {len(class_names)} classes of {asked_by} are scored"]
        parts += [f"{source} lacks {', '.join(lacking)}"] * bool(lacking)
        parts += [f"the network lacks {', '.join(unused)}"] * bool(unused)
        notes = (*notes, "; ".join(parts) + similar)
    name_of = {own: name for name, own in zip(common, used, strict=True)}
    return replace(
        radiographs,
        images=radiographs.images.rename(columns=name_of),
        boxes=radiographs.boxes.assign(pathology=radiographs.boxes["pathology"].replace(name_of)),
        class_names=tuple(common),
        notes=notes,
    )


def names_in(options: EvaluationOptions) -> tuple[list[str], list[str]]:
    """Names that may be classes of the data, and those that are, by their cells."""
    if options.table is None:
        return list(PATHOLOGIES), list(PATHOLOGIES)
    cells = read_cells(options.table, "path")
    columns = [name for name in cells if name not in KEYS]
    number_labels(cells, columns, options.positive, options.negative)
    return columns, [
        name for name in columns if cells[name].isin(LABELS.keys()).all() and cells[name].any()
    ]


def read_class_map(
    path: Path, class_names: Sequence[str], columns: Sequence[str], asked_by: str
) -> dict[str, str]:
    """Read a csv file of two columns, network and data: the network's name of a class, and ours.

    Raises:
        UserError: it cannot be read, or names a class twice, or one that does not exist.
    """
    cells = read_cells(path, "network")
    if "data" not in cells:
        raise UserError(f"{path} has no column 'data'; its two columns must be network and data")
    again = cells["network"][cells["network"].duplicated()]
    if len(again):
        raise UserError(f"{path} names {again.iloc[0]!r} twice; remove a row")
    for column, known, owner in (("network", class_names, asked_by), ("data", columns, "the data")):
        unknown = [name for name in cells[column] if name not in known]
        if unknown:
            raise UserError(
                f"{path}: {unknown[0]!r} in the column {column} is no class of {owner}; choose "
                f"among {', '.join(known)}"
            )
    return dict(zip(cells["network"], cells["data"], strict=True))


def near_misses(lacking: Sequence[str], unused: Sequence[str]) -> str:
    """What to do about classes that only one side has but that are written alike; perhaps empty."""
    by_lower = {name.lower(): name for name in unused}
    pairs = []
    for name in lacking:
        near = get_close_matches(name.lower(), by_lower, n=1)
        pairs += [f"{by_lower[near[0]]!r} is {name!r}"] if near else []
    return f" (perhaps {' and '.join(pairs)}: see --class-map)" if pairs else ""
