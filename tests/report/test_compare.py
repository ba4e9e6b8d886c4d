"""What a comparison shows: the document's numbers and nothing else, in tables, files, figures and one sealed page."""

from __future__ import annotations

import csv
import html
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from unlearnlab.report.compare import columns, print_comparison, render, write_compare
from unlearnlab.report.compare_figures import draw

STUDIES = ("dense", "s50", "s90")


def result(value: float | None, half: float | None = 0.05, **more: Any) -> dict[str, Any]:
    ci = None if value is None or half is None else {"lo": value - half, "hi": value + half, "level": 0.95, "method": "t"}
    return {"value": value, "ci": ci, "floor": {"mean": 0.0123}, "ceiling": None, "rescaled": 0.4567, "p": None, "missing": None} | more


def row(method: str, at: int, calibration: bool) -> dict[str, Any]:
    start = {"original": 1.0, "retrain": 0.01}.get(method, 0.3)
    results = {
        "trace": result(start + 0.01 * at),
        "asr": result(0.9 * start),
        "sa": result(0.8123 - 0.1 * at),
        "acc.test": result(0.81 - 0.1 * at),
        "group.x.high.trace": result(None, missing="not computed: 4 forget images, needs 30"),
        "cost.fraction": result(0.05, None),
        "own": result(3.25),
    }
    verdict = {"label": "not forgotten", "rule": "3a", "text": "not forgotten: 30 % of the trace left", "damaged": at == 2}
    return {"method": method, "calibration": calibration, "verdict": verdict, "settings": {}, "results": results}


def difference(value: float | None, p: float | None = 0.2, missing: str = "") -> dict[str, Any]:
    lo, hi = (None, None) if value is None or p is None else (value - 0.0456, value + 0.0456)
    return {"value": value, "lo": lo, "hi": hi, "p": p, "holm_p": p, "how": "paired t over models", "missing": missing}


def make_document(**more: Any) -> dict[str, Any]:
    methods = {"original": True, "retrain": True, "finetune": False, "ssd": False}
    rows = [
        {"method": name, "calibration": held, "in": [None if (name, at) == ("ssd", 1) else row(name, at, held) for at in range(3)]}
        for name, held in methods.items()
    ]
    per_method = {
        name: {"trace": difference(0.1234), "asr": difference(-0.2341, 0.01), "sa": difference(-0.1, None, "no interval: one model a side")} for name in methods
    }
    absent = {key: difference(None, None, "s50: no method 'ssd'") for key in ("trace", "asr", "sa")}
    return {
        "title": "trojan compared: dense, s50, s90",
        "created": "2026-01-01 00:00 UTC",
        "family": "trojan",
        "studies": [
            {"name": f"trojan.{label}", "label": label, "title": "Trojan", "created": "then", "models": {"originals": 16}, "data": {}, "environment": {}}
            for label in STUDIES
        ],
        "differs": [{"setting": "prune.sparsity", "values": ["–", 0.5, 0.9]}, {"setting": "recipe.lr", "values": [0.1, 0.1, 0.2]}],
        "along": {"setting": "sparsity", "values": [0.0, 0.5, 0.9]},
        "metrics": {"trace": {"summary": "The share.", "ideal": "0", "caution": ""}},
        "rows": rows,
        "pairs": [
            {"one": "dense", "other": label, "notes": ["paired: yes", f"only {label}"], "differences": per_method | ({"ssd": absent} if label == "s50" else {})}
            for label in STUDIES[1:]
        ],
    } | more


def page(document: dict[str, Any]) -> str:
    return render(document, draw(document))


def printed(document: dict[str, Any], width: int = 160) -> str:
    console = Console(width=width, file=(held := StringIO()))
    print_comparison(document, console)
    return held.getvalue()


def test_the_page_is_sealed_and_whole() -> None:
    text = page(make_document())
    assert "default-src 'none'" in html.unescape(text)
    assert not re.findall(r"<script|https?://(?!www\.w3\.org/2000/svg)|<link|@import| style=", text)
    for shown in ("trace", "0.31", "[0.26, 0.36]", "91.0", "90.0", "−23.4*", "[−28.0, −18.9]", "prune.sparsity", "paired: yes.", "s90: only s90."):
        assert shown in text, shown
    assert text.count("paired: yes") == 1
    assert "no interval: one model a side" in text
    assert "30 % of the trace left" in text


