"""Point localization accuracy on the boxed test images: does the maximum of a class's heatmap fall into its box?

    python eval_loc.py                           # every seed under save/pylon/
    python eval_loc.py --checkpoint model.pkl    # the authors' weights, or any folder that load_pylon opens
    python eval_loc.py --compare backbone        # and those under save/backbone/, patient by patient
    python eval_loc.py --method gradcam          # of Grad-CAM instead of the network's own maps

Reads  checkpoints and DATA, with BBox_List_2017.csv.
Writes csv/NAME/point_localization.csv: a row a seed, mean and standard deviation, intervals (patients resampled), what
           points score that nobody looked at the image for, and the boxes whose finding the network calls present;
       csv/NAME/point_localization_beside_published.csv, .._beside_OTHER.csv: a row a class, differences and verdicts;
       csv/NAME/SEED_boxes.csv: a row a box. (With a METHOD other than map: .._METHOD.csv.)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate.utils import gather_object
from torch import Tensor, nn

from pylon.chestxray14 import class_names, read_boxes, read_images, select_boxed
from pylon.cli import run
from pylon.controls import centre_hits, prior_hits
from pylon.device import make_accelerator
from pylon.evaluation import ScoreOptions, require_numbers
from pylon.explain import Method, heatmaps_of
from pylon.images import image_size
from pylon.intervals import bounds, resampled_accuracy
from pylon.metrics import accuracies, point_localization
from pylon.model import Pylon
from pylon.progress import track
from pylon.results import Run, print_beside, print_table, table_of_seeds, why_not_official, write_csv
from pylon.transforms import normalize


@dataclass
class Options(ScoreOptions):
    """Point localization accuracy on the boxed test images."""

    method: Method = "map"
    """Whose heatmaps: map, the network's own; or what a method of the grad-cam library finds in its deepest feature."""


def main(options: Options) -> None:
    chosen = options.choose_runs()
    options.require_float32(options.method)
    accelerator = make_accelerator(options.device, options.precision, options.batch_size)
    chosen = options.settle_runs(chosen, accelerator.print)
    images = read_images(options.data)
    boxes = read_boxes(options.data, images)
    boxed = select_boxed(images, boxes, options.data)
    of_boxes = boxed.set_index("image_id").loc[boxes["image_id"]]
    boxes.insert(1, "patient_id", of_boxes["patient_id"].to_numpy())
    sizes = np.array([image_size(path)[::-1] for path in of_boxes["path"]])  # height and width of the image of each box
    bbox_xywh, classes, patients = (boxes[key].to_numpy() for key in (["x", "y", "w", "h"], "pathology", "patient_id"))
    pathologies = [name for name in class_names(images) if name in set(classes)]
    witnesses = np.append(boxes.groupby("pathology")["patient_id"].nunique()[pathologies], len(set(patients)))
    suffix = "" if options.method == "map" else f"_{options.method}"

    # score: a row a box; of them a row a seed, and the same in resamples of the patients
    name, *_ = chosen
    runs, ours, whole = {}, [], True
    for run_name, checkpoints in chosen.items():
        rows, resamples = {}, []
        for seed, model, card, loader in options.networks(checkpoints, boxed, accelerator):
            loader = track(loader, f"{run_name} {seed}", "batch", shown=accelerator.is_main_process, leave=True)
            with accelerator.autocast():
                found = score_boxes(model, card, loader, boxed, boxes, sizes, options.method)
            require_numbers(found["probability"].to_numpy(), checkpoints[seed])
            table = pd.concat([boxes, found], axis=1)
            rows[seed] = dict(zip([*pathologies, "micro"], accuracies(table["hit"], classes, pathologies), strict=True))
            if accelerator.is_main_process:
                resamples.append(resampled_accuracy(table["hit"].to_numpy(), classes, patients, pathologies))
            if run_name == name:  # the others' own tables stay as they are
                ours.append(table)
                whole &= isinstance(model, Pylon) and not model.ablated
                shown = ["image_id", "patient_id", "pathology", "probability", "row", "column", "hit", *"xywh"]
                if accelerator.is_main_process:
                    file = table[shown].rename(columns={key: f"bbox_{key}" for key in "xywh"})
                    write_csv(Path("csv") / name / f"{seed}_boxes{suffix}.csv", file, index=False)
        runs[run_name] = Run(pd.DataFrame.from_dict(rows, orient="index"), np.array(resamples), witnesses)

    if accelerator.is_main_process:
        table = table_of_seeds(runs[name])
        # what the scores are worth
        centre, prior = centre_hits(bbox_xywh, sizes), prior_hits(bbox_xywh, sizes, classes, patients)
        lift = np.mean([seed["hit"] for seed in ours], axis=0) - prior
        for label, hits in {"image centre": centre, "prior": prior, "lift over prior": lift}.items():
            table.loc[label] = accuracies(hits, classes, pathologies)
        of_lift = bounds(resampled_accuracy(lift, classes, patients, pathologies), witnesses)
        table.loc["lift over prior low"], table.loc["lift over prior high"] = of_lift
        called = [seed["called"] for seed in ours]
        hit_if_called = [seed["hit"].where(seed["called"] == 1) for seed in ours]
        for label, seeds in {"called present": called, "hit if called present": hit_if_called}.items():
            of_seeds = pd.DataFrame([accuracies(hits, classes, pathologies) for hits in seeds])
            table.loc[label] = of_seeds.mean().to_numpy()
        path = Path("csv") / name / f"point_localization{suffix}.csv"
        write_csv(path, table)
        print_table(table)
        print(f"{len(boxes)} boxes on {len(boxed)} images; low, high: 95 % interval over patients; written to {path}")
        if any(seed["called"].isna().any() for seed in ours):
            print("note: training.json lacks a threshold for some class: its boxes are not among those called present")
        if lone := np.isnan(prior).sum():
            print(f"note: prior and lift leave out {lone} boxes, of whose class no other patient has one")
        why_not = why_not_official(images, boxes)
        if why_not is None and not (whole and options.method == "map"):
            why_not = "they are of a whole PYLON's own maps"
        print_beside("point_localization", runs, path.parent, suffix, why_not)
    accelerator.end_training()


