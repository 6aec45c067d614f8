"""tools/download.py: transfers from servers that fail or lie, and its reading of files.

tests/scripts/test_downloading.py runs the whole script.
"""

import hashlib
import json
import random
import ssl

import bad_server
import pytest
from bad_server import File

import download
import untrusted
from download import fetch, read_links, read_record, require_room
from pylon.system.errors import UserError
from untrusted import Source

NAME = "images_001.tar.gz"
CONTENT = b"\x1f\x8b" + random.Random(0).randbytes(300_000)
SIZE = len(CONTENT)
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
        self.out = out
        self.pauses = []
        self.recorded = {}

    def __call__(self, file=None, size=SIZE, digest=MD5, path="/a", name=NAME):
        if file is not None:
            self.server.files[path] = file
        source = Source(name, self.server.url(path), size, digest)
        fetch(source, self.out, self.recorded, self.pauses.append)
        return (self.out / name).read_bytes()

    def refusal(self, *args, **options):
        with pytest.raises(UserError) as refused:
            self(*args, **options)
        assert not (self.out / NAME).exists()
        sentence = str(refused.value)
        assert NAME in sentence
        assert "\n" not in sentence
        assert "https://nihcc.app.box.com/v/ChestXray-NIHCC" in sentence
        return sentence


@pytest.fixture
def get(server, tmp_path):
    return Fetch(server, tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("etag", ['"1"', ""])
def test_twenty_broken_transfers_give_the_same_bytes(get, server, tmp_path, etag):
    cut = len(CONTENT) // 20 - 1
    assert get(File(CONTENT, cut=cut, etag=etag)) == CONTENT
    assert server.ranges() == [None, *(f"bytes={k * cut}-" for k in range(1, 21))]
    tags = [headers.get("If-Range") for _, headers in server.asked]
    assert tags == [None, *[etag or None] * 20]
    assert get.pauses == [1] * 20
    assert names(tmp_path) == ["downloads.json", NAME]
    record = {"url": server.url("/a"), "size": len(CONTENT), "hash": MD5}
    assert json.loads((tmp_path / "downloads.json").read_text()) == {NAME: record}


def test_server_that_ignores_ranges_starts_over(get, server):
    file = File(CONTENT, cut=200_000, ranges=False)
    server.files["/a"] = file
    pauses = iter([lambda: None, lambda: setattr(file, "cut", None)])
    source = Source(NAME, server.url("/a"), len(CONTENT), MD5)
    fetch(source, get.out, {}, lambda _: next(pauses)())
    assert (get.out / NAME).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=200000-", "bytes=200000-"]


@pytest.mark.parametrize("ignores_condition", [False, True])
def test_file_that_changes_in_between_is_not_mixed(get, server, ignores_condition):
    """With an ETag, the new file is received from its beginning, even from a bad server."""
    new = b"\x1f\x8b" + random.Random(1).randbytes(250_000)
    file = File(CONTENT, cut=100_000)
    server.files["/a"] = file

    def change(_):
        file.content = new
        file.cut = None
        if ignores_condition and file.etag == '"1"':
            # the part comes with the ETag of the new file, although the old one was asked for
            file.headers = {"ETag": '"2"'}
        else:
            file.etag = '"2"'

    fetch(Source(NAME, server.url("/a")), get.out, {}, change)
    assert (get.out / NAME).read_bytes() == new


def test_without_etag_and_hash_a_transfer_starts_over(get, server):
    file = File(CONTENT, cut=100_000, etag="")
    server.files["/a"] = file
    fetch(Source(NAME, server.url("/a")), get.out, {}, lambda _: setattr(file, "cut", None))
    assert server.ranges() == [None, None]
    assert (get.out / NAME).read_bytes() == CONTENT


def test_connection_that_makes_no_progress_ends_in_a_sentence(get, server, tmp_path):
    said = get.refusal(File(CONTENT, cut=100_000, ranges=False))
    assert "failed 8 times in a row" in said
    assert "the connection was closed after 100,000 of 300,002 bytes" in said
    assert "it goes on where it stopped" in said
    assert get.pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert sum(get.pauses) == pytest.approx(180, abs=5)  # as docs/chestxray14.md says
    assert get(File(CONTENT)) == CONTENT
    assert server.ranges()[-1] == "bytes=100000-"


def test_no_server_ends_in_a_sentence(get):
    with bad_server.running() as gone:
        url = gone.url("/a")
    with pytest.raises(UserError, match=r"failed 8 times in a row, .*Connection refused"):
        fetch(Source(NAME, url, 10, MD5), get.out, {}, get.pauses.append)


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_length_that_is_too_large_counts_as_broken(get, server, size):
    file = File(CONTENT, headers={"Content-Length": len(CONTENT) + 10})
    if size is not None:
        assert "has 300,012 bytes at" in get.refusal(file, size=size)
        return
    assert "closed after 300,002 of 300,012 bytes" in get.refusal(file, size=None)


def test_length_that_is_too_small_is_noticed(get):
    short = File(CONTENT, headers={"Content-Length": len(CONTENT) - 10})
    assert "has 299,992 bytes at" in get.refusal(short)
    assert f"its hash is {hashlib.md5(CONTENT[:-10]).hexdigest()}" in get.refusal(short, size=None)


def test_more_bytes_than_known_are_refused(get, monkeypatch):
    endless = File(CONTENT + b"more", headers={"Content-Length": ""})
    assert "sends more than" in get.refusal(endless)
    monkeypatch.setattr(untrusted, "LARGEST_ARCHIVE", 100_000)
    endless.etag = '"2"'
    assert "which is too much" in get.refusal(endless, size=None, digest="")
    large = File(CONTENT, etag='"3"')
    assert "has 300,002 bytes at" in get.refusal(large, size=None)


def test_without_length_the_known_size_counts(get, server):
    file = File(CONTENT, cut=200_000, headers={"Content-Length": ""})
    assert get(file) == CONTENT
    assert server.ranges() == [None, "bytes=200000-"]


@pytest.mark.parametrize(
    "range_", ["bytes 0-300001/300002", "bytes 99999-300001/300002", "100000-", "bytes 100000-1/*"]
)
def test_another_part_than_was_asked_for_starts_over(get, server, range_):
    file = File(CONTENT, cut=100_000)
    server.files["/a"] = file

    def lie(_):
        file.cut = None
        file.headers = {} if file.headers else {"Content-Range": range_}

    source = Source(NAME, server.url("/a"), len(CONTENT), MD5)
    fetch(source, get.out, {}, lie)
    assert (get.out / NAME).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-", None]


def test_part_that_is_longer_than_the_file_starts_over(get, server, tmp_path):
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT + b"more")
    assert get(File(CONTENT)) == CONTENT
    assert server.ranges() == ["bytes=300006-", None]


