"""The predictions of a DICOM image as DICOM, to be looked at next to it (extra `dicom`).

Two objects in the patient's study, each in a new series: a Secondary Capture of the picture, which
all viewers show; a Comprehensive SR by template TID 1500, with the probability of each class and
the regions of the findings drawn, as polylines in the coordinates of the source image. Both hold
the patient's data, and say that they are for research only.
"""

from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from pylon.data.dicom import dicom_errors, read_header
from pylon.prediction.prediction import Prediction
from pylon.system.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

NAME = "PYLON"
CAVEAT = "Research use only, not a diagnosis"
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# attributes that every object has, empty where they are not known (type 2 in the standard)
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# groups of the attributes of patient, clinical trial, study, request and visit
GROUPS = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040)
LONGEST_MEANING = 64  # letters of a code's meaning
SERIES = {"captures": 9001, "reports": 9002}  # numbers behind those of the source's series
SCHEME = "99PYLON"  # of codes for classes that are not in:
# keywords of pydicom's dictionary of the standard's codes
CODES = {
    "Cardiomegaly": ("SCT", "Cardiomegaly"),
    "Edema": ("SCT", "PulmonaryEdema"),
    "Effusion": ("SCT", "PleuralEffusion"),
    "Infiltration": ("DCM", "Infiltrate"),
    "Mass": ("SCT", "Mass"),
    "Nodule": ("SCT", "Nodule"),
    "Pneumothorax": ("SCT", "Pneumothorax"),
}


class NotWritable(UserError):
    """No DICOM can be written for an image; others are not affected."""


class Origin(NamedTuple):
    """What predicted: the algorithm, as the report identifies it."""

    weights_sha256: str
    parameters: tuple[str, ...]  # options that change results


def dicom_objects(
    path: str, prediction: Prediction, labels: Sequence[str], sheet: bytes, origin: Origin
) -> dict[str, bytes]:
    """Make the two DICOM files of an image: by kind, "captures" and "reports".

    Args:
        path: of the DICOM file that was predicted.
        prediction: of it.
        labels: the classes whose regions the report gives.
        sheet: the picture, a PNG file, without anything that identifies the patient.
        origin: of the prediction.

    Raises:
        NotWritable: the file has no study to write to, or an attribute that cannot be copied.
    """
    try:
        with dicom_errors(path):
            header = read_header(path)
    except UserError as error:  # removed since it was predicted
        raise NotWritable(str(error)) from error
    source = copy_study(path, header)
    try:
        return {
            "captures": file_of_dataset(capture_of(source, sheet)),
            "reports": file_of_dataset(report_of(source, prediction, labels, origin)),
        }
    except Exception as error:  # without its message, which may hold values of the patient
        raise NotWritable(
            f"highdicom makes no capture and report of {path} ({type(error).__name__}); leave out "
            "--dicom-out"
        ) from error.with_traceback(None)


def copy_study(path: str, header: "Dataset") -> "Dataset":
    """What a DICOM file says about patient and study, as the files that are written have it.

    Texts are in UTF-8, which holds those of all other character sets. What the standard asks for
    is there, if only empty; a sex that it does not know is emptied: U is common. Optional
    attributes that cannot be read are left out.

    Raises:
        NotWritable: an attribute is missing that cannot be empty, or has a value of another kind.
    """
    from pydicom import Dataset
    from pydicom.charset import decode_element
    from pydicom.datadict import tag_for_keyword
    from pydicom.valuerep import DA, TM

    required = {tag_for_keyword(name): name for name in (*NEEDED, *TYPE_2)}
    character_set = header.get("SpecificCharacterSet")
    study = Dataset()
    for tag in header.keys():  # noqa: SIM118, a Dataset is iterated over by element
        if tag.group not in GROUPS:
            continue
        try:
            element = header[tag]
            decode_element(element, character_set)
            for item in element.value if element.VR == "SQ" else ():
                item.decode()
            if tag in required and not element.is_empty:
                {"DA": DA, "TM": TM}.get(element.VR, str)(element.value)
        except Exception as error:  # pydicom raises almost any exception
            if tag not in required:
                continue
            raise NotWritable(
                f"the {required[tag]} of {path} is not valid, so that nothing can be written to "
                "its study; correct it, or leave out --dicom-out"
            ) from error.with_traceback(None)
        study.add(element)
    missing = [name for name in NEEDED if not study.get(name)]
    if missing:
        raise NotWritable(
            f"{path} has no {missing[0]}, so that nothing can be written to its study; leave out "
            "--dicom-out"
        )
    for name in TYPE_2:
        if name not in study:
            setattr(study, name, None)
    if study.PatientSex not in ("M", "F", "O"):
        study.PatientSex = None
    study.SpecificCharacterSet = "ISO_IR 192"
    return study


