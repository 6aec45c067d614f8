"""A page in the browser: drop a radiograph, see findings and heatmaps.

    python app.py                # with the starter network
    python app.py --checkpoint save/demo/0/best
    python app.py --checkpoint user/name --port 7861

Answers on this computer alone (127.0.0.1) unless --host says otherwise. Uploads are deleted after
the answer, and nothing that is drawn is written to the disk. It runs as a Hugging Face Space, too:
see docs/share.md.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pylon.options import Runtime
from pylon.system.cli import Device, parse, start


@dataclass
class Options:
    """A page in the browser: drop a radiograph, see findings and heatmaps."""

    checkpoint: Path | None = None
    """As for predict.py; if not given, what the environment variable PYLON_CHECKPOINT says,
    or the starter network."""
    host: str = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    """Address to answer on. 0.0.0.0: for everybody who can reach this computer."""
    port: int | None = None
    """Port to answer on; if not given, what the environment variable GRADIO_SERVER_PORT says, or
    7860."""
    device: Device = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU."""
    runtime: Runtime = "torch"
    """What runs the network, as for predict.py."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

import base64
import html
import shutil
import tempfile
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from pylon.drawing import fit, overlay
from pylon.evaluation.runtime import require_installed
from pylon.prediction.prediction import Prediction
from pylon.prediction.predictor import Predictor
from pylon.system.errors import UserError
from pylon.system.files import one_line

if TYPE_CHECKING:
    import gradio

MOST_MEGABYTES = 100  # of an upload
SIDE = 1024  # longer side of the picture, pixels
SECONDS = 3600  # for which a radiograph and its maps are kept in memory, for the sliders
CAVEAT = "Research use only, not a diagnosis."
TRUST = (
    "A network calls findings present in healthy chests, too. It knows frontal radiographs of "
    "adults, if it was trained on those; a place is as good as its scores on images with boxes."
)


class Shown(NamedTuple):
    """What the page keeps of a radiograph."""

    name: str
    image: np.ndarray  # (H, W) uint8, sides at most `SIDE`
    maps: dict[str, np.ndarray]  # by class, (h, w) float32
    thresholds: dict[str, float | None]


def main(options: Options) -> None:
    checkpoint = options.checkpoint or os.environ.get("PYLON_CHECKPOINT") or None
    port = port_of(options)
    require_installed("demo", "app.py")
    predictor = Predictor(checkpoint, options.device, runtime=options.runtime)
    with tempfile.TemporaryDirectory() as uploads:
        # read when gradio is imported
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        serve(page_of(predictor), options.host, port)


def port_of(options: Options) -> int:
    """The port to answer on; a UserError if it is not one."""
    port = options.port
    if port is None:
        given = os.environ.get("GRADIO_SERVER_PORT", "7860")
        if not given.isdecimal():
            raise UserError(f"GRADIO_SERVER_PORT must be a port, such as 7860, not {given!r}")
        port = int(given)
    if not 1 <= port <= 65535:
        raise UserError(f"--port must be from 1 to 65535, not {port}")
    return port


def serve(page: "gradio.Blocks", host: str, port: int) -> None:
    """Answer until the process is stopped."""
    import gradio

    # gradio asks itself for the page once: a proxy would not find it
    own = f"localhost,127.0.0.1,{host}"
    kept = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = f"{kept},{own}" if kept else own

    system = ("system-ui", "sans-serif")  # not the default, which is fetched from the network
    theme = gradio.themes.Default(font=system, font_mono=("ui-monospace", "monospace"))
    try:
        page.queue(max_size=20).launch(
            server_name=host,
            server_port=port,
            max_file_size=f"{MOST_MEGABYTES}mb",
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=theme,
            css=".findings .wrap { flex-direction: column; }",
            footer_links=[],
        )
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be used; choose others, or stop what answers there"
        ) from error
    print(f"http://{host}:{port} answers until Ctrl-C; {CAVEAT}", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def page_of(predictor: Predictor) -> "gradio.Blocks":
    """The page: a file in, the findings, a picture with sliders."""
    import gradio

    scales = [("probabilities, 0 to 1", "absolute"), ("each map's own range", "minmax")]
    if not predictor.are_probabilities:
        scales = scales[1:]

    def look(path: str, strength: float, scale: str) -> tuple[Any, ...]:
        try:
            shown, findings = shown_of(predictor(path), os.path.basename(path))
        except (UserError, ValueError) as error:
            sentence = one_line(str(error).replace(path, os.path.basename(path)))
            gradio.Warning(sentence, duration=None, title="Not read")
            return None, None, gradio.Radio([], value=None, label="Findings"), 0.5, ""
        finally:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        label = findings[0][1]
        choice = gradio.Radio(findings, value=label, label=f"Findings in {shown.name}")
        threshold = threshold_of(shown, label)
        return None, shown, choice, threshold, draw(shown, label, strength, threshold, scale)

    def draw(
        shown: Shown | None, label: str | None, strength: float, threshold: float, scale: str
    ) -> str:
        if shown is None or label is None:
            return ""
        return picture_of(shown, label, strength, threshold, scale)

    def threshold_of(shown: Shown | None, label: str) -> float:
        return 0.5 if shown is None else round(shown.thresholds[label] or 0.5, 3)

    with gradio.Blocks(title="PYLON", analytics_enabled=False, delete_cache=(60, 60)) as page:
        synthetic = ""
        if predictor.synthetic:
            synthetic = "**It was trained on synthetic images, not on radiographs.**"
        gradio.Markdown(f"# PYLON: where is the finding?\n**{CAVEAT}** {TRUST} {synthetic}")
        shown = gradio.State(None, time_to_live=SECONDS)
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label="Radiograph: PNG, JPEG, TIFF or DICOM", type="filepath")
                findings = gradio.Radio([], label="Findings", elem_classes="findings")
                strength = gradio.Slider(0, 1, 1, step=0.05, label="Strength of the map")
                threshold = gradio.Slider(
                    0, 1, 0.5, step=0.001, label="Threshold: the contour encloses what reaches it"
                )
                scale = gradio.Radio(scales, value=scales[0][1], label="Colours stand for")
            with gradio.Column(scale=2):
                picture = gradio.HTML()
        weights = predictor.card["weights_sha256"]
        gradio.Markdown(f"{CAVEAT} Weights: SHA-256 {weights}.")

        # what happens when something is changed; after an upload, all of it in one answer, or the
        # page would send a finding of the previous radiograph
        inputs = [shown, findings, strength, threshold, scale]
        file.upload(look, [file, strength, scale], [file, shown, findings, threshold, picture])
        findings.input(threshold_of, [shown, findings], threshold).then(draw, inputs, picture)
        for slider in (strength, threshold):
            # by mouse or keyboard; of several changes, the last one is drawn
            slider.change(draw, inputs, picture, show_progress="hidden", trigger_mode="always_last")
        scale.input(draw, inputs, picture)
    return page


def shown_of(prediction: Prediction, name: str) -> tuple[Shown, list[tuple[str, str]]]:
    """What the page keeps of a prediction; and its findings, as text and class."""
    maps = dict(zip(prediction.class_names, prediction.maps, strict=True))
    small = fit(prediction.image, SIDE) if max(prediction.image.shape) > SIDE else prediction.image
    texts = []
    for finding in prediction.findings:
        threshold = prediction.thresholds[finding["label"]]
        called = ", no threshold"
        if threshold is not None:
            called = f"{', called present' if finding['present'] else ''} (from {threshold:.3f})"
        called += "" if finding["box"] else ", no place: its map is the same everywhere"
        texts.append((f"{finding['label']}: {finding['score']:.3f}{called}", finding["label"]))
    name = f"{name}, a lateral view, which it may not know" if prediction.lateral else name
    name = ", ".join((name, *prediction.notes))
    return Shown(name, small, maps, prediction.thresholds), texts


def picture_of(shown: Shown, label: str, strength: float, threshold: float, scale: str) -> str:
    """The map of a class on the radiograph, faded, as an HTML element that holds the picture."""
    drawn = overlay(shown.image, shown.maps[label], scale, threshold)
    grey = shown.image[..., None]
    picture = (grey + strength * (drawn.astype(np.float32) - grey)).round().astype(np.uint8)
    data = base64.b64encode(cv2.imencode(".png", picture[..., ::-1])[1]).decode()
    described = html.escape(f"{shown.name} with the map of {label}", quote=True)
    return f'<img alt="{described}" style="width: 100%" src="data:image/png;base64,{data}">'


if __name__ == "__main__":
    start(main, OPTIONS, "the page is closed")
