"""Options that several scripts share: the command line, and no more.

They are carried out by data/sources.py (which images), evaluation/selection.py (which checkpoints)
and evaluation/evaluate.py (networks to rows).
"""

import os
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from pylon.system.cli import Device, Precision, Track
from pylon.system.errors import UserError


class Fact(Enum):
    """What else is to be known of an option of train.py, in its annotation."""

    SHARED = "a number, a switch or a choice, which model cards show"
    MAY_CHANGE = "another value may be given when a run is resumed"
    OF_PYLON = "other networks do not have it"


SHARED, MAY_CHANGE, OF_PYLON = Fact

METHODS = {  # besides a network's own maps: option name -> class in the grad-cam library
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}
Method = Literal["map", *METHODS]
Runtime = Literal["torch", "onnx", "openvino"]  # what runs the network

Model = Literal[
    "pylon", "backbone", "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan",
    "deeplabv3", "deeplabv3plus", "upernet", "segformer",
]  # fmt: skip


@dataclass
class DataOptions:
    data: Annotated[Path, MAY_CHANGE] = Path("data")
    """Folder with NIH's files."""
    table: Annotated[Path | None, MAY_CHANGE] = None
    """Instead of --data: a csv or xlsx file of your own images with a column path, a column for
    each class (1, 0, or blank if unknown) and, if you have them, patient_id and split."""
    positive: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """What the table's classes hold besides 1: yes, for example; case makes no difference."""
    negative: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """What the table's classes hold besides 0: no, for example."""


@dataclass
class CacheOptions(DataOptions):
    cache_dir: Annotated[Path | None, MAY_CHANGE] = None
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
    class_map: Path | None = None
    """A csv file with the columns network and data: the network's name of a class, and that of your
    data. Classes that only one of the two has are left out."""
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


