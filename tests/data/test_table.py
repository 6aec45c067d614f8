"""A table of one's own: read as written, or refused in a sentence."""

import csv
import io
import shutil
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon.data.csv_cells import plain, visible
from pylon.data.sources import read_radiographs
from pylon.data.table import KEYS, TAKEN, read_table
from pylon.options import CacheOptions, DataOptions, cache_folder
from pylon.system.errors import UserError

TABLE = """\
path,patient_id,split,age,Effusion,Mass
a/1.png,P1,train,63,1,0
a/2.png,P1,train,64,1.0,
a/3.png,P2,val,41,0,0
b/1.png,007,test,57,0,1
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "my.csv").write_text(TABLE)
    return tmp_path


def test_tables_are_read_as_written(folder):
    data = read_table(folder / "my.csv", ignore_columns=["age"])
    images = data.images
    assert data.class_names == ("Effusion", "Mass")
    assert images["image_id"].tolist() == ["a/1.png", "a/2.png", "a/3.png", "b/1.png"]
    assert images["path"].tolist() == [str(folder / name) for name in images["image_id"]]
    assert images["patient_id"].tolist() == ["P1", "P1", "P2", "007"]
    assert images["split"].tolist() == ["train", "train", "val", "test"]
    assert images["Effusion"].dtype == np.uint8
    assert images["Effusion"].tolist() == [1, 1, 0, 0]
    assert images["Mass"].dtype == np.float32
    np.testing.assert_array_equal(images["Mass"], [0, np.nan, 0, 1])
    assert data.boxes.empty
    assert data.notes == (
        f"{folder}/my.csv: the classes are Effusion, Mass",
        f"1 of 8 labels in {folder}/my.csv are unknown: they are left out of loss, AUROC and "
        "thresholds",
    )
    chosen = read_table(folder / "my.csv", class_names=["Mass", "Effusion"])
    assert chosen.class_names == ("Mass", "Effusion")
    assert not any("the classes are" in note for note in chosen.notes)
    assert data.list_sha256 == chosen.list_sha256
    assert list(data.list_sha256) == ["my.csv"]


def test_whole_patient_ids_are_numbers(folder):
    path = folder / "my.csv"
    path.write_text(TABLE.replace("P", "").replace("007", "7"))
    patients = read_table(path, ignore_columns=["age"]).images["patient_id"]
    assert patients.dtype == np.int64
    assert patients.tolist() == [1, 1, 2, 7]


def test_excel_and_windows_leave_their_marks(folder):
    plain = read_table(folder / "my.csv", ignore_columns=["age"])
    content = b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").replace(",Mass", ", Mass ").encode()
    (folder / "my.csv").write_bytes(content + b",,,,,\r\n\r\n")
    again = read_table(folder / "my.csv", ignore_columns=["age"])
    assert again.images.equals(plain.images)
    assert again.class_names == plain.class_names


def test_evaluations_accept_what_training_left_out(folder):
    """Columns that look like others, and classes that nobody has labelled."""
    (folder / "my.csv").write_text(TABLE.replace("patient_id", "Patient ID").replace("Mass", "b"))
    read_table(folder / "my.csv", ignore_columns=["age", "Patient ID"])
    data = read_table(folder / "my.csv", ["Effusion"], asked_by="save/x/0/best")
    assert data.class_names == ("Effusion",)
    (folder / "my.csv").write_text("path,split,Mass,Edema\na/1.png,test,1,\na/2.png,test,0,\n")
    assert read_table(folder / "my.csv").images["Edema"].isna().all()
    with pytest.raises(UserError, match=r"which save/x/0/best asks for; add it, blank where unk"):
        read_table(folder / "my.csv", ["Hernia"], asked_by="save/x/0/best")


def test_missing_images_have_no_path(folder):
    (folder / "a/2.png").unlink()
    images = read_table(folder / "my.csv", ignore_columns=["age"]).images
    assert images["path"].isna().tolist() == [False, True, False, False]


def test_patients_are_split_alike_every_time(tmp_path):
    rows = [f"{k}.png,{k // 3},{k % 2}" for k in range(300)]
    (tmp_path / "my.csv").write_text("\n".join(["path,patient_id,Mass", *rows]))
    data = read_table(tmp_path / "my.csv")
    of_patient = data.images.groupby("patient_id")["split"].agg(["nunique", "first"])
    assert (of_patient["nunique"] == 1).all()
    counts = of_patient["first"].value_counts().to_dict()
    assert counts == {"train": 80, "val": 10, "test": 10}
    assert data.images.equals(read_table(tmp_path / "my.csv").images)
    assert "no column split: of its patients 80 were drawn for training, 10 for" in data.notes[1]


def test_few_patients_change_sides_when_the_table_changes(tmp_path):
    lines = [f"{k}.png,P{k},{k % 2}" for k in range(100)]
    splits = []
    for chosen in (lines, lines[::-1][1:]):
        (tmp_path / "my.csv").write_text("\n".join(["path,patient_id,Mass", *chosen]))
        data = read_table(tmp_path / "my.csv")
        splits.append(data.images.set_index("image_id")["split"])
        assert data.drawn_from == data.list_sha256["my.csv"]
    before = splits[0][splits[1].index]
    assert (before != splits[1]).sum() <= 2


def test_links_to_one_image_are_one_image(folder):
    (folder / "link").symlink_to(folder / "a")
    (folder / "my.csv").write_text(TABLE + "link/1.png,9,test,1,1,0\n")
    with pytest.raises(UserError, match=r"rows 2 and 6 have the same image, link/1.png; remove"):
        read_table(folder / "my.csv", ignore_columns=["age"])
    (folder / "my.csv").write_text(TABLE)
    (folder / "b/1.png").unlink()
    (folder / "b/1.png").symlink_to(folder / "a/1.png")  # the file itself is a link
    with pytest.raises(UserError, match=r"rows 2 and 5 have the same image, b/1.png; remove one"):
        read_table(folder / "my.csv", ignore_columns=["age"])


def test_without_patients_each_image_is_one(tmp_path):
    (tmp_path / "my.csv").write_text("path,Mass\n1.png,1\n2.png,0\n3.png,0\n")
    data = read_table(tmp_path / "my.csv")
    assert data.images["patient_id"].tolist() == [0, 1, 2]
    assert sorted(data.images["split"]) == ["test", "train", "val"]
    assert "no column patient_id: each image counts as its own patient" in data.notes[1]


FAULTS = {  # replacement of the table, or part of it -> what the sentence says
    "no path": ("path,", "file,", "has no column 'path'; its columns are file, patient_id"),
    "capital": ("path,", "Path,", "has no column 'path'; rename 'Path' to 'path'"),
    "other key": ("patient_id", "PatientID", "rename the column 'PatientID' to 'patient_id', or"),
    "two": ("63,1,", "63,2,", "'Effusion' is '2' in row 2, but a class holds 1, 0 or blank"),
    "yes": (",1,0\n", ",yes,0\n", "'Effusion' is 'yes' in row 2"),
    "duplicate path": ("a/2", "a/1", "rows 2 and 3 have the same image, a/1.png; remove one"),
    "same file": ("a/2", "b/../a/1", "rows 2 and 3 have the same image, b/../a/1.png"),
    "blank path": ("a/3.png", "", "row 4 has no path; correct it or remove the row"),
    "line break in a path": ("a/3.png", '"a/3\n.png"', "row 4 has a line break in its path; corr"),
    "line break in a name": ("Mass", '"Ma\nss"', "the column 'Ma\\nss' has a line break in its"),
    "patient in two splits": ("P2,val", "P1,val", "patient P1 is in train and val; each patient"),
    "patient written twice, long": (
        "P2",
        "7.",
        "the patients 7. and 007 are one number; write them alike",
    ),
    "patient written twice": ("P2", "7", "the patients 7 and 007 are one number; write them alike"),
    "unknown split": ("train,64", "Train,64", "split is 'Train' in row 3; it must be train, val"),
    "blank split": ("val,", ",", "row 4 has no split; add it, or remove the column split"),
    "blank patient": ("P2", "", "row 4 has no patient_id; add it, or remove the column"),
    "short row": (",1.0,\n", "\n", "row 3 has 4 cells, but the header has 6; correct it"),
    "long row": ("1.0,\n", "1.0,,0\n", "row 3 has 7 cells, but the header has 6"),
    "class of the results": ("Mass", "macro", "a class cannot be named 'macro'"),
    "two columns": ("Mass", "Effusion", "has two columns 'Effusion'; remove one"),
    "no name": ("path,", ",path,", "column 1 has no name; name it or remove it"),
    "header alone": (TABLE.partition("\n")[2], "", "has no rows below its header; add some"),
    "empty": (TABLE, "", "is empty; it must start with the names of its columns"),
    "open quote": ("P2", '"P2', "is not a table of comma-separated values"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_tables_are_refused(folder, name):
    old, new, sentence = FAULTS[name]
    assert old in TABLE
    (folder / "my.csv").write_text(TABLE.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_table(folder / "my.csv", ignore_columns=[] if name == "no path" else ["age"])
    assert str(caught.value).startswith(f"{folder}/my.csv")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("form", ["semicolons", "tabs", "xlsx"])
def test_other_forms_of_a_table_are_read_alike(folder, form):
    path = folder / "my.csv"
    path.write_text(TABLE)
    expected = read_table(path, ignore_columns=["age"])
    if form == "xlsx":
        path = folder / "my.xlsx"
        pd.read_csv(folder / "my.csv", dtype={"patient_id": str}).to_excel(path, index=False)
    else:
        path.write_text(TABLE.replace(",", {"semicolons": ";", "tabs": "\t"}[form]))
    radiographs = read_table(path, ignore_columns=["age"])
    pd.testing.assert_frame_equal(radiographs.images, expected.images)
    said = "its first sheet is read" if form == "xlsx" else f"is separated by {form}"
    assert said in radiographs.notes[0]


def test_file_that_is_no_sheet_is_refused(folder):
    (folder / "my.xlsx").write_text(TABLE)
    with pytest.raises(UserError, match=r"my.xlsx is not a sheet that can be read; save it as csv"):
        read_table(folder / "my.xlsx")


def test_words_for_labels(folder):
    lines = ["a/1.png,train, Ja ,+", "a/2.png,val,NEIN,-", "b/1.png,test,,0", "a/3.png,test,1,-"]
    path = folder / "my.csv"
    path.write_text("\n".join(["path,split,Mass,Edema", *lines]))
    words = {"positive": ["ja", "+"], "negative": ["nein", "-"]}
    images = read_table(path, **words).images
    assert images["Mass"].fillna(-1).tolist() == [1, 0, -1, 1]
    assert images["Edema"].tolist() == [1, 0, 0, 0]
    with pytest.raises(UserError, match=r"'Mass' is 'Ja' in row 2.*--positive and"):
        read_table(path)
    with pytest.raises(UserError, match=r"--positive and --negative both name 'JA'; leave one out"):
        read_table(path, positive=["ja"], negative=["JA"])


def test_paths_written_on_windows_and_constant_columns(folder):
    path = folder / "my.csv"
    path.write_text(
        "path,split,Mass,Edema\na\\1.png,train,1,1\na\\2.png,val,0,1\nb/1.png,test,0,\n"
    )
    radiographs = read_table(path)
    assert radiographs.images["path"].notna().all()
    assert "all known labels of Edema are the same; is it a class?" in radiographs.notes[-1]


# two patients, and whether they are one that was written in two ways
PATIENTS = {
    "accents": ("Jos\u00e9", "Jose\u0301", "patient José is in val and train"),
    "a space without width": ("P\u200b3", "P3", "patient P3 is in val and train"),
    "a mark of the byte order": ("\ufeffP3", "P3", "patient P3 is in val and train"),
    "leading zeros": ("0012", "12", "the patients 12 and 0012 are one number"),
    "a spreadsheet's point": ("12.0", "12", "the patients 12 and 12.0 are one number"),
    "zeros before 25 digits": ("1" * 25, "0" + "1" * 25, "are one number"),
    "decimals": ("1.10", "1.1", None),
    "two numbers of 25 digits": ("1" * 25, "1" * 24 + "2", None),
    "signs": ("-7", "7", None),
    "letters": ("P3a", "P3", None),
}


@pytest.mark.parametrize("case", PATIENTS)
def test_patients_that_are_one(folder, case):
    first, second, sentence = PATIENTS[case]
    lines = ["a/1.png,{},train,1", "a/2.png,{},val,0", "b/1.png,other,test,1"]
    text = "\n".join(["path,patient_id,split,Mass", *lines])
    path = folder / "my.csv"
    path.write_text(text.format(second, first), encoding="utf-8")
    if sentence is None:
        assert read_table(path).images["patient_id"].nunique() == 3
        return
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert sentence.replace("is in val and train", "is in train and val") in str(caught.value)


def test_names_of_classes_are_those_of_the_boxes(folder):
    (folder / "my.csv").write_text(
        "path,split,O\u0308dem\na/1.png,train,1\na/2.png,val,0\nb/1.png,test,1\n"
    )
    (folder / "boxes.csv").write_text("path,class,x,y,w,h\nb/1.png,\u00d6dem,1,2,3,4\n")
    options = DataOptions(table=folder / "my.csv")
    data = read_radiographs(options, boxes=folder / "boxes.csv", with_boxes=True)
    assert data.class_names == ("\u00d6dem",)
    assert data.boxes["pathology"].tolist() == ["\u00d6dem"]


def test_what_lies_in_the_place_of_a_missing_image_is_named(folder):
    (folder / "a/1.JPG").write_bytes(b"")
    (folder / "a/1.png").unlink()
    cells = TABLE.replace("a/1.png", "a/1.jpg")
    for text in (cells, TABLE):
        (folder / "my.csv").write_text(text)
        data = read_table(folder / "my.csv", ignore_columns=["age"])
        assert f"; {folder}/a/1.JPG lies there: correct the ends of the paths" in data.if_missing


@pytest.mark.parametrize("place", ["a/PHANTOM.txt", "PHANTOM.txt", "../PHANTOM.txt", None])
def test_synthetic_images_of_a_table_are_marked(folder, tmp_path_factory, place):
    there = tmp_path_factory.mktemp("data") / "deep"
    shutil.copytree(folder, there)
    table = tmp_path_factory.mktemp("elsewhere") / "my.csv"
    (table.parent / "link").symlink_to(there)
    table.write_text(TABLE.replace("a/", "link/a/").replace("b/", "link/b/"))
    if place is not None:
        (there / place).write_text("Synthetic chests.\nDrawn by a script.\n")
    data = read_table(table, ignore_columns=["age"])
    expected = None if place is None else "Synthetic chests."
    assert data.synthetic == expected
    assert (data.notes[0] == expected) == (place is not None)


def refusal(path: Path, content: str | bytes, classes=(), ignore=()) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read_table(path, classes, ignore)
    return str(caught.value)


def test_classes_must_be_columns_with_labels(folder):
    path = folder / "my.csv"
    assert "'age' is '63' in row 2 (and 3 more like it)" in refusal(path, TABLE)
    said = refusal(path, TABLE, classes=["Mas"])
    assert "has no column 'Mas', which --classes asks for; did you mean 'Mass'?" in said
    said = refusal(path, TABLE, ignore=["age,Mass"])
    assert "has no column 'age,Mass', which --ignore-columns asks for; separate names by" in said
    said = refusal(path, TABLE, ignore=["split"])
    assert "--ignore-columns split: this column is no class; remove it from" in said
    without = TABLE.replace("patient_id", "case")
    assert "--ignore-columns (or call it patient_id, if it is that)" in refusal(path, without)
    said = refusal(path, TABLE, ignore=["sex"])
    assert "has no column 'sex', which --ignore-columns asks for; its columns are path," in said
    said = refusal(path, TABLE, classes=["Mass"], ignore=["age"])
    assert said == "--classes and --ignore-columns exclude each other; leave one out"
    assert "--classes names 'Mass' twice" in refusal(path, TABLE, classes=["Mass", "Mass"])
    assert "a class cannot be named 'path'" in refusal(path, TABLE, classes=["path"])
    said = refusal(path, TABLE, ignore=["age", "Effusion", "Mass"])
    assert "has no column of a class; add one" in said
    few = "path,patient_id,Mass\n1.png,1,1\n2.png,2,0\n3.png,2,0\n"
    assert "2 patients cannot be split into training, validation and test" in refusal(path, few)


def test_files_that_are_no_tables(folder):
    path = folder / "my.csv"
    assert "is not UTF-8 text; save it as a csv file in UTF-8" in refusal(
        path, TABLE.encode("utf-16")
    )
    said = refusal(path, ",".join(["path", *map(str, range(100_000))]) + "\n" + "1," * 100_000)
    assert "has 100,001 columns, more than 2,000; keep path, the classes" in said
    path.unlink()
    with pytest.raises(UserError, match=r"my.csv cannot be read \(No such file or directory\)"):
        read_table(path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_table(folder)


def test_options_of_the_table_exclude_those_of_nih(folder):
    table = folder / "my.csv"
    with pytest.raises(UserError, match=r"takes the place of NIH's files in --data .*leave one"):
        read_radiographs(DataOptions(data=folder, table=table))
    with pytest.raises(UserError, match="--ignore-columns is for a --table; leave it out"):
        read_radiographs(DataOptions(data=folder), ignore_columns=["age"])
    with pytest.raises(UserError, match="--boxes is for a --table; leave it out"):
        read_radiographs(DataOptions(data=folder), boxes=folder / "boxes.csv")
    with pytest.raises(UserError, match=r"has no boxes; give them with --boxes FILE, csv or COCO"):
        read_radiographs(DataOptions(table=table), ["Mass"], with_boxes=True)


def test_caches_are_beside_the_data():
    assert cache_folder(CacheOptions(data=Path("nih"))) == Path("nih/cache")
    assert cache_folder(CacheOptions(table=Path("mine/my.csv"))) == Path("mine/cache")
    assert cache_folder(CacheOptions(table=Path("my.csv"), cache_dir=Path("fast"))) == Path("fast")


def test_some_of_nihs_classes(phantom):
    data = read_radiographs(DataOptions(phantom), ["Mass", "Effusion"], with_boxes=True)
    assert data.class_names == ("Mass", "Effusion")
    assert "Nodule" not in data.images
    assert set(data.boxes["pathology"]) == {"Mass", "Effusion"}
    with pytest.raises(UserError, match=r"has no class 'Mas', which --classes asks for; its"):
        read_radiographs(DataOptions(phantom), ["Mas"])
    with pytest.raises(UserError, match="--classes names a class twice"):
        read_radiographs(DataOptions(phantom), ["Mass", "Mass"])


# what a cell may hold: text in any script, also with commas, quotes and line breaks
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('," \n'),
    min_size=1,
    max_size=8,
).filter(lambda text: text == plain(text) and "\0" not in text)
NAMES = TEXT.filter(
    lambda name: name.splitlines() == [name] and name.lower() not in (*KEYS, *TAKEN)
)
PATHS = st.text(string.ascii_letters + "é ,", min_size=1, max_size=6).filter(
    lambda name: name == name.strip()
)


@st.composite
def tables(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    count = draw(st.integers(3, 8))
    paths = draw(st.lists(PATHS, min_size=count, max_size=count, unique=True))
    kinds = (st.integers(0, 10**20).map(str), TEXT.map("P{}".format))
    ids = draw(st.sampled_from(kinds))
    patients = draw(st.lists(ids, min_size=count, max_size=count, unique_by=visible))
    splits = draw(
        st.lists(st.sampled_from(("train", "val", "test")), min_size=count, max_size=count)
    )
    labels = [["1", *draw(st.lists(st.sampled_from("10 "), min_size=count - 1, max_size=count - 1))]
              for _ in names]  # fmt: skip
    return names, paths, patients, splits, labels


@given(tables())
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_table_round_trips(tmp_path, table):
    names, paths, patients, splits, labels = table
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "patient_id", "split", *names])
    writer.writerows(zip(paths, patients, splits, *labels, strict=True))
    (tmp_path / "my.csv").write_bytes(text.getvalue().encode())
    data = read_table(tmp_path / "my.csv")
    assert data.class_names == tuple(names)
    assert data.images["image_id"].tolist() == paths
    assert data.images["split"].tolist() == splits
    assert [str(patient) for patient in data.images["patient_id"]] == list(map(visible, patients))
    for name, given_labels in zip(names, labels, strict=True):
        expected = [np.nan if label == " " else float(label) for label in given_labels]
        np.testing.assert_array_equal(data.images[name].to_numpy(np.float32), expected)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.booleans())
@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_read_or_refused(tmp_path, content, with_header):
    head = b"path,Mass\n" if with_header else b""
    (tmp_path / "my.csv").write_bytes(head + content)
    said = f"{tmp_path}/my.csv"
    try:
        read_table(tmp_path / "my.csv")
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{tmp_path}/my.csv")
