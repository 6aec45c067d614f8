"""Scores of experiments, for the tests of tables and comparisons."""

import numpy as np
import pandas as pd

from pylon.scoring.tables import Scored


def scored(rows: dict[str, list[float]], columns: list[str]) -> Scored:
    """Build scores with 41 resamples within 0.1 of them; the 2.5 % quantile is the second."""
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    resamples = scores.to_numpy()[:, None, :] + np.linspace(-0.1, 0.1, 41)[None, :, None]
    return Scored(scores, resamples, np.full(len(columns), 20))