def test_names_cannot_break_out() -> None:
    text = page(json.loads(json.dumps(make_document()).replace("finetune", "<b onload=x>").replace("s90", "<i>")))
    assert "<b onload" not in text
    assert "<i>" not in text
    assert "&lt;b onload=x&gt;" in text


def test_columns_are_those_that_some_study_has() -> None:
    assert [column.key for column in columns(make_document())] == ["trace", "asr", "sa", "acc.test", "cost.fraction"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminal_shows_everything_within_its_width(width: int) -> None:
    text = printed(make_document(), width)
    tables = [line for line in text.splitlines() if re.match(r"( {4,}|finetune|ssd)", line)]
    assert max(map(len, tables)) <= width
    for shown in ("prune.sparsity differs: – in dense; 0.5 in s50; 0.9 in s90", "0.31 [0.26, 0.36]", "-23.4* [-28.0, -18.9]", "81.0", "5.0 %", "damaged, not"):
        assert shown in text, shown
    assert "…" not in text
    assert re.search(r"^finetune ", text, re.M), "names are whole"


def test_files_hold_every_number(tmp_path: Path) -> None:
    document = make_document()
    assert write_compare(document, tmp_path) == tmp_path / "report.html"
    assert json.loads((tmp_path / "compare.json").read_text()) == document
    rows = list(csv.DictReader((tmp_path / "tables" / "compare.csv").read_text().splitlines()))
    assert len(rows) == (4 * 3 - 1) * 7
    one = next(row for row in rows if (row["study"], row["method"], row["metric"]) == ("trojan.s50", "finetune", "own"))
    assert [float(one[name]) for name in ("value", "lo", "hi", "floor", "rescaled")] == pytest.approx([3.25, 3.2, 3.3, 0.0123, 0.4567])
    assert one["ceiling"] == ""
    pairs = list(csv.DictReader((tmp_path / "tables" / "differences.csv").read_text().splitlines()))
    assert len(pairs) == 2 * 4 * 3
    assert {(row["difference"], row["lo"], row["missing"]) for row in pairs if row["method"] == "ssd" and row["study"] == "s50"} == {
        ("", "", "s50: no method 'ssd'")
    }
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == ["compare-backdoor.svg", "compare-trace.svg"]
    for name in figures:
        ElementTree.parse(tmp_path / "figures" / name)


def test_the_picture_along_sparsity() -> None:
    """A panel for each method, not for the rows that calibrate; what else differs is said."""
    drawing = draw(make_document())[0]
    words = re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)
    assert (drawing.name, drawing.title) == ("compare-backdoor", "ASR and SA against sparsity")
    assert [words.count(name) for name in ("finetune", "ssd", "original", "retrain")] == [1, 1, 0, 0]
    assert {"0", "50", "90", "before: original", "retrained"} <= set(words)
    assert "also differ in recipe.lr." in drawing.caption


def test_without_a_backdoor_it_is_the_trace() -> None:
    document = make_document(along={"setting": "forget.count", "values": [30, 10, 20]})
    for held in document["rows"]:
        for one in held["in"]:
            if one:
                del one["results"]["asr"]
    drawings = {one.name: one for one in draw(document)}
    assert list(drawings) == ["compare-trace", "compare-along"]
    words = re.findall(r"<text[^>]*>([^<]*)</text>", drawings["compare-along"].svg)
    places = [words.index(word) for word in ("10", "20", "30")]
    assert places == sorted(places)
    assert "forget.count" in words


def test_figures_that_have_nothing_to_draw_say_so() -> None:
    document = make_document(along=None)
    for held in document["rows"]:
        for one in held["in"]:
            if one:
                one["results"]["trace"] = result(None, missing="not computed: N=4, needs 16")
    (drawing,) = draw(document)
    assert drawing.missing == "not drawn: no method has a trace in any of the studies"
    assert drawing.missing in page(document)
