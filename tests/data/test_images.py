import os
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from bad_images import BAD, NOISE, SIZE, encoded, png
from PIL import Image

from pylon.data.images import (
    MOST_PIXELS,
    fault_of,
    read_image,
    read_pixels,
    require_readable,
    width_height_of,
)
from pylon.system.errors import UserError


def test_read_image_converts_to_grey(tmp_path, rng):
    grey = rng.integers(0, 256, SIZE, dtype=np.uint8)
    colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    alpha = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA)
    for name, pixels in {"grey": grey, "colour": colour, "alpha": alpha}.items():
        path = str(tmp_path / f"{name}.png")
        cv2.imwrite(path, pixels)
        read = read_image(path)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, grey)
        assert fault_of(path) == ""


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_rejected(tmp_path, name):
    content, sentence = BAD[name]
    path = tmp_path / "00000001_000.png"
    path.write_bytes(content)
    for read in (read_image, require_readable):
        with pytest.raises(UserError, match=f"00000001_000.png {sentence}"):
            read(str(path))
    assert sentence in fault_of(str(path))


def test_exif_orientation_is_ignored(tmp_path, rng):
    pixels = rng.integers(0, 256, (40, 90), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated by 90 degrees
    for name in ("turned.jpg", "turned.png"):
        path = str(tmp_path / name)
        Image.fromarray(pixels).save(path, exif=exif)
        image = read_image(path)
        assert image.shape == (40, 90)
        assert width_height_of(path) == (90, 40)
        assert np.abs(image.astype(int) - np.array(Image.open(path)).astype(int)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_tiff_is_applied(tmp_path, rng, orientation):
    """OpenCV and Pillow do it, so sizes and pixels agree."""
    pixels = rng.integers(0, 256, (40, 90), dtype=np.uint8)
    path = str(tmp_path / "turned.tif")
    Image.fromarray(pixels).save(path, tiffinfo={0x0112: orientation})
    image = read_image(path)
    assert width_height_of(path) == image.shape[::-1]
    assert image.shape == ((40, 90) if orientation < 5 else (90, 40))


def test_damaged_tiff(tmp_path, rng):
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (200, 300), dtype=np.uint8), (0, 0), 3)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = b"\xff" * 50
    path.write_bytes(content)
    assert "cannot be read as an image" in fault_of(str(path))


def test_png_without_a_header(tmp_path):
    end = (b"IEND", b"")
    for chunks in ([end], [(b"IHDR", b""), end], [(b"IDAT", b"a" * 30), end]):
        (tmp_path / "a.png").write_bytes(png(*chunks))
        with pytest.raises(UserError, match=r"a.png cannot be read as an image"):
            require_readable(str(tmp_path / "a.png"))


def test_missing_file(tmp_path):
    for read in (read_image, require_readable):
        sentence = "nowhere.png cannot be read (No such file or directory); check the path"
        assert sentence in fault_of(str(tmp_path / "nowhere.png"), read)
        assert "Is a directory" in fault_of(str(tmp_path), read)


def test_file_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    Path(path).write_bytes(encoded(".png", NOISE))
    np.testing.assert_array_equal(read_image(path), NOISE)


