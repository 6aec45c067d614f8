import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from dicom_files import (
    ENCODED,
    PATIENT,
    Dataset,
    dicom,
    file_of,
    implicit,
    jpeg,
    jpeg_lossless,
    pydicom,
    save,
)

from pylon.data.dicom import frame_in_stream
from pylon.data.images import fault_of, read_image, read_pixels, width_height_of
from pylon.system.errors import UserError

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
WHOLE_RANGE = (2048, 4096)  # of 12 bits


@pytest.fixture(scope="module")
def radiograph():
    """12 bits, (96, 80) uint16, from black to white, with all values between."""
    smooth = np.linspace(0, 4095, 96)[:, None] + np.linspace(-300, 300, 80)
    noise = np.random.default_rng(0).integers(-40, 40, smooth.shape)
    return (smooth + noise).clip(0, 4095).astype(np.uint16)


@pytest.fixture
def png(radiograph, tmp_path):
    """The same radiograph as a PNG of 16 bits, in its whole range."""
    path = tmp_path / "radiograph.png"
    cv2.imwrite(str(path), radiograph)
    return str(path)


def differences(path, image):
    return np.abs(read_image(str(path)).astype(int) - image.astype(int))


def test_window_is_that_of_a_png(radiograph, png, tmp_path):
    path = save(dicom(radiograph, 12, **WINDOW), tmp_path / "no ending")
    pixels = read_pixels(str(path))
    assert pixels[1:] == (12, False, WHOLE_RANGE, False, ())
    assert (pixels.image == read_pixels(png, WHOLE_RANGE).image).all()
    assert pixels.image.min() == 0
    assert pixels.image.max() == 255
    assert width_height_of(str(path)) == (80, 96)


@pytest.mark.parametrize("attributes", [{}, {"WindowCenter": 2048, "WindowWidth": 0}])
def test_without_a_window_percentiles_are_those_of_a_png(radiograph, png, tmp_path, attributes):
    pixels = read_pixels(str(save(dicom(radiograph, 12, **attributes), tmp_path / "a.dcm")))
    assert (pixels.image == read_image(png)).all()
    assert pixels.window == read_pixels(png).window


