"""tools/download.py, as a user runs it, with a server on this machine in place of NIH's."""

import hashlib
import io
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import bad_server
import pytest
from bad_server import File
from conftest import IMAGES, run_script, sentence_of, start_script

import download
from pylon.system import cli

LISTS = tuple(name for name, *_ in download.LISTS)
ARCHIVES = tuple(f"images_{number:03}.tar.gz" for number in range(1, 13))
IN_FIRST = len(range(0, IMAGES, 12))  # images in the first archives
SCRIPT = "tools/download.py"


def pack(images):
    """A .tar.gz of image files, as NIH packs them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in images:
            archive.add(path, f"images/{path.name}")
    return packed.getvalue()


@pytest.fixture(scope="module")
def distributed(phantom):
    """Contents of the four lists and twelve archives, made of the phantom."""
    files = {name: (phantom / name).read_bytes() for name in LISTS[1:]}
    files[LISTS[0]] = (phantom / "Data_Entry_2017.csv").read_bytes()
    images = sorted((phantom / "images").iterdir())
    return files | {name: pack(images[k::12]) for k, name in enumerate(ARCHIVES)}


@pytest.fixture
def server(distributed, monkeypatch):
    """A server of these files."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with bad_server.running() as server:
        server.files |= {f"/{name}": File(content) for name, content in distributed.items()}
        yield server


@dataclass
class Served:
    """In the script's process: put files of a server in the place of NIH's, and do not pause."""

    sources: tuple[download.Source, ...]
    then: Callable[[], None] | None = None

    def __call__(self):
        time.sleep = lambda _: None
        start = cli.start

        def start_with_sources(main, *arguments):
            main.__globals__["NIH"] = self.sources
            start(main, *arguments)

        cli.start = start_with_sources
        if self.then is not None:
            self.then()


def sources_of(server, contents):
    return tuple(
        download.Source(
            name,
            server.url(f"/{name}"),
            len(contents[name]),
            hashlib.md5(contents[name]).hexdigest(),
        )
        for name in (*LISTS, *ARCHIVES)
    )


@pytest.fixture
def run(server, distributed, tmp_path):
    def run(*options, code=0, then=None):
        served = Served(sources_of(server, distributed), then)
        options = ("--out", "data", *options)
        return run_script(SCRIPT, *options, cwd=tmp_path, code=code, sabotage=served)

    return run


def asked(server):
    """The files that were asked for since the last time."""
    paths = [path[1:] for path, _ in server.asked]
    server.asked.clear()
    return paths


def unpacked(data):
    return {path.name: path.read_bytes() for path in data.glob("images_*/images/*")}


def test_download_is_complete_and_is_what_the_other_scripts_read(run, server, phantom, tmp_path):
    for file in server.files.values():
        file.cut = len(file.content) * 2 // 3
    done = run()
    assert done.stdout.splitlines()[0] == f"data/images_001: {IN_FIRST} images"
    assert done.stdout.endswith("complete; now run python tools/check_data.py --data data\n")
    assert asked(server) == [name for name in (*LISTS, *ARCHIVES) for _ in range(2)]
    data = tmp_path / "data"
    assert unpacked(data) == {path.name: path.read_bytes() for path in phantom.glob("images/*")}
    hidden = [path.name for path in data.iterdir() if path.name.startswith(".")]
    assert hidden == [".download.lock"]
    checked = run_script("tools/check_data.py", "--data", "data", cwd=tmp_path)
    assert checked.stdout.endswith("\nready\n")

    # nothing is left to do but to remove the archives
    assert run().stdout == done.stdout.splitlines(keepends=True)[-1]
    assert (data / ARCHIVES[0]).exists()
    run("--remove-archives")
    assert not list(data.glob("*.tar.gz"))
    assert len(unpacked(data)) == IMAGES
    assert asked(server) == []


