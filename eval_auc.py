"""AUROC of every class on the test list, with 95 % intervals, beside the published five seeds.

    python eval_auc.py                           # every seed under save/pylon/
    python eval_auc.py --checkpoint model.pkl    # the authors' weights, or any folder that load_pylon opens
    python eval_auc.py --compare backbone        # and those under save/backbone/, patient by patient

Reads  checkpoints and DATA.
Writes csv/NAME/auroc.csv: a row a seed, mean and standard deviation, intervals (patients resampled);
       csv/NAME/auroc_beside_published.csv, .._beside_OTHER.csv: a row a class, differences and verdicts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pylon.chestxray14 import class_names, read_images, require_files
from pylon.cli import run
from pylon.device import make_accelerator
from pylon.evaluation import ScoreOptions, require_numbers
from pylon.intervals import patients_behind_auroc, resampled_auroc
from pylon.metrics import auroc, mean_auroc
from pylon.model import Pylon
from pylon.predict import predict_logits
from pylon.results import Run, print_beside, print_table, table_of_seeds, why_not_official, write_csv


@dataclass
class Options(ScoreOptions):
    """AUROC of every class on the test list."""


def main(options: Options) -> None:
    chosen = options.choose_runs()
    accelerator = make_accelerator(options.device, options.precision, options.batch_size)
    chosen = options.settle_runs(chosen, accelerator.print)
    images = read_images(options.data)
    test = images[images["split"] == "test"]
    require_files(test, options.data)
    columns = [*class_names(images), "weighted", "macro"]

    witnesses = patients_behind_auroc(test[columns[:-2]].to_numpy(), test["patient_id"].to_numpy())

    # score: a row a seed, and the same in resamples of the patients
    name, *_ = chosen
    runs, whole = {}, True
    for run_name, checkpoints in chosen.items():
        rows, resamples = {}, []
        for seed, model, card, loader in options.networks(checkpoints, test, accelerator):
            logits, labels = predict_logits(model, loader, accelerator, f"{run_name} {seed}", card["mean"], card["std"])
            require_numbers(logits, checkpoints[seed])
            areas = auroc(labels, logits)
            rows[seed] = dict(zip(columns, [*areas, *mean_auroc(areas, labels)], strict=True))
            if accelerator.is_main_process:
                resamples.append(resampled_auroc(labels, logits, test["patient_id"].to_numpy()))
            if run_name == name:
                whole &= isinstance(model, Pylon) and not model.ablated
        runs[run_name] = Run(pd.DataFrame.from_dict(rows, orient="index"), np.array(resamples), witnesses)

    if accelerator.is_main_process:
        table = table_of_seeds(runs[name])
        path = Path("csv") / name / "auroc.csv"
        write_csv(path, table)
        print_table(table.rename(columns={"weighted": "weighted (micro)"}))  # "micro" is the published word
        for pathology in (column for column in class_names(images) if table[column].isna().iloc[0]):
            print(f"note: {pathology} lacks positive or negative test images: it is blank and left out of the means")
        print(f"{len(test)} test images; low, high: 95 % interval over patients; table written to {path}")
        why_not = why_not_official(images) or (None if whole else "they are whole PYLON's")
        print_beside("auroc", runs, path.parent, "", why_not)
    accelerator.end_training()


if __name__ == "__main__":
    run(main, Options)
