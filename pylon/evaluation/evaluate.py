"""Run networks on images: checkpoints in, rows out. Scores are computed in pylon/scoring."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pylon.baselines import Baseline
from pylon.checkpoints.checkpoint import class_names_of, load_pylon, read_card
from pylon.checkpoints.starter import require_unseen
from pylon.checkpoints.training_json import lines_of, read_training_json, require_own_split
from pylon.data.cache import open_cache
from pylon.data.checks import select_boxed
from pylon.data.dataset import eval_loader
from pylon.data.images import width_height_of
from pylon.data.radiographs import Radiographs
from pylon.data.transforms import eval_transform, normalize
from pylon.encoders import STRIDES
from pylon.evaluation.classes import read_common
from pylon.evaluation.runtime import run_with, sentence_about
from pylon.heatmaps import average, heatmaps_of
from pylon.hub import config_of
from pylon.model import STRIDE, Pylon
from pylon.options import EvaluationOptions, ScoreOptions, cache_folder
from pylon.scoring.metrics import point_localization
from pylon.scoring.rows import PLACES, as_integers, as_read, bboxes_of, merge_boxes
from pylon.system.errors import UserError
from pylon.system.parallel import on_main_process
from pylon.system.progress import track

LARGEST_INPUT = 4096  # pixels; no radiograph is larger


def read_data(
    options: EvaluationOptions,
    checkpoints: Sequence[Path],
    say: Callable[[str], None],
    boxes: Path | None = None,
    with_boxes: bool = False,
) -> Radiographs:
    """Read the data with the classes that the checkpoints have, and print how it was read.

    Args:
        checkpoints: all that are evaluated; the first names the classes.
        say: prints a note.
        boxes, with_boxes: as for `read_radiographs`.
    """
    first = checkpoints[0]
    asked_by = str(options.checkpoint or first)
    radiographs = read_common(options, class_names_of(first), asked_by, boxes, with_boxes)
    for path in checkpoints:
        require_own_split(path, read_training_json(path), radiographs.drawn_from)
        require_unseen(path, radiographs.of_split("test"))
    for note in radiographs.notes:
        say(f"note: {note}")
    return radiographs


def read_boxed_images(
    options: EvaluationOptions,
    checkpoints: Sequence[Path],
    accelerator: Accelerator,
    boxes: Path | None,
) -> tuple[Radiographs, pd.DataFrame]:
    """Read the data, and the images that have boxes; every process calls it (see `read_data`)."""

    def read() -> tuple[Radiographs, pd.DataFrame]:
        radiographs = read_data(options, checkpoints, accelerator.print, boxes, with_boxes=True)
        return radiographs, select_boxed(radiographs)

    return on_main_process(accelerator, read)


def load_network(
    options: EvaluationOptions, radiographs: Radiographs, path: Path, accelerator: Accelerator
) -> tuple[Pylon | Baseline, dict[str, Any]]:
    """Load the network of a checkpoint, on the device, and its card (training.json).

    Raises:
        UserError: the checkpoint is damaged, or does not fit the classes or the cache.
    """
    model, card = on_main_process(accelerator, lambda: open_checkpoint(path))
    lacking = [name for name in radiographs.class_names if name not in card["class_names"]]
    if lacking:
        raise UserError(
            f"{path} was trained on the classes {', '.join(card['class_names'])}, without "
            f"{', '.join(lacking)} of the others; score it alone"
        )
    if 0 < options.cache_size < card["image_size"]:
        raise UserError(
            f"--cache-size {options.cache_size} is below {card['image_size']}, the input size of "
            f"{path}"
        )

    # lists that have changed since training
    trained_with = card.get("list_sha256", {})
    now = radiographs.list_sha256
    others = [name for name, sha256 in trained_with.items() if now.get(name, sha256) != sha256]
    if others:
        names = ", ".join(others)
        accelerator.print(
            f"note: {path} was trained with other versions of {names} than those of "
            f"{radiographs.name}, perhaps on images that are now in the test split"
        )
    return model.to(accelerator.device, memory_format=torch.channels_last), card


def open_checkpoint(path: Path) -> tuple[Pylon | Baseline, dict[str, Any]]:
    """Load a network that takes grey images, on the CPU, and its card.

    Raises:
        UserError: the checkpoint is damaged or incomplete, or takes other images.
    """
    model = load_pylon(path)
    card = read_card(path, model)
    if model.in_channels != 1:
        raise UserError(
            f"{path} takes {model.in_channels} channels, but radiographs are read as one grey "
            "channel"
        )
    side = card["image_size"]
    stride = STRIDE if isinstance(model, Pylon) else STRIDES[-1]
    if type(side) is not int or not stride <= side <= LARGEST_INPUT or side % stride:
        raise UserError(
            f"{path}: its image_size is {side}, not a multiple of {stride} up to {LARGEST_INPUT}; "
            "copy the whole folder again"
        )
    return model, card


def open_networks(
    options: ScoreOptions,
    checkpoints: dict[str, Path],
    radiographs: Radiographs,
    images: pd.DataFrame,
    accelerator: Accelerator,
) -> Iterator[tuple[str, Pylon | Baseline, dict[str, Any], DataLoader]]:
    """Yield seed, network and card of each checkpoint, and a loader of its input images."""
    cache = None
    batch_size = options.batch_size or images_at_a_time(accelerator)
    pin = accelerator.device.type == "cuda"
    for seed, path in checkpoints.items():
        # the network's image size is needed before the cache is filled
        model, card = load_network(options, radiographs, path, accelerator)
        seconds = run_with(model, card["image_size"], options.runtime, options.precision)
        if sentence := sentence_about(options.runtime, seconds):
            accelerator.print(f"{path}: {sentence}")
        if options.tta:
            average([model], mirrored=True)
        if cache is None:
            folder = cache_folder(options)
            workers = options.num_workers
            cache = open_cache(images, folder, options.cache_size, workers, accelerator.print)
        loader = eval_loader(
            images,
            radiographs.class_names,
            eval_transform(card["image_size"]),
            batch_size,
            options.num_workers,
            cache,
            pin,
        )
        yield seed, model, card, accelerator.prepare(loader)
        accelerator.free_memory()  # or every seed's loader stays alive, with its workers


def images_at_a_time(accelerator: Accelerator) -> int:
    """Images per batch, over all processes."""
    return accelerator.num_processes * images_of_a_batch(accelerator.device.type)


def images_of_a_batch(device: str, image_size: int = 256) -> int:
    """Images per batch of a process: 8 of 256 pixels on a CPU, 128 elsewhere; fewer if larger."""
    # A CPU is 1.5 times as fast with few images, whose features fit in memory it already has.
    images = 8 if device == "cpu" else 128
    return max(1, images * 256**2 // image_size**2)


def about_rows(
    model: Pylon | Baseline,
    card: dict[str, Any],
    radiographs: Radiographs,
    not_official: str | None,
    precision: str,
    method: str | None = None,
    runtime: str = "torch",
) -> dict[str, Any]:
    """Build `about` for the rows of a network (see pylon/scoring/rows.py).

    Args:
        card: of the network.
        not_official: from `why_not_official`, the same for all networks.
        precision: in which the network was run.
        method: for rows of boxes, the source of the heatmaps; None for rows of images.
        runtime: by which the network was run.
    """
    trained = {key: card[key] for key in ("options", "split_sha256") if key in card}
    about = {
        "class_names": list(radiographs.class_names),
        "network": name_of_network(model),
        "precision": precision,
        "runtime": runtime,
        "not_official": not_official,
        "synthetic": radiographs.synthetic,
        "list_sha256": radiographs.list_sha256,
        "weights_sha256": card["weights_sha256"],
        "calibration": lines_of(card),
        "thresholds": card.get("thresholds"),
        "card": trained if "options" in trained else None,  # None without a training.json
        "config": config_of(model),
    }
    return about if method is None else {**about, "method": method}


def name_of_network(model: Pylon | Baseline) -> str:
    """Name of a network in its rows: "pylon", "ablated pylon", or a baseline's architecture."""
    name = model._hub_mixin_config["model"] if isinstance(model, Baseline) else "pylon"
    if isinstance(model, Pylon) and model.ablated:
        name = "ablated pylon"
    return f"{name} with mirror images" if getattr(model, "is_mirrored", False) else name


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    title: str,
    mean: float,
    std: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute logits and labels of all images, on every process; maps are dropped batch by batch.

    Args:
        loader: from `eval_loader`, prepared by the accelerator.
        mean, std: of intensities in [0, 1], for `normalize`.

    Returns:
        logits: (N, C) float32, of the network's classes, in the loader's order.
        labels: (N, K) float32, of the data's classes.
    """
    model.eval()
    # Written into one array each. A small tensor kept from every batch would lie between large
    # blocks that are freed, and glibc could not use these again: 10 MB a batch on a CPU.
    logits = labels = np.empty(0, np.float32)
    done = 0
    for batch in track(loader, title, "batch", shown=accelerator.is_main_process):
        with accelerator.autocast():
            output = model(normalize(batch["image"], mean, std))  # logits (B, C)
        gathered = accelerator.gather_for_metrics((output.logits, batch["label"]))
        if done == 0:
            logits = np.empty((len(loader.dataset), gathered[0].shape[1]), np.float32)
            labels = np.empty((len(loader.dataset), gathered[1].shape[1]), np.float32)
        here = slice(done, done + len(gathered[0]))
        logits[here] = gathered[0].float().cpu().numpy()
        labels[here] = gathered[1].cpu().numpy()
        done = here.stop
    assert done == len(logits)
    return logits, labels


def boxes_with_images(boxed: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """One row per image and class with boxes: the first columns of the rows that are written.

    Args:
        boxed: table of the images that have boxes.
        boxes: table of boxes.
    """
    rows = merge_boxes(boxes)
    images = boxed.set_index("image_id").loc[rows["image_id"]]
    sizes = [width_height_of(path) for path in images["path"]]  # width, height
    rows.insert(1, "patient_id", as_read(images["patient_id"]).to_numpy())
    rows["image_height"] = [height for _, height in sizes]
    rows["image_width"] = [width for width, _ in sizes]
    return rows


def localize_boxes(
    model: Pylon | Baseline,
    card: dict[str, Any],
    loader: Iterable[dict[str, Tensor]],
    boxed: pd.DataFrame,
    boxes: pd.DataFrame,
    method: str,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Locate the finding of each row, an image and a class with boxes, on every process.

    Args:
        card: of the network.
        loader: of the images in `boxed`.
        boxed: table of the images that have boxes.
        boxes: from `boxes_with_images`.
        method: source of the heatmaps (see `heatmaps_of`).

    Returns:
        The rows: the columns of `boxes`, and probability, row and column of the maximum (none if
        the map is flat), hit, threshold and called. `called` is 1 if the network calls the finding
        present (its probability reaches the threshold chosen on the validation split during
        training), 0 if not, NaN if there is no threshold.
        The heatmaps, (N, h, w) float32 in the order of the rows.
    """
    rows_of_image = boxes.groupby("image_id").indices  # image -> rows of the table
    class_of = boxes["pathology"].map(card["class_names"].index).to_numpy()
    bbox_xywh = bboxes_of(boxes)  # (N, K, 4)
    sizes = boxes[["image_height", "image_width"]].to_numpy()
    found = []
    maps = None  # in one array, as in `predict_logits`
    for batch in loader:
        # one heatmap per row: an image with boxes of three classes appears three times
        image_ids = boxed["image_id"].iloc[batch["index"].tolist()]
        positions = []
        box_rows = []
        for position, image_id in enumerate(image_ids):
            for box_row in rows_of_image[image_id]:
                positions.append(position)
                box_rows.append(box_row)

        # heatmaps (N, h, w), and whether their maxima lie in the boxes
        images = normalize(batch["image"], card["mean"], card["std"])  # (B, 1, S, S)
        classes = class_of[box_rows].tolist()
        heatmaps, probability = heatmaps_of(model, images, positions, classes, method)
        hit, row, column = point_localization(
            heatmaps, bbox_xywh[box_rows], sizes[box_rows], images.shape[-2:]
        )
        places = (probability.tolist(), row.tolist(), column.tolist(), hit.tolist())
        found += zip(box_rows, *places, strict=True)
        if maps is None:
            maps = np.empty((len(boxes), *heatmaps.shape[1:]), np.float32)
        maps[box_rows] = heatmaps.cpu().numpy()

    # gather the rows of all processes, without repeats from images that pad the last batch
    columns = ["box", "probability", "row", "column", "hit"]
    answers = pd.DataFrame(gather_object(found), columns=columns)
    answers = answers.drop_duplicates("box").set_index("box").sort_index()
    for place in PLACES:  # -1 for a flat map
        answers[place] = as_integers(answers[place].where(answers[place] >= 0))
    rows = pd.concat([boxes, answers], axis=1)
    rows["threshold"] = boxes["pathology"].map(card.get("thresholds", {})).astype(float)
    called = rows["probability"] >= rows["threshold"]
    rows["called"] = called.where(rows["threshold"].notna()).astype(float)
    own = sorted({box for box, *_ in found})
    map_of_box = dict(gather_object([(box, maps[box]) for box in own]))
    return rows, np.stack([map_of_box[box] for box in range(len(boxes))])


def require_numbers(scores: np.ndarray, path: Path) -> None:
    """Raise a UserError if a network gives non-finite scores, which finite weights can do too."""
    if not np.isfinite(scores).all():
        raise UserError(
            f"{path} gives scores that are not finite numbers; choose another checkpoint with "
            "--checkpoint"
        )
