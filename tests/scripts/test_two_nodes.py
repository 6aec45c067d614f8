"""Two nodes on one computer: processes with folders of their own, and one that is killed.

PYLON_NODES=1 also starts torchrun twice, as on two computers, and prints its figures with -s.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT, TRAIN, rows_of, run_script, same_weights
from test_two_processes import start_two

from pylon.training.preparation import LossWatch

CPU = ("--device", "cpu", "--num-workers", 0)
DIFFER = "error: start every node in one shared folder; of process 1, in "
LOST = "error: the connection to another process was lost"
RESUMES = "the same command resumes after the last finished epoch\n"
NODES = pytest.mark.skipif("PYLON_NODES" not in os.environ, reason="PYLON_NODES=1 runs it")


# processes that are forked


def end_of_two(processes, out):
    """Wait for two processes; their exit codes, and what each printed to stderr."""
    for process in processes:
        process.join(100)
    said = [(out / rank / "stderr").read_text() for rank in "01"]
    assert all("Traceback" not in each for each in said), said
    return [process.exitcode for process in processes], said


def refusals_of(*arguments, first, second, out):
    """The sentences of two processes with different working folders, which must be equal."""
    sabotage = partial(move_second, second)
    codes, said = end_of_two(start_two(*arguments, cwd=first, out=out, sabotage=sabotage), out)
    assert codes == [2, 2], said
    sentences = [
        [line for line in each.splitlines() if line.startswith("error: ")] for each in said
    ]
    assert sentences[0] == sentences[1]
    (sentence,) = sentences[0]
    assert sentence.startswith(f"{DIFFER}{second} on ")
    assert f", in {first} on " in sentence
    return sentence


def move_second(folder):
    if os.environ["RANK"] == "1":
        os.chdir(folder)


@pytest.fixture
def empty(tmp_path):
    """The working folder of a second node that shares nothing with the first."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_node_without_checkpoints_and_lists_gets_them(trained, phantom, empty, tmp_path):
    """Only the images are on both nodes."""
    shutil.copytree(phantom, tmp_path / "data")
    sabotage = partial(move_second, empty)
    arguments = ("eval_auc.py", "--data", "../data", *CPU)
    first = shutil.copytree(trained, tmp_path / "first")
    (tmp_path / "other").mkdir()
    codes, said = end_of_two(
        start_two(*arguments, cwd=first, out=tmp_path, sabotage=sabotage), tmp_path
    )
    assert codes == [0, 0], said
    both = pd.read_csv(first / "csv/pylon/auroc.csv")
    run_script(*arguments, cwd=first)
    pd.testing.assert_frame_equal(pd.read_csv(first / "csv/pylon/auroc.csv"), both, rtol=1e-6)


def test_results_that_would_be_split_between_folders(trained, phantom, empty, tmp_path):
    checkpoint = trained / "save/pylon/0/best"
    drawn = ("generate_heatmap.py", "--data", phantom, "--checkpoint", checkpoint, *CPU)
    predicted = ("predict.py", phantom / "images", "--checkpoint", checkpoint, *CPU)
    begun = ("train.py", "--data", phantom, "--epochs", 1, *TRAIN)
    (tmp_path / "first").mkdir()
    for arguments, name in ((drawn, "figs"), (predicted, "predictions"), (begun, "save/pylon")):
        said = refusals_of(*arguments, first=tmp_path / "first", second=empty, out=tmp_path)
        assert f"{name} is not the same folder" in said
        assert not list((tmp_path / "first" / name).glob(".shared-*"))


def test_node_without_the_images_says_so(trained, phantom, empty, tmp_path):
    shutil.copytree(phantom, tmp_path / "first/data")
    shutil.copytree(trained / "save", tmp_path / "first/save")
    arguments = ("eval_auc.py", "--data", "data", *CPU)
    sabotage = partial(move_second, empty)
    processes = start_two(*arguments, cwd=tmp_path / "first", out=tmp_path, sabotage=sabotage)
    codes, said = end_of_two(processes, tmp_path)
    assert codes == [1, 2], said
    assert LOST in said[0]
    assert "error: data/images/" in said[1]


def die_in_an_epoch(rank):
    """Let a process kill itself in the middle of an epoch."""
    add = LossWatch.add

    def add_or_die(watch, loss, images):
        add(watch, loss, images)
        if os.environ["RANK"] == rank and watch.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    LossWatch.add = add_or_die


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=NODES)])
def test_lost_process_ends_the_other(phantom, tmp_path, killed):
    sabotage = partial(die_in_an_epoch, str(killed))
    arguments = ("train.py", "--data", phantom, "--epochs", 1, *TRAIN)
    codes, said = end_of_two(
        start_two(*arguments, cwd=tmp_path, out=tmp_path, sabotage=sabotage), tmp_path
    )
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    assert said[1 - killed].splitlines()[-1].startswith(LOST)
    assert said[1 - killed].endswith(RESUMES)


# torchrun, twice


