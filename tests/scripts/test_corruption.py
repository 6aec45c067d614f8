"""Randomly damaged files, and malicious ones. PYLON_CORRUPTIONS=500 tests more damage."""

import os
import pickle
import random
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import LONG, TRAIN, rows_of, run_script, same_weights, sentence_of
from huggingface_hub.errors import EntryNotFoundError

from pylon.model import Pylon

CORRUPTIONS = int(os.environ.get("PYLON_CORRUPTIONS", "12"))
EVALUATE = ("--device", "cpu", "--num-workers", "0")
TABLES = {"eval_auc.py": "csv/pylon/auroc.csv", "eval_loc.py": "csv/pylon/0_boxes.csv"}
LISTS = ("Data_Entry_2017.csv", "BBox_List_2017.csv", "train_val_list.txt", "test_list.txt")


def damaged(content: bytes, numbers: random.Random) -> bytes:
    """Some bytes flipped, overwritten, cut off, cut out or swapped."""
    a, b = sorted(numbers.randrange(len(content)) for _ in range(2))
    kind = numbers.choice(["flip", "overwrite", "cut", "cut out", "swap"])
    if kind == "cut":
        return content[:a]
    if kind == "cut out":
        return content[:a] + content[min(b, a + 40) :]
    if kind == "swap":
        return (
            content[:a]
            + content[b : b + 1]
            + content[a + 1 : b]
            + content[a : a + 1]
            + content[b + 1 :]
        )
    changed = bytearray(content)
    for k in (a, b) if numbers.random() < 0.3 else (a,):
        changed[k] = (
            changed[k] ^ (1 << numbers.randrange(8)) if kind == "flip" else numbers.randrange(256)
        )
    return bytes(changed)


@pytest.fixture(scope="module")
def clean(trained, phantom):
    """The tables of the undamaged folder, by script."""
    tables = {}
    for script, table in TABLES.items():
        done = run_script(script, "--data", phantom, *EVALUATE, cwd=trained)
        assert "note: save" not in done.stdout
        tables[script] = (trained / table).read_bytes()
    return tables


@pytest.mark.parametrize("number", range(CORRUPTIONS))
def test_damage_is_reported_or_harmless(trained, phantom, clean, tmp_path, number):
    numbers = random.Random(number)
    data = shutil.copytree(phantom, tmp_path / "data")
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    images = [f"images/{name}" for name in (data / "test_list.txt").read_text().split()]
    best = [
        cwd / "save/pylon/0/best" / name
        for name in ("config.json", "model.safetensors", "training.json")
    ]
    kinds = [
        [data / name for name in LISTS],
        [data / name for name in images],
        best,
        [cwd / "save/pylon/0/last"],
    ]
    path = numbers.choice(numbers.choice(kinds))
    path.write_bytes(damaged(path.read_bytes(), numbers))
    if path.name == "last" or numbers.random() < 0.1:
        done = run_script("train.py", "--data", data, *TRAIN, "--epochs", 2, cwd=cwd, code=None)
        assert done.returncode in (0, 2), done.stderr
        if done.returncode == 2:
            print(f"outcome: {path.name}: {sentence_of(done)}")
        else:
            print(f"outcome: {path.name}: the same result")
            assert path.parent.name == "best" or same_weights(
                cwd / "save/pylon/0", trained / "save/pylon/0"
            )
            assert rows_of(cwd).equals(rows_of(trained))
        return
    for script, table in TABLES.items():
        done = run_script(script, "--data", data, *EVALUATE, cwd=cwd, code=None)
        assert done.returncode in (0, 2), done.stderr
        if done.returncode == 2:
            print(f"outcome: {path.name}: {sentence_of(done)}")
        elif "note: save/pylon/0/best was trained with other versions of" in done.stdout:
            print(f"outcome: {path.name}: noted")
        else:
            print(f"outcome: {path.name}: the same result")
            assert (cwd / table).read_bytes() == clean[script], path


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


HARMFUL = (
    *(f"data/{name}" for name in LISTS),
    "data/original_split_train.csv",
    "data/images",
    "data/cache/256/index.csv",
    "data/cache/256/images.uint8",
    "cwd/save/pylon/0/last",
    "cwd/save/pylon/0/best/config.json",
    "cwd/save/pylon/0/best/model.safetensors",
    "cwd/save/pylon/0/best/training.json",
    "cwd/model.pkl",
)


OTHERS = [pytest.param(form, marks=LONG) for form in ("torch", "numpy")]


@pytest.mark.parametrize("form", ["pickle", *OTHERS])
@pytest.mark.parametrize("name", HARMFUL)
def test_no_file_can_run_a_command(trained, phantom, tmp_path, name, form):
    shutil.copytree(phantom, tmp_path / "data")
    cwd = shutil.copytree(trained, tmp_path / "cwd")
    harm = tmp_path / "harm"
    cached = ("--cache-size", 256) if "cache" in name else ()
    if cached:
        run_script("eval_auc.py", "--data", tmp_path / "data", *EVALUATE, *cached, cwd=cwd)
    targets = list((tmp_path / name).iterdir()) if name == "data/images" else [tmp_path / name]
    for target in targets:
        write_harm(target, form, Command(harm))
    if name.endswith("last"):
        runs = [("train.py", *TRAIN, "--epochs", 3)]
    else:
        checkpoint = ("--checkpoint", "model.pkl") if name.endswith("pkl") else ()
        runs = [
            (script, *EVALUATE, *cached, *checkpoint) for script in ("eval_auc.py", "eval_loc.py")
        ]
    for script, *options in runs:
        done = run_script(script, "--data", tmp_path / "data", *options, cwd=cwd, code=None)
        assert done.returncode == 2 or (
            done.returncode == 0 and ("cache" in name or "BBox" in name)
        ), done.stderr
        if done.returncode == 2:
            sentence_of(done)
    assert not harm.exists()


def write_harm(path: Path, form: str, command: Command) -> None:
    if form == "pickle":
        path.write_bytes(pickle.dumps({"a": command}))
    elif form == "torch":
        torch.save({"a": command}, path)
    else:
        with open(path, "wb") as file:
            np.save(file, np.array([command], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("form", ["pickle", "torch", "numpy"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_downloaded_weights_cannot_run_a_command(tmp_path, monkeypatch, name, form):
    write_harm(tmp_path / name, form, Command(tmp_path / "harm"))

    def download(repo_id, filename, **_):
        if filename != name:
            raise EntryNotFoundError(filename, response=Mock())
        return str(tmp_path / name)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(ValueError, match=r"could not be downloaded, or are damaged"):
        Pylon("tu-tf_efficientnet_lite0", "imagenet")
    assert not (tmp_path / "harm").exists()
