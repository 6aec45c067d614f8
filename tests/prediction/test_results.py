import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from recorded import result_of

from pylon.prediction.journal import Journal, Result
from pylon.prediction.outputs import labels_to_draw, maps_file
from pylon.prediction.results import about_page, open_results, rows_of, write_results
from pylon.system.errors import UserError
from pylon.system.files import hashed_json

ABOUT = {
    "folder": "/images", "checkpoint": "best", "weights_sha256": "ab", "pixels": {},
    "network": {"thresholds": {"Mass": 0.5}}, "device": "cpu",
    "options": {"save_maps": False, "classes": (), "window": (1, 2)},
}  # fmt: skip


def write(out: Path, results: list[Result], class_names: list[str], save_coco: bool) -> None:
    """Write the tables of some results."""
    journal = Journal(out, "ab")
    journal.add(results, 1, 0)
    about = {**ABOUT, "options": {"save_coco": save_coco, "html": False}}
    write_results(journal, about, SimpleNamespace(class_names=class_names), {}, {})


def test_predictions_csv(tmp_path):
    results = [result_of('a,"b.png'), result_of("c\udcff")]
    for result in results:
        result.findings[1].update(label="Cavity, big", point=None, box=None)
    write(tmp_path, results, ["Mass", "Cavity, big"], save_coco=False)
    assert (tmp_path / "predictions.csv").read_text().splitlines() == [
        "image,label,score,present,point_row,point_column,box_x,box_y,box_w,box_h",
        '"a,""b.png",Mass,0.25,1,1,2,3,4,5,6',
        '"a,""b.png","Cavity, big",0.1,,,,,,,',
        "c\\xff,Mass,0.25,1,1,2,3,4,5,6",
        'c\\xff,"Cavity, big",0.1,,,,,,,',
    ]
    assert not (tmp_path / "coco.json").exists()


def test_a_class_that_is_not_called_present_is_0_in_the_table():
    for present, cell in ((True, 1), (False, 0), (None, None)):
        result = result_of("a.png")
        result.findings[1]["present"] = present
        row = rows_of(result)[1]
        assert row == ["a.png", "Hernia", 0.1, cell, 7, 8, 9, 10, 11, 12]
        assert type(row[3]) is type(cell)  # True would be written as a word


def test_page_of_predictions_tells_median_highest_and_called(tmp_path):
    """Three images; a class that is never called, and one without a threshold."""
    names = ("Mass", "Hernia", "Edema")
    journal = Journal(tmp_path, "ab")
    for name, scores in (("a", (0.2, 0.9, 0.4)), ("b", (0.8, 0.1, 0.1)), ("c", (0.3, 0.5, 0.3))):
        present = [scores[0] >= 0.25, False, None]
        findings = [
            {"label": label, "score": score, "present": called}
            for label, score, called in zip(names, scores, present, strict=True)
        ]
        journal.add([result_of(name)._replace(findings=findings)], 1, 0)
    predictor = SimpleNamespace(
        class_names=names,
        thresholds={"Edema": None, "Hernia": 0.95, "Mass": 0.25},  # in another order
        synthetic=None,
        are_probabilities=True,
        calibration={},
        card={},
        validation={
            "Mass": {"auroc": 0.741, "called_healthy": 0.5},
            "Hernia": {"auroc": None, "called_healthy": None},
            "Edema": {"auroc": 0.5, "called_healthy": None},
        },
    )
    about = {**ABOUT, "folder": str(tmp_path), "options": {"scale": "absolute"}}
    said = about_page(about, journal, predictor)
    assert said.title == "9 heatmaps of 3 images"
    assert said.table.reset_index().to_numpy().tolist() == [
        ["Mass", "0.250", "2", "0.300", "0.800", "0.74", "0.50"],
        ["Hernia", "0.950", "0", "0.500", "0.900", "", ""],
        ["Edema", "none", "0", "0.300", "0.400", "0.50", ""],
    ]
    columns = ["threshold", "called present", "median score", "highest score"]
    columns += ["AUROC on validation", "called in healthy validation"]
    assert said.table.columns.tolist() == columns