def test_complete_part_is_only_checked(get, server, tmp_path):
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT)
    assert get(File(CONTENT)) == CONTENT
    assert server.asked == []


def test_redirects_are_followed_with_the_range(get, server):
    server.files["/b"] = File(CONTENT, cut=200_000)
    assert get(File(b"", headers={"Location": server.url("/b")})) == CONTENT
    assert [path for path, _ in server.asked] == ["/a", "/b"] * 2
    assert server.ranges() == [None, None, "bytes=200000-", "bytes=200000-"]


@pytest.mark.parametrize(
    ("where", "said"),
    [("file:///etc/passwd", "302"), ("ftp://127.0.0.1/a", "is not followed"), ("/a", "302")],
)
def test_other_redirects_are_refused(get, where, said):
    assert said in get.refusal(File(b"", headers={"Location": where}))
    assert get.pauses == []


def test_redirect_from_https_to_http_is_refused():
    request = untrusted.urllib.request.Request("https://a.org/a")
    with pytest.raises(OSError, match=r"a redirect to http://a.org/a, which is not followed"):
        untrusted.Redirects().redirect_request(request, None, 302, "", {}, "http://a.org/a")


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_is_refused(get, kind):
    page = File(b"\n<!DOCTYPE html><p>Sign in", headers={"Content-Type": kind})
    assert "sent a web page instead of the file" in get.refusal(page, size=None)
    assert get.pauses == []


def test_web_page_instead_of_a_list_is_refused(get, server):
    server.files["/a"] = File(b"<html>")
    with pytest.raises(UserError, match=r"^test_list.txt: .* sent a web page instead of the file"):
        get(name="test_list.txt", size=None, digest="")


def test_other_file_than_an_archive_is_refused(get):
    assert "sent something else instead" in get.refusal(File(b"PK\x03\x04 and so on"), size=None)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_missing_file_is_not_asked_for_again(get, code):
    assert f"answers {code} " in get.refusal(File(CONTENT, codes=[code]))
    assert get.pauses == []


def test_busy_server_is_asked_again(get):
    assert get(File(CONTENT, codes=[503, 429, 500])) == CONTENT
    assert get.pauses == [2, 4, 8]


def test_wrong_hash_is_removed(get, server, tmp_path):
    said = get.refusal(File(CONTENT), digest="0" * 64)
    assert f"its hash is {SHA256}, not {'0' * 64} as expected" in said
    assert names(tmp_path) == [f".{NAME}.part.json"]
    assert get(File(CONTENT), digest=SHA256) == CONTENT
    assert server.ranges() == [None, None]


def test_unknown_hash_is_recorded_and_then_checked(get, server, tmp_path):
    assert get(File(CONTENT), size=None, digest="") == CONTENT
    record = read_record(tmp_path / "downloads.json")
    assert record[NAME]["hash"] == SHA256
    (tmp_path / NAME).unlink()
    other = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    said = get.refusal(File(other), size=None, digest="")
    assert f"not {SHA256} as recorded in downloads.json" in said


