"""The four scripts, as a user runs them."""

import gc
import os
import shutil
import socket
import subprocess
import sys
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, TINY, TRAIN, rows_of, run_script, same_weights, sentence_of, start_script
from torch.nn.parallel import DistributedDataParallel

import pylon
from pylon.checkpoint import load_last, read_json, save_last
from pylon.chestxray14 import PATHOLOGIES
from pylon.model import Pylon

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="that option is right here")


def test_training_writes_its_files(trained):
    table = pd.read_csv(trained / "csv" / "pylon" / "0.csv")
    head = ["epoch", "lr", "train_loss", "val_loss"]
    assert list(table.columns) == [*head, *PATHOLOGIES, "weighted", "macro", "images_per_second", "seconds"]
    assert table["epoch"].tolist() == [1, 2]
    assert (table["lr"] == 1e-3).all()
    best = trained / "save" / "pylon" / "0" / "best"
    assert not pylon.load_pylon(best).training
    card = read_json(best / "training.json")
    assert card["class_names"] == list(PATHOLOGIES)
    assert card["epoch"] == table["epoch"][table["val_loss"].idxmin()]
    assert card["val_loss"] == pytest.approx(table["val_loss"].min())
    assert card["options"]["encoder_name"] == "tu-test_resnet"
    assert len(card["split_sha256"]) == 64
    assert card["thresholds"].keys() == set(PATHOLOGIES)
    assert all(threshold is None or 0 < threshold < 1 for threshold in card["thresholds"].values())
    assert load_last(trained / "save" / "pylon" / "0" / "last")["epoch"] == 2


def test_finished_run_says_so(trained, phantom):
    before = (trained / "save/pylon/0/best/model.safetensors").stat().st_mtime_ns
    done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, cwd=trained)
    assert "is finished: 2 epochs" in done.stdout
    assert (trained / "save/pylon/0/best/model.safetensors").stat().st_mtime_ns == before


def test_killed_run_goes_on_to_the_same_result(trained, phantom, tmp_path):
    process = start_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, cwd=tmp_path, out=tmp_path)
    while not (tmp_path / "save/pylon/0/last").exists():
        assert process.is_alive()
        process.join(0.02)
    process.kill()
    process.join()
    assert len(rows_of(tmp_path)) == 1
    done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, "--num-workers", 2, cwd=tmp_path)
    assert "resuming save/pylon/0 at epoch 2" in done.stdout
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")


def test_cache_changes_nothing_where_images_fit(trained, phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    options = ("--data", data, "--cache-size", 256)
    done = run_script("train.py", *options, "--epochs", 2, *TRAIN, "--num-workers", 1, cwd=tmp_path)
    assert f"images into {data}/cache/256" in done.stdout
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(trained))
    assert same_weights(tmp_path / "save/pylon/0", trained / "save/pylon/0")
    scores = {}
    for cwd, chosen in ((tmp_path, options), (trained, ("--data", phantom))):
        for script, name in (("eval_auc.py", "auroc.csv"), ("eval_loc.py", "0_boxes.csv")):
            run_script(script, *chosen, "--device", "cpu", "--num-workers", 0, "--seeds", 0, cwd=cwd)
            scores.setdefault(name, []).append(pd.read_csv(cwd / "csv/pylon" / name))
    for one, other in scores.values():
        pd.testing.assert_frame_equal(one, other)


def test_scoring_in_bf16(trained, phantom):
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0, "--seeds", 0)
    aurocs = []
    for precision in ("fp32", "bf16"):
        run_script("eval_auc.py", *options, "--precision", precision, cwd=trained)
        aurocs.append(pd.read_csv(trained / "csv/pylon/auroc.csv", index_col="seed").loc["0"].dropna())
    assert (aurocs[0] != aurocs[1]).any()  # it is another precision
    assert (aurocs[0] - aurocs[1]).abs().mean() < 0.1


