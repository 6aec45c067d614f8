"""Find the radiographs that predict.py is given: files, and images in folders.

Results are named after the path of an image relative to the folder that holds all that was given:
of `predict.py a b`, a/x.png and b/x.png; of `predict.py a`, x.png.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pylon.data.dicom import is_dicom_file
from pylon.data.kinds import ENDINGS
from pylon.data.pixels import Window
from pylon.drawing import fit
from pylon.prediction.journal import Result, fingerprint
from pylon.prediction.predictor import Prepared, prepare
from pylon.system.errors import UserError
from pylon.system.files import one_line
from pylon.system.parallel import look_in_batches

INDEX = "DICOMDIR"  # the index of a medium: DICOM, too, but not an image


class Found(NamedTuple):
    """The images among the inputs.

    Attributes:
        folder: absolute path of the folder that holds all inputs.
        images: path of each image relative to it, sorted.
        faults: why an input gives no image, by its path.
        note: on the files in folders that are no images; empty if there are none.
    """

    folder: str
    images: list[str]
    faults: dict[str, str]
    note: str


def find_images(given: Sequence[Path], out: Path) -> Found:
    """Find the images in files and folders; folders are searched with their subfolders.

    In folders, images are told by the ends of their names (`ENDINGS`), and DICOM files by their
    contents, whatever their name; hidden files are ignored. A folder that is linked, too, is
    searched once.

    Args:
        given: files and folders.
        out: folder of the results.

    Raises:
        UserError: nothing is given, or `out` is in one of the folders.
    """
    if not given:
        raise UserError(
            "name the images or folders to predict, before --classes and other options, as in: "
            "predict.py chest.png --checkpoint save/pylon/0/best"
        )
    for path in given:
        if os.path.isdir(path) and out.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"--out {out} is in the folder {path}, where its pictures would be taken for "
                "radiographs; choose a folder outside"
            )

    # the files
    paths = []
    faults = {}
    files = [os.path.abspath(path) for path in given if not os.path.isdir(path)]
    for path in files:
        try:
            os.stat(path)
            paths.append(path)
        except OSError as error:
            faults[path] = f"{path} cannot be read ({error.strerror}); check the path"

    # the folders
    others = Counter()
    folders = [os.path.abspath(path) for path in given if os.path.isdir(path)]
    inside = images_in(folders, out.resolve(), faults, others)
    holders = {Path(os.path.realpath(os.path.dirname(path))) for path in inside}
    for path in folders:
        real = os.path.realpath(path)
        if path not in faults and not any(holder.is_relative_to(real) for holder in holders):
            endings = " ".join(ENDINGS)
            faults[path] = (
                f"{path} has no images: no file that is DICOM or ends in {endings}, and is no "
                "result of predict.py"
            )

    folder = os.path.commonpath([*folders, *map(os.path.dirname, files)])
    images = sorted({os.path.relpath(path, folder) for path in (*paths, *inside)})
    named = {os.path.relpath(path, folder): fault for path, fault in faults.items()}
    return Found(folder, images, named, note_on(others))


def note_on(others: Counter[str]) -> str:
    """A sentence on the files that were left out, counted by the ends of their names."""
    if not others:
        return ""
    by_count = sorted(others.items(), key=lambda each: (-each[1], each[0]))
    counts = [f"{ending or 'no ending'} {count}" for ending, count in by_count[:6]]
    files = "1 file" if others.total() == 1 else f"{others.total()} files"
    more = ", ..." if len(others) > 6 else ""
    return one_line(f"{files} of other kinds left out ({', '.join(counts)}{more})")


def images_in(
    folders: Sequence[str], out: Path, faults: dict[str, str], others: Counter[str]
) -> list[str]:
    """Paths of the images in folders and their subfolders, without results of predict.py.

    Args:
        out: folder of the results.
        faults: receives why subfolders cannot be read.
        others: receives the ends of the names of other files.
    """

    def note(error: OSError) -> None:
        faults[error.filename] = f"{error.filename} cannot be read ({error.strerror})"

    found = []
    seen = set()  # real paths
    tops = list(folders)
    for top in tops:  # links come later: a folder is found under its own name, if it has one here
        for place, below, names in os.walk(top, onerror=note):
            real = os.path.realpath(place)
            is_results = any(name.startswith(".progress-") for name in names)
            if real in seen or is_results or Path(real).is_relative_to(out):
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            tops += filter(os.path.islink, [os.path.join(place, name) for name in below])
            for name in names:
                if is_image(path := os.path.join(place, name)):
                    found.append(path)
                elif name[0] != "." and name.upper() != INDEX:
                    others[os.path.splitext(name)[1].lower()] += 1
    return found


def is_image(path: str) -> bool:
    """Whether a file in a folder is one of the images, by its name or, of DICOM, its contents."""
    name = os.path.basename(path)
    if name.startswith(".") or name.upper() == INDEX:
        return False
    return name.lower().endswith(ENDINGS) or (os.path.isfile(path) and is_dicom_file(path))


def read_in_batches(
    images: list[str], folder: str, batch_size: int, num_workers: int, **how
) -> Iterable[list[tuple[Result, Prepared | None]]]:
    """Read images in worker processes, in order, in batches.

    Args:
        images: paths relative to `folder`.
        how: the other arguments of `read`.
    """
    look = partial(read, folder=folder, **how)
    workers = num_workers if len(images) > batch_size else 0
    return look_in_batches(images, look, batch_size, workers)


def read(
    image: str, folder: str, image_size: int, window: Window | None, side: int
) -> tuple[Result, Prepared | None]:
    """Read an image for a network, and shrink or enlarge it to a picture's `side`; 0: no picture.

    Returns:
        The result so far, without findings; and the input, whose image has the size of a picture,
        or None if the image cannot be read.
    """
    path = os.path.join(folder, image)
    known_as = fingerprint(path)
    try:
        prepared = prepare(path, image_size, window)
    except UserError as error:
        return Result(image, known_as, str(error)), None
    pixels = prepared.pixels
    _, *how = pixels
    result = Result(image, known_as, "", prepared.height, prepared.width, *how)
    picture = fit(pixels.image, side, cv2.INTER_CUBIC) if side else np.empty((0, 0), np.uint8)
    return result, prepared._replace(pixels=pixels._replace(image=picture))
