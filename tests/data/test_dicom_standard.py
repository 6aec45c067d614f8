"""Each rule for the pixels in docs/dicom.md by name, with values worked out by hand from PS3.3."""

import struct

import numpy as np
import pytest
from dicom_files import (
    ENCODED,
    SIZE,
    Dataset,
    dicom,
    implicit,
    jpeg_lossless,
    levels,
    notes,
    of_values,
    raw,
    save,
    with_border,
)
from dicom_files import table_item as table
from pydicom.pixels import get_decoder

from pylon.data.dicom_values import UNUSABLE
from pylon.data.images import fault_of, read_image, read_pixels

WHOLE = {"WindowCenter": 2048, "WindowWidth": 4096}  # of 12 bits


# bits


@pytest.fixture(scope="module")
def twelve_bits():
    """(33, 47) of all values of 12 bits: no symmetry, and both ends."""
    values = np.linspace(0, 4095, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
    return np.random.default_rng(0).permuted(values, axis=1)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", *ENCODED, "JPEG Lossless"])
@pytest.mark.parametrize("kind", ["rubbish above", "rubbish below", "signed, not extended"])
def test_only_the_bits_stored_count(twelve_bits, tmp_path, syntax, kind):
    rubbish = np.random.default_rng(1).integers(0, 16, SIZE, dtype=np.uint16)
    cells = twelve_bits | rubbish << 12
    signed = {}
    if kind == "rubbish below":
        cells = twelve_bits << 4 | rubbish
    elif kind == "signed, not extended":
        cells = (twelve_bits - 2048) & 4095  # of -2048 to 2047
        signed = {"RescaleIntercept": 2048}
    dataset = dicom(cells, 16, **WHOLE, **signed)
    path = tmp_path / "a.dcm"
    if syntax in ENCODED:
        dataset.compress(ENCODED[syntax])
    elif syntax == "implicit":
        implicit(dataset)
    elif syntax == "JPEG Lossless":
        import pydicom

        dataset = pydicom.dcmread(jpeg_lossless(dataset, tmp_path))
    dataset.BitsStored = 12
    dataset.HighBit = 15 if kind == "rubbish below" else 11
    dataset.PixelRepresentation = int(bool(signed))
    expected = np.round(twelve_bits * (255 / 4095))
    np.testing.assert_array_equal(read_image(str(save(dataset, path))), expected)


@pytest.mark.parametrize("syntax", ["JPEG-LS Lossless", "JPEG 2000 Lossless"])
def test_high_bit_of_streams_that_hold_no_more(twelve_bits, tmp_path, syntax):
    dataset = dicom(twelve_bits, 12, **WHOLE)
    dataset.compress(ENCODED[syntax])  # with a precision of 12 bits
    dataset.HighBit = 15
    expected = np.round(twelve_bits * (255 / 4095))
    np.testing.assert_array_equal(read_image(str(save(dataset, tmp_path / "a.dcm"))), expected)


def test_sign_of_streams_with_fewer_bits(twelve_bits, tmp_path):
    cells = (twelve_bits - 2048) & 4095  # -2048 to 2047 in 12 bits, which JPEG-LS takes as unsigned
    dataset = dicom(cells, 12, RescaleIntercept=2048, **WHOLE)
    dataset.compress(ENCODED["JPEG-LS Lossless"])
    dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    expected = np.round(twelve_bits * (255 / 4095))
    np.testing.assert_array_equal(read_image(str(save(dataset, tmp_path / "a.dcm"))), expected)


@pytest.mark.parametrize("syntax", ["JPEG-LS Lossless", "JPEG 2000 Lossless"])
def test_decoders_are_those_of_the_docs(twelve_bits, tmp_path, monkeypatch, syntax):
    calls = []
    decoder = get_decoder(ENCODED[syntax])
    for name, decode in decoder._available.items():

        def recorded(source, runner, name=name, decode=decode):
            calls.append(name)
            return decode(source, runner)

        monkeypatch.setitem(decoder._available, name, recorded)
    dataset = dicom(twelve_bits, 12)
    dataset.compress(ENCODED[syntax])
    read_image(str(save(dataset, tmp_path / "a.dcm")))
    assert calls == [{"JPEG-LS Lossless": "pyjpegls"}.get(syntax, "pylibjpeg")]


def test_an_impossible_high_bit_is_that_of_the_bits_stored(twelve_bits, tmp_path):
    dataset = dicom(twelve_bits, 12, **WHOLE, HighBit=7)
    expected = np.round(twelve_bits * (255 / 4095))
    np.testing.assert_array_equal(read_image(str(save(dataset, tmp_path / "a.dcm"))), expected)


# LUTs


def test_modality_and_voi_lut_are_composed(tmp_path):
    modality = table(10, np.array([5, 3, 8]), 16)  # of 10, 11, 12
    voi = table(3, np.arange(0, 60, 10), 8)  # of 3 to 8
    dataset = dicom(of_values(9, 10, 11, 12, 99), 12)
    dataset.ModalityLUTSequence = [modality]
    dataset.VOILUTSequence = [voi]
    assert levels(dataset, tmp_path, 5) == [20, 20, 0, 50, 50]
    dataset.RescaleSlope = "2"  # which a LUT takes the place of
    assert levels(dataset, tmp_path, 5) == [20, 20, 0, 50, 50]


# value after rescaling; VOI LUT of 0 to 5 with entries 0, 1, 4, 9, 16, 25 of 8 bits
@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        ("1.5", "-1", [0, 0, 4, 12]),  # -1, .5, 2, 3.5: between 9 and 16
        ("-1", "3", [9, 4, 1, 0]),  # 3, 2, 1, 0
        (".5", "1", [1, 2, 4, 6]),  # 1, 1.5, 2, 2.5: 2.5 and 6.5, rounded to even
    ],
)
def test_voi_lut_of_rescaled_values(tmp_path, slope, intercept, expected):
    dataset = dicom(of_values(0, 1, 2, 3), 12, RescaleSlope=slope, RescaleIntercept=intercept)
    dataset.VOILUTSequence = [table(0, np.array([0, 1, 4, 9, 16, 25]), 8, is_signed=True)]
    assert levels(dataset, tmp_path, 4) == expected


