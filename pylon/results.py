"""Tables of seeds: a row a seed, then mean and standard deviation."""

from pathlib import Path

import pandas as pd

from pylon.files import write_atomically


def table_of_seeds(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Seeds as rows, scores as columns; below them the mean and, from two seeds on, the standard deviation (n - 1)."""
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "seed"
    return pd.concat([table, table.agg(["mean", "std"]).rename_axis("seed")])


def write_csv(path: Path, table: pd.DataFrame, index: bool = True) -> None:
    """Write a table; an undefined score is an empty cell."""
    write_atomically(path, table.to_csv(index=index, lineterminator="\n").encode())


def print_table(table: pd.DataFrame) -> None:
    """Print a table of scores in Markdown, as the published README has it; an undefined score is blank."""
    header = ["seed", *table.columns]
    cells = table.map(lambda score: "" if pd.isna(score) else f"{score:.6f}")
    lines = [[str(seed), *row] for seed, *row in cells.itertuples()]
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]
    for line in [header, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
