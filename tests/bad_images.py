"""Files that are not readable radiographs, and the error messages they cause."""

import zlib

import cv2
import numpy as np

SIZE = (128, 120)


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
        "is a DICOM file, which is not read; convert it to 8-bit PNG",
    ),
    "16 bits": (
        encoded(".png", NOISE.astype(np.uint16) * 257),
        "has 16 bits per pixel; convert it to 8 bits",
    ),
    "one pixel wide": (
        encoded(".png", NOISE[:, :1]),
        "is 1 x 128 pixels, too small for a radiograph",
    ),
}


def png(*chunks):
    """Build a PNG file of chunks (kind, contents), with correct lengths and checksums."""
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )
    return file
