"""tools/reproduce.py: which steps are run again, the folder to publish, the verdict, mistakes."""

import hashlib
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, TRAIN, run_script, sentence_of

import reproduce
from publication import publish, require_own_folder, shared_about, verdict
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.scoring.compare import beside_published, published
from pylon.scoring.rows import Rows, read_rows, write_rows
from pylon.system.errors import UserError
from reproduce import OURS, Options, call, main, steps_of, without_folder

FURTHER = " ".join(("--epochs", "2", *TRAIN[: TRAIN.index("--device")], "--batch-size 8 --lr 1e-3"))


@pytest.fixture(scope="module")
def reproduced(trained_once, phantom, tmp_path_factory):
    """A folder in which the command was stopped once, and the scripts that each start has run."""
    cwd = shutil.copytree(trained_once, tmp_path_factory.mktemp("reproduced") / "cwd")
    options = Options(data=phantom, seeds=1, device="cpu", num_workers=0, train=FURTHER)
    starts: list[list[str]] = []

    def run(command, stop_at=None):
        script = str(Path(command[1]).relative_to(ROOT))
        if script == stop_at:
            return 130
        starts[-1].append(script)
        return run_script(script, *command[2:], cwd=cwd).returncode

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        starts.append([])
        patch.setattr(reproduce, "call", lambda command: run(command, "generate_heatmap.py"))
        with pytest.raises(KeyboardInterrupt):
            main(options)
        assert not Path("publish/pylon/README.md").exists()
        patch.setattr(reproduce, "call", run)
        for _ in range(2):  # go on; then everything is done
            starts.append([])
            main(options)
        starts.append([])
        shutil.rmtree("figs/pylon")
        main(options)
    return cwd, starts


def test_steps_that_are_done_are_left_out(reproduced):
    _, starts = reproduced
    scored = ["tools/check_data.py", "train.py", "eval_auc.py", "eval_loc.py"]
    assert starts == [scored, ["generate_heatmap.py", "share.py"], [], ["generate_heatmap.py"]]


