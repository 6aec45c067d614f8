"""The starter network: the one that is used when no checkpoint is named.

save/starter/0/best is part of the repository. Beside the files of any checkpoint it has
trained_on.txt.gz, the images that it was trained and selected on, which nobody should test it with.
"""

import gzip
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard

from pylon.system.errors import UserError

STARTER = Path(__file__).parents[2] / "save/starter/0/best"
TRAINED_ON = "trained_on.txt.gz"


def find_starter() -> tuple[Path, str]:
    """Folder of the starter network, and a sentence about it, with the scores in its README.md.

    Raises:
        UserError: it is not there.
    """
    if not STARTER.is_dir():
        raise UserError(
            "the starter network is not here: it comes with the repository, as "
            "save/starter/0/best, not with an installed package; name another checkpoint"
        )
    here = Path.cwd()
    path = STARTER.relative_to(here) if STARTER.is_relative_to(here) else STARTER
    results = ModelCard.load(STARTER / "README.md").data.eval_results or []
    score = {result.metric_name: result for result in results}
    sentence = "no checkpoint is named, so the starter network is used"
    if {"AUROC, macro", "point localization"} <= score.keys():
        points = score["point localization"]
        sentence += (
            f": AUROC {score['AUROC, macro'].metric_value:.2f}; it points at "
            f"{points.metric_value:.0%} of the boxes, a fixed point at "
            f"{points.metric_args['control']:.0%}"
        )
    return path, f"{sentence}; see save/starter/0/best/README.md"


def require_unseen(path: Path, images: pd.DataFrame, use: str = "test") -> None:
    """Raise a UserError if a checkpoint lists images among those that it was trained on.

    Args:
        path: the checkpoint.
        images: table of them.
        use: what they are for, in messages.
    """
    listed = path / TRAINED_ON
    if not listed.is_file():
        return
    seen = set(gzip.decompress(listed.read_bytes()).decode().split())
    both = images["image_id"][images["image_id"].isin(seen)]
    if len(both):
        raise UserError(
            f"{path} was trained on {len(both)} of the {len(images)} {use} images, such as "
            f"{both.iloc[0]} (see its {TRAINED_ON}); use others"
        )
