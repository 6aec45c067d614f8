"""The files that predict.py writes for an image: pictures, maps, DICOM."""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pylon.data.dicom import is_dicom_file
from pylon.drawing import Panel, Scale, contour_path, draw_sheet, reaches, title_of
from pylon.prediction.dicom_objects import CAVEAT, NotWritable, Origin, dicom_objects
from pylon.prediction.journal import Result
from pylon.prediction.prediction import Prediction, maps_file
from pylon.system.errors import UserError
from pylon.system.files import as_text, write_atomically
from pylon.viewer.page import file_of, write_pictures

# of an image next to a folder that has the name of its picture, or of one in very deep folders
ERRORS_OF_NAMES = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def kinds_of(path: str, options: Any) -> list[str]:
    """The kinds of files of an image, by its path: some of `KINDS` (journal.py).

    Args:
        options: of predict.py.
    """
    kinds = ["overlays"] * options.overlays + ["maps"] * options.save_maps
    if options.dicom_out and is_dicom_file(path):
        kinds += ["captures", "reports"]
    if options.html:
        kinds += ["html/radiographs", "html/heatmaps"]
    return kinds


def save_files(
    result: Result, prediction: Prediction, folder: str, options: Any, weights_sha256: str
) -> Result:
    """Write the files of an image; return its whole result.

    Args:
        result: without findings.
        folder: of all inputs.
        options: of predict.py.

    Raises:
        UserError: no file can be written, as on a full disk.
    """
    image = result.image
    out = options.out
    path = os.path.join(folder, image)
    kinds = kinds_of(path, options)
    labels = labels_to_draw(prediction, options.classes, options.top)

    def write_overlays() -> None:
        name = as_text(os.path.basename(image))
        sheet = sheet_of(prediction, labels, name, options.scale)
        write_atomically(file_of(out, "overlays", image), sheet)

    def write_dicom() -> None:
        # without the file's name, which may identify the patient
        sheet = sheet_of(prediction, labels, CAVEAT, options.scale)
        parameters = [f"method {options.method}", f"region threshold {options.region_threshold}"]
        parameters += ["averaged with the mirror image"] * options.tta
        origin = Origin(weights_sha256, tuple(parameters))
        for kind, file in dicom_objects(path, prediction, labels, sheet, origin).items():
            write_atomically(file_of(out, kind, image), file)

    def write_maps() -> None:
        maps = maps_file(prediction.maps, prediction.class_names, prediction.affine)
        write_atomically(file_of(out, "maps", image), maps)

    def write_html() -> None:
        write_pictures(out / "html", image, prediction.image, prediction.maps)

    writers = {
        "overlays": write_overlays,
        "captures": write_dicom,
        "maps": write_maps,
        "html/heatmaps": write_html,
    }
    faults = [why_not_written(write, image) for kind, write in writers.items() if kind in kinds]
    unwritten = "; ".join(dict.fromkeys(filter(None, faults)))
    findings = findings_of(prediction, with_contours=options.html)
    return result._replace(findings=findings, unwritten=unwritten)


def findings_of(prediction: Prediction, with_contours: bool) -> list[dict[str, Any]]:
    """The findings of a prediction as in `Result`, in the order of its classes."""
    findings = []
    for label, heatmap in zip(prediction.class_names, prediction.maps, strict=True):
        finding = prediction.finding(label)
        kept = {key: finding[key] for key in ("label", "score", "present", "point", "box")}
        if with_contours:
            threshold = prediction.thresholds[label]
            drawn = finding["present"] and prediction.are_probabilities
            # a mean of maps may stay below the mean of their maxima
            drawn = drawn and reaches(heatmap, threshold)
            kept["contour"] = contour_path(heatmap, threshold) if drawn else ""
        findings.append(kept)
    return findings


def why_not_written(write: Callable[[], None], image: str) -> str:
    """Write files of an image; return why that cannot be for this image alone, else ""."""
    try:
        write()
    except NotWritable as error:
        return str(error)
    except UserError as error:
        if getattr(error.__cause__, "errno", None) not in ERRORS_OF_NAMES:
            raise
        why = error.__cause__.strerror
        return f"{image} has a name under which no picture can be written ({why})"
    return ""


def labels_to_draw(
    prediction: Prediction, classes: Sequence[str] = (), top: int | None = None
) -> list[str]:
    """The classes whose maps are drawn.

    Args:
        classes: these; if there are none:
        top: that many of the most probable findings; if None, those called present, or, if the
            checkpoint has no thresholds, the most probable one.
    """
    if classes:
        return list(classes)
    if top is None and all(value is None for value in prediction.thresholds.values()):
        top = 1
    if top is not None:
        return [finding["label"] for finding in prediction.findings[:top]]
    return [finding["label"] for finding in prediction.findings if finding["present"]]


def sheet_of(prediction: Prediction, labels: list[str], name: str, scale: Scale) -> bytes:
    """Draw the radiograph and the maps of some classes, with titles; a PNG file.

    Args:
        labels: the classes.
        name: title of the radiograph.
        scale: of the maps (see `Prediction.overlay`).
    """
    grey = np.repeat(prediction.image[..., None], 3, axis=2)
    panels = [Panel(grey, name, "" if labels else "no finding is called present")]
    for label in labels:
        finding = prediction.finding(label)
        threshold = prediction.thresholds[label]
        about = "no threshold"
        if finding["box"] is None:
            about = "the same everywhere: no place"
        elif scale == "minmax":
            about = "scaled from its minimum to its maximum"
        elif threshold is not None:
            word = "map below the" if finding["present"] else "below the"
            if reaches(prediction.map(label, "map"), threshold):
                word = "contour at the"
            about = f"{word} threshold, {threshold:.3f}"
        title = title_of(label, finding["score"], finding["present"])
        panels.append(Panel(prediction.overlay(label, scale), title, about))
    return draw_sheet(panels, with_bar=scale == "absolute" and labels != [])
