"""Columns that are not labels: how they are read, typed, encoded, and kept from being classes."""

import numpy as np
import pandas as pd
import pytest

from pylon.data.columns import make_encoder, not_classes, read_columns, typed
from pylon.data.sources import read_radiographs
from pylon.options import ClassOptions, DataOptions
from pylon.system.errors import UserError

ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\n"
    "00000004_000.png,Edema,0,4,50,M,AP,\n"
    "00000001_000.png,Mass|Nodule,0,1,{0},M,PA,\n"
    "00000001_001.png,No Finding,1,1,058Y,M,AP,\n"
    "00000002_000.png,Hernia,0,2,006M,,PA,\n"
    "00000003_000.png,Infiltration,0,3,414Y,F,PA,\n"
    "00000003_001.png,Mass,1,3,081Y,F,AP,\n"
)


def write_own(folder, rows: int = 60):
    """A table of a class and columns that are none, one of them different in every row."""
    table = pd.DataFrame({
        "path": [f"{k}.png" for k in range(rows)],
        "patient_id": [k // 2 for k in range(rows)],
        "Mass": [k % 2 for k in range(rows)],
        "age": [str(k + 0.5) if k else "" for k in range(rows)],
        "source": ["", "Bern", "Chur"] * (rows // 3),
        "report": [f"text {k}" for k in range(rows)],
        "site": "x",
        "nothing": "",
    })  # fmt: skip
    table.to_csv(folder / "my.csv", index=False)
    options = DataOptions(table=folder / "my.csv")
    ignored = not_classes(options, ClassOptions(), list(table)[3:])
    return options, read_radiographs(options, ignore_columns=ignored)


def test_nihs_columns_follow_the_images_not_the_rows(by_hand, monkeypatch):
    monkeypatch.setattr("pylon.data.columns.FEW_NUMBERS", 1)
    (by_hand / "Data_Entry_2017.csv").write_text(ENTRIES.format("057Y").replace(",50,", ",050Y,"))
    (by_hand / "resolution.csv").write_text("image,pixels\n00000003_001.png,128\nother,7\n")
    options = DataOptions(by_hand)
    radiographs = read_radiographs(options)
    images = radiographs.images
    columns = read_columns(options, radiographs, ["sex", "age", "view", "Follow-up #", "pixels"])
    assert list(columns) == ["sex", "age", "view", "Follow-up #", "pixels"]
    assert columns.index.equals(images.index)
    of_image = columns.set_axis(images["image_id"])
    assert of_image["sex"].to_dict() == {
        "00000001_000.png": "M",
        "00000001_001.png": "M",
        "00000002_000.png": "",
        "00000003_000.png": "F",
        "00000003_001.png": "F",
    }
    ages = of_image.loc[["00000001_000.png", "00000002_000.png", "00000003_001.png"], "age"]
    assert ages.tolist() == [57, 0.5, 81]
    assert np.isnan(of_image.at["00000003_000.png", "age"])  # nobody is 414 years old
    assert of_image["view"].tolist() == ["PA", "AP", "PA", "PA", "AP"]
    assert of_image["pixels"].tolist() == ["", "", "", "", "128"]
    assert set(images) == {"image_id", "patient_id", "split", "path", *radiographs.class_names}


def test_columns_of_a_table_do_not_become_classes(tmp_path):
    options, radiographs = write_own(tmp_path)
    assert radiographs.class_names == ("Mass",)
    columns = read_columns(options, radiographs, ["source", "age"])
    assert columns["source"].tolist()[:3] == ["", "Bern", "Chur"]
    assert np.isnan(columns["age"][0])
    assert columns["age"].tolist()[1:] == [k + 0.5 for k in range(1, 60)]

    # the user's own choice comes first
    chosen = ClassOptions(classes=("Mass",))
    assert not_classes(options, chosen, ["age"]) == ()
    ignoring = ClassOptions(ignore_columns=("site",))
    assert not_classes(options, ignoring, ["age", "path", "absent"]) == ("site", "age")
    assert not_classes(DataOptions(tmp_path), ClassOptions(), ["age"]) == ()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["Age"], r"my.csv has no column 'Age', which --adjust-for asks for; did you mean 'age'\?"),
        (["age", "age"], "--adjust-for names 'age' twice"),
        (["Mass"], "--adjust-for Mass: this column is a class"),
        (["patient_id"], "--adjust-for patient_id: this column only tells images apart"),
        (["site"], "my.csv: the column 'site' is 'x' in every image, so it says nothing"),
        (["nothing"], "the column 'nothing' is blank"),
        (["report"], "the column 'report' has 60 different texts, such as 'text 0'; name a column"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path, names, sentence):
    options, radiographs = write_own(tmp_path)
    with pytest.raises(UserError, match=sentence):
        read_columns(options, radiographs, names, "--adjust-for")


def test_absent_files_and_columns_of_nih_are_named(by_hand):
    options = DataOptions(by_hand)
    radiographs = read_radiographs(options)
    for name in ("Image Index", "Patient ID"):
        sentence = f"--adjust-for {name}: this column only tells images apart; leave it out"
        with pytest.raises(UserError, match=sentence):
            read_columns(options, radiographs, [name], "--adjust-for")
    with pytest.raises(UserError, match="--columns Finding Labels: this column holds the classes"):
        read_columns(options, radiographs, ["Finding Labels"])
    with pytest.raises(UserError, match="no column 'Patient Sex' or 'Patient Gender'"):
        read_columns(options, radiographs, ["sex"])
    with pytest.raises(UserError, match=r"did you mean 'view'\?"):
        read_columns(options, radiographs, ["viewe"])
    with pytest.raises(
        UserError, match=r"resolution\.csv is missing, whose columns image and pixels"
    ):
        read_columns(options, radiographs, ["pixels"])
    (by_hand / "Data_Entry_2017.csv").unlink()  # as in a folder with the authors' lists alone
    with pytest.raises(UserError, match=r"Data_Entry_2017\.csv is missing, which has view, sex"):
        read_columns(options, radiographs, ["view"])


def test_few_numbers_are_groups_and_one_text_among_many_is_named():
    few = typed(pd.Series(["128", "256", "", "1024"]), "it")
    assert few.tolist() == ["128", "256", "", "1024"]
    many = [str(k) for k in range(60)]
    assert typed(pd.Series(many), "it").tolist() == list(range(60))
    with pytest.raises(UserError, match="61 different texts, such as 'unknown'"):
        typed(pd.Series([*many, "unknown"]), "it")
    with pytest.raises(UserError, match="62 different texts, such as 'unknown'"):
        typed(pd.Series([*many, "unknown", "inf"]), "it")


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e300", "-1e39"])
def test_numbers_whose_squares_overflow_are_named(cell):
    numbers = [str(k) for k in range(20)]
    sentence = f"it has '{cell}', but numbers must lie between -1e\\+38 and 1e\\+38; correct it"
    with pytest.raises(UserError, match=sentence):
        typed(pd.Series([*numbers, "", cell]), "it")
    assert typed(pd.Series([*numbers, "", "1e38"]), "it").iloc[-1] == 1e38
    assert typed(pd.Series(["superior", cell]), "it").tolist() == ["superior", cell]


def test_encoding_standardises_numbers_and_gives_blanks_columns_of_their_own():
    columns = pd.DataFrame({"view": ["AP", "", "PA", "AP"], "age": [10, 30, np.nan, 50.0]})
    encoder = make_encoder(columns)
    encoded = encoder.fit_transform(columns)
    names = ["age", "missingindicator_age", "view_", "view_AP", "view_PA"]
    assert list(encoder.get_feature_names_out()) == names
    third = 1 / np.sqrt(3)
    expected = [
        [-np.sqrt(2), -third, 0, 1, 0],
        [0, -third, 1, 0, 0],
        [0, 3 * third, 0, 0, 1],  # the mean of 10, 30, 50, and a blank
        [np.sqrt(2), -third, 0, 1, 0],
    ]
    np.testing.assert_allclose(encoded, expected, atol=1e-12)
    unseen = pd.DataFrame({"view": ["LL"], "age": [30.0]})
    np.testing.assert_allclose(encoder.transform(unseen), [[0, -third, 0, 0, 0]], atol=1e-12)
