import os

import pytest
from recorded import result_of

from pylon.prediction.journal import Journal, Result, fingerprint, has_results, opened
from pylon.system.errors import UserError
from pylon.viewer.page import file_of


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path, "ab")


def bad(image: str) -> Result:
    return Result(image, "1 1", "cannot be read")


def left(journal: Journal, images: list[str]) -> tuple[list[str], int]:
    return journal.start_run(images, "", lambda _: [])


def test_results_are_read_back_sorted(journal):
    journal.add([result_of("b"), result_of("a\n\udcff"), bad("bad")], 1, 0)
    journal.add([result_of("c", 1 / 3)], 1, 1)
    expected = [result_of("a\n\udcff"), result_of("b"), result_of("c", 1 / 3)]
    assert list(journal.results()) == expected


def test_a_batch_is_recorded_as_a_whole_or_not_at_all(journal, tmp_path):
    journal.add([result_of("a")], 1, 0)

    def stop_after_a_row() -> None:
        with opened(tmp_path / ".progress-ab-0.sqlite") as file:
            file.execute("INSERT INTO results SELECT x'62', run, fingerprint, result FROM results")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after_a_row()
    assert list(journal.results()) == [result_of("a")]


def test_full_disk(tmp_path):
    def fill() -> None:
        with opened(tmp_path / "full.sqlite") as file:
            file.execute("PRAGMA max_page_count = 4")
            file.execute("INSERT INTO results VALUES (x'00', 1, '', ?)", ["x" * 99999])

    full = r"full\.sqlite cannot be written \(database or disk is full\); free up space"
    with pytest.raises(UserError, match=full):
        fill()


@pytest.mark.parametrize("read", [has_results, lambda out: list(Journal(out, "ab").results())])
def test_damaged_file_is_named(tmp_path, read):
    (tmp_path / ".progress-ab-0.sqlite").write_bytes(b"mine" * 999)
    with pytest.raises(UserError, match=r"-0\.sqlite is damaged \(file is not a database\); del"):
        read(tmp_path)


def test_later_run_counts_whatever_the_process(journal):
    journal.add([result_of("a", 0.1)], 1, 1)
    journal.add([result_of("a", 0.2)], 2, 0)
    assert list(journal.results()) == [result_of("a", 0.2)]
    journal.add([result_of("a", 0.3)], 3, 1)
    assert list(journal.results()) == [result_of("a", 0.3)]


def test_results_of_another_origin_do_not_count(journal, tmp_path):
    Journal(tmp_path, "cd").add([result_of("a"), bad("b")], 1, 0)
    assert list(journal.results()) == []
    assert left(journal, ["a", "b"]) == (["a", "b"], 1)
    assert has_results(tmp_path)


def test_image_that_has_become_unreadable_has_no_result(journal):
    journal.add([result_of("a"), result_of("b"), bad("c")], 1, 0)
    journal.add([result_of("c"), bad("a")], 2, 0)
    assert [result.image for result in journal.results()] == ["b", "c"]
    assert left(journal, ["a", "d"]) == (["d", "a"], 3)


def test_images_left(journal, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "images" / name).write_text(name)
    known = {name: fingerprint(str(tmp_path / "images" / name)) for name in "abcd"}
    results = [result_of(name)._replace(fingerprint=file) for name, file in known.items()]
    journal.add([*results, bad("0")], 1, 0)
    (tmp_path / "overlays").mkdir()
    for name in ("a", "b", "d"):
        (tmp_path / f"overlays/{name}.png").write_text("")
    os.utime(tmp_path / "images/b", ns=(1, 1))
    given = (["0", "a", "b", "c", "d", "e"], str(tmp_path / "images"))
    # 0 could not be read, b has changed, c has no picture, e is new
    assert journal.start_run(*given, lambda _: ["overlays"]) == (["b", "c", "e", "0"], 2)
    assert journal.start_run(*given, lambda _: []) == (["b", "e", "0"], 2)


def test_names_of_files(tmp_path):
    assert file_of(tmp_path, "overlays", "a/x.tif") == tmp_path / "overlays/a/x.tif.png"
    long = file_of(tmp_path, "maps", "b/" + "é" * 125 + ".png")
    assert len(os.fsencode(long.name)) <= 240
    assert long != file_of(tmp_path, "maps", "b/" + "é" * 124 + "f.png")
    long.parent.mkdir(parents=True)
    long.with_name(f".{long.name}.partial").write_text("")  # the file system accepts it
