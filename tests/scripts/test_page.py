"""The pages of --html: written by the scripts, then used in a real browser, from the disk."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import NO_BROWSER, run_script, sentence_of

from pylon.drawing import overlay
from pylon.viewer.page import About, Finding, Pictured, write_page, write_pictures

DEVICE = ("--device", "cpu", "--num-workers", 0)
HOSTILE = "<img src=x onerror=alert(1)>.png"
ODD = "odd\udcff #?%41.png"


@pytest.fixture(scope="module")
def scored(trained, phantom) -> Path:
    """A folder in which eval_loc.py has written a page, in csv/pylon/html."""
    done = run_script("eval_loc.py", "--data", phantom, *DEVICE, "--html", cwd=trained)
    assert "the heatmaps of seed 0 are in csv/pylon/html/index.html" in done.stdout
    return trained


@pytest.fixture(scope="module")
def rows(scored) -> pd.DataFrame:
    """The rows of the page of eval_loc.py."""
    return pd.read_csv(scored / "csv/pylon/0_boxes.csv")


@pytest.fixture(scope="module")
def predicted(trained_once, phantom, tmp_path_factory) -> Path:
    """The page of predict.py, of images with strange names."""
    cwd = tmp_path_factory.mktemp("predicted")
    (cwd / "images").mkdir()
    files = sorted((phantom / "images").glob("*.png"))
    for path, name in zip(files, (HOSTILE, ODD, "plain.png"), strict=False):
        shutil.copy(path, cwd / "images" / name)
    best = trained_once / "save/pylon/0/best"
    command = ("predict.py", "images", "--checkpoint", best, "--out", "out", "--html")
    run_script(*command, *DEVICE, "--no-overlays", cwd=cwd)

    # the same command writes the pictures that are missing, and the same page
    page = contents(cwd / "out/html")
    (cwd / "out/html/heatmaps/plain.png.png").unlink()
    done = run_script(*command, *DEVICE, "--no-overlays", cwd=cwd)
    assert "3 images, 1 to predict" in done.stdout
    assert contents(cwd / "out/html") == page
    return cwd / "out/html"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_command(folder: Path) -> dict[str, bytes]:
    """The files of a page, without the command that made it."""
    files = contents(folder)
    lines = files["index.html"].split(b"\n")
    files["index.html"] = b"\n".join(line for line in lines if b'"command"' not in line)
    return files


def test_page_from_saved_heatmaps_is_the_same(scored, phantom):
    before = without_command(scored / "csv/pylon/html")
    options = ("--from", "csv/pylon", "--html", "--data", phantom)
    shutil.copytree(scored / "csv", scored / "again/csv")
    run_script("eval_loc.py", *options, cwd=scored / "again")
    assert without_command(scored / "again/csv/pylon/html") == before
    (scored / "again/csv/pylon/0_maps.npz").unlink()
    done = run_script("eval_loc.py", *options, cwd=scored / "again", code=2)
    assert "csv/pylon has no heatmaps of seed 0, which --html draws" in sentence_of(done)
    done = run_script("eval_loc.py", "--html", "--no-save-maps", cwd=scored, code=2)
    assert "leave out --no-save-maps" in sentence_of(done)


def test_page_of_other_data_is_refused(scored, phantom, tmp_path):
    shutil.copytree(phantom, tmp_path / "other")
    boxes = tmp_path / "other/BBox_List_2017.csv"
    boxes.write_text("\n".join(boxes.read_text().splitlines()[:-1]))
    options = ("--from", "csv/pylon", "--html", "--data", tmp_path / "other")
    done = run_script("eval_loc.py", *options, cwd=scored, code=2)
    assert "the rows in csv/pylon are not of" in sentence_of(done)


def test_generate_heatmap_writes_the_page_of_eval_loc(scored, phantom):
    run_script("generate_heatmap.py", "--data", phantom, *DEVICE, "--html", cwd=scored)
    assert without_command(scored / "figs/html") == without_command(scored / "csv/pylon/html")


Open = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        pytest.skip(NO_BROWSER)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@contextmanager
def opened(browser, folder: Path, address: str, width: int, scheme: str) -> Iterator:
    """A page, whose console must stay empty, and which must only request its own files."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    faults = []
    requests = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{(folder / 'index.html').as_uri()}{address}")
    yield page
    context.close()
    assert faults == []
    own = folder.as_uri()
    assert [url for url in requests if not url.startswith((own, "data:,"))] == []