def test_what_is_published(reproduced, capsys):
    cwd, _ = reproduced
    out = cwd / "publish/pylon"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "figures", "manifest.json", "networks", "page", "scores",
    ]  # fmt: skip
    text = (out / "README.md").read_text()
    assert "**Verdict: none: not compared with the published seeds: its test images" in text
    assert "**Synthetic data.**" in text
    assert "| `python eval_loc.py --data DATA --num-workers 0 --device cpu --seeds 0" in text
    assert '"command": "make reproduce"' in (out / "page/index.html").read_text()
    assert (out / "scores/pylon/auroc.csv").exists()
    assert not (out / "scores/pylon/auroc_beside_published.csv").exists()
    assert re.search(r"Code: pylon-localization \d+\.\d+\.\d+", text)

    # the manifest holds every other file
    manifest = json.loads((out / "manifest.json").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == files - {"manifest.json"}
    assert len(files) > 30
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_nothing_published_names_a_folder_of_this_computer(reproduced, phantom):
    cwd, _ = reproduced
    private = [str(phantom), str(cwd), str(cwd.parent), str(ROOT)]
    for path in (cwd / "publish").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [each for each in private if each.encode() in content], path
    rows = read_rows(cwd / "csv/pylon/0_images.csv")
    assert str(phantom) in json.dumps(rows.about)  # what is left out
    assert rows.about["card"]["options"].keys() > shared_about(rows.about)["card"]["options"].keys()


def test_tables_are_rebuilt_from_what_is_published(reproduced, tmp_path):
    cwd, _ = reproduced
    out = shutil.copytree(cwd / "publish/pylon", tmp_path / "out")
    scores = out / "scores/pylon"
    for script, name in (
        ("eval_auc.py", "auroc"),
        ("eval_loc.py", "point_localization"),
    ):
        (scores / f"{name}.csv").unlink()
        (scores / f"{name}.png").unlink()
        run_script(script, "--from", "scores/pylon", cwd=out)
    manifest = json.loads((out / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest, name


def test_networks_that_have_changed_are_scored_again(reproduced):
    cwd, _ = reproduced
    options = Options(data=Path("data"), seeds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        shutil.copytree("save/pylon", "save/other")
        done = reproduce.Done(Path("save/other"), options)
        step = reproduce.Step("eval_auc.py", (), (), scores=True)
        check = reproduce.Step("tools/check_data.py", (), ())
        for each in (step, check):
            done.steps[each.title] = {"key": done.key(each), "seconds": 1.0}
        assert done.has(step)
        (Path("save/other") / "0/best/training.json").unlink()
        assert not done.has(step)
        assert done.has(check)


@pytest.fixture
def csv(tmp_path) -> Path:
    """A folder of rows and of tables, those of the published seeds in place of ours."""
    for what in ("images", "boxes"):
        write(tmp_path, what, None, None)
    for score in ("auroc", "point_localization"):
        table = beside_published(published(score), score)
        table.to_csv(tmp_path / f"{score}_beside_published.csv")
    return tmp_path


def write(folder, what, not_official, synthetic):
    table = pd.DataFrame({"image_id": ["a"], "patient_id": ["b"]})
    about = {"class_names": [], "not_official": not_official, "synthetic": synthetic}
    write_rows(folder, "0", what, Rows(table, about))


def test_published_scores_reproduce_themselves(csv):
    assert verdict(csv, 5, []) == (
        "verdict: reproduced with 5 seeds: AUROC 0.794 against 0.794 published (14 of 14 classes "
        "reproduced); point localization 0.616 against 0.616 published (8 of 8 classes reproduced)"
    )


@pytest.mark.parametrize("row", ["weighted", "Mass"])
def test_a_mean_that_differs_decides(csv, row):
    path = csv / "auroc_beside_published.csv"
    table = pd.read_csv(path, index_col="class")
    assert set(table.index) == {*PATHOLOGIES, "weighted", "macro"}
    table.loc[row, "verdict"] = "differs"
    table.loc["Hernia", "verdict"] = "not decided with 5 seeds"
    table.to_csv(path)
    sentence = verdict(csv, 5, [])
    decides = "not reproduced" if row == "weighted" else "reproduced"
    assert sentence.startswith(f"verdict: {decides} with 5 seeds: AUROC")
    of_mass = "differs: Mass, " if row == "Mass" else ""
    count = 12 if row == "Mass" else 13
    assert f"({count} of 14 classes reproduced, {of_mass}not decided: Hernia)" in sentence


def test_verdict_that_is_not_decided(csv):
    path = csv / "point_localization_beside_published.csv"
    table = pd.read_csv(path, index_col="class")
    table.loc["micro", "verdict"] = "not decided with 1 seed"
    table.to_csv(path)
    assert verdict(csv, 1, []).startswith("verdict: not decided with 1 seed: ")


def test_verdict_says_what_was_different(csv):
    write(csv, "images", None, "Invented images.")
    sentence = verdict(csv, 2, ["--epochs", "1"])
    assert "2 seeds, trained with other options than the published (--epochs 1): AUROC" in sentence
    assert sentence.endswith(", on synthetic images: this says nothing about PYLON")
    write(csv, "boxes", "its boxes are not NIH's", None)
    assert verdict(csv, 5, []) == (
        "verdict: none: not compared with the published seeds: its boxes are not NIH's"
    )


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("--epochs", "--epochs"),
        ("/home/alice/mine.pth", "mine.pth"),
        ("--init-from=/home/alice/best", "--init-from=best"),
        ("../alice/mine.pth", "mine.pth"),
        ("~/mine.pth", "mine.pth"),
        ("weights/alice/mine.pth", "mine.pth"),
        ("--encoder-weights=weights/alice/mine.pth", "--encoder-weights=mine.pth"),
        ("file:///home/alice/mine.pth", "mine.pth"),
        (r"C:\Users\alice\mine.pth", "mine.pth"),
        ("alice/best/", "best"),
        ("save/../alice/best", "best"),
        ("1e-3", "1e-3"),
    ],
)
def test_paths_are_published_without_their_folders(word, kept):
    assert without_folder(word) == kept
    assert without_folder(word, OURS) == kept


def test_own_folders_are_published():
    for word in ("figs/pylon", "save/pylon/0/best", "--repo=user/pylon-0"):
        assert without_folder(word, OURS) == word
    assert without_folder("save/secret/0/best") == "best"
    options = Options(name="mine", train="--init-from save/secret/0/best", repo="user/pylon")
    steps = list(steps_of(options, Path("alice/out")))
    train = next(step for step in steps if step.script == "train.py")
    assert train.published.endswith("--init-from best")
    assert train.arguments[-1] == "save/secret/0/best"
    share = steps[-1]
    assert share.published == (
        "python share.py --checkpoint save/mine/4/best --scores csv/mine --repo=user/pylon-4 "
        "--dry-run --out 4"
    )


def test_a_script_is_stopped_when_we_are(tmp_path):
    """SIGTERM, and the child that ignores nothing is gone a moment later."""
    mark = tmp_path / "running"
    code = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(100)"

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    started = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            call([sys.executable, "-c", code])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert mark.exists()
    assert time.monotonic() - started < 30


def test_a_step_that_fails_ends_the_command(by_hand, tmp_path):
    done = run_script(
        "tools/reproduce.py", "--data", by_hand, "--num-workers", 0, cwd=tmp_path, code=2
    )
    assert "is not ready; fix what is listed above" in sentence_of(done)
    assert "\nstopped at tools/check_data.py, which says why; once that is" in done.stderr
    assert f"[1/14] python {ROOT}/tools/check_data.py --data {by_hand}" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"data": Path("nowhere")}, "--data nowhere is not a folder"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"repo": "name"}, "--repo must be USER/NAME, in letters, digits, -, _ and ., not 'name'"),
        ({"name": "a/b"}, "--name 'a/b' must be the plain name of a folder"),
        ({"train": "--seed 3"}, "--train must not set --seed"),
        ({"train": "--cache_size=3"}, "--train must not set --cache_size=3"),
        ({"train": "'"}, "is not closed"),
        ({"train": "--epochs 0"}, "--epochs must be at least 1"),
        ({"train": "--image-size 100"}, "--image-size must be a multiple of 256"),
    ],
)
def test_mistakes(wrong, sentence, by_hand, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(sentence)):
        main(Options(**{"data": by_hand, **wrong}))
    assert not Path("save").exists()


def test_an_option_that_train_does_not_have(by_hand, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(Options(data=by_hand, train="--epoch banana"))
    assert "--epoch" in capsys.readouterr().err
    assert not Path("save").exists()


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="has thesis"):
        require_own_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        require_own_folder(tmp_path / "thesis.tex")
    paper = tmp_path / "paper"
    (paper / "figures").mkdir(parents=True)
    with pytest.raises(UserError, match="has figures"):
        require_own_folder(paper)


def test_networks_of_more_seeds_are_removed(reproduced, tmp_path):
    cwd, _ = reproduced
    out = shutil.copytree(cwd / "publish/pylon", tmp_path / "out")
    shutil.copytree(out / "networks/0", out / "networks/1")
    made = reproduce.Made(
        cwd / "csv/pylon", cwd / "figs/pylon", ["0"], [("python train.py", 60.0)], "verdict: none"
    )
    publish(out, made)
    assert [path.name for path in (out / "networks").iterdir()] == ["0"]
