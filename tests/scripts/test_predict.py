"""predict.py: any radiograph in, findings, pictures, maps and boxes out."""

import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from bad_images import BAD
from conftest import run_script, sentence_of, start_script
from faulty_files import FaultyFile
from PIL import Image

from pylon.drawing import GAP
from pylon.prediction.results import COLUMNS

BEST = "save/pylon/0/best"
KILLS = int(os.environ.get("PYLON_KILLS", "1"))
ALL = ("--save-maps", "--save-coco", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(trained_once) -> Path:
    return trained_once / BEST


@pytest.fixture(scope="module")
def images(phantom, tmp_path_factory) -> Path:
    """Images of several kinds in two folders, 20 good and all kinds of bad ones."""
    folder = tmp_path_factory.mktemp("radiographs")
    files = sorted((phantom / "images").glob("*.png"))[:20]
    rng = np.random.default_rng(0)
    for k, path in enumerate(files):
        place = folder / ("a" if k % 2 else "b")
        place.mkdir(exist_ok=True)
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if k % 5 == 0:
            cv2.imwrite(str(place / f"{k}.tif"), image.astype(np.uint16) * 100 + 7)
        elif k % 5 == 1:
            cv2.imwrite(str(place / f"{k}.jpg"), image[:, : 40 + k])
        elif k % 5 == 2:
            cv2.imwrite(str(place / f"{k}.PNG"), rng.integers(0, 255, (30, 90, 3), np.uint8))
        else:
            cv2.imwrite(str(place / "x$ 'é\n\".png" if k == 3 else place / f"{k}.png"), image)
    for k, (content, _) in enumerate(BAD.values()):
        (folder / "ab"[k % 2] / f"bad {k}.png").write_bytes(content)
    return folder


def predict(checkpoint, *arguments, cwd, code=0, **options):
    return run_script("predict.py", *arguments, "--checkpoint", checkpoint, cwd=cwd, code=code,
                      **options)  # fmt: skip


def contents(out: Path) -> dict[str, bytes]:
    """The files of a folder of results, without those that only resumption needs."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if p.parts[-1][0] != "."}


@pytest.fixture(scope="module")
def predicted(checkpoint, images, tmp_path_factory) -> Path:
    """Results of all images, with one worker."""
    cwd = tmp_path_factory.mktemp("predicted")
    done = predict(checkpoint, images, "--out", "out", *ALL, "--num-workers", 1, cwd=cwd, code=1)
    assert f"error: {len(BAD)} of {20 + len(BAD)} images could not be read" in sentence_of(done)
    assert f"{20 + len(BAD)} images, {20 + len(BAD)} to predict" in done.stdout
    assert "images/s" in done.stderr
    assert "note: 4 images stored in colour: the grey values were read" in done.stdout
    return cwd / "out"


def test_one_image_and_a_checkpoint_are_enough(checkpoint, phantom, tmp_path):
    image = sorted((phantom / "images").glob("*.png"))[0]
    done = predict(checkpoint, image, cwd=tmp_path)
    assert "1 image predicted" in done.stdout
    rows = pd.read_csv(tmp_path / "predictions/predictions.csv")
    assert tuple(rows) == COLUMNS
    assert len(rows) == 14
    assert set(rows["image"]) == {image.name}
    assert set(rows["present"].dropna()) == {0, 1}
    sheet = cv2.imread(str(tmp_path / f"predictions/overlays/{image.name}.png"))
    assert sheet.shape[1] > 2 * 512
    before = contents(tmp_path / "predictions")
    again = predict(checkpoint, image, cwd=tmp_path)
    assert "1 image, 0 to predict" in again.stdout
    assert contents(tmp_path / "predictions") == before


def test_good_images_are_done_and_bad_ones_named(predicted, images):
    rows = pd.read_csv(predicted / "predictions.csv")
    assert len(rows) == 14 * 20
    assert sorted(rows["image"].unique()) == list(rows["image"].unique())
    assert "b/x$ 'é\n\".png" not in set(rows["image"])  # it is in a
    assert "a/x$ 'é\n\".png" in set(rows["image"])
    manifest = json.loads((predicted / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["images"] == 20
    named = {each["image"]: each["reason"] for each in manifest["unreadable"]}
    assert len(named) == len(BAD)
    for k, (_, sentence) in enumerate(BAD.values()):
        image = f"{'ab'[k % 2]}/bad {k}.png"
        assert f"{images / image} {sentence}" in named[image]
    assert manifest["pixels"]["counts"] == {
        "8 bits": 16, "16 bits": 4, "stored in colour, read as grey": 4
    }  # fmt: skip
    assert set(manifest["pixels"]["windows"]) == {"b/0.tif", "a/5.tif", "b/10.tif", "a/15.tif"}


def test_every_image_has_a_picture_and_maps(predicted, images):
    rows = pd.read_csv(predicted / "predictions.csv")
    for image, of_image in rows.groupby("image"):
        sheet = cv2.imread(str(predicted / "overlays" / f"{image}.png"))
        assert sheet.shape[0] > 100
        with np.load(predicted / "maps" / f"{image}.npz") as file:
            maps = file["maps"]
            affine = file["affine"]
            assert list(of_image["label"]) == file["class_names"].tolist()
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps.max(axis=(1, 2)), of_image["score"], atol=1e-6)
        # the inverse of the affine leads from the point to where the map is nearly highest
        for single, row in zip(maps, of_image.itertuples(), strict=True):
            place = (row.point_column - affine[0, 2], row.point_row - affine[1, 2])
            j, i = np.round(place / np.diag(affine)).astype(int)
            near = single[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            assert near.max() >= 0.95 * single.max()
        with Image.open(images / image) as picture:
            assert (of_image["box_x"] + of_image["box_w"]).max() <= picture.width
            assert (of_image["box_y"] + of_image["box_h"]).max() <= picture.height
    assert len(list((predicted / "overlays").rglob("*.png"))) == 20


def test_list_equals_folder_whatever_the_workers(checkpoint, predicted, images, tmp_path):
    files = [path for path in images.rglob("*") if path.is_file()]
    for number, given in ((4, files), (0, [images])):
        out = tmp_path / str(number)
        options = ("--out", out, *ALL, "--num-workers", number)
        predict(checkpoint, *given, *options, cwd=tmp_path, code=1)
        assert contents(out) == contents(predicted)


def die_in_rename(number: int) -> None:
    """Kill the process before the given rename of a file."""
    replace = os.replace
    left = [number]

    def replace_or_die(source, target):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die


def die_in_record(number: int) -> None:
    """Kill the process while it records a batch, when part of it is in the file."""
    from pylon.prediction import journal

    opened = journal.opened
    left = [number]

    @contextmanager
    def opened_or_die(path):
        with opened(path) as file:
            yield file
            left[0] -= 1
            if left[0] == 0:
                # more than stays in memory
                file.execute("PRAGMA cache_size = 1")
                file.execute("UPDATE results SET result = hex(randomblob(99999))")
                os.kill(os.getpid(), signal.SIGKILL)

    journal.opened = opened_or_die


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_run_resumes_to_the_same_files(checkpoint, predicted, images, tmp_path, number):
    numbers = random.Random(number)
    die, most = ((die_in_rename, 40), (die_in_record, 4))[number % 2]
    sabotage = partial(die, numbers.randint(2, most))
    options = (images, "--out", "out", *ALL, "--num-workers", 1)
    predict(checkpoint, *options, cwd=tmp_path, code=-signal.SIGKILL, sabotage=sabotage)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["finished"] is False
    predict(checkpoint, *options, cwd=tmp_path, code=1)
    assert contents(tmp_path / "out") == contents(predicted)


def test_stopped_run_says_how_to_go_on(checkpoint, images, predicted, tmp_path):
    options = (images, "--out", "out", *ALL, "--num-workers", 1)
    arguments = ("predict.py", *options, "--checkpoint", checkpoint)
    process = start_script(*arguments, cwd=tmp_path, out=tmp_path, sabotage=slow_down)
    while not list((tmp_path / "out").glob("overlays/*/*.png")):
        assert process.is_alive()
        process.join(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    said = (tmp_path / "stderr").read_text()
    assert said.endswith("stopped; the same command goes on with the images that are left\n")
    assert "Traceback" not in said
    predict(checkpoint, *options, cwd=tmp_path, code=1)
    assert contents(tmp_path / "out") == contents(predicted)


def slow_down() -> None:
    import time

    from pylon.prediction import predictor

    locate = predictor.locate

    def locate_slowly(*arguments):
        time.sleep(0.5)
        return locate(*arguments)

    predictor.locate = locate_slowly


def test_only_what_is_missing_is_done(checkpoint, predicted, images, tmp_path):
    out = shutil.copytree(predicted, tmp_path / "out")
    (out / "overlays/b/4.png.png").unlink()
    (out / "predictions.csv").unlink()
    done = predict(checkpoint, images, "--out", out, *ALL, cwd=tmp_path, code=1)
    assert f"{1 + len(BAD)} to predict" in done.stdout
    assert contents(out).keys() == contents(predicted).keys()
    # a network may round otherwise in a batch of another size
    rows, expected = (pd.read_csv(each / "predictions.csv") for each in (out, predicted))
    pd.testing.assert_frame_equal(rows, expected)


def test_other_options_than_before_are_refused(checkpoint, predicted, images, tmp_path):
    before = contents(predicted)
    for option, sentence in (
        (("--region-threshold", 0.4), "--region-threshold 0.5, not 0.4"),
        (("--classes", "Mass"), "--classes none, not Mass"),
        (("--no-overlays",), "--overlays True, not False"),
    ):
        options = ("--out", predicted, *ALL, *option)
        done = predict(checkpoint, images, *options, cwd=tmp_path, code=2)
        assert f"holds results with {sentence}; repeat that, or choose" in sentence_of(done)
    done = predict(checkpoint, images / "a", "--out", predicted, *ALL, cwd=tmp_path, code=2)
    assert f"holds results of images in {images}, not {images}/a" in sentence_of(done)
    assert contents(predicted) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name images, or folders of them"),
        (("nowhere.png",), "nowhere.png cannot be read (No such file or directory)"),
        (("none",), "none has no images"),
        (("x.png",), "x.png has no images"),  # a folder
        (("text.png",), "text.png cannot be read as an image; copy it again"),
        (("tiny.png",), "tiny.png is 10 x 10 pixels, too small for a radiograph"),
        (("text.png", "tiny.png", "none"), "nothing could be read"),
        (("a.png", "--classes", "Mas", "Hernia"), "--classes Mas is not a class of"),
        (("a.png", "--classes", "Mas"), "did you mean Mass"),
        (("a.png", "--classes", "Mass", "--top", 1), "--classes and --top both choose"),
        (("a.png", "--no-overlays", "--top", 1), "leave out --no-overlays"),
        (("a.png", "--top", 0), "--top must be at least 1, not 0"),
        (("a.png", "--num-workers", -1), "--num-workers must be at least 0"),
        (("a.png", "--region-threshold", 0), "--region-threshold must be above 0 and at most 1"),
        (("a.png", "--region-threshold", "nan"), "--region-threshold must be above 0"),
        (("a.png", "--window", 9, 0.5), "--window must be a centre and a width of at least 1"),
        (("a.png", "--window", "nan", 9), "--window must be a centre and a width of at least 1"),
        (("a.png", "--method", "gradcam", "--precision", "bf16"), "--method gradcam needs"),
        (("a.png", "--method", "gradcam", "--tta"), "leave out --tta"),
        (("none", "--out", "none"), "--out none is in the folder none"),
        (("none", "--out", "none/out"), "--out none/out is in the folder none"),
        (("a.png", "--out", "a.png"), "--out a.png is a file; name a folder"),
        (("a.png", "--out", "a.png/b\nc"), "a.png/b\\nc"),
        (("a.png", "--out", "a.png/out"), "cannot be written (Not a directory)"),
        (("a.png", "--out", "mine"), "--out mine has predictions.csv, but no manifest.json"),
    ],
)
def test_bad_input_is_one_sentence(checkpoint, tmp_path, arguments, sentence):
    (tmp_path / "none").mkdir()
    (tmp_path / "x.png").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/predictions.csv").write_text("mine")
    (tmp_path / "text.png").write_text("a letter")
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((10, 10), np.uint8))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100), np.uint8))
    done = predict(checkpoint, *arguments, cwd=tmp_path, code=2)
    assert sentence in sentence_of(done)
    assert (tmp_path / "mine/predictions.csv").read_text() == "mine"
    if "nowhere.png" in arguments:
        assert not (tmp_path / "predictions").exists()


def test_missing_checkpoint(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100), np.uint8))
    done = predict("save/none", "a.png", cwd=tmp_path, code=2)
    assert "there is no checkpoint save/none" in sentence_of(done)


def refuse(_file, _data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk() -> None:
    """Let no file be written after the first thirty."""
    from pylon.system import files

    count = itertools.count(1)

    def open_and_fill(path, mode):
        file = open(path, mode)  # noqa: SIM115, the caller closes it
        return FaultyFile(file, refuse) if next(count) > 30 else file

    files.open = open_and_fill


def test_full_disk(checkpoint, predicted, images, tmp_path):
    options = (images, "--out", "out", *ALL)
    done = predict(checkpoint, *options, cwd=tmp_path, code=2, sabotage=fill_disk)
    assert "cannot be written (No space left on device)" in sentence_of(done)
    before = contents(tmp_path / "out")
    assert len(before) > 10
    predict(checkpoint, *options, cwd=tmp_path, code=1)
    assert contents(tmp_path / "out") == contents(predicted)


def test_strange_files_and_names_do_not_stop_the_rest(checkpoint, phantom, tmp_path):
    image = sorted((phantom / "images").glob("*.png"))[0]
    (tmp_path / "in/x.png.png").mkdir(parents=True)
    for name in ("x.png", "x.png.png/y.png", "z.png", "z" * 250 + ".png"):
        shutil.copy(image, tmp_path / "in" / name)
    os.mkfifo(tmp_path / "in/pipe.png")
    with open(tmp_path / "in/large.tif", "wb") as file:
        file.truncate(10**9)
    given = ("in", "/dev/zero", "in/" + "a" * 300)
    done = predict(checkpoint, *given, "--out", "out", cwd=tmp_path, code=1)
    assert "4 of 8 images could not be read; not all files of 1 of 8" in sentence_of(done)
    for sentence in (
        "/dev/zero is not a regular file",
        "pipe.png is not a regular file",
        "large.tif has more than 640 MB",
        "(File name too long)",
    ):
        assert sentence in done.stderr
    # a file and a folder would have the same name: which comes first is left to the threads
    assert re.search(r"x\.png(\.png/y\.png)? has a name under which no picture can", done.stderr)
    rows = pd.read_csv(tmp_path / "out/predictions.csv")
    assert rows["image"].nunique() == 4
    assert rows["score"].nunique() == 14


def test_image_that_has_become_unreadable(checkpoint, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    for path in sorted((phantom / "images").glob("*.png"))[:3]:
        shutil.copy(path, tmp_path / "in")
    predict(checkpoint, "in", "--out", "out", cwd=tmp_path)
    damaged = sorted((tmp_path / "in").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    predict(checkpoint, "in", "--out", "out", cwd=tmp_path, code=1)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["images"] == 2
    assert [each["image"] for each in manifest["unreadable"]] == [damaged.name]
    assert damaged.name not in (tmp_path / "out/predictions.csv").read_text()
    assert not (tmp_path / f"out/overlays/{damaged.name}.png").exists()

    # when it is gone, nothing comes back; when a good one is gone, its results stay
    damaged.unlink()
    good = next((tmp_path / "in").iterdir())
    good.unlink()
    predict(checkpoint, "in", "--out", "out", cwd=tmp_path)
    table = (tmp_path / "out/predictions.csv").read_text()
    assert damaged.name not in table
    assert good.name in table
    predict(checkpoint, "in", good.relative_to(tmp_path), "--out", "out", cwd=tmp_path, code=1)
    assert (tmp_path / "out/predictions.csv").read_text() == table


def test_all_images_have_become_unreadable(checkpoint, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    for path in sorted((phantom / "images").glob("*.png"))[:2]:
        shutil.copy(path, tmp_path / "in")
    options = ("in", "--out", "out", "--save-coco", "--save-maps", "--html")
    predict(checkpoint, *options, cwd=tmp_path)
    before = {path.name for path in (tmp_path / "out").iterdir()}
    assert before >= {"predictions.csv", "coco.json", "coco_results.json"}
    assert (tmp_path / "out/html/index.html").exists()
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    done = predict(checkpoint, *options, cwd=tmp_path, code=2)
    assert "nothing could be read" in sentence_of(done)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["images"] == 0
    left = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")}
    shown = {str(path) for path in left if not path.name.startswith(".")}
    assert shown == {"manifest.json", "html/style.css", "html/page.js"}


def test_progress_left_by_another_network_does_not_count(
    checkpoint, without_thresholds, phantom, tmp_path
):
    image = sorted((phantom / "images").glob("*.png"))[0]
    predict(checkpoint, image, "--out", "out", "--no-overlays", cwd=tmp_path)
    for path in (tmp_path / "out").glob("[!.]*"):  # as `rm -r out/*` does
        path.unlink()
    options = ("--out", "out", "--no-overlays")
    done = predict(without_thresholds, image, *options, cwd=tmp_path)
    assert "1 image, 1 to predict" in done.stdout
    assert pd.read_csv(tmp_path / "out/predictions.csv")["present"].isna().all()


@pytest.fixture(scope="module")
def without_thresholds(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("without") / "best"
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    del config["sha256"], config["thresholds"]
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(checkpoint / "model.safetensors", folder)
    return folder


def panels_of(sheet: Path) -> int:
    """Number of panels in one row of a sheet of the phantom's images, 512 x 384 pixels each."""
    return (cv2.imread(str(sheet)).shape[1] - GAP) // (384 + GAP)


def test_what_is_drawn(checkpoint, without_thresholds, images, tmp_path):
    image = images / "b/4.png"
    for number, (network, options, panels) in enumerate((
        (without_thresholds, (), 2),
        (without_thresholds, ("--top", 3), 4),
        (checkpoint, ("--top", 2), 3),
        (checkpoint, ("--classes", "Mass", "Hernia"), 3),
        (checkpoint, ("--top", 1, "--scale", "minmax"), 2),
        (checkpoint, ("--top", 1, "--method", "gradcam"), 2),
    )):  # fmt: skip
        done = predict(network, image, "--out", str(number), *options, cwd=tmp_path)
        assert panels_of(tmp_path / str(number) / "overlays/4.png.png") == panels
        rows = pd.read_csv(tmp_path / str(number) / "predictions.csv")
        assert rows["present"].isna().all() == (network == without_thresholds)
        assert ("note: these maps are not probabilities" in done.stdout) == ("gradcam" in options)
