"""What is shared of a checkpoint, and how it gets to the Hugging Face hub.

Shared are four files, made here: config.json, model.safetensors and training.json as
`pylon.hub.files_of` writes them, from a network that was loaded and verified, and README.md.
Nothing else in the folder of a checkpoint is looked at.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

from pylon.checkpoints.checkpoint import find_checkpoint, load_pylon, read_card
from pylon.checkpoints.training_json import has_finished
from pylon.evaluation.selection import label_of
from pylon.hub import Description, files_of, hash_of_weights
from pylon.model_card import shared_card
from pylon.sharing.card_scores import has_rows_of, scores_of
from pylon.system.errors import UserError
from pylon.system.files import write_together
from pylon.system.tensors import round_to_half

SHARED = ("README.md", "config.json", "training.json", "model.safetensors")
OF_THE_HUB = (".gitattributes",)  # which it writes itself
ROUNDED = (
    "Its weights were rounded to half precision after training: scores, thresholds and calibration "
    "are those of the weights before."
)
LOGIN = "log in with `hf auth login`, with a token that may write"


def require_repo_name(repo: str) -> None:
    """Raise a UserError if a name cannot be that of a repository on the hub."""
    part = r"[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9])?"
    if not re.fullmatch(f"{part}/{part}", repo, re.ASCII) or re.search(r"--|\.\.|\.git$", repo):
        raise UserError(f"--repo must be USER/NAME, in letters, digits, -, _ and ., not {repo!r}")


def shared_files(
    checkpoint: Path,
    repo: str,
    scores: Path | None,
    data_name: str | None,
    licence: str,
    half: bool,
    say: Callable[[str], None],
) -> dict[str, bytes]:
    """Make the files to share, by name.

    Args:
        checkpoint: as for `load_pylon`.
        repo: its name on the hub, for the card.
        scores: folder of rows, csv/NAME; if None, where the evaluations put those of a checkpoint.
        data_name: name of the data, for the card.
        licence: of the weights, an identifier of the hub.
        half: whether to round the weights to half precision (see `round_to_half`).
        say: prints a note.

    Raises:
        UserError: the checkpoint is missing, damaged, mixes two epochs or is of another network; or
            rows are damaged or missing where they were said to be.
    """
    # the network, and what is known about it
    path = find_checkpoint(checkpoint, must_exist=True)
    model = load_pylon(path)
    known = read_card(path, model)  # refuses a training.json of other weights
    model.description = Description.of(known, model.classes)
    sha256 = known["weights_sha256"]
    model.card = None if model.card is None else shared_card(model.card)
    notes = []
    if path.is_dir() and not has_finished(path):
        say(f"note: {checkpoint} has not finished training: this is its best epoch so far")
        notes.append("Its training had not finished when it was shared.")

    # its scores
    if scores is not None and not scores.is_dir():
        raise UserError(f"--scores {scores} is not a folder; name the csv/NAME that holds the rows")
    places = [scores] if scores else places_of_scores(path, checkpoint)
    folder = next((place for place in places if has_rows_of(place, sha256)), places[0])
    found = scores_of(folder, sha256, model.card, data_name, say)
    if found is None and scores is not None:
        raise UserError(
            f"--scores {scores} has no rows of {checkpoint}: they are of other weights, or were "
            "never written; score it with eval_auc.py and eval_loc.py"
        )

    # scores, thresholds and calibration are those of the weights before rounding
    if half:
        round_to_half(model)
        rounded = hash_of_weights(model.state_dict())
        if rounded != sha256:
            notes.append(ROUNDED)
            if model.card is not None:
                model.card |= {"weights_sha256": rounded, "rounded_from": sha256}

    files = files_of(model)
    card = model.generate_model_card(
        source=repo, scores=found, data_name=data_name, licence=licence, notes=notes
    )
    files["README.md"] = str(card).encode()
    return {name: files[name] for name in SHARED if name in files}


def places_of_scores(path: Path, checkpoint: Path) -> list[Path]:
    """Where the evaluations may have put the scores: for save/pylon/0/best csv/pylon, csv/pylon-0.

    Args:
        path: of the checkpoint on this computer.
        checkpoint: as it was given.
    """
    places = [Path("csv") / label_of(checkpoint)]
    resolved = path.resolve()
    if resolved.name == "best" and resolved.parents[2] == Path("save").resolve():
        places.insert(0, Path("csv") / resolved.parents[1].name)
    return places


def write_shared(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files into a folder of their own.

    Raises:
        UserError: the folder holds other files, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    strange = sorted({path.name for path in folder.glob("*")} - set(SHARED))
    if strange:
        raise UserError(
            f"{folder} has {strange[0]}, which would not be pushed; empty it, or choose another "
            "--out"
        )
    for name in set(SHARED) - set(files):  # of an earlier call
        (folder / name).unlink(missing_ok=True)
    write_together({folder / name: content for name, content in files.items()})


def push(files: dict[str, bytes], repo: str, private: bool) -> str:
    """Push the files in one commit, into a new repository or over an earlier push; return its URL.

    Args:
        files: contents by name.
        repo: USER/NAME.
        private: whether the repository has to be private.

    Raises:
        UserError: nobody is logged in, or may not write there; the repository holds other files, or
            is public although it has to be private; the hub cannot be reached, or refuses.
    """
    try:
        token = get_token()
        if token is None:
            raise UserError(f"nobody is logged in to the Hugging Face hub; {LOGIN}")
        api = HfApi(token=token)
        head = require_own(api, repo, private)
        if head is None:
            api.create_repo(repo, private=private or None)
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo, additions, commit_message="Share a network of PYLON", parent_commit=head
        )
    except UserError:
        raise
    except Exception as error:  # of several libraries, which change with huggingface_hub's version
        refuse(error, repo)
    return str(commit.repo_url)


def require_own(api: HfApi, repo: str, private: bool) -> str | None:
    """Check what is in a repository; return its latest commit, None if there is no repository.

    Raises:
        UserError: it holds other files, or is public although it has to be private.
    """
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        return None
    names = {sibling.rfilename for sibling in info.siblings or []}
    strange = sorted(names - {*SHARED, *OF_THE_HUB})
    if strange:
        raise UserError(
            f"{repo} is there already and holds other files ({strange[0]}); choose another --repo"
        )
    if private and not info.private:
        raise UserError(
            f"{repo} is there already and is public; make it private on its page, or choose "
            "another --repo"
        )
    return info.sha


def refuse(error: Exception, repo: str) -> NoReturn:
    """Raise a UserError for an error of the hub's client; its own text may hold addresses."""
    kind = type(error).__name__
    code = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and isinstance(error.filename, str):  # such as that of the token
        raise UserError(f"{error.filename}: {error.strerror}; check it, then try again") from error
    if not isinstance(error, HfHubHTTPError) or code is None:
        if isinstance(error, ValueError | RuntimeError | TypeError | AttributeError):
            sentence = f"the Hugging Face hub did not take the files ({kind})"
        else:
            sentence = f"the Hugging Face hub cannot be reached ({kind}); check the connection"
    elif code == 401:
        sentence = f"the Hugging Face hub does not know you; {LOGIN}"
    elif code in (402, 403, 404):
        sentence = (
            f"you may not write to {repo} on the Hugging Face hub; choose another, or {LOGIN}"
        )
    elif code in (409, 412):
        sentence = f"{repo} has just been changed by somebody else; look at it, then try again"
    else:
        sentence = f"the Hugging Face hub answered with an error ({code}); try again later"
    raise UserError(f"{sentence} (a push is all or nothing)") from error
