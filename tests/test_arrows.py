"""Which file imports which: arrows between rooms go down, and inside a room there is no circle.

train.py, eval_auc.py, eval_loc.py, generate_heatmap.py, tools/, benchmarks/
pylon/experiment/
pylon/model.py and the other networks, pylon/scoring/, pylon/data/
pylon/system/
"""

import ast
import graphlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT

NETWORKS = ("model", "encoders", "baselines", "heatmaps", "drawing")
MIDDLE = {"networks", "scoring", "data"}
BELOW = {  # what a room may import besides itself
    "system": set(),
    **{room: {"system"} for room in MIDDLE},
    "experiment": MIDDLE | {"system"},
    "pylon": MIDDLE | {"system", "experiment"},  # pylon/__init__.py
}
TOP = MIDDLE | {"system", "experiment", "pylon"}  # what scripts, tools/ and benchmarks/ may import
LIBRARIES_OF_MODEL = {"torch", "segmentation_models_pytorch", "huggingface_hub"}


def room_of(file: str) -> str:
    """The room of a file, by its path below the root."""
    first, *rest = Path(file).parts
    if first != "pylon":
        return first  # a script is a room of its own
    if len(rest) > 1:
        return rest[0]
    stem = Path(file).stem
    return "pylon" if stem == "__init__" else "networks" if stem in NETWORKS else stem


def files_of(root: Path) -> list[str]:
    """All python files that arrows lead from, by their paths below the root."""
    patterns = ("*.py", "tools/**/*.py", "benchmarks/**/*.py", "pylon/**/*.py")
    paths = [path for pattern in patterns for path in root.glob(pattern)]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def modules_of(file: str, root: Path, modules: Iterable[str] = ()) -> set[str]:
    """Modules that a file imports, inside functions too.

    `from a import b` is of a.b if that is among the modules, else of a.
    """
    names = set()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in modules else node.module)
    return names


def graph_of(root: Path) -> dict[str, set[str]]:
    """For each file the files that it imports."""
    files = {}
    for file in files_of(root):
        parts = Path(file).with_suffix("").parts
        name = parts if parts[0] == "pylon" else parts[-1:]  # a script imports what is beside it
        files[".".join(name).removesuffix(".__init__")] = file
    graph = {}
    for file in files.values():
        modules = modules_of(file, root, files)
        graph[file] = {files[module] for module in modules if module in files}
    return graph


def wrong_arrows(graph: dict[str, set[str]]) -> list[str]:
    """Arrows that lead up, or to a room beside."""
    wrong = []
    for file, imported in graph.items():
        room = room_of(file)
        allowed = BELOW.get(room, TOP) | {room}
        wrong += [f"{file} -> {other}" for other in imported if room_of(other) not in allowed]
    return sorted(wrong)


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports inside a room, if there is one."""
    inside = {
        file: {other for other in imported if room_of(other) == room_of(file)}
        for file, imported in graph.items()
    }
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def graph():
    return graph_of(ROOT)


def test_arrows_go_down(graph):
    assert wrong_arrows(graph) == []


def test_no_room_imports_in_a_circle(graph):
    assert circle_of(graph) == []


def test_all_files_are_in_a_room_and_all_rooms_are_seen(graph):
    rooms = {room_of(file) for file in graph}
    scripts = {"train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py"}
    assert rooms == {*BELOW, *scripts, "tools", "benchmarks"}
    for room in rooms - {"system", "pylon"}:
        leaving = [file for file in graph if room_of(file) == room and graph[file]]
        assert leaving, room  # or the graph would be blind
    assert "pylon/system/errors.py" in graph["pylon/system/files.py"]
    assert "pylon/data/images.py" in graph["pylon/data/cache.py"]
    assert "pylon/data/chestxray14.py" in graph["pylon/experiment/checkpoint.py"]  # in a function


def test_errors_import_nothing():
    assert modules_of("pylon/system/errors.py", ROOT) == set()


def test_the_network_needs_three_libraries():
    roots = {name.split(".")[0] for name in modules_of("pylon/model.py", ROOT)}
    assert roots - sys.stdlib_module_names - {"pylon"} == LIBRARIES_OF_MODEL


@pytest.mark.parametrize(
    ("file", "line", "arrow"),
    [
        ("pylon/system/files.py", "import pylon.data.images", "pylon/data/images.py"),
        ("pylon/system/files.py", "import pylon", "pylon/__init__.py"),
        ("pylon/model.py", "from pylon.data import transforms", "pylon/data/transforms.py"),
        ("pylon/scoring/tables.py", "from pylon.model import Pylon", "pylon/model.py"),
        ("pylon/data/cache.py", "from pylon import heatmaps", "pylon/heatmaps.py"),
        (
            "pylon/data/cache.py",
            "def f():\n    from pylon.experiment.card import make_card",
            "pylon/experiment/card.py",
        ),
        ("pylon/experiment/runs.py", "import train", "train.py"),
        ("eval_auc.py", "from eval_loc import Options", "eval_loc.py"),
        ("tools/check_data.py", "import measure", "benchmarks/measure.py"),
        ("benchmarks/fed.py", "import thorax", "tools/thorax.py"),
    ],
)
def test_a_reversed_arrow_is_seen(tmp_path, file, line, arrow):
    plant(tmp_path, file, line)
    assert wrong_arrows(graph_of(tmp_path)) == [f"{file} -> {arrow}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pylon/data/contract.py", "from pylon.data import chestxray14"),
        ("pylon/encoders.py", "def f():\n    import pylon.model"),
        ("benchmarks/measure.py", "import speed"),
    ],
)
def test_a_circle_is_seen(tmp_path, file, line):
    plant(tmp_path, file, line)
    graph = graph_of(tmp_path)
    assert wrong_arrows(graph) == []
    assert file in circle_of(graph)


def plant(folder: Path, file: str, line: str) -> None:
    """Copy our files into a folder, and put a line at the end of one of them."""
    for name in files_of(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with open(folder / file, "a") as target:
        target.write(f"\n{line}\n")


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh process has after some code."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


SLOW = {"torch", "pandas", "sklearn", "albumentations", "matplotlib", "cv2", "scipy", "accelerate"}


def test_importing_pylon_loads_no_library():
    assert not loaded_by("import pylon; assert 'Pylon' in dir(pylon)") & SLOW
    assert not loaded_by("import pylon.system.cli") & SLOW
    assert not loaded_by("import pylon.experiment.options") & SLOW


def test_the_network_is_there_when_it_is_asked_for_and_needs_no_data():
    loaded = loaded_by("import pylon; pylon.Pylon; pylon.PylonOutput; pylon.load_pylon")
    assert "torch" in loaded
    assert not loaded & {"pandas", "sklearn", "albumentations", "matplotlib", "cv2"}


def test_help_is_there_at_once():
    for script in ("train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py"):
        code = f"""
import runpy, sys
sys.argv = ["{script}", "--help"]
try:
    runpy.run_path("{script}", run_name="__main__")
except SystemExit as stopped:
    assert stopped.code == 0
print()
"""
        assert not loaded_by(code) & SLOW, script


def test_what_is_not_there_is_said():
    import pylon

    with pytest.raises(AttributeError, match="module 'pylon' has no attribute 'Pyloon'"):
        _ = pylon.Pyloon