@dataclass
class TrainOptions(ClassOptions, CacheOptions):
    """Train PYLON on image-level labels. Defaults are the paper's."""

    normalize: Annotated[Literal["nih", "data"], SHARED] = "nih"
    """Mean and standard deviation of intensities: nih, the paper's; data, measured on 1,000
    training images."""
    name: str | None = None
    """Name of the experiment, the value of --model if none is given. Results go to csv/NAME and
    save/NAME."""
    seed: Annotated[int, SHARED] = 0
    """Seed for initial weights, data order and augmentation. The data split is the same for all
    seeds."""
    epochs: Annotated[int, SHARED, MAY_CHANGE] = 40
    """Maximum number of epochs."""
    batch_size: Annotated[int, SHARED] = 64
    """Images per step, over all processes together."""
    lr: Annotated[float, SHARED] = 1e-4
    """Learning rate of Adam."""
    min_lr: Annotated[float, SHARED] = 1e-6
    """Stop once the learning rate has fallen to this value."""
    patience: Annotated[int, SHARED] = 1
    """Epochs without improvement in validation loss that are tolerated before the learning rate is
    reduced."""
    lr_factor: Annotated[float, SHARED] = 0.2
    """Factor that the learning rate is multiplied by when it is reduced."""
    image_size: Annotated[int, SHARED] = 256
    """Side of the network's input in pixels; a multiple of 256, or of 32 for --model backbone."""
    encoder_name: Annotated[str, SHARED] = "resnet50"
    """Any encoder of segmentation-models-pytorch, or tu-NAME for a timm encoder."""
    encoder_weights: str = "imagenet"
    """imagenet (downloaded once), none, or a file of weights: safetensors, or a state dict in
    names of timm, torchvision or segmentation-models-pytorch."""
    init_from: Path | None = None
    """Start from the weights of this checkpoint, as far as they fit: a folder, or user/name on the
    Hugging Face hub."""
    model: Annotated[Model, SHARED] = "pylon"
    """pylon; backbone, an encoder and a 1x1 convolution (the classic CAM net); or an architecture
    of segmentation-models-pytorch."""
    pool: Annotated[Literal["max", "avg", "lse", "top", "pcam"], SHARED] = "max"
    """How a map becomes a logit: its maximum; its mean (CAM); log-sum-exp; the mean of its largest
    64th; or its mean weighted by probability (PCAM). The last three learn faster from few
    images."""
    up_layers: Annotated[Literal[1, 2], SHARED, OF_PYLON] = 1
    """Convolutions per UP module of pylon: 1 (2020 code) or 2 (iScience paper)."""
    up_modules: Annotated[Literal[0, 1, 2, 3], SHARED, OF_PYLON] = 3
    """UP modules of pylon; 2, 1 and 0 are ablations, with maps at stride 8, 16 and 32."""
    attention: Annotated[bool, SHARED, OF_PYLON] = True
    """The attention branch of pylon; --no-attention removes it, as an ablation."""
    precision: Annotated[Precision, SHARED] = "auto"
    """auto: fp16 with loss scaling on CUDA, bf16 on a CPU that supports it in hardware, else fp32
    (on CUDA: TF32)."""
    device: Annotated[Device, SHARED, MAY_CHANGE] = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    compile: Annotated[bool, SHARED, MAY_CHANGE] = False
    """Compile the network (torch.compile): takes minutes at the start, then steps are faster. Needs
    a GPU and a C++ compiler."""
    augment: Annotated[Literal["cpu", "device"], SHARED] = "cpu"
    """cpu: worker processes augment the images; device: the GPU does, with the same random numbers,
    where workers cannot keep up with it. Needs --cache-size."""
    num_workers: Annotated[int, MAY_CHANGE] = min(os.cpu_count() or 1, 8)
    """Worker processes that read and augment images."""
    cache_size: Annotated[int, SHARED] = 0
    """Read decoded images from a cache (--cache-dir), with no side above this many pixels; 1024 is
    exact for NIH's images and takes 118 GB, 512 takes 29 GB. 0: decode the image files each
    time."""
    skip_unreadable: Annotated[bool, SHARED, MAY_CHANGE] = False
    """List and skip images that cannot be read; to find them, all images are decoded once before
    the first step. Without it, one such image stops the run at once."""
    train_share: Annotated[float, SHARED] = 1
    """Train on this share of the training patients only, drawn at random; smaller shares are part
    of larger ones."""
    negatives: Annotated[int | None, SHARED] = None
    """Training images without any finding in an epoch, drawn again for each; if not given, all."""
    rotate: Annotated[float, SHARED] = 90
    """Half of the training images are rotated, by up to so many degrees."""
    blur: Annotated[float, SHARED] = 0
    """Share of the training images that are reduced to half their resolution, so that sharpness
    tells less."""
    adjust_for: Annotated[tuple[str, ...], SHARED] = ()
    """Columns, such as view, sex, age (of NIH's list, or your table's own) or pixels, whose
    relation to the labels the network is not paid for: in training, a logistic regression on them
    is added to the logits. pixels is a column of a file resolution.csv next to NIH's lists."""
    optimizer: Annotated[Literal["adam", "adamw"], SHARED] = "adam"
    """adamw: with weight decay .01."""
    schedule: Annotated[Literal["plateau", "cosine"], SHARED] = "plateau"
    """plateau: --patience, --lr-factor and --min-lr; cosine: from a warm-up down to 0 in --epochs
    epochs."""
    encoder_lr: Annotated[float, SHARED] = 1
    """The encoder's learning rate, as a multiple of --lr."""
    freeze: Annotated[Literal[0, 4, 8, 16, 32], SHARED] = 0
    """Keep the encoder's first weights up to the feature at this stride, which makes steps faster;
    0: train all."""
    average_weights: Annotated[float, SHARED] = 0
    """Validate and save an exponential moving average of the weights with this decay, such as .999;
    0: the weights themselves."""
    prevalence_bias: Annotated[bool, SHARED] = False
    """Start the head's bias at the share of positive images of each class."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Start over where an earlier run exists: the new run is kept in save/NAME/SEED.new and
    replaces the earlier one when it is finished."""
    track: Annotated[Track | None, MAY_CHANGE] = None
    """Also show each epoch in TensorBoard (files in save/NAME/SEED/tensorboard), or in another
    tracker, with a picture of eight validation heatmaps."""
    deterministic: Annotated[bool, SHARED] = False
    """Make results reproducible on a GPU (torch.use_deterministic_algorithms); slower. Results on a
    CPU always are."""


def options_with(fact: Fact) -> list[str]:
    """The options of train.py that have a fact in their annotation."""
    hints = get_type_hints(TrainOptions, include_extras=True)
    return [name for name, hint in hints.items() if fact in getattr(hint, "__metadata__", ())]


def as_json(options: TrainOptions) -> dict[str, Any]:
    """The options as they are written: paths as text, lists in place of tuples."""
    values = asdict(options).items()
    values = {key: str(value) if isinstance(value, Path) else value for key, value in values}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


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
