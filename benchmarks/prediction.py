"""Compare predict.py with the usual way of pytorch-grad-cam, alternately.

    python benchmarks/prediction.py --images FOLDER    # of 1024 x 1024 PNG files

The usual way: read an image and resize it, predict, then for each finding called present GradCAM
with that class as its only target, and a JPEG of show_cam_on_image, image by image, in fp32
(the library does not support bf16). Loading the network is not counted on either side. The network
has random weights, and thresholds that call as many findings present as --present says. Prints a
markdown table of medians.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pylon.system.cli import parse, require_at_least, start
from pylon.system.errors import UserError


@dataclass
class Options:
    """Compare predict.py with the usual way of pytorch-grad-cam."""

    images: Path
    """Folder of radiographs."""
    encoder_name: str = "resnet50"
    """Encoder of the network."""
    present: float = 2.0
    """Findings called present per image, on average."""
    count: int = 64
    """Images per measurement."""
    rounds: int = 3
    """Number of measurements of each; the median is printed."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Worker processes of predict.py."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    """Precisions to measure; if none is given, those that the CPU supports in hardware."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import cv2
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import pylon
from measure import alternate, machine, precisions, seconds_of, show
from pylon.data.chestxray14 import MEAN, PATHOLOGIES, STD
from pylon.data.images import read_image
from pylon.data.transforms import eval_transform, normalize
from pylon.heatmaps import LogitsAlone
from pylon.prediction.inputs import find_images

ROOT = Path(__file__).parent.parent


def main(options: Options) -> None:
    require_at_least(options, count=2, rounds=1, num_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        found = find_images([options.images], out)
        files = [os.path.join(found.folder, image) for image in found.images[: options.count]]
        if len(files) < 2:
            raise UserError(f"--images {options.images} has fewer than 2 images")
        make_checkpoint(options, files, out / "best")
        predictor = pylon.Predictor(out / "best", "cpu")
        calls = [finding["present"] for file in files for finding in predictor(file).findings]
        present = sum(calls) / len(files)

        print(machine(torch.device("cpu")))
        print(
            f"{options.encoder_name}, {len(files)} images, {present:.1f} findings called present "
            f"in each, {options.num_workers} workers\n"
        )
        print("| predict.py | GradCAM, always fp32 | predict.py | speed-up |\n|---|---|---|---|")
        for precision in options.precisions or precisions(torch.device("cpu")):
            ours = partial(run, options, files, precision, out)
            measured = alternate(options.rounds, {
                "GradCAM": lambda _: len(files) / seconds_of(
                    partial(explain, predictor, files, out / "theirs")
                ),
                "overlays": partial(ours, more=()),
                "no overlays": partial(ours, more=("--no-overlays",)),
            })  # fmt: skip
            show(f"prediction, {precision}", "images/s", measured)


def make_checkpoint(options: Options, files: list[str], folder: Path) -> None:
    """Save a random network whose thresholds call `present` findings per image."""
    torch.manual_seed(0)
    model = pylon.Pylon(options.encoder_name, None)
    # batch norm of a few images; without it, the outputs of a random network hardly differ
    inputs = [eval_transform(256)(read_image(file))["image"] for file in files[:16]]
    with torch.no_grad():
        for _ in range(5):
            model.train()(normalize(torch.stack(inputs), MEAN, STD))
    model.description = pylon.Description(PATHOLOGIES, MEAN, STD, 256)
    model.save_pretrained(folder)
    predictions = pylon.Predictor(folder, "cpu")(files)
    share = 1 - options.present / len(PATHOLOGIES)
    thresholds = {
        name: float(np.quantile([each.finding(name)["score"] for each in predictions], share))
        for name in PATHOLOGIES
    }
    model.description = pylon.Description(PATHOLOGIES, MEAN, STD, 256, thresholds)
    model.save_pretrained(folder)


def explain(predictor: pylon.Predictor, files: list[str], out: Path) -> None:
    """The usual way of the grad-cam library."""
    out.mkdir(exist_ok=True)
    size = (predictor.image_size, predictor.image_size)
    model = LogitsAlone(predictor.model)
    with GradCAM(model, [predictor.model.deepest]) as cam:
        for file in files:
            image = cv2.resize(cv2.imread(file, cv2.IMREAD_GRAYSCALE), size)
            inputs = (torch.from_numpy(image)[None, None] / 255 - MEAN) / STD
            with torch.no_grad():
                scores = model(inputs)[0].sigmoid().tolist()
            rgb = np.repeat(image[..., None] / np.float32(255), 3, axis=2)
            for c, name in enumerate(predictor.class_names):
                if scores[c] >= predictor.thresholds[name]:
                    heatmap = cam(inputs, [ClassifierOutputTarget(c)])[0]
                    picture = show_cam_on_image(rgb, heatmap, use_rgb=True)
                    cv2.imwrite(str(out / f"{Path(file).stem}_{name}.jpg"), picture[..., ::-1])


def run(
    options: Options, files: list[str], precision: str, out: Path, k: int, more: tuple[str, ...]
) -> float:
    """Images per second of predict.py, as it prints; `k` is the round."""
    command = [
        sys.executable, str(ROOT / "predict.py"), *files, "--checkpoint", str(out / "best"),
        "--out", str(out / f"{precision}{k}{'-'.join(more)}"), "--precision", precision,
        "--num-workers", str(options.num_workers), "--device", "cpu", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    rate = re.search(r", ([\d.]+) images/s", done.stdout)
    if done.returncode or rate is None:
        raise RuntimeError(done.stderr)
    return float(rate[1])


if __name__ == "__main__":
    start(main, OPTIONS)
