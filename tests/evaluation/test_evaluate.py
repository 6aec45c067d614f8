"""Running networks on images: compatibility checks and predictions."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from pylon.baselines import Baseline
from pylon.checkpoints.checkpoint import save_best
from pylon.checkpoints.training_json import make_card
from pylon.data.chestxray14 import PATHOLOGIES, list_hashes
from pylon.data.sources import read_chestxray14
from pylon.data.table import read_table
from pylon.evaluation import evaluate
from pylon.evaluation.evaluate import (
    images_at_a_time,
    images_of_a_batch,
    load_network,
    name_of_network,
    open_networks,
    predict_logits,
    require_numbers,
)
from pylon.model import Pylon
from pylon.options import EvaluationOptions, ScoreOptions
from pylon.system.errors import UserError


def test_checkpoint_and_data_must_fit(phantom, tmp_path, capsys):
    radiographs = read_chestxray14(phantom)
    hashes = list_hashes(phantom)
    best = tmp_path / "best"
    options = EvaluationOptions(data=phantom, cache_size=256)
    accelerator = Accelerator(cpu=True)

    def load(names=PATHOLOGIES, channels=1, image_size=256, lists=hashes):
        model = Pylon("tu-test_resnet", None, channels, len(names), decoder_channels=8)
        save_best(best, model, make_card(names, {"image_size": image_size}, "", lists, 0.5, 0.25))
        return load_network(options, radiographs, best, accelerator)

    _, card = load()
    assert card["class_names"] == list(PATHOLOGIES)
    assert capsys.readouterr().out == ""
    load(lists={**hashes, "a list of another data set": "0"})
    assert capsys.readouterr().out == ""
    load(lists={**hashes, "test_list.txt": "0", "train_val_list.txt": "1"})
    note = "was trained with other versions of test_list.txt, train_val_list.txt than those of"
    assert note in capsys.readouterr().out
    sentence = "best was trained on the classes Mass, Hernia, without Atelectasis, Cardio"
    with pytest.raises(UserError, match=sentence):
        load(names=("Mass", "Hernia"))
    load(names=(PATHOLOGIES[1], PATHOLOGIES[0], *PATHOLOGIES[2:]))  # outputs are found by name
    sentence = "best takes 3 channels, but radiographs are read as one grey channel"
    with pytest.raises(UserError, match=sentence):
        load(channels=3)
    sentence = r"--cache-size 256 is below 512, the input size of .*best"
    with pytest.raises(UserError, match=sentence):
        load(image_size=512)
    options = ScoreOptions(data=phantom, num_workers=0, batch_size=2)
    images = radiographs.images[:2]
    opened = open_networks(options, {"0": best}, radiographs, images, accelerator)
    seed, model, card, loader = next(opened)
    assert (seed, model.training, card["image_size"]) == ("0", False, 512)
    assert next(iter(loader))["image"].shape == (2, 1, 512, 512)


def test_predictions_equal_the_network_output():
    accelerator = Accelerator(cpu=True)
    assert images_at_a_time(accelerator) == 8
    model = Pylon("tu-test_resnet", None, decoder_channels=8, classes=2)
    images = torch.randint(0, 256, (3, 1, 256, 256), dtype=torch.uint8)
    labels = torch.tensor([[0.0, 1], [1, 0], [1, 1]])
    items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    loader = accelerator.prepare(torch.utils.data.DataLoader(items))
    logits, read = predict_logits(model, loader, accelerator, "predicting", mean=0.5, std=0.25)
    with torch.no_grad():
        expected = model.eval()((images / 255 - 0.5) / 0.25).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_array_equal(read, labels)


def test_every_row_has_the_map_of_its_image_and_class(tmp_path, monkeypatch):
    """Three images of 128 x 96 pixels, four rows; maps of 32 x 32, a cell of 4 x 3 pixels each."""
    names = ["c.png", "a.png", "b.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), np.zeros((128, 96), np.uint8))
    boxed = pd.DataFrame({"image_id": names, "patient_id": [7, 7, 8]})
    boxed["path"] = [str(tmp_path / name) for name in names]
    boxes = pd.DataFrame(
        [
            ("a.png", "Mass", 30, 40, 3, 4),  # the cell of row 10, column 10
            ("b.png", "Mass", 0, 0, 96, 39),  # rows above 10
            ("a.png", "Nodule", 60, 0, 3, 128),  # column 20
            ("c.png", "Mass", 0, 0, 9, 9),
            ("b.png", "Mass", 50, 39, 9, 9),  # and another box, with row 10, column 17
        ],
        columns=["image_id", "pathology", "x", "y", "w", "h"],
    )
    # where the maximum of each image and class is, row and column of the map, and its score
    places = {
        ("a.png", "Mass"): (10, 10, 0.25),
        ("b.png", "Mass"): (10, 17, 0.5),
        ("a.png", "Nodule"): (20, 10, 0.75),  # beside its box: row and column swapped would hit
        ("c.png", "Mass"): (0, 31, 0.1),
    }
    card = {
        "class_names": ["Nodule", "Mass", "Edema"],
        "mean": 0.5,
        "std": 0.25,
        "thresholds": {"Mass": 0.25, "Edema": 0.5},
    }

    def heatmaps_of(model, images, image_of, class_of, method):
        maps = torch.zeros(len(image_of), 32, 32)
        scores = []
        for heatmap, position, c in zip(maps, image_of, class_of, strict=True):
            image_id = names[int(images[position, 0, 0, 0] * 0.25 * 255 + 0.5 * 255 + 0.5)]
            row, column, score = places[image_id, card["class_names"][c]]
            heatmap[row, column] = score
            scores.append(score)
        return maps, torch.tensor(scores)

    monkeypatch.setattr(evaluate, "heatmaps_of", heatmaps_of)
    # two batches; the pixels of an image are its number
    pixels = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 32, 32)
    batches = [
        {"image": pixels[:2], "index": torch.tensor([0, 1])},
        {"image": pixels[2:], "index": torch.tensor([2])},
    ]
    with_images = evaluate.boxes_with_images(boxed, boxes)
    rows, maps = evaluate.localize_boxes(None, card, batches, boxed, with_images, "map")
    assert rows["image_id"].tolist() == ["a.png", "b.png", "a.png", "c.png"]
    assert rows["patient_id"].tolist() == [7, 8, 7, 7]
    assert rows[["image_height", "image_width"]].to_numpy().tolist() == [[128, 96]] * 4
    assert rows["more_boxes"].tolist() == ["", "50 39 9 9", "", ""]
    assert rows["probability"].tolist() == pytest.approx([0.25, 0.5, 0.75, 0.1])
    assert rows[["row", "column"]].to_numpy().tolist() == [[40, 30], [40, 51], [80, 30], [0, 93]]
    assert rows["hit"].tolist() == [1, 1, 0, 0]
    # a score equal to its threshold reaches it; without a threshold nothing is known
    assert rows["called"].tolist() == pytest.approx([1, 1, np.nan, 0], nan_ok=True)
    for heatmap, pair in zip(maps, rows[["image_id", "pathology"]].to_numpy(), strict=True):
        row, column, score = places[tuple(pair)]
        assert heatmap[row, column] == np.float32(score) == heatmap.sum()


def test_each_seed_must_know_the_drawn_split(tmp_path):
    """A table without splits is drawn; the second seed was trained on another one."""
    lines = ["path,Mass", *(f"{k}.png,{k % 2}" for k in range(20))]
    (tmp_path / "my.csv").write_text("\n".join(lines))
    drawn = read_table(tmp_path / "my.csv").list_sha256
    checkpoints = []
    for seed, lists in enumerate((drawn, {"my.csv": "another"}, drawn)):
        model = Pylon("tu-test_resnet", None, classes=1, decoder_channels=8)
        best = tmp_path / f"{seed}/best"
        save_best(best, model, make_card(["Mass"], {"image_size": 256}, "", lists, 0.5, 0.25))
        checkpoints.append(best)
    options = EvaluationOptions(table=tmp_path / "my.csv")
    said = []
    assert len(evaluate.read_data(options, checkpoints[::2], said.append).images) == 20
    assert len(said) == 2  # no column patient_id, no column split
    with pytest.raises(UserError, match=r"no column split, and .*1/best was not trained on it"):
        evaluate.read_data(options, checkpoints, said.append)


def test_name_of_network():
    tiny = {"encoder_name": "tu-test_resnet", "encoder_weights": None}
    assert name_of_network(Pylon(**tiny)) == "pylon"
    assert name_of_network(Pylon(**tiny, up_modules=2)) == "ablated pylon"
    assert name_of_network(Pylon(**tiny, attention=False)) == "ablated pylon"
    assert name_of_network(Baseline("backbone", **tiny)) == "backbone"
    assert name_of_network(Baseline("unet", **tiny)) == "unet"


def test_scores_must_be_finite(tmp_path):
    require_numbers(np.array([[0.5, -3]]), tmp_path)
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="gives scores that are not finite numbers"):
            require_numbers(np.array([[0.5, value]]), tmp_path)


def test_batches_are_smaller_for_larger_images():
    assert [images_of_a_batch("cpu", size) for size in (256, 512, 1024)] == [8, 2, 1]
    assert [images_of_a_batch("cuda", size) for size in (256, 512, 4096)] == [128, 32, 1]
