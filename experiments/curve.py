"""Draw a learning curve: the scores of networks against the number of images they learned from.

    python experiments/curve.py share-0.125 share-0.25 share-0.5 all

Of each NAME, it reads save/NAME/0/best, and the tables that eval_auc.py and eval_loc.py have
written to csv/NAME. The published seeds are shown, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from matplotlib.figure import Figure
from tyro.conf import Positional

from pylon.checkpoints.training_json import read_json
from pylon.scoring.charts import png_of
from pylon.scoring.compare import Score, published
from pylon.system.cli import parse, start
from pylon.system.errors import UserError
from pylon.system.files import write_atomically

PUBLISHED_IMAGES = 78_484  # the paper trained on as many (docs/chestxray14.md)
PANELS: dict[Score, tuple[str, str]] = {  # column and title of a table
    "auroc": ("macro", "AUROC, mean of the classes"),
    "point_localization": ("micro", "point localization, all boxes"),
}


@dataclass
class Options:
    """Draw a learning curve: the scores of networks against the number of their images."""

    names: Annotated[tuple[str, ...], Positional]
    """Networks by `--name`, of one seed each."""
    out: Path = Path("figs/few_images.png")
    """The figure."""


def main(options: Options) -> None:
    if not options.names:
        raise UserError("no network is named; give the --name of one or more trainings")
    images = [number_of_images(name) for name in options.names]
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    for axes, (score, (column, title)) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        tables = [read_scores(name, score)[column] for name in options.names]
        draw_intervals(axes, images, tables)
        seeds = published(score)[column]
        axes.plot([PUBLISHED_IMAGES] * len(seeds), seeds, "*", label="published seeds")
        if "prior" in tables[0]:
            axes.axhline(tables[0]["prior"], color="0.5", linestyle="--", label="a fixed point")
        axes.set(xscale="log", xlabel="radiographs to train on", ylabel=title)
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    write_atomically(options.out, png_of(figure))
    print(f"written: {options.out}")


def draw_intervals(axes, images: list[int], tables: list[pd.Series]) -> None:
    scores = [table.iloc[0] for table in tables]
    low = [table.iloc[0] - table[f"{table.index[0]} low"] for table in tables]
    high = [table[f"{table.index[0]} high"] - table.iloc[0] for table in tables]
    axes.errorbar(images, scores, (low, high), fmt="o-", capsize=3, label="with 95 % interval")


def number_of_images(name: str) -> int:
    path = Path("save", name, "0", "best", "training.json")
    if not path.exists():
        raise UserError(f"{path} is absent; train `--name {name}` first")
    return read_json(path)["data"]["images"]["train"]


def read_scores(name: str, score: Score) -> pd.DataFrame:
    path = Path("csv", name, f"{score}.csv")
    if not path.exists():
        raise UserError(f"{path} is absent; run eval_auc.py and eval_loc.py --name {name} first")
    return pd.read_csv(path, index_col=0)


if __name__ == "__main__":
    start(main, parse(Options))
