"""The terminal table and the CSV files show what the document holds, and say why where it holds nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from document import banded_document, make_document
from rich.console import Console

from unlearnlab.report import columns, print_table, write_csvs
from unlearnlab.report.tables import DASH, NO_TRACE, chance, difference_columns, group_columns, groups, ratio, result, share, signed, verdict


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_document()


def printed(document: dict[str, Any], width: int, **more: Any) -> str:
    held = io.StringIO()
    print_table(document, Console(file=held, width=width, **more))
    return held.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_terminal_table_fits_and_holds_every_method_verdict_and_number(document: dict[str, Any], width: int) -> None:
    text = printed(document, width)
    flowing = " ".join(text.split())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in document["rows"]:
        assert any(line.startswith(row["method"]) for line in text.splitlines())
        label, damaged, rest = verdict(row)
        words = f"{'damaged, ' if damaged else ''}{label}".split()
        assert " ".join(words) in flowing
        assert all(word in flowing for word in rest.split())
        for column in columns(document):
            assert column.cell(row).text in text
    assert "not computed: this forget set leaves no trace at N=32" in flowing
    assert document["power"] in flowing


def test_calibration_rows_come_first_behind_a_line(document: dict[str, Any]) -> None:
    shuffled = {**document, "rows": document["rows"][::-1]}
    lines = printed(shuffled, 200).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("original"))
    assert abs(at - next(i for i, line in enumerate(lines) if line.startswith("retrain"))) == 1
    assert set(lines[at + 1].strip()) == {"─"}


def test_colours_only_on_a_terminal(document: dict[str, Any]) -> None:
    assert "\x1b[" in printed(document, 120, force_terminal=True, color_system="standard")
    assert "\x1b[" not in printed(document, 120)


def test_plain_letters_where_the_encoding_is_poor(document: dict[str, Any]) -> None:
    poor = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_table(document, Console(file=poor, width=120))
    poor.flush()


def test_a_log_file_gets_a_wide_table(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(document)
    lines = capsys.readouterr().out.splitlines()
    assert 120 <= max(map(len, lines)) <= 160


def test_absent_numbers_are_never_zero(document: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in document["rows"]}
    cells = {column.key: column.cell(rows["del"]) for column in columns(document)}
    assert cells["group.clean.trace"].text == NO_TRACE
    assert cells["group.clean.trace"].reason.startswith("not computed: ")
    assert cells["energy"].text == DASH
    assert cells["energy"].reason.startswith("not rescaled")
    assert all(column.cell(rows["l1_sparse"]).text == DASH for column in columns(document) if column.key.startswith("group."))
    nan = {"method": "x", "results": {"trace": {**result(rows["del"], "trace"), "value": float("nan")}}}
    assert columns(document)[0].cell(nan).text == DASH


def test_words_of_numbers_and_verdicts() -> None:
    assert [ratio(value) for value in (-0.001, 0.126, -12.34, 1234.0)] == ["0.00", "0.13", "-12.3", "1234"]
    assert [share(value) for value in (0.0, 0.012, 0.11, 1.0)] == ["0 %", "1.2 %", "11 %", "100 %"]
    held = {"label": "not forgotten", "damaged": True, "text": "damaged, not forgotten: 93 % of the trace left"}
    assert verdict({"verdict": held}) == ("not forgotten", True, "93 % of the trace left")
    held = {"label": "no verdict", "damaged": False, "text": "no verdict: 'perm.omnibus' was not measured"}
    assert verdict({"verdict": held})[2] == "'perm.omnibus' was not measured"
    assert [chance(value) for value in (0.5, 0.0004, 0.00005, 0.00004, 0.0)] == ["0.50", "0.0004", "0.0001", "<0.0001", "<0.0001"]
    assert verdict({}) == (DASH, False, "")
    shown = ["mislabelled", "clean", "low", "mid", "high", "unscored", "request 1", "request 2"]
    assert [name.rpartition(".")[2] for name in groups({"rows": [{"results": {f"group.a.{name}.trace": {} for name in sorted(shown)}}]})] == shown


def test_csv_values_equal_the_documents(document: dict[str, Any], tmp_path: Path) -> None:
    headline, results = write_csvs(document, tmp_path)
    assert sorted(tmp_path.iterdir()) == [headline, results]
    rows = {row["method"]: row for row in document["rows"]}
    with results.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(row["results"]) for row in rows.values())
    for line in lines:
        held = rows[line["method"]]["results"][line["key"]]
        assert line["missing"] == (held["missing"] or "")
        expected = {name: held[name] for name in ("value", "rescaled", "p")} | {"lo": (held["ci"] or {}).get("lo"), "floor": (held["floor"] or {}).get("mean")}
        for name, value in expected.items():
            assert (line[name] == "") if value is None else (float(line[name]) == value)
        assert [int(line[f"n_{name}"]) for name in ("unlearned", "oracles", "originals")] == held["n_models"]
    with headline.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            row = rows[line["method"]]
            assert float(line["trace"]) == row["results"]["trace"]["value"]
            assert float(line["trace.lo"]) == row["results"]["trace"]["ci"]["lo"]
            assert line["verdict"] == row["verdict"]["label"]
            assert line["damaged"] == str(row["verdict"]["damaged"])
            assert line["holm_p"] == ("" if row["holm_p"] is None else str(row["holm_p"]))
            assert ("not computed: this forget set" in line["missing"]) == (row["method"] == "del")


def test_a_band_without_a_trace_says_so_on_every_row() -> None:
    banded = banded_document()
    cells = {row["method"]: {column.key: column.cell(row) for column in (*columns(banded), *group_columns(banded))} for row in banded["rows"]}
    for row in cells.values():  # originals and oracles decide it, so the calibration rows show it too
        assert row["group.memorisation.low.trace"].text == NO_TRACE
        assert row["group.memorisation.low.trace"].reason == "not computed: this group leaves no trace at N=32"
        assert row["group.memorisation.high.trace"].text not in (DASH, NO_TRACE)
    text = printed(banded, 200)
    assert text.count(NO_TRACE) >= len(banded["rows"])
    assert "this group leaves no trace at N=32" in text


def test_tables_of_groups_show_trace_and_accuracy_beside_the_oracles() -> None:
    banded = banded_document()
    chosen = group_columns(banded)
    assert [(column.band, column.heading) for column in chosen] == [(name, what) for name in ("low", "mid", "high") for what in ("trace", "acc. %")]
    row = next(row for row in banded["rows"] if row["method"] == "finetune")
    held = result(row, "group.memorisation.high.acc.forget")
    cell = next(column for column in chosen if column.key == held["key"]).cell(row)
    assert (cell.text, cell.interval) == (f"{100 * held['value']:.1f}", f"oracles {100 * held['floor']['mean']:.1f}")
    pairs = difference_columns(banded)
    assert [column.heading for column in pairs] == ["mid − low", "high − low", "high − mid"]
    assert [pairs[0].cell(row).text, pairs[2].cell(row).text] == [NO_TRACE, "+0.21"]
    assert [signed(value) for value in (0.21, -0.3, 0.001, -0.001)] == ["+0.21", "-0.30", "0.00", "0.00"]
    assert {column.heading for column in group_columns(make_document())} == {"trace"}  # from before accuracies were measured on groups
    assert group_columns({"rows": [{"results": {"trace": {}}}]}) == difference_columns({"rows": []}) == ()


def test_tow_is_a_column_where_tow_mia_was_asked_for_or_the_trace_was_not(document: dict[str, Any]) -> None:
    def headings(drop: str = "", add: str = "") -> set[tuple[str, str]]:
        rows = []
        for row in document["rows"]:
            held = {key: value for key, value in row["results"].items() if key != drop}
            rows.append({**row, "results": held | ({add: next(iter(row["results"].values()))} if add and row["results"] else {})})
        return {(column.band, column.heading) for column in columns({**document, "rows": rows}) if column.band == "ToW"}

    assert headings() == set()
    assert headings(drop="trace", add="tow") == {("ToW", "acc.")}
    assert headings(add="tow_mia") >= {("ToW", "MIA")}


def test_a_band_too_wide_gives_up_the_intervals_of_its_groups_and_names_stay_whole() -> None:
    document = banded_document()
    for row in document["rows"]:
        row["method"] = f"a-method-with-a-very-long-name-{row['method']}"
    text = printed(document, 120)
    assert all(any(line.startswith(row["method"]) for line in text.splitlines()) for row in document["rows"])
    assert max(map(len, text.splitlines())) <= 120
