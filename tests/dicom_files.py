"""Write DICOM radiographs of an invented patient, in all syntaxes that can be written here."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from pylon.data.images import read_pixels

SIZE = (33, 47)  # of small images; JPEG 2000 needs 32
# of the patient: what must not appear in results without --dicom-out
PATIENT = {
    "PatientName": "Quixote^Alonso",
    "PatientID": "LAMANCHA-1605",
    "PatientBirthDate": "15470929",
    "AccessionNumber": "ACC160516",
    "ReferringPhysicianName": "Panza^Sancho",
    "StudyDate": "16050116",
}
# compressed by pydicom's own encoders, with 16 bits
ENCODED = {
    "RLE Lossless": RLELossless,
    "JPEG-LS Lossless": JPEGLSLossless,
    "JPEG 2000 Lossless": JPEG2000Lossless,
}


def dicom(pixels: np.ndarray, bits: int, **attributes: object) -> Dataset:
    """A radiograph, MONOCHROME2 and not compressed unless attributes say otherwise.

    Args:
        pixels: (H, W) uint8, uint16 or int16.
        bits: stored.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, name, generate_uid())
    for name, value in PATIENT.items():
        setattr(dataset, name, value)
    dataset.PatientSex = "M"
    dataset.StudyID = "1"
    dataset.StudyTime = "101112"
    dataset.Modality = "DX"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def raw(dataset: Dataset, name: str, vr: str, value: bytes) -> Dataset:
    """Set an attribute to bytes that pydicom may not accept as a value."""
    value += b" " * (len(value) % 2)
    tag = Tag(name)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return dataset


def table_item(
    first: int, entries: np.ndarray, bits: int, is_signed: bool = False, with_bytes: bool = False
) -> Dataset:
    """An item of a modality or VOI LUT sequence.

    Args:
        first: value that is mapped to the first entry.
        entries: (N,), N up to 65,536.
        bits: of an entry.
        is_signed: whether the values may be negative.
        with_bytes: write entries of 8 bits as bytes, not words.
    """
    length = len(entries) % 65536
    size = 1 if with_bytes and bits <= 8 else 2
    item = Dataset()
    descriptor = struct.pack("<3H", length, first % 65536, bits)
    raw(item, "LUTDescriptor", "SS" if is_signed else "US", descriptor)
    return raw(item, "LUTData", "OW", np.asarray(entries).astype(f"<u{size}").tobytes())


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def file_of(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def implicit(dataset: Dataset) -> Dataset:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def jpeg(pixels: np.ndarray) -> Dataset:
    """A radiograph of 8 bits in JPEG Baseline, by OpenCV."""
    dataset = dicom(pixels, 8)
    stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return dataset


def jpeg_lossless(dataset: Dataset, folder: Path) -> Path:
    """The same radiograph in JPEG Lossless, by GDCM."""
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(save(dataset, folder / "uncompressed.dcm")))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    path = folder / "jpeg_lossless.dcm"
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return path


def of_values(*values: int, dtype: str = "<u2") -> np.ndarray:
    """An image of a few values, (33, 47): the first in its first row, and so on; the last below."""
    rows = np.minimum(np.arange(SIZE[0]), len(values) - 1)
    return np.repeat(np.array(values, dtype)[rows, None], SIZE[1], axis=1)


def levels(dataset: Dataset, tmp_path, number: int, window=None) -> list[int]:
    """The grey levels of the first rows."""
    image = read_pixels(str(save(dataset, tmp_path / "a.dcm")), window).image
    assert image.shape == SIZE
    assert (image == image[:, :1]).all()
    return image[:number, 0].tolist()


def notes(dataset: Dataset, tmp_path) -> tuple[str, ...]:
    return read_pixels(str(save(dataset, tmp_path / "a.dcm"))).notes


def with_border(image: np.ndarray, value: int) -> np.ndarray:
    """The same image with 2 % of its pixels, in the last column, at a value."""
    bordered = image.copy()
    bordered[:, -1] = value
    return bordered