def test_a_lut_that_uses_a_part_of_its_range_is_not_stretched(tmp_path):
    dataset = dicom(of_values(0, 1, 2), 12)
    dataset.VOILUTSequence = [table(0, np.array([1023, 2047, 3071]), 12)]
    assert levels(dataset, tmp_path, 3) == [64, 127, 191]  # of 4,095


@pytest.mark.parametrize("bits", range(8, 17))
def test_luts_of_8_to_16_bits(tmp_path, bits):
    entries = np.array([0, 2 ** (bits - 1), 2**bits - 1])
    dataset = dicom(of_values(0, 1, 2), 12)
    dataset.VOILUTSequence = [table(0, entries, bits)]
    assert levels(dataset, tmp_path, 3) == [0, 128, 255]
    # as a modality LUT, with a window of its whole range
    del dataset.VOILUTSequence
    dataset.ModalityLUTSequence = [table(0, entries, bits)]
    whole = (2 ** (bits - 1), 2**bits)
    assert levels(dataset, tmp_path, 3, whole) == [0, 128, 255]


def test_luts_of_65536_entries_say_0(tmp_path):
    item = table(0, np.arange(65536)[::-1], 16)
    assert item.get_item("LUTDescriptor").value[:2] == b"\0\0"
    dataset = dicom(of_values(0, 257, 65535), 16, VOILUTSequence=[item])
    assert levels(dataset, tmp_path, 3) == [255, 254, 0]
    dataset = dicom(of_values(0, 257, 65535), 16, ModalityLUTSequence=[item], **WHOLE)
    assert levels(dataset, tmp_path, 3, (32768, 65536)) == [255, 254, 0]


@pytest.mark.parametrize("vr", ["SS", "US", "implicit"])
def test_luts_whose_first_value_is_negative(tmp_path, vr):
    item = table(-2, np.array([0, 51, 102, 153]), 8, is_signed=vr == "SS")  # of -2 to 1
    signed = dicom(of_values(-3, -1, 0, 7, dtype="<i2"), 16, VOILUTSequence=[item])
    signed = implicit(signed) if vr == "implicit" else signed
    assert levels(signed, tmp_path, 4) == [0, 51, 102, 153]
    rescaled = dicom(of_values(0, 2, 3, 9), 12, RescaleIntercept="-3", VOILUTSequence=[item])
    assert levels(rescaled, tmp_path, 4) == [0, 51, 102, 153]


