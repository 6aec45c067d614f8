"""Receive a file from a server that may break off or lie, unpack an archive that may be hostile."""

import gzip
import http.client
import json
import os
import re
import shutil
import ssl
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pylon.system.errors import UserError
from pylon.system.files import one_line, write_atomically
from pylon.system.progress import track

MB = 1_000_000  # bytes
TIMEOUT = 60  # seconds without a byte, after which a connection counts as broken
BUSY = {408, 425, 429, 500, 502, 503, 504}  # answers after which it makes sense to ask again

# NIH's archives have up to 10,000 images of about 0.4 MB, 4.2 GB together. A radiograph of
# 1024 x 1024 pixels with four channels has 4.2 MB even if it is not compressed.
MOST_IMAGES = 20_000
LARGEST_IMAGE = 16 * MB
LARGEST_ARCHIVE = 8_000 * MB

HEADERS = MB  # bytes that may stand between two files; tarfile reads long names into memory
IMAGE = re.compile(r"(?:\./)?images/([A-Za-z0-9][A-Za-z0-9_-]{0,99}\.png)")


@dataclass(frozen=True)
class Source:
    """A file to download."""

    name: str
    url: str  # http or https
    size: int | None = None  # bytes; None if not known
    digest: str = ""  # MD5 or SHA-256 in hexadecimal; empty if not known


class Broken(Exception):
    """Why a transfer ended early; another attempt may succeed."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https, but not from https to http."""

    def redirect_request(self, request, file, code, message, headers, url):
        there = urllib.parse.urlsplit(url).scheme
        if there not in ("http", "https") or (request.type == "https" and there == "http"):
            reason = f"a redirect to {url}, which is not followed"
            raise urllib.error.HTTPError(url, code, reason, headers, file)
        return super().redirect_request(request, file, code, message, headers, url)


OPENER = urllib.request.build_opener(Redirects)  # checks certificates, as Python does by default


