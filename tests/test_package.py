"""Requirements; and choices that are listed twice because their sources are slow to import."""

import tomllib
from importlib.metadata import metadata, requires
from typing import get_args, get_type_hints

import segmentation_models_pytorch as smp
from conftest import ROOT

from pylon.data import sources
from pylon.heatmaps import METHODS
from pylon.options import EvaluationOptions, Method, TrainOptions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements_in(name: str) -> set[str]:
    """Read the requirements in a file, without comments and options."""
    lines = (ROOT / name).read_text().splitlines()
    named = {line.partition("#")[0].strip() for line in lines}
    return {line for line in named if line and not line.startswith("-")}


def test_requirements_file_matches_pyproject():
    extras = PROJECT["optional-dependencies"]
    assert requirements_in("requirements.txt") == {*PROJECT["dependencies"], *extras["cam"]}


def test_required_python_version():
    assert PROJECT["requires-python"] == ">=3.11"


def test_package_is_installed_from_this_checkout():
    name = PROJECT["name"]
    assert metadata(name)["Requires-Python"] == PROJECT["requires-python"]
    of_extras = [line for line in requires(name) if "extra ==" in line]
    assert len(requires(name)) - len(of_extras) == len(PROJECT["dependencies"])
    assert sources.__file__ == str(ROOT / "pylon/data/sources.py")


def test_model_option_lists_every_architecture():
    choices = get_args(get_type_hints(TrainOptions)["model"])
    # the encoder of dpt must be a vision transformer, which has no strides
    expected = {*smp.MODEL_ARCHITECTURES_MAPPING, "pylon", "backbone"} - {"dpt"}
    assert set(choices) == expected
    assert len(choices) == len(expected)


def test_method_option_lists_every_method():
    assert get_args(Method) == ("map", *METHODS)
    assert "fp16" not in get_args(get_type_hints(EvaluationOptions)["precision"])
