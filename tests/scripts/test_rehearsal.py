"""The rehearsal: NIH's lists with invented pixels, and commands that are watched.

PYLON_BENCHMARKS=1 also rehearses the whole experiment on the phantom's lists, in a minute or two.
"""

import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import run_script

from invented import SENTENCE, SIDE, copy_lists, draw, enlarge, sign_of, write_data_set
from pylon.data.chestxray14 import NIH_SHA256, list_hashes
from pylon.data.sources import read_chestxray14
from pylon.system.errors import UserError
from watched import watch

LISTS = ("Data_Entry_2017.csv", "BBox_List_2017.csv", "train_val_list.txt", "test_list.txt")


@pytest.fixture(scope="module")
def invented(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("rehearsal") / "data"
    write_data_set(phantom, out, share=100, size=64, num_workers=1)
    return out


def test_invented_images_have_the_given_lists_and_say_what_they_are(phantom, invented):
    for name in LISTS:
        assert (invented / name).read_bytes() == (phantom / name).read_bytes()
    radiographs = read_chestxray14(invented, with_boxes=True)
    assert radiographs.synthetic == SENTENCE
    assert SENTENCE in radiographs.notes
    paths = radiographs.images["path"]
    assert paths.notna().all()
    assert len(list(invented.glob("images_0*/images/*.png"))) == len(paths)
    assert (invented / "images_012/images").is_dir()


def test_sign_lies_in_the_box():
    cells = draw("00000001_000.png", ["Mass"], [("Mass", 480.0, 200.0, 160.0, 80.0)], 64)
    np.testing.assert_array_equal(cells[12:18, 32:38], sign_of("Mass"))  # around (560, 240)
    assert enlarge(cells).shape == (SIDE, SIDE)
    cells = draw("00000001_000.png", ["Mass"], [("Mass", 0.0, 1000.0, 10.0, 24.0)], 64)
    np.testing.assert_array_equal(cells[58:64, :6], sign_of("Mass"))  # not beyond the edge


def test_a_drawing_depends_on_its_name_alone():
    one, same = (draw("00000001_000.png", ["Mass"], [], 64) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert (one != draw("00000001_001.png", ["Mass"], [], 64)).any()
    assert (one != draw("00000001_000.png", [], [], 64)).any()


def test_share_is_of_patients_and_grows(phantom, tmp_path):
    few, many = (copy_lists(phantom, tmp_path / str(share), share) for share in (20, 60))
    assert 0 < len(few) < len(many)
    assert set(few) < set(many)
    patients = {name[:8] for name in few}
    assert {name for name in many if name[:8] in patients} == set(few)
    labels = pd.read_csv(tmp_path / "20/Data_Entry_2017.csv")
    assert set(labels["Image Index"]) == set(few)


def test_whole_lists_of_nih_keep_their_hashes(shared, tmp_path):
    names = copy_lists(shared / "nih14/official", tmp_path, 100)
    assert len(names) == 112_120
    hashes = list_hashes(tmp_path)
    assert hashes.keys() == NIH_SHA256.keys()
    assert all(digest in NIH_SHA256[name] for name, digest in hashes.items())


def test_drawing_goes_on_where_it_was_stopped(phantom, invented, tmp_path):
    out = shutil.copytree(invented, tmp_path / "data")
    first, *others = sorted(out.glob("images_0*/images/*.png"))
    content = first.read_bytes()
    first.unlink()
    before = [path.stat().st_mtime_ns for path in others]
    write_data_set(phantom, out, share=100, size=64, num_workers=1)
    assert first.read_bytes() == content
    assert [path.stat().st_mtime_ns for path in others] == before


def test_other_folders_are_refused(phantom, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and is no rehearsal"):
        write_data_set(phantom, tmp_path, 100, 64, 1)
    with pytest.raises(UserError, match="must hold Data_Entry_2017"):
        copy_lists(tmp_path, tmp_path / "out", 100)


HOLD = "import time; held = bytearray(300_000_000); print('held', flush=True); {then}"


def test_command_is_watched_to_its_end(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", HOLD.format(then="time.sleep(2)")]
    done = watch(command, tmp_path, log, {})
    assert done.code == 0
    assert log.read_text() == "held\n"
    assert 0.3 < done.memory < 0.4


def test_command_is_killed_when_told(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", HOLD.format(then="time.sleep(600)")]
    done = watch(command, tmp_path, log, {}, until=lambda: log.read_text() == "held\n")
    assert done.code == -9


@pytest.mark.skipif("PYLON_BENCHMARKS" not in os.environ, reason="needs PYLON_BENCHMARKS=1")
def test_whole_experiment_is_rehearsed(phantom, tmp_path):
    options = ("--metadata", phantom, "--out", tmp_path / "out", "--num-workers", 0)
    done = run_script("benchmarks/rehearsal.py", *options, cwd=tmp_path)
    steps = pd.read_csv(tmp_path / "out/rehearsal.csv")["step"].tolist()
    assert steps[3:6] == ["train.py, killed in epoch 2", "train.py, resumed",
                          "train.py, seed 1, 1 epoch"]  # fmt: skip
    assert steps[-1] == "generate_heatmap.py"
    assert done.stdout.count("\n| ") == len(steps) + 1
