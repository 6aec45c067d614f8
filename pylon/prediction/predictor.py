"""A checkpoint -> findings, heatmaps and boxes of any radiograph.

    predictor = pylon.Predictor("save/pylon/0/best")
    prediction = predictor("chest.png")
    prediction.findings[0]  # {"label": "Effusion", "score": 0.83, "present": True, ..}
    picture = prediction.overlay("Effusion")  # (H, W, 3) uint8

predict.py does the same for files and folders.
"""

import sys
from collections.abc import Sequence
from itertools import islice
from math import isfinite
from numbers import Real
from pathlib import Path
from types import GeneratorType
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
from pylon.evaluation.evaluate import images_of_a_batch, open_checkpoint, require_numbers
from pylon.evaluation.runtime import device_for, run_with
from pylon.heatmaps import are_probabilities, average, heatmaps_of
from pylon.options import METHODS, Runtime
from pylon.prediction.prediction import Prediction
from pylon.scoring.calibration import calibrated_probabilities
from pylon.scoring.regions import Places, locate
from pylon.system.device import choose_device
from pylon.system.errors import UserError
from pylon.system.files import hash_of_json


class Prepared(NamedTuple):
    """A radiograph on its way to the network."""

    pixels: Pixels  # the image may be smaller than the file, for drawing
    height: int  # of the file, pixels
    width: int
    input: np.ndarray  # (S, S) uint8, the network's input before it is normalised


class Predictor:
    """Finds and localizes findings in radiographs, as the evaluations do.

    Args:
        checkpoint: as for `load_pylon`; if None, the starter network, which introduces itself on
            stderr. Of several in a list, such as seeds, probabilities, maps and thresholds are
            averaged.
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
            nor any point or box. For a single checkpoint.
        tta: test-time augmentation: average with what is found in the mirror image.

    Raises:
        UserError: a checkpoint, the device or the runtime cannot be used, or it holds no
            calibration, or several do not belong together.
        ValueError: another argument is impossible.

    Attributes:
        class_names, thresholds, are_probabilities: as in `Prediction`.
        model: the network, in eval mode, on `device`; of several, the first, which returns their
            mean.
        card: how it was trained, as far as that is known; of several, the first one's, with a hash
            of all `weights_sha256`.
        synthetic: what it was trained on if those are known not to be radiographs.
        path, device, precision, method, region_threshold, window, runtime, calibrated: what was
            given; of several paths, the first.
        compile_seconds: what the runtime took to compile the network.
        calibration: slope and intercept of each class that is calibrated.
        image_size: side of the network's input, pixels.
        batch_size: images that are predicted together.
    """

    @torch.inference_mode(False)  # weights that were loaded in that mode would allow no gradients
    def __init__(
        self,
        checkpoint: str | Path | Sequence[str | Path] | None = None,
        device: str | torch.device = "auto",
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        method: str = "map",
        region_threshold: float = 0.5,
        window: Window | None = None,
        runtime: Runtime = "torch",
        calibrated: bool = False,
        tta: bool = False,
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
        given = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
        paths = [find_checkpoint(each) for each in given]
        if not paths:
            raise ValueError("name at least one checkpoint, or give None for the starter network")
        models, cards = zip(*map(open_checkpoint, paths), strict=True)
        if method != "map" and (tta or len(paths) > 1):
            raise UserError(f"method {method} is for a single network and image, not for a mean")
        if calibrated and len(paths) > 1:
            raise UserError("a mean of several networks cannot be calibrated; name a single one")
        require_averageable(paths, models, cards)
        self.path = paths[0]
        self.model = models[0]
        self.card = joined(cards)
        self.device = device_of(device)
        for model in models:
            model.to(self.device, memory_format=torch.channels_last)
        self.precision = precision
        self.method = method
        self.runtime = runtime
        self.region_threshold = region_threshold
        self.window = window
        self.synthetic = (self.card.get("data") or {}).get("synthetic")
        self.class_names = tuple(self.card["class_names"])
        given = self.card.get("thresholds") or {}
        self.validation = self.card.get("validation") or {}
        self.uncalibrated_thresholds = {name: given.get(name) for name in self.class_names}
        self.are_probabilities = are_probabilities(self.model, method)
        self.calibrated = calibrated
        self.calibration = calibration_of(self.card, self.path) if calibrated else {}
        self.thresholds = {
            name: None if threshold is None else self._calibrate(name, threshold).item()
            for name, threshold in self.uncalibrated_thresholds.items()
        }
        self.image_size = self.card["image_size"]
        each = [run_with(model, self.image_size, runtime, precision) for model in models]
        self.compile_seconds = sum(each)
        if tta or len(models) > 1:
            average(models, mirrored=tta)
        self.batch_size = images_of_a_batch(self.device.type, self.image_size)

    @overload
    def __call__(self, image: ImageLike) -> Prediction: ...

    @overload
    def __call__(self, image: Images) -> list[Prediction]: ...

    def __call__(self, image: ImageLike | Images) -> Prediction | list[Prediction]:
        """Predict one radiograph, or several.

        Args:
            image: one of these, or a list, tuple or generator of them:
                the path of a PNG, JPEG, TIFF, BMP, WebP or DICOM file, its contents (bytes), an
                open binary file, a PIL image, or a data set of pydicom;
                an array or tensor: uint8 as it is, uint16 stretched or by `window`, floats from 0,
                black, to 1, white, which become 8 bits. Its shape is (H, W), (1, H, W) or
                (H, W, 1); of colours, whose grey values are taken, RGB (H, W, 3), or RGBA without
                the last, or, of tensors, RGB (3, H, W).

        Returns:
            A prediction; a list of them if several are given.

        Raises:
            UserError: a file cannot be read.
            ValueError: an image is of another type, shape or range.
        """
        if not isinstance(image, list | tuple | GeneratorType):
            return self.predict([self.prepare(image)])[0]
        predictions = []
        left = iter(image)
        while batch := [self.prepare(one) for one in islice(left, self.batch_size)]:
            predictions += self.predict(batch)
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


def require_averageable(
    paths: Sequence[Path], models: Sequence[torch.nn.Module], cards: Sequence[dict[str, Any]]
) -> None:
    """Raise a UserError unless networks have the same classes, input and kind of maps."""
    for path, model, card in zip(paths, models, cards, strict=True):
        keys = ("class_names", "image_size", "mean", "std")
        differ = [key for key in keys if card[key] != cards[0][key]]
        if are_probabilities(model) != are_probabilities(models[0]):
            differ.append("kinds of maps")
        if differ:
            raise UserError(
                f"{paths[0]} and {path} have different {', '.join(differ)}, so that they have no "
                "mean; name networks that belong together, such as seeds"
            )


def joined(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first card, with the mean of all thresholds, and a hash of the weights of all networks.

    What single networks scored on validation images is left out.

    A class has no threshold if it lacks one in any card.
    """
    first = cards[0]
    if len(cards) == 1:
        return first
    thresholds = {}
    for name in first["class_names"]:
        of_class = [(card.get("thresholds") or {}).get(name) for card in cards]
        thresholds[name] = None if None in of_class else sum(of_class) / len(of_class)
    weights = hash_of_json({"weights_sha256": [card["weights_sha256"] for card in cards]})
    return {**first, "thresholds": thresholds, "validation": {}, "weights_sha256": weights}


def often_called(validation: dict[str, dict[str, float | None]]) -> list[str]:
    """Classes that are called present in more than half of the healthy validation images."""
    return [name for name, scores in validation.items() if (scores["called_healthy"] or 0) > 0.5]


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