def test_luts_whose_first_value_is_below_all_values(tmp_path):
    item = table(-2, np.array([0, 51, 102, 153]), 8, is_signed=True)  # of -2 to 1
    dataset = dicom(of_values(0, 1, 2), 12, VOILUTSequence=[item])
    assert levels(dataset, tmp_path, 3) == [102, 153, 153]


def test_luts_whose_first_value_is_large(tmp_path):
    item = table(40_000, np.array([0, 51, 102]), 8)
    dataset = dicom(of_values(0, 40_001, 65_535), 16, VOILUTSequence=[item])
    assert levels(dataset, tmp_path, 3) == [0, 51, 102]


def test_luts_of_bytes(tmp_path):
    item = table(0, np.array([10, 20, 250]), 8, with_bytes=True)  # and one of padding
    assert len(item.get_item("LUTData").value) == 4
    assert levels(dicom(of_values(0, 1, 2), 12, VOILUTSequence=[item]), tmp_path, 3) == [
        10,
        20,
        250,
    ]


def test_luts_that_cannot_be_used(tmp_path):
    short = table(0, np.arange(4), 16)
    raw(short, "LUTDescriptor", "US", struct.pack("<3H", 5, 0, 16))
    no_bits = table(0, np.arange(4), 0)
    short_bytes = table(0, np.arange(4), 8, with_bytes=True)
    raw(short_bytes, "LUTDescriptor", "US", struct.pack("<3H", 5, 0, 8))
    whole = table(0, np.array([0, 1, 3]), 8)
    tables = [short, no_bits, short_bytes, whole]
    dataset = dicom(of_values(0, 1, 2), 12, VOILUTSequence=tables)
    assert levels(dataset, tmp_path, 3) == [0, 1, 3]
    assert notes(dataset, tmp_path) == (UNUSABLE,)
    dataset.VOILUTSequence = [short]
    dataset.WindowCenter, dataset.WindowWidth = "1.5", "3"
    assert levels(dataset, tmp_path, 3) == [0, 128, 255]
    assert notes(dataset, tmp_path) == (UNUSABLE,)
    dataset.ModalityLUTSequence = [short]
    assert "a.dcm has a modality LUT that cannot be used; convert it to PNG" in fault_of(
        str(save(dataset, tmp_path / "a.dcm")), read_pixels
    )


# windows


@pytest.mark.parametrize(("slope", "intercept"), [("2.5", "-100"), ("-.01", "7"), ("1", "0")])
def test_a_window_is_the_same_in_the_file_and_asked_for(twelve_bits, tmp_path, slope, intercept):
    rescaled = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    values = twelve_bits * float(slope) + float(intercept)
    centre, width = float(np.median(values)) + 0.25, 17.5
    own = {"WindowCenter": str(centre)[:16], "WindowWidth": str(width)}
    with_own = save(dicom(twelve_bits, 12, **rescaled, **own), tmp_path / "own.dcm")
    without = save(dicom(twelve_bits, 12, **rescaled), tmp_path / "without.dcm")
    found = read_pixels(str(with_own))
    assert found.window == (float(str(centre)[:16]), width)
    asked_for = read_pixels(str(without), found.window)
    np.testing.assert_array_equal(found.image, asked_for.image)
    low = found.window[0] - 0.5 - (width - 1) / 2
    expected = np.clip((values - low) / (width - 1) * 255, 0, 255)
    assert np.abs(found.image - expected).max() < 0.501


