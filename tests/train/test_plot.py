"""The page of a score: written whole, by suffix; every plan is on it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as tree
from dataclasses import replace

import matplotlib
import pytest
from PIL import Image

from splitrt.errors import SplitrtError
from splitrt.train import Frames, score
from splitrt.train.plot import STYLE, check, draw, page
from tests.conftest import pictures


@pytest.fixture(scope="module")
def found(model_dir):
    return score(model_dir, pictures(40, seed=6))


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_png_and_an_svg_are_written_and_the_same_twice(found, tmp_path):
    for name in ("a.png", "b.PNG", "a.svg", "b.svg"):
        draw(found, tmp_path / name)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width > 1500
    assert tree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    for suffix in (".png", ".svg"):
        first, second = sorted(path for path in tmp_path.iterdir() if path.suffix.lower() == suffix)
        assert first.read_bytes() == second.read_bytes()


def test_every_plan_is_named_and_no_two_names_overlap(found):
    with matplotlib.rc_context(STYLE):
        figure = page(found)
        figure.canvas.draw()
    told = words(figure)
    for plan in found.plans:
        assert any(re.match(rf"{plan.name}\b", word) for word in told), plan.name
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for place, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])
    assert any("still within 1 point" in word for word in told) == bool(found.exit_curve.within)
    assert any(re.fullmatch(r"[\d.,]+–[\d.,]+ ms", word) for word in told)


def test_a_score_of_little_is_drawn_too(found, tmp_path):
    some = found.plans[:1]
    little = replace(
        found, plans=some, exit_curve=None, heads=[], baselines=[], labelled=False, whole=1.0
    )
    draw(little, tmp_path / "a.png")
    draw(replace(little, plans=[]), tmp_path / "b.png")
    silent = [plan for plan in found.plans if plan.bytes_mean == 0]
    draw(replace(found, plans=silent), tmp_path / "c.svg")


def test_many_plans_keep_their_names_apart(found):
    first = found.plans[0]
    plans = [
        replace(first, name=f"w{i}-q4", bytes_mean=40 * 1.25**i, accuracy=0.7 + 0.01 * i)
        for i in range(18)
    ]
    with matplotlib.rc_context(STYLE):
        figure = page(replace(found, plans=plans))
        figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for place, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])
    assert sum(word.startswith("w") for word in words(figure)) == 18


def test_a_wrong_name_is_told_before_anything_is_drawn(tmp_path):
    for name in ("a.jpg", "a", "a.pdf"):
        with pytest.raises(SplitrtError, match=r"\.png or \.svg\nhelp: name it a\.png"):
            check(tmp_path / name)
    with pytest.raises(SplitrtError, match="is no folder\nhelp: mkdir"):
        check(tmp_path / "none" / "a.png")


def test_without_labels_it_says_agreement(model_dir, tmp_path):
    found = score(model_dir, Frames(pictures(10, seed=7).images), plans=["q4"], baselines=False)
    with matplotlib.rc_context(STYLE):
        figure = page(found)
    assert "agreement" in {
        axes.get_ylabel().split()[0] for axes in figure.axes if axes.get_ylabel()
    }
