"""Properties that hold for whatever is written into the files."""

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
from pylon import checkpoint
from pylon.chestxray14 import PATHOLOGIES, read_boxes, read_images
from pylon.cli import UserError
from pylon.metrics import in_box, point_localization
from pylon.model import Pylon
from pylon.results import Run, table_of_seeds, write_csv

settings.register_profile(
    "ours", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("ours")
IMAGES = pd.DataFrame(
    {"image_id": ["00000001_000.png", "00000002_000.png"], "patient_id": [1, 2], "split": ["test", "train"], "path": ""}
).assign(**dict.fromkeys(PATHOLOGIES, 1))
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def attempt(read, *arguments):
    """What is read, or the sentence of the UserError."""
    try:
        return read(*arguments), ""
    except UserError as error:
        return None, str(error)


pixels = st.one_of(st.integers(-5, 2000), st.floats(allow_nan=True, width=32), st.just(1e300))
rows = st.tuples(
    st.sampled_from(IMAGES["image_id"].tolist()), st.sampled_from([*PATHOLOGIES, "Infiltrate"]), *[pixels] * 4
)


@given(st.lists(rows, min_size=1, max_size=8))
def test_boxes_are_read_as_written_or_refused(written):
    with tempfile.TemporaryDirectory() as folder:
        lines = [",".join(map(str, row)) + ",,," for row in written]
        (Path(folder) / "BBox_List_2017.csv").write_text("\n".join([HEADER, *lines]))
        good = all(0 <= x < 1e5 and 0 <= y < 1e5 and 1 <= w < 1e5 and 1 <= h < 1e5 for _, _, x, y, w, h in written)
        boxes, sentence = attempt(read_boxes, Path(folder), IMAGES)
        assert good == (boxes is not None)
        if boxes is None:
            assert "BBox_List_2017.csv: the box of" in sentence
            return
        expected = [
            [image, finding.replace("Infiltrate", "Infiltration"), *(int(float(str(value))) for value in box)]
            for image, finding, *box in written
            if image == "00000001_000.png"
        ]
        assert boxes.to_numpy().tolist() == expected


@given(st.binary(max_size=300))
@example(HEADER.encode() + b"\n")
@example(HEADER.encode() + b'\n"00000001_000.png')
@example(HEADER.encode() + b"\n\xff\xfe,Mass,1,2,3,4")
def test_any_bytes_as_boxes_are_answered(content):
    for head in (b"", HEADER.encode() + b"\n"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "BBox_List_2017.csv").write_bytes(head + content)
            boxes, sentence = attempt(read_boxes, Path(folder), IMAGES)
            if boxes is None:
                assert "BBox_List_2017.csv" in sentence
            else:
                assert (boxes[["x", "y"]] >= 0).all(axis=None)
                assert (boxes[["w", "h"]] >= 1).all(axis=None)


LABELS = "Image Index,Finding Labels,Patient ID\n"
GOOD = LABELS + "a.png,Mass,1\nb.png,Hernia|Edema,2\nc.png,No Finding,3\n"


@given(
    st.sampled_from(["Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"]), st.binary(max_size=60), st.data()
)
@example("Data_Entry_2017.csv", LABELS.encode() + b"1,2,3\n", None)
@example("Data_Entry_2017.csv", LABELS.encode() + b"a.png,Mass,inf\n", None)
def test_any_bytes_as_lists_are_answered(name, content, data):
    contents = {"Data_Entry_2017.csv": GOOD, "train_val_list.txt": "a.png\nb.png", "test_list.txt": "c.png"}
    with tempfile.TemporaryDirectory() as folder:
        for file, text in contents.items():
            (Path(folder) / file).write_text(text)
        old = contents[name].encode()
        at = data.draw(st.integers(0, len(old))) if data else len(old)
        for changed in (content, old[:at] + content + old[at:]):
            (Path(folder) / name).write_bytes(changed)
            faults = []
            # as data/check.py does: no fault ends the reading
            images, sentence = attempt(read_images, Path(folder), faults.append)
            if images is None:
                assert folder in sentence
                continue
            assert images["image_id"].is_unique
            assert images[list(PATHOLOGIES)].isin([0, 1]).all(axis=None)
            assert set(images["split"]) <= {"train", "val", "test"}
            again, sentence = attempt(read_images, Path(folder))
            assert [sentence] == (faults or [""])[:1]
            if again is not None:
                pd.testing.assert_frame_equal(again, images)


@given(
    st.integers(0, 255), st.integers(0, 255), st.integers(1, 1100), st.integers(1, 1100),
    st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 1000),
)  # fmt: skip
def test_box_rule(i, j, height, width, x, y, w, h):
    heatmap = torch.zeros(1, 256, 256)
    heatmap[0, i, j] = 1
    hit, row, column = point_localization(heatmap, np.array([[x, y, w, h]]), np.array([[height, width]]), (256, 256))
    mask = np.zeros((height, width), bool)  # as the authors did: draw the box, resize it by nearest neighbour, look
    mask[y : y + h, x : x + w] = True
    assert hit[0] == mask[i * height // 256, j * width // 256]
    assert (row[0], column[0]) == (i * height // 256, j * width // 256)
    assert in_box(row, column, np.array([[0, 0, width, height]])).all()


scores = st.one_of(st.floats(0, 1), st.just(float("nan")))


@given(st.dictionaries(st.integers(0, 99).map(str), st.tuples(scores, scores), min_size=1, max_size=6))
def test_tables_round_trip(seeds):
    rows_ = pd.DataFrame.from_dict(seeds, orient="index", columns=["Mass", "macro"])
    resamples = np.random.default_rng(0).normal(rows_.to_numpy()[:, None], 0.1, (len(seeds), 20, 2))
    table = table_of_seeds(Run(rows_, resamples, np.array([3, 3])))
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "a.csv", table)
        text = (Path(folder) / "a.csv").read_text()
    again = pd.read_csv(io.StringIO(text), index_col="seed")
    again.index = again.index.astype(str)
    pd.testing.assert_frame_equal(again.astype(float), table.astype(float), check_exact=True)
    for column, values in zip(("Mass", "macro"), zip(*seeds.values(), strict=True), strict=True):
        known = [value for value in values if value == value]
        assume(known)
        np.testing.assert_allclose(table.loc["mean", column], np.mean(known), rtol=1e-12, atol=1e-300)


numbers = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, float("inf"), float("nan")]))
MODEL = Pylon("tu-test_resnet", None, decoder_channels=4, classes=2)


@settings(max_examples=15)
@given(st.lists(numbers, min_size=2, max_size=2), st.text(max_size=20), st.integers(1, 40))
def test_checkpoints_round_trip(bias, name, epoch):
    MODEL.segmentation_head[0].bias.data = torch.tensor(bias)
    card = checkpoint.make_card([name, "other"], {"image_size": 256, "name": name}, "abc", {"list": name})
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
            assert torch.equal(weights[key].view(torch.uint8) if value.dim() else weights[key],
                               value.view(torch.uint8) if value.dim() else value)  # fmt: skip
    assert last["epoch"] == epoch
    assert last["options"] == {"name": name}
    assert str(last["rows"]) == str(state["rows"])
