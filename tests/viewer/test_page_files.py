import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pylon.drawing import COLOURS
from pylon.scoring.rows import Rows
from pylon.viewer.page import (
    About,
    Finding,
    Pictured,
    filters,
    name_in_folder,
    picture_of,
    scores_of_boxes,
    write_page,
    write_pictures,
)

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028.png"
MASS = Finding("Mass", 0.25, 0.125, True, None, (1, 2), [[3, 4, 5, 6]], None, "M0 0 5 5z")


def about(**changes) -> About:
    table = pd.DataFrame({"hits": ["0.5"]}, pd.Index(["Mass"], name="finding"))
    about = About("1 heatmap", [], ["Mass"], table, True, "absolute", "ab12")
    return about._replace(**changes)


def data_of(folder: Path) -> dict:
    """What page.js reads."""
    text = (folder / "index.html").read_text()
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def write(folder: Path, *images: str, **changes) -> dict:
    """Write a page of images; return its data."""
    for image in images:
        write_pictures(folder, image, np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8), np.float32))
    write_page(
        folder, about(**changes), images, [Pictured(image, 8, 9, [MASS]) for image in images]
    )
    return data_of(folder)


def test_page_has_its_rows_and_their_pictures(tmp_path):
    data = write(tmp_path, "a/1.png", notes=["Synthetic."])
    assert data["head"] == ["finding", "hits"]
    assert data["table"] == [["Mass", "0.5"]]
    assert (data["notes"], data["weights"], data["scale"]) == (
        ["Synthetic."], "SHA-256 ab12", "absolute"
    )  # fmt: skip
    assert data["command"].startswith("python ")
    (image,) = data["images"]
    (finding,) = image.pop("findings")
    assert image == {
        "name": "a/1.png", "id": "a/1", "file": "a/1.png", "width": 9, "height": 8
    }  # fmt: skip
    assert finding == json.loads(json.dumps(MASS._asdict()))
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    pictures = {"radiographs/a/1.png.jpg", "heatmaps/a/1.png.png"}
    assert found == {"index.html", "style.css", "page.js", *pictures}


def test_hostile_name_neither_ends_the_script_nor_its_address(tmp_path):
    (image,) = write(tmp_path, HOSTILE)["images"]
    assert image["name"] == HOSTILE
    assert set(re.findall("[^A-Za-z0-9/._-]", image["file"])) == {"%"}
    text = (tmp_path / "index.html").read_text()
    assert "<img src=x" not in text
    assert "\u2028" not in text


def test_names_of_odd_bytes_and_great_length_have_pictures(tmp_path):
    odd = "odd\udcff.png"
    long = "x" * 245 + ".png"
    of_odd, of_long = write(tmp_path, odd, long)["images"]
    assert of_odd["name"] == "odd\\xff.png"
    assert of_odd["file"] == "odd%FF.png"
    assert of_long["name"] == long
    assert (tmp_path / f"radiographs/{of_long['file']}.jpg").exists()


def test_names_that_differ_in_their_endings_alone_are_whole_in_links(tmp_path):
    images = write(tmp_path, "a.png", "a.jpg", "b.png")["images"]
    assert [image["id"] for image in images] == ["a.png", "a.jpg", "b"]


def test_pictures_of_other_images_are_removed(tmp_path):
    write(tmp_path, "a.png", "b/c.png")
    write(tmp_path, "a.png")
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["a.png.jpg"]
    assert [path.name for path in tmp_path.rglob("*.png")] == ["a.png.png"]


def test_picture_holds_values_and_margins():
    heatmaps = np.zeros((2, 8, 8), np.float32)
    heatmaps[0, 2, 5] = 0.2
    heatmaps[1] = 0.4
    blue, green, red = np.moveaxis(decoded(heatmaps), -1, 0)
    assert red.shape == (20, 8)
    assert red[3, 5] == 51
    assert green[3, 5] == 255
    np.testing.assert_array_equal(red[10:], 102)
    assert (green[10:].max(), blue.max()) == (0, 0)
    assert (red.sum(), green.sum()) == (51 + 80 * 102, 255)
    heatmaps[0, 0, 0] = 0.6
    assert decoded(heatmaps)[:2, 0, 2].tolist() == [153, 153]  # the margin repeats the edge


def decoded(heatmaps: np.ndarray) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture_of(heatmaps), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize(("side", "expected"), [(1, 8), (12, 16), (64, 64), (256, 128)])
def test_maps_of_any_size_become_small_pictures(side, expected):
    picture = decoded(np.full((3, side, side), 0.4, np.float32))
    assert picture.shape == (3 * expected * 5 // 4, expected, 3)
    assert (picture[..., 2] == 102).all()


def test_filters_have_the_colours_of_the_pictures():
    svg = filters()
    red, *_ = re.findall(r'<feFuncR type="table" tableValues="([^"]*)"', svg)
    levels = np.array(red.split(), float) * 255
    assert len(levels) == 256
    np.testing.assert_allclose(levels, COLOURS[:, 0], atol=0.2)
    assert re.findall('filter id="(.*?)"', svg) == ["absolute", "minmax"]


@pytest.mark.parametrize(
    ("image_id", "name"),
    [("00000001_000.png", "00000001_000.png"), ("/a/b.png", "a/b.png"), ("../b.png", "__/b.png")],
)
def test_files_are_in_the_folder_whatever_the_image_id(image_id, name):
    assert name_in_folder(image_id) == name


def test_table_of_the_page_names_each_control_by_its_own_score():
    table = pd.DataFrame(
        {"Mass": np.arange(1, 9) / 10, "Edema": np.nan, "micro": np.arange(11, 19) / 100},
        index=[
            "0", "mean", "0 low", "0 high", "image centre", "prior", "called present",
            "hit if called present",
        ],
    )  # fmt: skip
    boxes = pd.DataFrame({"pathology": ["Mass", "Mass", "Mass", "Nodule"]})
    table["Nodule"] = np.nan
    shown = scores_of_boxes(Rows(boxes, {"class_names": ["Nodule", "Mass"]}), table)
    assert shown.index.tolist() == ["Nodule", "Mass", "all"]
    assert shown.loc["Mass"].to_dict() == {
        "rows": "3",
        "hits": "0.100",
        "95 % interval": "0.300 to 0.400",
        "hits of the best fixed point": "0.600",
        "called present": "0.700",
    }
    assert shown.loc["all", ["rows", "hits"]].tolist() == ["4", "0.110"]
    assert shown.loc["Nodule", ["rows", "called present"]].tolist() == ["1", ""]
