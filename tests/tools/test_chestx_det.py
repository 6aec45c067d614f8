"""tools/chestx_det.py: the table of names, published files in, tables out, and bad input."""

import gzip
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import run_script, sentence_of

import chestx_det
from chestx_det import NAMES, NIH_NAME, Options, main
from pylon.data.chestxray14 import MARK, PATHOLOGIES
from pylon.data.sources import read_chestxray14, read_radiographs
from pylon.options import DataOptions
from pylon.system.errors import UserError

# 36199 to 36206 of ChestX-Det's, of patients 3, 4, 10, 11, 11; 45677 is one of the lost names
TRAIN = [
    {"file_name": "36199.png", "syms": [], "boxes": []},
    {
        "file_name": "36204.png",
        "syms": ["Nodule", "Fracture"],
        "boxes": [[256, 512, 512, 1024], [1, 2, 3, 4]],
    },
    {
        "file_name": "36205.png",
        "syms": ["Effusion", "Effusion", "Mass", "Effusion"],
        "boxes": [[0, 0, 1024, 512], [512, 0, 1024, 1024], [1021, 1, 1024, 4], [0, 0, 1024, 512]],
    },
]
TEST = [
    {"file_name": "36200.png", "syms": ["Calcification"], "boxes": [[5, 5, 9, 9]]},
    {"file_name": "36206.png", "syms": ["Consolidation"], "boxes": [[8, 16, 32, 80]]},
]
LABELS = {  # by NIH
    "00000003_003.png": "Hernia",
    "00000004_000.png": "No Finding",
    "00000010_000.png": "Nodule|Mass",
    "00000011_000.png": "Mass",
    "00000011_005.png": "Infiltration",
    "00000012_000.png": "Effusion",
}
SIZES = {"00000011_000.png": (128, 256)}  # height, width; the others: 1024 x 1024


def write_nih(data: Path, missing: tuple[str, ...] = ("00000003_003.png",)) -> Path:
    """Write a folder in NIH's layout, in which some files are missing; patient 11 is in test."""
    (data / "images").mkdir(parents=True)
    rows = [f"{name},{finding},0,{int(name[:8])}" for name, finding in LABELS.items()]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID"
    (data / "Data_Entry_2017.csv").write_text("\n".join([header, *rows]))
    test = [name for name in LABELS if name.startswith("00000011")]
    (data / "test_list.txt").write_text("\n".join(test))
    (data / "train_val_list.txt").write_text("\n".join(n for n in LABELS if n not in test))
    for name in LABELS:
        if name not in missing:
            image = np.zeros(SIZES.get(name, (1024, 1024)), np.uint8)
            cv2.imwrite(str(data / "images" / name), image)
    return data


def write_json(folder: Path, **contents: object) -> tuple[Path, ...]:
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tuple(folder / f"{name}.json" for name in contents)


@pytest.fixture
def nih(tmp_path) -> Path:
    return write_nih(tmp_path / "nih")


def entry(name: str, *boxes: tuple[str, list[float]]) -> dict:
    return {"file_name": name, "syms": [s for s, _ in boxes], "boxes": [box for _, box in boxes]}


def refusal(nih: Path, **contents: object) -> str:
    """The sentence with which files are refused; nothing is written."""
    files = write_json(nih.parent, **contents)
    with pytest.raises(UserError) as raised:
        main(Options(files, nih.parent / "out", nih))
    assert not (nih.parent / "out").exists()
    return str(raised.value)


# the table of names that is shipped


@pytest.fixture(scope="module")
def names() -> pd.DataFrame:
    return pd.read_csv(NAMES, keep_default_na=False)


def test_names_are_unique_and_of_nihs_form(names):
    assert list(names) == ["file_name", "nih_image"]
    assert len(names) == 3_578
    assert names["file_name"].is_unique
    assert names["file_name"].str.fullmatch(r"\d{5}\.png").all()
    known = names["nih_image"][names["nih_image"] != ""]
    assert len(known) == 3_543
    assert known.is_unique
    assert known.str.fullmatch(NIH_NAME).all()


def test_numbers_run_as_nihs_names_do(names):
    """All but 7 of 3,542 steps lead upwards: an exchange of two names would add some."""
    assert names["file_name"].is_monotonic_increasing
    known = names["nih_image"][names["nih_image"] != ""].to_numpy()
    assert (known[1:] < known[:-1]).sum() == 7