def test_coco_files_are_read_by_pycocotools(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    results = [result_of("a.png"), result_of("b.png", 0.75)._replace(height=128, width=96)]
    results[1].findings[1].update(point=None, box=None)  # a flat map
    write(tmp_path, results, ["Mass", "Hernia"], save_coco=True)
    images = coco.COCO(str(tmp_path / "coco.json"))
    boxes = images.loadRes(str(tmp_path / "coco_results.json"))
    of_images = images.loadImgs(images.getImgIds())
    assert [(image["file_name"], image["width"], image["height"]) for image in of_images] == [
        ("a.png", 30, 40), ("b.png", 96, 128)
    ]  # fmt: skip
    assert [each["name"] for each in boxes.loadCats(boxes.getCatIds())] == ["Mass", "Hernia"]
    found = boxes.loadAnns(boxes.getAnnIds(imgIds=[2], catIds=[1]))
    assert [(each["bbox"], each["score"]) for each in found] == [([3, 4, 5, 6], 0.75)]
    found = boxes.loadAnns(boxes.getAnnIds(imgIds=[1], catIds=[2]))
    assert [(each["bbox"], each["score"]) for each in found] == [([9, 10, 11, 12], 0.1)]
    assert len(boxes.getAnnIds()) == 3


def test_coco_results_without_boxes(tmp_path):
    result = result_of("a.png")
    for finding in result.findings:
        finding["box"] = None
    write(tmp_path, [result], ["Mass", "Hernia"], save_coco=True)
    assert json.loads((tmp_path / "coco_results.json").read_text()) == []


@pytest.mark.parametrize(
    ("thresholds", "top", "expected"),
    [
        # Nodule has no threshold, Mass does not reach its own, Hernia does
        ({"Mass": 0.9, "Nodule": None, "Hernia": 0.1}, None, ["Hernia"]),
        ({"Mass": 0.9, "Nodule": None, "Hernia": None}, None, []),
        ({"Mass": 0.9, "Nodule": None, "Hernia": 0.1}, 2, ["Nodule", "Mass"]),
        (dict.fromkeys(["Mass", "Nodule", "Hernia"]), None, ["Nodule"]),
    ],
)
def test_maps_that_are_drawn_where_some_classes_have_a_threshold(thresholds, top, expected):
    scores = {"Nodule": 0.8, "Mass": 0.5, "Hernia": 0.2}
    findings = [
        {
            "label": label,
            "score": score,
            "present": None if thresholds[label] is None else score >= thresholds[label],
        }
        for label, score in scores.items()
    ]
    prediction = SimpleNamespace(findings=findings, thresholds=thresholds)
    assert labels_to_draw(prediction, top=top) == expected
    assert labels_to_draw(prediction, ("Mass",), top) == ["Mass"]


def test_maps_file(tmp_path):
    maps = np.random.default_rng(0).random((2, 4, 4), np.float32)
    (tmp_path / "a.npz").write_bytes(maps_file(maps, ["Mass", "Größe"], np.eye(2, 3)))
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["maps"], maps)
        assert file["class_names"].tolist() == ["Mass", "Größe"]
        np.testing.assert_array_equal(file["affine"], np.eye(2, 3))


def test_results_of_other_origin_are_refused(tmp_path):
    open_results(tmp_path, {**ABOUT, "device": "mps"})
    open_results(tmp_path, ABOUT)  # there are no results yet
    journal = Journal(tmp_path, "0")
    journal.add([Result("bad.png", "1 1", "cannot be read")], 1, 0)
    open_results(tmp_path, {**ABOUT, "device": "mps"})
    open_results(tmp_path, ABOUT)
    journal.add([result_of("a.png")], 1, 0)
    open_results(tmp_path, ABOUT)
    for change, sentence in (
        ({"options": {**ABOUT["options"], "save_maps": True}}, "--save-maps False, not True"),
        ({"options": {**ABOUT["options"], "classes": ("A",)}}, "--classes none, not A; repeat"),
        ({"options": {**ABOUT["options"], "window": None}}, "--window 1 2, not None"),
        ({"weights_sha256": "cd"}, "results of another network"),
        ({"network": {"thresholds": {"Mass": 0.4}}}, "results of another network"),
        ({"device": "cuda"}, "results of --device cpu, not cuda"),
        ({"folder": "/other"}, "results of images in /images, not /other"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_results(tmp_path, {**ABOUT, **change})
    manifest = tmp_path / "manifest.json"
    text = manifest.read_text()
    strange = (text.replace('"ab"', '"cd"'), "", "[]", "mine", hashed_json({}).decode())
    strange += (hashed_json({**ABOUT, "options": []}).decode(),)
    for content in strange:
        manifest.write_text(content)
        with pytest.raises(UserError, match=r"is damaged, or was not written by predict\.py"):
            open_results(tmp_path, ABOUT)
        assert manifest.read_text() == content


def test_folder_of_others_is_refused(tmp_path):
    (tmp_path / "predictions.csv").write_text("mine")
    with pytest.raises(UserError, match=r"has predictions\.csv, but no manifest\.json"):
        open_results(tmp_path, ABOUT)
    assert (tmp_path / "predictions.csv").read_text() == "mine"
