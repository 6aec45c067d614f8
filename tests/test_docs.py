"""README.md and docs/: length, links and commands are checked, and their code is run."""

import importlib
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tyro
from conftest import LONG, ROOT, run_script

from pylon.data.sources import read_radiographs
from pylon.options import DataOptions, TrainOptions

PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "data/README.md", *sorted(ROOT.glob("docs/*.md"))]
README = ROOT / "README.md"
EXTENDING = ROOT / "docs/extending.md"
OWN_DATA = ROOT / "docs/own_data.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> list[str]:
    """All `python SCRIPT ...` commands of a page, in blocks and in text, as typed."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [*text.splitlines(), *re.findall(r"`([^`\n]+)`", prose(page))]
    found = [re.search(r"\b((?:python |torchrun .*?)\S+\.py\b.*)", line) for line in lines]
    return [match.group(1) for match in found if match]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_have_at_most_100_characters(page):
    lines = page.read_text().splitlines()
    wide = [line for line in lines if len(line) > 100 and not re.search(r"^\||https?:", line)]
    assert wide == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        name, _, wanted = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if wanted else []
        assert not wanted or wanted in map(anchor, headings), target


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != EXTENDING], ids=lambda page: page.stem
)
def test_commands_have_options_that_exist(page):
    for command in commands(page):
        arguments = shlex.split(command, comments=True)
        script = next(k for k, word in enumerate(arguments) if word.endswith(".py"))
        if script + 1 == len(arguments):
            continue  # no options
        module = importlib.import_module(Path(arguments[script]).stem)
        options = TrainOptions if module.__name__ == "train" else module.Options
        tyro.cli(options, args=arguments[script + 1 :])


def test_every_deviation_in_the_code_is_on_the_page_of_differences():
    files = [*ROOT.glob("*.py"), *(ROOT / "pylon").rglob("*.py")]
    tags = [str(f.relative_to(ROOT)) for f in files for _ in f.read_text().split("Deviation:")[1:]]
    page = (ROOT / "docs/differences.md").read_text()
    rows = re.findall(r"^\|.*\| (pylon/\S+\.py) \|$", page, re.M)
    assert sorted(rows) == sorted(tags)


def test_code_of_the_quick_start_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    image = cv2.imread("data/examples/00000032_037.jpg", cv2.IMREAD_GRAYSCALE)
    (code,) = blocks(README, "python")
    names: dict = {}
    exec(code, names)
    assert len(names["prediction"].findings) == 14
    assert names["picture"].shape == (1024, 1024, 3)
    assert (names["picture"] != image[..., None]).any()


def demo_options() -> str:
    """The value of `demo` on the page of recipes."""
    first, *_ = blocks(EXTENDING, "bash")
    return re.fullmatch(r'demo="(.*)"\n', first).group(1)


def apply(diff: str, folder: Path) -> None:
    """Apply a diff block: each hunk must match exactly once."""
    for part in re.split(r"^--- ", diff, flags=re.M)[1:]:
        name, _, hunks = part.partition("\n")
        file = folder / name
        for hunk in re.split(r"^@@\n", hunks, flags=re.M)[1:]:
            lines = hunk.splitlines()
            old = "".join(line[1:] + "\n" for line in lines if line[:1] != "+")
            new = "".join(line[1:] + "\n" for line in lines if line[:1] != "-")
            text = "\n" + file.read_text()
            assert text.count("\n" + old) == 1, f"{name}: {hunk}"
            file.write_text(text.replace("\n" + old, "\n" + new)[1:])


def use_copy(folder: Path) -> None:
    """In a script's process: run the script and the package of a changed copy of the repository."""
    sys.argv[0] = str(folder / Path(sys.argv[0]).relative_to(ROOT))
    sys.path.insert(0, str(folder))
    for name in list(sys.modules):
        if name.partition(".")[0] == "pylon":
            del sys.modules[name]


@LONG
def test_recipes_work_as_written(phantom, tmp_path, monkeypatch):
    # the changed copy
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "pylon", copy / "pylon")
    for script in ("train.py", "eval_auc.py", "eval_loc.py"):
        shutil.copy(ROOT / script, copy / script)
    in_own_code, *files = blocks(EXTENDING, "python")
    for code in files:
        name = code.splitlines()[0].removeprefix("# ")
        (copy / name).write_text(code)
    for diff in blocks(EXTENDING, "diff"):
        apply(diff, copy)

    # the data: the phantom, and a part of it in the layout of the recipe
    (tmp_path / "data").mkdir()
    (tmp_path / "data/phantom").symlink_to(phantom)
    mine = tmp_path / "data/mine"
    shutil.copytree(phantom / "images", mine / "images")
    names = sorted(path.name for path in mine.glob("images/*"))[:24]
    table = pd.DataFrame({"file": names, "patient": [int(name[:8]) for name in names]})
    table["split"] = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    findings = ["", "Effusion", "Nodule", "Effusion|Nodule"]
    table["findings"] = [findings[k % 4] for k in range(24)]
    table.to_csv(mine / "labels.csv", index=False)
    (header,) = {code.splitlines()[0] for code in blocks(EXTENDING, "csv")}
    assert ",".join(table) == header

    # every command of the page
    printed = {}
    for command in commands(EXTENDING):
        arguments = shlex.split(command.replace("$demo", demo_options()), comments=True)[1:]
        done = run_script(*arguments, cwd=tmp_path, sabotage=partial(use_copy, copy))
        printed[command] = done.stdout
    assert len(printed) == 8
    assert "average precision" in printed["python eval_auc.py --data data/mine --name mine"]
    scores = pd.read_csv(tmp_path / "csv/mine/auroc.csv")
    assert scores.columns[1:3].tolist() == ["Effusion", "Nodule"]
    written = {"my-encoder": '"encoder_name": "mine"', "pooled": '"global_pooling": true'}
    for name, key in written.items():
        assert key in (tmp_path / f"save/{name}/0/best/config.json").read_text()

    # and in one's own code
    monkeypatch.chdir(tmp_path)
    exec(in_own_code, {})