def test_names_are_nihs_and_their_labels_fit(names, official, shared):
    """NIH's labels agree with the radiologists far more often than under exchanged names."""
    images = read_chestxray14(official).images.set_index("image_id")
    known = names[names["nih_image"] != ""]
    listed = images.loc[known["nih_image"]]
    assert (listed["split"] == "test").sum() == 683

    # all published entries have a name, or are known to have lost it
    entries = []
    for part in ("train", "test"):
        for form in (10, 13):
            path = shared / f"nih14/boxes/chestx_det{form}_{part}.json.gz"
            content = json.loads(gzip.decompress(path.read_bytes()))
            assert {each["file_name"] for each in content} <= set(names["file_name"])
            entries += content if form == 10 else []
    findings = {each["file_name"]: each["syms"] for each in entries}
    assert set(findings) == set(known["file_name"])
    marked = np.array(
        [[name in findings[file] for name in chestx_det.IN_DET10] for file in known["file_name"]]
    )
    labelled = listed[list(chestx_det.IN_DET10)].to_numpy(bool)
    assert (marked & labelled).sum() == 1_536
    shuffled = labelled[np.random.default_rng(0).permutation(len(labelled))]
    assert (marked & shuffled).sum() < 800
    assert (marked[1:] & labelled[:-1]).sum() < 1_200  # often the same patient's next image


# what is written


def test_tables_hold_labels_splits_and_boxes_in_pixels(nih, tmp_path, capsys):
    lost = entry("45677.png", ("Mass", [1, 2, 30, 40]))
    files = write_json(tmp_path, train=[*TRAIN, lost], test=TEST)
    out = tmp_path / "out"
    run_script("tools/chestx_det.py", *files, "--data", nih, "--out", out, cwd=tmp_path)
    options = DataOptions(table=out / "table.csv")
    data = read_radiographs(options, boxes=out / "boxes.csv", with_boxes=True)

    # images, in the order of the entries; 3_003 has no file
    images = data.images.set_index(data.images["path"].map(lambda path: Path(path).name))
    assert list(images.index) == [
        "00000010_000.png", "00000011_000.png", "00000004_000.png", "00000011_005.png",
    ]  # fmt: skip
    assert data.images["path"].notna().all()
    assert images["patient_id"].tolist() == [10, 11, 4, 11]
    assert images["split"].map(lambda split: split == "test").tolist() == [False, True, False, True]

    # labels by the radiologists, not by NIH; blank where ChestX-Det10 has no class
    assert data.class_names == PATHOLOGIES
    assert images["Nodule"].tolist() == [1, 0, 0, 0]
    assert images["Mass"].tolist() == [0, 1, 0, 0]
    assert images["Effusion"].tolist() == [0, 1, 0, 0]
    assert images["Consolidation"].tolist() == [0, 0, 0, 1]
    blank = [name for name in PATHOLOGIES if images[name].isna().all()]
    assert blank == [
        "Cardiomegaly", "Infiltration", "Pneumonia", "Edema", "Pleural_Thickening", "Hernia",
    ]  # fmt: skip

    # boxes of the test images: of 11_000, a quarter as wide and an eighth as high as 1024; the
    # repeated box once, the small one at least 1 pixel, inside the image
    boxes = data.boxes[["pathology", "x", "y", "w", "h"]].to_numpy().tolist()
    assert boxes == [
        ["Effusion", 0, 0, 256, 64],
        ["Effusion", 128, 0, 128, 128],
        ["Mass", 255, 0, 1, 1],
        ["Consolidation", 8, 16, 24, 64],
    ]
    listed = pd.read_csv(out / "boxes.csv")
    assert listed.loc[0, list("xywh")].tolist() == [256, 512, 256, 512]  # of training: kept, too
    assert listed.loc[3, list("xywh")].tolist() == [255, 0.125, 1, 1]  # inside, untruncated, too


def test_what_is_left_out_is_counted_and_named(nih, tmp_path, capsys):
    lost = entry("45677.png", ("Mass", [1, 2, 30, 40]))
    main(Options(write_json(tmp_path, train=[*TRAIN, lost], test=TEST), tmp_path / "out", nih))
    said = capsys.readouterr().out
    assert "note: 1 of 6 images are left out: what NIH calls them is lost: 45677.png" in said
    assert f"images of {nih}: 00000003_003.png" in said
    assert "note: boxes of Fracture are left out (1): no class of NIH's" in said
    assert "note: boxes of Calcification are left out (1): no class of NIH's" in said
    assert "4 images of 3 patients and 5 boxes (4 of them on 2 test images)" in said


def test_agreement_counts_both_directions(nih, tmp_path, capsys):
    main(Options(write_json(tmp_path, train=TRAIN, test=TEST), tmp_path / "out", nih))
    lines = capsys.readouterr().out.splitlines()
    assert "| Mass | 1 of 1 (100%) | 1 of 2 (50%) |" in lines  # NIH: 10_000 and 11_000
    assert "| Effusion | 0 of 1 (0%) | 0 of 0 |" in lines
    assert "| Nodule | 1 of 1 (100%) | 1 of 1 (100%) |" in lines
    assert "| nothing | 0 of 0 | 0 of 1 (0%) |" in lines  # 4_000 has a calcification
    assert not any(line.startswith("| Infiltration") for line in lines)