WRAPPER = """
import runpy, sys
sys.path[:0] = {paths!r}
from test_two_processes import write_down_each_loss
write_down_each_loss(batch_statistics={batch_statistics})
sys.argv[0] = {script!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_nodes(*arguments, folders):
    """Start torchrun in two folders, as one would on two computers; the first holds the rendezvous.

    They decide among themselves which of the two is process 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    torchrun += ["--local-addr", "127.0.0.1"]
    nodes = []
    for node, folder in enumerate(folders):
        command = list(map(str, [*torchrun, "--node-rank", node, *arguments]))
        with open(folder / f"said-{node}", "w") as said:
            streams = {"stdout": said, "stderr": subprocess.STDOUT}
            nodes.append(subprocess.Popen(command, cwd=folder, **streams))
        while node == 0 and not is_open(port):
            assert nodes[0].poll() is None
    return nodes


def is_open(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def two(tmp_path):
    """Two working folders; the second sees save/ and csv/ of the first."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for name in ("save", "csv"):
        (folders[0] / name).mkdir(parents=True)
        folders[1].mkdir(exist_ok=True)
        (folders[1] / name).symlink_to(folders[0] / name)
    return folders


def said_by(node, folders):
    return (folders[node] / f"said-{node}").read_text()


@NODES
def test_two_nodes_score_as_one_process(trained, phantom, two):
    shutil.copytree(trained / "save/pylon", two[0] / "save/pylon")
    options = ("--data", phantom, *CPU, "--batch-size", 6)
    for script, name in (("eval_auc.py", "auroc.csv"), ("eval_loc.py", "0_boxes.csv")):
        run_script(script, *options, cwd=two[0])
        single = pd.read_csv(two[0] / "csv/pylon" / name)
        (two[0] / "csv/pylon" / name).unlink()
        nodes = start_nodes(ROOT / script, *options, folders=two)
        assert [node.wait(300) for node in nodes] == [0, 0], said_by(0, two) + said_by(1, two)
        both = pd.read_csv(two[0] / "csv/pylon" / name)
        numbers = [table.select_dtypes("number").to_numpy() for table in (single, both)]
        print(script, "largest difference", np.nanmax(abs(numbers[0] - numbers[1])))
        pd.testing.assert_frame_equal(single, both, rtol=1e-6)


@NODES
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_first_losses_of_two_nodes(phantom, two, tmp_path, batch_statistics):
    paths = list(map(str, (ROOT, ROOT / "tests", ROOT / "tests/scripts")))
    script = str(ROOT / "train.py")
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(
        WRAPPER.format(paths=paths, script=script, batch_statistics=batch_statistics)
    )
    options = ("--data", phantom, "--epochs", 1, *TRAIN)
    one = tmp_path / "one"
    one.mkdir()
    command = list(map(str, [sys.executable, wrapper, *options]))
    subprocess.run(command, cwd=one, check=True, capture_output=True, timeout=300)
    nodes = start_nodes(wrapper, *options, folders=two)
    assert [node.wait(300) for node in nodes] == [0, 0], said_by(0, two) + said_by(1, two)
    single = np.loadtxt(one / "losses-0")
    files = [next(folder.glob("losses-*")) for folder in two]
    both = np.mean([np.loadtxt(file) for file in files], axis=0)
    differences = abs(single - both)
    print("batch statistics" if batch_statistics else "fixed statistics")
    print("one process", single.round(5), "two nodes", both.round(5), "difference", differences)
    assert {file.name for file in files} == {"losses-0", "losses-1"}
    assert batch_statistics or differences[:3].max() < 1e-4


@NODES
@pytest.mark.parametrize("killed", [0, 1], ids=["with the rendezvous", "without it"])
def test_killed_node(phantom, two, tmp_path, killed):
    arguments = (ROOT / "train.py", "--data", phantom, "--epochs", 3, *TRAIN)
    nodes = start_nodes(*arguments, folders=two)
    assert [node.wait(300) for node in nodes] == [0, 0], said_by(0, two) + said_by(1, two)
    shutil.copytree(two[0], tmp_path / "whole")
    for name in ("save/pylon", "csv/pylon"):
        shutil.rmtree(two[0] / name)

    # kill torchrun and its process in the second epoch
    nodes = start_nodes(*arguments, folders=two)
    while not (two[0] / "save/pylon/0/last").exists():
        assert nodes[killed].poll() is None
    worker = psutil.Process(nodes[killed].pid).children(recursive=True)
    moment = time.monotonic()
    for process in (nodes[killed], *worker):
        process.kill()
    survivor = 1 - killed
    code = nodes[survivor].wait(60)
    seconds = time.monotonic() - moment
    nodes[killed].wait()
    said = said_by(survivor, two)
    print(
        f"node {survivor} ended {seconds:.1f} s after node {killed} was killed, code {code}:", said
    )
    assert code != 0
    assert LOST in said or "stopped; the same command resumes" in said
    assert RESUMES in said

    # the same commands again
    nodes = start_nodes(*arguments, folders=two)
    assert [node.wait(300) for node in nodes] == [0, 0], said_by(0, two) + said_by(1, two)
    assert "resuming save/pylon/0 at epoch 2" in said_by(0, two)
    pd.testing.assert_frame_equal(rows_of(two[0]), rows_of(tmp_path / "whole"))
    assert same_weights(two[0] / "save/pylon/0", tmp_path / "whole/save/pylon/0")
