"""app.py: a radiograph dropped on the page, in a real browser."""

import base64
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import NO_BROWSER, run_script, sentence_of, start_script
from dicom_files import PATIENT, dicom, save

import app
from pylon.drawing import overlay
from pylon.prediction.prediction import Prediction
from pylon.prediction.predictor import Predictor
from pylon.system.errors import UserError

playwright = pytest.importorskip("playwright.sync_api", reason=NO_BROWSER)
pytest.importorskip("gradio", reason="needs the extra demo")
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def checkpoint(trained_once) -> Path:
    return trained_once / "save/pylon/0/best"


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> Path:
    """Where the app's temporary files are."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(checkpoint, uploads, tmp_path_factory) -> Iterator[str]:
    """A running app."""
    cwd = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(uploads))
        # as a Space starts it
        patch.setenv("PYLON_CHECKPOINT", str(checkpoint))
        patch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
        patch.setenv("GRADIO_SERVER_PORT", str(port))
        # behind a proxy, which does not know this computer
        for name in ("http_proxy", "all_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "example.org")
        process = start_script("app.py", "--device", "cpu", cwd=cwd, out=cwd)
    (cwd / "stdout").touch()
    while "answers until Ctrl-C" not in (cwd / "stdout").read_text():
        assert process.is_alive(), (cwd / "stderr").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"

    # stopped as with Ctrl-C, it leaves nothing
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert "Traceback" not in (cwd / "stderr").read_text()
    assert files_in(uploads) == []


def files_in(folder: Path) -> list[Path]:
    """The files that hold something: Gradio leaves empty ones until the app is stopped."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.fixture
