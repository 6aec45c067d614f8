"""Download ChestX-ray14 from NIH: lists and twelve archives of images, checked and unpacked.

    python tools/download.py --out data                      # needs 90.2 GB of disk
    python tools/download.py --out data --remove-archives    # needs 48.0 GB

Writes the lists, images_001.tar.gz to images_012.tar.gz, images_001/images/ to images_012/images/,
and downloads.json (sizes and hashes) to OUT. The same command resumes after an interruption.
Tested with a server on the same machine, never with NIH's.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pylon.data.chestxray14 import MARK, WHERE
from pylon.system.cli import parse, start
from pylon.system.errors import UserError
from pylon.system.files import hold_lock, write_atomically
from pylon.system.progress import track
from untrusted import MB, Broken, Source, receive, size_of, unpack

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
SIZES = {source.name: source.size for source in NIH}  # bytes
RECORD = "downloads.json"
# in a row without a new byte: three minutes of pauses, and up to one for each answer (TIMEOUT)
ATTEMPTS = 8


@dataclass
class Options:
    """Download ChestX-ray14 from NIH, check and unpack it; resume if it was interrupted."""

    out: Path = Path("data")
    """Folder for the lists, the archives and the images."""
    links: Path | None = None
    """Csv file with other links (a mirror, or NIH's if they have changed): columns name, url and,
    if known, size (in bytes) and hash (MD5 or SHA-256, in hexadecimal)."""
    remove_archives: bool = False
    """Remove each archive after its images are unpacked."""


if __name__ == "__main__":
    OPTIONS = parse(Options)


def main(options: Options) -> None:
    out = options.out
    sources = NIH if options.links is None else read_links(options.links)
    prepare(out)
    recorded = read_record(out / RECORD)
    archives = [source for source in sources if source.name.endswith(".tar.gz")]
    require_room(out, archives, options.remove_archives)

    # the lists; one that is there is kept, labels also under the name of another edition
    for source in sources:
        pattern = "Data_Entry_2017*.csv" if source.name == LABELS else source.name
        if source not in archives and not any(out.glob(pattern)):
            fetch(source, out, recorded)

    # the archives, one after the other
    for source in archives:
        folder = folder_of(out, source)
        if not folder.is_dir():
            fetch(source, out, recorded)
            print(f"{folder}: {unpack(out / source.name, folder):,} images", flush=True)
        archive = out / source.name
        if options.remove_archives and archive.exists():
            # the images must be on the disk before their archive is gone
            if hasattr(os, "sync"):
                os.sync()
            archive.unlink()
    print(f"complete; now run python tools/check_data.py --data {out}")


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
        size = source.size or SIZES[source.name]
        have = size_of(out / source.name) or size_of(part_of(out, source))
        # images cannot be compressed further, so that they take as much as their archive
        used += max(size - have, 0) + size
        most = max(most, used)
        used -= size if remove else 0
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


def fetch(
    source: Source,
    out: Path,
    recorded: dict[str, dict],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Download a file unless it is there; check and record it.

    Raises:
        UserError: it cannot be had, or is not the right one.
    """
    path = out / source.name
    part = part_of(out, source)
    downloaded = not path.exists()
    try:
        if downloaded:
            receive_all(source, part, pause)
        digest = check(source, part if downloaded else path, recorded)
    except UserError as error:
        raise UserError(
            f"{error} (NIH's page is {WHERE}; a file that you put into {out} yourself is not "
            "downloaded)"
        ) from error
    if downloaded:
        recorded[source.name] = {"url": source.url, "size": size_of(part), "hash": digest}
        write_atomically(out / RECORD, json.dumps(recorded, indent=2).encode())
        os.replace(part, path)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def receive_all(source: Source, part: Path, pause: Callable[[float], None]) -> None:
    """Receive a file completely, however often the connection breaks, as long as it goes on."""
    failures = 0
    furthest = size_of(part)
    while True:
        try:
            begun = size_of(part) // MB
            total = (source.size or SIZES[source.name]) // MB - begun
            received = megabytes(receive(source, part), begun)
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


def check(source: Source, path: Path, recorded: dict[str, dict]) -> str:
    """Compare a file's size and hash with those known or recorded; return the hash.

    Raises:
        UserError: they differ. A file that was just downloaded is removed.
    """
    expected = source.digest or recorded.get(source.name, {}).get("hash", "")
    digest = hashlib.new("md5" if len(expected) == 32 else "sha256", usedforsecurity=False)
    size = size_of(path)
    with open(path, "rb") as file:
        blocks = iter(partial(file.read, MB), b"")
        title = f"checking {source.name}"
        for block in track(blocks, title, "megabyte", -(-size // MB), shown=size > MB):
            digest.update(block)
    found = digest.hexdigest()
    if source.size in (None, size) and expected in ("", found):
        return found
    where = "expected" if source.digest else f"recorded in {RECORD}"
    wrong = f"its hash is {found}, not {expected} as {where}"
    if source.size not in (None, size):
        wrong = f"it has {size:,} bytes, not {source.size:,}"
    if path.name == source.name:
        raise UserError(f"{path} is not the right file: {wrong}; remove it")
    path.unlink()
    raise UserError(
        f"{source.name} from {source.url} is not the right file, so it was removed: {wrong}; run "
        "the same command again, or give another link with --links"
    )


def read_record(path: Path) -> dict[str, dict]:
    """What was downloaded before: url, size (bytes) and hash of each file."""
    try:
        recorded = json.loads(path.read_bytes()) if path.exists() else {}
        return {name: {"hash": entry["hash"], **entry} for name, entry in recorded.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it") from error


def read_links(path: Path) -> tuple[Source, ...]:
    """NIH's files, with links from a csv file where it has a row for them.

    A row replaces everything that is known about a file: without size or hash, they are recorded
    instead of checked.

    Raises:
        UserError: the file cannot be read, or a row is wrong.
    """
    try:
        reader = csv.DictReader(path.read_text("utf-8-sig").splitlines())
        lines = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a csv file ({error}); see --links") from error
    lacking = {"name", "url"}.difference(reader.fieldnames or ())
    if lacking:
        raise UserError(f"{path} has no column {min(lacking)!r}; see --links")
    sources = {source.name: source for source in NIH}
    for line, row in lines:
        cells = {name: (row.get(name) or "").strip() for name in ("name", "url", "size", "hash")}
        name, url, size, digest = cells.values()
        wrong = None
        if name not in sources:
            wrong = f"{name!r} is not one of {', '.join(sources)}"
        elif not re.fullmatch(r"https?://[!-~]+", url):
            wrong = f"url {url!r} is not a link that starts with https:// or http://"
        elif not re.fullmatch(r"[0-9]{0,15}", size) or size == "0":
            wrong = f"size {size!r} is not a number of bytes"
        elif not re.fullmatch(r"|[0-9a-fA-F]{32}|[0-9a-fA-F]{64}", digest):
            wrong = f"hash {digest!r} is neither MD5 nor SHA-256 (32 or 64 hexadecimal digits)"
        if wrong is not None:
            raise UserError(f"{path}, line {line}: {wrong}; correct it")
        sources[name] = Source(name, url, int(size) if size else None, digest.lower())
    return tuple(sources.values())


if __name__ == "__main__":
    start(main, OPTIONS, "the same command goes on where it stopped")
