"""Findings, heatmaps and boxes of any radiograph.

    python predict.py chest.png                 # with the starter network
    python predict.py chest.png --checkpoint save/pylon/0/best
    python predict.py images/ more/ --checkpoint user/name --out predictions/new --save-maps
    python predict.py --checkpoint save/pylon/0/best --export-onnx pylon.onnx

Reads  PNG, JPEG, TIFF and DICOM files, and folders of them; one checkpoint.
Writes OUT/predictions.csv: one row per image and class: score (probability), present (whether it
       reaches the checkpoint's threshold), point (maximum of the map), box (the region around it);
       OUT/overlays/IMAGE.png: the radiograph and the maps of the findings called present;
       OUT/manifest.json: what the results come from, and the files that could not be read;
       with --save-maps OUT/maps/IMAGE.npz; with --save-coco OUT/coco.json, coco_results.json;
       with --dicom-out OUT/captures/IMAGE.dcm and OUT/reports/IMAGE.dcm of each DICOM file;
       with --html OUT/html/index.html, a page to look through in a browser.
A file that cannot be read, or a picture that cannot be written, does not stop the others: exit
code 1. The same command resumes.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pylon.options import Method, Runtime
from pylon.system.cli import Device, parse, start


@dataclass
class Options:
    """Findings, heatmaps and boxes of any radiograph."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Images, and folders to search for images."""
    checkpoint: Path | None = None
    """A folder such as save/pylon/0/best, user/name on the Hugging Face hub, or the authors'
    model.pkl; if none is given, the starter network, save/starter/0/best."""
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
    dicom_out: bool = False
    """For each DICOM file, write the overlays as Secondary Capture, and findings and regions as
    Structured Report, in the patient's study: these two hold the patient's data."""
    html: bool = False
    """Write a page with the heatmaps of all classes, to look through in a browser."""
    region_threshold: float = 0.5
    """The box encloses the connected region around the maximum in which the map is at least this
    share of it."""
    window: tuple[float, float] | None = None
    """For images of 16 bits and DICOM: centre and width of the values from black to white; if not
    given, a DICOM file's own, or the 0.5th and 99.5th percentiles of each image."""
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

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from accelerate.utils import gather_object

from pylon.checkpoints.starter import find_starter, introduce_starter
from pylon.checkpoints.training_json import versions
from pylon.drawing import SHEET_PANEL
from pylon.evaluation.runtime import device_for, require_installed, sentence_about
from pylon.evaluation.selection import check_method, require_classes
from pylon.prediction.dicom_objects import Origin
from pylon.prediction.inputs import MISSING, Found, Read, find_images, fingerprint, read_in_batches
from pylon.prediction.journal import Progress, Recorder, remove_files
from pylon.prediction.onnx_export import export_onnx
from pylon.prediction.outputs import Wanted, kinds_of, save_files
from pylon.prediction.predictor import Predictor, is_window
from pylon.prediction.results import (
    how_pixels_are_read,
    open_results,
    origin_of,
    report,
    write_results,
)
from pylon.system.cli import require_at_least
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.files import as_text
from pylon.system.parallel import on_main_process, require_shared, same_on_all
from pylon.system.progress import counted, track


def main(options: Options) -> None:
    # the options, and the images
    check(options)
    device = device_for(options.runtime, options.device, options.precision, options.method)
    accelerator = make_accelerator(device, options.precision)
    say = accelerator.print
    if options.checkpoint is None:
        options = replace(options, checkpoint=find_starter())
        say(introduce_starter())
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
    wanted = what_to_write(options, found.folder, predictor.card["weights_sha256"])
    left, run = on_main_process(accelerator, lambda: open_and_compare(wanted, about, found))
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
    unwritten = {}
    steps = predict_all(mine, predictor, options, wanted, recorder, faults, unwritten)
    shown = accelerator.is_main_process
    for _ in track(steps, "predicting", "image", len(mine), shown, leave=True, with_rate=True):
        pass

    # the tables
    faults = dict(gather_object(list(faults.items()))) | found.faults
    unwritten = dict(gather_object(list(unwritten.items())))
    write = partial(write_results, options.out, about, predictor, faults, unwritten)
    odd = on_main_process(accelerator, write)
    seconds = time.monotonic() - started
    done = len(left) - len(faults.keys() & set(left))
    if done:
        rate = f"{seconds:.1f} s, {done / seconds:.1f} images/s"
        say(f"{counted(done)} predicted in {rate}; see {options.out / 'predictions.csv'}")
    if odd["coloured"]:
        say(f"note: {counted(odd['coloured'])} stored in colour: the grey values were read")
    if odd["lateral"]:
        say(
            f"note: {counted(odd['lateral'])} of lateral views (see the manifest): a network "
            "trained on frontal ones has not seen any"
        )
    for note, number in odd["notes"].items():
        say(f"note: {counted(number)} {note} (see the manifest)")
    if odd["flat"]:
        say(f"note: maps without point and box, since they are the same everywhere: {odd['flat']}")
    accelerator.end_training()
    given = len(found.images) + len(found.faults)
    report(faults, unwritten, given, options.out, accelerator)


