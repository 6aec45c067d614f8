"""Properties that hold for any file contents."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import pylon
from pylon.checkpoints import checkpoint
from pylon.checkpoints.training_json import make_card
from pylon.data.chestxray14 import PATHOLOGIES, read_boxes, read_images
from pylon.model import Pylon
from pylon.scoring.metrics import in_box, point_localization
from pylon.scoring.rows import image_rows, read_rows, write_rows
from pylon.scoring.tables import Scored, table_of_seeds
from pylon.system.errors import UserError
from pylon.system.files import write_csv

settings.register_profile(
    "ours",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
settings.load_profile("ours")
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def attempt(read, *arguments):
    """What `read` returns and an empty string, or None and the message of its UserError."""
    try:
        return read(*arguments), ""
    except UserError as error:
        return None, str(error)


pixels = st.one_of(st.integers(-5, 2000), st.floats(allow_nan=True, width=32), st.just(1e300))
rows = st.tuples(
    st.sampled_from(["00000001_000.png", "00000002_000.png"]),
    st.sampled_from([*PATHOLOGIES, "Infiltrate"]),
    *[pixels] * 4,
)


@given(st.lists(rows, min_size=1, max_size=8))
def test_boxes_are_read_as_written_or_refused(written):
    with tempfile.TemporaryDirectory() as folder:
        lines = [",".join(map(str, row)) + ",,," for row in written]
        (Path(folder) / "BBox_List_2017.csv").write_text("\n".join([HEADER, *lines]))
        numbers_ = np.array([row[2:] for row in written], float)  # NaN compares false below
        good = ((numbers_ >= [0, 0, 1, 1]) & (numbers_ < 1e5)).all()
        boxes, sentence = attempt(read_boxes, Path(folder))
        assert good == (boxes is not None)
        if boxes is None:
            assert "BBox_List_2017.csv: the box of" in sentence
            return
        expected = []
        for image, finding, *box in written:
            finding = finding.replace("Infiltrate", "Infiltration")
            expected.append([image, finding, *(int(float(str(value))) for value in box)])
        assert boxes.to_numpy().tolist() == expected


@given(st.binary(max_size=300))
@example(HEADER.encode() + b"\n")
@example(HEADER.encode() + b'\n"00000001_000.png')
@example(HEADER.encode() + b"\n\xff\xfe,Mass,1,2,3,4")
def test_any_bytes_as_box_list_are_read_or_refused(content):
    for head in (b"", HEADER.encode() + b"\n"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "BBox_List_2017.csv").write_bytes(head + content)
            boxes, sentence = attempt(read_boxes, Path(folder))
            if boxes is None:
                assert "BBox_List_2017.csv" in sentence
            else:
                assert (boxes[["x", "y"]] >= 0).all(axis=None)
                assert (boxes[["w", "h"]] >= 1).all(axis=None)


LABELS = "Image Index,Finding Labels,Patient ID\n"
GOOD = LABELS + "a.png,Mass,1\nb.png,Hernia|Edema,2\nc.png,No Finding,3\n"


@given(
    st.sampled_from(["Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"]),
    st.binary(max_size=60),
    st.data(),
)
@example("Data_Entry_2017.csv", LABELS.encode() + b"1,2,3\n", None)
@example("Data_Entry_2017.csv", LABELS.encode() + b"a.png,Mass,inf\n", None)
def test_any_bytes_as_lists_are_read_or_refused(name, content, data):
    contents = {
        "Data_Entry_2017.csv": GOOD,
        "train_val_list.txt": "a.png\nb.png",
        "test_list.txt": "c.png",
    }
    with tempfile.TemporaryDirectory() as folder:
        for file, text in contents.items():
            (Path(folder) / file).write_text(text)
        old = contents[name].encode()
        at = data.draw(st.integers(0, len(old))) if data else len(old)
        for changed in (content, old[:at] + content + old[at:]):
            (Path(folder) / name).write_bytes(changed)
            images, sentence = attempt(read_images, Path(folder))
            if images is None:
                assert folder in sentence
                continue
            assert images["image_id"].is_unique
            assert images[list(PATHOLOGIES)].isin([0, 1]).all(axis=None)
            assert set(images["split"]) == {"train", "val", "test"}


@given(
    st.integers(0, 255), st.integers(0, 255), st.integers(1, 1100), st.integers(1, 1100),
    st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 1000),
)  # fmt: skip
def test_point_localization_agrees_with_the_authors_mask(i, j, height, width, x, y, w, h):
    heatmap = torch.zeros(1, 256, 256)
    heatmap[0, i, j] = 1
    box = np.array([[x, y, w, h]])
    size = np.array([[height, width]])
    hit, row, column = point_localization(heatmap, box, size, (256, 256))
    # the authors' way: draw the box, resize it by nearest neighbour, read the pixel
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    assert hit[0] == mask[i * height // 256, j * width // 256]
    assert (row[0], column[0]) == (i * height // 256, j * width // 256)
    assert in_box(row, column, np.array([[0, 0, width, height]])).all()


scores = st.one_of(st.floats(0, 1), st.just(float("nan")))


@given(
    st.dictionaries(st.integers(0, 99).map(str), st.tuples(scores, scores), min_size=1, max_size=6)
)
def test_tables_round_trip(seeds):
    rows_ = pd.DataFrame.from_dict(seeds, orient="index", columns=["Mass", "macro"])
    resamples = np.random.default_rng(0).normal(rows_.to_numpy()[:, None], 0.1, (len(seeds), 20, 2))
    table = table_of_seeds(Scored(rows_, resamples, np.array([3, 3])))
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "a.csv", table)
        text = (Path(folder) / "a.csv").read_text()
    again = pd.read_csv(io.StringIO(text), index_col="seed")
    again.index = again.index.astype(str)
    pd.testing.assert_frame_equal(again.astype(float), table.astype(float), check_exact=True)
    for column, values in zip(("Mass", "macro"), zip(*seeds.values(), strict=True), strict=True):
        known = [value for value in values if value == value]
        assume(known)
        mean = table.loc["mean", column]
        np.testing.assert_allclose(mean, np.mean(known), rtol=1e-12, atol=1e-300)


numbers = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, float("inf"), float("nan")])
)
MODEL = Pylon("tu-test_resnet", None, decoder_channels=4, classes=2)


@settings(max_examples=15)
@given(st.lists(numbers, min_size=2, max_size=2), st.text(max_size=20), st.integers(1, 40))
def test_checkpoints_round_trip(bias, name, epoch):
    MODEL.segmentation_head[0].bias.data = torch.tensor(bias)
    options = {"image_size": 256, "name": name}
    card = make_card([name, "other"], options, "abc", {"list": name}, 0.5, 0.25)
    state = {
        **dict.fromkeys(checkpoint.RESUMED, 0), "epoch": epoch, "options": {"name": name},
        "model": MODEL.state_dict(), "rows": [{"epoch": epoch, "Mass": bias[0]}],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        checkpoint.save_best(folder / "best", MODEL, {**card, "epoch": epoch})
        checkpoint.save_last(folder / "last", state)
        last = checkpoint.load_last(folder / "last")
        read_back = [last["model"]]
        if np.isfinite(bias).all():
            again = pylon.load_pylon(folder / "best")
            read = checkpoint.read_card(folder / "best", again)
            assert read.pop("weights_sha256") == checkpoint.hash_of_weights(MODEL.state_dict())
            assert read == json.loads(json.dumps({**card, "epoch": epoch}))
            read_back.append(again.state_dict())
        else:
            with pytest.raises(UserError, match="not finite numbers"):
                pylon.load_pylon(folder / "best")
    for weights in read_back:
        for key, value in MODEL.state_dict().items():
            assert torch.equal(as_bytes(weights[key]), as_bytes(value))
    assert last["epoch"] == epoch
    assert last["options"] == {"name": name}
    assert str(last["rows"]) == str(state["rows"])


def as_bytes(value: torch.Tensor) -> torch.Tensor:
    return value.view(torch.uint8) if value.dim() else value


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(st.integers(0, 1), finite), min_size=1, max_size=6))
def test_rows_read_back_to_the_last_bit(written):
    labels = np.array([[label] for label, _ in written], np.float32)
    logits = np.array([[logit] for _, logit in written], np.float32)
    ids = [f"0000000{k}_000.png" for k in range(len(written))]
    images = pd.DataFrame({"image_id": ids, "patient_id": range(len(written))})
    about = {"class_names": ["Mass"], "network": "pylon", "method": "map", "not_official": None}
    about |= {"card": {}, "config": {}, "list_sha256": {}, "weights_sha256": "a"}
    made = image_rows(images, labels, logits, about)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), "0", "images", made)
        read = read_rows(Path(folder) / "0_images.csv")
    assert read.logits().tobytes() == logits.tobytes()
    assert read.labels().tobytes() == labels.tobytes()
    assert read.about == about
    pd.testing.assert_frame_equal(read.table, made.table, check_exact=True)