@pytest.mark.parametrize(
    ("function", "width", "expected"),
    [
        # values .1 to .4
        ("LINEAR_EXACT", ".4", [64, 128, 191, 255]),
        ("linear_exact", ".4", [64, 128, 191, 255]),
        ("SIGMOID", ".4", [69, 128, 186, 225]),  # 255 / (1 + e), 1 / 2, 1 / (1 + 1 / e), e squared
        ("sigmoid", ".4", [69, 128, 186, 225]),
        ("LINEAR", "1", [0, 255, 255, 255]),
        ("linear", "1", [0, 255, 255, 255]),
    ],
)
def test_functions_of_narrow_windows(tmp_path, function, width, expected):
    centre = ".65" if function.upper() == "LINEAR" else ".2"  # of LINEAR, the step is at .15
    dataset = dicom(of_values(1, 2, 3, 4), 12, RescaleSlope=".1", RescaleIntercept="0")
    dataset.WindowCenter = centre
    dataset.WindowWidth = width
    raw(dataset, "VOILUTFunction", "CS", function.encode())
    assert levels(dataset, tmp_path, 4) == expected
    assert notes(dataset, tmp_path) == ()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "CUBIC"])
def test_windows_that_are_too_narrow_or_unknown(tmp_path, function):
    width = {"LINEAR": ".99", "CUBIC": "9"}.get(function, "0")
    dataset = dicom(of_values(1, 2, 5), 12, WindowCenter="2", WindowWidth=width)
    dataset.VOILUTFunction = function
    assert levels(dataset, tmp_path, 3) == [0, 64, 255]  # from 1 to 5
    assert notes(dataset, tmp_path) == (UNUSABLE,)


# centres and widths as in the file
@pytest.mark.parametrize(
    ("centres", "widths", "window", "is_noted"),
    [
        ("2,0", "3,0", (2, 3), False),
        ("\\2", "\\3", (2, 3), True),
        ("nan\\2", "9\\3", (2, 3), True),
        ("9\\2", "inf\\3", (2, 3), True),
        ("lungs\\2\\7", "wide\\3\\8", (2, 3), True),
        ("2\\7", "3", (2, 3), False),
        ("2", "", None, True),
        ("lungs", "3", None, True),
        ("", "", None, False),
        (" ", " ", None, False),
    ],
)
def test_windows_in_text(tmp_path, centres, widths, window, is_noted):
    dataset = dicom(of_values(1, 2, 3), 12)
    raw(dataset, "WindowCenter", "DS", centres.encode())
    raw(dataset, "WindowWidth", "DS", widths.encode())
    path = str(save(dataset, tmp_path / "a.dcm"))
    pixels = read_pixels(path)
    # .5 is black and 2.5 white; or, stretched, 1 and 3
    assert pixels.window == (window or (2.5, 3))
    assert pixels.image[:3, 0].tolist() == ([64, 191, 255] if window else [0, 128, 255])
    assert pixels.notes == ((UNUSABLE,) if is_noted else ())
    # the file's own is not read when another is asked for
    pixels = read_pixels(path, (1, 5))
    assert pixels.image[:3, 0].tolist() == [159, 223, 255]  # from -1.5 to 2.5
    assert pixels.notes == ()


def test_rescaling_with_a_decimal_comma(tmp_path):
    dataset = dicom(of_values(0, 1, 2), 12, WindowCenter="2", WindowWidth="3")
    raw(dataset, "RescaleSlope", "DS", b"0,5")
    raw(dataset, "RescaleIntercept", "DS", b"1")
    assert levels(dataset, tmp_path, 3) == [64, 128, 191]  # 1, 1.5, 2; from .5 to 2.5
    raw(dataset, "RescaleIntercept", "DS", b"one")
    assert "a rescale slope or intercept that gives no numbers" in fault_of(
        str(save(dataset, tmp_path / "a.dcm")), read_pixels
    )


# without a window


def test_a_tiny_range_is_stretched(tmp_path):
    dataset = dicom(of_values(0, 1000, 4000), 12, RescaleSlope="1e-4", RescaleIntercept="5")
    assert levels(dataset, tmp_path, 3) == [0, 64, 255]
    low, high = read_pixels(str(tmp_path / "a.dcm")).window
    assert (low, high) == pytest.approx((5 + 1.4 / 2, 1.4))


