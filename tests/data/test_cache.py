import errno
import os
import pickle
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import IMAGES, start_script

import pylon.data.cache
from pylon.data.cache import ImageCache, open_cache
from pylon.data.chestxray14 import PATHOLOGIES
from pylon.data.dataset import RadiographDataset
from pylon.data.images import read_image
from pylon.data.sources import read_chestxray14
from pylon.data.transforms import eval_transform, train_transform
from pylon.system.errors import UserError
from pylon.system.files import locked


@pytest.fixture
def data(phantom, tmp_path):
    return shutil.copytree(phantom, tmp_path / "data")


@pytest.fixture
def images(data):
    return read_chestxray14(data).images


def decoded(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("decoding")]


def assert_holds(cache: ImageCache, images: pd.DataFrame) -> None:
    for image in images.itertuples():
        row = cache.rows_of([image.path])[0]
        expected = read_image(image.path)
        np.testing.assert_array_equal(cache.read(row), expected)
        assert cache.height_width[row].tolist() == list(expected.shape)


def test_size_zero_gives_no_cache(images, data):
    assert open_cache(images, data / "cache", 0, 0) is None
    assert not (data / "cache").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_within_the_size_are_cached_exactly(images, data, workers, capsys):
    cache = open_cache(images[:20], data / "cache", 128, workers)
    assert decoded(capsys) == [f"decoding 20 images into {data}/cache/128, 0.0 GB when complete"]
    assert (data / "cache/128/images.uint8").stat().st_size == 20 * 128 * 128
    assert_holds(cache, images[:20])
    for transform, keys in (
        (train_transform(256), [(3, 1), (4, 7)]),
        (eval_transform(256), [1, 7]),
    ):
        plain = RadiographDataset(images[:20], PATHOLOGIES, transform)
        cached = RadiographDataset(images[:20], PATHOLOGIES, transform, cache=cache)
        for key in keys:
            for name, value in plain[key].items():
                assert (value == cached[key][name]).all()


def test_rows_are_found_by_path_whatever_the_order(images, data):
    """A data set of other images, in another order, with one twice as wide as the others."""
    odd = images["path"][7]
    cv2.imwrite(odd, cv2.resize(read_image(odd), (128, 64)))
    cache = open_cache(images[:12], data / "cache", 128, 0)
    chosen = images.iloc[[9, 7, 2]]
    dataset = RadiographDataset(chosen, PATHOLOGIES, eval_transform(256), cache=cache)
    plain = RadiographDataset(chosen, PATHOLOGIES, eval_transform(256))
    for k in range(3):
        for name, value in plain[k].items():
            assert torch.equal(value, dataset[k][name]), name
    assert dataset[1]["height_width"].tolist() == [64, 128]