def connect(source: Source, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Ask for a file.

    Raises:
        Broken: no answer, or one that says to try again.
        UserError: another attempt would not help.
    """
    give = "check the link, or give another one with --links"
    try:
        plain = {"Accept-Encoding": "identity", **headers}
        return OPENER.open(urllib.request.Request(source.url, headers=plain), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = one_line(f"{error.code} {error.reason}")
        if error.code in BUSY:
            raise Broken(f"the server answered {answer}") from error
        if error.code == 416 and "Range" in headers:
            raise OtherFile("the file is shorter now") from error
        raise UserError(f"{source.name}: {source.url} answers {answer}; {give}") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise UserError(f"{source.name}: {source.url!r} is not a link ({error}); {give}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{source.name}: the certificate of {source.url} cannot be verified "
                f"({reason.verify_message}); {give}"
            ) from error
        raise Broken(one_line(str(reason)) or type(reason).__name__) from error


class OtherFile(Broken):
    """What is there cannot be continued; the file has to be received from its beginning."""


def receive(source: Source, part: Path) -> Iterator[int]:
    """Receive a file, or the rest of it, into `part`; yield the number of bytes so far.

    A file `part`.json beside it says which file it belongs to, for the next attempt.

    Raises:
        Broken: the transfer ended early; `part` keeps what arrived.
        UserError: another attempt would not help.
    """
    state = part.with_name(f"{part.name}.json")
    begun = read_state(state)
    have = size_of(part)
    if have and have == (source.size or begun.get("size")):
        yield have
        return

    # without a hash, only a server that can say whether the file has changed is asked for the rest
    validator = begun.get("validator", "")
    if not (validator or source.digest):
        have = 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and validator:
        headers["If-Range"] = validator
    try:
        with connect(source, headers) as response:
            have, size = begin(response, source, have, validator)
            if not have:
                part.unlink(missing_ok=True)
                begun = {"validator": validator_of(response), "size": size}
                write_atomically(state, json.dumps(begun).encode())
            yield from copy(response, source, part, have, size or source.size)
    except OtherFile:
        part.unlink(missing_ok=True)
        raise


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def read_state(path: Path) -> dict[str, str | int | None]:
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def validator_of(response: http.client.HTTPResponse) -> str:
    """The header that identifies this version of a file, if it is exact enough for If-Range."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else ""


def begin(
    response: http.client.HTTPResponse, source: Source, have: int, validator: str
) -> tuple[int, int | None]:
    """Where the answer to a request begins, and the size of the whole file if the server says.

    Args:
        have: bytes that are there; the rest was asked for.
        validator: the ETag that they came with, if any.
    """
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isascii() and length.isdigit() else None
    if response.status == 206 and have:
        wanted = rf"bytes {have}-\d+/(\d{{1,15}})"
        match = re.fullmatch(wanted, response.headers.get("Content-Range", ""))
        if match is None or (validator and validator_of(response) not in ("", validator)):
            raise OtherFile("the server sent another part than it was asked for")
        size = int(match[1])
    elif response.status == 200:
        have = 0  # the server ignores ranges, or the file has changed
    else:
        raise UserError(
            f"{source.name}: {source.url} answers {response.status} where 200 was expected; give "
            "another link with --links"
        )
    require_kind(response, source)
    most = source.size or LARGEST_ARCHIVE
    if size is not None and (size > most or size != (source.size or size)):
        raise UserError(
            f"{source.name} has {size:,} bytes at {source.url}, but should have "
            f"{'' if source.size else 'at most '}{most:,}; give another link with --links"
        )
    return have, size


def require_kind(
    response: http.client.HTTPResponse, source: Source, start: bytes | None = None
) -> None:
    """Raise a UserError if an answer is a web page, or its first bytes are not an archive's."""
    kind = response.headers.get_content_type()
    page = kind == "text/html" or (start or b"").lstrip()[:1] == b"<"
    is_archive = source.name.endswith(".gz")
    if page or (start is not None and is_archive and not start.startswith(b"\x1f\x8b")):
        what = "a web page" if page else "something else"
        raise UserError(
            f"{source.name}: {source.url} sent {what} instead of the file; give another link with "
            "--links, or get the file in a browser"
        )


def copy(
    response: http.client.HTTPResponse, source: Source, part: Path, have: int, whole: int | None
) -> Iterator[int]:
    """Append an answer to a file that has `have` bytes, of `whole`, if that is known."""
    with open(part, "r+b" if have else "wb") as file:
        file.seek(have)
        while True:
            try:
                # what arrives is kept at once; a whole block at the beginning shows what it is
                content = response.read1(MB) if have else response.read(512)
            except (OSError, http.client.HTTPException) as error:
                raise Broken(one_line(str(error)) or type(error).__name__) from error
            if not content:
                break
            if not have:
                require_kind(response, source, content)
            have += len(content)
            if have > (whole or LARGEST_ARCHIVE):
                raise UserError(
                    f"{source.name}: {source.url} sends more than {have - len(content):,} bytes, "
                    "which is too much; give another link with --links"
                )
            try:
                file.write(content)
            except OSError as error:
                raise UserError(
                    f"{part} cannot be written ({error.strerror}); free up space, then run the "
                    "same command again"
                ) from error
            yield have
        os.fsync(file.fileno())
    if whole is not None and have < whole:
        raise Broken(f"the connection was closed after {have:,} of {whole:,} bytes")


class Refused(Exception):
    """Why an archive is not unpacked."""


class Budget:
    """A stream that refuses to be read further than allowed, so that no archive is a bomb."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.left = 0  # bytes

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise Refused("more than 1 MB stands between two of its files")
        return content


def unpack(archive: Path, folder: Path) -> int:
    """Unpack the images of a .tar.gz archive to folder/images/; return their number.

    Only regular files images/NAME.png are unpacked, other files and folders are left out. `folder`
    is written under a temporary name beside it, so that it is either complete or absent.

    Raises:
        UserError: the archive is damaged, or has a link, a device, a name outside the folder, a
            name twice, or more than NIH's archives could have. Nothing is left behind.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("unpacking needs Python 3.11.4 or later; update Python")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    names: set[str] = set()
    total = archive.stat().st_size // MB
    try:
        with open(archive, "rb") as file:
            written = write_images(file, partial, names)
            for _ in track(written, f"unpacking {archive.name}", "megabyte", total, total > 0):
                pass
        if not names:
            raise Refused("it has no images (images/NAME.png)")
        partial.rename(folder)
    except (Refused, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{archive} is damaged or hostile, and is not unpacked: {one_line(str(error))}; remove "
            "it and run the same command again; if that does not help, get it from elsewhere"
        ) from error
    except OSError as error:
        raise UserError(
            f"{archive} cannot be unpacked to {folder} ({error.strerror}); free up space or check "
            "the permissions, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(names)


def write_images(file: BinaryIO, folder: Path, names: set[str]) -> Iterator[None]:
    """Write the images of an archive, and add their names; yield once per MB of the archive."""
    done = 0  # MB
    unpacked = 0  # bytes
    stream = Budget(gzip.GzipFile(fileobj=file))
    stream.left = HEADERS
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for number, member in enumerate(archive):
            is_image = check(member, folder)
            unpacked += member.size
            if number >= MOST_IMAGES or unpacked > LARGEST_ARCHIVE:
                raise Refused(f"it has more than {number:,} files or {unpacked / 1e9:.1f} GB")
            # what may be read until the next file
            stream.left = member.size + HEADERS
            if is_image:
                name = IMAGE.fullmatch(member.name)[1].lower()
                if name in names:
                    raise Refused(f"{member.name} is in it twice")
                names.add(name)
                archive.extract(member, folder, filter="data")
            while file.tell() // MB > done:
                done += 1
                yield

        # the rest is padding; reading it also checks the checksum of the compressed data
        while rest := stream.read(10_240):
            if any(rest):
                raise Refused("it has data that is not part of a file")


def check(member: tarfile.TarInfo, folder: Path) -> bool:
    """Whether a member is an image.

    Raises:
        Refused or tarfile.FilterError: no archive of radiographs has such a member.
    """
    name = repr(member.name)
    if member.name.startswith(("/", "\\")) or re.match("[A-Za-z]:", member.name):
        raise Refused(f"{name} is an absolute path")
    if member.issym() or member.islnk():
        raise Refused(f"{name} is a link")
    if not (member.isfile() or member.isdir()):
        raise Refused(f"{name} is a device or another special file")
    if not 0 <= member.size <= LARGEST_IMAGE or member.issparse():
        raise Refused(f"{name} has {member.size / 1e6:,.0f} MB, more than an image can have")
    tarfile.data_filter(member, os.fspath(folder))
    return member.isfile() and IMAGE.fullmatch(member.name) is not None
