import re

import cv2
import numpy as np
import pytest

from pylon.drawing import (
    BAR,
    COLOURS,
    CONTOUR_COLOUR,
    GAP,
    PANEL,
    SHEET_COLUMN,
    SHEET_PANEL,
    SHEET_TITLE,
    TITLE,
    Panel,
    Row,
    colour_bar,
    contour_path,
    draw_page,
    draw_sheet,
    fit,
    font,
    overlay,
    shortened,
    title_of,
)


def test_overlay_of_a_hand_worked_example():
    image = np.full((2, 2), 100, np.uint8)
    out = overlay(image, np.array([[-3.0, 1.0], [1.0, 1.0]], np.float32))
    # JET goes from (0, 0, 128) to (128, 0, 0) in RGB; averaged with 100
    np.testing.assert_array_equal(out[0, 0], [50, 50, 114])
    np.testing.assert_array_equal(out[1, 1], [114, 50, 50])


def test_overlay_is_upsampled_to_the_image():
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[3, 0] = 1
    out = overlay(np.zeros((64, 32), np.uint8), heatmap).astype(int)
    assert out.shape == (64, 32, 3)
    row, column = np.unravel_index((out[..., 0] - out[..., 2]).argmax(), out.shape[:2])
    assert row >= 48
    assert column < 8


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_heatmap_is_drawn_in_the_lowest_colour(value):
    out = overlay(np.full((8, 8), 200, np.uint8), np.full((4, 4), value, np.float32))
    assert (out == out[0, 0]).all()
    assert out[0, 0, 2] > out[0, 0, 0]  # the lowest colour, blue


def test_contour_is_drawn_only_where_a_tiny_threshold_is_reached():
    image = np.full((8, 8), 90, np.uint8)
    heatmap = np.full((8, 8), 1e-9, np.float32)
    heatmap[2:4, 5:7] = 4e-7
    for threshold, is_drawn in ((3e-7, True), (4.0000002e-7, True), (4.1e-7, False), (9e-7, False)):
        picture = overlay(image, heatmap, "absolute", threshold)
        assert (picture == CONTOUR_COLOUR).all(axis=-1).any() == is_drawn