def test_padded_jpeg_is_readable(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg", NOISE) + bytes(4096))
    assert fault_of(str(tmp_path / "a.jpg")) == ""


def deep(path: Path, values: np.ndarray) -> Path:
    cv2.imwrite(str(path), values.astype(np.uint16))
    return path


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg_with_data_behind_its_end(tmp_path, progressive):
    array = cv2.imencode(".jpg", NOISE, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1]
    whole = array.tobytes()
    # a thumbnail among the metadata, with an end of its own
    metadata = b"\xff\xe1\x00\x10" + b"Exif\0\0" + b"\xff\xd8..\xff\xd9" + b"\0\0"
    stream = whole[:2] + metadata + whole[2:]
    path = tmp_path / "a.jpg"
    for behind in (b"", b"x" * 3000, bytes(5000)):
        path.write_bytes(stream + behind)
        assert fault_of(str(path)) == ""
        np.testing.assert_array_equal(read_image(str(path)), cv2.imdecode(array, 0))
    for cut in (len(stream) - 2, len(stream) // 2):
        path.write_bytes(stream[:cut])
        assert "cannot be read as an image" in fault_of(str(path))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_that_hold_8_are_read_as_the_8(tmp_path, rng, ending):
    grey = rng.integers(0, 256, SIZE, dtype=np.uint8)
    path = deep(tmp_path / f"a{ending}", grey.astype(np.uint16) * 257)
    assert fault_of(str(path)) == ""
    pixels = read_pixels(str(path))
    np.testing.assert_array_equal(pixels.image, grey)
    assert pixels[1:] == (16, False, None, False, ())
    assert read_pixels(str(path), window=(32768, 65536)).window == (32768, 65536)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_are_stretched_between_percentiles(tmp_path, ending):
    # of 1,000 pixels, in random order: 4 of 0, 2 of 1000, 988 of 2000, 2 of 3000, 4 of 60000;
    # half a percent, 5 pixels, is reached with 1000 from below, with 3000 from above
    values = np.repeat([0, 1000, 2000, 3000, 60000], [4, 2, 988, 2, 4])
    values = np.random.default_rng(0).permutation(values).reshape(25, 40)
    pixels = read_pixels(str(deep(tmp_path / f"a{ending}", values)))
    assert pixels.window == (2000.5, 2001)  # from 1000 to 3000
    for value, level in {0: 0, 1000: 0, 2000: 128, 3000: 255, 60000: 255}.items():
        assert (pixels.image[values == value] == level).all()
    pixels = read_pixels(str(tmp_path / f"a{ending}"), window=(5000.5, 10_001))
    assert (pixels.image[values == 2000] == 51).all()


def test_all_rows_are_in_the_percentiles(tmp_path):
    # 10 values at a time: 256 rows of 1000 to 1009, 256 of 2000 to 2009, 88 of 5000 to 5009
    rows = np.repeat([1000, 2000, 5000], [256, 256, 88])
    pixels = read_pixels(str(deep(tmp_path / "a.png", rows[:, None] + np.arange(20) // 2)))
    assert pixels.window == (1000 + 4010 / 2, 4010)  # from 1000 to 5009
    assert pixels.image[255, 0] == 0
    assert pixels.image[599, 19] == 255


@pytest.mark.parametrize("window", [(2000.5, 1.5), (2000, 1)])
def test_narrow_windows_of_16_bits(tmp_path, window):
    values = np.repeat([1998, 1999, 2000, 2001], 160).reshape(32, 20)
    pixels = read_pixels(str(deep(tmp_path / "a.png", values)), window)
    # from 1999.75 to 2000.25; and a step at 1999.5
    assert pixels.image[::8, 0].tolist() == (
        [0, 0, 128, 255] if window[1] > 1 else [0, 0, 255, 255]
    )


def test_constant_16_bits(tmp_path):
    assert (read_image(str(deep(tmp_path / "a.png", np.full((20, 30), 1234)))) == 0).all()


def test_colour_of_16_bits_is_noted(tmp_path):
    values = np.arange(20 * 30 * 3).reshape(20, 30, 3) * 36
    pixels = read_pixels(str(deep(tmp_path / "a.png", values)))
    assert pixels.bits == 16
    assert pixels.colour
    assert pixels.image.shape == (20, 30)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_in_some_tiff_files(tmp_path, rng, dtype):
    values = rng.integers(0, 256, SIZE).astype(dtype)
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    file = bytearray(path.read_bytes())
    # the entry of the photometric interpretation: tag, type, count, value
    at = file.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    before = read_image(str(path)).astype(int)
    file[at + 8] = 0
    path.write_bytes(file)
    after = read_image(str(path)).astype(int)
    assert np.abs(before + after - 255).max() <= 1


def test_size_is_checked_before_memory_is_taken(tmp_path):
    one_row = zlib.compress(bytes(30_001))
    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    (tmp_path / "a.png").write_bytes(png((b"IHDR", header), (b"IDAT", one_row), (b"IEND", b"")))
    tracemalloc.start()
    for read in (read_image, require_readable, width_height_of):
        assert "more than 80 million" in fault_of(str(tmp_path / "a.png"), read)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    side = int(MOST_PIXELS**0.5) + 1
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    (tmp_path / "b.png").write_bytes(png((b"IHDR", header), (b"IDAT", one_row), (b"IEND", b"")))
    assert "has more than 80 million pixels" in fault_of(str(tmp_path / "b.png"))


def test_files_that_are_not_regular_or_too_large_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png is not a regular file" in fault_of(str(tmp_path / "pipe.png"))
    assert "/dev/zero is not a regular file" in fault_of("/dev/zero")
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(10**9)
    assert "a.png has more than 640 MB" in fault_of(str(tmp_path / "a.png"))