@pytest.fixture
def visit(browser, scored) -> Iterator[Open]:
    """Opens the page of eval_loc.py, or that in `folder`."""
    with ExitStack() as stack:

        def visit(address="", folder=scored / "csv/pylon/html", width=1600, scheme="light"):
            return stack.enter_context(opened(browser, folder, address, width, scheme))

        yield visit


def ids(page) -> list[str]:
    """The rows that are shown, in their order."""
    return page.locator("#rows > li").evaluate_all("all => all.map(each => each.id)")


def ids_of(rows: pd.DataFrame) -> list[str]:
    return (rows["image_id"].str.removesuffix(".png") + "-" + rows["pathology"]).tolist()


def focused(page) -> str:
    return page.evaluate("document.activeElement.closest('li')?.id ?? document.activeElement.name")


def test_rows_are_filtered(visit, rows):
    page = visit()
    finding = rows["pathology"].value_counts().index[0]
    for label, choice, fit in (
        ("Called present", "called present", rows["called"] == 1),
        ("Called present", "not called present", rows["called"] == 0),
        ("Hit or miss", "hit", rows["hit"] >= 0.5),
        ("Hit or miss", "miss", rows["hit"] < 0.5),
        ("Finding", finding, rows["pathology"] == finding),
    ):
        control = page.get_by_role("combobox", name=label, exact=True)
        control.select_option(choice)
        assert sorted(ids(page)) == sorted(ids_of(rows[fit]))
        count = page.get_by_role("status").inner_text()
        assert count == f"{fit.sum()} of {len(rows)} rows"
        control.select_option("all")
    assert len(ids(page)) == len(rows)


def test_click_on_a_class_of_the_table_filters(visit, rows):
    page = visit()
    finding = rows["pathology"].iloc[0]
    button = page.get_by_role("button", name=finding, exact=True)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.get_by_role("combobox", name="Finding").input_value() == finding
    assert sorted(ids(page)) == sorted(ids_of(rows[rows["pathology"] == finding]))
    button.click()
    assert len(ids(page)) == len(rows)


def test_table_has_scores_with_intervals(visit, scored):
    table = pd.read_csv(scored / "csv/pylon/point_localization.csv", index_col="seed")
    page = visit()
    cells = page.locator("tbody tr").last.locator("th, td").all_inner_texts()
    low, high = table.loc[["0 low", "0 high"], "micro"]
    assert cells[0] == "all"
    assert cells[2:4] == [f"{table.loc['0', 'micro']:.3f}", f"{low:.3f} to {high:.3f}"]
    assert len(page.locator("tbody button").all()) == len(table.columns) - 1


def test_rows_are_sorted(visit, rows):
    page = visit()
    assert ids(page) == ids_of(rows.sort_values("probability", ascending=False))
    order = page.get_by_role("combobox", name="Order")
    order.select_option("lowest score")
    assert ids(page) == ids_of(rows.sort_values("probability"))
    order.select_option("by image")
    assert sorted(ids(page)) == sorted(ids_of(rows))
    images = [each.rpartition("-")[0] for each in ids(page)]
    assert len(set(images)) == 1 + sum(a != b for a, b in itertools.pairwise(images))


def picture(page, tmp_path) -> np.ndarray:
    """The first row's picture as the browser draws it, (H, W, 3) RGB."""
    shown = page.locator(".picture").first
    shown.scroll_into_view_if_needed()
    loaded = "all => all.every(each => each.complete && each.naturalWidth)"
    page.wait_for_function(
        f"({loaded})([...document.querySelector('.picture').querySelectorAll('img')])"
    )
    shown.screenshot(path=tmp_path / "picture.png")
    return cv2.imread(str(tmp_path / "picture.png"))[..., ::-1].astype(int)


