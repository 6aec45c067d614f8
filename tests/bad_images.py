"""Files that are not readable radiographs, and the error messages they cause."""

import io
import zlib

import cv2
import numpy as np
from PIL import Image

SIZE = (128, 120)


def png(*chunks):
    """Build a PNG file of chunks (kind, contents), with correct lengths and checksums."""
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )
    return file


def pages(*images: np.ndarray) -> bytes:
    """A TIFF file of several images."""
    file = io.BytesIO()
    first, *rest = map(Image.fromarray, images)
    first.save(file, "TIFF", save_all=True, append_images=rest)
    return file.getvalue()


def encoded(kind: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(kind, pixels)[1].tobytes()


NOISE = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
BAD = {
    "empty": (b"", "cannot be read as an image; copy it again"),
    "letter": (b"this is a letter, not a radiograph", "cannot be read as an image; copy it again"),
    "cut png": (encoded(".png", NOISE)[:-300], "cannot be read as an image; copy it again"),
    "png without its end": (
        encoded(".png", NOISE)[:-14],
        "cannot be read as an image; copy it again",
    ),
    "flipped bit": (
        bytes(b ^ (k == 500) for k, b in enumerate(encoded(".png", NOISE))),
        "cannot be read as an image",
    ),
    "cut jpg": (encoded(".jpg", NOISE)[:-300], "cannot be read as an image; copy it again"),
    "dicom": (
        b"\0" * 128 + b"DICM" + b"\2\0\0\0UL",
        "is a DICOM file without a transfer syntax; copy it again, or convert it to PNG",
    ),
    "32 bits": (
        encoded(".tif", NOISE.astype(np.float32)),
        "has pixels of type float32; convert it to 8 or 16 bits",
    ),
    "two pages": (pages(NOISE, NOISE), "has 2 pages; save the radiograph in a file of its own"),
    "cut tif": (encoded(".tif", NOISE)[:-300], "cannot be read as an image; copy it again"),
    "30,000 x 30,000 pixels": (
        png(
            (b"IHDR", (30_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])),
            (b"IDAT", zlib.compress(bytes(1000))),
            (b"IEND", b""),
        ),
        "has ",
    ),
    "one pixel wide": (
        encoded(".png", NOISE[:, :1]),
        "is 1 x 128 pixels, too small for a radiograph",
    ),
}
