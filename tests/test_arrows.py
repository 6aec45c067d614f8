"""Files import only from lower layers, and no room has an import cycle.

The rooms by layer, from top to bottom; an arrow is an import of one file by another:

train.py, eval_auc.py, eval_loc.py, generate_heatmap.py, predict.py, calibrate.py, app.py, share.py,
tools/, experiments/, benchmarks/
pylon/training/, pylon/prediction/, pylon/sharing/
pylon/viewer/
pylon/evaluation/
pylon/checkpoints/
pylon/model.py and the other networks, pylon/scoring/, pylon/data/
pylon/options.py
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

NETWORKS = (
    "model", "encoders", "encoder_weights", "baselines", "hub", "model_card", "heatmaps",
    "drawing",
)  # fmt: skip
LAYERS = (  # from bottom to top
    {"system"},
    {"options"},
    {"networks", "scoring", "data"},
    {"checkpoints"},
    {"evaluation"},
    {"viewer"},
    {"training", "prediction", "sharing"},
    {"pylon"},  # pylon/__init__.py
)
# what a room may import in addition to itself
BELOW = {room: set().union(*LAYERS[:i]) for i, layer in enumerate(LAYERS) for room in layer}
TOP = set().union(*LAYERS)  # what scripts, tools/, experiments/ and benchmarks/ may import
LIBRARIES_OF_MODEL = {"torch", "segmentation_models_pytorch"}


def room_of(file: str) -> str:
    """Return the room of a file, given its path relative to the root."""
    first, *rest = Path(file).parts
    if first != "pylon":
        return first  # each script is its own room
    if len(rest) > 1:
        return rest[0]
    stem = Path(file).stem
    return "pylon" if stem == "__init__" else "networks" if stem in NETWORKS else stem


def files_of(root: Path) -> list[str]:
    """List all Python files whose imports are checked, relative to the root."""
    folders = ("tools", "experiments", "benchmarks", "pylon")
    patterns = ("*.py", *(f"{folder}/**/*.py" for folder in folders))
    paths = [path for pattern in patterns for path in root.glob(pattern)]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def modules_of(file: str, root: Path, modules: Iterable[str] = ()) -> set[str]:
    """Find the modules that a file imports, inside functions too.

    `from a import b` counts as a.b if that is among `modules`, else as a.
    """
    names = set()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in modules else node.module)
    return names


def graph_of(root: Path) -> dict[str, set[str]]:
    """Map each file to the files that it imports."""
    files = {}
    for file in files_of(root):
        parts = Path(file).with_suffix("").parts
        name = parts if parts[0] == "pylon" else parts[-1:]  # a script imports its neighbours
        files[".".join(name).removesuffix(".__init__")] = file
    graph = {}
    for file in files.values():
        modules = modules_of(file, root, files)
        graph[file] = {files[module] for module in modules if module in files}
    return graph


def wrong_arrows(graph: dict[str, set[str]]) -> list[str]:
    """List the arrows that lead up or sideways."""
    wrong = []
    for file, imported in graph.items():
        room = room_of(file)
        allowed = BELOW.get(room, TOP) | {room}
        wrong += [f"{file} -> {other}" for other in imported if room_of(other) not in allowed]
    return sorted(wrong)


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """Find a cycle of imports inside a room, if there is one."""
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


def test_imports_only_lead_to_lower_layers(graph):
    assert wrong_arrows(graph) == []


def test_no_room_has_an_import_cycle(graph):
    assert circle_of(graph) == []


def test_every_file_is_in_a_room_and_every_room_is_checked(graph):
    rooms = {room_of(file) for file in graph}
    paper = {"train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py"}
    scripts = paper | {"predict.py", "calibrate.py", "app.py", "share.py"}
    assert rooms == {*BELOW, *scripts, "tools", "experiments", "benchmarks"}
    for room in rooms - {"system", "pylon"}:
        leaving = [file for file in graph if room_of(file) == room and graph[file]]
        assert leaving, room  # otherwise the graph has missed its imports
    assert "pylon/system/errors.py" in graph["pylon/system/files.py"]
    assert "pylon/data/images.py" in graph["pylon/data/cache.py"]
    assert "pylon/data/chestxray14.py" in graph["pylon/checkpoints/checkpoint.py"]  # in a function


def test_errors_module_imports_nothing():
    assert modules_of("pylon/system/errors.py", ROOT) == set()


def test_model_imports_only_two_libraries():
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
            "def f():\n    from pylon.checkpoints.training_json import make_card",
            "pylon/checkpoints/training_json.py",
        ),
        ("pylon/training/runs.py", "import train", "train.py"),
        ("eval_auc.py", "from eval_loc import Options", "eval_loc.py"),
        ("tools/check_data.py", "import measure", "benchmarks/measure.py"),
        ("benchmarks/fed.py", "import thorax", "tools/phantom/thorax.py"),
        ("pylon/training/runs.py", "import pylon.sharing.sharing", "pylon/sharing/sharing.py"),
    ],
)
def test_import_from_a_higher_layer_is_detected(tmp_path, file, line, arrow):
    plant(tmp_path, file, line)
    assert wrong_arrows(graph_of(tmp_path)) == [f"{file} -> {arrow}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pylon/data/radiographs.py", "from pylon.data import chestxray14"),
        ("pylon/encoders.py", "def f():\n    import pylon.model"),
        ("benchmarks/measure.py", "import speed"),
    ],
)
def test_import_cycle_is_detected(tmp_path, file, line):
    plant(tmp_path, file, line)
    graph = graph_of(tmp_path)
    assert wrong_arrows(graph) == []
    assert file in circle_of(graph)


def plant(folder: Path, file: str, line: str) -> None:
    """Copy the project into a folder and append a line to one of the files."""
    for name in files_of(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with open(folder / file, "a") as target:
        target.write(f"\n{line}\n")


def loaded_by(code: str) -> set[str]:
    """List the top-level modules that are loaded after running some code in a new process."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


SLOW = {"torch", "pandas", "sklearn", "albumentations", "matplotlib", "cv2", "scipy", "accelerate"}


def test_importing_pylon_loads_no_slow_library():
    assert not loaded_by("import pylon; assert 'Pylon' in dir(pylon)") & SLOW
    assert not loaded_by("import pylon.system.cli") & SLOW
    assert not loaded_by("import pylon.options") & SLOW


def test_network_is_imported_on_demand_without_data_libraries():
    loaded = loaded_by("import pylon; pylon.Pylon; pylon.PylonOutput; pylon.load_pylon")
    assert "torch" in loaded
    assert not loaded & {"pandas", "sklearn", "albumentations", "matplotlib", "cv2"}


def test_help_loads_no_slow_library():
    for script in (
        "train.py", "eval_auc.py", "eval_loc.py", "generate_heatmap.py", "predict.py",
        "calibrate.py", "share.py",
    ):  # fmt: skip
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


def test_unknown_attribute_raises_attribute_error():
    import pylon

    with pytest.raises(AttributeError, match="module 'pylon' has no attribute 'Pyloon'"):
        _ = pylon.Pyloon
