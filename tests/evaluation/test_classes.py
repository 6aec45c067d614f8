"""Classes in common of a network and the data."""

import numpy as np
import pandas as pd
import pytest

from pylon.evaluation.classes import read_common
from pylon.options import EvaluationOptions
from pylon.system.errors import UserError

NETWORK = ("Mass", "Effusion", "Pneumonia")


@pytest.fixture
def options(tmp_path) -> EvaluationOptions:
    rows = {
        "path": ["1.png", "2.png", "3.png"],
        "split": "test",
        "fluid": [1, 0, 1],
        "pneumonia": [0, 0, 1],
        "Mass": [0, 1, 1],
        "age": [40, 50, 60],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "my.csv", index=False)
    box = {"path": ["3.png"], "class": ["fluid"], "x": 1, "y": 2, "w": 3, "h": 4}
    pd.DataFrame(box).to_csv(tmp_path / "boxes.csv", index=False)
    return EvaluationOptions(table=tmp_path / "my.csv")


def write_map(options: EvaluationOptions, *pairs: tuple[str, str]) -> None:
    options.class_map = options.table.with_name("map.csv")
    pd.DataFrame(pairs, columns=["network", "data"]).to_csv(options.class_map, index=False)


def test_common_classes_are_read_and_the_others_named(options):
    radiographs = read_common(options, NETWORK, "net")
    assert radiographs.class_names == ("Mass",)
    (note,) = [note for note in radiographs.notes if "scored" in note]
    assert note == (
        f"1 of the 3 classes of net are scored; {options.table} lacks Effusion, Pneumonia; the "
        "network lacks fluid, pneumonia (perhaps 'pneumonia' is 'Pneumonia': see --class-map)"
    )


def test_mapped_classes_have_the_networks_names_and_order(options):
    write_map(options, ("Pneumonia", "pneumonia"), ("Effusion", "fluid"))
    boxes = options.table.with_name("boxes.csv")
    radiographs = read_common(options, NETWORK, "net", boxes, with_boxes=True)
    assert radiographs.class_names == NETWORK
    labels = radiographs.images[list(NETWORK)].to_numpy()
    np.testing.assert_array_equal(labels, [[0, 1, 0], [1, 0, 0], [1, 1, 1]])
    assert radiographs.boxes["pathology"].tolist() == ["Effusion"]
    assert not any("scored" in note for note in radiographs.notes)


def test_a_map_may_exchange_names(options):
    write_map(options, ("Mass", "fluid"), ("Effusion", "Mass"))
    radiographs = read_common(options, NETWORK[:2], "net")
    assert radiographs.images["Mass"].tolist() == [1, 0, 1]
    assert radiographs.images["Effusion"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("Mas", "fluid")], "'Mas' in the column network is no class of net; choose among Mass"),
        ([("Mass", "liquid")], "'liquid' in the column data is no class of the data; choose among"),
        ([("Mass", "fluid"), ("Mass", "age")], "names 'Mass' twice"),
        ([("Effusion", "Mass")], "Mass and Effusion of net are both 'Mass' of your data"),
    ],
)
def test_a_wrong_map_is_refused(options, pairs, said):
    write_map(options, *pairs)
    with pytest.raises(UserError, match=said):
        read_common(options, NETWORK, "net")


def test_no_class_in_common_is_refused(options):
    with pytest.raises(
        UserError, match=r"my.csv has no class of net, which knows Masse .perhaps 'Mass' is 'Masse'"
    ):
        read_common(options, ("Masse",), "net")
