"""Experiments from rows that were written (`--from`): which rows, and whether they go together."""

from dataclasses import fields
from pathlib import Path

from pylon.experiment.options import ScoreOptions
from pylon.experiment.selection import check_other, not_known, require_alike, with_kind
from pylon.scoring.rows import Rows, read_all_rows
from pylon.scoring.tables import labels_of_table
from pylon.system.cli import check_name, flag
from pylon.system.errors import UserError


def read_experiments(options: ScoreOptions, what: str, table: str) -> dict[str, dict[str, Rows]]:
    """The rows that were written of an experiment and of those beside it, by name and seed.

    Args:
        options: with `from_`, the folder of the first; --compare names folders beside it.
        what: "images", "boxes" or "boxes_METHOD".
        table: the file in such a folder that was made of them, which tells the seeds if --seeds
            does not.

    Raises:
        UserError: --from does not go with another option; there are no rows, or they are damaged;
            or they are not of the same data, or of seeds that were not trained alike.
    """
    # which folders
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
    return rows


def require_rows_alone(options: ScoreOptions) -> None:
    """Raise a UserError of an option that asks for something of a network, where there is none."""
    for field in fields(options):
        free = field.name in ("from_", "seeds", "compare", "method")
        if not free and getattr(options, field.name) != field.default:
            raise UserError(
                f"{flag(field.name)} is for scoring networks; leave it out, or leave --from out"
            )


def require_rows_alike(name: str, rows_of_seed: dict[str, Rows]) -> None:
    """Raise a UserError if rows to be averaged are not of networks that were trained alike."""
    # those that say how they were trained
    about = {seed: rows.about for seed, rows in rows_of_seed.items()}
    cards = {seed: each["card"] for seed, each in about.items() if each["card"] is not None}
    configs = {seed: each["config"] for seed, each in about.items()}
    if len(about) > 1:
        for seed in [seed for seed in about if seed not in cards]:
            print(not_known(f"seed {seed} of {name}"))
        require_alike(name, cards, configs, print)

    # and all
    first, *others = about
    for seed in others:
        same_network = with_kind(configs[first]) == with_kind(configs[seed])
        if not same_network or about[first]["precision"] != about[seed]["precision"]:
            raise UserError(
                f"the rows of seeds {first} and {seed} of {name} are of other networks, or in "
                "another precision; choose seeds with --seeds"
            )


def require_same_data(rows: dict[str, dict[str, Rows]], folders: dict[str, Path]) -> None:
    """Raise a UserError if rows, of which means and differences are made, are of different data."""
    first = None
    for name, rows_of_seed in rows.items():
        for seed, of_seed in rows_of_seed.items():
            first = first or of_seed
            if of_seed.class_names != first.class_names or not of_seed.is_of_data_of(first):
                raise UserError(
                    f"the rows of seed {seed} in {folders[name]} are of other images, labels or "
                    "boxes than the first; score both on the same data"
                )
