"""tools/download.py: transfers from servers that fail or lie, archives, and its reading of files.

tests/scripts/test_downloading.py runs the whole script.
"""

import gzip
import hashlib
import io
import os
import random
import ssl
import tarfile
from dataclasses import replace

import bad_server
import pytest
from bad_server import File

import download
from download import NIH, Source, fetch, require_room, unpack, with_links
from pylon.system.errors import UserError

NAME = "images_001.tar.gz"
CONTENT = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()

# for 127.0.0.1 until 2126, signed by itself: openssl req -x509 -newkey ec
# -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=127.0.0.1
# -addext subjectAltName=IP:127.0.0.1
KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgBeJhSYAcif+vr4j8"
    "kF2glSsSGQIz/RfYEXvEDoLvRl6hRANCAAQVSvqxuO3iUMQr3Jw82zqFWrRkFwgJ"
    "kSUW7i7W8+Ud4vSx6LORNudsI781bO8WPeHJwSWHJFLQ01gfcyfIJEfX"
)
CERTIFICATE = (
    "MIIBjzCCATagAwIBAgIUN195yJ6P5xpIBsZ+JOZpwP/srJowCgYIKoZIzj0EAwIw"
    "FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyODAwNDMxMloYDzIxMjYxMTA0"
    "MDA0MzEyWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO"
    "PQMBBwNCAAQVSvqxuO3iUMQr3Jw82zqFWrRkFwgJkSUW7i7W8+Ud4vSx6LORNuds"
    "I781bO8WPeHJwSWHJFLQ01gfcyfIJEfXo2QwYjAdBgNVHQ4EFgQUIUhWUiUPG8X6"
    "Wb0wD/9ozrZTZ8swHwYDVR0jBBgwFoAUIUhWUiUPG8X6Wb0wD/9ozrZTZ8swDwYD"
    "VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQC"
    "IFgt6YV702RIh9ypG4xXqlUwbVYaQsmlwGUAqZiaQIsxAiBtIAbeFQlfQJDVsnMK"
    "ey3OCKc3l3VYdVTsOKI678451Q=="
)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with bad_server.running() as server:
        yield server


class Fetch:
    """Fetch /a of a server as images_001.tar.gz; keep the pauses instead of making them."""

    def __init__(self, server, out):
        self.server = server
        self.path = out / NAME
        self.part = out / f".{NAME}.part"
        self.source = Source(NAME, server.url("/a"), len(CONTENT), MD5)
        self.pauses = []

    def __call__(self, file=None, pause=None, **changes):
        if file is not None:
            self.server.files["/a"] = file
        fetch(replace(self.source, **changes), self.path.parent, pause or self.pauses.append)
        assert [path.name for path in self.path.parent.iterdir()] == [NAME]
        return self.path.read_bytes()

    def refusal(self, *args, **changes):
        with pytest.raises(UserError) as refused:
            self(*args, **changes)
        assert not self.path.exists()
        sentence = str(refused.value)
        assert NAME in sentence
        assert "\n" not in sentence
        assert "https://nihcc.app.box.com/v/ChestXray-NIHCC" in sentence
        return sentence


@pytest.fixture
def get(server, tmp_path):
    return Fetch(server, tmp_path)


def test_twenty_broken_transfers_give_the_same_bytes(get, server):
    cut = len(CONTENT) // 20 - 1
    assert get(File(CONTENT, cut=cut)) == CONTENT
    assert server.ranges() == [None, *(f"bytes={k * cut}-" for k in range(1, 21))]
    assert get.pauses == [1] * 20


def test_server_that_ignores_ranges_starts_over(get, server):
    file = File(CONTENT, cut=200_000, ranges=False)
    cuts = iter([200_000, None])
    assert get(file, lambda _: setattr(file, "cut", next(cuts))) == CONTENT
    assert server.ranges() == [None, "bytes=200000-", "bytes=200000-"]


def test_file_that_changes_in_between_is_not_kept(get):
    """Neither the first half of the one and the second of the other, nor the other."""
    file = File(CONTENT, cut=100_000)

    def change(_):
        file.content = CONTENT[::-1]
        file.cut = None

    assert "its hash is" in get.refusal(file, change)
    assert not get.part.exists()
    assert get(File(CONTENT)) == CONTENT


def test_connection_that_makes_no_progress_ends_in_a_sentence(get, server):
    said = get.refusal(File(CONTENT, cut=100_000, ranges=False))
    assert "failed 8 times in a row" in said
    assert "the connection was closed after 100,000 of 300,000 bytes" in said
    assert "it goes on where it stopped" in said
    assert get.pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert sum(get.pauses) == pytest.approx(180, abs=5)  # as docs/chestxray14.md says
    assert get(File(CONTENT)) == CONTENT
    assert server.ranges()[-1] == "bytes=100000-"


def test_no_server_ends_in_a_sentence(get):
    with bad_server.running() as gone:
        url = gone.url("/a")
    said = get.refusal(url=url)
    assert "failed 8 times in a row" in said
    assert "Connection refused" in said


