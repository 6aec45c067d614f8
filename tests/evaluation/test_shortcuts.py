"""Telling classes without looking: AUROC worked out by hand, patients kept apart, bad input."""

import cv2
import numpy as np
import pandas as pd
import pytest

from pylon.evaluation.shortcuts import report_shortcuts, tell_classes
from pylon.options import ClassOptions, DataOptions
from pylon.system.errors import UserError


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_auroc_is_that_of_the_groups():
    # per 8 patients with one image each: of 4 positives 3 are AP, of 4 negatives 1
    labels = frame(Mass=[1.0, 1, 1, 1, 0, 0, 0, 0] * 25)
    view = frame(view=["AP", "AP", "AP", "PA", "AP", "PA", "PA", "PA"] * 25)
    noise = frame(mean=np.random.default_rng(0).normal(size=200))
    patients = pd.Series(range(200))
    scores = tell_classes(labels, patients, {"view": view, "intensity": noise})
    # pairs that are ranked correctly, and half of the ties: 3/4 * 3/4 + (3/16 + 3/16) / 2
    assert scores.at["Mass", "by view"] == pytest.approx(0.75, abs=0.01)
    assert scores.at["Mass", "by intensity"] == pytest.approx(0.5, abs=0.1)
    assert scores.at["Mass", "most"] == "view"
    assert scores.at["Mass", "low"] < scores.at["Mass", "auroc"] < scores.at["Mass", "high"]
    assert scores.at["Mass", "low"] > 0.65
    assert scores.at["Mass", "high"] < 0.85
    assert scores.at["macro", "auroc"] == scores.at["Mass", "auroc"]
    assert list(scores.columns[:4]) == ["positives", "negatives", "patients", "auroc"]
    assert scores.loc["Mass"].tolist()[:3] == [100, 100, 100]


def test_what_only_tells_patients_apart_tells_no_class():
    patients = pd.Series(np.tile(range(40), 5))
    labels = frame(Mass=(patients % 2).astype(float))
    code = frame(code=patients.astype(str))  # would tell all, if patients were in several folds
    scores = tell_classes(labels, patients, {"code": code})
    assert scores.at["Mass", "auroc"] == pytest.approx(0.5, abs=0.05)


def test_unknown_labels_do_not_count_and_rare_classes_are_blank():
    patients = pd.Series(np.repeat(range(50), 2))
    sharp = frame(sharpness=np.tile([1.5, -1.5], 50) + 1e-3 * np.arange(100))
    told = np.tile([1.0, 0.0], 50)
    unknown = told.copy()
    unknown[60:] = np.nan
    unknown_and_wrong = np.where(np.arange(100) < 60, told, 1 - told)
    rare = np.where(np.arange(100) < 18, told, 0.0)  # 9 patients
    labels = frame(Rare=rare, Mass=unknown, Edema=unknown_and_wrong)
    scores = tell_classes(labels, patients, {"sharpness": sharp})
    assert list(scores.index) == ["Rare", "Mass", "Edema", "macro"]
    assert scores.loc["Rare"].tolist()[:3] == [9, 91, 9]
    assert scores.loc["Rare"].isna()[3:].all()
    assert scores.loc["Mass"].tolist()[:4] == [30, 30, 30, 1]
    assert scores.at["Edema", "auroc"] < 0.7
    mean = (1 + scores.at["Edema", "auroc"]) / 2
    assert scores.at["macro", "auroc"] == pytest.approx(mean)


def test_too_few_patients_are_refused():
    labels = frame(Mass=[1.0, 0] * 20)
    with pytest.raises(UserError, match="no class has positive images of 10 patients"):
        tell_classes(labels, pd.Series([7] * 40), {"view": frame(view=["AP", "PA"] * 20)})


@pytest.fixture
def own(tmp_path):
    """A table of 48 images of 24 patients: positives are sharp; and columns."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(48):
        sharp = rng.integers(0, 256, (32, 24)).astype(np.uint8)
        small = cv2.resize(sharp, (12, 16), interpolation=cv2.INTER_AREA)
        blurred = cv2.resize(small, (24, 32), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(tmp_path / f"{k}.png"), sharp if k % 2 else blurred)
        rows.append((f"{k}.png", k // 2, "train", k % 2, k % 4 // 2, "Bern" if k % 3 else "", 9))
    names = ["path", "patient_id", "split", "Mass", "Edema", "low", "site"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "my.csv", index=False)
    return tmp_path


def report(own, *columns, **options) -> pd.DataFrame:
    ignored = [name for name in ("low", "site") if name not in columns]
    report_shortcuts(
        DataOptions(table=own / "my.csv"),
        ClassOptions(ignore_columns=tuple(ignored)),
        columns,
        0,
        own / "new" / "shortcuts.csv",
    )
    return pd.read_csv(own / "new" / "shortcuts.csv", index_col=0)


def test_table_is_told_by_files_and_columns(own, capsys):
    (own / "3.png").write_bytes(b"no image")
    (own / "4.png").unlink()
    scores = report(own, "low")  # called as a column of the scores
    assert list(scores.index) == ["Mass", "Edema", "macro"]
    told_by = [name for name in scores if name.startswith("by ")]
    assert told_by == ["by low", "by sharpness", "by intensity"]
    assert scores.at["Mass", "by sharpness"] > 0.95
    assert scores.at["Mass", "by low"] < 0.7
    assert scores.at["Mass", "positives"] == 23
    out = capsys.readouterr().out
    assert "note: left out: 1 of 48 images of" in out
    assert f"note: left out: 1 image that cannot be read ({own / '3.png'} cannot be read" in out
    assert "all images have the same: width (24), height (32), kind (PNG, 8 bits)" in out
    assert "AUROC without looking, 46 images, by low, sharpness" in out
    assert "Mass can be told without looking at the radiograph (AUROC " in out
    assert "Edema can be told" not in out


def test_columns_alone_are_used_without_images(own, capsys):
    for path in own.glob("*.png"):
        path.unlink()
    scores = report(own, "low")
    assert list(scores.columns[-1:]) == ["by low"]
    out = capsys.readouterr().out
    assert "no image is there; left out: image size, kind of file, sharpness, border, int" in out
    with pytest.raises(UserError, match="no property differs between its images; name some with"):
        report(own)


def test_bad_columns_and_images_are_named(own):
    with pytest.raises(UserError, match="'site' is '9' in every image"):
        report(own, "site")
    with pytest.raises(UserError, match="no column 'age', which --columns asks for"):
        report(own, "age")
    for path in own.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="has no image that can be read: "):
        report(own)
    assert not list(own.rglob("shortcuts.csv"))
