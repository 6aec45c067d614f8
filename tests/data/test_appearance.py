"""What a file gives away: worked out by hand, on images that are not square."""

import cv2
import numpy as np
import pytest

from pylon.data.appearance import PROPERTIES, Appearance, appearance_of, border_of, sharpness_of


def test_each_property_is_one_of_the_file(tmp_path):
    image = np.full((20, 40), 51, np.uint8)
    image[:, 10:] = 204  # columns are steady, rows vary
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, image)
    found = appearance_of(path)
    assert (found.width, found.height, found.kind) == (40, 20, "PNG, 8 bits")
    assert found.mean == pytest.approx((0.2 + 3 * 0.8) / 4)
    assert found.spread == pytest.approx(0.6 * np.sqrt(3) / 4)
    assert found.border == 1
    assert found.sharpness == sharpness_of(image)
    members = [member for group in PROPERTIES.values() for member in group]
    assert members == list(Appearance._fields)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kind"),
    [
        ("a.jpg", (20, 40, 3), np.uint8, "JPEG, 8 bits, colour"),
        ("a.tiff", (20, 40), np.uint8, "TIFF, 8 bits"),
        ("a.png", (20, 40), np.uint16, "PNG, 16 bits"),
    ],
)
def test_kind_of_file_is_that_of_its_content(tmp_path, rng, name, shape, dtype, kind):
    cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, shape).astype(dtype))
    path = (tmp_path / name).rename(tmp_path / "named.bmp")
    assert appearance_of(str(path)).kind == kind


def test_file_that_cannot_be_read_gives_the_sentence(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    assert appearance_of(str(path)) == f"{path} cannot be read as an image; copy it again, or " + (
        "convert it to PNG"
    )


@pytest.mark.parametrize("method", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
@pytest.mark.parametrize("sides", [(128, 96), (128, 192), (256, 96)])  # of 256 x 192
def test_enlarged_image_is_less_sharp(rng, method, sides):
    noise = cv2.GaussianBlur(rng.normal(0, 600, (256, 192)), (0, 0), 1)
    sharp = (128 + noise / 4).clip(0, 255).astype(np.uint8)
    height, width = sides
    small = cv2.resize(sharp, (width, height), interpolation=cv2.INTER_AREA)
    enlarged = cv2.resize(small, (192, 256), interpolation=method)
    if sides == (128, 96):
        assert sharpness_of(enlarged) < sharpness_of(sharp) - 0.5
    assert sharpness_of(enlarged) < sharpness_of(sharp)


def test_sharpness_is_the_share_above_half_of_the_highest_frequency():
    at = np.arange(256)
    slow = 50 * np.sin(2 * np.pi * at * 0.1)[:, None]  # 0.1 and 0.4 periods per pixel
    fast = 50 * np.sin(2 * np.pi * at * 0.4)[None, :]
    both = np.broadcast_to(128 + slow + 0.5 * fast, (256, 256)).astype(np.uint8)
    # 0.25 / 1.25 of the energy is fast
    assert sharpness_of(both) == pytest.approx(np.log10(0.2), abs=0.01)
    assert sharpness_of(np.full((30, 20), 9, np.uint8)) <= -11
    # of a large image, that of its middle
    large = np.zeros((1200, 1100), np.uint8)
    large[88 + 384 : 88 + 640, 38 + 384 : 38 + 640] = both
    middle = np.zeros((1024, 1024), np.uint8)
    middle[384:640, 384:640] = both
    assert sharpness_of(large) == sharpness_of(middle)


def test_border_is_the_share_outside_what_varies(rng):
    image = np.zeros((40, 100), np.uint8)
    image[5:, 10:] = rng.integers(0, 256, (35, 90))
    assert border_of(image) == pytest.approx(1 - 35 * 90 / (40 * 100))
    image[20:25, 10:] = 7  # a steady band inside is no border
    assert border_of(image) == pytest.approx(1 - 35 * 90 / (40 * 100))
    assert border_of(rng.integers(0, 256, (40, 100)).astype(np.uint8)) == 0
    assert border_of(np.full((40, 100), 9, np.uint8)) == 1