def test_page_has_images_boxes_and_titles():
    image = np.full((100, 100), 60, np.uint8)
    image[:, 50:] = 180
    heatmap = np.zeros((25, 25), np.float32)
    boxes = np.array([(20, 30, 20, 10), (40, 30, 20, 10), (0, 0, 0, 0)])  # two, side by side
    rows = [Row(f"{n}.png", image, heatmap, "Mass: 0.123", boxes) for n in range(3)]
    page = cv2.imdecode(np.frombuffer(draw_page(rows), np.uint8), cv2.IMREAD_COLOR)
    assert page.shape == (3 * (PANEL + TITLE + GAP) + GAP, 2 * PANEL + 3 * GAP, 3)
    for n in range(3):
        top = n * (PANEL + TITLE + GAP) + TITLE + GAP // 2
        left = page[top : top + PANEL, GAP : GAP + PANEL]
        assert abs(int(left[PANEL // 2, PANEL // 4, 0]) - 60) < 6
        assert abs(int(left[PANEL // 2, 3 * PANEL // 4, 0]) - 180) < 6
        right = page[top : top + PANEL, PANEL + 2 * GAP : 2 * PANEL + 2 * GAP].astype(int)
        green = right[..., 1] - right[..., [0, 2]].max(axis=2) > 80
        y, x = np.nonzero(green)
        assert abs(x.min() - 0.2 * PANEL) < 5
        assert abs(x.max() - 0.6 * PANEL) < 5
        assert abs(y.min() - 0.3 * PANEL) < 5
        assert abs(y.max() - 0.4 * PANEL) < 5
        title = page[top - TITLE : top, PANEL + 2 * GAP :]
        assert title.min() < 100  # there is text


@pytest.mark.parametrize("name", [r"$\frac{$.png", "a_b^c$.png", "$$"])
def test_names_are_not_parsed_as_formulas(name):
    image = np.zeros((20, 20), np.uint8)
    page = draw_page(
        [Row(name, image, np.zeros((5, 5), np.float32), name, np.array([(0, 0, 5, 5)]))]
    )
    # there is text
    assert cv2.imdecode(np.frombuffer(page, np.uint8), cv2.IMREAD_COLOR)[:TITLE].min() < 100


def test_absolute_scale_of_a_hand_worked_example():
    image = np.full((1, 2), 100, np.uint8)
    out = overlay(image, np.array([[0.0, 1.0]], np.float32), "absolute")
    np.testing.assert_array_equal(out[0, 0], [100, 100, 100])
    # inferno ends with (252, 255, 164) in RGB; three quarters of it and a quarter of 100
    np.testing.assert_array_equal(out[0, 1], [214, 216, 148])


def test_improbable_map_leaves_the_radiograph_as_it_is(rng):
    image = rng.integers(0, 256, (64, 48), dtype=np.uint8)
    heatmap = rng.uniform(0, 0.02, (16, 16)).astype(np.float32)
    heatmap[3, 3] = 0.02
    changed = overlay(image, heatmap, "absolute", threshold=0.03) - image[..., None].astype(float)
    assert 0 < np.abs(changed).max() <= 0.02 * 255
    assert (overlay(image, np.zeros_like(heatmap), "absolute") == image[..., None]).all()


def test_opacity_rises_with_the_probability():
    grey = np.full((1, 101), 90, np.uint8)
    out = overlay(grey, np.linspace(0, 1, 101, dtype=np.float32)[None], "absolute")
    distance = np.abs(out[0].astype(int) - 90).sum(axis=1)
    assert (np.diff(distance[::5]) > 0).all()


def test_colours_turn_back_into_probabilities():
    probabilities = np.linspace(0, 1, 2000, dtype=np.float32)
    colours = COLOURS[np.round(probabilities * 255).astype(int)].astype(int)
    nearest = np.abs(colours[:, None] - COLOURS[None].astype(int)).sum(axis=2).argmin(axis=1)
    assert np.abs(nearest / 255 - probabilities).max() <= 1 / 255
    # in the colour bar too, from top to bottom
    bar = colour_bar(512)[:, 0].astype(int)
    nearest = np.abs(bar[:, None] - COLOURS[None].astype(int)).sum(axis=2).argmin(axis=1)
    assert np.abs(nearest / 255 - np.linspace(1, 0, 512)).max() <= 1 / 255


def test_contour_is_drawn_where_the_threshold_is_reached():
    image = np.full((256, 256), 50, np.uint8)
    y, x = np.mgrid[:64, :64]
    heatmap = np.exp(-((x - 40) ** 2 + (y - 20) ** 2) / 100).astype(np.float32)
    out = overlay(image, heatmap, "absolute", threshold=0.5)
    y, x = np.nonzero((out == CONTOUR_COLOUR).all(axis=2))
    # radius sqrt(100 ln 2) = 8.3 of the map, 33 of the image, around (162, 82)
    radii = np.hypot(x - 161.5, y - 81.5)
    assert len(radii) > 100
    assert np.abs(radii - 33.3).max() < 3
    without = overlay(image, heatmap * 0.4, "absolute", threshold=0.5)
    assert not (without == CONTOUR_COLOUR).all(axis=2).any()
    # interpolation lowers this maximum, but the finding is called present
    peak = np.zeros((64, 64), np.float32)
    peak[30, 30] = 0.5
    out = overlay(image, peak, "absolute", threshold=0.5)
    y, x = np.nonzero((out == CONTOUR_COLOUR).all(axis=2))
    assert len(y) >= 8
    assert (out[y.min() + 2 : y.max() - 1, x.min() + 2 : x.max() - 1] != CONTOUR_COLOUR).any()
    inside = out[(y.min() + y.max()) // 2, (x.min() + x.max()) // 2]
    assert (inside != CONTOUR_COLOUR).any()  # the region itself is not hidden


def test_absolute_page_has_a_colour_bar_and_keeps_the_aspect():
    image = np.full((50, 100), 60, np.uint8)
    heatmap = np.ones((25, 25), np.float32)
    rows = [Row("a.png", image, heatmap, "Mass: 1.000", np.array([(0, 0, 100, 50)]))]
    page = cv2.imdecode(np.frombuffer(draw_page(rows, "absolute"), np.uint8), cv2.IMREAD_COLOR)
    assert page.shape[1] == 2 * PANEL + 3 * GAP + BAR
    column = page[TITLE + GAP // 2 :, GAP + PANEL // 2, 0]
    assert (np.abs(column[: PANEL // 2 - 8].astype(int) - 60) < 8).all()
    assert (column[PANEL // 2 + 8 :] > 240).all()  # white below the image
    right = page[TITLE + GAP // 2 :, PANEL + 2 * GAP : 2 * PANEL + 2 * GAP].astype(int)
    y, _ = np.nonzero(right[..., 1] - right[..., [0, 2]].max(axis=2) > 80)  # the green box
    assert abs(y.max() - PANEL // 2) < 5


@pytest.mark.parametrize(
    ("size", "shape"),
    [((256, 256), (512, 512)), ((4096, 2048), (512, 256)), ((20, 300), (34, 512))],
)
def test_sheet_has_titles_of_one_size_whatever_the_image(rng, size, shape):
    image = fit(rng.integers(0, 200, size, dtype=np.uint8), SHEET_PANEL, cv2.INTER_CUBIC)
    assert image.shape == shape
    picture = np.repeat(image[..., None], 3, axis=2)
    panels = [Panel(picture, "x" * 500, "second line")] * 6
    sheet = cv2.imdecode(np.frombuffer(draw_sheet(panels, True), np.uint8), cv2.IMREAD_COLOR)
    column = max(shape[1], SHEET_COLUMN) + GAP
    row = SHEET_TITLE + shape[0] + GAP
    assert sheet.shape[:2] == (2 * row + GAP, 4 * column + GAP + BAR)
    for k in range(6):
        top = k // 4 * row + GAP
        left = k % 4 * column + GAP
        title = sheet[top : top + SHEET_TITLE, left - GAP // 2 : left + column - GAP // 2, 0]
        assert title.min() < 50  # there is text, within its column
        assert (title[:, -GAP // 2 :] == 255).all()
        inside = sheet[top + SHEET_TITLE :, left:][: shape[0], : shape[1]]
        np.testing.assert_array_equal(inside, picture[..., ::-1])
    assert draw_sheet(panels[:1], False) != draw_sheet([Panel(picture, "", "")], False)


def test_long_names_lose_their_middle():
    short = shortened("a" * 200 + "\n" + "z" * 200, 300)
    assert re.fullmatch("a{5,} .. z{5,}", short)
    assert font().getlength(short) <= 300
    assert shortened("a\nb\tc", 300) == "a b c"


def test_title_says_what_is_not_called_present():
    assert title_of("Mass", 0.02, False) == "Mass: 0.020, not called present"
    assert title_of("Mass", 0.52, True) == title_of("Mass", 0.52, None) == "Mass: 0.520"


def test_contour_path_encloses_what_reaches_the_threshold():
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[2:4, 4:7] = 0.8  # rows 250 to 500, columns 500 to 875 of 1000
    path = contour_path(heatmap, 0.4)
    assert re.fullmatch(r"M(\d+ \d+ ?)+z", path)
    points = np.array(re.findall(r"(\d+) (\d+)", path), int)
    np.testing.assert_allclose(points.min(axis=0), (500, 250), atol=12)
    np.testing.assert_allclose(points.max(axis=0), (875, 500), atol=12)


def test_contour_path_of_several_regions_and_of_a_peak_that_interpolation_lowers():
    heatmap = np.zeros((64, 64), np.float32)
    heatmap[10, 10] = heatmap[50, 50] = 0.8
    assert contour_path(heatmap, 0.5).count("M") == 2
    assert contour_path(heatmap, 0.8).count("M") == 2
