"""Two processes train or score one network."""

import gc
import os
import shutil
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import LONG, ROOT, TRAIN, rows_of, run_script, start_script
from tables import write_table
from torch.nn.parallel import DistributedDataParallel

from pylon.checkpoints.training_json import read_json
from pylon.model import Pylon
from pylon.training import preparation


def test_two_processes_train_one_network(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    track = ("--track", "tensorboard")
    options = ("--data", data, "--epochs", 2, *TRAIN, "--cache-size", 256, *track)
    said = run_as_two("train.py", *options, cwd=tmp_path, out=tmp_path, sabotage=build_otherwise)
    assert said.count("decoding") == 1
    assert said.count("epoch  2") == 1
    seeds = [(tmp_path / f"seeds-{rank}").read_text().split() for rank in (0, 1)]
    assert len({*seeds[0], *seeds[1]}) == 4  # two epochs on two processes
    assert sorted(path.name for path in (tmp_path / "csv/pylon").iterdir()) == ["0.csv", "0.png"]
    save = tmp_path / "save/pylon/0"
    assert sorted(path.name for path in save.iterdir()) == ["best", "last", "tensorboard"]
    assert len(list(save.glob("tensorboard/events.*"))) == 1  # of the main process
    assert read_json(save / "tensorboard/logged.json")["epoch"] == 2
    table = rows_of(tmp_path)
    assert table["epoch"].tolist() == [1, 2]
    card = read_json(tmp_path / "save/pylon/0/best/training.json")
    assert card["val_loss"] == table["val_loss"].min()


@LONG
def test_two_processes_have_the_loss_of_one_with_unknown_labels(phantom, tmp_path):
    """The first step of an epoch: the mean over the known labels of both."""
    table = write_table(phantom, tmp_path / "mine")
    names = list(table.columns[3:])
    unknown = np.random.default_rng(0).random((len(table), len(names))) < 0.5
    table[names] = table[names].astype(float).mask(unknown)
    table.to_csv(tmp_path / "mine/my.csv", index=False)
    options = ("--table", tmp_path / "mine/my.csv", "--epochs", 1, *TRAIN)
    first_of = {}
    for processes in (1, 2):
        cwd = tmp_path / str(processes)
        cwd.mkdir()
        if processes == 1:
            done = run_script("train.py", *options, cwd=cwd, sabotage=write_down_each_loss)
            assert "labels in" in done.stdout  # the note on unknown ones
        else:
            run_as_two("train.py", *options, cwd=cwd, out=cwd, sabotage=write_down_each_loss)
        files = sorted(cwd.glob("losses-*"))
        assert len(files) == processes
        losses = [list(map(float, file.read_text().split())) for file in files]
        first_of[processes] = np.mean([of_process[0] for of_process in losses])
        if processes == 2:
            assert abs(losses[0][0] - losses[1][0]) > 1e-4  # each has its own images
    assert abs(first_of[1] - first_of[2]) < 1e-6


def test_too_few_images_for_two_processes(phantom, tmp_path):
    """Each would have one image, for which batch norm has no variance."""
    options = ("--data", phantom, "--epochs", 1, *TRAIN, "--batch-size", 2)
    processes = start_two("train.py", *options, cwd=tmp_path, out=tmp_path)
    for process in processes:
        process.join(100)
    assert processes[0].exitcode == 2
    assert processes[1].exitcode in (1, 2)  # 1: the other has ended first
    said = [(tmp_path / rank / "stderr").read_text() for rank in "01"]
    sentence = "error: training needs at least 2 images per batch and process: increase --batch"
    assert sentence in said[0]
    assert all("Traceback" not in each for each in said)
    assert not (tmp_path / "save/pylon/0/last").exists()


def test_two_processes_score_as_one(trained, phantom, tmp_path):
    options = ("--data", phantom, "--device", "cpu", "--num-workers", 0, "--batch-size", 6)
    options = (*options, "--seeds", 0)
    for script, name in (("eval_auc.py", "auroc.csv"), ("eval_loc.py", "0_boxes.csv")):
        run_script(script, *options, cwd=trained)
        single = pd.read_csv(trained / "csv/pylon" / name)
        (trained / "csv/pylon" / name).unlink()
        if script == "eval_auc.py":
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [*torchrun, "--nproc-per-node", 2, ROOT / script, *options]
            command = list(map(str, command))
            streams = {"capture_output": True, "text": True}
            done = subprocess.run(command, cwd=trained, timeout=300, **streams)
            assert done.returncode == 0, done.stderr
        else:
            run_as_two(script, *options, cwd=trained, out=tmp_path)
        pd.testing.assert_frame_equal(single, pd.read_csv(trained / "csv/pylon" / name), rtol=1e-6)


def build_otherwise():
    """Add an unused parameter, as some encoders have: two processes would wait for its gradient.

    Also log torch's seed, on which dropout depends.
    """
    build = Pylon.__init__

    def build_with_spare(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.spare = torch.nn.Parameter(torch.zeros(3))
        self.register_forward_pre_hook(note_seed)

    Pylon.__init__ = build_with_spare


def note_seed(model, _):
    if model.training:
        with open(f"seeds-{os.environ['RANK']}", "a") as file:
            file.write(f"{torch.initial_seed()}\n")


def write_down_each_loss(batch_statistics=False):
    """Log the loss of each step, without batch statistics, which differ between the processes."""
    loss_of = preparation.loss_of_known

    def noted(*arguments):
        loss = loss_of(*arguments)
        if loss.requires_grad:  # in training
            with open(f"losses-{os.environ.get('RANK', '0')}", "a") as file:
                file.write(f"{loss.item()!r}\n")
        return loss

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    preparation.loss_of_known = noted
    if not batch_statistics:
        torch.nn.BatchNorm2d.forward = forward


def be_one_of_two(variables, sabotage):
    """Set the environment variables of torchrun.

    Fail if a wrapped network outlives its process group.
    """
    os.environ.update(variables)
    if sabotage is not None:
        sabotage()
    end_training = Accelerator.end_training

    def watched(accelerator):
        assert not [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
        end_training(accelerator)

    Accelerator.end_training = watched


def start_two(*arguments, cwd, out, sabotage=None):
    """Like torchrun, which takes seconds longer because it starts new interpreters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = []
    for rank in "01":
        (out / rank).mkdir(exist_ok=True)
        variables = {**address, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        be_it = partial(be_one_of_two, variables, sabotage)
        processes.append(start_script(*arguments, cwd=cwd, out=out / rank, sabotage=be_it))
    return processes


def test_two_processes_predict_as_one(phantom, trained_once, tmp_path):
    """20 images in three batches, two of them bad."""
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((phantom / "images").glob("*.png"))[:20]:
        shutil.copy(path, images)
    for path in sorted(images.iterdir())[::10]:
        path.write_bytes(b"")
    checkpoint = trained_once / "save/pylon/0/best"
    options = (images, "--checkpoint", checkpoint, "--device", "cpu", "--save-maps", "--save-coco")
    run_script("predict.py", *options, "--out", "one", cwd=tmp_path, code=1)
    said = run_as_two("predict.py", *options, "--out", "two", cwd=tmp_path, out=tmp_path, code=1)
    assert said.count("18 images predicted") == 1
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("one", "two")]
    for one, other in zip(*([path for path in of if path.name[0] != "."] for of in files),
                          strict=True):  # fmt: skip
        assert one.relative_to(tmp_path / "one") == other.relative_to(tmp_path / "two")
        assert one.read_bytes() == other.read_bytes(), one
    # each process has done its part, and one alone goes on from there
    parts = [path.stat().st_size for path in (tmp_path / "two").glob(".progress-*")]
    assert len(parts) == 2
    assert min(parts) > 1000
    done = run_script("predict.py", *options, "--out", "two", cwd=tmp_path, code=1)
    assert "20 images, 2 to predict" in done.stdout


def run_as_two(*arguments, cwd, out, sabotage=None, code=0):
    """Run a script to its end in two processes; return what both print."""
    processes = start_two(*arguments, cwd=cwd, out=out, sabotage=sabotage)
    for process in processes:
        process.join(100)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # one may still wait for the other, which has failed
    stderr = "".join((out / rank / "stderr").read_text() for rank in "01")
    assert codes == [code, code], stderr
    return "".join((out / rank / "stdout").read_text() for rank in "01")
