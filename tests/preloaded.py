"""Imports of the scripts, for the process that the tests fork them from."""

import gc

import conftest
import coverage
import pandas as pd
import torch

import eval_auc
import eval_loc
import generate_heatmap
import predict
import share
import train
from pylon.model import Pylon
from pylon.scoring.charts import training_chart

# with conftest, which each fork would import otherwise, and pytest with it
__all__ = ["conftest", "eval_auc", "eval_loc", "generate_heatmap", "predict", "share", "train"]

# What libraries do at their first use, each fork would do again: coverage and torch import more,
# matplotlib finds its fonts. Tensors on `meta` hold no numbers, so torch starts no thread here.
measurement = coverage.Coverage(data_file=None, config_file=conftest.ROOT / "pyproject.toml")
measurement.start()
measurement.stop()
row = {"epoch": 1, "lr": 1e-3, "train_loss": 1, "val_loss": 1, "macro": 0.5}
training_chart(pd.DataFrame([row]))
with torch.device("meta"):
    Pylon("tu-test_resnet", None)

gc.collect()
gc.freeze()  # otherwise garbage collection in each fork would scan, and so copy, all of this
