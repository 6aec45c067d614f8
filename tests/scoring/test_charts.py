"""Charts: PNG files that show what is in their tables."""

import cv2
import numpy as np
import pandas as pd
import pytest

from pylon.scoring.calibration import Reliability
from pylon.scoring.charts import reliability_chart, scores_chart, training_chart
from pylon.scoring.tables import Scored, table_of_seeds


def pixels_of(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


@pytest.mark.parametrize("epochs", [1, 3])
def test_training_chart(epochs):
    rows = pd.DataFrame({
        "epoch": range(1, epochs + 1), "lr": 1e-4, "train_loss": 0.3, "val_loss": 0.2,
        "Mass": 0.7, "Hernia": np.nan, "weighted": 0.7, "macro": 0.7, "images_per_second": 9.0,
        "seconds": 3.0,
    })  # fmt: skip
    image = pixels_of(training_chart(rows))
    assert (image != 255).any()
    better = pixels_of(training_chart(rows.assign(macro=0.9)))
    assert (image != better).any()


@pytest.mark.parametrize("seeds", [["0"], ["0", "1"]])
def test_scores_chart(seeds):
    scores = pd.DataFrame({"Mass": 0.5, "Hernia": np.nan, "micro": 0.6}, index=seeds)
    resamples = scores.to_numpy()[:, None] + np.linspace(-0.1, 0.1, 50)[:, None]
    table = table_of_seeds(Scored(scores, resamples, np.full(3, 50)))
    table.loc["prior"] = 0.2
    table.loc["lift over prior"] = table.loc["lift over prior low"] = 0.1
    plain_of_seeds = table.drop(index=["lift over prior", "lift over prior low"])
    assert scores_chart(table, "points") == scores_chart(plain_of_seeds, "points")
    plain = pixels_of(scores_chart(table, "points"))
    published = pd.Series({"Mass": 0.6, "micro": 0.7})
    full = pixels_of(scores_chart(table, "points", published, ("prior",)))
    assert plain.shape[0] == full.shape[0]
    assert len(np.unique(full.reshape(-1, 3), axis=0)) > len(
        np.unique(plain.reshape(-1, 3), axis=0)
    )


def test_reliability_chart():
    bins = Reliability(np.array([0.1, 0.9]), np.array([0.2, 0.8]), np.array([5, 5]))
    few = pixels_of(reliability_chart({"Mass": (bins, None)}, "seed 0"))
    many = pixels_of(reliability_chart({f"class {k}": (bins, bins) for k in range(7)}, "seed 0"))
    assert many.shape[0] > few.shape[0]
