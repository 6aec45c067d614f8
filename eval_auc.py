"""AUROC of every class on the test list, with 95 % intervals, next to the published seeds.

    python eval_auc.py                           # every seed under save/pylon/
    python eval_auc.py --checkpoint model.pkl    # the authors' weights, or any other
    python eval_auc.py --compare backbone        # paired comparison with save/backbone/
    python eval_auc.py --from csv/pylon          # rebuild the tables from saved rows

Reads  checkpoints and DATA, or a --table of your own; or, with --from, only rows.
Writes csv/NAME/SEED_images.csv, .json: one row per test image, with labels and logits;
       csv/NAME/auroc.csv: one row per seed, mean and standard deviation, intervals over patients;
       csv/NAME/auroc_beside_published.csv, .._beside_OTHER.csv: one row per class, with differences
       and verdicts; csv/NAME/calibration.csv: are the probabilities right?
       csv/NAME/operating_points.csv: sensitivity, specificity, PPV, NPV, F1 at the thresholds of
       the checkpoint; csv/NAME/auroc.png, reliability.png: AUROC and calibration as pictures.
"""

from dataclasses import dataclass
from pathlib import Path

from pylon.options import ScoreOptions
from pylon.system.cli import parse, start


@dataclass
class Options(ScoreOptions):
    """AUROC of every class on the test list."""


if __name__ == "__main__":
    OPTIONS = parse(Options)  # before the slow imports, which --help does not need

from accelerate import Accelerator

from pylon.data.checks import require_files
from pylon.data.chestxray14 import why_not_official
from pylon.data.radiographs import Radiographs
from pylon.evaluation.evaluate import (
    about_rows,
    open_networks,
    predict_logits,
    read_data,
    require_numbers,
)
from pylon.evaluation.from_rows import read_experiments
from pylon.evaluation.runtime import device_for
from pylon.evaluation.selection import find_experiments
from pylon.scoring.calibration import reliabilities, table_of_calibration
from pylon.scoring.charts import reliability_chart, scores_chart
from pylon.scoring.compare import print_beside, published, why_not_published
from pylon.scoring.operating_points import as_text, table_of_rates
from pylon.scoring.rows import Rows, image_rows, write_rows
from pylon.scoring.tables import print_table, score_images, table_of_seeds
from pylon.system.device import make_accelerator
from pylon.system.files import write_atomically, write_csv
from pylon.system.parallel import is_first_process, on_main_process


def main(options: Options) -> None:
    # from saved rows: needs no network and no data
    if options.from_ is not None:
        if is_first_process():
            write_tables(read_experiments(options, "images", "auroc.csv"), options.from_)
        return

    # from networks
    device = device_for(options.runtime, options.device, options.precision)
    accelerator = make_accelerator(device, options.precision, options.batch_size)
    experiments = find_experiments(options, accelerator)
    rows = predict_rows(experiments, options, accelerator)
    if accelerator.is_main_process:
        write_tables(rows, Path("csv") / next(iter(rows)))
    accelerator.end_training()


def predict_rows(
    experiments: dict[str, dict[str, Path]], options: Options, accelerator: Accelerator
) -> dict[str, dict[str, Rows]]:
    """Predict the test images with every network; return the rows by experiment and seed.

    Only the first experiment's rows are written to disk; the other experiments' files are left
    unchanged.
    """
    first = next(iter(experiments))
    paths = [path for checkpoints in experiments.values() for path in checkpoints.values()]
    radiographs = on_main_process(
        accelerator, lambda: read_test_images(options, paths, accelerator)
    )
    test = radiographs.of_split("test")
    not_official = why_not_official(radiographs)
    rows = {}
    for name, checkpoints in experiments.items():
        rows[name] = {}
        networks = open_networks(options, checkpoints, radiographs, test, accelerator)
        for seed, model, card, loader in networks:
            logits, labels = predict_logits(
                model, loader, accelerator, f"{name} {seed}", card["mean"], card["std"]
            )
            require_numbers(logits, checkpoints[seed])
            about = about_rows(
                model, card, radiographs, not_official, options.precision, runtime=options.runtime
            )
            outputs = [card["class_names"].index(each) for each in radiographs.class_names]
            rows[name][seed] = image_rows(test, labels, logits[:, outputs], about)
            if name == first and accelerator.is_main_process:
                write_rows(Path("csv") / name, seed, "images", rows[name][seed])
    return rows


def read_test_images(
    options: Options, checkpoints: list[Path], accelerator: Accelerator
) -> Radiographs:
    """Read the data; a UserError if a test image is missing."""
    radiographs = read_data(options, checkpoints, accelerator.print)
    require_files(radiographs.of_split("test"), radiographs)
    return radiographs


def write_tables(rows: dict[str, dict[str, Rows]], folder: Path) -> None:
    """Print and write the first experiment's scores, compared with the published and other ones.

    Args:
        rows: rows by experiment and seed.
        folder: folder for the tables.
    """
    scored = {name: score_images(rows_of_seed) for name, rows_of_seed in rows.items()}
    name = next(iter(rows))
    first = next(iter(rows[name].values()))

    # the table; "micro" is the published name of the weighted mean
    table = table_of_seeds(scored[name])
    path = folder / "auroc.csv"
    write_csv(path, table)
    print_table(table.rename(columns={"weighted": "weighted (micro)"}))
    for pathology in first.class_names:
        if table[pathology].isna().iloc[0]:
            print(
                f"note: {pathology} lacks positive or negative test images: it is left blank and "
                "excluded from the means"
            )
    print(
        f"{len(first.table)} test images; low, high: 95 % interval over patients; "
        f"table written to {path}"
    )

    # comparisons, and the picture
    why_not = why_not_published(rows[name], "of the complete PYLON network")
    print_beside("auroc", scored, folder, "", why_not, first.about.get("synthetic"))
    means = published("auroc").mean() if why_not is None else None
    write_atomically(folder / "auroc.png", scores_chart(table, "AUROC", means))
    write_calibration(rows[name], folder)
    write_rates(rows[name], folder)


def write_calibration(rows_of_seed: dict[str, Rows], folder: Path) -> None:
    """Print and write how well the probabilities of an experiment are calibrated."""
    table = table_of_calibration(rows_of_seed)
    path = folder / "calibration.csv"
    write_csv(path, table)
    label = "mean" if len(rows_of_seed) > 1 else next(iter(rows_of_seed))
    print(f"\nare the probabilities right? ({label}; written to {path})")
    print_table(table.loc[label].rename_axis("score"))

    # the picture shows one seed
    seed, rows = next(iter(rows_of_seed.items()))
    bins = reliabilities(rows)
    picture = folder / "reliability.png"
    picture.unlink(missing_ok=True)
    if bins:
        write_atomically(picture, reliability_chart(bins, f"{folder.name}, seed {seed}"))


def write_rates(rows_of_seed: dict[str, Rows], folder: Path) -> None:
    """Print and write sensitivity and other rates at the thresholds of the checkpoints."""
    table = table_of_rates(rows_of_seed)
    path = folder / "operating_points.csv"
    write_csv(path, table)
    seed = next(iter(rows_of_seed))
    print(f"\nwhat is called present? (seed {seed}; with intervals over patients in {path})")
    print_table(as_text(table.loc[seed]))


if __name__ == "__main__":
    start(main, OPTIONS)
