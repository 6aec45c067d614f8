"""Draw synthetic chest radiographs and write them exactly as NIH distributes ChestX-ray14.

    python data/make_phantom.py --out data/phantom --images 1500 --size 256 --seed 0

OUT then holds images/*.png, Data_Entry_2017.csv, BBox_List_2017.csv, train_val_list.txt and test_list.txt.
It is for the demo and the tests: a thorax by formula (thorax.py), each finding by a caricature of its sign. It is
not medicine, and a score on it says nothing of a score on patients.
"""

import csv
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from thorax import FINDINGS, draw  # data/thorax.py, beside this script

# NIH's header lines, to the letter: some of their names contain the comma that separates them.
LABEL_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
NIH_BOX_NAME = {"Infiltration": "Infiltrate"}  # NIH's box file uses another word than its label file
TEST_SHARE = 0.25  # of the patients; NIH's is 0.23 of the images
MARK = "PHANTOM.txt"  # a folder with this file may be replaced


@dataclass
class Options:
    """Draw synthetic chest radiographs in NIH's layout. They are not medicine."""

    out: Path = Path("data/phantom")
    """Folder to write. A phantom that is already there is replaced; any other folder is refused."""
    images: int = 1500
    """How many radiographs; a patient has 1 to 5 of them."""
    size: int = 256
    """Side of the pictures, pixels. NIH's are 1024."""
    seed: int = 0
    """Same seed, same bytes."""
    findings: tuple[str, ...] = FINDINGS
    """Findings to choose from for each picture, under NIH's names."""


def main(options: Options) -> None:
    if options.images < 20 or options.size < 64 or options.seed < 0:
        fail("--images must be at least 20, --size at least 64 and --seed at least 0")
    unknown = sorted(set(options.findings) - set(FINDINGS))
    if unknown or not options.findings:
        fail(f"--findings {' '.join(unknown)} must be one or more of {', '.join(FINDINGS)}")
    if len(set(options.findings)) < len(options.findings):
        fail(f"--findings {' '.join(options.findings)} names a finding twice; name each once")
    if options.out.exists() and any(options.out.iterdir()) and not (options.out / MARK).exists():
        fail(f"--out {options.out} is not empty and holds no phantom; name a new folder")
    out, rng = options.out.resolve(), np.random.default_rng(options.seed)
    radiographs, patients = [], 0  # (patient, follow-up)
    while len(radiographs) < options.images:
        patients += 1
        radiographs += [(patients, follow_up) for follow_up in range(rng.integers(1, 6))]
    radiographs = radiographs[: options.images]
    test = set(rng.choice(np.arange(1, patients + 1), round(TEST_SHARE * patients), replace=False).tolist())

    partial_out = out.with_name(out.name + ".partial")  # whole, or not there
    shutil.rmtree(partial_out, ignore_errors=True)
    (partial_out / "images").mkdir(parents=True)
    folder, choice = partial_out / "images", options.findings
    work = partial(write_radiograph, seed=options.seed, size=options.size, folder=folder, choice=choice)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        pictures = pool.map(work, radiographs, chunksize=16)
        if sys.stderr.isatty():
            drawn = list(tqdm(pictures, "phantom", len(radiographs), unit="image"))
        else:
            drawn = list(with_lines(pictures, len(radiographs)))

    names = [file_name(*radiograph) for radiograph in radiographs]
    with open(partial_out / "Data_Entry_2017.csv", "w", newline="") as labels:
        labels.write(LABEL_HEADER + "\n")
        writer = csv.writer(labels, lineterminator="\n")
        for name, (patient, follow_up), (findings, _) in zip(names, radiographs, drawn, strict=True):
            person = np.random.default_rng([options.seed, patient, 0])
            age, gender, size = person.integers(18, 90), person.choice(("F", "M")), options.size
            found = "|".join(findings) or "No Finding"
            writer.writerow([name, found, follow_up, patient, age, gender, "PA", size, size, 0.143, 0.143])
    with open(partial_out / "BBox_List_2017.csv", "w", newline="") as box_list:
        box_list.write(BOX_HEADER + "\n")
        writer = csv.writer(box_list, lineterminator="\n")
        for name, (patient, _), (_, boxes) in zip(names, radiographs, drawn, strict=True):
            for finding, *xywh in boxes if patient in test else ():
                writer.writerow([name, NIH_BOX_NAME.get(finding, finding), *map(float, xywh), "", "", ""])
    for list_name, in_test in (("train_val_list.txt", False), ("test_list.txt", True)):
        chosen = [name for name, (patient, _) in zip(names, radiographs, strict=True) if (patient in test) == in_test]
        (partial_out / list_name).write_text("\n".join(chosen) + "\n")
    (partial_out / MARK).write_text(
        "Synthetic pictures drawn by data/make_phantom.py: not radiographs of anyone, and not medicine.\n"
        f"--images {options.images} --size {options.size} --seed {options.seed} --findings {' '.join(choice)}\n"
    )
    shutil.rmtree(out, ignore_errors=True)
    partial_out.rename(out)
    print(f"{options.out}: {len(radiographs)} images of {patients} patients, {len(test)} of them in the test list")


def with_lines(pictures: Iterable, count: int) -> Iterator:
    """Iterate, with a line every 30 seconds and one at the end, as is right where stderr is no terminal."""
    start = said = time.monotonic()
    for done, picture in enumerate(pictures, 1):
        yield picture
        if done == count or time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"phantom: {done} of {count} images, {said - start:.0f} s", file=sys.stderr, flush=True)


def write_radiograph(
    radiograph: tuple[int, int], seed: int, size: int, folder: Path, choice: tuple[str, ...] = FINDINGS
) -> tuple[list[str], list[tuple[str, int, int, int, int]]]:
    """Draw one radiograph into `folder`; return its findings and, of the boxed ones, the boxes."""
    image, findings, boxes = draw(seed, *radiograph, size, choice)
    path = folder / file_name(*radiograph)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path} could not be written")
    return findings, boxes


def file_name(patient: int, follow_up: int) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


def fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except OSError as error:
        fail(str(error))