def test_8_bits_are_as_stored_only_without_a_slope(tmp_path):
    image = of_values(20, 30, 100, dtype="u1")
    identity = {"RescaleSlope": "1", "RescaleIntercept": "0"}
    assert levels(dicom(image, 8), tmp_path, 3) == [20, 30, 100]
    assert levels(dicom(image, 8, **identity), tmp_path, 3) == [20, 30, 100]
    assert levels(dicom(image.astype("<u2"), 8, **identity), tmp_path, 3) == [20, 30, 100]
    for slope, intercept in (("2", "0"), (".01", "0"), ("1", "7")):
        rescaled = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        assert levels(dicom(image, 8, **rescaled), tmp_path, 3) == [0, 32, 255]
    falling = {"RescaleSlope": "-1", "RescaleIntercept": "255"}
    assert levels(dicom(image, 8, **falling), tmp_path, 3) == [255, 223, 0]
    signed = of_values(20, 30, 100, dtype="i1")
    assert levels(dicom(signed, 8), tmp_path, 3) == [0, 32, 255]


def test_fewer_than_8_bits_fill_the_range(tmp_path):
    image = of_values(0, 5, 12, dtype="u1")
    assert levels(dicom(image, 4), tmp_path, 3) == [0, 85, 204]  # of 15
    assert levels(dicom(image, 6), tmp_path, 3) == [0, 20, 49]  # of 63
    assert levels(dicom(image, 4, RescaleSlope="2"), tmp_path, 3) == [0, 106, 255]


# padding


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("stored", ["value", "range", "range from its other end"])
def test_padding_is_left_out_and_black(tmp_path, photometric, stored):
    image = np.random.default_rng(0).integers(1000, 1101, SIZE).astype(np.uint16)
    image = with_border(image, 4095)
    attributes = {"PixelPaddingValue": 4095}
    if stored != "value":
        image[::2, -1] = 4000
        attributes = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    if "other" in stored:
        attributes = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}
    dataset = dicom(image, 12, PhotometricInterpretation=photometric, **attributes)
    pixels = read_pixels(str(save(dataset, tmp_path / "a.dcm")))
    assert (pixels.image[:, -1] == 0).all()
    centre, width = pixels.window
    assert 1000 <= centre - width / 2 < centre + width / 2 - 1 <= 1100
    inner = pixels.image[:, :-1]
    assert inner.min() == 0
    assert inner.max() == 255
    brightest = image[:, :-1][inner == 255]
    assert (brightest > 1090).all() if photometric == "MONOCHROME2" else (brightest < 1010).all()


@pytest.mark.parametrize("value", [-2000, 0x10000 - 2000, 0x1000 - 2000])
def test_padding_of_signed_pixels(tmp_path, value):
    image = np.random.default_rng(0).integers(-300, 301, SIZE).astype(np.int16)
    image = with_border(image, -2000)
    dataset = dicom(image, 12)
    raw(dataset, "PixelPaddingValue", "US", struct.pack("<H", value % 65536))
    pixels = read_pixels(str(save(dataset, tmp_path / "a.dcm")))
    assert (pixels.image[:, -1] == 0).all()
    assert pixels.window[0] - pixels.window[1] / 2 >= -300


def test_a_limit_without_a_padding_value_is_no_padding(tmp_path):
    dataset = dicom(of_values(1, 2, 3), 12, PixelPaddingRangeLimit=3)
    assert levels(dataset, tmp_path, 3) == [0, 128, 255]


def test_padding_with_a_window_and_of_8_bits(tmp_path):
    dataset = dicom(of_values(1, 2, 3), 12, WindowCenter="2.5", WindowWidth="3")
    dataset.PixelPaddingValue = 3
    assert levels(dataset, tmp_path, 3) == [0, 128, 0]
    dataset = dicom(of_values(20, 30, 100, dtype="u1"), 8, PixelPaddingValue=100)
    assert levels(dataset, tmp_path, 3) == [20, 30, 0]


# enhanced images of one frame


def test_functional_groups_of_one_frame(tmp_path):
    rescaling, window, shared = Dataset(), Dataset(), Dataset()
    rescaling.RescaleSlope, rescaling.RescaleIntercept = "2", "10"
    window.WindowCenter, window.WindowWidth = "13", "5"  # from 10.5 to 14.5
    shared.PixelValueTransformationSequence = [rescaling]
    own = Dataset()
    own.FrameVOILUTSequence = [window]
    dataset = dicom(of_values(0, 1, 2), 12, NumberOfFrames=1)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [own]
    assert levels(dataset, tmp_path, 3) == [0, 96, 223]  # 10, 12, 14
