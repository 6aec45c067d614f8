"""Charts of tables: a training, scores by class, reliability. Tables in, PNG files out."""

import io
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pylon.scoring.calibration import Reliability

GREY = "0.6"


def training_chart(rows: pd.DataFrame) -> bytes:
    """Draw the loss, learning rate and AUROC of a training by epoch; a PNG file.

    Args:
        rows: of csv/NAME/SEED.csv, one row per epoch.
    """
    figure = Figure(figsize=(10, 3.4), dpi=100)
    of_loss, of_auroc = figure.subplots(1, 2)
    figure.subplots_adjust(0.06, 0.14, 0.99, 0.97, wspace=0.25)  # faster than a constrained layout
    for axes in (of_loss, of_auroc):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    epochs = rows["epoch"]

    # losses, the epoch of the best network, and the learning rate
    best = rows["val_loss"].idxmin()
    of_loss.plot(epochs, rows["train_loss"], ".-", label="training", color="C0")
    of_loss.plot(epochs, rows["val_loss"], ".-", label="validation", color="C1")
    of_loss.plot(epochs[best], rows["val_loss"][best], "o", color="C1", label="best network")
    of_loss.set(xlabel="epoch", ylabel="loss")
    highest = rows["train_loss"].iloc[-1] if len(rows) == 1 else rows["train_loss"].iloc[1:].max()
    of_loss.set_ylim(0, 1.1 * max(rows["val_loss"].max(), highest))
    of_rate = of_loss.twinx()
    of_rate.step(epochs, rows["lr"], where="mid", color=GREY, linestyle=":", label="learning rate")
    of_rate.set(yscale="log")
    of_loss.plot([], [], color=GREY, linestyle=":", label="learning rate (right)")
    of_loss.legend(frameon=False, fontsize="small")

    # AUROC of each class, and their mean
    others = ("epoch", "lr", "train_loss", "val_loss", "weighted", "macro", "images_per_second",
              "seconds")  # fmt: skip
    for name in rows.columns.drop(list(others), errors="ignore"):
        of_auroc.plot(epochs, rows[name], color=GREY, linewidth=0.7)
    of_auroc.plot(epochs, rows["macro"], ".-", color="C2", linewidth=2, label="mean of the classes")
    of_auroc.plot([], [], color=GREY, linewidth=0.7, label="each class")
    of_auroc.axhline(0.5, color="black", linewidth=0.5)
    of_auroc.set(xlabel="epoch", ylabel="validation AUROC", ylim=(0, 1.02))
    of_auroc.legend(frameon=False, fontsize="small", loc="lower right")
    return png_of(figure)


def scores_chart(
    table: pd.DataFrame,
    title: str,
    published: pd.Series | None = None,
    controls: Sequence[str] = (),
) -> bytes:
    """Draw a table of seeds: a line per class, its score, interval, published mean, controls.

    Args:
        table: from `table_of_seeds`, with rows of controls.
        title: what the scores are.
        published: mean of the published seeds by class, if they can be compared.
        controls: other rows of the table.

    Returns:
        A PNG file.
    """
    seeds = list(takewhile(lambda label: label != "mean", table.index))
    label = "mean" if "mean low" in table.index else seeds[0]
    names = list(table.columns)
    places = np.arange(len(names))[::-1]
    figure = Figure(figsize=(7.5, 1.1 + 0.32 * len(names)), dpi=110, layout="constrained")
    axes = figure.subplots()

    # the score with its interval, and the seeds behind it
    scores = table.loc[label, names].astype(float)
    low = (scores - table.loc[f"{label} low", names].astype(float)).fillna(0).clip(lower=0)
    high = (table.loc[f"{label} high", names].astype(float) - scores).fillna(0).clip(lower=0)
    called = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {label}"
    style = {"fmt": "o", "color": "C0", "capsize": 3, "label": f"{called}, 95 % over patients"}
    axes.errorbar(scores, places, xerr=[low, high], **style)
    if len(seeds) > 1:
        for seed in seeds:
            axes.plot(table.loc[seed, names], places, ".", color="C0", alpha=0.5, markersize=4)

    # what it is compared with
    if published is not None:
        shared = [name in published.index for name in names]
        values = published.reindex(names)[shared]
        axes.plot(values, places[shared], "D", color="C1", markersize=5, label="published mean")
    for marker, row in zip("sxv", controls, strict=False):
        style = {"color": "black", "markersize": 5, "fillstyle": "none", "linestyle": ""}
        axes.plot(table.loc[row, names], places, marker=marker, label=row, **style)
    axes.set_yticks(places, names)
    axes.set(xlabel=title, xlim=(-0.02, 1.02))
    axes.grid(axis="x", color="0.9")
    pooled = sum(name in ("weighted", "macro", "micro") for name in names)
    if pooled:
        axes.axhline(pooled - 0.5, color=GREY, linewidth=0.8)
    axes.legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    return png_of(figure)


