import copy
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from conftest import HEIGHT, WIDTH
from dicom_files import dicom
from PIL import Image

import pylon
from pylon.data.transforms import normalize
from pylon.prediction.outputs import sheet_of
from pylon.prediction.predictor import affine_of
from pylon.scoring.regions import locate
from pylon.system.errors import UserError
from pylon.system.files import hashed_json


@pytest.fixture(scope="module")
def checkpoint(trained_once) -> Path:
    return trained_once / "save/pylon/0/best"


@pytest.fixture(scope="module")
def predictor(checkpoint) -> pylon.Predictor:
    return pylon.Predictor(checkpoint, "cpu")


@pytest.fixture(scope="module")
def files(phantom) -> list[Path]:
    return sorted((phantom / "images").glob("*.png"))[:5]


def same(one: pylon.Prediction, other: pylon.Prediction) -> bool:
    return one.findings == other.findings and (one.maps == other.maps).all()


def test_prediction_is_what_the_network_gives(predictor, files):
    prediction = predictor(files[0])
    image = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    resized = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
    about = predictor.model.description
    x = normalize(torch.tensor(resized)[None, None], about.mean, about.std)
    with torch.inference_mode():
        logits, maps = predictor.model(x)
    np.testing.assert_allclose(prediction.maps, maps[0].sigmoid(), atol=1e-5)
    scores = logits[0].sigmoid()
    assert [f["score"] for f in prediction.findings] == pytest.approx(
        scores.sort(descending=True).values.tolist(), abs=1e-5
    )
    size = np.array([[HEIGHT, WIDTH]] * 14)
    points, boxes, outlines = locate(torch.from_numpy(prediction.maps), size, (256, 256))
    for c, label in enumerate(about.class_names):
        finding = prediction.finding(label)
        assert finding["label"] == label
        assert finding["score"] == pytest.approx(prediction.maps[c].max(), abs=1e-6)
        assert finding["point"] == tuple(points[c])
        assert finding["box"] == tuple(boxes[c])
        np.testing.assert_array_equal(finding["outline"], outlines[c])
        threshold = about.thresholds[label]
        called = None if threshold is None else finding["score"] >= threshold
        assert finding["present"] is called
    assert {finding["present"] for finding in prediction.findings} >= {True, False}
    np.testing.assert_array_equal(prediction.image, image)


def test_list_equals_one_by_one(predictor, files):
    together = predictor(files)
    assert isinstance(together, list)
    # a network may round otherwise in a batch of another size
    for one, other in zip(map(predictor, files), together, strict=True):
        np.testing.assert_allclose(one.maps, other.maps, atol=1e-6)
        assert [f["label"] for f in one.findings] == [f["label"] for f in other.findings]
    assert predictor([]) == []


def test_images_of_one_batch_have_their_own_sizes(predictor, files):
    """A wide and a high image between those of the phantom, all in one batch."""
    image = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    given = [files[0], cv2.resize(image, (300, 40)), files[1], cv2.resize(image, (40, 300))]
    assert len(given) <= predictor.batch_size
    sizes = [(HEIGHT, WIDTH), (40, 300), (HEIGHT, WIDTH), (300, 40)]
    for size, found in zip(sizes, predictor(given), strict=True):
        assert found.image.shape == size
        maps = torch.from_numpy(found.maps)
        points, boxes, _ = locate(maps, np.array([size] * 14), (256, 256))
        np.testing.assert_allclose(found.affine, affine_of((64, 64), size))
        for c, label in enumerate(found.class_names):
            finding = found.finding(label)
            assert finding["point"] == tuple(points[c])
            assert finding["box"] == tuple(boxes[c])
            assert finding["score"] == pytest.approx(maps[c].max().item(), abs=1e-6)


def test_paths_arrays_and_pil_images_are_equal(predictor, files, tmp_path):
    expected = predictor(files[0])
    assert same(predictor(str(files[0])), expected)
    pixels = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    assert same(predictor(pixels), expected)
    assert same(predictor(np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]), expected)
    deep = pixels.astype(np.uint16) * 257
    assert same(predictor(deep), expected)
    for ending in (".png", ".tif"):
        path = tmp_path / f"deep{ending}"
        cv2.imwrite(str(path), deep)
        assert same(predictor(path), expected)
        with Image.open(path) as image:
            assert same(predictor(image), expected)
    with Image.open(files[0]) as image:
        for mode in ("L", "LA", "RGB", "RGBA"):
            assert same(predictor(image.convert(mode)), expected)
    assert same(predictor(Image.fromarray(deep.astype(np.int32))), expected)  # mode I
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes())
    assert same(predictor(big_endian), expected)


