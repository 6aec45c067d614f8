"""A table of one's own through all scripts, as a user types them."""

import os
import re
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import (
    HEIGHT,
    IMAGES,
    LONG,
    ROOT,
    TRAIN,
    WIDTH,
    rows_of,
    run_script,
    same_weights,
    sentence_of,
)
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from tables import write_table

import pylon
from pylon.checkpoints import checkpoint
from pylon.checkpoints.training_json import read_training_json
from pylon.data.cache import open_cache
from pylon.data.dataset import train_loader
from pylon.data.sources import read_radiographs
from pylon.data.transforms import train_transform
from pylon.options import DataOptions

EVALUATE = ("--device", "cpu", "--num-workers", 0)
NAMES = {"Effusion": "Effusion, left", "Mass": "Rundherd (groß)", "Nodule": "2"}


@pytest.fixture(scope="module")
def table(phantom, tmp_path_factory):
    """The phantom as a table, with boxes in both forms."""
    folder = tmp_path_factory.mktemp("table")
    write_table(phantom, folder)
    return folder


def test_training_on_a_table_is_the_same_bit_for_bit(table, trained, tmp_path):
    done = run_script("train.py", "--table", table / "my.csv", "--epochs", 2, *TRAIN, cwd=tmp_path)
    assert f"{table}/my.csv: " in done.stdout
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")
    assert rows_of(tmp_path).equals(rows_of(trained))


