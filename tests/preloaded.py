"""What the scripts import, for the process that the tests fork them from."""

import gc

import eval_auc
import eval_loc
import generate_heatmap
import train

__all__ = ["eval_auc", "eval_loc", "generate_heatmap", "train"]

gc.collect()
gc.freeze()  # or each script would look through all of this for garbage, and copy it
