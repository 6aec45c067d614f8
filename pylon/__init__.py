"""PYLON, the Pyramid Localization Network: localizes findings, trained on image labels only.

    pylon.Pylon, pylon.PylonOutput    the network and what it returns (pylon/model.py)
    pylon.Description                 what its inputs and outputs mean (pylon/hub.py)
    pylon.load_pylon                  a network from a checkpoint (pylon/checkpoints/checkpoint.py)
    pylon.Predictor, pylon.Prediction any radiograph -> findings, heatmaps and boxes
                                      (pylon/prediction/predictor.py)

They are imported when first used: `python train.py --help` needs neither torch nor SMP.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pylon.checkpoints.checkpoint import load_pylon
    from pylon.hub import Description
    from pylon.model import Pylon, PylonOutput
    from pylon.prediction.prediction import Prediction
    from pylon.prediction.predictor import Predictor

# otherwise albumentations checks for updates online whenever it is imported
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__all__ = ["Description", "Prediction", "Predictor", "Pylon", "PylonOutput", "load_pylon"]

_MODULES = {
    "Description": "pylon.hub",
    "Prediction": "pylon.prediction.prediction",
    "Predictor": "pylon.prediction.predictor",
    "Pylon": "pylon.model",
    "PylonOutput": "pylon.model",
    "load_pylon": "pylon.checkpoints.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pylon' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