def test_other_options_are_not_mixed(trained, phantom):
    done = run_script("train.py", "--data", phantom, "--epochs", 3, *TRAIN, "--lr", "5e-4", cwd=trained, code=2)
    assert "was trained with --lr 0.001 (now 0.0005); choose another --name" in sentence_of(done)
    assert len(rows_of(trained)) == 2


def test_learning_rate_falls_and_ends_the_run(phantom, tmp_path):
    few = shutil.copytree(phantom, tmp_path / "data")
    names = (few / "train_val_list.txt").read_text().split()[:20]
    (few / "train_val_list.txt").write_text("\n".join(names))
    schedule = ("--lr", 0.1, "--min-lr", 0.06, "--patience", 0, "--lr-factor", 0.5, "--epochs", 30)
    done = run_script("train.py", "--data", few, *TRAIN, *schedule, "--seed", 4, cwd=tmp_path)
    table = rows_of(tmp_path, 4)
    improved = table["val_loss"] < table["val_loss"].cummin().shift(fill_value=np.inf)
    assert 2 <= len(table) < 30
    assert not improved.iloc[-1]
    assert "finished" in done.stdout
    done = run_script("train.py", "--data", few, *TRAIN, *schedule, "--seed", 4, cwd=tmp_path)
    assert "is finished" in done.stdout


def test_evaluations(trained, phantom):
    shutil.copytree(trained / "save/pylon/0", trained / "save/pylon/7", dirs_exist_ok=True)
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0)
    done = run_script("eval_auc.py", *options, "--batch-size", 5, cwd=trained)
    table = pd.read_csv(trained / "csv/pylon/auroc.csv", index_col="seed")
    bounds = [f"{label} {end}" for label in ("0", "7", "mean") for end in ("low", "high")]
    assert table.index.tolist() == ["0", "7", "mean", "std", *bounds]
    assert (table.loc["0 low"].dropna() <= table.loc["0"].dropna()).all()
    assert (table.loc["0 high"].dropna() >= table.loc["0"].dropna()).all()
    assert (table.loc["0 high", "macro"] - table.loc["0 low", "macro"]) > 0.01
    assert list(table.columns) == [*PATHOLOGIES, "weighted", "macro"]
    assert (table.loc["0"].dropna() == table.loc["7"].dropna()).all()
    assert (table.loc["std"].dropna() == 0).all()
    assert f" | {table.loc['0', 'macro']:.6f} |" in done.stdout.splitlines()[2]

    done = run_script("eval_loc.py", *options, "--seeds", 7, cwd=trained)
    table = pd.read_csv(trained / "csv/pylon/point_localization.csv", index_col="seed")
    boxes = pd.read_csv(trained / "csv/pylon/7_boxes.csv")
    worth = ["image centre", "prior", "lift over prior", "lift over prior low", "lift over prior high"]
    worth += ["called present", "hit if called present"]
    assert table.index.tolist() == ["7", "mean", "std", "7 low", "7 high", *worth]
    lift = (table.loc["7"] - table.loc["prior"])[:-1]  # pooled, it leaves out boxes that have no prior
    assert table.loc["lift over prior"][:-1].to_numpy() == pytest.approx(lift.to_numpy(), nan_ok=True)
    assert "not compared with the published seeds: its test images are not those of NIH" in done.stdout
    card = read_json(trained / "save/pylon/7/best/training.json")
    thresholds = boxes["pathology"].map(card["thresholds"]).astype(float)
    called = boxes["probability"] >= thresholds
    assert table.loc["called present", "micro"] == pytest.approx(called[thresholds.notna()].mean())
    assert table.loc["hit if called present", "micro"] == pytest.approx(boxes["hit"][called].mean())
    assert table.loc["7", "micro"] == pytest.approx(boxes["hit"].mean())
    assert table.loc["7", "Mass"] == pytest.approx(boxes["hit"][boxes["pathology"] == "Mass"].mean())
    columns = ["image_id", "patient_id", "pathology", "probability", "row", "column", "hit"]
    columns += ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    assert list(boxes.columns) == columns
    assert boxes["probability"].between(0, 1).all()
    assert (boxes["image_id"].str[:8].astype(int) == boxes["patient_id"]).all()
    lone = boxes[boxes["hit"].isin([0, 1])]
    inside = lone["column"].between(lone["bbox_x"], lone["bbox_x"] + lone["bbox_w"] - 1)
    inside &= lone["row"].between(lone["bbox_y"], lone["bbox_y"] + lone["bbox_h"] - 1)
    assert (inside == (lone["hit"] == 1)).all()
    done = run_script("eval_auc.py", *options, "--seeds", 3, cwd=trained, code=2)
    assert "seed 3 of pylon has no checkpoint; save/pylon has seed 0, 7" in sentence_of(done)


