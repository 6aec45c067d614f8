"""tools/phantom/make_phantom.py: its images, lists and boxes."""

import csv
import hashlib
from functools import partial

import cv2
import numpy as np
import pytest
from conftest import IMAGES, run_script, sentence_of
from sklearn.metrics import roc_auc_score

import thorax
from pylon.data.checks import require_files
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.sources import read_chestxray14


def digest(folder) -> str:
    hashed = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hashed.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return hashed.hexdigest()


def test_same_seed_gives_the_same_bytes(tmp_path):
    def make(name, seed):
        options = ("--out", name, "--images", 20, "--size", 64, "--seed", seed)
        run_script("tools/phantom/make_phantom.py", *options, cwd=tmp_path)
        return digest(tmp_path / name)

    first = make("a", 0)
    assert make("b", 0) == first
    assert make("c", 1) != first
    assert make("a", 1) != first  # an existing phantom is replaced


def test_layout_matches_nih(phantom):
    radiographs = read_chestxray14(phantom, with_boxes=True)
    images = radiographs.images
    require_files(images, radiographs)
    assert len(images) == IMAGES
    assert list(radiographs.class_names) == list(PATHOLOGIES)
    assert images["image_id"].str.fullmatch(r"\d{8}_\d{3}\.png").all()
    assert images["patient_id"].nunique() < 2 / 3 * IMAGES
    # three findings at most, and now and then an invented one
    assert images[list(PATHOLOGIES)].sum(axis=1).isin([0, 1, 2, 3, 4]).all()
    header, *lines = (phantom / "BBox_List_2017.csv").read_text().splitlines()
    assert header == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    rows = list(csv.reader(lines))
    labels = (phantom / "Data_Entry_2017.csv").read_text().splitlines()
    tail = "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    assert labels[0].endswith(tail)
    assert all(line.count(",") == labels[0].count(",") for line in labels)
    assert "Infiltrate" in {row[1] for row in rows}
    assert len(rows) == len(radiographs.boxes)  # all boxes are of test images


def test_boxes_are_of_labels_of_test_images(phantom):
    radiographs = read_chestxray14(phantom, with_boxes=True)
    images = radiographs.images
    boxes = radiographs.boxes
    test = images[images["split"] == "test"]
    labelled = set()
    for name in thorax.BOXED:
        labelled |= {(image_id, name) for image_id in test["image_id"][test[name] == 1]}
    boxed = set(boxes[["image_id", "pathology"]].itertuples(index=False, name=None))
    assert boxed <= labelled
    assert len(boxed) >= 0.9 * len(labelled)  # an invented label has none
    assert ((boxes["x"] + boxes["w"] <= 128) & (boxes["y"] + boxes["h"] <= 128)).all()


STATISTICS = {
    "mean": np.mean,
    "standard deviation": np.std,
    "minimum": np.min,
    "maximum": np.max,
    **{f"percentile {q}": partial(np.percentile, q=q) for q in (0.5, 5, 50, 95, 99.5)},
    "share below 30": lambda image: (image < 30).mean(),
    "share above 220": lambda image: (image > 220).mean(),
    "mean absolute Laplacian": lambda image: np.abs(cv2.Laplacian(image, cv2.CV_32F)).mean(),
}


def test_findings_are_drawn_and_not_told_by_global_statistics():
    labels = []
    statistics = []
    boxed = 0
    for patient_id in range(1, 171):
        image, told, boxes = thorax.draw(0, patient_id, 0, 128)
        assert image.shape == (128, 128)
        assert image.dtype == np.uint8
        assert {box[0] for box in boxes} <= set(told)
        for _, x, y, w, h in boxes:
            assert 0 <= x < x + w <= 128
            assert 0 <= y < y + h <= 128
        boxed += len(boxes)
        labels.append([name in told for name in PATHOLOGIES])
        statistics.append([of(image.astype(np.float32)) for of in STATISTICS.values()])
    positives = np.sum(labels, axis=0)
    assert (positives > 15).all()
    assert boxed > 170
    for c, name in enumerate(PATHOLOGIES):
        truth = np.array(labels)[:, c]
        for k, statistic in enumerate(STATISTICS):
            area = roc_auc_score(truth, np.array(statistics)[:, k])
            assert 0.25 <= area <= 0.75, f"{name} is told by the {statistic}: AUROC {area:.2f}"


def test_some_labels_are_wrong():
    rng = np.random.default_rng(0)
    drawn = ["Mass", "Edema"]
    told = [thorax.labels_of(drawn, thorax.FINDINGS, rng) for _ in range(2000)]
    missed = np.mean([name not in names for names in told for name in drawn])
    invented = np.mean([len(set(names) - set(drawn)) / 12 for names in told])
    assert missed == pytest.approx(thorax.MISSED, abs=0.01)
    assert invented == pytest.approx(thorax.INVENTED, abs=0.002)


def test_image_is_the_same_at_every_size():
    small, findings, boxes = thorax.draw(0, 5, 1, 128)
    large, same_findings, large_boxes = thorax.draw(0, 5, 1, 512)
    assert findings == same_findings
    shrunk = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.98
    expected = np.array([box[1:] for box in boxes]) * 4
    np.testing.assert_allclose([box[1:] for box in large_boxes], expected, atol=12)


def test_duplicate_findings_are_refused(tmp_path):
    options = ("--out", "new", "--images", 20, "--findings", "Mass", "Nodule", "Mass")
    done = run_script("tools/phantom/make_phantom.py", *options, cwd=tmp_path, code=2)
    assert "--findings Mass Nodule Mass lists a finding twice; list each once" in sentence_of(done)
    assert not (tmp_path / "new").exists()


def test_other_folders_are_not_overwritten(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    options = ("--out", tmp_path, "--images", 20)
    done = run_script("tools/phantom/make_phantom.py", *options, cwd=tmp_path, code=2)
    assert "is not empty and is not a phantom" in sentence_of(done)
    assert (tmp_path / "keep.txt").read_text() == "mine"
    options = ("--out", "new", "--images", 3)
    done = run_script("tools/phantom/make_phantom.py", *options, cwd=tmp_path, code=2)
    assert "--images must be at least 20" in sentence_of(done)