@pytest.mark.parametrize("scale", ["absolute", "min-max"])
def test_browser_colours_a_map_as_the_pictures_do(visit, rows, scored, tmp_path, scale):
    page = visit()
    for name in ("Boxes", "Maximum", "Contour"):
        page.get_by_role("checkbox", name=name).uncheck()
    page.get_by_role("combobox", name="Colours").select_option(scale)
    shown = picture(page, tmp_path)

    # the same with OpenCV
    k = rows["probability"].argmax()
    with np.load(scored / "csv/pylon/0_maps.npz") as file:
        heatmap = file["maps"][k]
    file = scored / f"csv/pylon/html/radiographs/{rows['image_id'][k]}.jpg"
    radiograph = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    radiograph = cv2.resize(radiograph, shown.shape[1::-1])
    expected = overlay(radiograph, heatmap, "absolute" if scale == "absolute" else "minmax")
    inside = (slice(8, -8), slice(8, -8))  # the corners are round
    assert np.abs(shown - expected)[inside].mean() < 6
    assert np.abs(shown - radiograph[..., None])[inside].mean() > 6

    # the slider fades the map
    page.get_by_role("slider", name="Map").fill("0")
    assert np.abs(picture(page, tmp_path) - radiograph[..., None])[inside].mean() < 3
    page.get_by_role("slider", name="Map").fill("50")
    half = (expected.astype(int) + radiograph[..., None]) / 2
    assert np.abs(picture(page, tmp_path) - half)[inside].mean() < 6


def test_boxes_and_contour_are_drawn_and_left_out(visit, rows):
    page = visit()
    kinds = {"Boxes": ("known",), "Maximum": ("point",), "Contour": ("contour",)}
    # one row has two boxes
    assert page.locator("path.known").count() == len(rows) + 1
    assert page.locator("path.contour").count() == (rows["called"] == 1).sum() > 0
    row = rows.loc[rows["probability"].idxmax()]
    box = page.locator("path.known").first.evaluate(
        "path => { const box = path.getBBox(); return [box.x, box.y, box.width, box.height] }"
    )
    assert box == row[["bbox_x", "bbox_y", "bbox_w", "bbox_h"]].tolist()
    for name, classes in kinds.items():
        paths = [page.locator(f"path.{each}").first for each in classes]
        shown = "path => getComputedStyle(path).display !== 'none'"
        assert [path.evaluate(shown) for path in paths] == [True] * len(paths)
        page.get_by_role("checkbox", name=name).uncheck()
        assert [path.evaluate(shown) for path in paths] == [False] * len(paths)


