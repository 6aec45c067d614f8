"""Find the radiographs that predict.py is given: files, and images in folders.

Results are named after the path of an image relative to the folder that holds all that was given:
of `predict.py a b`, a/x.png and b/x.png; of `predict.py a`, x.png.
"""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pylon.data.dicom import is_dicom_file
from pylon.data.pixels import Window
from pylon.drawing import fit
from pylon.prediction.journal import Result, fingerprint
from pylon.prediction.predictor import Prepared, prepare
from pylon.system.errors import UserError
from pylon.system.parallel import look_in_batches

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
INDEX = "DICOMDIR"  # the index of a medium: DICOM, too, but not an image


class Found(NamedTuple):
    """The images among the inputs.

    Attributes:
        folder: absolute path of the folder that holds all inputs.
        images: path of each image relative to it, sorted.
        faults: why an input gives no image, by its path.
    """

    folder: str
    images: list[str]
    faults: dict[str, str]


def find_images(given: Sequence[Path], out: Path) -> Found:
    """Find the images in files and folders; folders are searched with their subfolders.

    In folders, images are told by the ends of their names (`ENDINGS`), and DICOM files by their
    contents, whatever their name; hidden files are ignored.

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
    folders = []
    faults = {}
    for path in map(os.path.abspath, given):
        if not os.path.isdir(path):
            folders.append(os.path.dirname(path))
            paths.append(path)  # reading it says if it is missing
            continue
        folders.append(path)
        there = images_in(path, out.resolve(), faults)
        if not there and path not in faults:
            endings = " ".join(ENDINGS)
            faults[path] = (
                f"{path} has no images: no file that is DICOM or ends in {endings}, and is no "
                "result of predict.py"
            )
        paths += there

    folder = os.path.commonpath(folders)
    images = sorted({os.path.relpath(path, folder) for path in paths})
    named = {os.path.relpath(path, folder): fault for path, fault in faults.items()}
    return Found(folder, images, named)


def images_in(folder: str, out: Path, faults: dict[str, str]) -> list[str]:
    """Paths of the images in a folder and its subfolders, without results of predict.py.

    Why a subfolder cannot be read goes to `faults`.
    """

    def note(error: OSError) -> None:
        faults[error.filename] = f"{error.filename} cannot be read ({error.strerror})"

    found = []
    above = {}  # the real paths of a folder and those above it: links are not followed in circles
    for place, below, names in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(place)
        so_far = above.get(os.path.dirname(place), frozenset())
        is_results = any(name.startswith(".progress-") for name in names)
        if real in so_far or is_results or Path(real).is_relative_to(out):
            below.clear()
            continue
        above[place] = so_far | {real}
        below[:] = [name for name in below if not name.startswith(".")]
        images = [name for name in names if not name.startswith(".")]
        found += [path for name in images if is_image(path := os.path.join(place, name))]
    return found


def is_image(path: str) -> bool:
    """Whether a file in a folder is one of the images, by its name or, of DICOM, its contents."""
    name = os.path.basename(path)
    if name.lower().endswith(ENDINGS):
        return True
    return name != INDEX and os.path.isfile(path) and is_dicom_file(path)


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
