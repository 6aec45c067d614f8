"""Findings, heatmaps and boxes of any radiograph.

    python predict.py chest.png                 # with the starter network
    python predict.py chest.png --checkpoint save/pylon/0/best    # or several, for their mean
    python predict.py images/ more/ --checkpoint user/name --out predictions/new --save-maps
    python predict.py --checkpoint save/pylon/0/best --export-onnx pylon.onnx

Reads  PNG, JPEG, TIFF, BMP, WebP and DICOM files, and folders of them; one checkpoint.
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
    checkpoint: tuple[Path, ...] = ()
    """A folder such as save/pylon/0/best, user/name on the Hugging Face hub, or the authors'
    model.pkl; if none is given, the starter network, save/starter/0/best. Of several, such as
    seeds, probabilities, maps and thresholds are averaged."""
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
    tta: bool = False
    """Test-time augmentation: average with what the network finds in the mirror image, its maps
    mirrored back. Takes twice the time."""
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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from accelerate.utils import gather_object

from pylon.checkpoints.starter import find_starter
from pylon.drawing import SHEET_PANEL
from pylon.evaluation.runtime import device_for, require_installed, sentence_about
from pylon.evaluation.selection import check_method, require_classes
from pylon.prediction.inputs import find_images, read_in_batches
from pylon.prediction.journal import MISSING, Journal, Result, remove_files
from pylon.prediction.onnx_export import export_onnx
from pylon.prediction.outputs import kinds_of, save_files
from pylon.prediction.predictor import Predictor, is_window, often_called
from pylon.prediction.results import (
    open_results,
    origin_of,
    report,
    start_of_manifest,
    write_results,
)
from pylon.system.cli import require_at_least
from pylon.system.device import make_accelerator
from pylon.system.errors import UserError
from pylon.system.parallel import on_main_process, require_shared
from pylon.system.progress import counted, track


def main(options: Options) -> None:
    # the options, and the images
    check(options)
    device = device_for(options.runtime, options.device, options.precision, options.method)
    accelerator = make_accelerator(device, options.precision)
    say = accelerator.print
    if not options.checkpoint:
        starter, introduction = find_starter()
        options = replace(options, checkpoint=(starter,))
        say(introduction)
    if options.export_onnx is not None:
        source = (options.checkpoint[0], options.export_onnx)
        say(on_main_process(accelerator, lambda: export_onnx(*source)))
        if not options.images:
            return
    found = on_main_process(accelerator, lambda: find_images(options.images, options.out))
    if found.note:
        say(f"note: {found.note}")
    if not found.images:
        raise UserError(next(iter(found.faults.values())))

    # the network
    predictor = Predictor(
        options.checkpoint,
        accelerator.device,
        precision=options.precision,
        method=options.method,
        region_threshold=options.region_threshold,
        window=options.window,
        runtime=options.runtime,
        calibrated=options.calibrated,
        tta=options.tta,
    )
    if compiled := sentence_about(options.runtime, predictor.compile_seconds):
        say(compiled)
    left = sorted(set(predictor.class_names) - set(predictor.calibration))
    if options.calibrated and left:
        say(f"note: the checkpoint has no calibration of {', '.join(left)}; they stay as they are")
    if often := often_called(predictor.validation):
        say(
            f"note: the network calls {', '.join(often)} present in more than half of the healthy "
            "validation images; do not rely on these calls"
        )
    require_classes(options.classes, predictor.class_names, options.checkpoint[0])
    if options.scale == "absolute" and not predictor.are_probabilities:
        say("note: these maps are not probabilities: each is drawn from its minimum to its maximum")
        options = replace(options, scale="minmax")

    # what is left to do
    about = start_of_manifest(options, found.folder, predictor)
    journal = Journal(options.out, origin_of(about))

    def open_all() -> tuple[list[str], int]:
        open_results(options.out, about)
        return journal.start_run(found.images, found.folder, partial(kinds_of, options=options))

    left, run = on_main_process(accelerator, open_all)
    require_shared(accelerator, options.out)
    size = predictor.batch_size
    turn = accelerator.process_index
    mine = [image for k, image in enumerate(left) if k // size % accelerator.num_processes == turn]
    say(f"{counted(len(found.images))}, {len(left)} to predict; results go to {options.out}")

    # predict, draw, record
    started = time.monotonic()
    record = partial(journal.add, run=run, process=turn)
    results = predict_all(mine, found.folder, predictor, options, record)
    shown = accelerator.is_main_process
    faults = {}
    unwritten = {}
    for result in track(
        results, "predicting", "image", len(mine), shown, leave=True, with_rate=True
    ):
        if result.fault:
            faults[result.image] = result.fault
        if result.unwritten:
            unwritten[result.image] = result.unwritten

    # the tables
    faults = dict(gather_object(list(faults.items()))) | found.faults
    unwritten = dict(gather_object(list(unwritten.items())))
    write = partial(write_results, journal, about, predictor, faults, unwritten)
    notes = on_main_process(accelerator, write)
    seconds = time.monotonic() - started
    done = len(left) - len(faults.keys() & set(left))
    if done:
        rate = f"{seconds:.1f} s, {done / seconds:.1f} images/s"
        say(f"{counted(done)} predicted in {rate}; see {options.out / 'predictions.csv'}")
    for note in notes:
        say(f"note: {note}")
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
    if options.export_onnx is not None and len(options.checkpoint) > 1:
        raise UserError("--export-onnx is for a single --checkpoint; name one")
    if options.dicom_out:
        require_installed("dicom", "--dicom-out")
    if options.export_onnx is not None:
        require_installed("onnx", "--export-onnx")
    elif not options.images:
        raise UserError(
            "name images, or folders of them, before --checkpoint and other options; only "
            "--export-onnx needs none"
        )


def predict_all(
    images: list[str],
    folder: str,
    predictor: Predictor,
    options: Options,
    record: Callable[[list[Result]], None],
) -> Iterator[Result]:
    """Predict images, write their files and record their results, batch by batch; yield these.

    Args:
        images: paths relative to `folder`.
        folder: of all inputs.
        record: keeps the results of a batch.
    """
    batches = read_in_batches(
        images,
        folder,
        predictor.batch_size,
        options.num_workers,
        image_size=predictor.image_size,
        window=options.window,
        side=SHEET_PANEL if options.overlays or options.dicom_out or options.html else 0,
    )
    weights = predictor.card["weights_sha256"]
    save = partial(save_files, folder=folder, options=options, weights_sha256=weights)
    with ThreadPoolExecutor(max(1, options.num_workers)) as pool:
        before = ([], [])
        for batch in batches:
            good = [(result, prepared) for result, prepared in batch if prepared is not None]
            bad = [result for result, prepared in batch if prepared is None]
            predictions = predictor.predict([prepared for _, prepared in good]) if good else []

            # files are written while the next batch is predicted
            pairs = zip(good, predictions, strict=True)
            saved = [pool.submit(save, result, prediction) for (result, _), prediction in pairs]
            yield from finish(*before, options.out, record)
            before = (saved, bad)
        yield from finish(*before, options.out, record)


def finish(
    saved: list[Future], bad: list[Result], out: Path, record: Callable[[list[Result]], None]
) -> Iterator[Result]:
    """Wait for the files of a batch, then record its results; yield these."""
    good = []
    for task in saved:
        good.append(task.result())
        yield good[-1]

    # an image that has become unreadable loses its results; one that is not there keeps them
    unreadable = [result for result in bad if result.fingerprint != MISSING]
    for result in unreadable:
        remove_files(out, result.image)
    record(good + unreadable)
    yield from bad


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on with the images that are left")
