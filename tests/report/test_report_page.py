"""The page is one file that loads and runs nothing, escapes everything, and shows every method, verdict and reason."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from document import banded_document, make_document

from unlearnlab.report import write_page, write_report
from unlearnlab.report.page import _digits, render

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Checks that tags close in order; gathers tags, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_document(), tmp_path_factory.mktemp("study")).parent


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_is_a_page_two_tables_and_five_figures_and_nothing_half_written(folder: Path) -> None:
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    figures = [f"figures/{name}.svg" for name in ("accuracy", "cost", "least-forgotten", "margins", "trace")]
    assert found == [*figures, "report.html", "tables/headline.csv", "tables/results.csv"]


def test_policy_allows_the_one_style_sheet_and_nothing_else(html: str) -> None:
    reader = Reader(html)
    policy = next(held["content"] for tag, held in reader.tags if tag == "meta" and held.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert policy is not None
    assert len(style) == 1
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()}'" in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in reader.tags}
    for tag, held in reader.tags:
        assert "style" not in held, tag
        assert not [name for name in held if name.startswith("on")]
        assert (held.get("href") or held.get("src") or "#").startswith(("#", "data:image/png;base64,"))
    assert set(re.findall(r"(?:https?:)?//[a-z][^\"' <)]*", re.sub(r"base64,[^\"]+", "", html))) == {"http://www.w3.org/2000/svg"}
    ids = [held["id"] for _, held in reader.tags if "id" in held]
    assert len(ids) == len(set(ids)) > 5


def test_page_shows_every_method_verdict_reason_and_key(html: str) -> None:
    text, document = Reader(html).text, make_document()
    for row in document["rows"]:
        assert row["method"] in text
        assert row["verdict"]["label"] in text
        for key, held in row["results"].items():
            assert held["missing"] is None or held["missing"] in text
            shown_above = re.search(r"(^|\.)(trace|mia_lr\.auc)$", key)
            assert shown_above or key in text
    for words in (
        "streisand.over",
        "not computed: N=8, needs 16",
        document["power"],
        "recipe.learning_rate",
        "f12437b",
        *document["notes"],
        "methods.ssd.alpha",
    ):
        assert words in text
    assert "neggrad_plus (trace 0.03) forgot: its models cannot be told" in text
    assert "salun (trace −0.01) did not forget: little or no trace, yet its models can still be told from oracles" in text
    assert "gradient_ascent (trace −3.05, damaged) and random_label (trace −0.13) over-forgot" in text
    assert [rule[0] for rule in document["verdict_rules"]] == re.findall(r'<tr><th scope="row">(\d\w?)</th>', html)


def test_the_same_document_gives_the_same_page(html: str, tmp_path: Path) -> None:
    assert write_page(make_document(), tmp_path / "again.html").read_text(encoding="utf-8") == html
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_hostile_names_are_harmless() -> None:
    bad = '<script>alert("1")</script>'
    document = make_document()
    document["rows"][2] |= {"method": bad, "settings": {bad: bad}, "verdict": {"label": bad, "rule": bad, "text": bad, "damaged": True}}
    document["rows"][3]["results"][bad] = {**document["rows"][3]["results"]["tow"], "missing": bad, "value": None, "notes": [bad], "better": bad}
    document |= {"title": bad, "power": bad, "notes": [bad], "created": bad, "preset": bad}
    document |= {"study": {bad: [{"name": bad, "x": bad}]}, "verdict_rules": [[bad] * 3], "environment": {bad: bad}}
    html = render(document, [])
    assert "<script" not in html
    assert 'alert("' not in html
    assert bad in Reader(html).text


FEW = {"label": "no verdict", "text": "no verdict: N=4, needs 16"}


@pytest.mark.parametrize("rows", [[], [{"method": "x", "results": {}}], [{"method": "x", "verdict": FEW, "results": {}}]])
def test_a_bare_document_still_makes_a_page(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = Reader(write_page({"title": "Bare", "rows": rows}, tmp_path / "bare.html").read_text(encoding="utf-8")).text
    assert "not drawn: no method has a trace" in text
    if not rows:
        assert "There is no method to judge" in text
    elif "verdict" in rows[0]:
        assert "None of the 1 methods was found to have forgotten. x (trace –) got no verdict (N=4, needs 16)." in text


def test_digits_fit_any_unit() -> None:
    assert [_digits(value) for value in (0.0, 0.00004, 0.0123, -1.234, 12.34, 123456.0)] == ["0", "4e-05", "0.012", "-1.23", "12.3", "123,456"]


def test_who_is_not_forgotten(html: str) -> None:
    text = Reader(render(banded_document(), [])).text
    assert "Who is not forgotten?" in text
    rows = text[text.index("Who is not forgotten?") :]
    for words in ("no trace", "oracles 38.0", "high − mid", "+0.21", "[+0.15, +0.27]", "Holm p 0.0030", "not computed: this group leaves no trace at N=32"):
        assert words in rows
    assert rows.index("original") < rows.index("retrain") < rows.index("finetune")
    assert "Who is not forgotten?" in Reader(html).text
    without = {**make_document(), "rows": [{"method": "x", "results": {"trace": {}}}]}
    assert "Who is not forgotten?" not in Reader(render(without, [])).text


def test_metrics_stand_in_the_order_of_trust_with_how_to_read_them() -> None:
    document = make_document()
    words = {"summary": "What it asks.", "ideal": "as <oracles> do", "caution": "sees averages"}
    document["trust"] = [[2, "What decides"], [3, "Distances"], [6, "Easy to match"]]
    document["metrics"] = {"tow": words | {"trust": 6}, "trace": words | {"trust": 2}, "energy": words | {"trust": 3}, "not.measured": words | {"trust": 2}}
    text = Reader(render(document, [])).text
    table = text[text.index("Under each value stand") : text.index("What each metric asks")]
    places = [table.index(one) for one in ("What decides", "trace", "Distances", "energy", "Easy to match", "tow")]
    assert places == sorted(places)
    assert "klom" not in table  # of no known trust: among all other results
    assert "klom.smooth.forget" in text[text.index("All other results") :]
    assert text.count("What it asks. Perfect: as <oracles> do. Caution: sees averages.") == 3
    assert "not.measured" not in text


@pytest.mark.parametrize(("count", "named", "more"), [(10, 10, ""), (11, 8, " and 3 more"), (20, 8, " and 12 more")])
def test_the_answer_names_no_more_methods_than_a_sentence_holds(count: int, named: int, more: str) -> None:
    rows = [{"method": f"m{at:02}", "verdict": FEW, "results": {}} for at in range(count)]
    text = Reader(render({"title": "Many", "rows": rows}, [])).text
    sentence = text.partition("was found to have forgotten. ")[2].partition(" got no verdict")[0]
    assert len(re.findall(r"m\d\d", sentence)) == named
    assert sentence.endswith(more)
    assert (" and m" in sentence) == (not more)
