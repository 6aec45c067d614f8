"""Bad inputs end the scripts with a one-sentence error and exit code 2, as the README says."""

import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch
from bad_images import BAD, SIZE, png
from conftest import TRAIN, run_script, sentence_of

import pylon
from pylon.checkpoints.checkpoint import save_best
from pylon.checkpoints.training_json import read_training_json
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.images import read_image, require_readable
from pylon.system.errors import UserError

EVALUATE = ("--device", "cpu", "--num-workers", "0")


@pytest.fixture
def data(phantom, tmp_path):
    return shutil.copytree(phantom, tmp_path / "data")


def names_of(data: Path, name: str) -> list[str]:
    return (data / name).read_text().split()


def first_of(data: Path, name: str) -> Path:
    return data / "images" / names_of(data, name)[0]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_reported(trained, data, tmp_path, name):
    content, sentence = BAD[name]
    image = first_of(data, "train_val_list.txt")
    image.write_bytes(content)
    done = run_script("train.py", "--data", data, *TRAIN, cwd=tmp_path, code=2)
    assert f"{image.name} {sentence}" in sentence_of(done)
    count = len(names_of(data, "train_val_list.txt"))
    assert f"1 of {count} images cannot be read" in sentence_of(done)
    assert "epoch" not in done.stdout
    test = first_of(data, "test_list.txt")
    test.write_bytes(content)
    before = contents(trained)
    for script in ("eval_auc.py", "eval_loc.py", "generate_heatmap.py"):
        done = run_script(script, "--data", data, *EVALUATE, cwd=trained, code=2)
        said = sentence_of(done)
        assert test.name in said
        assert sentence in said or "copy it again" in said or script != "eval_auc.py"
    assert contents(trained) == before


def test_skip_unreadable_skips_bad_images(data, tmp_path):
    names = names_of(data, "train_val_list.txt")
    for name, (content, _) in zip(names, BAD.values(), strict=False):
        (data / "images" / name).write_bytes(content)
    wrong_within = data / "images" / names[-1]
    wrong_within.write_bytes(broken_within())
    options = ("--data", data, *TRAIN, "--skip-unreadable", "--epochs", 1)
    done = run_script("train.py", *options, cwd=tmp_path)
    for name, (_, sentence) in zip(names, BAD.values(), strict=False):
        assert f"skipped: {data}/images/{name} {sentence}" in done.stdout
    assert f"skipped: {wrong_within} cannot be read as an image" in done.stdout
    assert f"skipped {len(BAD) + 1} of {len(names)} images, which cannot be read" in done.stdout
    train, val = map(
        int, re.search(r"(\d+) images to train on, (\d+) to validate on", done.stdout).groups()
    )
    assert train + val == len(names) - len(BAD) - 1
    assert (tmp_path / "save/pylon/0/best").exists()


