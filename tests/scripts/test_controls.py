"""benchmarks/controls.py: what is reachable without the image."""

import pandas as pd
from conftest import run_script, sentence_of

from controls import Options, main


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """The rows of a printed Markdown table by class."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_controls_of_nihs_boxes(official, capsys):
    main(Options(data=official))
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 9
    of_all = rows["all"]
    counts = ("boxes", "findings", "images", "patients")
    assert [of_all[key] for key in counts] == ["984", "984", "880", "726"]
    scores = {"prior": "0.391", "centre": "0.216", "prior box": "0.214", "random maps": "0.107"}
    assert scores.items() <= of_all.items()  # as in docs/results.md, from eval_loc.py's rows
    assert rows["Nodule"]["median size, %"] == "7 x 7"


def test_controls_without_any_image(tmp_path):
    """Three patients, images of 1024 pixels, that are not there; the second has two boxes."""
    (tmp_path / "my.csv").write_text(
        "path,patient_id,split,Mass,Nodule\n"
        "a.png,1,test,1,0\nb.png,2,test,1,0\nc.png,3,test,1,1\nd.png,4,train,1,1\n"
    )
    boxes = [
        ("a.png", "Mass", 500, 500, 100, 50),  # holds the centre
        ("b.png", "Mass", 500, 500, 100, 50),
        ("b.png", "Mass", 0, 0, 300, 900),
        ("c.png", "Mass", 0, 0, 300, 900),
        ("d.png", "Mass", 0, 0, 1024, 1024),  # of training: not used
    ]
    table = pd.DataFrame(boxes, columns=["path", "class", *"xywh"])
    table.to_csv(tmp_path / "boxes.csv", index=False)
    options = ("--table", "my.csv", "--boxes", "boxes.csv")
    row = rows_of(run_script("benchmarks/controls.py", *options, cwd=tmp_path).stdout)["Mass"]
    counts = ("boxes", "findings", "images", "patients")
    assert [row[key] for key in counts] == ["4", "3", "3", "3"]
    # widths 100, 100, 300, 300 of 1024; heights 50, 50, 900, 900
    assert row["median size, %"] == "20 x 46"
    # a: favours c's and b's large box, a miss; b: a point of a's or of c's, a hit; c: a's and b's
    # small one, a miss
    assert row["prior"] == "0.333"
    assert row["centre"] == "0.667"
    assert row["whole image"] == "0.000"  # the large one covers .257 of the image
    assert row.keys() >= {"prior box", "random maps"}


def test_data_without_boxes_is_refused(tmp_path):
    (tmp_path / "my.csv").write_text("path,split,Mass\na.png,test,1\nb.png,train,0\n")
    (tmp_path / "boxes.csv").write_text("path,class,x,y,w,h\nb.png,Mass,1,2,3,4\n")
    options = ("--table", "my.csv", "--boxes", "boxes.csv")
    done = run_script("benchmarks/controls.py", *options, cwd=tmp_path, code=2)
    assert "boxes.csv has no boxes of test images" in sentence_of(done)
