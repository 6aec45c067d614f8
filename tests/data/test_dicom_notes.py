"""What is said of DICOM files, and what is not: contradictions, views, empty images, log lines."""

import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from dicom_files import (
    SIZE,
    Dataset,
    dicom,
    file_of,
    levels,
    notes,
    of_values,
    raw,
    save,
    with_border,
)

from pylon.data.images import read_pixels
from pylon.data.pixels import ONE_LEVEL

# presentation


@pytest.mark.parametrize(
    ("photometric", "shape", "expected", "is_noted"),
    [
        ("MONOCHROME1", "INVERSE", [235, 225, 155], False),
        ("MONOCHROME1", "IDENTITY", [235, 225, 155], True),
        ("MONOCHROME1", None, [235, 225, 155], False),
        ("MONOCHROME2", "INVERSE", [20, 30, 100], True),
        ("MONOCHROME2", "IDENTITY", [20, 30, 100], False),
        ("MONOCHROME2", None, [20, 30, 100], False),
    ],
)
def test_the_photometric_interpretation_wins(tmp_path, photometric, shape, expected, is_noted):
    dataset = dicom(of_values(20, 30, 100, dtype="u1"), 8, PhotometricInterpretation=photometric)
    if shape is not None:
        dataset.PresentationLUTShape = shape
    assert levels(dataset, tmp_path, 3) == expected
    note = f"of {photometric} with the presentation LUT shape {shape}, which contradict: read as "
    assert notes(dataset, tmp_path) == ((note + photometric,) if is_noted else ())


# views


def view_code(value: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "SCT"
    item.CodeMeaning = "view"
    return [item]


@pytest.mark.parametrize(
    ("attribute", "value", "lateral"),
    [
        ("ViewPosition", "LL", True),
        ("ViewPosition", "RL", True),
        ("ViewPosition", "LATERAL", True),
        ("ViewPosition", "XTABLE LATERAL", True),
        ("ViewPosition", "LAT", True),
        ("ViewPosition", "Lateral", True),
        ("ViewPosition", "PA", False),
        ("ViewPosition", "LLD", False),  # decubitus, which is frontal
        ("ViewPosition", "LAT DECUB", False),
        ("ViewPosition", "", False),
        ("ViewCodeSequence", view_code("399067008"), True),  # lateral
        ("ViewCodeSequence", view_code("399173006"), True),  # left lateral
        ("ViewCodeSequence", view_code("R-10232"), True),  # right lateral, in older files
        ("ViewCodeSequence", view_code("399348003"), False),  # antero-posterior
        ("PatientOrientation", ["P", "F"], True),
        ("PatientOrientation", ["A", "F"], True),
        ("PatientOrientation", ["AL", "FR"], True),
        ("PatientOrientation", ["F", "P"], True),  # turned
        ("PatientOrientation", ["L", "F"], False),
        ("PatientOrientation", ["L", "P"], False),  # from above
        ("PatientOrientation", ["", ""], False),
    ],
)
def test_lateral_views(tmp_path, attribute, value, lateral):
    dataset = dicom(of_values(1, 2, 3), 12)
    if isinstance(value, str):
        raw(dataset, attribute, "CS", value.encode())
    else:
        setattr(dataset, attribute, value)
    assert read_pixels(str(save(dataset, tmp_path / "a.dcm"))).lateral is lateral


# a single grey level


def test_a_single_grey_level_is_noted(tmp_path):
    assert notes(dicom(of_values(1, 2, 3), 12), tmp_path) == ()
    assert notes(dicom(of_values(7), 12), tmp_path) == (ONE_LEVEL,)
    outside = dicom(of_values(1, 2, 3), 12, WindowCenter="900", WindowWidth="10")
    assert notes(outside, tmp_path) == (ONE_LEVEL,)
    padded = dicom(with_border(of_values(7), 3), 12, PixelPaddingValue=3)
    padded.PhotometricInterpretation = "MONOCHROME1"  # all but the border is white
    assert notes(padded, tmp_path) == (ONE_LEVEL,)
    all_padding = dicom(of_values(3), 12, PixelPaddingValue=3)
    assert levels(all_padding, tmp_path, 1) == [0]
    assert notes(all_padding, tmp_path) == (ONE_LEVEL,)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_png_whose_picture_is_its_alpha_is_noted(tmp_path, depth):
    image = np.zeros((*SIZE, 4), depth)
    image[..., 3] = np.arange(SIZE[1])
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert read_pixels(str(tmp_path / "a.png")).notes == (ONE_LEVEL,)
    image[3, 5, :3] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert read_pixels(str(tmp_path / "a.png")).notes == ()


# what the libraries print


def test_nothing_is_printed_of_uids_or_names(tmp_path):
    dataset = dicom(of_values(1, 2, 3), 12)
    dataset.PixelData += b"\0" * 9000
    content = file_of(dataset)
    uid = dataset.StudyInstanceUID.encode()
    assert content.count(uid) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(uid, b"1.02.3x" + uid[7:]))
    code = (
        "import logging, sys, warnings\n"
        "logging.basicConfig()\n"  # as anyone who uses the package may
        "from pylon.data.dicom import read_header\n"
        "from pylon.data.images import read_image\n"
        "read_image(sys.argv[1])\n"
        "warnings.resetwarnings()\n"  # as a thread may that has caught warnings
        "read_image(sys.argv[1])\n"
        "str(read_header(sys.argv[1]))\n"
        "for name in ('pydicom', 'pydicom.dataset', 'highdicom', 'highdicom.base'):\n"
        "    logging.getLogger(name).error('1.02.3x, Quixote')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.dcm")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    assert logging.getLogger("pylon").propagate  # others print as before