def reliability_chart(
    of_class: dict[str, tuple[Reliability, Reliability | None]], title: str
) -> bytes:
    """Draw a panel per class: mean probability against share of positives; a PNG file.

    Args:
        of_class: bins by class, as predicted and, if there is Platt scaling, calibrated.
        title: whose they are.
    """
    across = min(5, len(of_class))
    down = -(-len(of_class) // across)
    height = 2.3 * down + 0.9
    figure = Figure(figsize=(2.3 * across + 0.6, height), dpi=100)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    # a constrained layout of 14 panels would take half a second
    left = 0.7 / (2.3 * across + 0.6)
    figure.subplots_adjust(left, 0.5 / height, 0.99, 1 - 0.6 / height, wspace=0.12, hspace=0.25)
    for axes, (name, both) in zip(panels, of_class.items(), strict=False):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for bins, colour, label in zip(both, ("C0", "C1"), ("network", "calibrated"), strict=True):
            if bins is not None:
                sizes = 4 + 40 * bins.counts / bins.counts.sum()
                axes.plot(bins.predicted, bins.observed, color=colour, linewidth=1, label=label)
                axes.scatter(bins.predicted, bins.observed, s=sizes, color=colour)
        axes.set_title(name, fontsize="small")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    for axes in panels[len(of_class) :]:
        axes.axis("off")
    shown = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = max(shown, key=lambda both: len(both[1]))
    figure.legend(handles, labels, loc="upper right", ncols=2, fontsize="x-small")
    figure.suptitle(title, fontsize="small", x=0.02, ha="left")
    figure.supxlabel("mean probability (dots: share of the images)", fontsize="small")
    figure.supylabel("share of positives", fontsize="small", x=0.005)
    return png_of(figure)


def maxima_chart(
    points: pd.DataFrame, masks: dict[str, np.ndarray], maps: dict[str, np.ndarray], aspect: float
) -> bytes:
    """Draw the mean map beside the mean box of each class, and the maxima on both; a PNG file.

    Args:
        points: pathology, hit, x and y in shares of the image, from `locate_maxima`.
        masks: mean of the boxes' masks by class, (h, w) in [0, 1].
        maps: mean of the maps by class, (h, w) in [0, 1]; empty if there are none.
        aspect: height of an image over its width.
    """
    panels = 2 if maps else 1  # of a class
    across = min(2, len(masks)) * panels
    down = -(-len(masks) * panels // across)
    height = (2.4 * aspect + 0.35) * down + 0.45
    figure = Figure(figsize=(2.5 * across, height), dpi=100)
    shown = figure.subplots(down, across, squeeze=False).ravel()
    figure.subplots_adjust(0.01, 0.1 / height, 0.99, 1 - 0.75 / height, wspace=0.03, hspace=0.15)
    for axes in shown:
        axes.axis("off")
    for k, (name, mask) in enumerate(masks.items()):
        of_class = points[points["pathology"] == name]
        pictures = [("boxes", mask), ("maps", maps[name])] if maps else [("boxes", mask)]
        for axes, (what, mean) in zip(shown[k * panels :], pictures, strict=False):
            style = {"cmap": "gray", "vmin": 0, "vmax": max(float(mean.max()), 1e-12)}
            axes.imshow(mean, extent=(0, 1, 1, 0), aspect=aspect, **style)
            for is_hit, marker, colour in ((False, "x", "C1"), (True, ".", "C0")):
                chosen = of_class[of_class["hit"] == is_hit]
                label = "hit" if is_hit else "miss"
                axes.plot(chosen["x"], chosen["y"], marker, color=colour, markersize=4, label=label)
            axes.set_title(f"{name}: {what}, at most {mean.max():.2f}", fontsize="x-small")
    figure.legend(*shown[0].get_legend_handles_labels(), loc="upper right", ncols=2)
    title = "means, black is 0, white the highest; points: maxima of the maps"
    figure.suptitle(title, fontsize="small", x=0.01, ha="left")
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