def check(options: Options) -> None:
    """Raise a UserError if an option is out of range."""
    require_at_least(options, num_workers=0, top=1)
    if not 0 < options.region_threshold <= 1:
        raise UserError(
            f"--region-threshold must be above 0 and at most 1, not {options.region_threshold}"
        )
    if options.window is not None and not is_window(options.window):
        centre, width = options.window
        raise UserError(
            f"--window must be a centre and a width of at least 1, not {centre} {width}"
        )
    if options.classes and options.top is not None:
        raise UserError("--classes and --top both choose the maps to draw; leave one out")
    draws = options.overlays or options.dicom_out
    if not draws and (options.classes or options.top is not None):
        raise UserError("--classes and --top choose the maps to draw; leave out --no-overlays")
    check_method(options.method, options)
    if options.dicom_out:
        require_installed("dicom", "--dicom-out")
    if options.export_onnx is not None:
        require_installed("onnx", "--export-onnx")
    elif not options.images:
        raise UserError("name images, or folders of them; only --export-onnx needs none")


def describe(options: Options, folder: str, predictor: Predictor) -> dict[str, Any]:
    """Where results come from, for the manifest."""
    choices = ("classes", "top", "overlays", "scale", "save_maps", "save_coco", "dicom_out", "html",
               "region_threshold", "window", "method", "calibrated", "precision",
               "runtime")  # fmt: skip
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


def what_to_write(options: Options, folder: str, weights_sha256: str) -> Wanted:
    parameters = (f"method {options.method}", f"region threshold {options.region_threshold}")
    return Wanted(
        folder,
        options.out,
        options.overlays,
        options.save_maps,
        options.dicom_out,
        options.html,
        options.classes,
        options.top,
        options.scale,
        Origin(weights_sha256, parameters),
    )


def open_and_compare(wanted: Wanted, about: dict[str, Any], found: Found) -> tuple[list[str], int]:
    """Open the folder of results; the images that are left, and the number of this run."""
    open_results(wanted.out, about)
    progress = Progress(wanted.out, origin_of(about))
    return progress.left(found, partial(kinds_of, wanted=wanted)), progress.run + 1


def predict_all(
    images: list[str],
    predictor: Predictor,
    options: Options,
    wanted: Wanted,
    recorder: Recorder,
    faults: dict[str, str],
    unwritten: dict[str, str],
) -> Iterator[None]:
    """Predict images and write their results, batch by batch; yield once per image.

    Args:
        images: paths relative to the folder of all inputs.
        faults: filled with why images have no results.
        unwritten: filled with why images that have results lack a file of them.
    """
    batches = read_in_batches(
        images,
        wanted.folder,
        predictor.batch_size,
        options.num_workers,
        image_size=predictor.image_size,
        window=options.window,
        side=SHEET_PANEL if options.overlays or options.dicom_out or options.html else 0,
    )
    save = partial(save_files, wanted=wanted)
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
                yield from record(recorder, unwritten, *before)
            before = (saved, bad)
        if before is not None:
            yield from record(recorder, unwritten, *before)


def record(
    recorder: Recorder, unwritten: dict[str, str], saved: dict[str, Future], bad: list[Read]
) -> Iterator[None]:
    """Wait for the files of a batch, then record its results; yield once per image."""
    entries = []
    for image, task in saved.items():
        entry, faults = task.result()
        entries.append(entry)
        if faults:
            unwritten[image] = "; ".join(faults)
        yield

    # an image that has become unreadable loses its results; one that is not there keeps them
    unreadable = [each.image for each in bad if each.fingerprint != MISSING]
    for image in unreadable:
        remove_files(recorder.out, image)
    recorder.add(entries, unreadable)
    yield from (None for _ in bad)


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on with the images that are left")
