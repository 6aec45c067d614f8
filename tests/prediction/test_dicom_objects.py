"""The DICOM files of a prediction: what they take over from their source."""

import io

import cv2
import numpy as np
import pydicom
import pytest
from dicom_files import PATIENT, dicom, save

from pylon.prediction.dicom_objects import TYPE_2, NotWritable, Origin, dicom_objects
from pylon.prediction.prediction import Prediction

FLAT = {"point": None, "box": None, "outline": []}
PIXELS = np.zeros((24, 16), np.uint8)
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
# character sets and names of PS3.5, annexes H to K
NAMES = {
    "Latin 1": ("ISO_IR 100", "Ñandú^José"),
    "Japanese": (["", "ISO 2022 IR 87"], JAPANESE),
    "Japanese with half-width letters": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "Unicode": ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
}


def write_both(path, label: str = "Mass", box: bool = True) -> list[pydicom.Dataset]:
    """The two files of a DICOM file, read again."""
    outline = [(0, 0), (9, 0), (0, 7)]
    place = {"point": (3, 3), "box": (0, 0, 9, 7), "outline": outline} if box else FLAT
    finding = {"label": label, "score": 0.5, "present": None, **place}
    maps = np.zeros((1, 8, 8), np.float32)
    prediction = Prediction([finding], maps, (label,), {label: None}, True, PIXELS, np.eye(3)[:2])
    sheet = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    objects = dicom_objects(str(path), prediction, [label], sheet, Origin("0" * 64, ()))
    assert list(objects) == ["captures", "reports"]
    return [pydicom.dcmread(io.BytesIO(file)) for file in objects.values()]


@pytest.mark.parametrize("name", TYPE_2)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_attributes_without_a_value_are_left_empty(name, how, tmp_path):
    source = dicom(PIXELS, 8)
    if how == "missing":
        del source[name]
    else:
        setattr(source, name, None)
    for made in write_both(save(source, tmp_path / "source.dcm")):
        assert made[name].is_empty
        for other in TYPE_2:
            assert other == name or made[other].value == source[other].value


@pytest.mark.parametrize(("character_set", "name"), NAMES.values(), ids=NAMES)
def test_texts_of_all_character_sets_are_kept(character_set, name, tmp_path):
    institution = name.split("=")[1] if "=" in name else name.replace("^", " ")
    source = dicom(PIXELS, 8, SpecificCharacterSet=character_set, PatientName=name)
    source.PatientComments = institution
    request = pydicom.Dataset()
    request.RequestedProcedureDescription = institution
    source.ReferencedStudySequence = [request]
    capture, report = write_both(save(source, tmp_path / "source.dcm"), label="肺結節")
    for made in (capture, report):
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert made.PatientName == name
        assert made.PatientID == PATIENT["PatientID"]
    assert report.PatientComments == institution
    assert report.ReferencedStudySequence[0].RequestedProcedureDescription == institution
    assert "肺結節" in str(report)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "1547-09-29"),
        ("StudyDate", "yesterday"),
        ("StudyTime", "25:00"),
    ],
)
def test_the_attribute_that_is_at_fault_is_named(name, value, tmp_path):
    source = dicom(PIXELS, 8)
    source[name]._value = value
    path = save(source, tmp_path / "source.dcm")
    with pytest.raises(NotWritable) as error:
        write_both(path)
    assert str(error.value).startswith(f"the {name} of {path} is not valid")
    assert value not in str(error.value)


def test_optional_attributes_that_cannot_be_read_are_left_out(tmp_path):
    path = save(dicom(PIXELS, 8, PatientAge="058Y", PregnancyStatus=4), tmp_path / "source.dcm")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"US\2\0\4\0", b"US\3\0\4\0\0"))  # a number of 3 bytes
    assert path.read_bytes() != whole
    _, report = write_both(path)
    assert report.PatientAge == "058Y"
    assert "PregnancyStatus" not in report


def test_a_file_that_is_gone_is_not_writable(tmp_path):
    with pytest.raises(NotWritable, match=r"gone\.dcm"):
        write_both(tmp_path / "gone.dcm")


def test_long_names_of_classes_are_written(tmp_path):
    for made in write_both(save(dicom(PIXELS, 8), tmp_path / "source.dcm"), label="Mass " * 30):
        assert made.PatientName == PATIENT["PatientName"]


def test_a_flat_map_has_no_region(tmp_path):
    path = save(dicom(PIXELS, 8), tmp_path / "source.dcm")
    for box in (True, False):
        _, report = write_both(path, box=box)
        assert ("POLYLINE" in str(report)) is box
        assert "Mass" in str(report)
