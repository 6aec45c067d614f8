"""Share a network on the Hugging Face hub, with a model card that holds its scores.

    python share.py --checkpoint save/demo/0/best --repo user/name --dry-run    # look at it first
    python share.py --checkpoint save/demo/0/best --repo user/name --private

Reads  a checkpoint, and the rows that eval_auc.py and eval_loc.py wrote for it.
Writes with --dry-run share/USER/NAME: README.md (the card), config.json, training.json,
       model.safetensors; without it, pushes exactly these files, in one commit. They hold no paths,
       and no names of folders, files, users or computers. See docs/share.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pylon.system.cli import parse, start

Licence = Literal[
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "openrail",
]  # fmt: skip


@dataclass
class Options:
    """Share a network on the Hugging Face hub, with a model card that holds its scores."""

    checkpoint: Path
    """As for predict.py: a folder, user/name on the hub, or the authors' model.pkl."""
    repo: str
    """USER/NAME on the hub. It is created if it is not there, and may hold an earlier push."""
    private: bool = False
    """Create the repository as a private one; refuse one that is public."""
    dry_run: bool = False
    """Write what would be pushed to --out instead. Nothing is sent, and nobody has to be logged
    in."""
    out: Path | None = None
    """Folder for --dry-run; share/USER/NAME if none is given."""
    scores: Path | None = None
    """Folder of the rows, csv/NAME; if none is given, where the evaluations of this checkpoint put
    them."""
    data_name: str | None = None
    """Name of the training data in the card, and of the scored ones if they are on the same lists.
    Without it, only ChestX-ray14 and the phantom are named."""
    half: bool = False
    """Round the weights to half precision: files of about half the size, which every computer reads
    as float32. Scores move a little: score what was written, too."""
    licence: Licence = "apache-2.0"
    """Licence of the weights. It is yours to choose, as far as those of your images allow it."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

from pylon.sharing.sharing import push, require_repo_name, shared_files, write_shared
from pylon.system.errors import UserError


def main(options: Options) -> None:
    require_repo_name(options.repo)
    if options.out is not None and not options.dry_run:
        raise UserError("--out is for --dry-run; leave one out, or add the other")
    files = shared_files(
        options.checkpoint,
        options.repo,
        options.scores,
        options.data_name,
        options.licence,
        options.half,
        print,
    )
    if options.dry_run:
        out = options.out or Path("share") / options.repo
        write_shared(out, files)
        said = f"nothing was sent: {out} holds what would be pushed to {options.repo}"
    else:
        said = f"pushed to {push(files, options.repo, options.private)}"
    for name, content in files.items():
        print(f"{name}: {len(content):,} bytes")
    print(said)


if __name__ == "__main__":
    start(main, OPTIONS, "a push is all or nothing: look at the page of the repository")
