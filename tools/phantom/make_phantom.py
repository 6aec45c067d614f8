"""Draw synthetic chest radiographs and write them exactly as NIH distributes ChestX-ray14.

    python tools/phantom/make_phantom.py --out data/phantom --images 1500 --size 256 --seed 0

Writes images/*.png, Data_Entry_2017.csv, BBox_List_2017.csv, train_val_list.txt and test_list.txt
to OUT, for the demo and the tests: a thorax drawn by formulas (thorax.py) with each finding's sign
(signs.py) and, as in real data, some wrong labels. These are not medical images; scores on them
say nothing about scores on patients.
"""

import csv
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pylon.data.chestxray14 import MARK
from pylon.system.cli import parse, start
from pylon.system.errors import UserError
from pylon.system.progress import track
from pylon.system.workers import start_process
from thorax import FINDINGS, Box, draw, person

# NIH's header lines, verbatim: some column names contain the separator, a comma.
LABEL_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
NIH_BOX_NAME = {"Infiltration": "Infiltrate"}  # NIH's box file uses another word
TEST_SHARE = 0.25  # share of the patients; NIH's is 0.23 of the images

Radiograph = tuple[int, int]  # patient, follow-up
Drawn = tuple[list[str], list[Box]]  # findings, and boxes of those that have one


@dataclass
class Options:
    """Draw synthetic chest radiographs in NIH's layout. They are not medical images."""

    out: Path = Path("data/phantom")
    """Output folder. An existing phantom is replaced; any other non-empty folder is refused."""
    images: int = 1500
    """Number of radiographs, 1 to 5 per patient."""
    size: int = 256
    """Height and width of the images in pixels. NIH's are 1024."""
    seed: int = 0
    """Random seed. The same seed gives the same bytes."""
    findings: tuple[str, ...] = FINDINGS
    """Findings to sample from for each image, under NIH's names."""


def main(options: Options) -> None:
    check(options)
    rng = np.random.default_rng(options.seed)
    radiographs = choose_radiographs(options.images, rng)
    patients = radiographs[-1][0]  # they are numbered from 1
    count = round(TEST_SHARE * patients)
    test = set(rng.choice(np.arange(1, patients + 1), count, replace=False).tolist())

    # write to a temporary folder, so that the phantom is either complete or absent
    out = options.out.resolve()
    partial_out = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    (partial_out / "images").mkdir(parents=True)
    drawn = write_radiographs(radiographs, options, partial_out / "images")
    write_labels(partial_out / "Data_Entry_2017.csv", radiographs, drawn, options)
    write_boxes(partial_out / "BBox_List_2017.csv", radiographs, drawn, test)
    write_split(partial_out, radiographs, test)
    write_mark(partial_out / MARK, options)
    shutil.rmtree(out, ignore_errors=True)
    partial_out.rename(out)
    print(
        f"{options.out}: {len(radiographs)} images of {patients} patients; "
        f"{len(test)} of the patients are in the test list"
    )


def check(options: Options) -> None:
    if options.images < 20 or options.size < 64 or options.seed < 0:
        raise UserError("--images must be at least 20, --size at least 64 and --seed at least 0")
    named = " ".join(options.findings)
    unknown = sorted(set(options.findings) - set(FINDINGS))
    if unknown or not options.findings:
        raise UserError(
            f"--findings {' '.join(unknown)} must be one or more of {', '.join(FINDINGS)}"
        )
    if len(set(options.findings)) < len(options.findings):
        raise UserError(f"--findings {named} lists a finding twice; list each once")
    out = options.out
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(f"--out {out} is not empty and is not a phantom; choose a new folder")


def choose_radiographs(count: int, rng: np.random.Generator) -> list[Radiograph]:
    """One to five radiographs per patient, until there are enough."""
    radiographs = []
    patient = 0
    while len(radiographs) < count:
        patient += 1
        radiographs += [(patient, follow_up) for follow_up in range(rng.integers(1, 6))]
    return radiographs[:count]


def write_radiographs(radiographs: list[Radiograph], options: Options, folder: Path) -> list[Drawn]:
    """Draw radiographs into a folder, with one process per core."""
    write = partial(
        write_radiograph,
        seed=options.seed,
        size=options.size,
        folder=folder,
        choice=options.findings,
    )
    with ProcessPoolExecutor(os.cpu_count(), initializer=start_process) as pool:
        try:
            pictures = pool.map(write, radiographs, chunksize=16)
            return list(track(pictures, "phantom", "image", total=len(radiographs), leave=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def write_radiograph(
    radiograph: Radiograph,
    seed: int,
    size: int,
    folder: Path,
    choice: tuple[str, ...] = FINDINGS,
) -> Drawn:
    """Draw one radiograph into `folder`."""
    image, findings, boxes = draw(seed, *radiograph, size, choice)
    path = folder / file_name(*radiograph)
    if not cv2.imwrite(str(path), image):
        raise UserError(f"{path} could not be written")
    return findings, boxes


def write_labels(
    path: Path, radiographs: list[Radiograph], drawn: list[Drawn], options: Options
) -> None:
    with open(path, "w", newline="") as file:
        file.write(LABEL_HEADER + "\n")
        writer = csv.writer(file, lineterminator="\n")
        for (patient, follow_up), (findings, _) in zip(radiographs, drawn, strict=True):
            age, gender = person(options.seed, patient)
            head = (file_name(patient, follow_up), "|".join(findings) or "No Finding")
            size = options.size
            writer.writerow(
                [*head, follow_up, patient, age, gender, "PA", size, size, 0.143, 0.143]
            )


def write_boxes(
    path: Path, radiographs: list[Radiograph], drawn: list[Drawn], test: set[int]
) -> None:
    """Write the boxes of the patients in the test list; NIH provides no others."""
    with open(path, "w", newline="") as file:
        file.write(BOX_HEADER + "\n")
        writer = csv.writer(file, lineterminator="\n")
        for radiograph, (_, boxes) in zip(radiographs, drawn, strict=True):
            for finding, *xywh in boxes if radiograph[0] in test else ():
                name = NIH_BOX_NAME.get(finding, finding)
                writer.writerow([file_name(*radiograph), name, *map(float, xywh), "", "", ""])


def write_split(folder: Path, radiographs: list[Radiograph], test: set[int]) -> None:
    for name, in_test in (("train_val_list.txt", False), ("test_list.txt", True)):
        chosen = [radiograph for radiograph in radiographs if (radiograph[0] in test) == in_test]
        names = [file_name(*radiograph) for radiograph in chosen]
        (folder / name).write_text("\n".join(names) + "\n")


def write_mark(path: Path, options: Options) -> None:
    path.write_text(
        "Synthetic images drawn by tools/phantom/make_phantom.py: "
        "not radiographs of real patients, not medical images.\n"
        f"--images {options.images} --size {options.size} --seed {options.seed} "
        f"--findings {' '.join(options.findings)}\n"
    )


def file_name(patient: int, follow_up: int) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


if __name__ == "__main__":
    start(main, parse(Options))
