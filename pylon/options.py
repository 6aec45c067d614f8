"""Options that several scripts share: the command line, and no more.

They are carried out by data/sources.py (which images), evaluation/selection.py (which checkpoints)
and evaluation/evaluate.py (networks to rows).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pylon.system.cli import Device
from pylon.system.errors import UserError

# the network's own maps, or a method of the grad-cam library (METHODS of pylon/heatmaps.py)
Method = Literal[
    "map", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam", "eigengradcam"
]

Runtime = Literal["torch", "onnx", "openvino"]  # what runs the network


@dataclass
class DataOptions:
    data: Path = Path("data")
    """Folder with NIH's files."""
    table: Path | None = None
    """Instead of --data: a csv file of your own images with a column path, a column for each class
    (1, 0, or blank if unknown) and, if you have them, patient_id and split."""


@dataclass
class CacheOptions(DataOptions):
    cache_dir: Path | None = None
    """Folder for caches of decoded images; if none is given, DATA/cache, or cache/ next to the
    table."""


@dataclass
class ClassOptions:
    classes: tuple[str, ...] = ()
    """Classes to use; if none are given, all of NIH's, or every column of the table that is not
    path, patient_id, split or ignored."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the table that are not classes."""


@dataclass
class BoxOptions:
    boxes: Path | None = None
    """Boxes of the table's images: a csv file with the columns path, class, x, y, w, h in pixels,
    or a COCO file (.json)."""


@dataclass
class EvaluationOptions(CacheOptions):
    name: str | None = None
    """Name of the experiment, pylon if none is given: checkpoints are read from save/NAME, results
    are written to csv/NAME."""
    checkpoint: Path | None = None
    """Use this checkpoint instead: a folder, user/name on the Hugging Face hub, or the authors'
    model.pkl. Without --name, results go to a folder named after it (save/pylon/0/best:
    csv/pylon-0)."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32: the same scores on all hardware, up to rounding. bf16: faster where the hardware
    supports it; scores change, those of eval_loc.py too, since the maxima of less precise maps
    move or tie."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Worker processes that read images."""
    cache_size: int = 0
    """Read images from a cache of decoded images (--cache-dir), with sides of at most this many
    pixels, filled on first use; 1024 is exact for NIH's images. 0: read the image files."""


@dataclass
class ScoreOptions(EvaluationOptions):
    seeds: tuple[int, ...] = ()
    """Seeds to score; if none is given, every seed under save/NAME."""
    batch_size: int | None = None
    """Images per batch, over all processes together; if not given, 128 per GPU, or 8 per process on
    a CPU."""
    runtime: Runtime = "torch"
    """What runs the network. On a CPU, onnx (onnxruntime) and openvino are faster than torch, and
    give the same scores up to rounding in fp32; openvino supports bf16, too."""
    tta: bool = False
    """Test-time augmentation: average with what the network finds in the mirror image, its maps
    mirrored back. Takes twice the time."""
    compare: tuple[str, ...] = ()
    """Names of other experiments: their seeds (or --seeds) are scored too, for a paired comparison
    with this one. Their own files are not changed."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Rebuild the tables from the rows in this folder, csv/NAME, without networks or data; the
    folders of --compare are next to it."""


def require_cache_size(options: CacheOptions, cache_size: int) -> None:
    """Raise a UserError if a folder of caches is named but none is used."""
    if options.cache_dir is not None and cache_size == 0:
        raise UserError("--cache-dir needs --cache-size, the side of cached images; add it")


def cache_folder(options: CacheOptions) -> Path:
    """Folder of the caches."""
    if options.cache_dir is not None:
        return options.cache_dir
    beside = options.data if options.table is None else options.table.parent
    return beside / "cache"