def broken_within() -> bytes:
    """A PNG with valid checksums whose pixel data ends halfway."""
    head = (SIZE[1]).to_bytes(4, "big") + (SIZE[0]).to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress(os.urandom(SIZE[0] * (SIZE[1] + 1)))
    return png((b"IHDR", head), (b"IDAT", pixels[: len(pixels) // 2]), (b"IEND", b""))


def test_truncated_pixels_with_valid_checksums(tmp_path):
    (tmp_path / "a.png").write_bytes(broken_within())
    require_readable(str(tmp_path / "a.png"))  # passes, so --skip-unreadable has to decode
    with pytest.raises(UserError, match=r"a.png cannot be read as an image"):
        read_image(str(tmp_path / "a.png"))


def test_missing_images(trained, data, tmp_path):
    first_of(data, "test_list.txt").unlink()
    done = run_script("eval_auc.py", "--data", data, *EVALUATE, cwd=trained, code=2)
    assert f"1 of {len(names_of(data, 'test_list.txt'))} images are missing" in sentence_of(done)
    shutil.rmtree(data / "images")
    done = run_script("train.py", "--data", data, *TRAIN, cwd=tmp_path, code=2)
    count = len(names_of(data, "train_val_list.txt"))
    assert f"{count} of {count} images are missing" in sentence_of(done)


def test_harmless_variations_of_files_are_accepted(trained, data):
    """Four channels, Windows line endings and a byte order mark."""
    image = first_of(data, "test_list.txt")
    cv2.imwrite(str(image), cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2BGRA))
    for path in (*data.glob("*.csv"), *data.glob("*.txt")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    tables = []
    for folder in (data, data.parent / "plain"):
        if folder != data:
            shutil.copytree(data, folder)
            for path in (*folder.glob("*.csv"), *folder.glob("*.txt")):
                path.write_bytes(
                    path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
                )
        done = run_script("eval_auc.py", "--data", folder, *EVALUATE, cwd=trained)
        assert "another" not in done.stdout
        tables.append((trained / "csv/pylon/auroc.csv").read_bytes())
    assert tables[0] == tables[1]


LISTS = {
    "no column": ("Data_Entry_2017.csv", "Patient ID", "Patient", "has no column 'Patient ID'"),
    "unknown finding": (
        "Data_Entry_2017.csv",
        "Mass",
        "Maß",
        "is not one of the findings Atelectasis,",
    ),
    "empty list": ("train_val_list.txt", None, "", "train_val_list.txt is empty"),
    "empty csv": ("Data_Entry_2017.csv", None, "", "Data_Entry_2017.csv is not a table"),
    "no list": ("test_list.txt", None, None, "lacks test_list.txt"),
}


@pytest.mark.parametrize("name", LISTS)
def test_bad_list_is_reported(data, tmp_path, name):
    file, old, new, sentence = LISTS[name]
    path = data / file
    if new is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new) if old else new)
    for script, options in (("train.py", TRAIN), ("tools/check_data.py", ("--num-workers", 0))):
        done = run_script(script, "--data", data, *options, cwd=tmp_path, code=2)
        sentence_of(done)
        assert sentence in done.stdout + done.stderr


def test_image_listed_twice(data, tmp_path):
    path = data / "Data_Entry_2017.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    done = run_script("train.py", "--data", data, *TRAIN, cwd=tmp_path, code=2)
    assert "is in more than one row; remove all but one" in sentence_of(done)


@pytest.mark.parametrize(
    "box", ["1,2,-3,4", "1,2,nan,4", "100,100,29,20", "1e300,2,3,4", "a,b,c,d"]
)
def test_bad_box_is_reported(trained, data, box):
    path = data / "BBox_List_2017.csv"
    header, first, *rest = path.read_text().splitlines()
    image, label, *_ = first.split(",")
    path.write_text("\n".join([header, f"{image},{label},{box},,,", *rest]))
    for script in ("eval_loc.py", "generate_heatmap.py"):
        sentence = sentence_of(run_script(script, "--data", data, *EVALUATE, cwd=trained, code=2))
        assert "BBox_List_2017.csv" in sentence
        assert image in sentence or box == "a,b,c,d"


def test_validation_split_without_positives(data, tmp_path):
    path = data / "Data_Entry_2017.csv"
    table = pd.read_csv(path)
    table["Finding Labels"] = "No Finding"
    table.to_csv(path, index=False)
    done = run_script("train.py", "--data", data, *TRAIN, "--epochs", 1, cwd=tmp_path)
    assert "AUROC -" in done.stdout
    rows = pd.read_csv(tmp_path / "csv/pylon/0.csv")
    assert rows[list(PATHOLOGIES)].isna().all(axis=None)
    done = run_script("eval_auc.py", "--data", data, *EVALUATE, cwd=tmp_path)
    assert done.stdout.count("lacks positive or negative test images") == len(PATHOLOGIES)


def test_last_batch_of_one_image(data, tmp_path):
    done = run_script(
        "train.py", "--data", data, *TRAIN, "--batch-size", 15, "--epochs", 1, cwd=tmp_path
    )
    # two batches of 15, and one image that is left out
    assert "31 images to train on" in done.stdout
    assert len(pd.read_csv(tmp_path / "csv/pylon/0.csv")) == 1


def test_missing_seeds_are_reported(trained, phantom):
    done = run_script(
        "eval_loc.py", "--data", phantom, *EVALUATE, "--seeds", 1, 0, 2, cwd=trained, code=2
    )
    assert "seed 1 2 of pylon has no checkpoint; save/pylon has seed 0;" in sentence_of(done)


def test_bad_checkpoints_are_reported(trained, phantom, tmp_path):
    best = shutil.copytree(trained / "save/pylon/0/best", tmp_path / "best")
    weights = (best / "model.safetensors").read_bytes()
    torch.manual_seed(0)

    def sentence():
        options = ("--data", phantom, *EVALUATE, "--checkpoint", best)
        return sentence_of(run_script("eval_auc.py", *options, cwd=tmp_path, code=2))

    (best / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert f"{best} does not contain the network of its config.json" in sentence()
    (best / "model.safetensors").write_bytes(weights[:-5] + bytes([weights[-5] ^ 1]) + weights[-4:])
    assert "model.safetensors is damaged: its hash does not match; copy it again" in sentence()
    shutil.rmtree(best)
    pylon.Pylon("tu-test_resnet", None, classes=3).save_pretrained(best)
    assert "has 3 classes, but neither config.json nor training.json names them" in sentence()
    pylon.Pylon("resnet18", None).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", best)
    assert f"{best} does not contain the network of its config.json" in sentence()
    assert not (tmp_path / "csv").exists()
    shutil.copytree(trained / "save", tmp_path / "save")
    last = tmp_path / "save/pylon/0/last"
    last.write_bytes(last.read_bytes()[:5000])
    done = run_script("train.py", "--data", phantom, *TRAIN, "--epochs", 3, cwd=tmp_path, code=2)
    assert "save/pylon/0/last is damaged" in sentence_of(done)


def test_network_with_scores_that_are_not_finite(trained, phantom, tmp_path):
    best = trained / "save/pylon/0/best"
    model = pylon.load_pylon(best)
    with torch.no_grad():
        model.segmentation_head[0].weight.fill_(3e38)  # finite, but their sum is not
    save_best(tmp_path / "best", model, read_training_json(best))
    for script in ("eval_auc.py", "eval_loc.py", "generate_heatmap.py"):
        options = ("--data", phantom, *EVALUATE, "--checkpoint", tmp_path / "best")
        sentence = sentence_of(run_script(script, *options, cwd=tmp_path, code=2))
        said = "scores that are not finite numbers; choose another checkpoint with --checkpoint"
        assert f"best gives {said}" in sentence
    assert not list(tmp_path.rglob("*.csv"))


def test_no_write_permission(phantom, tmp_path):
    save = tmp_path / "save"
    save.mkdir()
    if os.getuid():
        save.chmod(0o555)
        run_script_without_leave(phantom, tmp_path)
        return
    # permissions do not stop root
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", save], capture_output=True
    ).returncode:
        pytest.skip("cannot mount a file system")
    try:
        run_script_without_leave(phantom, tmp_path)
    finally:
        subprocess.run(["umount", save], check=True)


def run_script_without_leave(phantom, cwd):
    sentence = sentence_of(run_script("train.py", "--data", phantom, *TRAIN, cwd=cwd, code=2))
    why = "(Permission denied|Read-only file system)"
    assert re.search(rf"save/pylon/.writable-[0-9]+ cannot be written \({why}\)", sentence)
    assert not list((cwd / "save").iterdir())
