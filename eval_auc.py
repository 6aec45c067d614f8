"""AUROC of every class on the test list.

    python eval_auc.py                           # every seed under save/pylon/
    python eval_auc.py --checkpoint model.pkl    # the authors' weights, or any folder that load_pylon opens

Reads  checkpoints and DATA.
Writes csv/NAME/auroc.csv: a row a seed, then mean and standard deviation.
"""

from dataclasses import dataclass
from pathlib import Path

from pylon.chestxray14 import class_names, read_images, require_files
from pylon.cli import run
from pylon.device import make_accelerator
from pylon.evaluation import ScoreOptions
from pylon.metrics import auroc, mean_auroc
from pylon.predict import predict_logits
from pylon.results import print_table, table_of_seeds, write_csv


@dataclass
class Options(ScoreOptions):
    """AUROC of every class on the test list."""


def main(options: Options) -> None:
    name, checkpoints = options.choose_checkpoints(options.seeds)
    accelerator = make_accelerator(options.device, options.precision, options.batch_size)
    images = read_images(options.data)
    test = images[images["split"] == "test"]
    require_files(test, options.data)

    rows = {}
    for seed, model, card, loader in options.networks(checkpoints, test, accelerator):
        logits, labels = predict_logits(model, loader, accelerator, f"seed {seed}", card["mean"], card["std"])
        areas = auroc(labels, logits)
        weighted, macro = mean_auroc(areas, labels)
        rows[seed] = {**dict(zip(card["class_names"], areas, strict=True)), "weighted": weighted, "macro": macro}

    table = table_of_seeds(rows)
    if accelerator.is_main_process:
        path = Path("csv") / name / "auroc.csv"
        write_csv(path, table)
        print_table(table.rename(columns={"weighted": "weighted (micro)"}))  # "micro" is the published word
        for pathology in (name for name in class_names(images) if table[name].isna().iloc[0]):
            print(f"note: {pathology} lacks positive or negative test images: it is blank and left out of the means")
        print(f"{len(test)} test images; table written to {path}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main, Options)
