"""The starter network, and images that nobody should test a network with."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

import pylon
from pylon.checkpoints import starter
from pylon.checkpoints.starter import TRAINED_ON, find_starter, require_unseen
from pylon.system.errors import UserError

README = """---
model-index:
- name: starter
  results:
  - task: {type: image-classification}
    dataset: {type: other, name: radiographs}
    metrics: [{type: roc_auc, value: 0.7149, name: "AUROC, macro", args: {control: 0.5}}]
  - task: {type: object-detection}
    dataset: {type: other, name: radiographs}
    metrics: [{type: accuracy, value: 0.406, name: point localization, args: {control: 0.338}}]
---
# A network
"""


def test_starter_introduces_itself_with_its_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "STARTER", tmp_path)
    (tmp_path / "README.md").write_text(README)
    assert find_starter()[1] == (
        "no checkpoint is named, so the starter network is used: AUROC 0.71; it points at 41% of "
        "the boxes, a fixed point at 34%; see save/starter/0/best/README.md"
    )
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A network\n")
    assert "AUROC" not in find_starter()[1]


def test_starter_is_named_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "STARTER", tmp_path / "save/best")
    with pytest.raises(UserError, match=r"^the starter network is not here: it comes with"):
        find_starter()
    (tmp_path / "save/best").mkdir(parents=True)
    (tmp_path / "save/best/README.md").write_text(README)
    monkeypatch.chdir(tmp_path)
    assert find_starter()[0] == Path("save/best")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert find_starter()[0] == tmp_path / "save/best"


def test_images_that_a_network_has_seen_are_refused(tmp_path):
    test = pd.DataFrame({"image_id": ["a.png", "b.png", "c.png"]})
    require_unseen(tmp_path, test)
    (tmp_path / TRAINED_ON).write_bytes(gzip.compress(b"b.png\nd.png\nxc.png\n"))
    with pytest.raises(UserError, match=r"trained on 1 of the 3 test images, such as b.png"):
        require_unseen(tmp_path, test)
    require_unseen(tmp_path, test[test["image_id"] != "b.png"])


def test_starter_of_the_repository(capsys):
    """Its files fit together, it is small, and it predicts."""
    folder = starter.STARTER
    assert sum(path.stat().st_size for path in folder.iterdir()) < 18e6
    seen = gzip.decompress((folder / TRAINED_ON).read_bytes()).decode().split()
    assert len(seen) == len(set(seen)) > 1000
    predictor = pylon.Predictor(device="cpu")
    assert "starter network is used: AUROC 0." in capsys.readouterr().err
    assert predictor.card["finished"]
    assert len(predictor.class_names) == 14
