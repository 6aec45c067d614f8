"""Rows of boxes: several of one class, and what makes two tables those of one data set."""

import numpy as np
import pandas as pd
import pytest

from pylon.scoring.rows import Rows, bboxes_of, merge_boxes, read_rows, write_rows

# the boxes of one image and class are not beside each other, and images differ in their number
BOXES = pd.DataFrame(
    [
        ("b.png", "Mass", 1, 2, 3, 40),
        ("a.png", "Mass", 5, 6, 7, 8),
        ("b.png", "Nodule", 9, 10, 11, 12),
        ("b.png", "Mass", 2, 3, 3, 41),
        ("a.png", "Nodule", 0, 1, 2, 2),
        ("b.png", "Mass", 70, 60, 5, 4),
    ],
    columns=["image_id", "pathology", "x", "y", "w", "h"],
)


def rows_of(boxes: pd.DataFrame) -> Rows:
    table = merge_boxes(boxes)
    table["patient_id"] = 1
    table["image_height"] = 128
    table["image_width"] = 96
    return Rows(table, {"class_names": ["Mass", "Nodule"]})


def test_boxes_of_one_image_and_class_are_one_row():
    table = merge_boxes(BOXES)
    assert table[["image_id", "pathology"]].to_numpy().tolist() == [
        ["b.png", "Mass"], ["a.png", "Mass"], ["b.png", "Nodule"], ["a.png", "Nodule"]
    ]  # fmt: skip
    assert table["more_boxes"].tolist() == ["2 3 3 41; 70 60 5 4", "", "", ""]
    none = [0, 0, 0, 0]
    assert bboxes_of(table).tolist() == [
        [[1, 2, 3, 40], [2, 3, 3, 41], [70, 60, 5, 4]],
        [[5, 6, 7, 8], none, none],
        [[9, 10, 11, 12], none, none],
        [[0, 1, 2, 2], none, none],
    ]


@pytest.mark.parametrize("column", ["x", "y", "w", "h"])
def test_rows_that_differ_in_a_second_box_alone_are_of_other_data(column):
    other = BOXES.copy()
    other.loc[3, column] += 1
    assert rows_of(BOXES).is_of_data_of(rows_of(BOXES.copy()))
    assert not rows_of(BOXES).is_of_data_of(rows_of(other))
    assert not rows_of(BOXES).is_of_data_of(rows_of(BOXES[:3]))  # without second boxes


def test_what_a_network_gives_makes_no_other_data():
    one, other = rows_of(BOXES), rows_of(BOXES)
    one.table["hit"] = 0.0
    other.table["hit"] = 1.0
    assert one.is_of_data_of(other)
    for column, value in (("patient_id", 2), ("image_height", 96), ("image_width", 128)):
        changed = Rows(one.table.assign(**{column: value}), one.about)
        assert not one.is_of_data_of(changed)


def test_rows_are_read_back_to_the_last_bit(tmp_path):
    rows = rows_of(BOXES)
    rows.table["patient_id"] = ["007", "P 1", "007", "1"]
    rows.table["probability"] = np.float32([0.1, 1 / 3, 1e-7, 1]).astype(np.float64)
    rows.table["threshold"] = [0.1, np.nan, 0.5, np.nan]
    write_rows(tmp_path, "0", "boxes", rows)
    again = read_rows(tmp_path / "0_boxes.csv")
    assert again.table.to_dict("list") == {
        **rows.table.to_dict("list"),
        "threshold": pytest.approx([0.1, np.nan, 0.5, np.nan], nan_ok=True),
    }
    assert again.is_of_data_of(rows)
    assert again.bboxes().tolist() == rows.bboxes().tolist()
