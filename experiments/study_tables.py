"""The tables of a study (study.py), in csv/NAME-NETWORK: what study_report.py reports."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pylon.scoring.box_tables import SHOWN, score_heatmaps
from pylon.scoring.boxes import SCORES
from pylon.scoring.compare import beside_other
from pylon.scoring.rows import Rows, read_all_rows, read_maps
from pylon.scoring.tables import Scored, score_boxes, score_hits

GRADCAM = "gradcam"  # no network of its own: another map of the one that gives CAM
TITLES = {
    "pylon": "PYLON",
    "backbone-max": "backbone, max",
    "backbone-avg": "backbone, avg (CAM)",
    GRADCAM: "Grad-CAM of the CAM network",
    "fpn": "FPN",
}
POOLED = {"auroc": "macro", "point_localization": "micro", "box_localization": "micro"}
ENERGY = "energy"  # a column of box_localization


class Study(NamedTuple):
    """Whose tables are read: csv/NAME-NETWORK."""

    name: str
    networks: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def titles(self) -> dict[str, str]:
        return {name: title for name, title in TITLES.items() if name in self.networks}

    @property
    def labels(self) -> list[str]:
        return [str(seed) for seed in self.seeds]

    @property
    def mean(self) -> str:
        """The row of a table that stands for all seeds."""
        return "mean" if len(self.seeds) > 1 else self.labels[0]

    def folder(self, network: str) -> Path:
        return Path(f"csv/{self.name}-{'backbone-avg' if network == GRADCAM else network}")

    def table(self, network: str, score: str) -> pd.DataFrame:
        """Rows as in the tables of seeds, a column a class and the pooled one."""
        file = "box_localization" if score == ENERGY else score
        suffix = "_gradcam" if network == GRADCAM and score != "auroc" else ""
        table = pd.read_csv(self.folder(network) / f"{file}{suffix}.csv", index_col=0)
        if file == "box_localization":
            # a row a class and seed: of one score, a row a seed and a column a class
            order = [name for name in table.index.unique() if name != POOLED[file]]
            rows = table["seed"].unique()
            column = ENERGY if score == ENERGY else SHOWN
            table = table.reset_index().pivot(index="seed", columns="class", values=column)
            table = table.loc[rows, [*order, POOLED[file]]]
        table.index = table.index.astype(str)
        return table

    def beside(self, network: str, score: str) -> pd.DataFrame:
        """PYLON compared with another network, a row a class."""
        if network == GRADCAM and score != "auroc":  # eval_loc.py compares maps of one method
            ours = self.scored("pylon", score)
            theirs = self.scored(network, score)
            return beside_other(score, ours, theirs, network)
        name = self.folder(network).name
        path = self.folder("pylon") / f"{score}_beside_{name}.csv"
        return pd.read_csv(path, index_col="class")

    def rows(self, network: str) -> dict[str, Rows]:
        what = "boxes_gradcam" if network == GRADCAM else "boxes"
        return read_all_rows(self.folder(network), what, self.labels)

    def scored(self, network: str, score: str) -> Scored:
        """Points or T(IoU .3) of a network, from its rows and maps."""
        rows = self.rows(network)
        if score == "point_localization":
            return score_boxes(rows)
        what = "boxes_gradcam" if network == GRADCAM else "boxes"
        column = SCORES.index(SHOWN)
        hits = {}
        for seed, of_seed in rows.items():
            maps = read_maps(self.folder(network), seed, what, len(of_seed.table))
            hits[seed] = score_heatmaps(maps, of_seed).scores[:, column]
        return score_hits(rows, hits)
