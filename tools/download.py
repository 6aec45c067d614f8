"""Download ChestX-ray14 from NIH: lists and twelve archives of images, checked and unpacked.

    python tools/download.py --out data                      # needs 90.2 GB of disk
    python tools/download.py --out data --remove-archives    # needs 48.0 GB

Writes the lists, images_001.tar.gz to images_012.tar.gz, and images_001/images/ to
images_012/images/ to OUT. The same command resumes after an interruption. Tested with a server on
the same machine, never with NIH's.
"""

import csv
import gzip
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pylon.data.chestxray14 import MARK, WHERE
from pylon.system.cli import parse, start
from pylon.system.errors import UserError
from pylon.system.files import hold_lock, one_line
from pylon.system.progress import track


@dataclass(frozen=True)
class Source:
    """A file to download."""

    name: str
    url: str  # http or https
    size: int  # bytes
    digest: str  # MD5 or SHA-256, hexadecimal

    @property
    def is_archive(self) -> bool:
        return self.name.endswith(".tar.gz")


# Links of the archives: from NIH's batch_download_zips.py. Its copies in two repositories agree on
# all twelve: Sim-ai/CheXclusion, batch_download_zips.py, and apache/incubator-teaclave,
# examples/tvm/CheXNet-Keras/data/download.py. MD5: from NIH's FAQ_CHESTXRAY.pdf, question 7; the
# same in sunlabuiuc/PyHealth, pyhealth/datasets/chestxray14.py. Sizes in bytes: what Box answered
# three other public scripts, which agree.
STATIC = "https://nihcc.box.com/shared/static/{}.gz"
ARCHIVES = (
    ("vfk49d74nhbxq3nqjg0900w5nvkorp5c", 2_008_470_987, "fe8ed0a6961412fddcbb3603c11b3698"),
    ("i28rlmbvmfjbl8p2n3ril0pptcmcu9d1", 3_952_623_504, "ab07a2d7cbe6f65ddd97b4ed7bde10bf"),
    ("f1t00wrtdk94satdfb9olcolqx20z2jp", 3_929_234_850, "2301d03bde4c246388bad3876965d574"),
    ("0aowwzs5lhjrceb3qp67ahp0rd1l1etg", 3_838_903_983, "9f1b7f5aae01b13f4bc8e2c44a4b8ef6"),
    ("v5e3goj22zr6h8tzualxfsqlqaygfbsn", 3_935_496_531, "1861f3cd0ef7734df8104f2b0309023b"),
    ("asi7ikud9jwnkrnkj99jnpfkjdes7l6l", 3_986_301_172, "456b53a8b351afd92a35bc41444c58c8"),
    ("jn1b4mw4n6lnh74ovmcjb8y48h8xj07n", 4_016_328_426, "1075121ea20a137b87f290d6a4a5965e"),
    ("tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j", 4_018_347_353, "b61f34cec3aa69f295fbb593cbd9d443"),
    ("upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj", 4_111_327_929, "442a3caa61ae9b64e61c561294d1e183"),
    ("l6nilvfa9cg3s28tqv1qc1olm3gnz54p", 4_181_556_296, "09ec81c4c31e32858ad8cf965c494b74"),
    ("hhq8fkdgvcari67vfhs7ppg2w6ni4jze", 4_187_084_020, "499aefc67207a5a97692424cf5dbeed5"),
    ("ioqwiy20ihqwyr8pf4c24eazhh281pbu", 2_914_187_733, "dc9fda1757c2de0032b63347a7d2895c"),
)
# Lists: Box's numbers of the files, and the form of the link, are each in two or more public
# scripts or pages. The SHA-256 belong to the SHA-1 in hpca-uji/PyDTNN,
# pydtnn/datasets/chestxray.py; of the boxes, to a copy of NIH's file.
LIST_LINK = (
    "https://nihcc.app.box.com/index.php?rm=box_download_shared_file"
    "&vanity_name=ChestXray-NIHCC&file_id=f_{}"
)
LABELS = "Data_Entry_2017_v2020.csv"
LISTS = (
    (LABELS, 219760887468, 9_003_496,
     "c69a6daca3549af707ca9cacbdf9f9a7b6a9188e8c61157df653520bb72d8eb1"),
    ("BBox_List_2017.csv", 219760940956, 92_416,
     "0bbfea9d4c4e9771481b3023b1bc9f0df9dea924453b12986beb29b0c4d0c95b"),
    ("train_val_list.txt", 256056636701, 1_470_907,
     "61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81"),
    ("test_list.txt", 256055473534, 435_131,
     "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"),
)  # fmt: skip
NIH = tuple(
    Source(name, LIST_LINK.format(number), size, digest) for name, number, size, digest in LISTS
) + tuple(
    Source(f"images_{number:03}.tar.gz", STATIC.format(key), size, digest)
    for number, (key, size, digest) in enumerate(ARCHIVES, start=1)
)
MB = 1_000_000  # bytes
LARGEST = 8_000 * MB  # that an archive may take when it is unpacked; NIH's take 4.2 GB at most
TIMEOUT = 60  # seconds without a byte, after which a connection counts as broken
BUSY = {408, 425, 429, 500, 502, 503, 504}  # answers after which it makes sense to ask again
# in a row without a new byte: three minutes of pauses, and up to TIMEOUT for each answer
ATTEMPTS = 8


