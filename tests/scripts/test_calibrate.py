"""calibrate.py, as a user runs it."""

import pandas as pd
from conftest import run_script, sentence_of
from tables import write_table

from pylon.checkpoints.training_json import read_training_json

CPU = ("--device", "cpu", "--num-workers", 0)


def test_thresholds_are_fitted_and_weights_unchanged(trained, phantom, tmp_path):
    table = write_table(phantom, tmp_path / "mine")
    table = table.drop(columns="Edema").rename(columns={"Effusion": "Fluid"})
    table["Mass"] = 0
    table.to_csv(tmp_path / "mine/my.csv", index=False, sep=";")
    (tmp_path / "map.csv").write_text("network,data\nEffusion,Fluid\n")
    checkpoint = trained / "save/pylon/0/best"
    options = ("--table", "mine/my.csv", "--class-map", "map.csv", "--checkpoint", checkpoint)
    asked = ("--operating-point", "specificity=.3", "--out", "save/mine/0/best")
    done = run_script("calibrate.py", *options, *asked, *CPU, cwd=tmp_path)
    assert "note: without labels, neither threshold nor calibration: Edema" in done.stdout
    assert "note: Mass gets no threshold: no positive image" in done.stdout
    assert "| Effusion " in done.stdout

    # the card
    before = read_training_json(checkpoint)
    card = read_training_json(tmp_path / "save/mine/0/best")
    assert card["weights_sha256"] == before["weights_sha256"]
    assert card["operating_point"] == "specificity=.3"
    val = table[table["split"] == "val"]
    assert card["fitted_on"]["images"] == len(val)
    assert card["fitted_on"]["positives"]["Effusion"] == int(val["Fluid"].sum())
    assert card["thresholds"]["Edema"] is card["calibration"]["Edema"] is None
    assert card["thresholds"]["Effusion"] != before["thresholds"]["Effusion"]
    readme = (tmp_path / "save/mine/0/best/README.md").read_text()
    assert f"fitted after training, to {len(val)} images" in readme

    # predict.py calls by it
    predicted = ("--checkpoint", "save/mine/0/best", "--html", *CPU)
    image = next((phantom / "images").iterdir())
    run_script("predict.py", image, *predicted, cwd=tmp_path)
    rows = pd.read_csv(tmp_path / "predictions/predictions.csv", index_col="label")
    fluid = rows.loc["Effusion"]
    assert fluid["present"] == (fluid["score"] >= card["thresholds"]["Effusion"])
    assert pd.isna(rows.loc["Edema", "present"])
    files = (tmp_path / "predictions/html").glob("*.*")
    page = "".join(path.read_text() for path in files)
    assert "Called present at the operating point specificity=.3" in page

    # a folder that exists is left alone
    done = run_script("calibrate.py", *options, *asked, *CPU, cwd=tmp_path, code=2)
    assert "save/mine/0/best exists; choose another folder with --out" in sentence_of(done)


def test_network_and_folder_must_be_named(tmp_path):
    done = run_script("calibrate.py", "--out", "a", cwd=tmp_path, code=2)
    assert "name the network with --checkpoint, and the new folder" in sentence_of(done)