def test_only_what_is_left_is_done(run, server, distributed, tmp_path):
    data = tmp_path / "data"
    (data / "images_001/images").mkdir(parents=True)
    (data / "Data_Entry_2017.csv").write_bytes(b"mine")
    (data / "test_list.txt").write_bytes(b"mine")
    (data / ARCHIVES[1]).write_bytes(distributed[ARCHIVES[1]])
    run("--remove-archives")
    assert asked(server) == ["BBox_List_2017.csv", "train_val_list.txt", *ARCHIVES[2:]]
    assert not list(data.glob("*.tar.gz"))
    assert (data / "test_list.txt").read_bytes() == b"mine"
    assert len(list(data.glob("images_002/images/*"))) == IN_FIRST


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_killed_download_goes_on(run, server, distributed, phantom, tmp_path, number, code):
    """Killed while the third archive arrives, and once more while it is unpacked."""
    third = server.files[f"/{ARCHIVES[2]}"]
    third.cut = len(third.content) // 2
    third.waits = True
    part = tmp_path / f"data/.{ARCHIVES[2]}.part"
    served = Served(sources_of(server, distributed))
    options = ("--out", "data")
    process = start_script(SCRIPT, *options, cwd=tmp_path, out=tmp_path, sabotage=served)
    while not (part.exists() and part.stat().st_size):
        assert process.is_alive()
        process.join(0.02)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    if number != signal.SIGKILL:
        said = (tmp_path / "stderr").read_text()
        assert said.endswith("stopped; the same command goes on where it stopped\n")
    size = part.stat().st_size
    assert size <= third.cut
    third.cut = None

    run(code=-9, then=die_in_unpacking)
    assert server.ranges()[-1] == f"bytes={size}-"
    asked(server)
    assert not (tmp_path / "data/images_003").exists()
    run()
    assert asked(server) == list(ARCHIVES[3:])
    images = unpacked(tmp_path / "data")
    assert images == {path.name: path.read_bytes() for path in phantom.glob("images/*")}
    assert not list(tmp_path.glob("data/.images*"))


def die_in_unpacking():
    extract = tarfile.TarFile.extract

    def extract_and_die(self, *args, **options):
        extract(self, *args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    tarfile.TarFile.extract = extract_and_die


def test_wrong_archive_is_named_and_the_others_kept(run, server, tmp_path):
    server.files[f"/{ARCHIVES[1]}"].content = server.files[f"/{ARCHIVES[0]}"].content
    said = sentence_of(run(code=2))
    assert "images_002.tar.gz.part is not the right file: it has " in said
    assert len(unpacked(tmp_path / "data")) == IN_FIRST
    assert not list(tmp_path.glob("data/images_002*"))


def no_room():
    usage = shutil.disk_usage("/")._replace(free=1_500_000_000)
    shutil.disk_usage = lambda _: usage


def test_room_is_asked_for_first(tmp_path):
    """With NIH's own table, and without a single request."""
    done = run_script(SCRIPT, cwd=tmp_path, code=2, sabotage=no_room)
    assert "data needs 90.2 GB more, but its disk has 1.5 GB free; free up" in sentence_of(done)


def test_other_images_are_not_mixed_with_nihs(phantom, tmp_path):
    done = run_script(SCRIPT, "--out", phantom, cwd=tmp_path, code=2)
    assert f"{phantom} has synthetic images; choose another folder" in sentence_of(done)
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/00000001_000.png").write_bytes(b"")
    done = run_script(SCRIPT, cwd=tmp_path, code=2)
    assert "data/images has images already, and each would be there twice" in sentence_of(done)


def test_two_downloads_to_one_folder_are_refused(run, server, distributed, tmp_path):
    first = server.files[f"/{LISTS[0]}"]
    first.cut = 600
    first.waits = True
    served = Served(sources_of(server, distributed))
    options = ("--out", "data")
    first_out = tmp_path / "first"
    first_out.mkdir()
    process = start_script(SCRIPT, *options, cwd=tmp_path, out=first_out, sabotage=served)
    while not server.asked:
        assert process.is_alive()
        process.join(0.02)
    said = sentence_of(run(code=2))
    process.kill()
    process.join()
    assert "another process downloads to data; wait until it ends" in said
