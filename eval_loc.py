"""Point localization accuracy on the boxed test images: does the maximum of a class's map fall into its box?

    python eval_loc.py                           # every seed under save/pylon/
    python eval_loc.py --checkpoint model.pkl    # the authors' weights, or any folder that load_pylon opens

Reads  checkpoints and DATA, with BBox_List_2017.csv.
Writes csv/NAME/point_localization.csv: a row a seed, then mean and standard deviation;
       csv/NAME/SEED_boxes.csv: a row a box.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from pylon.chestxray14 import class_names, read_boxes, read_images, select_boxed
from pylon.cli import run
from pylon.device import make_accelerator
from pylon.evaluation import ScoreOptions
from pylon.metrics import point_localization
from pylon.results import print_table, table_of_seeds, write_csv
from pylon.transforms import normalize


@dataclass
class Options(ScoreOptions):
    """Point localization accuracy on the boxed test images."""


def main(options: Options) -> None:
    name, checkpoints = options.choose_checkpoints(options.seeds)
    accelerator = make_accelerator(options.device, options.precision, options.batch_size)
    images = read_images(options.data)
    boxes = read_boxes(options.data, images)
    boxed = select_boxed(images, boxes, options.data)

    boxes.insert(1, "patient_id", boxes["image_id"].map(boxed.set_index("image_id")["patient_id"]))
    boxes_of = boxes.groupby("image_id").indices  # image -> rows of the table
    class_of = boxes["pathology"].map(class_names(images).index).tolist()
    bbox_xywh = boxes[["x", "y", "w", "h"]].to_numpy()
    pathologies = [name for name in class_names(images) if name in set(boxes["pathology"])]

    rows = {}
    for seed, model, card, loader in options.networks(checkpoints, boxed, accelerator):
        found = []
        progress = tqdm(loader, desc=f"seed {seed}", unit="batch", disable=not accelerator.is_main_process)
        for batch in progress:
            with torch.inference_mode(), accelerator.autocast():
                output = model(normalize(batch["image"], card["mean"], card["std"]))
            ids = boxed["image_id"].iloc[batch["index"].tolist()]
            pairs = [(b, k) for b, image_id in enumerate(ids) for k in boxes_of[image_id]]
            b, k = map(list, zip(*pairs, strict=True))  # image of the batch, row of the boxes
            c = [class_of[row] for row in k]
            heatmaps = output.maps[b, c].sigmoid()
            probability = output.logits[b, c].sigmoid()
            size = batch["height_width"][b].cpu().numpy()
            hit, row, column = point_localization(heatmaps, bbox_xywh[k], size, batch["image"].shape[-2:])
            found += zip(k, probability.tolist(), row.tolist(), column.tolist(), hit.tolist(), strict=True)

        # with several processes: everybody's boxes, less those of images that fill up the last batch
        found = pd.DataFrame(gather_object(found), columns=["box", "probability", "row", "column", "hit"])
        found = found.drop_duplicates("box").set_index("box").sort_index()
        who, where = boxes[["image_id", "patient_id", "pathology"]], boxes[["x", "y", "w", "h"]].add_prefix("bbox_")
        per_box = pd.concat([who, found, where], axis=1)
        if accelerator.is_main_process:
            write_csv(Path("csv") / name / f"{seed}_boxes.csv", per_box, index=False)
        accuracy = per_box.groupby("pathology")["hit"].mean()
        rows[seed] = {**accuracy[pathologies].to_dict(), "micro": per_box["hit"].mean()}  # micro: all boxes pooled

    table = table_of_seeds(rows)
    if accelerator.is_main_process:
        path = Path("csv") / name / "point_localization.csv"
        write_csv(path, table)
        print_table(table)
        print(f"{len(boxes)} boxes on {len(boxed)} images; table written to {path}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main, Options)
