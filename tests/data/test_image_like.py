import cv2
import numpy as np
import pytest
from PIL import Image

from pylon.data.image_like import grey_of, pixels_of_any


def test_colour_of_pil_images_is_read_as_from_files(rng, tmp_path):
    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    expected = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE).astype(int)
    grey = grey_of(Image.open(tmp_path / "a.png"))
    assert pixels_of_any(Image.open(tmp_path / "a.png"), None).colour
    assert np.abs(grey - expected).max() <= 1


def test_white_is_zero_in_some_tiff_files(tmp_path, rng):
    """Opened with Pillow it is the radiograph that is read from the file."""
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(rng.integers(0, 256, (40, 50)).astype(dtype)).save(tmp_path / "a.tif")
        file = bytearray((tmp_path / "a.tif").read_bytes())
        file[file.index(b"\x06\x01\x03\0") + 8] = 0  # the photometric interpretation
        (tmp_path / "a.tif").write_bytes(file)
        with Image.open(tmp_path / "a.tif") as image:
            opened = pixels_of_any(image, None)
        read = pixels_of_any(tmp_path / "a.tif", None)
        np.testing.assert_array_equal(opened.image, read.image)
        assert opened[1:] == read[1:]


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
def test_arrays_of_either_byte_order(rng, dtype):
    values = rng.integers(0, 256, (40, 50)).astype(dtype)
    expected = pixels_of_any(values.astype(np.dtype(dtype).newbyteorder("=")), None)
    np.testing.assert_array_equal(pixels_of_any(values, None).image, expected.image)