def test_16_bit_tiff_files_are_read_as_the_8_bits_they_hold(table, tmp_path):
    deep = pd.read_csv(table / "my.csv", dtype=str)
    for path in deep["path"]:
        values = cv2.imread(str(table / path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257
        cv2.imwrite(str(tmp_path / f"{Path(path).stem}.tif"), values)
    deep["path"] = [f"{Path(path).stem}.tif" for path in deep["path"]]
    deep.to_csv(tmp_path / "my.csv", index=False)
    batches = []
    for folder in (table, tmp_path):
        images = read_radiographs(DataOptions(table=folder / "my.csv")).of_split("train")
        cache = open_cache(images, tmp_path / "cache", 256, 0)
        loader, _ = train_loader(
            images, ["Mass"], train_transform(256), 100, 0, seed=0, cache=cache
        )
        batches.append(next(iter(loader)))
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert torch.equal(batches[0]["label"], batches[1]["label"])


@pytest.mark.parametrize("boxes", ["boxes.csv", pytest.param("coco.json", marks=LONG)])
def test_scores_of_a_table_are_those_of_nihs_layout(table, phantom, trained, tmp_path, boxes):
    shutil.copytree(trained / "save", tmp_path / "save")
    tables = {"eval_auc.py": "auroc.csv", "eval_loc.py": "point_localization.csv"}
    for script, name in tables.items():
        run_script(script, "--data", phantom, *EVALUATE, cwd=tmp_path)
        expected = (tmp_path / "csv/pylon" / name).read_bytes()
        of_table = ("--table", table / "my.csv", "--name", "pylon", *EVALUATE)
        more = ("--boxes", table / boxes) if script == "eval_loc.py" else ()
        run_script(script, *of_table, *more, cwd=tmp_path)
        assert (tmp_path / "csv/pylon" / name).read_bytes() == expected
        rows = "images" if script == "eval_auc.py" else "boxes"
        ids = pd.read_csv(tmp_path / f"csv/pylon/0_{rows}.csv")["image_id"]
        assert ids.str.contains("images/").all()  # as in the table


@pytest.fixture(scope="module")
def own(phantom, tmp_path_factory):
    """Three classes of own names, a fifth of the labels unknown, patients and boxes of its own."""
    folder = tmp_path_factory.mktemp("own")
    table = write_table(phantom, folder)
    few = table["split"].ne("train") | (table.groupby("split").cumcount() < 24)  # 512 is slow
    table = table.loc[few, ["path", "patient_id", "split", *NAMES]].rename(columns=NAMES)
    classes = list(NAMES.values())
    unknown = np.random.default_rng(0).random((len(table), 3)) < 0.2
    table[classes] = table[classes].astype(float).mask(unknown)
    table["patient_id"] = "P-" + table["patient_id"].astype(str)
    table.assign(age=63.5).to_csv(folder / "my.csv", index=False)

    # two boxes of one class in one image
    boxes = pd.read_csv(folder / "boxes.csv").replace({"class": NAMES})
    boxes = boxes[boxes["class"].isin(classes)]
    second = boxes.iloc[:1].assign(x=1, y=2, w=3, h=4)
    pd.concat([boxes, second]).to_csv(folder / "boxes.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def trained_on_own(own, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("trained_on_own")
    options = ("--table", own / "my.csv", "--ignore-columns", "age", "--normalize", "data")
    options = (*options, "--image-size", 512, "--name", "mine", "--epochs", 1, *TRAIN)
    done = run_script("train.py", *options, cwd=cwd)
    assert "labels in" in done.stdout
    assert "intensities of the training images: mean " in done.stdout
    return cwd


def test_checkpoint_explains_itself(own, trained_on_own):
    model = pylon.load_pylon(trained_on_own / "save/mine/0/best")
    assert model.description.class_names == tuple(NAMES.values())
    assert model.description.image_size == 512
    # the pixels of the training images alone
    table = pd.read_csv(own / "my.csv")
    levels = {}
    for split in ("train", "val"):
        paths = [str(own / path) for path in table["path"][table["split"] == split]]
        images = [cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths]
        large = [cv2.resize(image, (512, 512), interpolation=cv2.INTER_CUBIC) for image in images]
        levels[split] = np.stack(large) / 255
    assert model.description.mean == pytest.approx(levels["train"].mean(), abs=1e-6)
    assert model.description.std == pytest.approx(levels["train"].std(), abs=1e-6)
    assert abs(levels["train"].mean() - levels["val"].mean()) > 1e-3
    assert list(model.description.thresholds) == list(NAMES.values())
    card = read_training_json(trained_on_own / "save/mine/0/best")
    assert card["mean"] == model.description.mean
    assert card["options"]["ignore_columns"] == ["age"]


def test_unknown_labels_do_not_count_in_auroc(own, trained_on_own):
    options = ("--table", own / "my.csv", "--name", "mine", *EVALUATE)
    run_script("eval_auc.py", *options, cwd=trained_on_own)
    folder = trained_on_own / "csv/mine"
    written = (folder / "auroc.csv").read_bytes()
    scores = pd.read_csv(folder / "auroc.csv", index_col="seed")
    rows = pd.read_csv(folder / "0_images.csv")
    assert rows["patient_id"].str.startswith("P-").all()
    table = pd.read_csv(own / "my.csv").query("split == 'test'")
    areas = []
    for name in NAMES.values():
        labels = table[name].to_numpy()
        np.testing.assert_array_equal(rows[f"label_{name}"], labels)
        known = ~np.isnan(labels)
        assert not known.all()
        areas.append(roc_auc_score(labels[known], rows[f"logit_{name}"][known]))
        assert scores.loc["0", name] == areas[-1]
        assert scores.loc["0 low", name] < scores.loc["0 high", name]
    assert scores.loc["0", "macro"] == pytest.approx(np.mean(areas), abs=1e-12)
    # again from the rows alone
    run_script("eval_auc.py", "--from", "csv/mine", cwd=trained_on_own)
    assert (folder / "auroc.csv").read_bytes() == written


def test_classes_in_common_are_scored_as_with_all(own, trained_on_own, tmp_path):
    options = ("--name", "mine", *EVALUATE)
    run_script("eval_auc.py", "--table", own / "my.csv", *options, cwd=trained_on_own)
    rows = pd.read_csv(trained_on_own / "csv/mine/0_images.csv")
    *_, first, last = NAMES.values()
    table = pd.read_csv(own / "my.csv").rename(columns={first: "ours"})
    table["path"] = [str(own / path) for path in table["path"]]
    table[["path", "split", last, "ours"]].to_csv(tmp_path / "my.csv", index=False)
    pd.DataFrame({"network": [first], "data": ["ours"]}).to_csv(tmp_path / "map.csv", index=False)
    data = ("--table", tmp_path / "my.csv", "--class-map", tmp_path / "map.csv")
    done = run_script("eval_auc.py", *data, *options, cwd=trained_on_own)
    assert "note: 2 of the 3 classes of save/mine/0/best are scored" in done.stdout
    common = pd.read_csv(trained_on_own / "csv/mine/0_images.csv")
    columns = [f"{kind}_{name}" for kind in ("label", "logit") for name in (first, last)]
    assert common.columns[2:].tolist() == columns
    pd.testing.assert_frame_equal(common[columns], rows[columns])


def test_several_boxes_of_a_class_are_one_row(own, trained_on_own):
    options = ("--table", own / "my.csv", "--boxes", own / "boxes.csv", "--name", "mine")
    done = run_script("eval_loc.py", *options, *EVALUATE, cwd=trained_on_own)
    folder = trained_on_own / "csv/mine"
    written = (folder / "point_localization.csv").read_bytes()
    boxes = pd.read_csv(own / "boxes.csv")
    rows = pd.read_csv(folder / "0_boxes.csv", keep_default_na=False)
    # the last two are second boxes: the phantom's, which overlaps the first, and ours
    assert len(rows) == len(boxes) - 2
    assert f"{len(rows)} findings ({len(boxes)} boxes) on " in done.stdout
    assert rows["image_id"].tolist() == boxes["path"][:-2].tolist()
    for key in "xywh":
        assert rows[f"bbox_{key}"].tolist() == boxes[key][:-2].tolist()
    second = {
        (box["path"], box["class"]): " ".join(str(box[key]) for key in "xywh")
        for box in boxes[-2:].to_dict("records")
    }
    pairs = zip(rows["image_id"], rows["pathology"], strict=True)
    assert rows["more_boxes"].tolist() == [second.pop(pair, "") for pair in pairs]
    assert second == {}
    assert np.load(folder / "0_maps.npz")["maps"].shape == (len(rows), 128, 128)
    run_script("eval_loc.py", "--from", "csv/mine", cwd=trained_on_own)
    assert (folder / "point_localization.csv").read_bytes() == written
    done = run_script("generate_heatmap.py", *options, *EVALUATE, cwd=trained_on_own)
    assert "skipped" not in done.stdout  # nothing about the paper's images
    assert sorted(path.name for path in (trained_on_own / "figs").iterdir()) == ["all"]


def test_copied_checkpoint_gives_the_same_scores(own, trained_on_own, tmp_path):
    best = trained_on_own / "save/mine/0/best"
    pylon.load_pylon(best).save_pretrained(tmp_path / "shared/name")
    logits = []
    for path, cwd in ((best, trained_on_own), (tmp_path / "shared/name", tmp_path)):
        options = ("--table", own / "my.csv", "--checkpoint", path, "--name", "copy", *EVALUATE)
        run_script("eval_auc.py", *options, cwd=cwd)
        (rows,) = (cwd / "csv/copy").glob("*_images.csv")
        logits.append(rows.read_bytes())
    assert logits[0] == logits[1]


def test_code_of_the_page_predicts_as_the_evaluations_do(own, trained_on_own, monkeypatch, capsys):
    options = ("--table", own / "my.csv", "--name", "mine", *EVALUATE)
    run_script("eval_auc.py", *options, cwd=trained_on_own)
    row = pd.read_csv(trained_on_own / "csv/mine/0_images.csv").iloc[0]
    (trained_on_own / "images").mkdir(exist_ok=True)
    shutil.copy(own / row["image_id"], trained_on_own / "images/1004.png")
    page = (ROOT / "docs/own_data.md").read_text()
    (code,) = re.findall(r"^```python\n(import pylon\n.*?)^```$", page, re.M | re.S)
    monkeypatch.chdir(trained_on_own)
    names = {}
    exec(code, names)
    expected = row[[f"logit_{name}" for name in NAMES.values()]].to_numpy(float)
    scores = [names["prediction"].finding(name)["score"] for name in NAMES.values()]
    np.testing.assert_allclose(scores, expit(expected), atol=1e-5)
    assert names["prediction"].maps.shape == (3, 128, 128)
    assert "'present': " in capsys.readouterr().out
    assert (trained_on_own / "copy/training.json").exists()


def test_data_without_a_class_of_the_checkpoint_is_refused(own, table, phantom, trained_on_own):
    best = trained_on_own / "save/mine/0/best"
    options = ("--checkpoint", best, "--name", "other", *EVALUATE)
    done = run_script("eval_auc.py", "--table", table / "my.csv", *options, cwd=own, code=2)
    assert f"my.csv has no class of {best}, which knows Effusion, left" in sentence_of(done)
    done = run_script("eval_auc.py", "--data", phantom, *options, cwd=own, code=2)
    assert f"has no class of {best}, which knows Effusion, left" in sentence_of(done)
    done = run_script("eval_loc.py", "--table", own / "my.csv", *options, cwd=own, code=2)
    assert "has no boxes; give them with --boxes FILE, csv or COCO" in sentence_of(done)


@LONG
def test_killed_run_resumes_with_its_own_normalisation(own, tmp_path):
    options = ("--table", own / "my.csv", "--classes", "2", "--normalize", "data")
    options = (*options, *TRAIN, "--epochs", 2)
    for cwd, code in (("whole", 0), ("killed", -signal.SIGKILL)):
        (tmp_path / cwd).mkdir()
        sabotage = die_after_the_first_epoch if code else None
        run_script("train.py", *options, cwd=tmp_path / cwd, code=code, sabotage=sabotage)
    done = run_script("train.py", *options, cwd=tmp_path / "killed")
    assert "resuming save/pylon/0 at epoch 2" in done.stdout
    assert "intensities" not in done.stdout  # not measured again
    assert same_weights(tmp_path / "whole/save/pylon/0", tmp_path / "killed/save/pylon/0")
    assert rows_of(tmp_path / "whole").equals(rows_of(tmp_path / "killed"))
    cards = [
        read_training_json(tmp_path / cwd / "save/pylon/0/best") for cwd in ("whole", "killed")
    ]
    assert cards[0] == cards[1]


def die_after_the_first_epoch():
    save = checkpoint.save_last

    def save_and_die(path, state):
        save(path, state)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_last = save_and_die


def test_starting_from_another_checkpoint_and_from_a_file(table, own, trained, tmp_path):
    """Classes of the same name keep their rows of the head."""
    best = trained / "save/pylon/0/best"
    once = ("--epochs", 1, *TRAIN)
    some = ("--table", table / "my.csv", "--classes", "Mass", "Edema")
    done = run_script("train.py", *some, "--init-from", best, *once, cwd=tmp_path)
    assert f"tensors taken from {best}" in done.stdout
    assert "new classes" not in done.stdout
    mine = ("--table", own / "my.csv", "--classes", "2", "--name", "mine")
    done = run_script("train.py", *mine, "--init-from", best, *once, cwd=tmp_path)
    assert "new classes: 2; random head" in done.stdout

    # a file of weights
    weights = safetensors.torch.load_file(best / "model.safetensors")
    torch.save(weights, tmp_path / "weights.pth")
    options = ("--encoder-name", "tu-test_resnet", "--encoder-weights", "weights.pth", *TRAIN[4:])
    options = (*some, *options, "--name", "file", "--epochs", 1)
    done = run_script("train.py", *options, cwd=tmp_path)
    assert "tensors of the encoder taken from weights.pth" in done.stdout


def test_wrong_starts_are_refused_before_anything_is_written(table, trained, tmp_path):
    best = trained / "save/pylon/0/best"
    (tmp_path / "cut.safetensors").write_bytes((best / "model.safetensors").read_bytes()[:999])
    network = TRAIN[4:]
    for options, sentence in (
        (("--encoder-name", "resnet18", "--init-from", best), "has the encoder tu-test_resnet"),
        (
            ("--encoder-name", "tu-test_resnet", "--encoder-weights", "cut.safetensors"),
            "is damaged",
        ),
        (("--encoder-name", "tu-test_resnet", "--encoder-weights", "no.pth"), "no such file"),
        ((*TRAIN[:4], "--init-from", "save/no/0/best"), "there is no checkpoint at save/no/0/best"),
        (("--encoder-name", "resnet18", "--encoder-weights", "ssl", "--init-from", best), "takes"),
        (("--encoder-name", "resnet81", "--encoder-weights", "none"), "did you mean resnet18"),
        (("--encoder-name", "tu-test_resnet", "--encoder-weights", "imagnet"), "must be imagenet"),
        ((*TRAIN[:4], "--cache-dir", "fast"), "--cache-dir needs --cache-size"),
    ):
        options = ("--table", table / "my.csv", *options, *network)
        done = run_script("train.py", *options, cwd=tmp_path, code=2)
        assert sentence in sentence_of(done)
    assert not list(tmp_path.glob("save/*/*/best"))


def test_faulty_tables_leave_everything_as_it_is(table, trained, tmp_path):
    """One fault through each script; the others are in tests/data/test_table.py."""
    data = shutil.copytree(table, tmp_path / "data")
    text = (data / "my.csv").read_text()
    (data / "my.csv").write_text(text.replace("train", "training"))
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    table_options = ("--table", data / "my.csv")
    for script, options in (
        ("train.py", TRAIN),
        ("eval_auc.py", EVALUATE),
        ("eval_loc.py", (*EVALUATE, "--boxes", data / "boxes.csv")),
        ("generate_heatmap.py", (*EVALUATE, "--boxes", data / "boxes.csv")),
        ("tools/check_data.py", ("--num-workers", 0)),
    ):
        done = run_script(script, *table_options, *options, cwd=trained, code=2)
        assert "split is 'training' in row" in done.stdout + sentence_of(done)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_check_data_counts_and_finds_faults(own, tmp_path):
    options = ("--ignore-columns", "age", "--num-workers", 0, "--boxes", own / "boxes.csv")
    done = run_script("tools/check_data.py", "--table", own / "my.csv", *options, cwd=own)
    assert done.stdout.endswith("\nready\n")
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    counts = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    table = pd.read_csv(own / "my.csv")
    test = table[table["split"] == "test"]
    assert counts["images"] == [str((table["split"] == s).sum()) for s in ("train", "val", "test")]
    known = test["Rundherd (groß)"].dropna()
    assert counts["Rundherd (groß)"][2] == f"{int(known.sum())} of {len(known)}"

    # a missing image, a truncated one, a box beyond its image and one without its label
    folder = tmp_path / "faulty"
    table["path"] = [os.path.abspath(own / path) for path in table["path"]]
    folder.mkdir()
    (folder / "cut.png").write_bytes(b"\x89PNG")
    table.loc[0, "path"] = "nowhere.png"
    table.loc[1, "path"] = "cut.png"
    table.to_csv(folder / "my.csv", index=False)
    last = table[(table["split"] == "test") & (table["2"] == 0)].iloc[-1]
    boxes = f"path,class,x,y,w,h\n{last['path']},2,90,100,7,10\n"
    (folder / "boxes.csv").write_text(boxes)
    options = ("--ignore-columns", "age", "--num-workers", 0, "--boxes", folder / "boxes.csv")
    done = run_script(
        "tools/check_data.py", "--table", folder / "my.csv", *options, cwd=own, code=2
    )
    for fault in (
        "nowhere.png is missing; correct the paths (relative ones start at",
        "cut.png cannot be read as an image",
        f"reaches beyond the image ({WIDTH} x {HEIGHT})",
        "has a box of 2 but not that label",
    ):
        assert fault in done.stdout
    assert "fix what is listed above (4)" in sentence_of(done)


@LONG
def test_two_tables_share_a_folder_of_caches(own, table, trained, tmp_path):
    """Their images have the same names in different folders."""
    other = shutil.copytree(table, tmp_path / "other")
    images = pd.read_csv(table / "my.csv")["path"]
    moved = [os.path.join("images", os.path.basename(path)) for path in images]
    (other / "images").mkdir()
    for path, new in zip(images, moved, strict=True):
        shutil.copy(table / path, other / new)
    text = (table / "my.csv").read_text()
    for path, new in zip(images, moved, strict=True):
        text = text.replace(path, new)
    (other / "my.csv").write_text(text)
    shutil.copytree(trained / "save", tmp_path / "save")
    cached = ("--cache-size", 256, "--cache-dir", tmp_path / "fast", "--name", "pylon")
    said = []
    for folder in (table, other, table):
        options = ("--table", folder / "my.csv", *cached, *EVALUATE)
        said.append(run_script("eval_auc.py", *options, cwd=tmp_path).stdout)
    assert ["decoding" in each for each in said] == [True, True, False]
    assert len(pd.read_csv(tmp_path / "fast/256/index.csv")) == 30
    assert not (other / "cache").exists()


def test_drawn_split_holds_for_the_table_of_training_alone(phantom, tmp_path):
    table = write_table(phantom, tmp_path / "mine").drop(columns="split")
    path = tmp_path / "mine/my.csv"
    table.to_csv(path, index=False)
    done = run_script("train.py", "--table", path, "--epochs", 1, *TRAIN, cwd=tmp_path)
    assert "my.csv has no column split: of its patients" in done.stdout
    options = ("--table", path, "--name", "pylon", *EVALUATE)
    assert "note: " in run_script("eval_auc.py", *options, cwd=tmp_path).stdout
    table[1:].to_csv(path, index=False)
    done = run_script("eval_auc.py", *options, cwd=tmp_path, code=2)
    said = "the table has no column split, and save/pylon/0/best was not trained on it as it is"
    assert said in sentence_of(done)
    start = ("--table", path, "--init-from", "save/pylon/0/best", "--name", "next")
    done = run_script("train.py", *start, *TRAIN, cwd=tmp_path, code=2)
    assert said in sentence_of(done)
    table.assign(split="test").to_csv(path, index=False)
    assert f"{IMAGES} test images" in run_script("eval_auc.py", *options, cwd=tmp_path).stdout


def test_check_data_says_what_would_be_refused_or_blank(own, tmp_path):
    table = pd.read_csv(own / "my.csv").drop(columns="age")
    table["path"] = [os.path.abspath(own / path) for path in table["path"]]
    val = table["split"] == "val"
    table.loc[val, "2"] = 0
    table.loc[val.idxmax(), list(NAMES.values())[:2]] = 1  # so that only "2" lacks positives
    table = table[table["split"] != "test"]
    table.to_csv(tmp_path / "my.csv", index=False)
    options = ("--num-workers", 0, "--boxes", tmp_path / "boxes.csv")
    boxes = f"path,class,x,y,w,h\n{table['path'].iloc[0]},2,1,1,6,10\n"
    (tmp_path / "boxes.csv").write_text(boxes)
    done = run_script("tools/check_data.py", "--table", "my.csv", *options, cwd=tmp_path)
    for note in (
        "boxes.csv has no boxes of classes on test images, so eval_loc.py and",
        "note: no positive image of the split val (no threshold): 2",
        "note: no positive image of the split test (no AUROC): Effusion, left, Rundherd (groß), 2",
    ):
        assert note in done.stdout
    done = run_script("eval_auc.py", "--table", "my.csv", *EVALUATE, cwd=tmp_path, code=2)
    table[table["split"] == "train"].to_csv(tmp_path / "my.csv", index=False)
    done = run_script("tools/check_data.py", "--table", "my.csv", *options, cwd=tmp_path)
    assert "note: train.py would refuse it: my.csv has 24 training and 0 validation" in done.stdout
