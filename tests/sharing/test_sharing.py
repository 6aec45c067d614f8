"""What is shared: four files, scores of these weights alone; pushed to a stand-in for the hub."""

import json
import shutil
import socket
from pathlib import Path

import hub_server
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard, constants

import pylon
from pylon.checkpoints.checkpoint import load_pylon, read_card, save_best
from pylon.checkpoints.training_json import make_card, read_training_json
from pylon.model import Pylon
from pylon.scoring.rows import Rows, image_rows, write_rows
from pylon.sharing import sharing
from pylon.system.errors import UserError

NAMES = ("Mass", "Nodule")
TOKEN = "hf_this_is_a_secret"
OPTIONS = {"data": str(Path.home() / "data"), "name": "anna", "image_size": 256, "lr": 0.5}


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    """A working folder with the checkpoint save/mine/0/best, among files that are nobody's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Pylon("tu-test_resnet", None, classes=2, decoder_channels=8)
    card = make_card(NAMES, OPTIONS, "abc", {"patients.csv": "def"}, 0.1, 0.7)
    best = tmp_path / "save/mine/0/best"
    thresholds = {"Mass": 0.25, "Nodule": None}
    save_best(best, model, {**card, "finished": True, "thresholds": thresholds})
    (best / "notes.txt").write_text("Mrs Smith")
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub, and a token for it."""
    with hub_server.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def best_of(cwd: Path) -> Path:
    return cwd / "save/mine/0/best"


def write_scores(folder: Path, best: Path, label: str = "0", sha256: str = "def") -> None:
    """Write rows of images and of boxes of a checkpoint; every third image is positive.

    Args:
        sha256: of the list of images; by default that of the training.
    """
    model = load_pylon(best)
    about = {
        "class_names": list(NAMES),
        "network": "pylon",
        "precision": "fp32",
        "not_official": "its test images are others",
        "synthetic": None,
        "list_sha256": {"patients.csv": sha256},
        "weights_sha256": model.card["weights_sha256"],
        "calibration": {},
        "card": None,
        "config": {},
    }
    images = pd.DataFrame({"image_id": [f"{k}.png" for k in range(30)], "patient_id": range(30)})
    labels = np.stack([np.arange(30) % 3 == 0, np.zeros(30)], axis=1).astype(np.float32)
    logits = np.stack([labels[:, 0] - 0.5, np.arange(30)], axis=1).astype(np.float32)
    write_rows(folder, label, "images", image_rows(images, labels, logits, about))
    boxes = {
        "image_id": [f"{k}.png" for k in range(12)],
        "patient_id": range(12),
        "pathology": "Mass",
        "probability": 0.5,
        "row": 20,
        "column": 20,
        "hit": [1.0] * 9 + [0.0] * 3,
        **{"bbox_x": 10, "bbox_y": 10, "bbox_w": 20, "bbox_h": 20},
        **{"image_height": 100, "image_width": 100, "threshold": 0.25, "called": 1.0},
    }
    maps = np.zeros((12, 64, 64), np.float32)
    maps[:, 6:19, 6:19] = 1  # the box, in cells of the map
    write_rows(folder, label, "boxes", Rows(pd.DataFrame(boxes), {**about, "method": "map"}), maps)


def shared(
    cwd: Path, repo: str = "user/name", scores: Path | None = None, half: bool = False
) -> dict[str, bytes]:
    return sharing.shared_files(best_of(cwd), repo, scores, "Our hospital", "mit", half, print)