def page(address) -> Iterator["playwright.Page"]:
    """The page in a browser; all it asks for must come from the app."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        asked = []
        errors = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda it: errors.append(it.text) if it.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("input[type=file]", state="attached")
        yield page
        browser.close()
    assert [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))] == []
    assert errors == []


def drop(page, path: Path) -> None:
    page.set_input_files("input[type=file]", str(path))


def picture(page) -> str:
    """The picture that is shown, once it is."""
    return page.wait_for_selector("img[alt*='with the map of']").get_attribute("src")


def pixels_of(source: str) -> np.ndarray:
    """The pixels, RGB, of a picture that is part of an address."""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_the_picture_has_the_map_of_the_class_that_is_named():
    """Findings are in the order of their scores, maps in that of the classes."""
    names = ("Mass", "Nodule", "Hernia")
    maps = np.zeros((3, 32, 32), np.float32)
    maps[0, 4, 20] = maps[1, 20, 4] = maps[2, 9, 9] = 1
    scores = {"Hernia": (0.9, True), "Mass": (0.5, False), "Nodule": (0.25, None)}
    findings = [
        {"label": name, "score": score, "present": present, "box": (1, 2, 3, 4)}
        for name, (score, present) in scores.items()
    ]
    thresholds = {"Mass": 0.625, "Nodule": None, "Hernia": 0.125}
    image = np.full((128, 96), 90, np.uint8)
    affine = np.eye(2, 3)
    prediction = Prediction(findings, maps, names, thresholds, True, image, affine)
    shown, texts = app.shown_of(prediction, "a.png")
    assert texts == [
        ("Hernia: 0.900, called present (from 0.125)", "Hernia"),
        ("Mass: 0.500 (from 0.625)", "Mass"),
        ("Nodule: 0.250, no threshold", "Nodule"),
    ]
    for name, heatmap in zip(names, maps, strict=True):
        element = app.picture_of(shown, name, 1, 0.5, "absolute")
        assert f'alt="a.png with the map of {name}"' in element
        drawn = pixels_of(re.search('src="(.*?)"', element)[1])
        np.testing.assert_array_equal(drawn, overlay(image, heatmap, "absolute", 0.5))

    # faded by half, and to nothing
    half = pixels_of(re.search('src="(.*?)"', app.picture_of(shown, "Mass", 0.5, 1, "minmax"))[1])
    whole = overlay(image, maps[0], "minmax", 1).astype(float)
    assert np.abs(half - (whole + 90) / 2).max() <= 0.5
    none = pixels_of(re.search('src="(.*?)"', app.picture_of(shown, "Mass", 0, 1, "minmax"))[1])
    assert (none == 90).all()


@needs_browser
def test_a_png_and_the_sliders(page, phantom, checkpoint, uploads):
    path = sorted((phantom / "images").glob("*.png"))[0]
    prediction = Predictor(checkpoint, "cpu")(path)
    drop(page, path)
    first = picture(page)
    assert page.get_by_text("Findings in 00000001_000.png").is_visible()
    radios = page.locator(".findings input[type=radio]")
    assert radios.count() == 14
    assert radios.first.is_checked()
    assert "with the map of" in page.locator("img[alt*='with the map']").get_attribute("alt")
    assert files_in(uploads) == []  # the upload is gone

    # another finding, each map's own range, no map
    top, other = prediction.findings[0]["label"], prediction.findings[3]["label"]
    assert_shows(first, prediction, top, "absolute")
    last = first
    for change, scale, strength in (
        (lambda: radios.nth(3).check(), "absolute", 1),
        (lambda: page.get_by_label("each map's own range").check(), "minmax", 1),
        (lambda: page.get_by_label("number input for Strength of the map").fill("0"), "minmax", 0),
    ):
        change()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "src => document.querySelector('img[alt*=map]')?.src != src", arg=last
        )
        last = picture(page)
        assert_shows(last, prediction, other, scale, strength)


def assert_shows(
    source: str, prediction: Prediction, label: str, scale: str, strength: float = 1
) -> None:
    """Check that a picture is the map of a class, with a contour at its threshold, or at .5."""
    threshold = round(prediction.thresholds[label] or 0.5, 3)
    heatmap = prediction.maps[prediction.class_names.index(label)]
    drawn = overlay(prediction.image, heatmap, scale, threshold)
    grey = prediction.image[..., None].astype(float)
    difference = np.abs(pixels_of(source) - (grey + strength * (drawn - grey)))
    assert difference.mean() < 0.5  # the network rounds otherwise in another process


@needs_browser
def test_what_cannot_be_read_leaves_nothing_of_the_one_before(page, phantom, tmp_path):
    drop(page, sorted((phantom / "images").glob("*.png"))[0])
    assert picture(page)
    (tmp_path / "letter.png").write_text("this is a letter")
    drop(page, tmp_path / "letter.png")
    page.get_by_text("letter.png cannot be read as an image").wait_for()
    page.wait_for_selector("img[alt*='with the map of']", state="detached")
    assert page.locator(".findings input[type=radio]").count() == 0
    page.wait_for_timeout(1000)  # an error of Gradio's would come now
    assert not page.get_by_text("Value:").is_visible()

    # and the next one is shown as ever
    drop(page, sorted((phantom / "images").glob("*.png"))[1])
    assert picture(page)


@needs_browser
def test_a_dicom_file(page, phantom, tmp_path, uploads):
    image = cv2.imread(str(next((phantom / "images").glob("*.png"))), cv2.IMREAD_GRAYSCALE)
    odd = {"ViewPosition": "LL", "PresentationLUTShape": "INVERSE"}  # of MONOCHROME2
    drop(page, save(dicom(image.astype(np.uint16) * 16, 12, **odd), tmp_path / "IM1"))
    assert picture(page)
    assert page.get_by_text("Findings in IM1, a lateral view").is_visible()
    assert page.get_by_text("which contradict: read as MONOCHROME2").is_visible()
    assert not any(value in page.content() for value in PATIENT.values())
    assert files_in(uploads) == []


@needs_browser
@pytest.mark.parametrize("name", ["letter.png", "huge.png"])
def test_what_is_no_radiograph(page, tmp_path, name, uploads):
    sentence = "letter.png cannot be read as an image"
    (tmp_path / "letter.png").write_text("this is a letter")
    if name == "huge.png":
        cv2.imwrite(str(tmp_path / name), np.zeros((20_000, 10_000), np.uint8))
        sentence = "huge.png has more than 80 million pixels"
    drop(page, tmp_path / name)
    page.get_by_text(sentence).wait_for()
    # the preview of what was uploaded goes a moment later
    gone = "folder => !document.documentElement.outerHTML.includes(folder)"
    page.wait_for_function(gone, arg=str(uploads))
    assert files_in(uploads) == []


def test_mistakes(checkpoint, tmp_path, monkeypatch):
    arguments = ("--checkpoint", checkpoint, "--device", "cpu")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_script("app.py", *arguments, "--port", port, cwd=tmp_path, code=2)
    assert f"--host 127.0.0.1 --port {port} cannot be used" in sentence_of(done)
    for options, given, sentence in (
        (app.Options(port=0), "7860", "--port must be from 1 to 65535, not 0"),
        (app.Options(port=65536), "7860", "--port must be from 1 to 65535, not 65536"),
        (app.Options(), "http", "GRADIO_SERVER_PORT must be a port, such as 7860, not 'http'"),
    ):
        monkeypatch.setenv("GRADIO_SERVER_PORT", given)
        with pytest.raises(UserError, match=sentence):
            app.port_of(options)