VINDR = {
    "annotations/image_labels_train.csv": (
        "image_id,rad_id,Aortic enlargement,Nodule/Mass,Pneumonia,Other diseases,No finding\n"
        "a,R1,1,0,0,0,0\na,R2,1,0,0,0,0\na,R3,0,1,0,0,0\n"
        "b,R1,0,0,0,0,1\nb,R2,0,0,0,0,1\nb,R3,0,0,0,0,1\n"
        "c,R1,0,1,1,0,0\nc,R2,0,1,0,0,0\nc,R3,0,1,1,0,0\n"
    ),
    "annotations/image_labels_test.csv": (
        "image_id,Aortic enlargement,Nodule/Mass,Pneumonia,Other disease,No finding\n"
        "d,0,1,0,0,0\ne,0,0,0,0,1\n"
    ),
    "annotations/annotations_test.csv": (
        "image_id,class_name,x_min,y_min,x_max,y_max\n"
        "d,Nodule/Mass,10.5,20,40,60\nd,Nodule/Mass,70,20,90,60\nd,Other disease,1,1,9,9\n"
        "e,No finding,,,,\n"
    ),
}
CHEXPERT_COLUMNS = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
SMALL = "CheXpert-v1.0-small"
CHEXPERT = {
    f"{SMALL}/train.csv": CHEXPERT_COLUMNS
    + f"{SMALL}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,"
    "1.0,,,,,,,,,0.0,,,,1.0\n"
    + f"{SMALL}/train/patient00010/study1/view1_frontal.jpg,Male,50,Frontal,PA,"
    ",,1.0,,,-1.0,,,,,,,,\n"
    + f"{SMALL}/train/patient00010/study1/view2_lateral.jpg,Male,50,Lateral,,"
    ",,1.0,,,-1.0,,,,,,,,\n",
    f"{SMALL}/valid.csv": CHEXPERT_COLUMNS
    + f"{SMALL}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0,1.0,0.0,"
    "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n",
}
SPREADSHEET = {
    "findings.csv": (
        "File;Case;Sex;Effusion;Mass\na.png;C1;M;yes;no\nb.png;C2;F;?;no\nc.png;C3;F;no;yes\n"
    ),
    "marks.csv": "File;Finding;left;top;right;bottom\nxrays/c.png;Mass;10;20;40;60\n",
}
RSNA = {
    "stage_2_train_labels.csv": (
        "patientId,x,y,width,height,Target\n"
        "a,,,,,0\nb,10.0,20.0,30.0,40.0,1\nb,60.0,20.0,30.0,40.0,1\nc,,,,,0\nd,1.0,2.0,3.0,4.0,1\n"
    ),
}


@pytest.mark.parametrize(
    ("name", "files"),
    [("vindr", VINDR), ("chexpert", CHEXPERT), ("rsna", RSNA), ("spreadsheet", SPREADSHEET)],
)
def test_lists_of_others_become_tables(tmp_path, monkeypatch, name, files):
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    (code,) = [code for code in blocks(OWN_DATA, "python") if code.startswith(f"# {name}.py")]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    for path in pd.read_csv("my.csv")["path"]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(path, np.zeros((100, 100), np.uint8))
    boxes = Path("boxes.csv") if Path("boxes.csv").exists() else None
    options = DataOptions(table=Path("my.csv"))
    data = read_radiographs(options, boxes=boxes, with_boxes=boxes is not None)
    assert data.images["path"].notna().all()
    if name == "vindr":
        assert data.class_names == ("Aortic enlargement", "Nodule/Mass", "Pneumonia")
        assert data.images["split"].tolist() == ["val", "train", "train", "test", "test"]
        labels = data.images[list(data.class_names)].to_numpy().tolist()
        assert labels == [[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 0]]
        assert data.boxes[list("xywh")].to_numpy().tolist() == [[10, 20, 29, 40], [70, 20, 20, 40]]
    elif name == "chexpert":
        assert len(data.class_names) == 12
        assert data.images["split"].tolist() == ["train", "val", "test"]
        patients = ["patient00001", "patient00010", "patient64541"]
        assert data.images["patient_id"].tolist() == patients
        assert data.images["Cardiomegaly"].tolist() == [0, 1, 0]
        assert np.isnan(data.images["Edema"]).tolist() == [False, True, False]
    elif name == "spreadsheet":
        labels = data.images[["Effusion", "Mass"]].to_numpy()
        np.testing.assert_array_equal(labels, [[1, 0], [np.nan, 0], [0, 1]])
        written = pd.read_csv("boxes.csv").to_numpy().tolist()
        assert written == [["xrays/c.png", "Mass", 10, 20, 30, 40]]
    else:
        assert data.class_names == ("Lung Opacity",)
        assert data.images["Lung Opacity"].tolist() == [0, 1, 0, 1]
        assert set(data.images["split"]) == {"train", "val", "test"}
