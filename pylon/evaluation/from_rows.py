"""Experiments from existing rows (`--from`): which rows to read, and whether they match."""

from dataclasses import fields
from pathlib import Path

from pylon.evaluation.selection import check_other, not_known, require_alike, with_kind
from pylon.options import ScoreOptions
from pylon.scoring.rows import Rows, read_all_rows
from pylon.scoring.tables import labels_of_table
from pylon.system.cli import check_name, flag
from pylon.system.errors import UserError


def read_experiments(options: ScoreOptions, what: str, table: str) -> dict[str, dict[str, Rows]]:
    """Read the rows of an experiment and of those compared with it, by name and seed.

    Args:
        options: with `from_`, the folder of the first; --compare names folders next to it.
        what: "images", "boxes" or "boxes_METHOD".
        table: file in such a folder that was computed from them; its seeds are the default of
            --seeds.

    Raises:
        UserError: another option does not apply with --from; rows are missing or damaged; or they
            are of different data, or of seeds that were not trained alike.
    """
    # the folders
    require_rows_alone(options)
    folder = options.from_
    if folder.name in ("", ".."):
        folder = folder.resolve()
    folders = {folder.name: folder}
    for other in options.compare:
        check_name(other, "--compare")
        check_other(other, folders)
        folders[other] = folder.parent / other

    # their rows
    rows = {}
    for name, place in folders.items():
        labels = [str(seed) for seed in options.seeds] or labels_of_table(place / table)
        rows[name] = read_all_rows(place, what, labels)
        require_rows_alike(name, rows[name])
    require_same_data(rows, folders)
    first = next(iter(rows[folder.name].values()))
    if first.about.get("synthetic") is not None:
        print(f"note: {first.about['synthetic']}")
    return rows


def require_rows_alone(options: ScoreOptions) -> None:
    """Raise a UserError if an option is set that applies only when networks are run."""
    of_page = ("data", "table", "boxes") if getattr(options, "html", False) else ()
    for field in fields(options):
        free = field.name in ("from_", "seeds", "compare", "method", "html", *of_page)
        if not free and getattr(options, field.name) != field.default:
            raise UserError(
                f"{flag(field.name)} is for scoring networks; leave out either it or --from"
            )


def require_rows_alike(name: str, rows_of_seed: dict[str, Rows]) -> None:
    """Raise a UserError if rows to be averaged are of networks that were not trained alike."""
    # those that have a card
    about = {seed: rows.about for seed, rows in rows_of_seed.items()}
    cards = {seed: each["card"] for seed, each in about.items() if each["card"] is not None}
    configs = {seed: each["config"] for seed, each in about.items()}
    if len(about) > 1:
        for seed in [seed for seed in about if seed not in cards]:
            print(not_known(f"seed {seed} of {name}"))
        require_alike(name, cards, configs, print)

    # all of them
    first, *others = about
    for seed in others:
        same_network = with_kind(configs[first]) == with_kind(configs[seed])
        same_network &= about[first]["network"] == about[seed]["network"]
        if not same_network or about[first]["precision"] != about[seed]["precision"]:
            raise UserError(
                f"the rows of seeds {first} and {seed} of {name} are of different networks or "
                "precisions; choose seeds with --seeds"
            )


def require_same_data(rows: dict[str, dict[str, Rows]], folders: dict[str, Path]) -> None:
    """Raise a UserError if rows to be averaged or compared are of different data."""
    first = None
    for name, rows_of_seed in rows.items():
        for seed, of_seed in rows_of_seed.items():
            first = first or of_seed
            if of_seed.class_names != first.class_names or not of_seed.is_of_data_of(first):
                raise UserError(
                    f"the rows of seed {seed} in {folders[name]} are of other images, labels or "
                    "boxes than the first rows; score both on the same data"
                )
