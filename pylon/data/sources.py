"""From a folder to `Radiographs`: choose the reader, read the files and check them.

To add a data set, write its reader in a file of its own and choose it in `read_radiographs`.
"""

from pathlib import Path

from pylon.data import chestxray14
from pylon.data.checks import faults_of_boxes, faults_of_lists, raise_first
from pylon.data.contract import Radiographs, no_boxes


def read_radiographs(data: Path, with_boxes: bool = False) -> Radiographs:
    """Read a data set; the path of a missing image is NaN.

    Args:
        data: folder with NIH's files.
        with_boxes: also read the boxes, which training does not use.

    Raises:
        UserError: a file or a column is missing, or the contents are faulty (the first fault).
    """
    return read_chestxray14(data, with_boxes)


def read_chestxray14(data: Path, with_boxes: bool) -> Radiographs:
    # the images; inconsistent lists are refused
    lists = chestxray14.read_lists(data)
    raise_first(faults_of_lists(lists))
    images = chestxray14.images_of(lists)

    # the boxes of the test images
    boxes = no_boxes()
    if with_boxes:
        listed = chestxray14.read_box_list(data)
        raise_first(faults_of_boxes(listed, data))
        boxes = chestxray14.boxes_of(listed, images)
    hashes = chestxray14.list_hashes(data)
    return Radiographs(images, boxes, chestxray14.PATHOLOGIES, hashes)
