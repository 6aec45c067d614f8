import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from bad_images import BAD, NOISE, SIZE, encoded, png
from PIL import Image

from pylon.data.images import fault_of, read_image, require_readable, width_height_of
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


def test_png_without_a_header(tmp_path):
    end = (b"IEND", b"")
    for chunks in ([end], [(b"IHDR", b""), end], [(b"IDAT", b"a" * 30), end]):
        (tmp_path / "a.png").write_bytes(png(*chunks))
        with pytest.raises(UserError, match=r"a.png cannot be read as an image"):
            require_readable(str(tmp_path / "a.png"))


def test_missing_file(tmp_path):
    for read in (read_image, require_readable):
        sentence = "nowhere.png cannot be read (No such file or directory); copy it again"
        assert sentence in fault_of(str(tmp_path / "nowhere.png"), read)
        assert "Is a directory" in fault_of(str(tmp_path), read)


def test_file_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    Path(path).write_bytes(encoded(".png", NOISE))
    np.testing.assert_array_equal(read_image(path), NOISE)


def test_padded_jpeg_is_readable(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg", NOISE) + bytes(4096))
    assert fault_of(str(tmp_path / "a.jpg")) == ""
