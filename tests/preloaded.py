"""Imports of the scripts, for the process that the tests fork them from."""

import gc

import eval_auc
import eval_loc
import generate_heatmap
import predict
import share
import train

__all__ = ["eval_auc", "eval_loc", "generate_heatmap", "predict", "share", "train"]

gc.collect()
gc.freeze()  # otherwise garbage collection in each fork would scan, and so copy, all of this
