"""tools/untrusted.py: archives that are damaged or hostile (servers: test_download.py)."""

import gzip
import io
import os
import tarfile
import tracemalloc

import pytest

import untrusted
from pylon.system.errors import UserError
from untrusted import unpack


def member(name, content=b"pixels", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def link(name, target, kind=tarfile.SYMTYPE):
    return member(name, b"", type=kind, linkname=target)


def pack(path, *members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w:gz", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(folder):
    """Names of all files below a folder, and their contents; links are not followed."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def archive(tmp_path):
    """The path of an archive in a folder of its own, beside a file that nothing may change."""
    (tmp_path / "precious.png").write_bytes(b"mine")
    (tmp_path / "data").mkdir()
    return tmp_path / "data/images_001.tar.gz"


def refusal(archive):
    """Unpack an archive that must be refused; nothing else may change, inside or outside."""
    top = archive.parent.parent
    before = contents(top)
    with pytest.raises(UserError) as refused:
        unpack(archive, archive.parent / "images_001")
    assert contents(top) == before
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]
    sentence = str(refused.value)
    assert sentence.startswith(f"{archive} is damaged or hostile, and is not unpacked: ")
    assert "\n" not in sentence
    return sentence


def test_images_are_unpacked_and_other_files_left_out(archive):
    pack(
        archive,
        member("images", b"", type=tarfile.DIRTYPE),
        member("images/00000001_000.png", b"one", mode=0o4777),
        member("./images/00000001_001.png", b"two", mode=0),
        member("images/.hidden.png"),
        member("images/notes.txt"),
        member("images/more/00000001_002.png"),
        member("README"),
    )
    folder = archive.parent / "images_001"
    assert unpack(archive, folder) == 2
    names = {"images/00000001_000.png": b"one", "images/00000001_001.png": b"two"}
    assert contents(folder) == names
    assert (folder / "images/00000001_000.png").stat().st_mode & 0o7022 == 0
    assert sorted(path.name for path in archive.parent.iterdir()) == ["images_001", archive.name]


IMAGE = member("images/00000001_000.png")
HOSTILE = {
    "absolute path": ([member("/tmp/precious.png")], "'/tmp/precious.png' is an absolute path"),
    "path upwards": ([member("images/../../precious.png")], "images/../../precious.png"),
    "folder upwards": ([member("../new", b"", type=tarfile.DIRTYPE)], "../new"),
    "path of Windows": ([member("C:\\precious.png")], "is an absolute path"),
    "symbolic link": ([link("images/a.png", "../precious.png")], "'images/a.png' is a link"),
    "link to a folder": (
        [link("images", ".."), member("images/precious.png")],
        "'images' is a link",
    ),
    "hard link": ([link("images/a.png", "precious.png", tarfile.LNKTYPE)], "is a link"),
    "device": ([member("images/a.png", b"", type=tarfile.CHRTYPE)], "'images/a.png' is a device"),
    "pipe": ([member("images/a.png", b"", type=tarfile.FIFOTYPE)], "'images/a.png' is a device"),
    "name twice": ([IMAGE, IMAGE], "images/00000001_000.png is in it twice"),
    "name twice but for case": ([member("images/a.png"), member("images/A.png")], "is in it twice"),
    "no image": ([member("README")], "it has no images"),
    "line break": ([link("images/a\nb.png", "c")], "'images/a\\nb.png' is a link"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_by_name(archive, name):
    members, said = HOSTILE[name]
    assert said in refusal(
        pack(archive, IMAGE, *members) if name != "no image" else pack(archive, *members)
    )


def test_large_image_is_refused_before_it_is_written(archive, monkeypatch):
    monkeypatch.setattr(untrusted, "LARGEST_IMAGE", 10_000)
    pack(archive, IMAGE, member("images/b.png", b"0" * 10_001))
    assert "'images/b.png' has 0 MB, more than an image can have" in refusal(archive)


def test_archive_of_too_many_files_or_bytes_is_refused(archive, monkeypatch):
    pack(archive, *(member(f"images/{number}.png", b"0" * 1000) for number in range(5)))
    monkeypatch.setattr(untrusted, "MOST_IMAGES", 4)
    assert "more than 4 files" in refusal(archive)
    monkeypatch.setattr(untrusted, "MOST_IMAGES", 5)
    monkeypatch.setattr(untrusted, "LARGEST_ARCHIVE", 4999)
    assert "more than 4 files or 0.0 GB" in refusal(archive)
    monkeypatch.setattr(untrusted, "LARGEST_ARCHIVE", 5000)
    assert unpack(archive, archive.parent / "images_001") == 5


def test_long_name_takes_no_memory(archive):
    """A header whose name has 16 MB, compressed to 16 kB, which tarfile would read at once."""
    info = member("././@LongLink", b"", type=tarfile.GNUTYPE_LONGNAME)[0]
    info.size = 16_000_000
    with gzip.open(archive, "wb") as file:
        file.write(info.tobuf())
        for _ in range(16):
            file.write(b"a" * 1_000_000)
    tracemalloc.start()
    said = refusal(archive)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "more than 1 MB stands between two of its files" in said
    assert most < 4_000_000


def test_sparse_file_is_refused(archive):
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12}
    pack(archive, IMAGE, member("images/b.png", b"0\n".ljust(512, b"\0"), pax_headers=headers))
    assert "more than an image can have" in refusal(archive)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "no archive", "data at the end", "cut inside"]
)
def test_damaged_archive_is_refused(archive, damage):
    pack(archive, member("images/a.png", os.urandom(50_000)), member("images/b.png"))
    content = archive.read_bytes()
    inside = gzip.decompress(content)
    archive.write_bytes(
        {
            "cut": content[:-20],
            "flipped": content[:30_000] + bytes([content[30_000] ^ 1]) + content[30_001:],
            "no archive": gzip.compress(b"<html>" * 2000),
            "data at the end": gzip.compress(inside + b"\0" * 20_480 + b"more"),
            "cut inside": gzip.compress(inside[:40_000]),
        }[damage]
    )
    refusal(archive)


def test_what_a_kill_left_behind_is_replaced(archive):
    left = archive.parent / ".images_001.partial/images"
    left.mkdir(parents=True)
    (left / "00000009_000.png").write_bytes(b"half")
    unpack(pack(archive, IMAGE), archive.parent / "images_001")
    assert contents(archive.parent / "images_001") == {"images/00000001_000.png": b"pixels"}
    assert not left.parent.exists()


def test_full_disk_ends_in_a_sentence(archive, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    pack(archive, IMAGE)
    monkeypatch.setattr(tarfile.TarFile, "extract", fail)
    with pytest.raises(UserError, match=r"cannot be unpacked to .* \(No space left on device\)"):
        unpack(archive, archive.parent / "images_001")
    assert not (archive.parent / "images_001").exists()
