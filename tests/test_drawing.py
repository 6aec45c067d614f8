import cv2
import numpy as np
import pytest

from pylon.drawing import GAP, PANEL, TITLE, Row, draw_page, overlay


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
