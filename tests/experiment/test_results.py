import json
import os

import numpy as np
import pytest

from pylon.experiment.inputs import Found, fingerprint
from pylon.experiment.results import (
    Entry,
    Progress,
    Recorder,
    coco_images,
    coco_results,
    file_of,
    line_of,
    maps_file,
    open_results,
    table,
)
from pylon.system.errors import UserError
from pylon.system.files import hashed_json

ABOUT = {
    "folder": "/images", "checkpoint": "best", "weights_sha256": "ab", "pixels": {},
    "options": {"save_maps": False, "classes": (), "window": (1, 2)},
}  # fmt: skip


def entry(image: str, score: float = 0.25) -> Entry:
    findings = [[score, True, 1, 2, 3, 4, 5, 6], [0.1, None, 7, 8, 9, 10, 11, 12]]
    return Entry(image, 0, 0, 40, 30, 8, False, None, findings)


def test_entries_are_read_back_in_any_order(tmp_path):
    recorder = Recorder(tmp_path, 0, 1)
    recorder.add([entry("b"), entry("a\n\udcff")], ["bad"])
    recorder.add([entry("c", 1 / 3)], [])
    progress = Progress(tmp_path)
    assert progress.run == 1
    assert progress.bad == {"bad"}
    images = ["c", "a\n\udcff", "b"]
    assert list(progress.entries(images)) == [entry("c", 1 / 3), entry("a\n\udcff"), entry("b")]


WHOLE = line_of(1, [entry("b")], [])


@pytest.mark.parametrize(
    "torn", [WHOLE[:30], WHOLE[:-1], WHOLE.replace(b"40", b"41"), bytes(50), b"[]\n", b"[" * 99999]
)
def test_torn_line_is_left_out_and_removed(tmp_path, torn):
    Recorder(tmp_path, 0, 1).add([entry("a")], [])
    path = tmp_path / ".progress-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    if torn != WHOLE[:-1]:
        path.write_bytes(whole + torn + WHOLE)  # nothing after it counts either
    assert list(Progress(tmp_path).places) == ["a"]
    Recorder(tmp_path, 0, 2)
    assert path.read_bytes() == whole


def test_later_run_counts_whatever_the_process(tmp_path):
    Recorder(tmp_path, 1, 1).add([entry("a", 0.1)], [])
    Recorder(tmp_path, 0, 2).add([entry("a", 0.2)], [])
    assert list(Progress(tmp_path).entries(["a"])) == [entry("a", 0.2)]


def test_images_left(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "images" / name).write_text(name)
    files = {name: fingerprint(str(tmp_path / "images" / name)) for name in "abcd"}
    entries = [entry(name)._replace(bytes=size, modified_ns=ns)
               for name, (size, ns) in files.items()]  # fmt: skip
    Recorder(tmp_path, 0, 1).add(entries, ["0"])
    (tmp_path / "overlays").mkdir()
    for name in "abd":
        (tmp_path / f"overlays/{name}.png").write_text("")
    os.utime(tmp_path / "images/b", ns=(1, 1))
    found = Found(str(tmp_path / "images"), ["0", "a", "b", "c", "d", "e"], {})
    # 0 could not be read, b has changed, c has no picture, e is new
    assert Progress(tmp_path).left(found, ["overlays"]) == ["b", "c", "e", "0"]
    assert Progress(tmp_path).left(found, []) == ["b", "e", "0"]


def test_names_of_files(tmp_path):
    assert file_of(tmp_path, "overlays", "a/x.tif") == tmp_path / "overlays/a/x.tif.png"
    long = file_of(tmp_path, "maps", "b/" + "é" * 125 + ".png")
    assert len(os.fsencode(long.name)) <= 240
    assert long != file_of(tmp_path, "maps", "b/" + "é" * 124 + "f.png")
    long.parent.mkdir(parents=True)
    long.with_name(f".{long.name}.partial").write_text("")  # the file system accepts it


def test_table(tmp_path):
    lines = b"".join(table([entry('a,"b.png'), entry("c\udcff")], ["Mass", "Cavity, big"]))
    assert lines.decode().splitlines() == [
        "image,label,score,present,point_row,point_column,box_x,box_y,box_w,box_h",
        '"a,""b.png",Mass,0.25,1,1,2,3,4,5,6',
        '"a,""b.png","Cavity, big",0.1,,7,8,9,10,11,12',
        "c\\xff,Mass,0.25,1,1,2,3,4,5,6",
        'c\\xff,"Cavity, big",0.1,,7,8,9,10,11,12',
    ]


def test_coco_files_are_read_by_pycocotools(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    entries = [entry("a.png"), entry("b.png", 0.75)]
    (tmp_path / "coco.json").write_bytes(b"".join(coco_images(entries, ["Mass", "Hernia"])))
    (tmp_path / "results.json").write_bytes(b"".join(coco_results(entries)))
    images = coco.COCO(str(tmp_path / "coco.json"))
    results = images.loadRes(str(tmp_path / "results.json"))
    assert [image["file_name"] for image in images.loadImgs(images.getImgIds())] == [
        "a.png", "b.png"
    ]  # fmt: skip
    assert [each["name"] for each in results.loadCats(results.getCatIds())] == ["Mass", "Hernia"]
    found = results.loadAnns(results.getAnnIds(imgIds=[2], catIds=[1]))
    assert [(each["bbox"], each["score"]) for each in found] == [([3, 4, 5, 6], 0.75)]
    assert len(results.getAnnIds()) == 4


def test_coco_files_without_images():
    assert json.loads(b"".join(coco_images([], ["Mass"])))["images"] == []
    assert json.loads(b"".join(coco_results([]))) == []


def test_maps_file(tmp_path):
    maps = np.random.default_rng(0).random((2, 4, 4), np.float32)
    (tmp_path / "a.npz").write_bytes(maps_file(maps, ["Mass", "Größe"], np.eye(2, 3)))
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["maps"], maps)
        assert file["class_names"].tolist() == ["Mass", "Größe"]
        np.testing.assert_array_equal(file["affine"], np.eye(2, 3))


def test_results_of_other_origin_are_refused(tmp_path):
    open_results(tmp_path, ABOUT)
    open_results(tmp_path, ABOUT)
    for change, sentence in (
        ({"options": {**ABOUT["options"], "save_maps": True}}, "--save-maps False, not True"),
        ({"options": {**ABOUT["options"], "classes": ("A",)}}, "--classes none, not A; repeat"),
        ({"options": {**ABOUT["options"], "window": None}}, "--window 1 2, not None"),
        ({"weights_sha256": "cd"}, "results of another network"),
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