def test_evaluating_a_file(trained, phantom):
    model = pylon.load_pylon(trained / "save/pylon/0/best")
    model.save_pretrained(trained / "exported")
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0)
    run_script("eval_auc.py", *options, "--checkpoint", "exported", cwd=trained)
    run_script("eval_auc.py", *options, "--checkpoint", "save/pylon/0/best", cwd=trained)
    exported, best = (pd.read_csv(trained / f"csv/{name}/auroc.csv") for name in ("exported", "pylon-0"))
    assert (exported["seed"][0], best["seed"][0]) == ("exported", "pylon-0")
    pd.testing.assert_frame_equal(exported.iloc[:, 1:], best.iloc[:, 1:])
    done = run_script("eval_loc.py", *options, "--checkpoint", "exported/model.safetensors", cwd=trained, code=2)
    assert "name the folder that it is in" in sentence_of(done)
    torch.save({"a": torch.zeros(1)}, trained / "model.pkl")
    done = run_script("eval_loc.py", *options, "--checkpoint", "model.pkl", cwd=trained, code=2)
    assert "model.pkl is of another network" in sentence_of(done)


def test_heatmaps(trained, phantom):
    (trained / "figs/all").mkdir(parents=True)
    (trained / "figs/all/99.jpg").touch()  # of an earlier, larger data set
    done = run_script("generate_heatmap.py", "--data", phantom, "--device", "cpu", "--num-workers", 0, cwd=trained)
    boxes = len((phantom / "BBox_List_2017.csv").read_text().splitlines()) - 1
    pages = sorted(int(path.stem) for path in (trained / "figs/all").iterdir())
    assert pages == list(range(1, -(-boxes // 10) + 1))
    assert "skipped 18 picked images" in done.stdout
    assert cv2.imread(str(trained / "figs/all/1.jpg")).shape[0] > 10 * 300


def test_picked_images_have_their_page(trained, phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    boxed = (data / "BBox_List_2017.csv").read_text().splitlines()[1].split(",")[0]
    (data / "images" / boxed).rename(data / "images" / "00000032_037.png")
    for path in (*data.glob("*.csv"), *data.glob("*.txt")):
        path.write_text(path.read_text().replace(boxed, "00000032_037.png"))
    out = ("--out", tmp_path / "figs")
    options = ("--data", data, "--device", "cpu", "--num-workers", 0, "--cache-size", 256, *out)
    run_script("generate_heatmap.py", *options, cwd=trained)
    assert (data / "cache/256/images.uint8").exists()
    assert [path.name for path in (tmp_path / "figs/picked").iterdir()] == ["1.jpg"]


@pytest.mark.parametrize("script", ["train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py"])
def test_empty_data(script, trained):
    (trained / "data").mkdir(exist_ok=True)
    sentence = sentence_of(run_script(script, *TINY[:4] if script == "train.py" else (), cwd=trained, code=2))
    assert "data lacks Data_Entry_2017.csv, train_val_list.txt, test_list.txt, images/" in sentence
    assert "https://nihcc.app.box.com" in sentence


def test_missing_image_is_named_before_the_run(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    lists = {name: (data / name).read_text().split() for name in ("train_val_list.txt", "test_list.txt")}
    (data / "images" / lists["test_list.txt"][0]).unlink()
    (data / "images" / lists["train_val_list.txt"][0]).unlink()
    sentence = sentence_of(run_script("train.py", "--data", data, *TRAIN, cwd=tmp_path, code=2))
    assert f"1 of {len(lists['train_val_list.txt'])} images are missing" in sentence
    assert lists["train_val_list.txt"][0] in sentence
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--image-size", "300"), "--image-size must be a multiple of 256, not 300"),
        (("--batch-size", "1"), "--batch-size must be at least 2, not 1"),
        (("--lr", "-1"), "--lr -1.0 and --min-lr"),
        (("--seed", "99999999999999999999"), "--seed must be below 2**32"),
        (("--name", "../elsewhere"), "--name '../elsewhere' must be the plain name"),
        (("--name", ".."), "--name '..' must be the plain name"),
        (("--up-layers", "3"), "--up-layers must be 1 or 2, not 3"),
        (("--up-modules", "4"), "--up-modules must be 0, 1, 2 or 3, not 4"),
        (("--model", "fnp"), "--model fnp is unknown; did you mean fpn"),
        (("--model", "fpn", "--no-attention"), "--no-attention are for --model pylon, not fpn"),
        (("--pool", "avg"), "--pool avg is not for --model pylon: avg is for backbone, max for all"),
        (("--encoder-name", "resnet500"), "--encoder-name resnet500 is unknown"),
        (("--encoder-name", "resnet51"), "--encoder-name resnet51 is unknown; did you mean resnet50"),
        (("--encoder-name", "tu-resnet51"), "--encoder-name tu-resnet51 is unknown; did you mean tu-resnet"),
        pytest.param(
            ("--device", "cuda"),
            "--device cuda: this machine or this build of torch has none; try --device auto",
            marks=NO_GPU,
        ),
        (("--precision", "fp16"), "--precision fp16 needs a CUDA device"),
        (("--cache-size", "128"), "--cache-size must be 0 or at least --image-size, 256"),
    ],
)
def test_bad_options(phantom, tmp_path, options, sentence):
    done = run_script("train.py", "--data", phantom, *TRAIN, *options, cwd=tmp_path, code=2)
    assert sentence in sentence_of(done)
    assert all(path.name.endswith(".lock") for path in tmp_path.rglob("*") if path.is_file())


def test_unwritable_folder_is_found_before_training(phantom, tmp_path):
    (tmp_path / "save").touch()  # a file where a folder should be
    done = run_script("train.py", "--data", phantom, *TRAIN, cwd=tmp_path, code=2)
    assert "cannot be written (Not a directory)" in sentence_of(done)
    assert "epoch" not in done.stdout


def test_help_shows_the_papers_values(tmp_path):
    shown = run_script("train.py", "--help", cwd=tmp_path).stdout
    for default in ("256", "64", "0.0001", "1e-06", "0.2", "40", "resnet50", "imagenet"):
        assert default in shown


def test_run_of_an_earlier_version_goes_on(trained, phantom):
    path = trained / "save/pylon/0/last"
    last = load_last(path)
    try:
        earlier = {key: value for key, value in last["options"].items() if key not in ("compile", "cache_size")}
        save_last(path, {**last, "options": earlier})
        done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, cwd=trained)
        assert "is finished" in done.stdout
        earlier = {key: value for key, value in earlier.items() if key not in ("model", "pool", "attention")}
        save_last(path, {**last, "options": earlier})
        other = ("--model", "backbone", "--name", "pylon")
        done = run_script("train.py", "--data", phantom, "--epochs", 2, *TRAIN, *other, cwd=trained, code=2)
        assert "was trained with --model pylon (now backbone)" in sentence_of(done)
    finally:
        save_last(path, last)


def test_compiling_without_a_compiler(phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    done = run_script("train.py", "--data", phantom, *TRAIN, "--compile", cwd=tmp_path, code=2)
    assert "--compile needs a GPU and a C++ compiler; install g++" in sentence_of(done)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiling_for_a_cpu(phantom, tmp_path):
    done = run_script("train.py", "--data", phantom, *TRAIN, "--compile", cwd=tmp_path, code=2)
    assert "--compile needs a GPU: torch cannot" in sentence_of(done)


def test_cache_smaller_than_the_input(trained, phantom):
    done = run_script("eval_auc.py", "--data", phantom, "--cache-size", 100, cwd=trained, code=2)
    assert "--cache-size must be 0 or at least 256, not 100" in sentence_of(done)


def test_two_processes_train_one_network(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    options = ("--data", data, "--epochs", 2, *TRAIN, "--cache-size", 256)
    said = run_as_two("train.py", *options, cwd=tmp_path, out=tmp_path, sabotage=build_otherwise)
    assert said.count("decoding") == 1
    assert said.count("epoch  2") == 1
    seeds = [(tmp_path / f"seeds-{rank}").read_text().split() for rank in (0, 1)]
    assert len({*seeds[0], *seeds[1]}) == 4  # of two epochs on two processes
    assert [path.name for path in (tmp_path / "csv/pylon").iterdir()] == ["0.csv"]
    assert sorted(path.name for path in (tmp_path / "save/pylon/0").iterdir()) == ["best", "last"]
    table = rows_of(tmp_path)
    assert table["epoch"].tolist() == [1, 2]
    assert read_json(tmp_path / "save/pylon/0/best/training.json")["val_loss"] == table["val_loss"].min()


def test_two_processes_score_as_one(trained, phantom, tmp_path):
    options = ("--data", phantom, "--device", "cpu", "--num-workers", "0", "--batch-size", "6", "--seeds", "0")
    for script, name in (("eval_auc.py", "auroc.csv"), ("eval_loc.py", "0_boxes.csv")):
        run_script(script, *options, cwd=trained)
        single = pd.read_csv(trained / "csv/pylon" / name)
        (trained / "csv/pylon" / name).unlink()
        if script == "eval_auc.py":
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            command = [*torchrun, str(ROOT / script), *map(str, options)]
            subprocess.run(command, cwd=trained, check=True, capture_output=True, timeout=300)
        else:
            run_as_two(script, *options, cwd=trained, out=tmp_path)
        pd.testing.assert_frame_equal(single, pd.read_csv(trained / "csv/pylon" / name), rtol=1e-6)


def build_otherwise():
    """With a parameter that no gradient reaches, as some encoders have, for whose gradient two processes would wait;
    and write down what torch's random numbers begin with, dropout's among them."""
    build = Pylon.__init__

    def build_with_spare(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.spare = torch.nn.Parameter(torch.zeros(3))
        self.register_forward_pre_hook(note_seed)

    def note_seed(model, _):
        if model.training:
            with open(f"seeds-{os.environ['RANK']}", "a") as file:
                file.write(f"{torch.initial_seed()}\n")

    Pylon.__init__ = build_with_spare


def be_one_of_two(variables, sabotage):
    """Know of the other process what torchrun says; fail if a wrapped network outlives its process group."""
    if sabotage is not None:
        sabotage()
    os.environ.update(variables)
    end_training = Accelerator.end_training

    def watched(accelerator):
        assert not [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
        end_training(accelerator)

    Accelerator.end_training = watched


def run_as_two(*arguments, cwd, out, sabotage=None):
    """As torchrun does, which starts each process afresh and so takes seconds longer; what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = []
    for rank in "01":
        (out / rank).mkdir(exist_ok=True)
        variables = {**address, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        be_it = partial(be_one_of_two, variables, sabotage)
        processes.append(start_script(*arguments, cwd=cwd, out=out / rank, sabotage=be_it))
    for process in processes:
        process.join(100)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # the one that waits for the other, if that has failed
    stdout, stderr = ("".join((out / rank / name).read_text() for rank in "01") for name in ("stdout", "stderr"))
    assert codes == [0, 0], stderr
    return stdout