@dataclass
class Options:
    """Download ChestX-ray14 from NIH, check and unpack it; resume if it was interrupted."""

    out: Path = Path("data")
    """Folder for the lists, the archives and the images."""
    links: Path | None = None
    """Csv file with other links (a mirror, or NIH's if they have changed): columns name and url.
    Sizes and hashes stay those of NIH's files."""
    remove_archives: bool = False
    """Remove each archive after its images are unpacked."""


class Broken(Exception):
    """Why a transfer ended early; another attempt may succeed."""


if __name__ == "__main__":
    OPTIONS = parse(Options)


def main(options: Options) -> None:
    out = options.out
    sources = NIH if options.links is None else with_links(NIH, options.links)
    archives = [source for source in sources if source.is_archive]
    prepare(out)
    require_room(out, archives, options.remove_archives)

    # the lists; one that is there is kept, labels also under the name of another edition
    for source in sources:
        pattern = "Data_Entry_2017*.csv" if source.name == LABELS else source.name
        if not source.is_archive and not any(out.glob(pattern)):
            fetch(source, out)

    # the archives, one after the other
    for source in archives:
        folder = folder_of(out, source)
        archive = out / source.name
        if not folder.is_dir():
            fetch(source, out)
            print(f"{folder}: {unpack(archive, folder):,} images", flush=True)
        if options.remove_archives and archive.exists():
            # the images must be on the disk before their archive is gone
            if hasattr(os, "sync"):
                os.sync()
            archive.unlink()
    print(f"complete; now run python tools/check_data.py --data {out}")


def with_links(sources: tuple[Source, ...], path: Path) -> tuple[Source, ...]:
    """Replace links by those of a csv file; a file without a row in it keeps its own.

    Raises:
        UserError: the csv file cannot be read, or a row is wrong.
    """
    try:
        reader = csv.DictReader(path.read_text("utf-8-sig").splitlines())
        lines = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a csv file ({error}); see --links") from error
    lacking = {"name", "url"}.difference(reader.fieldnames or ())
    if lacking:
        raise UserError(f"{path} has no column {min(lacking)!r}; see --links")
    by_name = {source.name: source for source in sources}
    for line, row in lines:
        name = (row["name"] or "").strip()
        url = (row["url"] or "").strip()
        if name not in by_name:
            known = ", ".join(by_name)
            raise UserError(f"{path}, line {line}: {name!r} is not one of {known}; correct it")
        if not re.fullmatch(r"https?://[!-~]+", url):
            raise UserError(
                f"{path}, line {line}: url {url!r} is not a link that starts with https:// or "
                "http://; correct it"
            )
        by_name[name] = replace(by_name[name], url=url)
    return tuple(by_name.values())


