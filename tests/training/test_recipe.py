"""Options for training from few images, on small tables and networks."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pylon.checkpoints.training_json import differences, has_ended
from pylon.model import Pylon
from pylon.system.errors import UserError
from pylon.training.recipe import (
    Offsets,
    freeze_up_to,
    keep_frozen,
    make_average,
    make_optimizer,
    make_schedule,
    require_positives,
    share_of_patients,
    start_at_prevalences,
)


def tiny():
    return Pylon("tu-test_resnet", None, decoder_channels=8, classes=3)


def many_patients():
    """40 patients of 1 to 3 images to train on, and 5 of the other splits."""
    patients = np.repeat(np.arange(45), 1 + np.arange(45) % 3)
    split = np.where(patients < 40, "train", np.where(patients < 43, "val", "test"))
    return pd.DataFrame({"patient_id": patients, "split": split, "Mass": patients % 7 == 0})


def test_a_share_is_of_patients_and_smaller_ones_are_part_of_larger_ones():
    images = many_patients()
    patients = {}
    for share in (1 / 8, 1 / 4, 0.33, 1):
        kept = share_of_patients(images, share)
        patients[share] = set(kept["patient_id"][kept["split"] == "train"])
        whole = images[images["patient_id"].isin(patients[share]) | (images["split"] != "train")]
        pd.testing.assert_frame_equal(kept, whole)
    assert [len(chosen) for chosen in patients.values()] == [5, 10, 14, 40]
    assert patients[1 / 8] < patients[1 / 4] < patients[0.33] < patients[1]
    assert patients[1 / 8] != set(range(5))  # not in the order of the list


def test_a_share_without_findings_is_refused():
    train = pd.DataFrame({"Mass": [0.0, np.nan], "Nodule": [0, 0]})
    with pytest.raises(UserError, match=r"--train-share 0.1: none of these 2 training images"):
        require_positives(train, ["Mass", "Nodule"], 0.1)
    require_positives(train, ["Mass", "Nodule"], 1)
    require_positives(train.assign(Nodule=[0, 1]), ["Mass", "Nodule"], 0.1)


def lying_and_standing():
    rng = np.random.default_rng(0)
    view = np.array(["AP"] * 30 + ["PA"] * 50 + [""] * 20)
    age = np.where(np.arange(100) % 9 == 0, np.nan, rng.uniform(20, 80, 100))
    edema = rng.uniform(size=100) < np.where(view == "AP", 0.7, 0.1)
    images = pd.DataFrame({
        "Edema": edema.astype(float), "Mass": 0.0, "Nodule": rng.uniform(size=100) < 0.3,
    })  # fmt: skip
    images.loc[::7, "Edema"] = np.nan
    return pd.DataFrame({"view": view, "age": age}), images


def test_offsets_are_a_logistic_regression_of_the_training_images():
    columns, images = lying_and_standing()
    train = images.iloc[5:90]
    offsets = Offsets(columns, train, ["Edema", "Mass", "Nodule"])
    given = offsets.of(images)
    assert given.shape == (100, 3)
    assert given.dtype == np.float32
    assert (given[:, 1] == 0).all()  # no positive image to learn from

    # the same, by Newton's method: penalty w'w / 2, the intercept free
    seen = columns.loc[train.index]
    age = seen["age"].fillna(seen["age"].mean())
    blank = seen["age"].isna()
    inputs = np.column_stack([
        (age - age.mean()) / age.std(ddof=0), (blank - blank.mean()) / blank.std(ddof=0),
        *(seen["view"] == view for view in ("", "AP", "PA")), np.ones(len(seen)),
    ]).astype(float)  # fmt: skip
    known = train["Edema"].notna().to_numpy()
    x = inputs[known]
    y = train["Edema"].to_numpy()[known]
    penalty = np.diag([1.0] * 5 + [0.0])
    w = np.zeros(6)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        w -= np.linalg.solve(hessian + 1e-9 * np.eye(6), x.T @ (p - y) + penalty @ w)
    expected = (inputs - inputs.mean(axis=0)) @ w
    np.testing.assert_allclose(given[5:90, 0], expected, atol=2e-3)
    assert abs(given[5:90].mean(axis=0)).max() < 1e-6

    weights = offsets.weights_by_column(["Edema", "Mass", "Nodule"])
    assert weights["Edema"]["view_AP"] > 1 > weights["Edema"]["view_PA"]
    assert set(weights["Edema"]) == {
        "age", "missingindicator_age", "view_", "view_AP", "view_PA",
    }  # fmt: skip


def test_head_starts_at_prevalences():
    net = tiny()
    labels = {"a": [1, 0, 0, 0], "b": [1, 1, np.nan, np.nan], "c": [0, 0, 0, 0]}
    start_at_prevalences(net, pd.DataFrame(labels), ["a", "b", "c"])
    shares = net.segmentation_head[0].bias.sigmoid().tolist()
    assert shares == pytest.approx([1.5 / 5, 2.5 / 3, 0.5 / 5])


@pytest.mark.parametrize("stride", [0, 8])
def test_frozen_layers_do_not_change(stride):
    net = tiny()
    norms = freeze_up_to(net, stride)
    image = torch.randn(2, 1, 256, 256)
    with torch.no_grad():
        before = net.eval().encoder(image)
    net.train()
    keep_frozen(norms)
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    net(image).logits.sum().backward()
    adam.step()
    with torch.no_grad():
        after = net.eval().encoder(image)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    # the image itself and the features at strides 2, 4, 8, 16 and 32
    assert same == ([True] * 4 + [False] * 2 if stride else [True] + [False] * 5)


def options(**changed):
    values = {"lr": 0.01, "encoder_lr": 1, "optimizer": "adam", "schedule": "plateau"}
    values |= {"epochs": 4, "patience": 1, "lr_factor": 0.2}
    return SimpleNamespace(**(values | changed))


def test_encoder_has_its_own_learning_rate():
    net = tiny()
    device = torch.device("cpu")
    (group,) = make_optimizer(net, options(), device).param_groups
    assert len(group["params"]) == len(list(net.parameters()))
    adam = make_optimizer(net, options(encoder_lr=0.1, optimizer="adamw"), device)
    assert isinstance(adam, torch.optim.AdamW)
    others, encoder = adam.param_groups
    assert (others["lr"], encoder["lr"]) == pytest.approx((0.01, 0.001))
    assert {id(weight) for weight in encoder["params"]} == {
        id(weight) for weight in net.encoder.parameters()
    }
    assert len(others["params"]) + len(encoder["params"]) == len(group["params"])


def test_cosine_rises_for_an_epoch_and_falls_to_nothing():
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=0.01)
    schedule = make_schedule(adam, options(schedule="cosine", epochs=10), steps_an_epoch=4)
    rates = []
    for _ in range(40):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[22] == pytest.approx(0.005)  # half of the 36 steps that follow
    assert adam.param_groups[0]["lr"] == pytest.approx(0)


def test_a_cosine_ends_with_its_last_epoch():
    """Its rate falls below --min-lr before, and more epochs would be another cosine."""
    values = {"epochs": 20, "min_lr": 1e-6, "schedule": "cosine"}
    assert not has_ended({"epoch": 19, "lr": 1e-9}, values)
    assert has_ended({"epoch": 20, "lr": 1e-3}, values)
    assert has_ended({"epoch": 19, "lr": 1e-9}, {**values, "schedule": "plateau"})
    before, now = ({"options": {**values, "epochs": n}, "split_sha256": ""} for n in (20, 25))
    assert differences(before, now, "{} {} (now {})") == ["--epochs 20 (now 25)"]
    for card in (before, now):
        card["options"]["schedule"] = "plateau"
    assert differences(before, now, "{}") == []


def test_a_column_that_is_the_same_in_training_is_refused():
    columns, images = lying_and_standing()
    with pytest.raises(UserError, match=r"--adjust-for view: this column is the same in all tr"):
        Offsets(columns, images.iloc[:30], ["Edema"])


def test_average_of_weights_is_exponential():
    assert make_average(torch.nn.Linear(1, 1), 0) is None
    net = torch.nn.BatchNorm1d(1)
    average = make_average(net, 0.75)
    for value in (1.0, 5.0, 9.0):
        net.weight.data.fill_(value)
        net.running_mean.fill_(value)
        average.update_parameters(net)
    # the first is taken as it is: .75 (.75 x 1 + .25 x 5) + .25 x 9
    assert average.module.weight.item() == average.module.running_mean.item() == 3.75