def test_all_rows_are_in_the_percentiles(tmp_path):
    rows = np.repeat([1000, 2000, 5000], [256, 256, 88])
    values = (rows[:, None] + np.arange(20) // 2).astype(np.uint16)
    pixels = read_pixels(str(save(dicom(values, 16), tmp_path / "a.dcm")))
    assert pixels.window == (1000 + 4010 / 2, 4010)  # from 1000 to 5009
    assert pixels.image[255, 0] == 0
    assert pixels.image[599, 19] == 255


@pytest.mark.parametrize("window", [(1000, 500), (1000.5, 3)])
def test_window_asked_for_is_that_of_a_png(radiograph, png, tmp_path, window):
    path = save(dicom(radiograph, 12, **WINDOW), tmp_path / "a.dcm")
    pixels = read_pixels(str(path), window)
    assert pixels.window == window
    assert (pixels.image == read_pixels(png, window).image).all()


@pytest.mark.parametrize("attributes", [{}, WINDOW])
@pytest.mark.parametrize("shape", [{}, {"PresentationLUTShape": "INVERSE"}])
def test_monochrome1_is_inverted(radiograph, tmp_path, attributes, shape):
    as_stored = dicom(radiograph, 12, **attributes)
    expected = read_image(str(save(as_stored, tmp_path / "a.dcm")))
    inverse = {"PhotometricInterpretation": "MONOCHROME1", **shape}
    path = save(dicom(4095 - radiograph, 12, **inverse, **attributes), tmp_path / "b.dcm")
    assert differences(path, expected).max() == 0


def test_signed_with_rescaling_and_several_windows(radiograph, png, tmp_path):
    stored = (radiograph.astype(int) - 1024).astype(np.int16)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": 100}
    # the first window, of 2 (v - 1024) + 100 for v from 0 to 4095
    windows = {"WindowCenter": [2148 - 1, 40], "WindowWidth": [8191, 80]}
    path = save(dicom(stored, 16, **rescaled, **windows), tmp_path / "a.dcm")
    assert differences(path, read_pixels(png, WHOLE_RANGE).image).max() <= 1
    assert read_pixels(str(path)).window == (2147, 8191)


def test_table_goes_before_windows(radiograph, png, tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = np.linspace(0, 65535, 4096).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    windows = {"WindowCenter": 10, "WindowWidth": 20}
    path = save(dicom(radiograph, 12, VOILUTSequence=[table], **windows), tmp_path / "a.dcm")
    assert differences(path, read_pixels(png, WHOLE_RANGE).image).max() <= 1
    assert read_pixels(str(path)).window is None


def test_eight_bits_are_taken_as_stored(radiograph, tmp_path):
    eight = (radiograph // 32).astype(np.uint8)  # up to 127: a stretch would show
    assert differences(save(dicom(eight, 8), tmp_path / "a.dcm"), eight).max() == 0
    inverse = dicom(eight, 8, PhotometricInterpretation="MONOCHROME1")
    assert differences(save(inverse, tmp_path / "b.dcm"), 255 - eight).max() == 0


@pytest.mark.parametrize("syntax", ["implicit", *ENCODED, "JPEG Lossless"])
def test_lossless_syntaxes(radiograph, png, tmp_path, syntax):
    dataset = dicom(radiograph, 12, **WINDOW)
    path = tmp_path / "a.dcm"
    if syntax == "implicit":
        save(implicit(dataset), path)
    elif syntax == "JPEG Lossless":
        path = jpeg_lossless(dataset, tmp_path)
    else:
        dataset.compress(ENCODED[syntax])
        save(dataset, path)
    assert differences(path, read_pixels(png, WHOLE_RANGE).image).max() == 0
    assert width_height_of(str(path)) == (80, 96)


def test_jpeg_baseline(radiograph, tmp_path):
    eight = cv2.GaussianBlur((radiograph // 16).astype(np.uint8), (0, 0), 2)
    assert differences(save(jpeg(eight), tmp_path / "a.dcm"), eight).mean() < 1


def element(tag: tuple[int, int], vr: bytes, length: int, value: bytes = b"") -> bytes:
    """An element in Explicit VR Little Endian, whose length may be wrong."""
    return struct.pack("<HH2sHI", *tag, vr, 0, length) + value


def damage(content: bytes, at: int) -> bytes:
    """The same file with 64 bytes of it overwritten."""
    at %= len(content)
    return content[:at] + b"\xff" * 64 + content[at + 64 :]


def damaged() -> dict[str, tuple[bytes, str]]:
    """DICOM files that cannot be read, and the sentences that say why."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4096, (64, 64), dtype=np.uint16)
    whole = file_of(dicom(image, 12))
    start = whole.rindex(b"OW\0\0")  # of the pixels' header
    jpeg_2000 = dicom(image, 12)
    jpeg_2000.compress(ENCODED["JPEG 2000 Lossless"])
    stream = file_of(jpeg_2000)
    size = stream.index(b"\xff\x4f\xff\x51")
    huge = bytearray(stream)
    huge[size + 8 : size + 16] = struct.pack(">2I", 60_000, 60_000)
    rle = dicom(image, 12)
    rle.compress(ENCODED["RLE Lossless"])
    deflated = dicom(image, 12)
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    bomb = zlib.compressobj(wbits=-15)
    header = file_of(deflated)
    header = header[: header.index(b"1.2.840.10008.1.2.1.99") + 60]

    def syntax(uid: str) -> bytes:
        dataset = dicom(image, 12)
        encoded = file_of(dataset)
        known = b"1.2.840.10008.1.2.1\0"
        assert len(uid) <= len(known)
        return encoded.replace(known, uid.encode().ljust(len(known), b"\0"), 1)

    def changed(**attributes: object) -> bytes:
        return file_of(dicom(image, 12, **attributes))

    undecodable = "is a DICOM file that cannot be decoded; copy it again, or convert it to PNG"
    return {
        "a preamble alone": (whole[:132], "is a DICOM file without a transfer syntax"),
        "index": (
            changed(SOPClassUID="1.2.840.10008.1.3.10"),
            r"is the index of a medium \(DICOMDIR\), not an image; give its folder",
        ),
        "cut in the meta header": (whole[:200], "is a DICOM file"),
        "cut before the pixels": (whole[: start - 4], "is a DICOM file without pixels"),
        "cut in the pixels": (whole[:-3000], "has 5,192 bytes of pixels instead of 8,192"),
        "fewer pixels than rows": (changed(Rows=80), "has 8,192 bytes of pixels instead of 10,240"),
        "length of 4 GB": (
            whole[: start - 4] + element((0x7FE0, 0x10), b"OW", 0xFFFFFFF0, b"\0" * 100),
            "has 100 bytes of pixels instead of 8,192",
        ),
        "wrong length of a name": (
            whole.replace(b"PN\x0e\0Quixote", b"PN\xff\xffQuixote"),
            "is a DICOM file without an image",
        ),
        "unknown syntax": (
            syntax("1.2.3.4"),
            r"is a DICOM file in an unknown transfer syntax \(1.2.3.4\)",
        ),
        "deflated": (
            header + bomb.compress(b"\0" * 500_000_000) + bomb.flush(),
            "is a DICOM file in Deflated Explicit VR Little Endian",
        ),
        "60,000 rows": (changed(Rows=60_000, Columns=60_000), "has more than 80 million pixels"),
        "cut stream": (stream[:-2000], "is a DICOM file without an image, or cut short"),
        "another size in the stream": (bytes(huge), "says that it is 64 x 64 pixels, but holds"),
        "no stream": (
            stream[:size] + b"\0" * 40 + stream[size + 40 :],
            "says that it is 64 x 64 pixels, but",
        ),
        "cut run lengths": (file_of(rle)[:-4000], "is a DICOM file without an image, or cut short"),
        "two frames": (changed(NumberOfFrames=2), "has 2 frames; save the radiograph in a file"),
        "colours": (
            changed(PhotometricInterpretation="RGB", SamplesPerPixel=3),
            r"has colours \(RGB\)",
        ),
        "32 bits": (changed(BitsAllocated=32), "has 32 bits per pixel"),
        "damaged stream": (damage(stream, size + 200), undecodable),
        "damaged run lengths": (damage(file_of(rle), -6000), undecodable),
        "no rows": (changed(Rows=0), "is a DICOM file without an image .Digital X-Ray Image"),
        "tiny": (file_of(dicom(image[:8], 12)), "is 64 x 8 pixels, too small"),
        "more bits stored than allocated": (
            changed(BitsStored=40, HighBit=39),
            "has BitsStored above BitsAllocated",
        ),
    }


DAMAGED = damaged()


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_give_one_sentence(tmp_path, name):
    content, sentence = DAMAGED[name]
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"x.dcm {sentence}") as caught:
        read_pixels(str(path))
    assert not any(str(value).split("^")[0] in str(caught.value) for value in PATIENT.values())
    fault_of(str(path), width_height_of)  # the header alone may be fine, but is no other error


# the grey images of one frame among pydicom's own files, in syntaxes that are read
SAMPLES = {
    "693_J2KI", "CT_small", "J2K_pixelrep_mismatch", "JPEG2000", "MR_small", "MR_small_RLE",
    "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_padded",
    "examples_overlay",
}  # fmt: skip


def test_samples_of_pydicom_are_read_or_refused():
    files = sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm"))
    if len(files) < 50:
        pytest.skip("pydicom was installed without its test files")
    faults = {path.stem: fault_of(str(path), read_pixels) for path in files}
    assert {name for name, fault in faults.items() if fault == ""} == SAMPLES
    for name, fault in faults.items():
        assert fault == "" or f"{name}.dcm " in fault
        assert "\n" not in fault


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_bounded(tmp_path):
    for k, (content, _) in enumerate(DAMAGED.values()):
        (tmp_path / f"{k}.dcm").write_bytes(content)
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from pylon.data.images import fault_of, read_pixels\n"
        "files = sorted(map(str, Path(sys.argv[1]).iterdir()))\n"
        "print(len([path for path in files if fault_of(path, read_pixels)]))\n"
        "print(re.search('VmHWM: *(.+) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    faults, peak = map(int, done.stdout.split())
    assert faults == len(DAMAGED)
    assert peak < 400_000  # kB; the bombs would take 500 MB, 7 GB and 14 GB
    assert "Quixote" not in done.stderr


def test_frames_in_streams():
    image = np.zeros((40, 56), np.uint8)
    for ending in (".jpg", ".jp2"):
        assert frame_in_stream(cv2.imencode(ending, image)[1].tobytes()) == (40, 56, 8)
    deep = cv2.imencode(".jp2", image.astype(np.uint16))[1].tobytes()
    assert frame_in_stream(deep) == (40, 56, 16)
    jpeg_ls = b"\xff\xd8\xff\xff\xff\xf7\0\x0b\x0c\0\x28\0\x38"
    assert frame_in_stream(jpeg_ls) == (40, 56, 12)
    assert frame_in_stream(b"\xff\xd8\xff\xd9") == (0, 0, 0)
    assert frame_in_stream(b"") == (0, 0, 0)


def test_files_without_uids_are_read(radiograph, tmp_path):
    dataset = dicom(radiograph, 12, **WINDOW)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", *PATIENT):
        delattr(dataset, name)
    assert read_image(str(save(dataset, tmp_path / "a.dcm"))).shape == (96, 80)


def test_a_rescale_slope_that_is_no_number(radiograph, tmp_path):
    dataset = dicom(radiograph, 12, RescaleSlope="1", RescaleIntercept="0")
    broken = file_of(dataset).replace(b"\x28\0\x53\x10DS\x02\x001 ", b"\x28\0\x53\x10DS\x04\0inf ")
    path = tmp_path / "a.dcm"
    path.write_bytes(broken)
    assert "a rescale slope or intercept that gives no numbers" in fault_of(str(path), read_pixels)
