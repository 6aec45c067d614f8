"""tools/make_phantom.py: its images, lists and boxes."""

import csv
import hashlib

import cv2
import numpy as np
from conftest import run_script, sentence_of

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
        run_script("tools/make_phantom.py", *options, cwd=tmp_path)
        return digest(tmp_path / name)

    first = make("a", 0)
    assert make("b", 0) == first
    assert make("c", 1) != first
    assert make("a", 1) != first  # an existing phantom is replaced


def test_layout_matches_nih(phantom):
    radiographs = read_chestxray14(phantom, with_boxes=True)
    images = radiographs.images
    require_files(images, radiographs)
    assert len(images) == 90
    assert list(radiographs.class_names) == list(PATHOLOGIES)
    assert images["image_id"].str.fullmatch(r"\d{8}_\d{3}\.png").all()
    assert images["patient_id"].nunique() < 60
    assert images[list(PATHOLOGIES)].sum(axis=1).isin([0, 1, 2, 3]).all()
    header, *lines = (phantom / "BBox_List_2017.csv").read_text().splitlines()
    assert header == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    rows = list(csv.reader(lines))
    labels = (phantom / "Data_Entry_2017.csv").read_text().splitlines()
    tail = "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    assert labels[0].endswith(tail)
    assert all(line.count(",") == labels[0].count(",") for line in labels)
    assert "Infiltrate" in {row[1] for row in rows}
    assert len(rows) == len(radiographs.boxes)  # all boxes are of test images


def test_boxed_findings_of_test_images_have_boxes(phantom):
    radiographs = read_chestxray14(phantom, with_boxes=True)
    images = radiographs.images
    boxes = radiographs.boxes
    test = images[images["split"] == "test"]
    labelled = set()
    for name in thorax.BOXED:
        labelled |= {(image_id, name) for image_id in test["image_id"][test[name] == 1]}
    assert set(boxes[["image_id", "pathology"]].itertuples(index=False, name=None)) == labelled
    assert ((boxes["x"] + boxes["w"] <= 128) & (boxes["y"] + boxes["h"] <= 128)).all()


def test_every_finding_is_drawn_with_its_box_inside_the_image():
    seen = set()
    for patient_id in range(1, 200):
        image, findings, boxes = thorax.draw(0, patient_id, 0, 64)
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        assert [box[0] for box in boxes] == [name for name in findings if name in thorax.BOXED]
        for _, x, y, w, h in boxes:
            assert 0 <= x < x + w <= 64
            assert 0 <= y < y + h <= 64
        seen |= set(findings)
    assert seen == set(PATHOLOGIES)


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
    done = run_script("tools/make_phantom.py", *options, cwd=tmp_path, code=2)
    assert "--findings Mass Nodule Mass lists a finding twice; list each once" in sentence_of(done)
    assert not (tmp_path / "new").exists()


def test_other_folders_are_not_overwritten(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    options = ("--out", tmp_path, "--images", 20)
    done = run_script("tools/make_phantom.py", *options, cwd=tmp_path, code=2)
    assert "is not empty and is not a phantom" in sentence_of(done)
    assert (tmp_path / "keep.txt").read_text() == "mine"
    options = ("--out", "new", "--images", 3)
    done = run_script("tools/make_phantom.py", *options, cwd=tmp_path, code=2)
    assert "--images must be at least 20" in sentence_of(done)
