"""Tables of the scores of boxes: intervals, controls, and those of the published heatmaps."""

import os

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pylon.scoring.bootstrap import bounds, resampled_means
from pylon.scoring.box_tables import POOLED, SHOWN, BoxScores, box_table, score_heatmaps
from pylon.scoring.boxes import FRACTIONS, SCORES, cross_fitted
from pylon.scoring.rows import Rows

SIMULATIONS = int(os.environ.get("PYLON_SIMULATIONS", "120"))


def rows_of(boxes: list[tuple[str, int, str, int, int, int, int]]) -> Rows:
    """Rows from image_id, patient_id, pathology, x, y, w, h in images of 32 x 64 pixels."""
    keys = ["image_id", "patient_id", "pathology", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    table = pd.DataFrame(boxes, columns=keys)
    table["image_height"] = 32
    table["image_width"] = 64
    return Rows(table, {"class_names": sorted(set(table["pathology"]))})


def maps_of(rows: Rows) -> np.ndarray:
    """Maps of 64 x 64, two rows a pixel, that are 1 in the box and 0 elsewhere."""
    maps = np.zeros((len(rows.table), 64, 64), np.float32)
    for heatmap, (x, y, w, h) in zip(maps, rows.bboxes()[:, 0], strict=True):
        heatmap[2 * y : 2 * (y + h), x : x + w] = 1
    return maps


@pytest.fixture
def rows() -> Rows:
    """Of twelve patients, the first of whom has three images with a Mass."""
    boxes = [(f"{k}.png", k, "Mass", 5 + k, 10, 8, 8) for k in range(12)]
    boxes += [(f"again{k}.png", 0, "Mass", 5, 10, 8, 8) for k in range(2)]
    return rows_of([*boxes, *((f"{k}.png", k, "Nodule", 40, 5 + k, 4, 4) for k in range(12))])


def test_perfect_maps_and_their_controls(rows):
    scores = score_heatmaps(maps_of(rows), rows)
    tables = box_table({"0": rows}, {"0": scores})
    assert list(tables) == [POOLED, "Mass", "Nodule"]
    for table in tables.values():
        assert list(table.columns) == [*SCORES, "fraction"]
        assert (table.loc["0"].drop(["false boxes", "fraction"]) == 1).all()
        assert table.loc["0", "false boxes"] == 0
        assert table.loc["0", "fraction"] == FRACTIONS[0]  # all are equal: the first
        assert (table.loc["oracle", list(SCORES)] == table.loc["0", list(SCORES)]).all()
        # 12 of 12 patients, whatever their images: the binomial interval of a share; a count has
        # none
        assert table.loc["0 low", SHOWN] == pytest.approx(0.025 ** (1 / 12))
        assert np.isnan(table.loc["0 low", "false boxes"])
        assert np.isnan(table.loc["0 low", "IoU"])  # no share, and the same for all

    # the medians of the other folds' boxes lie near the middle: 6 of 64 pixels to either side
    assert 0 < tables["Mass"].loc["prior box", SHOWN] < 1
    assert tables["Mass"].loc["whole image", "IoU"] == 64 / (32 * 64)
    assert tables["Nodule"].loc["whole image", "energy"] == 16 / (32 * 64)
    assert tables["Nodule"].loc["random maps", "IoU"] < 0.2


def test_table_averages_the_seeds(rows):
    good = score_heatmaps(maps_of(rows), rows)
    bad = good._replace(scores=np.zeros_like(good.scores), oracle=np.zeros_like(good.oracle))
    table = box_table({"0": rows, "1": rows}, {"0": good, "1": bad})[POOLED]
    assert table.loc["mean", SHOWN] == 0.5
    assert table.loc["std", SHOWN] == pytest.approx(np.sqrt(0.5))
    assert table.loc["oracle", SHOWN] == 0.5


@pytest.mark.parametrize("patients", [20, 9])
def test_means_that_are_no_shares_have_intervals_of_the_bootstrap(rng, patients):
    # IoU and energy near .035, of patients with one to three rows: less than one patient's worth
    patient_ids = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    values = rng.uniform(0.02, 0.05, len(patient_ids))
    boxes = [(f"{k}.png", p, "Mass", 5, 10, 8, 8) for k, p in enumerate(patient_ids)]
    scores = np.zeros((len(boxes), len(SCORES)))
    scores[:, -2:] = values[:, None]
    scored = BoxScores(scores, scores, np.full(len(boxes), FRACTIONS[0]), {})
    rows = rows_of(boxes)
    table = box_table({"0": rows, "1": rows}, {"0": scored, "1": scored})[POOLED]
    binomial = stats.beta.ppf(0.975, 1, patients)
    for label in ("0", "mean"):
        low, high = table.loc[f"{label} low"], table.loc[f"{label} high"]
        assert high[SHOWN] == pytest.approx(binomial)  # of a share without a hit
        if patients < 10:
            assert np.isnan([low["IoU"], high["IoU"], low["energy"], high["energy"]]).all()
            continue
        # by hand: patients are drawn, each with all of its rows
        sums = np.bincount(patient_ids, values)
        counts = np.bincount(patient_ids)
        drawn = rng.integers(patients, size=(20_000, patients))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        for name in ("IoU", "energy"):
            expected = np.percentile(means, [2.5, 97.5])
            assert [low[name], high[name]] == pytest.approx(expected, abs=2e-4)
            assert high[name] - low[name] < 0.01


def test_rows_without_other_patients_count_nowhere():
    alone = ("alone.png", 99, "Hernia", 1, 1, 62, 30)
    boxes = [(f"{k}.png", k, "Mass", 5 + k, 10, 8, 8) for k in range(12)]
    rows = rows_of([*boxes, alone])
    tables = box_table({"0": rows}, {"0": score_heatmaps(maps_of(rows), rows)})
    assert list(tables) == [POOLED, "Mass"]
    pd.testing.assert_frame_equal(tables[POOLED], tables["Mass"])


def test_intervals_hold_the_truth():
    """Of hits at a fraction that is chosen on other patients, and of counts."""
    found = []
    for simulation in range(SIMULATIONS):
        rng = np.random.default_rng([3, simulation])
        patients = np.repeat(np.arange(150), rng.integers(1, 5, 150))
        # each patient has its own chance, of mean 0.6 at the best fraction and 0.3 at the others
        chance = rng.beta(1.2, 0.8, 150)[patients, None]
        chances = np.where(np.arange(len(FRACTIONS)) == 8, chance, chance / 2)
        hits = rng.uniform(size=chances.shape) < chances
        scores = np.repeat(hits[:, :, None], len(SCORES), axis=2).astype(float)
        scores[..., -1] = rng.poisson(5 * chances)  # a count, of mean 3
        picked, chosen = cross_fitted(scores, np.full(len(patients), "a"), patients)
        assert (chosen == 8).all()
        low, high = bounds(resampled_means(picked, patients), np.full(len(SCORES), 150))
        found.append([low[0] <= 0.6 <= high[0], low[-1] <= 3 <= high[-1]])
    shares = np.mean(found, axis=0)
    slack = 3.3 * np.sqrt(0.95 * 0.05 / SIMULATIONS)
    least = 0.93 if SIMULATIONS >= 1000 else 0.94 - slack
    print(f"hits {shares[0]:.3f}, counts {shares[1]:.3f} of {SIMULATIONS} intervals hold the truth")
    assert (shares >= least).all()
    assert (shares <= max(0.97, 0.96 + slack)).all()


def test_published_heatmaps(shared, official_boxes):
    """The figures of docs/results.md."""
    published = np.load(shared / "reference" / "published_heatmaps.npz")
    pairs = zip(published["image_id"], published["pathology"], strict=True)
    map_of_pair = {pair: k for k, pair in enumerate(pairs)}
    boxes = official_boxes.rename(columns={key: f"bbox_{key}" for key in "xywh"})
    boxes["patient_id"] = boxes["image_id"].str[:8].astype(int)
    boxes["image_height"] = boxes["image_width"] = 1024
    rows = Rows(boxes, {"class_names": sorted(set(boxes["pathology"]))})
    order = [map_of_pair[pair] for pair in zip(boxes["image_id"], boxes["pathology"], strict=True)]
    assert sorted(order) == list(range(984))
    maps = published["heatmap"][order].astype(np.float32)

    tables = box_table({"published": rows}, {"published": score_heatmaps(maps, rows)})
    columns = ["T(IoU 0.1)", "T(IoU 0.3)", "T(IoU 0.5)", "T(IoBB 0.25)", "false boxes", "energy"]
    expected = {
        "published": [0.810, 0.492, 0.186, 0.691, 1.374, 0.272],
        "published low": [0.785, 0.457, 0.160, 0.661, 1.267, 0.254],
        "published high": [0.834, 0.524, 0.213, 0.720, 1.482, 0.290],
        "oracle": [0.813, 0.509, 0.195, 0.710, 1.377, 0.272],
        "prior box": [0.392, 0.214, 0.140, 0.380, 0.608, 0.272],
        "whole image": [0.285, 0.020, 0.001, 0.039, 0.715, 0.075],
        "random maps": [0.493, 0.107, 0.012, 0.385, 7.098, 0.075],
    }
    for label, figures in expected.items():
        found = tables[POOLED].loc[label, columns].round(3).tolist()
        assert found == pytest.approx(figures, abs=0.0011), label
    of_class = {name: table.loc["published", SHOWN].round(3) for name, table in tables.items()}
    assert of_class == pytest.approx(
        {
            "Atelectasis": 0.428, "Cardiomegaly": 0.788, "Effusion": 0.314, "Infiltration": 0.650,
            "Mass": 0.506, "Nodule": 0.418, "Pneumonia": 0.625, "Pneumothorax": 0.133,
            POOLED: 0.492,
        },
        abs=0.0011,
    )  # fmt: skip