def test_window_of_16_bits(checkpoint, predictor, rng):
    values = rng.integers(0, 4096, (64, 64)).astype(np.uint16)
    windowed = pylon.Predictor(checkpoint, "cpu", window=(2000.5, 2001))(values)
    assert (windowed.image[values <= 1000] == 0).all()
    assert (windowed.image[values >= 3000] == 255).all()
    assert not same(windowed, predictor(values))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.full((20, 30), 255.0), "an array of floats has values from 255 to 255: give uint8"),
        (np.array([[-1.0, 1.0]]), "an array of floats has values from -1 to 1"),
        (np.full((20, 30), np.nan), "an array of floats has values from nan to nan"),
        (np.zeros((20, 30), np.int64), "an array of int64 may be of 8 bits or of more: give uint8"),
        (np.zeros((20, 30), bool), "an array of bool"),
        (np.zeros((3, 20, 30), np.uint8), r"an array must be one image, .* got \(3, 20, 30\)"),
        (torch.zeros(2, 20, 30), r"an array must be one image, .* got \(2, 20, 30\)"),
        (torch.zeros(1, 1, 20, 30), "give several in a list"),
        (7, "an image must be a path, .* got <class 'int'>"),
        ([None], "an image must be a path, .* got <class 'NoneType'>"),
        (io.StringIO("a"), "an image must be a path, .* got <class 'str'>"),
    ],
)
def test_other_images_are_refused(predictor, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        predictor(image)


def test_other_forms_of_an_image_are_equal(predictor, files):
    expected = predictor(files[0])
    pixels = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    data = files[0].read_bytes()
    dataset = dicom(pixels, 8)
    before = dataset.to_json()
    with open(files[0], "rb") as file:
        forms = (data, io.BytesIO(data), file, pixels / 255, torch.tensor(pixels), dataset)
        for form in (*forms, pixels[..., None], (pixels / 255).astype(np.float16)[None]):
            assert same(predictor(form), expected)
    assert dataset.to_json() == before
    assert [same(each, expected) for each in predictor(pixels for _ in range(2))] == [True] * 2
    assert predictor(each for each in ()) == []


def test_colours_are_red_green_blue(predictor):
    """Of red, .299 counts, as in Rec. 601."""
    red = np.zeros((20, 30, 4), np.uint8)
    red[..., 0] = 200
    red[:10, :, 3] = 255
    for image in (red, red[..., :3], torch.tensor(red[..., :3]).movedim(-1, 0) / 255):
        assert (predictor(image).image == 60).all()


def test_data_set_without_a_transfer_syntax(predictor):
    with pytest.raises(ValueError, match="Transfer Syntax"):
        predictor(pydicom.Dataset())


def test_bad_files_and_sizes_are_refused(predictor, tmp_path):
    with pytest.raises(UserError, match=r"a\.png cannot be read \(No such file"):
        predictor(tmp_path / "a.png")
    for image in (np.zeros((10, 10), np.uint8), Image.new("L", (10, 10))):
        with pytest.raises(UserError, match="10 x 10 pixels, too small"):
            predictor(image)
    Image.new("L", (100, 100)).save(tmp_path / "cut.png")
    cut = (tmp_path / "cut.png").read_bytes()[:60]
    with pytest.raises(UserError, match="the image cannot be read"):
        predictor(Image.open(io.BytesIO(cut)))
    Image.new("L", (100, 100)).save(
        tmp_path / "two.tif", save_all=True, append_images=[Image.new("L", (100, 100))]
    )
    with pytest.raises(UserError, match="has 2 pages"):
        predictor(Image.open(tmp_path / "two.tif"))
    with pytest.raises(UserError, match="more than 80 million"):
        predictor(Image.new("1", (10_000, 9_000)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"region_threshold": 0}, "region_threshold must be in"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16"),
        ({"method": "gradcam", "precision": "bf16"}, "method gradcam needs precision fp32"),
        ({"method": "gradkam"}, "method must be map or one of gradcam"),
        ({"window": (5, 0.5)}, "window must be a centre and a width of at least 1"),
        ({"window": (float("nan"), 5)}, "window must be a centre and a width"),
        ({"window": (1, 2, 3)}, "window must be a centre and a width"),
        ({"window": ("1", 2)}, "window must be a centre and a width"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or mps"),
    ],
)
def test_impossible_arguments(checkpoint, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pylon.Predictor(checkpoint, **{"device": "cpu", **options})


@pytest.mark.parametrize("size", [(20, 1600), (1600, 20), (300, 200)])
def test_places_lie_in_images_of_any_aspect(predictor, rng, size):
    height, width = size
    prediction = predictor(rng.integers(0, 256, size, dtype=np.uint8))
    for finding in prediction.findings:
        row, column = finding["point"]
        x, y, w, h = finding["box"]
        assert 0 <= x <= column < x + w <= width
        assert 0 <= y <= row < y + h <= height
    picture = prediction.overlay("Mass")
    assert picture.shape == (*size, 3)


def test_a_score_equal_to_its_threshold_is_called_present(predictor, files):
    prediction = predictor(files[0])
    scores = {finding["label"]: finding["score"] for finding in prediction.findings}
    fussy = copy.copy(predictor)
    # one class without a threshold, one that is a last bit short of its own
    none, short, *others = scores
    above = float(np.nextafter(np.float32(scores[short]), np.float32(1)))
    fussy.uncalibrated_thresholds = {**scores, none: None, short: above}
    called = {finding["label"]: finding["present"] for finding in fussy(files[0]).findings}
    assert called == {**dict.fromkeys(others, True), none: None, short: False}


def test_affine_maps_corners_to_corners():
    affine = affine_of((64, 32), (1024, 768))
    # the outer corners of a map are half a pixel outside the centres of its outer pixels
    np.testing.assert_allclose(affine @ (-0.5, -0.5, 1), (-0.5, -0.5))
    np.testing.assert_allclose(affine @ (31.5, 63.5, 1), (767.5, 1023.5))


def test_box_uses_the_region_threshold(checkpoint, predictor, files):
    wide = pylon.Predictor(checkpoint, "cpu", region_threshold=0.1)(files[0])
    tight = pylon.Predictor(checkpoint, "cpu", region_threshold=1.0)(files[0])
    for finding in predictor(files[0]).findings:
        areas = [
            np.prod(each.finding(finding["label"])["box"][2:])
            for each in (tight, predictor(files[0]), wide)
        ]
        assert areas == sorted(areas)
        assert areas[0] < areas[2]


def test_overlays_of_a_label(predictor, files):
    prediction = predictor(files[0])
    top = prediction.findings[0]["label"]
    assert (prediction.overlay(top) == prediction.overlay(top, "absolute")).all()
    assert (prediction.overlay(top) != prediction.overlay(top, "minmax")).any()
    with pytest.raises(ValueError, match="scale must be absolute or minmax, got 'jet'"):
        prediction.overlay(top, "jet")
    with pytest.raises(ValueError, match=r"label must be one of Atelectasis, .*, got 'Mas'"):
        prediction.overlay("Mas")
    sheet = cv2.imdecode(
        np.frombuffer(sheet_of(prediction, [top], "a.png", "absolute"), np.uint8), 1
    )
    assert sheet.shape[1] > 2 * 128


def test_network_whose_maps_are_no_probabilities(checkpoint, files, tmp_path):
    predictor = pylon.Predictor(checkpoint, "cpu", method="gradcam")
    prediction = predictor(files[0])
    assert not prediction.are_probabilities
    assert prediction.maps.shape == (14, 256, 256)
    scores = [f["score"] for f in pylon.Predictor(checkpoint, "cpu")(files[0]).findings]
    assert [f["score"] for f in prediction.findings] == pytest.approx(scores, abs=1e-6)
    top = prediction.findings[0]["label"]
    assert (prediction.overlay(top) == prediction.overlay(top, "minmax")).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_whatever_the_caller_has_switched_off(checkpoint, files, mode):
    expected = pylon.Predictor(checkpoint, "cpu", method="gradcam")(files[0])
    with mode():
        predictor = pylon.Predictor(checkpoint, "cpu", method="gradcam")
        within = predictor(files[0])
    predictor.model.requires_grad_(False)
    for prediction in (within, predictor(files[0])):
        np.testing.assert_array_equal(prediction.maps, expected.maps)
        scores = [finding["score"] for finding in prediction.findings]
        assert scores == [finding["score"] for finding in expected.findings]
    assert not any(weights.requires_grad for weights in predictor.model.parameters())


def test_checkpoint_without_thresholds(checkpoint, files, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "best")
    (tmp_path / "best/training.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    del config["sha256"], config["thresholds"]
    (tmp_path / "best/config.json").write_text(json.dumps(config))
    prediction = pylon.Predictor(tmp_path / "best", "cpu")(files[0])
    assert {finding["present"] for finding in prediction.findings} == {None}


def with_calibration(checkpoint: Path, folder: Path, lines: dict | None) -> Path:
    """A copy of the checkpoint with other lines of Platt scaling."""
    shutil.copytree(checkpoint, folder)
    for name in ("training.json", "config.json"):
        stated = json.loads((folder / name).read_text())
        del stated["sha256"], stated["calibration"]
        if lines is not None:
            stated["calibration"] = lines
        (folder / name).write_bytes(hashed_json(stated))
    return folder


def test_calibrated_predictions(checkpoint, predictor, files, tmp_path):
    names = predictor.class_names
    lines = {name: [0.5 + 0.1 * k, -0.3] for k, name in enumerate(names)}
    lines[names[1]] = None
    copied = with_calibration(checkpoint, tmp_path / "copy", lines)
    scaled = pylon.Predictor(copied, "cpu", calibrated=True)
    assert set(scaled.calibration) == set(names) - {names[1]}
    for path in files:
        plain = predictor(path)
        found = scaled(path)
        scores = [finding["score"] for finding in found.findings]
        assert scores == sorted(scores, reverse=True)
        for c, name in enumerate(names):
            before = plain.finding(name)
            after = found.finding(name)
            for key in ("present", "point", "box"):
                assert after[key] == before[key]
            logit = np.log(before["score"]) - np.log1p(-before["score"])
            slope, intercept = lines[name] or (1, 0)
            expected = 1 / (1 + np.exp(-slope * logit - intercept))
            assert after["score"] == pytest.approx(expected, rel=1e-5)
            assert found.maps[c].max() == pytest.approx(after["score"], rel=1e-6)
            if plain.thresholds[name] is not None and lines[name]:
                assert found.thresholds[name] != plain.thresholds[name]
                assert (after["score"] >= found.thresholds[name]) == before["present"]
    # without the option nothing changes
    assert same(pylon.Predictor(copied, "cpu")(files[0]), predictor(files[0]))


def test_checkpoint_without_calibration_is_refused(checkpoint, tmp_path):
    for k, lines in enumerate((None, {}, {"Mass": None})):
        copied = with_calibration(checkpoint, tmp_path / str(k), lines)
        with pytest.raises(UserError, match="holds no calibration"):
            pylon.Predictor(copied, "cpu", calibrated=True)


def test_mean_of_networks_and_mirror_images(checkpoint, trained, predictor, files):
    paths = [checkpoint, trained / "save/pylon/0/best"]
    both = pylon.Predictor(paths, "cpu", tta=True)
    pixels = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    found = both(pixels)
    mirror = np.ascontiguousarray(pixels[:, ::-1])
    singles = []
    for single in (predictor, pylon.Predictor(paths[1], "cpu")):
        plain, flipped = single([pixels, mirror])
        singles += [(plain, plain.maps), (flipped, flipped.maps[..., ::-1])]
    np.testing.assert_allclose(
        found.maps, np.mean([maps for _, maps in singles], axis=0), atol=2e-3
    )
    assert np.abs(found.maps - singles[0][1]).max() > 0.01
    thresholds = [of_one.thresholds for of_one, _ in (singles[0], singles[2])]
    for finding in found.findings:
        name = finding["label"]
        scores = [of_one.finding(name)["score"] for of_one, _ in singles]
        assert finding["score"] == pytest.approx(np.mean(scores), abs=2e-3)
        if None not in (given := [each[name] for each in thresholds]):
            assert found.thresholds[name] == pytest.approx(np.mean(given))
            assert finding["present"] == (finding["score"] >= found.thresholds[name])
    assert both.card["weights_sha256"] not in (predictor.card["weights_sha256"], None)
    # alone, and twice the same, nothing changes
    assert same(pylon.Predictor(paths[:1], "cpu")(pixels), predictor(pixels))
    twice = pylon.Predictor(paths[:1] * 2, "cpu")(pixels)
    np.testing.assert_allclose(twice.maps, predictor(pixels).maps, atol=1e-6)


def test_networks_without_a_mean(checkpoint, files, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "best")
    for name in ("training.json", "config.json"):
        stated = json.loads((tmp_path / "best" / name).read_text())
        del stated["sha256"]
        stated["class_names"] = stated["class_names"][::-1]
        (tmp_path / "best" / name).write_bytes(hashed_json(stated))
    with pytest.raises(UserError, match="have different class_names, so that they"):
        pylon.Predictor([checkpoint, tmp_path / "best"], "cpu")
    with pytest.raises(UserError, match="a mean of several networks cannot be calibrated"):
        pylon.Predictor([checkpoint] * 2, "cpu", calibrated=True)
    with pytest.raises(UserError, match="method gradcam is for a single network and image"):
        pylon.Predictor(checkpoint, "cpu", method="gradcam", tta=True)
    with pytest.raises(ValueError, match="name at least one checkpoint"):
        pylon.Predictor([], "cpu")