def score_boxes(
    model: nn.Module,
    card: dict[str, Any],
    loader: Iterable[dict[str, Tensor]],
    boxed: pd.DataFrame,
    boxes: pd.DataFrame,
    sizes: np.ndarray,
    method: Method,
) -> pd.DataFrame:
    """Score a network on every process: a row a box with probability, row and column of the maximum, hit and called.

    `called` is 1 where the network calls the finding present (its probability reaches the threshold that training chose
    on the validation split), 0 where not, NaN where there is no threshold.
    """
    boxes_of = boxes.groupby("image_id").indices  # image -> rows of the table
    class_of = boxes["pathology"].map(card["class_names"].index).to_numpy()
    bbox_xywh = boxes[["x", "y", "w", "h"]].to_numpy()
    found = []
    for batch in loader:
        ids = boxed["image_id"].iloc[batch["index"].tolist()]
        pairs = [(b, k) for b, image_id in enumerate(ids) for k in boxes_of[image_id]]
        b, k = map(list, zip(*pairs, strict=True))  # image of the batch, row of the boxes
        network_input = normalize(batch["image"], card["mean"], card["std"])
        heatmaps, probability = heatmaps_of(model, network_input, b, class_of[k].tolist(), method)
        hit, row, column = point_localization(heatmaps, bbox_xywh[k], sizes[k], batch["image"].shape[-2:])
        found += zip(k, probability.tolist(), row.tolist(), column.tolist(), hit.tolist(), strict=True)

    # with several processes: everybody's boxes, less those of images that fill up the last batch
    found = pd.DataFrame(gather_object(found), columns=["box", "probability", "row", "column", "hit"])
    found = found.drop_duplicates("box").set_index("box").sort_index()
    threshold = boxes["pathology"].map(card.get("thresholds", {})).astype(float)
    found["called"] = (found["probability"] >= threshold).where(threshold.notna()).astype(float)
    return found


if __name__ == "__main__":
    run(main, Options)