def test_four_files_without_anything_private(cwd):
    files = shared(cwd)
    assert list(files) == ["README.md", "config.json", "training.json", "model.safetensors"]
    private = (OPTIONS["data"], cwd, "patients.csv", "Mrs Smith")
    for name, content in files.items():
        for each in private:
            assert str(each).encode() not in content, name
    assert json.loads(files["training.json"])["options"] == {"image_size": 256, "lr": 0.5}
    # the checkpoint is as it was
    assert read_training_json(best_of(cwd))["options"] == OPTIONS

    # loaded again, it is the same network
    sharing.write_shared(cwd / "out", files)
    one = load_pylon(best_of(cwd))
    other = load_pylon(cwd / "out")
    assert one.description == other.description
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_half_precision_is_read_as_float32(cwd):
    # a variance and a kernel that exceed the range of half precision
    model = load_pylon(best_of(cwd))
    state = model.state_dict()
    variance = next(name for name in state if name.endswith("running_var"))
    kernels = [name for name, value in state.items() if value.ndim == 4 and value[0].numel() >= 150]
    state[variance][0] = 70000.1
    state[kernels[0]][0, 0, 0, 0] = 70000.1
    del model.card["weights_sha256"]
    save_best(best_of(cwd), model, model.card)
    before = load_pylon(best_of(cwd)).state_dict()
    write_scores(cwd / "csv/mine", best_of(cwd))

    sharing.write_shared(cwd / "out", shared(cwd, half=True))
    written = safetensors.torch.load_file(cwd / "out/model.safetensors")
    whole = (best_of(cwd) / "model.safetensors").stat().st_size
    assert (cwd / "out/model.safetensors").stat().st_size < 0.7 * whole
    assert written[kernels[0]].dtype == torch.float32
    assert {written[name].dtype for name in kernels[1:]} == {torch.float16}

    # only large kernels are rounded; all are float32 in memory, and the card is theirs
    half = load_pylon(cwd / "out")
    read_card(cwd / "out", half)
    for name, value in half.state_dict().items():
        assert value.dtype == before[name].dtype
        rounded = before[name].half().float() if name in kernels[1:] else before[name]
        assert torch.equal(value, rounded), name
    card = read_training_json(cwd / "out")
    assert card["rounded_from"] == read_training_json(best_of(cwd))["weights_sha256"]
    assert card["weights_sha256"] not in ("", card["rounded_from"])
    assert half.description == load_pylon(best_of(cwd)).description
    readme = (cwd / "out/README.md").read_text()
    assert "rounded to half precision after training" in " ".join(readme.split())
    assert "0.750" in readme  # the scores before
    other = Pylon.from_pretrained(cwd / "out")
    assert other.card == half.card

    # saved again it is the same file; a flipped bit is found
    half.save_pretrained(cwd / "again")
    content = (cwd / "out/model.safetensors").read_bytes()
    assert (cwd / "again/model.safetensors").stat().st_size == len(content)
    assert load_pylon(cwd / "again").card == half.card
    (cwd / "out/model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="its hash does not match"):
        load_pylon(cwd / "out")


def test_name_of_the_training_data_is_not_that_of_other_data(cwd):
    write_scores(cwd / "csv/mine", best_of(cwd), sha256="of another table")
    card = ModelCard(shared(cwd)["README.md"].decode())
    names = {each.dataset_name for each in card.data.eval_results}
    assert names == {"Radiographs of a data set that is not named"}
    assert "Data: Our hospital" in card.text
    assert "Other lists than those that it was trained on" in card.text


def test_scores_are_those_of_the_rows(cwd):
    write_scores(cwd / "csv/mine", best_of(cwd))
    card = ModelCard(shared(cwd)["README.md"].decode())
    values = {each.metric_name: each.metric_value for each in card.data.eval_results}
    # Nodule has no positive image, and is in no mean
    expected = {"AUROC, macro": 1.0, "AUROC, weighted": 1.0, "point localization": 0.75}
    assert values == {**expected, "T(IoU 0.3)": 1.0}
    assert {each.dataset_name for each in card.data.eval_results} == {"Our hospital"}
    hits = next(each for each in card.data.eval_results if each.metric_value == 0.75)
    # the prior is the box that all have; the centre of the image is in none
    assert hits.metric_args["control"] == 1.0
    assert 0.4 < hits.metric_args["low"] < 0.75 < hits.metric_args["high"] <= 1
    assert "| Mass | 12 | 0.750 |" in card.text
    assert "| Mass | 10 | 1.000 |" in card.text
    assert "Not NIH's official test data" in card.text


def test_scores_of_other_weights_are_not_used(cwd, capsys):
    other = cwd / "save/other/0/best"
    shutil.copytree(best_of(cwd), other)
    model = Pylon("tu-test_resnet", None, classes=2, decoder_channels=8)
    save_best(other, model, make_card(NAMES, OPTIONS, "abc", {}, 0.1, 0.7))
    write_scores(cwd / "csv/mine", other)
    assert "Not scored yet." in shared(cwd)["README.md"].decode()
    assert "csv/mine has no rows of images of this network; eval_auc.py" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"csv/mine has no rows of .*: they are of other weights"):
        shared(cwd, scores=Path("csv/mine"))
    with pytest.raises(UserError, match="--scores csv/none is not a folder"):
        shared(cwd, scores=Path("csv/none"))
    # those of --checkpoint are in a folder named after it
    write_scores(cwd / "csv/mine-0", best_of(cwd), "mine-0")
    assert "| Mass | 10 | 1.000 |" in shared(cwd)["README.md"].decode()


def test_changed_rows_are_refused(cwd):
    write_scores(cwd / "csv/mine", best_of(cwd))
    rows = cwd / "csv/mine/0_images.csv"
    rows.write_text(rows.read_text().replace("0.5", "0.25", 1))
    with pytest.raises(UserError, match=r"0_images.csv has changed"):
        shared(cwd)


def test_unfinished_training_is_said(cwd, capsys):
    model = load_pylon(best_of(cwd))
    save_best(best_of(cwd), model, {**model.card, "finished": False})
    assert "Its training had not finished" in shared(cwd)["README.md"].decode()
    assert "has not finished training" in capsys.readouterr().out


def test_dry_run_takes_no_folder_with_other_files(cwd):
    sharing.write_shared(cwd / "out", shared(cwd))
    without = {"README.md": b"later"}
    sharing.write_shared(cwd / "out", without)  # over its own files
    assert [path.name for path in (cwd / "out").iterdir()] == ["README.md"]
    (cwd / "out/.secret").touch()
    with pytest.raises(UserError, match=r"out has .secret, which would not be pushed"):
        sharing.write_shared(cwd / "out", without)
    with pytest.raises(UserError, match="is a file"):
        sharing.write_shared(cwd / "out/README.md", without)