def folder_of(out: Path, archive: Source) -> Path:
    """The folder of an archive's images, which exists only when they are complete."""
    return out / archive.name.removesuffix(".tar.gz")


def prepare(out: Path) -> None:
    """Make the folder, and refuse one that another process or other images use."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / MARK).exists():
        raise UserError(f"{out} has synthetic images; choose another folder with --out")
    if any((out / "images").glob("*.png")):
        raise UserError(
            f"{out / 'images'} has images already, and each would be there twice: check them with "
            f"tools/check_data.py --data {out}, or choose another folder with --out"
        )
    hold_lock(out / ".download.lock", f"another process downloads to {out}; wait until it ends")


def require_room(out: Path, archives: list[Source], remove: bool) -> None:
    """Raise a UserError if the disk has no room for what is left to do."""
    used = 0  # bytes more than now
    most = 0
    for source in archives:
        if folder_of(out, source).is_dir():
            continue
        have = size_of(out / source.name) or size_of(part_of(out, source))
        # images cannot be compressed further, so that they take as much as their archive
        used += max(source.size - have, 0) + source.size
        most = max(most, used)
        used -= source.size if remove else 0
    free = shutil.disk_usage(out).free
    if most > free:
        cure = "" if remove else ", use --remove-archives"
        raise UserError(
            f"{out} needs {most / 1e9:.1f} GB more, but its disk has {free / 1e9:.1f} GB free; "
            f"free up space{cure}, or choose another disk with --out"
        )


def part_of(out: Path, source: Source) -> Path:
    """The file that a download is written to until it is complete and checked."""
    return out / f".{source.name}.part"


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def fetch(source: Source, out: Path, pause: Callable[[float], None] = time.sleep) -> None:
    """Download a file unless it is there, and check its size and hash.

    Raises:
        UserError: it cannot be had, or is not the right one; then a download is removed.
    """
    path = out / source.name
    part = part_of(out, source)
    try:
        if path.exists():
            check(source, path, "remove it")
            return
        receive_all(source, part, pause)
        try:
            again = "run the same command again, or give another link with --links"
            check(source, part, f"it came from {source.url}, and is removed; {again}")
        except UserError:
            part.unlink()
            raise
    except UserError as error:
        raise UserError(
            f"{error} (NIH's page is {WHERE}; a file that you put into {out} yourself is not "
            "downloaded)"
        ) from error
    os.replace(part, path)


def receive_all(source: Source, part: Path, pause: Callable[[float], None]) -> None:
    """Receive a file completely, however often the connection breaks, as long as it goes on."""
    failures = 0
    furthest = size_of(part)
    while True:
        try:
            begun = size_of(part) // MB
            received = megabytes(receive(source, part), begun)
            total = source.size // MB - begun
            for _ in track(received, source.name, "megabyte", total, shown=total > 0):
                pass
            return
        except Broken as error:
            failures = 0 if size_of(part) > furthest else failures + 1
            furthest = max(furthest, size_of(part))
            if failures == ATTEMPTS:
                raise UserError(
                    f"{source.name}: {source.url} failed {failures} times in a row, at last "
                    f"because {error}; run the same command again later, it goes on where it "
                    "stopped"
                ) from error
            pause(min(2**failures, 60))


def megabytes(positions: Iterator[int], done: int) -> Iterator[None]:
    """Yield once per megabyte after the first `done`, given positions in bytes."""
    for position in positions:
        while position // MB > done:
            done += 1
            yield


def receive(source: Source, part: Path) -> Iterator[int]:
    """Receive a file, or the rest of it, into `part`; yield the number of bytes so far.

    Raises:
        Broken: the transfer ended early; `part` keeps what arrived.
        UserError: another attempt would not help.
    """
    have = size_of(part)
    if have > source.size:
        part.unlink()
        have = 0
    if have == source.size:
        return
    with connect(source, have) as response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(
                f"{source.name}: {source.url} sent a web page instead of the file; give another "
                "link with --links, or get the file in a browser"
            )
        # some servers send the whole file when they are asked for the rest
        have = have if response.status == 206 else 0
        with open(part, "ab" if have else "wb") as file:
            while have <= source.size:
                try:
                    content = response.read1(MB)
                except (OSError, http.client.HTTPException) as error:
                    raise Broken(one_line(str(error)) or type(error).__name__) from error
                if not content:
                    break
                have += len(content)
                try:
                    file.write(content)
                except OSError as error:
                    raise UserError(
                        f"{part} cannot be written ({error.strerror}); free up space, then run the "
                        "same command again"
                    ) from error
                yield have
            os.fsync(file.fileno())
    if have < source.size:
        raise Broken(f"the connection was closed after {have:,} of {source.size:,} bytes")


def connect(source: Source, have: int) -> http.client.HTTPResponse:
    """Ask for a file, from byte `have` on.

    Raises:
        Broken: no answer, or one that says to try again.
        UserError: another attempt would not help.
    """
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    give = "check the link, or give another one with --links"
    try:
        request = urllib.request.Request(source.url, headers=headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = one_line(f"{error.code} {error.reason}")
        if error.code in BUSY:
            raise Broken(f"the server answered {answer}") from error
        raise UserError(f"{source.name}: {source.url} answers {answer}; {give}") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise UserError(f"{source.name}: {source.url!r} is not a link ({error}); {give}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = one_line(str(getattr(error, "reason", error))) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise UserError(
                f"{source.name}: the certificate of {source.url} cannot be verified ({reason}); "
                f"{give}"
            ) from error
        raise Broken(reason) from error


def check(source: Source, path: Path, cure: str) -> None:
    """Raise a UserError that ends with `cure` unless a file has the right size and hash."""
    size = size_of(path)
    if size != source.size:
        raise UserError(
            f"{path} is not the right file: it has {size:,} bytes, not {source.size:,}; {cure}"
        )
    kind = "md5" if len(source.digest) == 32 else "sha256"
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        blocks = iter(partial(file.read, MB), b"")
        title = f"checking {source.name}"
        for block in track(blocks, title, "megabyte", -(-size // MB), shown=size > MB):
            digest.update(block)
    if digest.hexdigest() != source.digest:
        raise UserError(
            f"{path} is not the right file: its hash is {digest.hexdigest()}, not {source.digest}; "
            f"{cure}"
        )


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a .tar.gz archive of images/NAME.png; return the number of images.

    `folder` is written under a temporary name beside it, so that it is either complete or absent.

    Raises:
        UserError: the archive is damaged, has files that would lie outside the folder, or more than
            NIH's archives could have. Nothing is left behind.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("unpacking needs Python 3.11.4 or later; update Python")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    total = size_of(archive) // MB
    try:
        positions = megabytes(extract_all(archive, temporary), 0)
        for _ in track(positions, f"unpacking {archive.name}", "megabyte", total, total > 0):
            pass
        images = len(list(temporary.glob("images/*.png")))
        if not images:
            raise tarfile.TarError("it has no images (images/NAME.png)")
        temporary.rename(folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
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
        shutil.rmtree(temporary, ignore_errors=True)
    return images


def extract_all(archive: Path, folder: Path) -> Iterator[int]:
    """Extract an archive; yield how many bytes of it have been read after each of its files."""
    unpacked = 0
    with open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r|gz") as members:
        for member in members:
            unpacked += member.size
            if unpacked > LARGEST:
                raise tarfile.TarError(f"it has more than {LARGEST / 1e9:.1f} GB")
            members.extract(member, folder, filter="data")
            yield file.tell()


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on where it stopped")