def test_file_that_is_there_is_checked_and_kept(get, server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    assert get() == CONTENT
    for content in (CONTENT[:-1], CONTENT[:-1] + b"?"):
        (tmp_path / NAME).write_bytes(content)
        with pytest.raises(UserError, match=r"images_001.tar.gz is not the right file: .*remove"):
            get()
        assert (tmp_path / NAME).read_bytes() == content
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
        source = Source(NAME, server.url("/a").replace("http:", "https:"), len(CONTENT), MD5)
        with pytest.raises(UserError, match=r"cannot be verified \(self.signed certificate\)"):
            fetch(source, tmp_path, {}, get.pauses.append)
        assert get.pauses == []
        assert server.asked == []


def test_full_disk_ends_in_a_sentence(get, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, _):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def full(*args):
        return Full(open(*args))

    monkeypatch.setattr(untrusted, "open", full, raising=False)
    assert "cannot be written (No space left on device)" in get.refusal(File(CONTENT))


def test_nih_table_is_complete():
    archives = [source for source in download.NIH if source.name.endswith(".gz")]
    assert [source.name for source in archives] == [f"images_{k:03}.tar.gz" for k in range(1, 13)]
    assert sum(source.size for source in archives) == 45_079_862_784
    assert len({source.url for source in download.NIH}) == 16
    assert len({source.digest for source in download.NIH}) == 16
    assert all(source.url.startswith("https://nihcc.") for source in download.NIH)


def test_hashes_of_lists_are_those_of_nih(official):
    """The reference files are copies in another order and with another header."""
    known = {source.name: source.digest for source in download.NIH}
    for name in ("train_val_list.txt", "test_list.txt"):
        lines = sorted((official / name).read_bytes().split())
        assert hashlib.sha256(b"\n".join(lines)).hexdigest() == known[name]
    labels = (official / "Data_Entry_2017_v2020.csv").read_bytes()
    labels = labels.replace(b"Patient Gender", b"Patient Sex")
    assert hashlib.sha256(labels).hexdigest() == known["Data_Entry_2017_v2020.csv"]
    boxes = (official / "BBox_List_2017.csv").read_bytes()
    assert hashlib.sha256(boxes).hexdigest() == known["BBox_List_2017.csv"]


def test_links_replace_those_of_nih(tmp_path):
    path = tmp_path / "links.csv"
    url = "http://127.0.0.1/a?b=c"
    path.write_text(f"name,url,size,hash\n{NAME},{url},5,{'A' * 32}\ntest_list.txt,{url},,\n")
    sources = {source.name: source for source in read_links(path)}
    assert sources[NAME] == Source(NAME, url, 5, "a" * 32)
    assert sources["test_list.txt"] == Source("test_list.txt", url)
    replaced = ("test_list.txt", NAME)
    assert list(sources) == [source.name for source in download.NIH]
    assert all(sources[each.name] == each for each in download.NIH if each.name not in replaced)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("images_013.tar.gz,http://a", "'images_013.tar.gz' is not one of Data_Entry"),
        (f"{NAME},ftp://a", "url 'ftp://a' is not a link"),
        (f"{NAME},http://a b", "url 'http://a b' is not a link"),
        (f"{NAME}", "url '' is not a link"),
        (f"{NAME},http://a,4.2", "size '4.2' is not a number of bytes"),
        (f"{NAME},http://a,4,abc", "hash 'abc' is neither MD5 nor SHA-256"),
    ],
)
def test_wrong_row_is_named(tmp_path, row, said):
    path = tmp_path / "links.csv"
    path.write_text(f"name,url,size,hash\n\n{row}\n")
    with pytest.raises(UserError, match=r"links.csv, line 3: ") as refused:
        read_links(path)
    assert said in str(refused.value)


def test_links_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"links.csv cannot be read as a csv file"):
        read_links(tmp_path / "links.csv")
    (tmp_path / "links.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"links.csv cannot be read as a csv file"):
        read_links(tmp_path / "links.csv")
    (tmp_path / "links.csv").write_text("file,link\na,b\n")
    with pytest.raises(UserError, match=r"links.csv has no column 'name'"):
        read_links(tmp_path / "links.csv")


def test_damaged_record_is_named(tmp_path):
    path = tmp_path / "downloads.json"
    assert read_record(path) == {}
    for content in (b"{", b"[1]", b'{"a": 1}', b'{"a": {}}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"downloads.json is damaged; remove it"):
            read_record(path)


def room(monkeypatch, free):
    usage = download.shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)


def test_room_is_that_of_what_is_left(tmp_path, monkeypatch):
    """Two archives of 4 GB, of the first 1 GB is there; the third is unpacked."""
    archives = [Source(f"images_00{k}.tar.gz", "", 4_000_000_000) for k in (1, 2, 3)]
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
    archives = [source for source in download.NIH if source.name.endswith(".gz")]
    for remove, gigabytes in ((False, "90.2"), (True, "48.0")):
        with pytest.raises(UserError, match=f"needs {gigabytes} GB more"):
            require_room(tmp_path, archives, remove)