def test_wrong_length_in_an_answer_counts_as_broken(get):
    long = File(CONTENT, headers={"Content-Length": len(CONTENT) + 10})
    assert get(long) == CONTENT
    get.path.unlink()
    short = File(CONTENT, headers={"Content-Length": len(CONTENT) - 10})
    assert get(short) == CONTENT


def test_more_bytes_than_known_are_removed(get):
    said = get.refusal(File(CONTENT + b"more", headers={"Content-Length": ""}))
    assert "it has 300,004 bytes, not 300,000; it came from http://127.0.0.1:" in said
    assert not get.part.exists()


def test_part_that_is_longer_than_the_file_starts_over(get, server):
    get.part.write_bytes(CONTENT + b"more")
    assert get(File(CONTENT)) == CONTENT
    assert server.ranges() == [None]


def test_complete_part_is_only_checked(get, server):
    get.part.write_bytes(CONTENT)
    assert get(File(CONTENT)) == CONTENT
    assert server.asked == []


def test_redirects_are_followed_with_the_range(get, server):
    server.files["/b"] = File(CONTENT, cut=200_000)
    assert get(File(b"", headers={"Location": server.url("/b")})) == CONTENT
    assert [path for path, _ in server.asked] == ["/a", "/b"] * 2
    assert server.ranges() == [None, None, "bytes=200000-", "bytes=200000-"]


def test_redirect_to_a_file_is_refused(get):
    assert "answers 302" in get.refusal(File(b"", headers={"Location": "file:///etc/passwd"}))
    assert get.pauses == []


def test_web_page_is_refused(get):
    page = File(b"<!DOCTYPE html><p>Sign in", headers={"Content-Type": "text/html; charset=utf-8"})
    assert "sent a web page instead of the file" in get.refusal(page)
    assert get.pauses == []


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_missing_file_is_not_asked_for_again(get, code):
    assert f"answers {code} " in get.refusal(File(CONTENT, codes=[code]))
    assert get.pauses == []


def test_busy_server_is_asked_again(get):
    assert get(File(CONTENT, codes=[503, 429, 500])) == CONTENT
    assert get.pauses == [2, 4, 8]


def test_wrong_hash_is_removed(get, server):
    said = get.refusal(File(CONTENT), digest="0" * 64)
    assert f"its hash is {SHA256}, not {'0' * 64}; it came from http" in said
    assert not get.part.exists()
    assert get(File(CONTENT), digest=SHA256) == CONTENT
    assert server.ranges() == [None, None]


def test_file_that_is_there_is_checked_and_kept(get, server):
    get.path.write_bytes(CONTENT)
    assert get() == CONTENT
    for content in (CONTENT[:-1], CONTENT[:-1] + b"?"):
        get.path.write_bytes(content)
        with pytest.raises(UserError, match=r"images_001.tar.gz is not the right file: .*remove"):
            get()
        assert get.path.read_bytes() == content
    assert server.asked == []


def test_certificates_are_verified(get, monkeypatch, tmp_path):
    """The certificate is for 127.0.0.1, but nobody has signed it."""
    with bad_server.running() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        parts = {"PRIVATE KEY": KEY, "CERTIFICATE": CERTIFICATE}
        pem = [
            f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n"
            for kind, text in parts.items()
        ]
        (tmp_path / "pem").write_text("".join(pem))
        context.load_cert_chain(tmp_path / "pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.files["/a"] = File(CONTENT)
        said = get.refusal(url=server.url("/a").replace("http:", "https:"))
        assert "cannot be verified" in said
        assert "self-signed certificate" in said
        assert get.pauses == []
        assert server.asked == []


def test_full_disk_ends_in_a_sentence(get, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "open", lambda *_: Full(), raising=False)
    assert "cannot be written (No space left on device); free up" in get.refusal(File(CONTENT))


def test_nih_table_is_complete():
    archives = [source for source in NIH if source.is_archive]
    assert [source.name for source in archives] == [f"images_{k:03}.tar.gz" for k in range(1, 13)]
    assert sum(source.size for source in archives) == 45_079_862_784
    assert len({source.url for source in NIH}) == 16
    assert len({source.digest for source in NIH}) == 16
    assert all(source.url.startswith("https://nihcc.") for source in NIH)


def test_hashes_of_lists_are_those_of_nih(official):
    """The reference files are copies in another order and with another header."""
    known = {source.name: source.digest for source in NIH}
    for name in ("train_val_list.txt", "test_list.txt"):
        lines = sorted((official / name).read_bytes().split())
        assert hashlib.sha256(b"\n".join(lines)).hexdigest() == known[name]
    labels = (official / "Data_Entry_2017_v2020.csv").read_bytes()
    labels = labels.replace(b"Patient Gender", b"Patient Sex")
    assert hashlib.sha256(labels).hexdigest() == known["Data_Entry_2017_v2020.csv"]
    boxes = (official / "BBox_List_2017.csv").read_bytes()
    assert hashlib.sha256(boxes).hexdigest() == known["BBox_List_2017.csv"]


def test_links_replace_those_of_nih_but_not_their_hashes(tmp_path):
    path = tmp_path / "links.csv"
    url = "http://127.0.0.1/a?b=c"
    path.write_text(f"name,url,size,hash\n{NAME}, {url},5,{'A' * 32}\n")
    before = {source.name: source for source in NIH}
    after = {source.name: source for source in with_links(NIH, path)}
    assert list(after) == list(before)
    assert after == before | {NAME: replace(before[NAME], url=url)}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("images_013.tar.gz,http://a", "'images_013.tar.gz' is not one of Data_Entry"),
        (f"{NAME},ftp://a", "url 'ftp://a' is not a link"),
        (f"{NAME},http://a b", "url 'http://a b' is not a link"),
        (f"{NAME}", "url '' is not a link"),
    ],
)
def test_wrong_row_is_named(tmp_path, row, said):
    path = tmp_path / "links.csv"
    path.write_text(f"name,url\n\n{row}\n")
    with pytest.raises(UserError, match=r"links.csv, line 3: ") as refused:
        with_links(NIH, path)
    assert said in str(refused.value)


