"""Scores of experiments for the tests of tables and comparisons."""

import numpy as np
import pandas as pd

from pylon.scoring.tables import Scored


def scored(rows: dict[str, list[float]], columns: list[str]) -> Scored:
    """Scores whose resamples lie up to 0.1 beside them: of 41, 2.5 % are the second one."""
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    resamples = scores.to_numpy()[:, None, :] + np.linspace(-0.1, 0.1, 41)[None, :, None]
    return Scored(scores, resamples, np.full(len(columns), 20))
