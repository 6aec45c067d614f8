"""Options that the evaluations share: what may be said on the command line, and no more.

What they ask for is done by selection.py (which checkpoints) and evaluate.py (networks to rows).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pylon.system.cli import Device

# the network's own maps, or a method of the grad-cam library (METHODS of pylon/heatmaps.py)
Method = Literal[
    "map", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam", "eigengradcam"
]


@dataclass
class EvaluationOptions:
    data: Path = Path("data")
    """Folder with NIH's files."""
    name: str | None = None
    """Name of the experiment, pylon if none is given: its checkpoints are in save/NAME, its results
    go to csv/NAME."""
    checkpoint: Path | None = None
    """Use this checkpoint instead: a folder, or the authors' model.pkl. Without --name, results go
    to csv/ and its name (save/pylon/0/best: csv/pylon-0)."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32: scores are those of every machine but for rounding. bf16: faster where the hardware has
    it; scores move, those of eval_loc.py too, since the maxima of coarser maps lie elsewhere or
    tie."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""
    cache_size: int = 0
    """Read images from a cache of decoded ones in DATA/cache, no side above this many pixels,
    filled when first used; 1024 is exact for NIH's. 0: read the image files."""


@dataclass
class ScoreOptions(EvaluationOptions):
    seeds: tuple[int, ...] = ()
    """Seeds to score; every seed under save/NAME if none is named."""
    batch_size: int | None = None
    """Images at a time, over all processes together; if none is given, 128 a GPU, or 8 a process on
    a CPU."""
    compare: tuple[str, ...] = ()
    """Names of other experiments: their seeds (or --seeds) are scored, too, and compared with this
    one's in pairs. What was written of them stays as it is."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Make the tables anew from the rows in this folder, csv/NAME, without networks and data; those
    of --compare are beside it."""