@pytest.mark.parametrize("private", [True, False])
def test_push_is_one_commit_of_exactly_these_files(cwd, hub, private, capsys):
    files = shared(cwd)
    url = sharing.push(files, "user/name", private)
    assert url == f"{hub.url}/user/name"
    repository = hub.repositories["user/name"]
    assert repository.files == {".gitattributes": b"", **files}
    assert repository.private is private
    assert repository.commits == 1
    # the card was offered to the hub's own validation
    (offered,) = [json.loads(body) for _, path, _, body in hub.asked if "validate" in path]
    assert offered["content"] == files["README.md"].decode()

    # the token is in headers alone
    sent = {
        headers.get("Authorization", headers.get("authorization")) for *_, headers, _ in hub.asked
    }
    assert f"Bearer {TOKEN}" in sent
    assert not any(TOKEN.encode() in body or TOKEN in path for _, path, _, body in hub.asked)
    assert not any(TOKEN in path.read_text(errors="replace") for path in files_in(cwd))
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err

    # again, over it
    changed = {**files, "README.md": files["README.md"] + b"\nMore.\n"}
    sharing.push(changed, "user/name", private)
    assert repository.files["README.md"].endswith(b"More.\n")
    assert repository.commits == 2
    # over the commit that was looked at, so that the hub refuses it if there is a later one
    first, second = [parent_of(body) for _, path, _, body in hub.asked if "/commit/" in path]
    assert (first, second) == (None, f"{1:040}")


def parent_of(body: bytes) -> str | None:
    """The commit on which one that was sent to the hub is to be put."""
    (header,) = [each for each in map(json.loads, body.splitlines()) if each["key"] == "header"]
    return header["value"].get("parentCommit")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_repositories_that_are_not_ours_are_left_alone(cwd, hub):
    files = {"README.md": b"---\nlicense: mit\n---\n"}
    hub.repositories["user/name"] = hub_server.Repository({"pytorch_model.bin": b"theirs"})
    with pytest.raises(UserError, match=r"holds other files \(pytorch_model.bin\); choose another"):
        sharing.push(files, "user/name", False)
    hub.repositories["user/public"] = hub_server.Repository()
    with pytest.raises(UserError, match="user/public is there already and is public"):
        sharing.push(files, "user/public", True)
    assert not any(repository.commits for repository in hub.repositories.values())


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/user/name", 401, "does not know you; log in with `hf auth login`"),
        ("/create", 403, "you may not write to user/name"),
        ("/commit/main", 403, "you may not write to user/name"),
        ("/commit/main", 412, "user/name has just been changed by somebody else"),
        ("/create", 500, r"answered with an error \(500\)"),
        ("/validate-yaml", 400, "did not take the files|answered with an error"),
    ],
)
def test_refusals_of_the_hub(hub, path, status, sentence):
    hub.refusals[path] = status
    with pytest.raises(UserError, match=sentence) as caught:
        sharing.push({"README.md": b"---\nlicense: mit\n---\n"}, "user/name", False)
    assert TOKEN not in str(caught.value)
    assert hub.url not in str(caught.value)


def test_no_token_and_no_network(hub, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(
        UserError, match=r"cannot be reached \(ConnectError\); check the connection"
    ):
        sharing.push({}, "user/name", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match=r"nobody is logged in .* log in with `hf auth login`"):
        sharing.push({}, "user/name", False)
    (tmp_path / "token").mkdir()
    with pytest.raises(UserError, match=r"/token: Is a directory; check it"):
        sharing.push({}, "user/name", False)
    assert hub.asked == []


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "user/", "../x", "user/a b", "user/a--b", "u/-x"]
)
def test_names_that_the_hub_does_not_take(name):
    with pytest.raises(UserError, match="--repo must be USER/NAME"):
        sharing.require_repo_name(name)


def test_own_push_to_hub_leaves_out_the_same(cwd, hub):
    model = load_pylon(best_of(cwd))
    model.push_to_hub("user/name")
    pushed = hub.repositories["user/name"].files
    assert set(pushed) == {".gitattributes", *sharing.SHARED}
    assert str(Path.home()).encode() not in pushed["training.json"]
    assert model.card["options"] == OPTIONS  # as before
    (cwd / "got").mkdir()
    for name, content in pushed.items():
        (cwd / "got" / name).write_bytes(content)
    assert pylon.load_pylon(cwd / "got").description == model.description


def test_every_checkpoint_has_a_card_of_its_weights(cwd):
    text = (best_of(cwd) / "README.md").read_text()
    assert "| Mass | 0.250 |" in text
    assert "Not scored yet." in text
    assert "--lr | 0.5 |" in text
    assert not any(private in text for private in ("anna", OPTIONS["data"], "patients.csv"))
    model = load_pylon(best_of(cwd))
    with torch.no_grad():
        model.segmentation_head[0].bias += 1
    model.save_pretrained(best_of(cwd))  # in the place of those that it belongs to
    text = (best_of(cwd) / "README.md").read_text()
    assert "| Mass |  |" in text
    assert "How it was trained is not recorded." in text