def test_arrow_keys_go_from_row_to_row(visit):
    page = visit()
    names = ids(page)
    columns = page.locator("#rows").evaluate(
        "list => getComputedStyle(list).gridTemplateColumns.split(' ').length"
    )
    assert columns > 3
    page.keyboard.press("ArrowRight")
    for key, expected in (
        ("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0),
        ("ArrowUp", 0), ("End", len(names) - 1), ("ArrowRight", len(names) - 1), ("Home", 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert focused(page) == names[expected], key
        top, bottom = page.locator(":focus").evaluate(
            "link => { const row = link.getBoundingClientRect(); return [row.top, row.bottom] }"
        )
        assert 0 <= top < bottom <= 900


def test_keyboard_alone_is_enough(visit, rows):
    page = visit()

    def tab_to(name: str) -> None:
        for _ in range(60):
            if focused(page) == name:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {name}")

    tab_to("hit")
    page.keyboard.type("miss")
    assert len(ids(page)) == (rows["hit"] < 0.5).sum()
    tab_to("fade")
    page.keyboard.press("Home")
    opacity = page.locator(".map").first.evaluate("map => getComputedStyle(map).opacity")
    assert opacity == "0"
    tab_to("contour")
    page.keyboard.press("Space")
    assert page.locator("path.contour:visible").count() == 0
    page.keyboard.press("Tab")
    assert focused(page) == ids(page)[0]


def test_every_row_has_a_link(visit, rows):
    last = ids_of(rows.sort_values("probability"))[0]
    page = visit(f"#{last}")
    assert focused(page) == last
    assert page.locator(":focus").evaluate("link => link.getBoundingClientRect().bottom") <= 900
    first = ids(page)[0]
    page.locator("#rows a").first.click()
    assert page.url.endswith(f"#{first}")

    # a link to a row that a filter leaves out
    other = rows[rows["pathology"] != first.rpartition("-")[2]].iloc[0]
    finding = first.rpartition("-")[2]
    page.get_by_role("combobox", name="Finding").select_option(finding)
    target = ids_of(rows[rows.index == other.name])[0]
    page.evaluate(f"location.hash = '{target}'")
    page.wait_for_function(f"document.activeElement.closest('li')?.id === '{target}'")
    assert len(ids(page)) == len(rows)


def test_names_are_text(visit, predicted):
    stem = HOSTILE.removesuffix(".png")
    page = visit(f"#{quote(stem)}-Mass", predicted)
    assert focused(page) == f"{stem}-Mass"
    assert page.locator(":focus").inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0
    names = set(page.locator("#rows a").all_text_contents())
    assert names == {HOSTILE, os.fsencode(ODD).decode(errors="backslashreplace"), "plain.png"}

    # the pictures of all names are found
    for name in names:
        link = page.get_by_role("link", name=f"{name}, Mass", exact=True)
        link.click()
        page.wait_for_function(
            "[...document.activeElement.closest('li').querySelectorAll('img')]"
            ".every(each => each.naturalWidth)"
        )
    assert page.get_by_role("combobox", name="Hit or miss").count() == 0  # no boxes are known


def test_foot_says_where_the_page_comes_from(visit, scored):
    page = visit()
    foot = page.locator("footer").inner_text()
    about = pd.read_json(scored / "csv/pylon/0_boxes.json", typ="series")
    assert "Research use only" in foot
    assert about["weights_sha256"] in foot
    assert "python eval_loc.py --data" in foot
    assert "synthetic images" in page.locator("h1").inner_text()
    assert about["synthetic"] in page.locator("header").inner_text()


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_screen_and_its_scheme(visit, width, scheme):
    page = visit(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = page.locator("#rows > li").evaluate_all("all => all.map(each => each.offsetTop)")
    assert (tops[0] == tops[1]) == (width == 1600)
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (brightness(ground) < brightness(ink)) == (scheme == "dark")
    assert abs(brightness(ground) - brightness(ink)) > 150


def test_size_of_the_pictures(visit):
    page = visit(width=1600)
    widths = "all => all.slice(0, 2).map(each => each.offsetWidth)"
    before = page.locator("#rows .picture").evaluate_all(widths)
    page.get_by_label("Size").fill("48")
    after = page.locator("#rows .picture").evaluate_all(widths)
    assert min(after) > 2 * max(before)
    page.get_by_label("Size").fill("12")
    assert max(page.locator("#rows .picture").evaluate_all(widths)) < min(before)


def brightness(colour: str) -> float:
    """Mean of `rgb(1, 2, 3)`."""
    return np.mean([int(value) for value in colour[4:-1].split(",")])


def write(folder: Path, images: int, classes: int) -> Path:
    """A page of black images."""
    names = [f"{k}.png" for k in range(images)]
    labels = [f"finding {k}" for k in range(classes)]
    findings = [Finding(label, 0.5, None, None, None, (1, 2), [], None, "") for label in labels]
    heatmaps = np.zeros((classes, 8, 8), np.float32)
    for name in names:
        write_pictures(folder, name, np.zeros((32, 32), np.uint8), heatmaps)
    about = About(
        "black images",
        [],
        labels,
        pd.DataFrame(index=pd.Index([], name="finding")),
        False,
        "minmax",
        "ab",
    )
    write_page(folder, about, names, [Pictured(name, 32, 32, findings) for name in names])
    return folder


def test_images_load_as_they_come_into_view(visit, tmp_path):
    page = visit(folder=write(tmp_path, 40, 1), width=360)
    page.wait_for_load_state("load")
    first, *_, last = page.locator("#rows .radiograph").all()
    loaded = "image => image.naturalWidth > 0"
    assert [image.evaluate(loaded) for image in (first, last)] == [True, False]
    page.evaluate("document.querySelector('#rows').lastElementChild.scrollIntoView()")
    page.wait_for_function(f"({loaded})([...document.querySelectorAll('.radiograph')].at(-1))")


def test_many_rows_are_shown_in_parts(visit, tmp_path):
    page = visit(folder=write(tmp_path, 1, 1002))
    assert len(ids(page)) == 1000
    button = page.get_by_role("button", name="Show 2 of 2 more")
    button.click()
    assert len(ids(page)) == 1002
    assert focused(page) == "0-finding 1000"
    assert not button.is_visible()

    # a link leads to any of them
    page = visit(f"#{quote('0-finding 1001')}", tmp_path)
    assert focused(page) == "0-finding 1001"
    assert page.get_by_role("combobox", name="Colours").count() == 0  # no probabilities
