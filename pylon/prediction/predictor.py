"""A checkpoint -> findings, heatmaps and boxes of any radiograph.

    predictor = pylon.Predictor("save/pylon/0/best")
    prediction = predictor("chest.png")
    prediction.findings[0]  # {"label": "Effusion", "score": 0.83, "present": True, ..}
    picture = prediction.overlay("Effusion")  # (H, W, 3) uint8

predict.py does the same for files and folders.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from pylon.checkpoints.checkpoint import find_checkpoint
from pylon.checkpoints.starter import find_starter
from pylon.checkpoints.training_json import calibration_of
from pylon.data.image_like import ImageLike, Images, pixels_of_any
from pylon.data.pixels import Pixels, Window
from pylon.data.transforms import normalize, resize
from pylon.drawing import Scale, overlay
from pylon.evaluation.evaluate import images_of_a_batch, open_checkpoint, require_numbers
from pylon.evaluation.runtime import device_for, run_with
from pylon.heatmaps import METHODS, are_probabilities, heatmaps_of
from pylon.options import Runtime
from pylon.scoring.calibration import calibrated_probabilities
from pylon.scoring.regions import Places, locate
from pylon.system.device import choose_device


class Prepared(NamedTuple):
    """A radiograph on its way to the network."""

    pixels: Pixels  # the image may be smaller than the file, for drawing
    height: int  # of the file, pixels
    width: int
    input: np.ndarray  # (S, S) uint8, the network's input before it is normalised


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network finds in one radiograph. Coordinates are pixels of the image given.

    Attributes:
        findings: one dict per class, the highest score first:
            label: name of the class;
            score: probability of the finding, 0 to 1 (the maximum of its map, if maps are
                probabilities);
            present: whether the score reaches the checkpoint's threshold, None if it has none;
            point: (row, column) of the maximum of the map, enlarged to the network's input; None
                if the map is flat, the same everywhere;
            box: (x, y, w, h) of the connected region around it in which the map is at least
                `region_threshold`, by default half, of its maximum; None if the map is flat;
            outline: [(x, y), ..], the corners of that region (see pylon/scoring/regions.py); empty
                if the map is flat.
        maps: (C, h, w) float32 in [0, 1], in the order of `class_names`: probability per pixel of
            the map, or heatmaps on a scale of their own (see `are_probabilities`).
        class_names: the C classes.
        thresholds: probability from which each class is called present; None if there is none.
        are_probabilities: False for methods such as Grad-CAM, and for networks whose logits are
            means of their maps: then each map is scaled to [0, 1].
        image: (H, W) uint8, the radiograph as it was read; in predict.py, resized for drawing.
        affine: (2, 3) float64: (x, y) in pixels of the image = affine @ (column, row, 1) of a map,
            where whole numbers are the centres of pixels.
        lateral: whether a DICOM file says that it is a lateral view, of which networks trained on
            frontal ones know nothing.
        notes: what else is odd about the pixels, such as a single grey level.
    """

    findings: list[dict[str, Any]]
    maps: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    thresholds: dict[str, float | None] = field(repr=False)
    are_probabilities: bool = field(repr=False)
    image: np.ndarray = field(repr=False)
    affine: np.ndarray = field(repr=False)
    lateral: bool = False
    notes: tuple[str, ...] = ()

    def finding(self, label: str) -> dict[str, Any]:
        """The finding of a class; a ValueError if there is no such class."""
        for finding in self.findings:
            if finding["label"] == label:
                return finding
        raise ValueError(f"label must be one of {', '.join(self.class_names)}, got {label!r}")

    def overlay(self, label: str, scale: Scale | None = None) -> np.ndarray:
        """Draw the map of a class on the radiograph: (H, W, 3) uint8, RGB.

        Args:
            label: name of the class.
            scale: "absolute", with a contour at the threshold, or "minmax" (see pylon/drawing.py);
                by default absolute where maps are probabilities.
        """
        self.finding(label)
        if scale not in (None, "absolute", "minmax"):
            raise ValueError(f"scale must be absolute or minmax, got {scale!r}")
        scale = scale or ("absolute" if self.are_probabilities else "minmax")
        heatmap = self.maps[self.class_names.index(label)]
        threshold = self.thresholds.get(label) if self.are_probabilities else None
        return overlay(self.image, heatmap, scale, threshold)