def test_links_that_cannot_be_read(tmp_path):
    path = tmp_path / "links.csv"
    with pytest.raises(UserError, match=r"links.csv cannot be read as a csv file"):
        with_links(NIH, path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"links.csv cannot be read as a csv file"):
        with_links(NIH, path)
    path.write_text("file,link\na,b\n")
    with pytest.raises(UserError, match=r"links.csv has no column 'name'"):
        with_links(NIH, path)


def room(monkeypatch, free):
    usage = download.shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)


def test_room_is_that_of_what_is_left(tmp_path, monkeypatch):
    """Two archives of 4 GB, of the first 1 GB is there; the third is unpacked."""
    archives = [Source(f"images_00{k}.tar.gz", "", 4_000_000_000, "") for k in (1, 2, 3)]
    (tmp_path / "images_003").mkdir()
    with open(tmp_path / ".images_001.tar.gz.part", "wb") as part:
        part.truncate(1_000_000_000)
    for remove, need in ((False, 15_000_000_000), (True, 11_000_000_000)):
        room(monkeypatch, need)
        require_room(tmp_path, archives, remove)
        room(monkeypatch, need - 1)
        with pytest.raises(UserError, match=rf"needs {need / 1e9} GB more, .* has") as refused:
            require_room(tmp_path, archives, remove)
        assert ("--remove-archives" in str(refused.value)) is not remove


def test_room_for_nih(tmp_path, monkeypatch):
    """The figures in the docstring and in docs/chestxray14.md."""
    room(monkeypatch, 0)
    archives = [source for source in NIH if source.is_archive]
    for remove, gigabytes in ((False, "90.2"), (True, "48.0")):
        with pytest.raises(UserError, match=f"needs {gigabytes} GB more"):
            require_room(tmp_path, archives, remove)


def member(name, content=b"pixels", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


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


def pack(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


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


IMAGE = member("images/00000001_000.png")
HOSTILE = {
    "path upwards": (member("images/../../precious.png"), "images/../../precious.png"),
    "folder upwards": (member("../new", b"", type=tarfile.DIRTYPE), "../new"),
    "symbolic link": (
        member("images/a.png", b"", type=tarfile.SYMTYPE, linkname="../../../precious.png"),
        "precious.png",
    ),
    "device": (member("images/a.png", b"", type=tarfile.CHRTYPE), "images/a.png"),
    "pipe": (member("images/a.png", b"", type=tarfile.FIFOTYPE), "images/a.png"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_by_name(archive, name):
    hostile, said = HOSTILE[name]
    assert said in refusal(pack(archive, IMAGE, hostile))


def test_archive_without_images_is_refused(archive):
    assert "it has no images" in refusal(pack(archive, member("README")))


def test_bomb_is_refused(archive, monkeypatch):
    pack(archive, *(member(f"images/{number}.png", b"0" * 1000) for number in range(5)))
    monkeypatch.setattr(download, "LARGEST", 4999)
    assert "it has more than 0.0 GB" in refusal(archive)
    monkeypatch.setattr(download, "LARGEST", 5000)
    assert unpack(archive, archive.parent / "images_001") == 5


@pytest.mark.parametrize("damage", ["cut", "no archive", "cut inside"])
def test_damaged_archive_is_refused(archive, damage):
    pack(archive, member("images/a.png", os.urandom(50_000)), member("images/b.png"))
    content = archive.read_bytes()
    archive.write_bytes(
        {
            "cut": content[:-20_000],
            "no archive": gzip.compress(b"<html>" * 2000),
            "cut inside": gzip.compress(gzip.decompress(content)[:40_000]),
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


def test_full_disk_while_unpacking_ends_in_a_sentence(archive, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    pack(archive, IMAGE)
    monkeypatch.setattr(tarfile.TarFile, "extract", fail)
    with pytest.raises(UserError, match=r"cannot be unpacked to .* \(No space left on device\)"):
        unpack(archive, archive.parent / "images_001")
    assert not (archive.parent / "images_001").exists()
