"""Findings, heatmaps and boxes of any radiograph.

    python predict.py chest.png --checkpoint save/pylon/0/best
    python predict.py images/ more/ --checkpoint user/name --out predictions/new --save-maps
    python predict.py --checkpoint save/pylon/0/best --export-onnx pylon.onnx

Reads  PNG, JPEG and TIFF files of 8 or 16 bits, and folders of them; one checkpoint.
Writes OUT/predictions.csv: one row per image and class: score (probability), present (whether it
       reaches the checkpoint's threshold), point (maximum of the map), box (the region around it);
       OUT/overlays/IMAGE.png: the radiograph and the maps of the findings called present;
       OUT/manifest.json: what the results come from, and the files that could not be read;
       with --save-maps OUT/maps/IMAGE.npz; with --save-coco OUT/coco.json, coco_results.json.
A file that cannot be read does not stop the others: exit code 1. The same command resumes.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pylon.experiment.options import Method, Runtime
from pylon.system.cli import Device, parse, start


@dataclass
class Options:
    """Findings, heatmaps and boxes of any radiograph."""

    checkpoint: Path
    """A folder such as save/pylon/0/best, user/name on the Hugging Face hub, or the authors'
    model.pkl."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Images, and folders to search for images."""
    out: Path = Path("predictions")
    """Folder for the results."""
    classes: tuple[str, ...] = ()
    """Draw the maps of these classes; if none are given, those of the findings called present."""
    top: int | None = None
    """Draw the maps of the K most probable findings instead; 1 if the checkpoint has no
    thresholds."""
    overlays: bool = True
    """Draw overlays."""
    scale: Literal["absolute", "minmax"] = "absolute"
    """absolute: colours stand for probabilities from 0 to 1. minmax: each map from its own minimum
    to its own maximum, as in the published figures."""
    save_maps: bool = False
    """Save the maps of all classes: maps, (C, h, w) float32; class_names; affine, from column and
    row of a map to x and y of the image."""
    save_coco: bool = False
    """Save images and boxes in the format of COCO."""
    region_threshold: float = 0.5
    """The box encloses the connected region around the maximum in which the map is at least this
    share of it."""
    window: tuple[int, int] | None = None
    """For images of 16 bits: values that become black and white; if not given, the 0.5th and 99.5th
    percentiles of each image."""
    method: Method = "map"
    """Heatmaps: map, the network's own maps; or a method of the grad-cam library."""
    calibrated: bool = False
    """Give probabilities that are calibrated by the Platt scaling that training fitted; what is
    called present, points and boxes stay."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: faster where the hardware supports it; scores and places change a little."""
    runtime: Runtime = "torch"
    """What runs the network. On a CPU, onnx (onnxruntime) and openvino are faster than torch, and
    give the same scores up to rounding in fp32; openvino supports bf16, too."""
    export_onnx: Path | None = None
    """Write the network as an ONNX file, too; without images, only that."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images, and threads that draw."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import errno
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from accelerate.utils import gather_object

from pylon.drawing import SHEET_PANEL
from pylon.experiment.card import versions
from pylon.experiment.done import Entry, Progress, Recorder, entry_of, file_of, remove_files
from pylon.experiment.export import export_onnx
from pylon.experiment.inputs import MISSING, Found, Read, find_images, fingerprint, read_in_batches
from pylon.experiment.predictor import Prediction, Predictor, is_window, sheet_of
from pylon.experiment.results import (
    how_pixels_are_read,
    maps_file,
    open_results,
    origin_of,
    report,
    write_results,
)
from pylon.experiment.runtime import device_for, require_installed, sentence_about
from pylon.experiment.selection import check_method, require_classes
from pylon.system.cli import require_at_least
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.files import as_text, write_atomically
from pylon.system.parallel import on_main_process, require_shared, same_on_all
from pylon.system.progress import counted, track

# of an image next to a folder that has the name of its picture, or of one in very deep folders
ERRORS_OF_NAMES = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def main(options: Options) -> None:
    # the options, and the images
    check(options)
    device = device_for(options.runtime, options.device, options.precision, options.method)
    accelerator = make_accelerator(device, options.precision)
    say = accelerator.print
    if options.export_onnx is not None:
        source = (options.checkpoint, options.export_onnx)
        say(on_main_process(accelerator, lambda: export_onnx(*source)))
        if not options.images:
            return
    found = on_main_process(accelerator, lambda: find_images(options.images, options.out))
    if not found.images:
        raise UserError(next(iter(found.faults.values())))

    # the network
    open_network = partial(
        Predictor,
        options.checkpoint,
        accelerator.device,
        precision=options.precision,
        method=options.method,
        region_threshold=options.region_threshold,
        window=options.window,
        runtime=options.runtime,
        calibrated=options.calibrated,
    )
    predictor = same_on_all(
        accelerator, open_network, "weights", lambda opened: opened.card["weights_sha256"]
    )
    if compiled := sentence_about(options.runtime, predictor.compile_seconds):
        say(compiled)
    left = sorted(set(predictor.class_names) - set(predictor.calibration))
    if options.calibrated and left:
        say(f"note: the checkpoint has no calibration of {', '.join(left)}; they stay as they are")
    require_classes(options.classes, predictor.class_names, options.checkpoint)
    if options.scale == "absolute" and not predictor.are_probabilities:
        say("note: these maps are not probabilities: each is drawn from its minimum to its maximum")
        options = replace(options, scale="minmax")

    # what is left to do
    about = describe(options, found.folder, predictor)
    left, run = on_main_process(accelerator, lambda: open_and_compare(options, about, found))
    require_shared(accelerator, options.out)
    first = os.path.join(found.folder, found.images[0])
    same_on_all(accelerator, lambda: fingerprint(first), "images")
    size = predictor.batch_size
    turn = accelerator.process_index
    mine = [image for k, image in enumerate(left) if k // size % accelerator.num_processes == turn]
    say(f"{counted(len(found.images))}, {len(left)} to predict; results go to {options.out}")

    # predict, draw, record
    started = time.monotonic()
    recorder = Recorder(options.out, origin_of(about), accelerator.process_index, run)
    faults = {}
    steps = predict_all(mine, found.folder, predictor, options, recorder, faults)
    shown = accelerator.is_main_process
    for _ in track(steps, "predicting", "image", len(mine), shown, leave=True, with_rate=True):
        pass

    # the tables
    faults = dict(gather_object(list(faults.items()))) | found.faults
    names = predictor.class_names
    coloured = on_main_process(
        accelerator, lambda: write_results(options.out, about, names, faults, options.save_coco)
    )
    seconds = time.monotonic() - started
    done = len(left) - len(faults.keys() & set(left))
    if done:
        rate = f"{seconds:.1f} s, {done / seconds:.1f} images/s"
        say(f"{counted(done)} predicted in {rate}; see {options.out / 'predictions.csv'}")
    if coloured:
        say(f"note: {counted(coloured)} stored in colour: the grey values were read")
    accelerator.end_training()
    report(faults, len(found.images) + len(found.faults), options.out, accelerator)


def check(options: Options) -> None:
    """Raise a UserError if an option is out of range."""
    require_at_least(options, num_workers=0, top=1)
    if not 0 < options.region_threshold <= 1:
        raise UserError(
            f"--region-threshold must be above 0 and at most 1, not {options.region_threshold}"
        )
    if options.window is not None and not is_window(options.window):
        low, high = options.window
        raise UserError(f"--window must be two increasing values up to 65535, not {low} {high}")
    if options.classes and options.top is not None:
        raise UserError("--classes and --top both choose the maps to draw; leave one out")
    if not options.overlays and (options.classes or options.top is not None):
        raise UserError("--classes and --top choose the maps to draw; leave out --no-overlays")
    check_method(options.method, options)
    if options.export_onnx is not None:
        require_installed("onnx", "--export-onnx")
    elif not options.images:
        raise UserError("name images, or folders of them; only --export-onnx needs none")


def describe(options: Options, folder: str, predictor: Predictor) -> dict[str, Any]:
    """Where results come from, for the manifest."""
    choices = ("classes", "top", "overlays", "scale", "save_maps", "save_coco", "region_threshold",
               "window", "method", "calibrated", "precision", "runtime")  # fmt: skip
    return {
        "folder": as_text(folder),
        "checkpoint": str(options.checkpoint),
        "weights_sha256": predictor.card["weights_sha256"],
        "options": {name: getattr(options, name) for name in choices},
        "device": predictor.device.type,
        "calibration": predictor.calibration,
        "network": {
            "class_names": predictor.class_names,
            "thresholds": predictor.uncalibrated_thresholds,
            "mean": predictor.card["mean"],
            "std": predictor.card["std"],
            "image_size": predictor.image_size,
        },
        "pixels": how_pixels_are_read(predictor.image_size),
        "versions": versions(),
    }


def open_and_compare(
    options: Options, about: dict[str, Any], found: Found
) -> tuple[list[str], int]:
    """Open the folder of results; the images that are left, and the number of this run."""
    open_results(options.out, about)
    progress = Progress(options.out, origin_of(about))
    return progress.left(found, kinds_of(options)), progress.run + 1


def kinds_of(options: Options) -> list[str]:
    """The files that each image has."""
    return ["overlays"] * options.overlays + ["maps"] * options.save_maps


def predict_all(
    images: list[str],
    folder: str,
    predictor: Predictor,
    options: Options,
    recorder: Recorder,
    faults: dict[str, str],
) -> Iterator[None]:
    """Predict images and write their results, batch by batch; yield once per image.

    Args:
        images: paths relative to `folder`.
        faults: filled with why images have no results.
    """
    batches = read_in_batches(
        images,
        folder,
        predictor.batch_size,
        options.num_workers,
        image_size=predictor.image_size,
        window=options.window,
        side=SHEET_PANEL if options.overlays else 0,
    )
    save = partial(save_files, options=options)
    with ThreadPoolExecutor(max(1, options.num_workers)) as pool:
        before = None
        for batch in batches:
            good = [each for each in batch if each.fault == ""]
            bad = [each for each in batch if each.fault]
            faults.update({each.image: each.fault for each in bad})
            predictions = predictor.predict([each.prepared for each in good]) if good else []

            # files are written while the next batch is predicted
            pairs = zip(good, predictions, strict=True)
            saved = {pair[0].image: pool.submit(save, *pair) for pair in pairs}
            if before is not None:
                yield from record(recorder, faults, *before)
            before = (saved, bad)
        if before is not None:
            yield from record(recorder, faults, *before)


def record(
    recorder: Recorder, faults: dict[str, str], saved: dict[str, Future], bad: list[Read]
) -> Iterator[None]:
    """Wait for the files of a batch, then record its results; yield once per image."""
    entries = []
    for image, task in saved.items():
        try:
            entries.append(task.result())
        except UserError as error:
            if getattr(error.__cause__, "errno", None) not in ERRORS_OF_NAMES:
                raise
            why = error.__cause__.strerror
            faults[image] = f"{image} has a name under which no picture can be written ({why})"
        yield

    # an image that has become unreadable loses its results; one that is not there keeps them
    unreadable = [each.image for each in bad if each.fingerprint != MISSING]
    for image in unreadable:
        remove_files(recorder.out, image)
    recorder.add(entries, unreadable)
    yield from (None for _ in bad)


def save_files(read: Read, prediction: Prediction, options: Options) -> Entry:
    """Write the picture and the maps of an image, if they are wanted; return what to record."""
    if options.overlays:
        labels = labels_to_draw(prediction, options)
        name = as_text(os.path.basename(read.image))
        sheet = sheet_of(prediction, labels, name, options.scale)
        write_atomically(file_of(options.out, "overlays", read.image), sheet)
    if options.save_maps:
        maps = maps_file(prediction.maps, prediction.class_names, prediction.affine)
        write_atomically(file_of(options.out, "maps", read.image), maps)
    return entry_of(read, prediction)


def labels_to_draw(prediction: Prediction, options: Options) -> list[str]:
    """The classes whose maps are drawn."""
    if options.classes:
        return list(options.classes)
    no_thresholds = all(value is None for value in prediction.thresholds.values())
    top = options.top or (1 if no_thresholds else None)
    if top is not None:
        return [finding["label"] for finding in prediction.findings[:top]]
    return [finding["label"] for finding in prediction.findings if finding["present"]]


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on with the images that are left")