class Predictor:
    """Finds and localizes findings in radiographs, as the evaluations do.

    Args:
        checkpoint: as for `load_pylon`; if None, the starter network, which introduces itself on
            stderr.
        device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "mps", or one as "cuda:1".
        precision: "fp32" or "bf16", faster where the hardware supports it, less precise maps.
        method: "map", the network's own maps, or a method of pylon/heatmaps.py.
        region_threshold: share of its maximum that a map reaches within the box, in (0, 1].
        window: centre and width of 16-bit and DICOM images, as DICOM defines them (see
            pylon/data/pixels.py); by default a DICOM file's own, or that between the 0.5th and
            99.5th percentiles of each image.
        runtime: "torch"; or, on a CPU and for method "map", "onnx" or "openvino".
        calibrated: give calibrated probabilities, by the Platt scaling that training fitted on the
            validation split: scores, thresholds and maps change, but not what is called present,
            nor any point or box.

    Raises:
        UserError: the checkpoint, the device or the runtime cannot be used, or it holds no
            calibration.
        ValueError: another argument is impossible.

    Attributes:
        class_names, thresholds, are_probabilities: as in `Prediction`.
        model: the network, in eval mode, on `device`.
        card: how it was trained, as far as that is known.
        synthetic: what it was trained on if those are known not to be radiographs.
        path, device, precision, method, region_threshold, window, runtime, calibrated: what was
            given.
        compile_seconds: what the runtime took to compile the network.
        calibration: slope and intercept of each class that is calibrated.
        image_size: side of the network's input, pixels.
        batch_size: images that are predicted together.
    """

    @torch.inference_mode(False)  # weights that were loaded in that mode would allow no gradients
    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "auto",
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        method: str = "map",
        region_threshold: float = 0.5,
        window: Window | None = None,
        runtime: Runtime = "torch",
        calibrated: bool = False,
    ):
        if not 0 < region_threshold <= 1:
            raise ValueError(f"region_threshold must be in (0, 1], got {region_threshold}")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {precision}")
        if method not in ("map", *METHODS):
            raise ValueError(f"method must be map or one of {', '.join(METHODS)}, got {method}")
        if method != "map" and precision != "fp32":
            raise ValueError(f"method {method} needs precision fp32")
        if window is not None and not is_window(window):
            raise ValueError(f"window must be a centre and a width of at least 1, got {window}")
        device = device_for(runtime, device, precision, method)
        if checkpoint is None:
            checkpoint, introduction = find_starter()
            print(introduction, file=sys.stderr)
        self.path = find_checkpoint(checkpoint)
        self.model, self.card = open_checkpoint(self.path)
        self.device = device_of(device)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.precision = precision
        self.method = method
        self.runtime = runtime
        self.region_threshold = region_threshold
        self.window = window
        self.synthetic = (self.card.get("data") or {}).get("synthetic")
        self.class_names = tuple(self.card["class_names"])
        given = self.card.get("thresholds") or {}
        self.uncalibrated_thresholds = {name: given.get(name) for name in self.class_names}
        self.are_probabilities = are_probabilities(self.model, method)
        self.calibrated = calibrated
        self.calibration = calibration_of(self.card, self.path) if calibrated else {}
        self.thresholds = {
            name: None if threshold is None else self._calibrate(name, threshold).item()
            for name, threshold in self.uncalibrated_thresholds.items()
        }
        self.image_size = self.card["image_size"]
        self.compile_seconds = run_with(self.model, self.image_size, runtime, precision)
        self.batch_size = images_of_a_batch(self.device.type, self.image_size)

    @overload
    def __call__(self, image: ImageLike) -> Prediction: ...

    @overload
    def __call__(self, image: Images) -> list[Prediction]: ...

    def __call__(self, image: ImageLike | Images) -> Prediction | list[Prediction]:
        """Predict one radiograph, or a list of them.

        Args:
            image: path of a PNG, JPEG, TIFF or DICOM file, array (H, W) uint8 or uint16, or PIL
                image; or a list or tuple of these.

        Raises:
            UserError: a file cannot be read.
            ValueError: an image is of another type.
        """
        if not isinstance(image, list | tuple):
            return self.predict([self.prepare(image)])[0]
        predictions = []
        for first in range(0, len(image), self.batch_size):
            batch = image[first : first + self.batch_size]
            predictions += self.predict([self.prepare(one) for one in batch])
        return predictions

    def prepare(self, image: ImageLike) -> Prepared:
        return prepare(image, self.image_size, self.window)

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Predict radiographs in one batch."""
        # A network rounds otherwise for a lone image, whose work its threads divide differently.
        inputs = np.stack([each.input for each in batch])  # (B, S, S)
        if len(batch) == 1:
            inputs = np.repeat(inputs, 2, axis=0)
        heatmaps, scores = self._run(inputs)  # (B, C, h, w), (B, C)
        heatmaps = heatmaps[: len(batch)]
        scores = scores[: len(batch)]

        # points and boxes
        count = len(self.class_names)
        sizes = np.array([(each.height, each.width) for each in batch])
        places = locate(
            heatmaps.flatten(0, 1),
            sizes.repeat(count, axis=0),
            (self.image_size, self.image_size),
            self.region_threshold,
        )
        maps = heatmaps.cpu().numpy()
        predictions = []
        for k, prepared in enumerate(batch):
            own = slice(k * count, (k + 1) * count)
            of_image = Places(*(each[own] for each in places))
            predictions.append(self._prediction(prepared, scores[k].tolist(), of_image, maps[k]))
        return predictions

    def _run(self, inputs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Run the network: inputs (B, S, S) uint8 -> heatmaps (B, C, h, w), scores (B, C)."""
        batch = len(inputs)
        count = len(self.class_names)
        images = torch.from_numpy(inputs)[:, None].to(self.device)
        images = normalize(images, self.card["mean"], self.card["std"])  # (B, 1, S, S)
        image_of = np.arange(batch).repeat(count).tolist()
        class_of = list(range(count)) * batch

        # scores must not depend on the hardware: no TF32 in fp32
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision != "fp32")
        lower = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with exact, lower:
            heatmaps, scores = heatmaps_of(self.model, images, image_of, class_of, self.method)
        require_numbers(scores.cpu().numpy(), self.path)
        return heatmaps.unflatten(0, (batch, count)), scores.unflatten(0, (batch, count))

    def _prediction(
        self,
        prepared: Prepared,
        scores: list[float],
        places: Places,
        maps: np.ndarray,
    ) -> Prediction:
        findings = []
        maps = maps.copy()  # not a view that keeps the batch in memory
        for c, label in enumerate(self.class_names):
            threshold = self.uncalibrated_thresholds[label]
            present = None if threshold is None else scores[c] >= threshold
            score = scores[c]
            if label in self.calibration:
                score = self._calibrate(label, score).item()
                if self.are_probabilities:
                    maps[c] = self._calibrate(label, maps[c])
            is_flat = places.boxes[c, 2] == 0
            place = {
                "point": None if is_flat else tuple(places.points[c].tolist()),
                "box": None if is_flat else tuple(places.boxes[c].tolist()),
                "outline": [tuple(corner) for corner in places.outlines[c].tolist()],
            }
            findings.append({"label": label, "score": score, "present": present, **place})
        return Prediction(
            sorted(findings, key=lambda finding: -finding["score"]),
            maps,
            self.class_names,
            self.thresholds,
            self.are_probabilities,
            prepared.pixels.image,
            affine_of(maps.shape[1:], (prepared.height, prepared.width)),
            prepared.pixels.lateral,
            prepared.pixels.notes,
        )

    def _calibrate(self, label: str, probabilities: float | np.ndarray) -> np.ndarray:
        """Calibrated probabilities of a class, float32; the same if it is not calibrated."""
        line = self.calibration.get(label)
        return np.float32(calibrated_probabilities(np.float32(probabilities), line))


def is_window(window: Any) -> bool:
    """Whether it is a centre and a width of at least 1."""
    if not isinstance(window, list | tuple) or len(window) != 2:
        return False
    if not all(isinstance(value, Real) and isfinite(value) for value in window):
        return False
    return window[1] >= 1


def device_of(device: str | torch.device) -> torch.device:
    """The device of a name; errors as for `Predictor`."""
    if device == "auto":
        return torch.device(choose_device("auto"))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError("device must be auto, cpu, cuda or mps, or one such as cuda:1")
    choose_device(chosen.type)  # or a UserError
    return chosen


def prepare(image: ImageLike, image_size: int, window: Window | None = None) -> Prepared:
    """Read and resize a radiograph; errors as for `Predictor`."""
    pixels = pixels_of_any(image, window)
    resized = resize(pixels.image, image_size)["image"][0].numpy()
    return Prepared(pixels, *pixels.image.shape, resized)


def affine_of(map_size: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """The affine of `Prediction`, from height and width of map and image."""
    h, w = map_size
    height, width = image_size
    across = width / w
    down = height / h
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
