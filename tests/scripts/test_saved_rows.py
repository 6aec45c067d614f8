"""Rows written by the evaluations, and the tables recomputed from them with --from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import HEIGHT, OVERLAPPING, TRAIN, WIDTH, run_script, sentence_of

from pylon.checkpoints.training_json import read_json
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.sources import read_chestxray14
from pylon.evaluation.evaluate import open_networks, predict_logits
from pylon.options import ScoreOptions
from pylon.scoring.rows import Rows, read_rows, write_rows
from pylon.system.device import make_accelerator

CPU = ("--device", "cpu", "--num-workers", 0)
SCRIPTS = {"eval_auc.py": "auroc", "eval_loc.py": "point_localization"}
SEEDS = ("0", "1")


@pytest.fixture(scope="module")
def scored(trained, phantom):
    """The folder of `trained` with a second seed, both scored, and what each script printed."""
    run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, "--seed", 1, cwd=trained)
    said = {}
    for script in SCRIPTS:
        said[script] = run_script(script, "--data", phantom, *CPU, cwd=trained).stdout
    return trained, said


@pytest.fixture
def rows_alone(scored, tmp_path):
    """A folder with csv/pylon, but without networks and data."""
    shutil.copytree(scored[0] / "csv", tmp_path / "csv")
    return tmp_path


def cells_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_image_rows_hold_the_logits(scored, phantom, one_thread):
    cwd, _ = scored
    radiographs = read_chestxray14(phantom)
    test = radiographs.of_split("test").reset_index(drop=True)
    accelerator = make_accelerator("cpu", "fp32")
    options = ScoreOptions(data=phantom, num_workers=0)
    checkpoints = {seed: cwd / f"save/pylon/{seed}/best" for seed in SEEDS}
    networks = open_networks(options, checkpoints, radiographs, test, accelerator)
    seen = []
    for seed, model, card, loader in networks:
        scale = (card["mean"], card["std"])
        logits, _ = predict_logits(model, loader, accelerator, seed, *scale)
        rows = cells_of(cwd / f"csv/pylon/{seed}_images.csv")
        heads = [[f"{what}_{name}" for name in PATHOLOGIES] for what in ("label", "logit")]
        assert list(rows.columns) == ["image_id", "patient_id", *heads[0], *heads[1]]
        assert rows["image_id"].tolist() == test["image_id"].tolist()
        assert rows["patient_id"].astype(int).tolist() == test["patient_id"].tolist()
        assert (rows[heads[0]].astype(int).to_numpy() == test[list(PATHOLOGIES)]).all(axis=None)
        written = rows[heads[1]].map(float).to_numpy(np.float32)
        assert written.tobytes() == logits.tobytes()
        seen.append(written)
    assert len(seen) == 2
    assert (seen[0] != seen[1]).any()


def test_rows_have_metadata(scored):
    cwd, _ = scored
    for what in ("images", "boxes"):
        for seed in SEEDS:
            about = read_json(cwd / f"csv/pylon/{seed}_{what}.json")
            card = read_json(cwd / f"save/pylon/{seed}/best/training.json")
            assert about["class_names"] == list(PATHOLOGIES)
            assert (about["network"], about["precision"]) == ("pylon", "fp32")
            assert about.get("method") == ("map" if what == "boxes" else None)
            assert about["weights_sha256"] == card["weights_sha256"]
            assert about["card"]["options"] == card["options"]
            assert about["card"]["split_sha256"] == card["split_sha256"]
            assert about["list_sha256"] == card["list_sha256"]
            assert "not those of NIH" in about["not_official"]


@pytest.mark.parametrize("seed", SEEDS)
def test_box_rows(scored, phantom, seed):
    cwd, _ = scored
    rows = pd.read_csv(cwd / f"csv/pylon/{seed}_boxes.csv")
    boxes = read_chestxray14(phantom, with_boxes=True).boxes
    named = [f"bbox_{key}" for key in "xywh"]
    # the last box is the second one of its image and class
    first = boxes[:-1]
    assert (rows[["image_id", "pathology", *named]].to_numpy() == first.to_numpy()).all()
    more = rows["more_boxes"][rows["more_boxes"].notna()]
    assert more.tolist() == [" ".join(map(str, boxes.iloc[-1][list("xywh")]))]
    second = rows.loc[more.index, ["image_id", "pathology"]].to_numpy().tolist()
    assert second == [list(OVERLAPPING)]
    assert (rows[["image_height", "image_width"]] == [HEIGHT, WIDTH]).all(axis=None)
    thresholds = read_json(cwd / f"save/pylon/{seed}/best/training.json")["thresholds"]
    threshold = rows["pathology"].map(thresholds).astype(float)
    assert rows["threshold"].equals(threshold)
    called = (rows["probability"] >= threshold).astype(float)
    assert rows["called"].equals(called.where(threshold.notna()))
    assert called.nunique() == 2 or threshold.isna().any()


@pytest.mark.parametrize("seed", SEEDS)
def test_saved_maps_match_the_rows(scored, seed):
    cwd, _ = scored
    rows = pd.read_csv(cwd / f"csv/pylon/{seed}_boxes.csv")
    with np.load(cwd / f"csv/pylon/{seed}_maps.npz") as file:
        maps = file["maps"]
        assert file["image_id"].tolist() == rows["image_id"].tolist()
        assert file["pathology"].tolist() == rows["pathology"].tolist()
        about = read_json(cwd / f"csv/pylon/{seed}_boxes.json")
        assert str(file["rows_sha256"]) == about["rows_sha256"]
    assert maps.shape == (len(rows), 64, 64)
    assert maps.dtype == np.float32
    # up to rounding: on some processors a sigmoid depends on how many are computed at once
    np.testing.assert_allclose(maps.max(axis=(1, 2)), rows["probability"], rtol=1e-6)
    large = F.interpolate(torch.from_numpy(maps)[:, None], (256, 256), mode="bilinear")
    pixel = large.flatten(1).argmax(dim=1)
    assert (pixel // 256 * HEIGHT // 256).tolist() == rows["row"].tolist()
    assert (pixel % 256 * WIDTH // 256).tolist() == rows["column"].tolist()


@pytest.mark.parametrize("script", SCRIPTS)
def test_tables_are_recomputed_from_rows(scored, rows_alone, script):
    _, said = scored
    tables = [rows_alone / f"csv/pylon/{SCRIPTS[script]}.csv"]
    if script == "eval_loc.py":
        tables += [rows_alone / f"csv/pylon/maxima{ending}" for ending in (".csv", ".png")]
    before = [table.read_bytes() for table in tables]
    for table in tables:
        table.unlink()
    left = sorted(rows_alone.rglob("*"))
    done = run_script(script, "--from", "csv/pylon", cwd=rows_alone)
    assert [table.read_bytes() for table in tables] == before
    assert done.stdout == said[script]
    assert sorted(rows_alone.rglob("*")) == sorted([*left, *tables])


@pytest.mark.parametrize("script", SCRIPTS)
def test_comparisons_are_recomputed_from_rows(scored, phantom, rows_alone, script):
    cwd, _ = scored
    score = SCRIPTS[script]
    (rows_alone / "save/other").mkdir(parents=True)
    shutil.copytree(cwd / "save/pylon", rows_alone / "save/pylon")
    shutil.copytree(cwd / "save/pylon/1", rows_alone / "save/other/1")
    run_script(script, "--data", phantom, *CPU, "--name", "other", cwd=rows_alone)
    compare = ("--compare", "other")
    first = run_script(script, "--data", phantom, *CPU, *compare, cwd=rows_alone)
    shutil.rmtree(rows_alone / "save")
    tables = [rows_alone / f"csv/pylon/{score}{end}.csv" for end in ("", "_beside_other")]
    before = [table.read_bytes() for table in tables]
    for table in tables:
        table.unlink()
    done = run_script(script, "--from", "csv/pylon", *compare, cwd=rows_alone)
    assert [table.read_bytes() for table in tables] == before
    assert done.stdout == first.stdout
    shutil.rmtree(rows_alone / "csv/other")
    done = run_script(script, "--from", "csv/pylon", *compare, cwd=rows_alone, code=2)
    assert "csv/other has no rows" in sentence_of(done)


def test_comparison_tables_are_not_read_as_rows(rows_alone):
    """Not even if the other experiment is called images."""
    (rows_alone / "csv/pylon/auroc_beside_images.csv").write_text("class,images mean\n")
    run_script("eval_auc.py", "--from", "csv/pylon", cwd=rows_alone)


def test_seeds_option_selects_rows(rows_alone):
    run_script("eval_auc.py", "--from", "csv/pylon", "--seeds", 1, cwd=rows_alone)
    table = pd.read_csv(rows_alone / "csv/pylon/auroc.csv", index_col="seed")
    assert table.index.tolist() == ["1", "mean", "std", "1 low", "1 high"]
    done = run_script("eval_auc.py", "--from", "csv/pylon", "--seeds", 1, 5, cwd=rows_alone, code=2)
    assert "csv/pylon has no rows of seed 5; it has 0, 1" in sentence_of(done)


def spoil_csv(folder: Path) -> None:
    path = folder / "1_images.csv"
    path.write_text(path.read_text().replace("00", "01", 1))


def swap_json(folder: Path) -> None:
    shutil.copy(folder / "0_images.json", folder / "1_images.json")


def cut_json(folder: Path) -> None:
    path = folder / "1_images.json"
    path.write_text(path.read_text()[:100])


def empty_json(folder: Path) -> None:
    (folder / "1_images.json").write_text("[]")


def lose_json(folder: Path) -> None:
    (folder / "1_images.json").unlink()


def rename_class(folder: Path) -> None:
    path = folder / "1_images.json"
    path.write_text(path.read_text().replace('"Mass"', '"Masses"'))


def lose_card(folder: Path) -> None:
    path = folder / "1_images.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "card": None}))


def train_otherwise(folder: Path) -> None:
    path = folder / "1_images.json"
    about = json.loads(path.read_text())
    about["card"]["options"]["lr"] = 0.5
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_csv, "csv/pylon/1_images.csv has changed"),
        (swap_json, "csv/pylon/1_images.csv has changed"),
        (cut_json, "csv/pylon/1_images.json is damaged"),
        (empty_json, "csv/pylon/1_images.json is damaged"),
        (lose_json, "1_images.json"),
        (rename_class, "1_images.json"),
        (lose_card, "1_images.json"),
        (train_otherwise, ""),
    ],
)
def test_changed_rows_are_refused(rows_alone, spoil, sentence):
    folder = rows_alone / "csv/pylon"
    table = (folder / "auroc.csv").read_bytes()
    spoil(folder)
    done = run_script("eval_auc.py", "--from", "csv/pylon", cwd=rows_alone, code=2)
    assert sentence in sentence_of(done)
    assert (folder / "auroc.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--from", "csv"), "csv has no rows (SEED_boxes.csv)"),
        (("--from", "csv/nowhere"), "csv/nowhere has no rows (SEED_boxes.csv)"),
        (
            ("--from", "csv/pylon", "--method", "gradcam"),
            "csv/pylon has no rows (SEED_boxes_gradcam.csv)",
        ),
        (
            ("--from", "csv/pylon", "--name", "pylon"),
            "--name is for scoring networks; leave out either it or --from",
        ),
        (("--from", "csv/pylon", "--batch-size", 4), "--batch-size is for scoring networks"),
        (("--from", "csv/pylon", "--no-save-maps"), "--save-maps is for scoring networks"),
        (("--from", "csv/pylon", "--compare", "pylon"), "--compare pylon is the experiment itself"),
        (("--from", "csv/pylon", "--compare", "other"), "csv/other has no rows"),
    ],
)
def test_bad_options_with_from_are_refused(rows_alone, options, sentence):
    done = run_script("eval_loc.py", *options, cwd=rows_alone, code=2)
    assert sentence in sentence_of(done)


@pytest.mark.parametrize("script", SCRIPTS)
def test_rows_of_different_data_are_not_averaged(scored, phantom, rows_alone, tmp_path, script):
    cwd, _ = scored
    data = shutil.copytree(phantom, tmp_path / "data")
    boxed = read_chestxray14(phantom, with_boxes=True).boxes["image_id"][0]
    names = (data / "test_list.txt").read_text().split()
    names.remove(boxed)
    (data / "test_list.txt").write_text("\n".join(names))
    shutil.copytree(cwd / "save", rows_alone / "save")
    run_script(script, "--data", data, *CPU, "--seeds", 1, cwd=rows_alone)
    run_script(script, "--from", "csv/pylon", cwd=rows_alone)  # scores seed 1 only, like the table
    done = run_script(script, "--from", "csv/pylon", "--seeds", *SEEDS, cwd=rows_alone, code=2)
    sentence = "the rows of seed 1 in csv/pylon are of other images, labels or boxes than the first"
    assert sentence in sentence_of(done)


def test_rows_of_earlier_evaluations_are_left_out(rows_alone):
    """The table tells which seeds to score; without it, all seeds that have rows are scored."""
    folder = rows_alone / "csv/pylon"
    run_script("eval_loc.py", "--from", "csv/pylon", "--seeds", 1, cwd=rows_alone)
    table = (folder / "point_localization.csv").read_bytes()
    run_script("eval_loc.py", "--from", ".", cwd=folder)
    assert (folder / "point_localization.csv").read_bytes() == table
    (folder / "point_localization.csv").unlink()
    run_script("eval_loc.py", "--from", "csv/pylon/", cwd=rows_alone)
    table = pd.read_csv(folder / "point_localization.csv", index_col="seed")
    assert {"0", "1"} < set(table.index)


def test_outdated_maps_are_removed(scored, phantom, rows_alone):
    shutil.copytree(scored[0] / "save", rows_alone / "save")
    options = ("--data", phantom, *CPU, "--seeds", 1, "--no-save-maps")
    run_script("eval_loc.py", *options, cwd=rows_alone)
    left = sorted(path.name for path in (rows_alone / "csv/pylon").glob("*.npz"))
    assert left == ["0_maps.npz"]
    # without them, boxes and maxima are drawn
    picture = rows_alone / "csv/pylon/maxima.png"
    before = picture.read_bytes()
    run_script("eval_loc.py", "--from", "csv/pylon", "--seeds", 1, cwd=rows_alone)
    assert picture.read_bytes() not in (before, b"")


def change_about(folder: Path, label: str, **changes) -> None:
    """Rewrite rows with changed metadata."""
    rows = read_rows(folder / f"{label}_images.csv")
    write_rows(folder, label, "images", Rows(rows.table, {**rows.about, **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "bf16"}, "seeds 0 and 1 of pylon are of different networks or precisions"),
        (
            {"card": None, "config": {"model": "fpn"}},
            "seeds 0 and 1 of pylon are of different networks",
        ),
        ({"class_names": list(PATHOLOGIES[::-1])}, "of other images, labels or boxes"),
        ({"class_names": list(PATHOLOGIES[:3])}, "of other images, labels or boxes"),
    ],
)
def test_incompatible_rows_are_refused(rows_alone, changes, sentence):
    change_about(rows_alone / "csv/pylon", "1", **changes)
    done = run_script("eval_auc.py", "--from", "csv/pylon", cwd=rows_alone, code=2)
    assert sentence in sentence_of(done)


def test_missing_metadata_of_rows_is_noted(rows_alone):
    change_about(rows_alone / "csv/pylon", "1", card=None)
    done = run_script("eval_auc.py", "--from", "csv/pylon", cwd=rows_alone)
    assert "note: seed 1 of pylon has no training.json" in done.stdout


def test_only_the_first_process_prints_the_tables(rows_alone, monkeypatch):
    variables = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "::1"}
    for name, value in {**variables, "MASTER_PORT": 9}.items():
        monkeypatch.setenv(name, str(value))
    for script in SCRIPTS:
        assert run_script(script, "--from", "csv/pylon", cwd=rows_alone).stdout == ""
