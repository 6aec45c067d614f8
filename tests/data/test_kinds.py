import gzip
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from pylon.data.images import fault_of, read_image, read_pixels, require_readable
from pylon.data.kinds import ENDINGS_OF

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)


@pytest.mark.parametrize("kind", ENDINGS_OF)
def test_every_kind_is_read(tmp_path, kind):
    path = str(tmp_path / "a")
    smooth = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60) // 4
    Image.fromarray(smooth).save(path, kind, quality=95, lossless=True)
    assert np.abs(read_image(path).astype(int) - smooth).max() <= (8 if kind == "JPEG" else 0)
    assert read_pixels(path).colour == (kind == "WEBP")  # which knows no grey
    assert fault_of(path) == ""


def archive(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("[Content_Types].xml", "a")
        content.writestr(name, "a" * 100)
    return file.getvalue()


VOLUME = bytes(344) + b"n+1\0" + bytes(100)
OTHERS = {
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(50), "a HEIC photograph, which is not read; convert"),
    "AVIF": (b"\0\0\0\x18ftypavif" + bytes(50), "an AVIF picture, which is not read; convert"),
    "PDF": (b"%PDF-1.7\n" + bytes(50), "a PDF document, which is not read; save the radiograph"),
    "zip": (archive("a.png"), "a zip archive, which is not read; unpack it"),
    "xlsx": (archive("xl/workbook.xml"), "an Excel workbook, which is not read; name the images"),
    "NIfTI": (VOLUME, "a NIfTI volume, which is not read; save the radiograph as PNG"),
    "nii.gz": (gzip.compress(VOLUME), "a NIfTI volume, which is not read; save the radiograph as"),
    "gzip": (gzip.compress(b"a"), "a gzip archive, which is not read; unpack it"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_named_whatever_their_ending(tmp_path, name):
    content, sentence = OTHERS[name]
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, require_readable):
        assert f"a.png is {sentence}" in fault_of(str(tmp_path / "a.png"), read)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(tmp_path, kind):
    path = str(tmp_path / "a.png")
    first, second = (Image.fromarray(each).convert("RGB") for each in (NOISE, 255 - NOISE))
    first.save(path, kind, save_all=True, append_images=[second])
    for read in (read_image, require_readable):
        assert "a.png is an animation of 2 pictures; save the radiograph" in fault_of(path, read)


def test_jpeg_of_a_camera_that_holds_copies_is_read(tmp_path):
    path = str(tmp_path / "a.jpg")
    picture = Image.fromarray(NOISE)
    picture.save(path, "MPO", save_all=True, append_images=[picture.resize((30, 20))])
    assert read_image(path).shape == (40, 60)
