"""Referee: an XML parser, and places computed by hand from the size of the picture."""

import xml.etree.ElementTree as ElementTree

import pytest

from smolite.training.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_curves

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "T", "x_label": "epoch", "y_label": "nats"}


def drawn(curves, **labels):
    """The picture's curves as lists of points, without the grid; and the parsed picture."""
    root = ElementTree.fromstring(draw_curves(curves, **{**LABELS, **labels}))
    lines = [line for line in root.iter(f"{SVG}polyline") if line.get("stroke") != "#e5e7eb"]
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines], root


def test_points_stand_where_they_belong():
    (line,), root = drawn({"training": [(1, 4.0), (2, 3.0), (5, 2.0)]})
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    high, low = 2.0 + 2.0 * 1.05, 2.0 - 2.0 * 0.05
    for (x, y), (epoch, value) in zip(line, [(1, 4.0), (2, 3.0), (5, 2.0)], strict=True):
        assert x == pytest.approx(LEFT + (epoch - 1) / 4 * width, abs=0.06)
        assert y == pytest.approx(TOP + (high - value) / (high - low) * height, abs=0.06)
    assert line[0][1] < line[1][1] < line[2][1], "a lower value must stand lower in the picture"


def test_curves_share_one_scale_and_have_their_last_value_beside_them():
    (training, validation), root = drawn({"training": [(1, 4.0), (3, 1.0)], "validation": [(1, 3.0), (2, 4.0)]})
    assert training[0][1] == validation[1][1] and training[0][0] == validation[0][0]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"training 1.000", "validation 4.000", "T", "epoch", "nats"} <= set(texts)
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter(f"{SVG}circle")]
    assert dots == [training[-1], validation[-1]]


def test_the_axes_run_from_the_least_to_the_most():
    _, root = drawn({"training": [(10, 2.0), (20, 2.0)]})
    numbers = [float(text.text) for text in root.iter(f"{SVG}text") if text.text.replace(".", "").isdigit()]
    assert min(numbers) == 1.5 and {10, 12, 14, 16, 18, 20} <= set(numbers) and 2.5 in numbers


def test_a_single_epoch_is_a_dot_inside_the_picture():
    _, root = drawn({"training": [(1, 3.0)]})
    (dot,) = root.iter(f"{SVG}circle")
    assert LEFT <= float(dot.get("cx")) <= WIDTH - RIGHT and TOP <= float(dot.get("cy")) <= HEIGHT - BOTTOM


def test_names_may_hold_any_character():
    _, root = drawn({"<a> & 'b'": [(1, 1.0), (2, 2.0)]}, title="1 < 2 & 3")
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "1 < 2 & 3" in texts and "<a> & 'b' 2.000" in texts
