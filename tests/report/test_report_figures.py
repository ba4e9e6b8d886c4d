"""Every figure is valid, safe, self-contained SVG, the same each time, and says why where it cannot be drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from document import make_document

from unlearnlab.report import Drawing, draw, write_figures

NAMES = ["trace", "accuracy", "margins", "cost", "least-forgotten"]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_document()


@pytest.fixture(scope="module")
def drawings(document: dict[str, Any]) -> list[Drawing]:
    return draw(document)


def words(drawing: Drawing) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(drawing.svg).iter("{http://www.w3.org/2000/svg}text")]


def test_all_are_drawn_the_same_bytes_twice_whatever_the_users_style(document: dict[str, Any], drawings: list[Drawing]) -> None:
    assert [one.name for one in drawings] == NAMES
    assert not any(one.missing for one in drawings)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert draw(document) == drawings
        assert matplotlib.rcParams["font.size"] == 30


def test_svg_is_valid_and_fit_for_a_strict_page(drawings: list[Drawing]) -> None:
    ids = []
    for one in drawings:
        root = ElementTree.fromstring(one.svg)
        assert root.tag.endswith("svg")
        ids += re.findall(r' id="([^"]+)"', one.svg)
        for node in root.iter():
            assert "style" not in node.attrib
            assert not node.tag.endswith(("style", "script", "metadata"))
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', one.svg)) <= set(ids)
        assert re.findall(r"https?://[^\"]+", one.svg) == ["http://www.w3.org/2000/svg"]
        assert "currentColor" in one.svg
    assert len(ids) == len(set(ids))


def test_figures_name_every_method_and_give_numbers_beyond_the_edge(document: dict[str, Any], drawings: list[Drawing]) -> None:
    by_name = {one.name: words(one) for one in drawings}
    methods = [row["method"] for row in document["rows"]]
    assert set(methods) <= set(by_name["trace"])
    assert set(methods) - {"original"} <= set(by_name["margins"])
    assert "−3.05" in by_name["trace"]
    assert "gradient_ascent (trace −3.05, 61 %)" in by_name["accuracy"]
    assert "gradient_ascent (−3.05)" in by_name["cost"]
    assert set(methods) - {"original", "gradient_ascent"} <= set(by_name["cost"])


def test_least_forgotten_images_are_ranked_by_the_share_of_the_gap_left(document: dict[str, Any], drawings: list[Drawing]) -> None:
    held = {name: np.array(values).mean(0) for name, values in document["forget"]["margins"].items()}
    left = (held["ssd"] - held["oracle"]) / (held["original"] - held["oracle"])
    found = [re.fullmatch(r"id (\d+): (−?\d+) % left", text) for text in words(drawings[-1])]
    shares = [(int(match[1]), int(match[2])) for match in found if match][8:]
    assert len(shares) == 8
    assert shares == sorted(shares, key=lambda pair: -pair[1])
    assert shares == [(one, round(100 * left[document["forget"]["ids"].index(one)])) for one, _ in shares]
    assert drawings[-1].svg.count("data:image/png;base64,") == 16


def test_overlapping_methods_get_labels_that_do_not_overlap(document: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from unlearnlab.report.canvas import STYLE
    from unlearnlab.report.figures import _accuracy

    with matplotlib.rc_context(STYLE):
        figure, _ = _accuracy(document)
        FigureCanvasAgg(figure).draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(document["rows"])
    assert not [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]


def test_what_cannot_be_drawn_says_why(document: dict[str, Any], tmp_path: Path) -> None:
    bare = {"title": "bare", "rows": [{"method": "x", "results": {}}]}
    assert [one.missing.split(":")[0] for one in draw(bare)] == ["not drawn"] * 5
    some = {**document, "forget": {}}
    assert [bool(one.missing) for one in draw(some)] == [False, False, True, False, True]
    paths = write_figures(draw(some), tmp_path / "figures")
    assert [path.name for path in paths] == ["trace.svg", "accuracy.svg", "cost.svg"]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    assert all(ElementTree.parse(path) for path in paths)


@pytest.mark.parametrize("change", ["one row without groups", "colour, hostile names, equal costs"])
def test_other_shapes_of_document(change: str) -> None:
    document, bad = make_document(1), "$\\bad$ </text><script>&"
    if change.startswith("one"):
        document["rows"] = [row for row in document["rows"] if row["method"] == "salun"]
        document["rows"][0]["results"] = {key: held for key, held in document["rows"][0]["results"].items() if not key.startswith("group.")}
        document["forget"]["true_labels"] = document["forget"]["labels"]
    else:
        document["forget"]["pixels"] = np.repeat(np.array(document["forget"]["pixels"])[:, None], 3, 1).tolist()
        document["forget"]["margins"][bad] = document["forget"]["margins"].pop(document["rows"][2]["method"])
        document["rows"][2]["method"] = bad
        for row in document["rows"]:
            row["results"]["cost.fraction"]["value"] = 0.5
    for one in draw(document):
        assert not one.missing
        assert "<script" not in one.svg
        assert (bad in words(one)) == (change.startswith("colour") and one.name != "least-forgotten")