def test_larger_images_are_shrunk_by_area_and_keep_their_aspect_ratio(tmp_path, images, data, rng):
    pixels = rng.integers(0, 256, (100, 300), dtype=np.uint8)
    path = data / "images" / images["image_id"][0]
    cv2.imwrite(str(path), pixels)
    cache = open_cache(images[:2], data / "cache", 64, 0)
    expected = cv2.resize(pixels, (64, 21), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(cache.read(0), expected)
    assert cache.read(1).shape == (64, 48)
    item = RadiographDataset(images[:2], PATHOLOGIES, eval_transform(256), cache=cache)[0]
    assert item["height_width"].tolist() == [100, 300]


def test_map_may_be_larger_than_memory(images, data):
    cache = open_cache(images[:2], data / "cache", 128, 0)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.truncate(cache.path, 4 * memory // 128**2 * 128**2)  # a sparse file
    assert_holds(cache, images[:2])


def test_only_new_or_changed_images_are_decoded(images, data, capsys):
    open_cache(images[:10], data / "cache", 128, 0)
    open_cache(images[4:12], data / "cache", 128, 0)
    open_cache(images[:12], data / "cache", 128, 0)
    assert [line[:18] for line in decoded(capsys)] == ["decoding 10 images", "decoding 2 images "]
    shutil.copy(images["path"][20], images["path"][3])
    (data / "images" / images["image_id"][5]).touch()
    cache = open_cache(images[:13], data / "cache", 128, 0)
    assert [line[:18] for line in decoded(capsys)] == ["decoding 3 images "]
    assert_holds(cache, images[:13])
    np.testing.assert_array_equal(cache.read(3), read_image(images["path"][20]))
    open_cache(images[:13], data / "cache", 128, 0)
    assert decoded(capsys) == []
    # changed within the time that the file system tells apart, or read by other code
    path = Path(images["path"][6])
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_cache(images[:13], data / "cache", 128, 0)
    assert [line[:18] for line in decoded(capsys)] == ["decoding 1 images "]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pylon.data.cache, "READING", "otherwise")
        open_cache(images[:13], data / "cache", 128, 0)
        assert [line[:18] for line in decoded(capsys)] == ["decoding 13 images"]
    open_cache(images[:13], data / "cache", 64, 0)  # another size is another cache
    assert [line[:18] for line in decoded(capsys)] == ["decoding 13 images"]


def test_pickled_cache_does_not_contain_the_map(images, data):
    cache = open_cache(images, data / "cache", 128, 0)
    cache.read(0)
    sent = pickle.dumps(cache)
    assert len(sent) < 10 * 128 * 128  # the map of all images is five times as large
    again = pickle.loads(sent)
    assert_holds(again, images[:3])


def test_cache_of_a_killed_process_is_completed(images, data, tmp_path, capsys):
    process = start_script("tests/data/fill_slowly.py", data, cwd=tmp_path, out=tmp_path)
    index = data / "cache/128/index.csv"
    while not index.exists() and process.is_alive():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    there = len(pd.read_csv(index))
    assert 0 < there < IMAGES
    cache = open_cache(images, data / "cache", 128, 0)
    assert decoded(capsys)[0].startswith(f"decoding {IMAGES - there} images")
    assert_holds(cache, images)


def test_rows_are_flushed_before_the_index_lists_them(images, data, monkeypatch):
    events = []
    open_map = pylon.data.cache.open_map
    write = pylon.data.cache.write_atomically

    def watched_map(path, size, mode):
        store = open_map(path, size, mode)
        store.flush = lambda: (events.append("rows"), np.memmap.flush(store))
        return store

    monkeypatch.setattr(pylon.data.cache, "open_map", watched_map)
    monkeypatch.setattr(
        pylon.data.cache, "write_atomically", lambda *args: (events.append("index"), write(*args))
    )
    monkeypatch.setattr(pylon.data.cache, "SECONDS_BETWEEN_COMMITS", 0)
    open_cache(images[:40], data / "cache", 128, 0)
    assert events == ["rows", "index"] * 3


def test_two_processes_fill_a_cache_once(images, data, tmp_path):
    outs = [tmp_path / name for name in ("one", "other")]
    with locked(data / "cache/128", print):
        processes = []
        for out in outs:
            out.mkdir()
            processes.append(start_script("tests/data/fill_slowly.py", data, cwd=tmp_path, out=out))
        for process, out in zip(processes, outs, strict=True):
            while not (out / "stdout").exists() or not (out / "stdout").read_text().endswith("\n"):
                assert process.is_alive()
                process.join(0.02)
            assert (out / "stdout").read_text().startswith("waiting for another process")
        assert not (data / "cache/128/index.csv").exists()
    for process in processes:
        process.join()
    said = "".join((out / "stdout").read_text() for out in outs)
    assert [process.exitcode for process in processes] == [0, 0]
    assert said.count(f"decoding {IMAGES} images") == said.count("decoding") == 1
    assert_holds(ImageCache(data / "cache/128", 128), images)


def test_complete_cache_needs_no_lock(images, data, capsys):
    open_cache(images, data / "cache", 128, 0)
    (data / "cache/128/lock").unlink()
    (data / "cache/128/lock").mkdir()  # cannot be opened as a file
    assert_holds(open_cache(images, data / "cache", 128, 0), images[:2])
    (data / "images" / images["image_id"][5]).touch()
    with pytest.raises(UserError, match=r"cache/128 cannot be written and locked"):
        open_cache(images, data / "cache", 128, 0)


def test_file_systems_without_fallocate(images, data, monkeypatch):
    def refuse(number):
        def fallocate(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)

    refuse(errno.ENOSPC)
    with pytest.raises(
        UserError, match=r"images.uint8 cannot be extended to 0.0 GB \(No space left on device\)"
    ):
        open_cache(images[:9], data / "cache", 128, 0)
    refuse(errno.EOPNOTSUPP)
    assert_holds(open_cache(images[:9], data / "cache", 128, 0), images[:9])


def test_unreadable_image_is_named(images, data):
    (data / "images" / images["image_id"][4]).write_bytes(b"")
    with pytest.raises(UserError, match=f"{images['image_id'][4]} cannot be read as an image"):
        open_cache(images[:8], data / "cache", 128, 1)


def test_removed_or_truncated_files_are_rebuilt(images, data, capsys):
    open_cache(images[:8], data / "cache", 128, 0)
    (data / "cache/128/images.uint8").unlink()
    assert_holds(open_cache(images[:8], data / "cache", 128, 0), images[:8])
    with open(data / "cache/128/images.uint8", "r+b") as file:  # a partial copy
        file.truncate(3 * 128 * 128 + 5)
    assert_holds(open_cache(images[:2], data / "cache", 128, 0), images[:2])
    assert_holds(open_cache(images[:8], data / "cache", 128, 0), images[:8])
    assert len(decoded(capsys)) == 3
    (data / "cache/128/index.csv").write_text("something,else\n1,2\n")
    with pytest.raises(UserError, match=r"index.csv is damaged; when no run uses"):
        open_cache(images[:8], data / "cache", 128, 0)


def test_too_little_disk_space(images, data, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(
        pylon.data.cache.shutil, "disk_usage", lambda _: usage(IMAGES * 128 * 128 - 1)
    )
    with pytest.raises(
        UserError, match=r"images.uint8 needs 0.0 GB more, but 0.0 GB are left; free up space"
    ):
        open_cache(images, data / "cache", 128, 0)


def test_unwritable_folder(images, data):
    (data / "cache").touch()
    with pytest.raises(UserError, match=r"cache/128 cannot be written and locked .*--cache-size 0"):
        open_cache(images, data / "cache", 128, 0)
