"""The kinds of files that are read as radiographs, and the names of others."""

import zlib
from contextlib import suppress

from pylon.system.errors import UserError

# ends of file names, by which folders are searched, of each format that Pillow knows by this name;
# a file that is named itself may have any name. DICOM files are told by their contents.
ENDINGS_OF = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
}
ENDINGS = (*sum(ENDINGS_OF.values(), ()), ".dcm")

ZIP = b"PK\3\4"
GZIP = b"\x1f\x8b"
TO_PNG = "convert it to PNG"
UNPACK = "unpack it, and give its folder"
WORKBOOK = ("an Excel workbook", "name the images themselves")
HEIC = ("a HEIC photograph", TO_PNG)
# what a file is and what to do, by a place in it and the bytes that are there
OTHERS = {
    (8, b"heic"): HEIC,
    (8, b"heix"): HEIC,
    (8, b"mif1"): HEIC,
    (8, b"avif"): ("an AVIF picture", TO_PNG),
    (0, b"GIF8"): ("a GIF picture", TO_PNG),
    (4, b"jP  \r\n"): ("a JPEG 2000 file", TO_PNG),
    (0, b"%PDF"): ("a PDF document", "save the radiograph in it as PNG"),
    (344, b"n+1\0"): ("a NIfTI volume", "save the radiograph as PNG, or name its DICOM file"),
    (0, b"\xd0\xcf\x11\xe0"): WORKBOOK,
    (0, ZIP): ("a zip archive", UNPACK),
    (0, GZIP): ("a gzip archive", UNPACK),
}


def require_kind(path: str, data: bytes) -> None:
    """Raise a UserError if the contents of a file are those of a known kind that is not read."""
    if data.startswith(GZIP):
        with suppress(zlib.error):
            require_kind(path, zlib.decompressobj(wbits=31).decompress(data, 512))
    for (at, mark), (what, cure) in OTHERS.items():
        if not data.startswith(mark, at):
            continue
        if mark == ZIP and b"xl/workbook" in data:
            what, cure = WORKBOOK
        raise UserError(f"{path} is {what}, which is not read; {cure}")
