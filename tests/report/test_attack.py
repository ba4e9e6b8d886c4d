"""What an audit from logits alone shows: tables, files, figures and a page that hold the document's numbers and nothing else."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from unlearnlab.attacking import BASELINE
from unlearnlab.report.attack import print_attack, render, sheets, write_attack
from unlearnlab.report.attack_figures import draw
from unlearnlab.report.page import fill

DELTAS = [0.0, 0.05, 0.1]
PUBLISHED, CROSSFIT = "eps.published.forget", "eps.crossfit_delta0.05.forget"


def result(key: str, value: float | None, half: float = 0.01, **more: Any) -> dict[str, Any]:
    ci = None if value is None else {"lo": value - half, "hi": value + half, "level": 0.95, "method": "jackknife"}
    empty: dict[str, Any] = {"better": "lower", "perfect": None, "ci": ci, "floor": None, "ceiling": None, "rescaled": None, "rescaled_ci": None, "p": None}
    empty |= {"n_models": [80, 80, 0], "n_examples": 4, "dropped": [], "notes": [], "extra": {}, "per_example": None, "per_model": None, "missing": None}
    return {"key": key, "value": value, **empty, **more}


def row(name: str, eps: float | None, at: float, **more: Any) -> dict[str, Any]:
    floors = {"floor": {"mean": 0.87, "sd": 0.1, "splits": 20, "note": ""}}
    cap = {"certified": 0.625, "most_certifiable": 3.0, "cap": 5.03, "value_at_floor_n": at + 0.11}
    made = [
        result(PUBLISHED, eps, extra={"value_at_floor_n": at + 1}, **floors),
        result(CROSSFIT, at, extra=cap, floor={"mean": 0.021, "sd": 0.0, "splits": 20, "note": ""}),
        result("klom.smooth.forget", 0.4321, floor={"mean": 0.106, "sd": None, "splits": 1, "note": ""}),
        result("klom.gauss.forget", 0.2468, extra={"value_at_floor_n": 0.2777}, floor={"mean": 0.0511, "sd": 0.0, "splits": 20, "note": ""}),
        result("energy", 0.01234, floor={"mean": 0.0, "sd": 0.0, "splits": 20, "note": ""}),
        result("tow", None, missing="not computed: there are no retain examples"),
    ]
    held = {"method": name, "models": [80, 80], "half": 40, "calibration": False, "identical": False, "broken": ""}
    return {**held, "results": {one["key"]: one for one in made}, "p": None, "holm_p": None, "verdict": None, **more}


def seen(median: Any, crossfit: list[float] | None) -> dict[str, Any]:
    return {"published": [0.5, "inf", "nan", 1.0], "median": median, "infinite": 1, "undefined": 1, "crossfit": crossfit}


def make_document() -> dict[str, Any]:
    accuracy = {"mean": 0.9123, "ci": {"lo": 0.91, "hi": 0.914, "level": 0.95, "method": "t"}, "n": 80}
    margins = {
        "edges": [-2.0, -1.0, 0.0, 1.0],
        "oracles": [0.2, 0.5, 0.3],
        "unlearned": [0.1, 0.2, 0.7],
        "examples": [{"which": which, "id": at, "oracles": [0.1, 0.5, 0.9], "unlearned": [1.0, 1.5, 2.0]} for at, which in enumerate(("furthest", "middle"))],
    }
    same = row("copy", None, 0.0, identical=True, broken="its logits are the oracles' own")
    same["results"] = {PUBLISHED: result(PUBLISHED, None, missing="not computed: the median is NaN")}
    return {
        "title": "Audit of <logits>",
        "created": "2026-01-01 00:00 UTC",
        "path": "/tmp/<logits>",
        "layout": "fwp",
        "delta": 0.05,
        "originals": {"said": "", "independent": False, "words": "how many is not known: no p and no verdict"},
        "models": {"oracles": 80, "originals": 0},
        "data": {"forget": 4},
        "classes": 10,
        "keys": {"published": PUBLISHED, "crossfit": CROSSFIT},
        "rows": [row("fine<tune>", 1.234, 0.7461), row("leaky", None, 4.9), same],
        "baseline": row(BASELINE, None, 0.0, models=[40, 40], calibration=True),
        "accuracies": [
            {"method": "oracles", "logged": {"retain": accuracy, "forget": accuracy}, "logits": {"forget": accuracy}},
            {"method": "fine<tune>", "logged": {}, "logits": {"forget": {**accuracy, "mean": 0.8642}}},
        ],
        "warnings": ["fine<tune>: forget accuracy is 91.2 % in metrics.csv and 86.4 % by the logits"],
        "notes": ["a <note>"],
        "power": "",
        "deltas": DELTAS,
        "ids": [7, 8, 9, 11],
        "curves": {
            "fine<tune>": {"published": [1.5, 1.234, 1.0], "crossfit": [0.8, 0.7461, 0.6]},
            "leaky": {"published": ["inf", "inf", 4.0], "crossfit": [5.0, 4.9, 4.8]},
            "copy": {"published": ["nan"] * 3, "crossfit": [0.0] * 3},
            BASELINE: {"published": [1.0, 0.9, 0.8], "crossfit": [0.0] * 3},
        },
        "per_example": {
            "fine<tune>": seen(1.234, [0.1, 0.5, 0.7, 2.0]),
            "leaky": seen("inf", [4.9, 4.9, 5.0, 4.0]),
            "copy": seen("nan", None),
            BASELINE: seen(0.916, [0.0, 0.1, 0.0, 0.0]),
        },
        "margins": {"fine<tune>": margins, "leaky": margins},
        "metrics": {"energy": {"summary": "How far apart?", "ideal": "0", "caution": "no direction", "trust": 3}},
        "trust": [],
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return make_document()


def printed(document: dict[str, Any], width: int = 100) -> str:
    held = StringIO()
    print_attack(document, Console(file=held, width=width))
    return held.getvalue()


def line_of(text: str, name: str, after: str) -> list[str]:
    return next(line for line in text[text.index(after) :].splitlines() if line.startswith(name)).split()


def test_both_recipes_stand_side_by_side_in_a_hundred_columns(document: dict[str, Any]) -> None:
    text = printed(document)
    assert max(map(len, text.splitlines())) <= 100
    heading = next(line for line in text.splitlines() if "published recipe" in line)
    assert "cross-fitted" in heading
    assert line_of(text, "fine<tune>", heading) == ["fine<tune>", "1.23", "1", "1", "1.75", "0.87", "0.75", "[0.74,", "0.76]", "0.86", "0.02", "62", "%"]
    assert "must not be compared with a" in text
    assert "compare “at 40” with “floor”" in text
    assert "ε = 3.00" in text
    assert "how many is not known: no p and no verdict" in text
    assert "warning: fine<tune>: forget accuracy" in text


def test_what_is_no_number_is_said(document: dict[str, Any]) -> None:
    text = printed(document)
    assert line_of(text, "leaky", "published recipe")[1] == "∞"
    assert line_of(text, "copy", "published recipe")[1:3] == ["identical", "a"]
    assert "a  its logits are the oracles' own" in text
    assert "4.90* [" in text
    assert "* leaky is at its cap of 5.03" in text
    assert "not computed: there are no retain examples" in text
    document["rows"][0]["broken"] = "some unlearned models are oracles"
    document["rows"][0]["results"], document["rows"][0]["p"] = {}, None
    del document["per_example"]["fine<tune>"]
    assert "some unlearned models are oracles" in printed(document)


def test_halves_of_the_oracles_have_no_halves_of_their_own(document: dict[str, Any]) -> None:
    text = printed(document)
    assert "80 models a side; oracles, split in half: 40 models a side" in " ".join(text.split())
    epsilon = sheets(document)[0].lines[-1]
    assert epsilon[0] == BASELINE
    assert [cell.text for cell in epsilon[2]] == ["0.92", "1", "1", "–", "–", "0.00", "–", "–", "62 %"]


def test_narrow_terminals_get_whole_bands_below_one_another(document: dict[str, Any]) -> None:
    text = printed(document, 60)
    assert max(map(len, text.splitlines())) <= 60
    assert next(line for line in text.splitlines() if "cross-fitted" in line) != next(line for line in text.splitlines() if "published recipe" in line)
    assert "0.75 [0.74, 0.76]" in text


def test_p_and_verdicts_are_shown_where_there_are_any(document: dict[str, Any]) -> None:
    assert "Holm" not in printed(document)
    document["originals"]["independent"] = True
    document["rows"][0] |= {"p": 0.0123, "holm_p": 0.0246}
    text = printed(document)
    assert line_of(text, "fine<tune>", "perm.omnibus") == ["fine<tune>", "0.01", "0.02"]
    assert "verdict" not in [heading.text for heading in sheets(document)[-1].headings]
    document["rows"][0]["verdict"] = {"label": "not forgotten", "rule": "3a", "text": "not forgotten: 42 % of the trace left", "damaged": False}
    assert "not forgotten: 42 % of the trace left" in " ".join(printed(document, 140).split())


def test_files_hold_all_digits(document: dict[str, Any], tmp_path: Path) -> None:
    page = write_attack(document, tmp_path / "made")
    assert page == tmp_path / "made" / "report.html"
    names = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.csv" for name in ("epsilon", "accuracies", "results", "per_example", "curves")}
    assert names == {"report.html", "attack.json", *tables, *(f"figures/{name}.svg" for name in ("epsilon-delta", "epsilon-images", "margins"))}
    assert json.loads((page.parent / "attack.json").read_text()) == document

    def read(name: str) -> list[dict[str, str]]:
        with (page.parent / "tables" / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    first, leaky, copy, halves = read("epsilon")
    assert (first["published"], first["published_at_half"], first["published_floor"], first["crossfit"]) == ("1.234", "1.7461", "0.87", "0.7461")
    assert (first["lo"], first["certified"], first["most_certifiable"]) == (str(0.7461 - 0.01), "0.625", "3.0")
    assert (leaky["published"], copy["published"], copy["crossfit"], copy["identical"]) == ("inf", "nan", "", "True")
    assert (halves["approach"], halves["unlearned"]) == (BASELINE, "40")
    assert [line["fine<tune>.published"] for line in read("per_example")] == ["0.5", "inf", "nan", "1.0"]
    assert [line["id"] for line in read("per_example")] == ["7", "8", "9", "11"]
    assert "copy.crossfit" not in read("per_example")[0]
    assert [line["crossfit"] for line in read("curves") if line["approach"] == "fine<tune>"] == ["0.8", "0.7461", "0.6"]
    assert {line["mean"] for line in read("accuracies")} == {"0.9123", "0.8642"}
    assert len(read("results")) == 3 * 6 + 1


def test_the_page_lets_nothing_in_and_escapes_what_it_shows(document: dict[str, Any]) -> None:
    page = render(document, draw(document))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].replace("&#39;", "'").startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "<script" not in page
    assert " style=" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "fine<tune>" not in page
    assert "fine&lt;tune&gt;" in page
    assert "Audit of &lt;logits&gt;" in page
    assert page.count("<svg") == 3
    for words in ("0.75", "identical", "∞", "must not be compared", "how many is not known", "How far apart?", "a &lt;note&gt;"):
        assert words in page
    assert "{{" not in page


def test_figures_are_sound_svg_and_say_what_is_lacking(document: dict[str, Any]) -> None:
    drawings = draw(document)
    assert [one.name for one in drawings] == ["epsilon-delta", "epsilon-images", "margins"]
    for one in drawings:
        root = ElementTree.fromstring(one.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert " style=" not in one.svg
    words = [node.text for node in ElementTree.fromstring(drawings[0].svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"fine<tune>", "leaky", BASELINE, "published recipe", "cross-fitted"} <= set(words)
    assert "leaky (infinite), copy (no number)" in drawings[0].caption
    assert draw(document) == drawings
    document["margins"], document["per_example"] = {}, {}
    for held in document["curves"].values():
        held["published"] = None
    lacking = draw(document)
    assert "not computed" in lacking[0].svg
    assert [one.missing for one in lacking[1:]] == ["not drawn: no approach has a cross-fitted epsilon", "not drawn: there are no margins to compare"]


def test_a_template_that_is_not_filled_is_an_error(document: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="undefined"):
        fill("attack.html.j2", (), document=document)