def test_thirteen_findings(nih, tmp_path):
    box = [10, 20, 110, 220]
    train = [
        entry("36204.png", ("Diffuse Nodule", box)) | {"polygons": [[[10, 20], [110, 220]]]},
        entry("36206.png", ("Cardiomegaly", box), ("Pleural Thickening", box)) | {"polygons": []},
    ]
    test = [entry("36200.png")]  # a file of ChestX-Det10
    main(Options(write_json(tmp_path, train=train, test=test), tmp_path / "out", nih))
    table = pd.read_csv(tmp_path / "out/table.csv")
    assert table["Nodule"].tolist() == [1, 0, 0]
    for name in ("Cardiomegaly", "Pleural_Thickening"):
        np.testing.assert_array_equal(table[name], [0, 1, np.nan])
    boxes = pd.read_csv(tmp_path / "out/boxes.csv")
    assert boxes["class"].tolist() == ["Cardiomegaly", "Pleural_Thickening"]


def test_nihs_own_names_and_gzip(nih, tmp_path):
    """Earlier versions of the annotations have NIH's names."""
    for k, name in enumerate(("36204.png", "00000010_000.png")):
        path = tmp_path / f"{k}.json.gz"
        path.write_bytes(gzip.compress(json.dumps([entry(name, ("Mass", [1, 2, 5, 9]))]).encode()))
        main(Options((path,), tmp_path / str(k), nih))
    for table in ("table.csv", "boxes.csv"):
        one, other = ((tmp_path / str(k) / table).read_text() for k in range(2))
        assert one == other


def test_images_without_files_are_kept_if_asked_for(nih, tmp_path):
    files = write_json(tmp_path, train=TRAIN)
    main(Options(files, tmp_path / "out", nih, keep_missing=True))
    table = pd.read_csv(tmp_path / "out/table.csv")
    assert table["path"][0] == "../nih/images/00000003_003.png"
    assert len(table) == 3


def test_images_without_a_box_are_negative(nih, tmp_path):
    main(Options(write_json(tmp_path, train=[entry("36204.png")]), tmp_path / "out", nih))
    assert pd.read_csv(tmp_path / "out/table.csv")["Nodule"].tolist() == [0]
    assert pd.read_csv(tmp_path / "out/boxes.csv").empty


# bad input


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": [], "annotations": []}, "x.json is not a file of ChestX-Det's"),
        ([], "x.json is not a file of ChestX-Det's"),
        ([entry("36204.png"), {"file_name": "36205.png"}], "entry 2 is not"),
        ([{"file_name": "36204.png", "syms": ["Mass"], "boxes": []}], "entry 1 is not"),
        ([entry("36204.png", ("Mass", [1, 2, 3]))], "entry 1 is not"),
        ([entry("36204.png", ("Mass", [1, 2, 3, "4"]))], "entry 1 is not"),
        ([entry("36204.png", ("Mass", [1, 2, 3, float("nan")]))], "entry 1 is not"),
        ([entry("36204.png"), entry("a.png")], "'a.png' is a name neither of ChestX-Det's"),
        ([entry("36204.png"), entry("36201")], "'36201' is a name neither"),
        (
            [entry("36204.png", ("Masses", [1, 2, 3, 4]))],
            "36204.png, Masses, is [1, 2, 3, 4]",
        ),
        ([entry("36204.png", ("Mass", [1, 2, 1025, 4]))], "36204.png, Mass, is [1, 2, 1025, 4]"),
        ([entry("36204.png", ("Mass", [1, -2, 3, 4]))], "inside 1024 x 1024 pixels"),
        ([entry("36204.png", ("Mass", [9, 2, 9, 4]))], "inside 1024 x 1024 pixels"),
        ([entry("36204.png"), entry("36210.png", ("Mass", [0, 0, 5, 1024.5]))], "36210.png, Mass"),
        ([entry("36204.png"), entry("00000010_000.png")], "00000010_000.png is in"),
        ([entry("36199.png"), entry("45677.png")], "all 2 images are not in the lists"),
    ],
)
def test_bad_files_are_refused(nih, content, words):
    assert words in refusal(nih, x=content)


def test_an_image_in_both_files_is_refused(nih):
    said = refusal(nih, train=TRAIN, test=[*TEST, entry("36205.png")])
    assert said.startswith("36205.png is in ")
    assert said.endswith("test.json; give each image once")
    assert "train.json and again in" in said


def test_no_json_is_refused(nih, tmp_path):
    path = tmp_path / "train.json.gz"
    whole = gzip.compress(json.dumps(TRAIN).encode())
    for content in (b"\x89PNG", whole[:-9], whole[:20] + b"\0\0\0\0" + whole[24:], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train\.json\.gz is not a JSON file"):
            main(Options((path,), tmp_path / "out", nih))


def test_missing_files_and_other_folders_are_refused(nih, tmp_path):
    options = ("--data", nih, "--out", tmp_path / "out")
    done = run_script("tools/chestx_det.py", "a.json", *options, cwd=tmp_path, code=2)
    assert "a.json" in sentence_of(done)
    done = run_script("tools/chestx_det.py", *options, cwd=tmp_path, code=2)
    assert "name ChestX-Det's train.json and test.json" in sentence_of(done)
    (nih / MARK).write_text("Drawn chests.\n")
    assert "holds no radiographs: Drawn chests." in refusal(nih, train=TRAIN)
