"""The study: its report, from tables written by the test, and its command line.

`make study` itself is not run.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from tables import write_table

import curve
import study
import study_report
import study_tables
from pylon.checkpoints.checkpoint import save_best
from pylon.checkpoints.training_json import make_card
from pylon.model import Pylon
from pylon.scoring.box_tables import POOLED, SHOWN
from pylon.scoring.compare import print_paired
from pylon.scoring.rows import Rows, image_rows, read_rows, write_rows
from pylon.scoring.tables import Scored, table_of_seeds
from pylon.system.errors import UserError
from pylon.system.files import write_csv

CLASSES = ["Mass", "Nodule"]
BETTER = {  # AUROC, points, T(IoU .3) of each network
    "pylon": (0.9, 0.7, 0.5),
    "backbone-max": (0.9, 0.5, 0.4),
    "backbone-avg": (0.8, 0.7, 0.6),
}
SCORES = study_report.POOLED
FIGURE = Path("figs/study.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for k, (score, pooled) in enumerate(SCORES.items()):
        experiments = {}
        for name, means in BETTER.items():
            values = means[k] + rng.normal(0, 1e-4, (3, 3))
            scores = pd.DataFrame(values, index=["0", "1", "2"], columns=[*CLASSES, pooled])
            resamples = values[:, None] + rng.normal(0, 1e-3, (3, 50, 3))
            experiments[f"study-{name}"] = Scored(scores, resamples, np.full(3, 50))
            table = table_of_seeds(experiments[f"study-{name}"])
            for control in ("prior", "image centre", "prior box", "random maps"):
                table.loc[control] = 0.3
            if score == "box_localization":  # a table per class, with a column per score
                by_class = {
                    c: pd.DataFrame({SHOWN: table[c], "energy": table[c] / 10})
                    for c in [POOLED, *CLASSES]
                }
                table = pd.concat(by_class, names=["class"]).reset_index("seed")
            write_csv(tmp_path / f"csv/study-{name}/{score}.csv", table)
        print_paired(score, experiments, tmp_path / "csv/study-pylon", "")
    for name in BETTER:
        write_files_of_runs(tmp_path / f"csv/study-{name}")
    return tmp_path


def write_files_of_runs(csv: Path) -> None:
    """Logs of four seeds, one more than the study has, and their rows: a small and a large box."""
    (csv / "0_images.csv").write_text("image_id\na.png\nb.png\nc.png\n")
    table = pd.DataFrame({
        "image_id": ["a.png", "b.png"], "patient_id": [1, 2], "pathology": CLASSES,
        "row": [2, 60], "column": [98, 50], "hit": [0.0, 1.0], "bbox_x": 10, "bbox_y": 10,
        "bbox_w": [4, 80], "bbox_h": [4, 80], "image_height": 100, "image_width": 100,
    })  # fmt: skip
    about = {"class_names": CLASSES, "card": {"options": {"encoder_name": "tu-small"}}}
    for seed in "0123":
        (csv / f"{seed}.csv").write_text("epoch,seconds\n1,100\n2,80\n")
        write_rows(csv, seed, "boxes", Rows(table, about))


@pytest.fixture
def of_three() -> study_tables.Study:
    return study_tables.Study("study", tuple(BETTER), (0, 1, 2))


def test_report_matches_the_tables(folder, of_three):
    about = "the phantom, which is not medical data"
    text = study_report.write_report(
        of_three, about, "python study.py", Path("figs/study.png"), True
    )
    assert "3 test images with 2 boxes" in text
    assert "for 2 epochs, with 3 seeds. Training took 27 minutes" in text.replace("\n", " ")
    assert "These are synthetic images" in text
    lines = [line for line in text.replace("\n  ", " ").splitlines() if line.startswith("- ")]
    expected = (
        "- At equal AUROC (0.900 and 0.900), PYLON against **backbone, max**: "
        "points 0.700 and 0.500: better, +0.200",
        "- At a different AUROC (0.900 and 0.800), PYLON against **backbone, avg (CAM)**: "
        "points 0.700 and 0.700: the same",
    )
    for line, said in zip(lines, expected, strict=True):
        assert line.startswith(said)
    assert "T(IoU .3) 0.500 and 0.400: better" in lines[0]
    assert "T(IoU .3) 0.500 and 0.600: worse" in lines[1]
    assert "| prior box | 0.300 | 0.300 | 0.300 |" in text
    # the small box is missed, its point is in a corner; the large one is hit
    assert "| PYLON | 0.000 | 1.000 | 50% |" in text
    assert max(map(len, (line for line in text.splitlines() if line[:1] != "|"))) <= 100

    one = study_tables.Study("study", tuple(BETTER), (0,))
    text = study_report.write_report(
        one, "`data`", "python study.py", Path("figs/study.png"), False
    )
    assert "with one seed each" in text.replace("\n", " ")
    assert "A verdict is about this data" in text


def test_class_of_a_single_patient_has_a_dash(folder, of_three):
    """It has points, but no scores of boxes."""
    controls = ("prior box", "random maps")
    text = study_report.score_table(of_three, "box_localization", ["Hernia", *CLASSES], controls)
    for line in text.splitlines()[2:]:
        assert line.split(" | ")[1] == "-"
        assert "nan" not in line


def write_images(csv: Path, files: list[str], labels: list[list[int]]) -> None:
    images = pd.DataFrame({"image_id": files, "patient_id": range(len(files))})
    logits = np.arange(2.0 * len(files), dtype=np.float32).reshape(-1, 2)
    about = {"class_names": CLASSES}
    for seed in "012":
        rows = image_rows(images, np.array(labels, np.float32), logits, about)
        write_rows(csv, seed, "images", rows)


def test_gradcam_and_a_second_set_of_boxes(folder):
    names = ("pylon", "backbone-avg")
    for name in names:
        csv = folder / f"csv/study-{name}"
        # Grad-CAM: both boxes hit, the maps are perfect; the networks' own maps are flat
        rows = read_rows(csv / "0_boxes.csv")
        many = pd.concat([rows.table] * 12, ignore_index=True)
        many["patient_id"] = np.arange(len(many)) // 2
        maps = np.zeros((len(many), 100, 100), np.float32)
        for heatmap, (x, y, w, h) in zip(maps, Rows(many, {}).bboxes()[:, 0], strict=True):
            heatmap[y : y + h, x : x + w] = 1
        for seed in "012":
            write_rows(csv, seed, "boxes", Rows(many, rows.about), np.ones_like(maps))
            write_rows(csv, seed, "boxes_gradcam", Rows(many.assign(hit=1.0), rows.about), maps)
        for score in ("point_localization", "box_localization"):
            shutil.copy(csv / f"{score}.csv", csv / f"{score}_gradcam.csv")
        # the labels of the second set are those of the first in reverse; its ids have a folder
        write_images(csv, ["a.png", "b.png", "c.png"], [[0, 0], [0, 1], [1, 1]])
        other = shutil.copytree(csv, folder / f"csv/study-det-{name}")
        for path in other.glob("*_beside_study-*"):
            path.rename(other / path.name.replace("_beside_study-", "_beside_study-det-"))
        write_images(other, ["x/c.png", "x/d.png", "x/b.png", "x/a.png"], [[0, 0], [1, 1]] * 2)

    first = study_tables.Study("study", (*names, study_tables.GRADCAM), (0, 1, 2))
    second = ("Det", first._replace(name="study-det"))
    arguments = (first, "`data`", "python study.py", FIGURE, False, second, "Left out: fpn 0.")
    text = study_report.write_report(*arguments)
    assert "Left out: fpn 0." in text
    one, two = text.split("## On Det")
    for part in (one, two):
        assert "| PYLON minus | Mass | Nodule | all |" in part
        # its AUROC is that of the network, its points are paired with PYLON's: 1/2 - 1
        assert "| Grad-CAM of the CAM network | 0.7" in part
        assert "| Grad-CAM of the CAM network: points | -1.000" in part
        assert "-0.500 (" in part.split("Grad-CAM of the CAM network: points")[1].split("|")[3]
        assert "-1.000" in part.split("Grad-CAM of the CAM network: T(IoU .3)")[1].split("|")[1]
        assert "| Grad-CAM of the CAM network | 1.000 | 1.000 | 50% |" in part
        assert "| random maps | 0.030 | 0.030 | 0.030 |" in part  # energy
    assert "AUROC on the 3 test images that both have" in " ".join(two.split())
    assert "| PYLON, first | 1.000 | 1.000 | 1.000 |" in two
    # of a, b, c: 1, 0, 0, so that the positive one has the lowest logit
    assert "| PYLON, Det | 0.000 | 0.000 | 0.000 |" in two


def test_partial_study_says_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = study.Options(partial=True, networks=("pylon", "backbone-avg", "fpn", "gradcam"))
    with pytest.raises(UserError, match="no network under save/study-pylon yet"):
        study.what_is_there(options)
    model = Pylon("tu-test_resnet", None, classes=2, decoder_channels=8)
    card = make_card(CLASSES, {"image_size": 256}, "abc", {}, 0.1, 0.7)
    for place, finished in (("pylon/0", True), ("pylon/1", False), ("pylon/2", True),
                            ("backbone-avg/1", True), ("backbone-avg/0", True)):  # fmt: skip
        best = tmp_path / f"save/study-{place}/best"
        save_best(best, model, {**card, "finished": finished})
    found, said = study.what_is_there(options)
    assert found == ("study", ("pylon", "backbone-avg", "gradcam"), (0, 1))
    assert said == (
        "Left out (network and seed): pylon 2, backbone-avg 2, fpn 0, fpn 1, fpn 2, gradcam 2. "
        "Not finished, the best epoch so far: pylon 1."
    )
    study.link_networks(found, found._replace(name="study-det"))
    study.link_networks(found, found._replace(name="study-det"))
    assert (tmp_path / "save/study-det-backbone-avg/1/best/config.json").exists()

    whole, said = study.what_is_there(study.Options(seeds=2, networks=("pylon",)))
    assert (whole, said) == (("study", ("pylon",), (0, 1)), "")


def test_trained_images_are_not_scored(phantom, tmp_path):
    table = write_table(phantom, tmp_path / "mine")
    paths = {"second_table": tmp_path / "mine/my.csv", "second_boxes": tmp_path / "mine/boxes.csv"}
    options = study.Options(data=phantom, **paths)
    study.check_data(options)
    trained = table.index[table["split"] == "train"][0]
    table.loc[table["patient_id"] == table["patient_id"][trained], "split"] = "test"
    table.to_csv(paths["second_table"], index=False)
    with pytest.raises(UserError, match="test images are among those that the networks"):
        study.check_data(options)


def test_figure_is_drawn(folder, of_three):
    study_report.draw(of_three, folder / "figs/study.png")
    assert (folder / "figs/study.png").stat().st_size > 10_000


def test_command_is_written_without_folders():
    options = study.Options(
        data=Path("/home/me/nih"),
        name="nih",
        networks=("pylon", "fpn"),
        seeds=1,
        lr=1e-4,
        encoder_weights="/home/me/w.pth",
        train="--init-from a/b --min-lr 1e-6",
        partial=True,
    )
    assert study.command(options) == (
        "python experiments/study.py --data nih --name nih --networks pylon fpn --seeds 1 "
        "--lr 0.0001 --encoder-weights w.pth --train='--init-from a/b --min-lr 1e-6' --partial"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"networks": ("fpn",)}, "--networks fpn must name pylon"),
        ({"networks": ("pylon", "pylon")}, "each network once"),
        ({"data": Path("a"), "table": Path("b"), "boxes": Path("c")}, "two sources of images"),
        ({"boxes": Path("c.csv")}, "--boxes is for --table"),
        ({"table": Path("b.csv")}, "--table needs --boxes"),
        ({"name": "a/b"}, "--name"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"name": "speed"}, "is not a study's report"),
        ({"second_table": Path("t.csv")}, "--second-table and --second-boxes belong together"),
        ({"networks": ("pylon", "gradcam")}, "--networks gradcam needs backbone-avg"),
        ({"train": "--name 'a"}, "is not a list of options: No closing quotation"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(UserError) as refused:
        study.check(study.Options(**options))
    assert sentence in str(refused.value)


def test_paths_stay_valid_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    given = study.Options(table=Path("t.csv"), boxes=Path("b.csv"), encoder_weights="w.pth")
    whole = study.with_whole_paths(given)
    assert study.data_of(whole) == ("--table", str(tmp_path / "t.csv"))
    assert whole.boxes == tmp_path / "b.csv"
    assert whole.encoder_weights == str(tmp_path / "w.pth")
    assert study.with_whole_paths(study.Options()) == study.Options()


def test_failing_command_is_shown(tmp_path, capsys):
    with pytest.raises(UserError, match="--findings Rose must be one or more of"):
        study.run_script(
            ROOT / "tools/phantom/make_phantom.py", "--out", tmp_path, "--findings", "Rose"
        )
    with pytest.raises(SystemExit) as stopped:
        study.run_script("-c", "raise RuntimeError('a bug')")
    assert stopped.value.code == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_faulty_boxes_are_refused_before_training(phantom, tmp_path):
    (tmp_path / "b.csv").write_text("image,label\n")
    write_table(phantom, tmp_path / "mine")
    options = study.Options(table=tmp_path / "mine/my.csv", boxes=tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"b\.csv"):
        study.check_data(options)
    with pytest.raises(UserError, match="nowhere"):
        study.check_data(study.Options(data=tmp_path / "nowhere"))


def test_learning_curve_shows_scores_with_intervals(folder, monkeypatch):
    for name, images in zip(BETTER, (1000, 200, 3000), strict=True):
        path = folder / f"save/study-{name}/0/best/training.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"data": {"images": {"train": images}}}))
    drawn = []
    monkeypatch.setattr(curve, "draw_intervals", lambda _, *shown: drawn.append(shown))
    names = ("study-backbone-max", "study-pylon")
    curve.main(curve.Options(names, folder / "curve.png"))
    assert [images for images, _ in drawn] == [[200, 1000], [200, 1000]]
    assert [[round(table.iloc[0], 2) for table in tables] for _, tables in drawn] == [
        [0.9, 0.9],
        [0.5, 0.7],
    ]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_learning_curve_draws_each_interval():
    axes = Figure().subplots()
    table = pd.Series({"7": 0.5, "mean": 0.5, "7 low": 0.25, "7 high": 1.0, "prior": 0.1})
    curve.draw_intervals(axes, [100], [table])
    (bar,) = axes.containers[0].lines[2]
    assert bar.get_segments()[0].tolist() == [[100, 0.25], [100, 1.0]]


@pytest.mark.parametrize("names", [(), ("absent",)])
def test_learning_curve_of_no_network_is_refused(tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--name"):
        curve.main(curve.Options(names))