def capture_of(source: "Dataset", sheet: bytes) -> "Dataset":
    """A Secondary Capture of a picture, in the study of a DICOM image."""
    from highdicom.sc import SCImage
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    capture = SCImage.from_ref_dataset(
        source,
        pixel_array=np.ascontiguousarray(pixels),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # emptied below
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **about_series("captures"),
    )
    capture.PatientOrientation = None  # a sheet of several pictures has none
    capture.Laterality = None  # of an unpaired part of the body
    capture.BurnedInAnnotation = "NO"  # none that identifies the patient
    capture.ImageComments = CAVEAT
    capture.DerivationDescription = f"Heatmaps of {NAME} on the source image. {CAVEAT}"

    # the source
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    purpose = CodedConcept(*codes.DCM.SourceImageForImageProcessingOperation)
    reference.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [reference]
    return capture


def report_of(
    source: "Dataset", prediction: Prediction, labels: Sequence[str], origin: Origin
) -> "Dataset":
    """A Comprehensive SR (TID 1500) of a prediction, in the study of a DICOM image."""
    from highdicom import UID, sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=UID(), name=NAME, model_name=NAME, serial_number=origin.weights_sha256
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.PlainRadiography,
        imaging_measurements=[
            group_of(source, finding, finding["label"] in labels and finding["box"], origin)
            for finding in prediction.findings
        ],
    )
    caveat = sr.TextContentItem(
        codes.DCM.Comment, CAVEAT, relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    content[0].ContentSequence.append(caveat)
    return sr.ComprehensiveSR(
        evidence=[source],
        content=content[0],
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=f"Class names of {NAME}")],
        **about_series("reports"),
    )


def group_of(source: "Dataset", finding: dict[str, Any], drawn: bool, origin: Origin) -> Any:
    """What the report says about a class: TID 1410 with its region if it is drawn, else TID 1501.

    Args:
        finding: see `Prediction`.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    probability = sr.Measurement(
        name=codes.DCM.Probability, value=finding["score"], unit=codes.UCUM.NoUnits
    )
    evaluations = []
    if finding["present"] is not None:
        called = codes.DCM.Present if finding["present"] else codes.DCM.Absent
        evaluations = [sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, called)]
    about = {
        "tracking_identifier": sr.TrackingIdentifier(identifier=finding["label"]),
        "finding_type": code_of(finding["label"]),
        "algorithm_id": sr.AlgorithmIdentification(
            NAME,
            version("pylon-localization"),
            [f"weights sha256 {origin.weights_sha256}", *origin.parameters, CAVEAT],
        ),
        "measurements": [probability],
        "qualitative_evaluations": evaluations,
    }
    uids = (source.SOPClassUID, source.SOPInstanceUID)
    if not drawn:
        images = [sr.SourceImageForMeasurementGroup(*uids)]
        return sr.MeasurementsAndQualitativeEvaluations(**about, source_images=images)
    corners = np.array([*finding["outline"], finding["outline"][0]], np.float64)  # closed
    region = sr.ImageRegion("POLYLINE", corners, sr.SourceImageForRegion(*uids))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(**about, referenced_region=region)


def code_of(label: str) -> Any:
    """The code of a class: the standard's if it is in `CODES`, else one of our own."""
    from pydicom.sr.codedict import Code, codes

    if label not in CODES:
        return Code(label, SCHEME, label[:LONGEST_MEANING])
    scheme, keyword = CODES[label]
    return getattr(getattr(codes, scheme), keyword)


def about_series(kind: str) -> dict[str, Any]:
    """The attributes that both objects have: new UIDs, and what made them."""
    from highdicom import UID

    return {
        "series_instance_uid": UID(),
        "series_number": SERIES[kind],
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "software_versions": version("pylon-localization"),
        "series_description": f"{NAME}: {CAVEAT}",
        "content_qualification": "RESEARCH",
    }


def file_of_dataset(dataset: "Dataset") -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
