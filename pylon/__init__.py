"""PYLON, the Pyramid Localization Network: where a finding is, learnt from image-level labels alone."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or albumentations asks the network for news when imported

from pylon.checkpoint import load_pylon
from pylon.model import Pylon, PylonOutput

__all__ = ["Pylon", "PylonOutput", "load_pylon"]
