"""What is shown of scores: the table, the words below it, both ends, the pictures, the file."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from rich.console import Console

from unlearnlab.report.scores import end_words, group_words, score_tables, score_words, write_score_figures, write_scores_csv

NAN = math.nan


def end(ids: list[int], values: list[float], tied: int = 0) -> dict[str, Any]:
    pixels = [[[(16 * (i + x) + y) % 256 for x in range(4)] for y in range(4)] for i in ids]
    return {"ids": ids, "labels": [i % 3 for i in ids], "true_labels": [0 if i == 7 else i % 3 for i in ids], "values": values, "tied": tied, "pixels": pixels}


def row(name: str, **more: Any) -> dict[str, Any]:
    usual = {"scale": "proxy", "models": 1, "with": [], "scored": 8, "unscored": 0, "least": 0.0, "median": 0.5, "most": 1.0, "seconds": 3.0, "share": 0.015}
    agreement = {"rho": 0.634, "ci": {"lo": 0.51, "hi": 0.735, "level": 0.95, "method": ""}, "n": 7, "dropped": 1, "missing": "", "note": ""}
    ends = {"most": end([7, 6, 5], [1.0, 0.75, 0.5]), "least": end([0, 1], [0.0, 0.0], 2)}
    return {"name": name, **usual, "agreement": agreement, "ends": ends, **more}


def make_scores(**more: Any) -> dict[str, Any]:
    true = row("memorisation", scale="memorisation", models=400, seconds=200.0, share=1.0, agreement=None, scored=7, unscored=1)
    ids = list(range(8))
    return {
        "reference": "memorisation",
        "scores": [true, row("confidence", **{"with": ["entropy"]}), row("entropy", **{"with": ["confidence"]})],
        "images": {"ids": ids, "labels": [i % 3 for i in ids], "true_labels": [0 if i == 7 else i % 3 for i in ids]},
        "values": {
            "memorisation": [NAN, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 1.0],
            "confidence": [i / 8 for i in ids],
            "entropy": [0.1 + i / 7 for i in ids],
        },
        "stderr": {"memorisation": [NAN, *[0.125] * 7]},
        **more,
    }


def printed(held: dict[str, Any]) -> str:
    console = Console(width=160)
    with console.capture() as said:
        for table in score_tables(held, console.width):
            console.print(table)
    return said.get()


def cells(held: dict[str, Any]) -> dict[str, list[str]]:
    lines = [re.split(r" {2,}", line.strip()) for line in printed(held).splitlines()]
    return {line[0]: line[1:] for line in lines}


def test_the_table_has_a_row_a_score_with_its_agreement_cost_and_range() -> None:
    found = cells(make_scores())
    assert found["score"] == ["models", "images", "unscored", "Spearman [95 %]", "n", "seconds", "of full", "least", "median", "most"]
    assert found["confidence"] == ["1", "8", "0", "0.63 [0.51, 0.73]", "7", "3.00", "1.5 %", "0", "0.5", "1"]
    assert found["memorisation"] == ["400", "7", "1", "true", "–", "200", "100 %", "0", "0.5", "1"]


def test_what_is_absent_is_a_dash_and_never_0() -> None:
    file = row("file", models=0, seconds=None, share=None, scored=0, unscored=8, least=None, median=None, most=None)
    file["agreement"] = {"rho": None, "ci": None, "n": 0, "dropped": 8, "missing": "not computed: 0 pair(s) of numbers, needs 3", "note": ""}
    held = make_scores(scores=[file])
    assert cells(held)["file"] == ["–", "0", "8", "–", "0", "–", "–", "–", "–", "–"]
    assert "file: not computed: 0 pair(s) of numbers, needs 3" in score_words(held | {"reference": ""})
    assert "file: 8 of 8 images have no score (NaN)" in score_words(held | {"reference": ""})


def test_the_words_say_against_what_and_what_is_shared() -> None:
    words = score_words(make_scores())
    assert words[0].startswith("Spearman: rank correlation with 'memorisation'")
    assert words[1].endswith("as a share of what 'memorisation' took")
    assert words[2:] == ["confidence, entropy come from one run: the cost of each is that of the run", "memorisation: 1 of 8 images have no score (NaN)"]
    filed = make_scores()
    filed["scores"][0]["seconds"] = None
    assert "'memorisation' was read from a file, so there is no full cost" in score_words(filed)[1]
    few = make_scores()
    few["scores"][1]["agreement"] |= {"ci": None, "note": "no interval: n = 7, needs 10"}
    assert "confidence: no interval: n = 7, needs 10" in score_words(few)
    assert "0.63  7" in re.sub(" +", "  ", printed(few))
    none = make_scores(reference="", scores=[row("confidence", agreement=None, share=None)])
    assert score_words(none) == [
        "Spearman needs true memorisation: list the score memorisation too, or a file of it, such as --set 'scores=[{name=\"memorisation\"}, …]'"
    ]


def test_both_ends_are_told_with_labels_true_ones_and_ties() -> None:
    assert end_words(row("x")) == [
        "x, most memorised: 7 (1, is 0) 1, 6 (0) 0.75, 5 (2) 0.5",
        "x, least memorised: 0 (0) 0, 1 (1) 0 (the last as 2 more)",
    ]
    empty = row("x", ends={"most": end([], []), "least": end([], [])})
    assert end_words(empty) == ["x, most memorised: no image has a score", "x, least memorised: no image has a score"]


def test_groups_are_told_with_their_range() -> None:
    groups = {"memorisation.low": {"count": 3, "least": -0.25, "most": 0.0}, "memorisation.unscored": {"count": 2, "least": None, "most": None}}
    assert group_words({"groups": groups}) == [
        "group memorisation.low: 3 images, scores -0.25 to 0",
        "group memorisation.unscored: 2 images, without a score",
    ]
    assert group_words({"groups": {}}) == []


def test_the_file_holds_all_digits_and_leaves_what_is_not_known_empty(tmp_path: Path) -> None:
    held = make_scores()
    path = write_scores_csv(held, tmp_path / "tables")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert path == tmp_path / "tables" / "scores.csv"
    assert list(rows[0].values()) == ["0", "0", "0", "", "0.0", "0.1", ""]
    assert list(rows[7].values()) == ["7", "1", "0", "1.0", "0.875", "1.1", "0.125"]
    assert [float(one["entropy"]) for one in rows] == held["values"]["entropy"]


def text(path: Path) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(path.read_text()).iter("{http://www.w3.org/2000/svg}text")]


def test_every_score_has_a_picture_the_same_bytes_twice_whatever_the_users_style(tmp_path: Path) -> None:
    paths = write_score_figures(make_scores(), tmp_path)
    assert [path.name for path in paths] == ["score-memorisation.svg", "score-confidence.svg", "score-entropy.svg"]
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        again = write_score_figures(make_scores(), tmp_path / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    proxy, true = text(paths[1]), text(paths[0])
    assert {"confidence: most memorised", "confidence: least memorised (the last as 2 more)", "7: 1", "1, is 0", "Spearman 0.63, n = 7"} <= set(proxy)
    assert {"memorisation", "confidence", "clean", "mislabelled"} <= set(proxy)
    assert {"7 images", "images"} <= set(true)
    for path in paths:
        assert path.read_text().count("data:image/png;base64,") == 5
        assert re.findall(r"https?://[^\"]+", path.read_text()) == ["http://www.w3.org/2000/svg"]


def test_what_is_no_picture_is_shown_by_number_alone_and_an_empty_score_not_at_all(tmp_path: Path) -> None:
    held = make_scores()
    for one in held["scores"]:
        for side in one["ends"].values():
            side["pixels"] = []
    held["scores"][2] = row("entropy", scored=0)
    paths = write_score_figures(held, tmp_path)
    assert [path.name for path in paths] == ["score-memorisation.svg", "score-confidence.svg"]
    assert "7: 1" in text(paths[1])
    assert "data:image" not in paths[1].read_text()


@pytest.mark.parametrize("values", [[0.5] * 8, [NAN, *[0.0] * 7], [math.inf, *[0.0] * 7]])
def test_constant_and_infinite_scores_can_be_drawn(values: list[float], tmp_path: Path) -> None:
    held = make_scores()
    held["values"] |= {"confidence": values, "memorisation": values}
    assert len(write_score_figures(held, tmp_path)) == 3


def test_many_images_do_not_make_a_large_file(tmp_path: Path) -> None:
    held, count = make_scores(), 30_000
    held["images"] = {name: [i % 3 for i in range(count)] for name in ("ids", "labels", "true_labels")}
    held["values"] = {name: [math.sin(i * speed) for i in range(count)] for speed, name in enumerate(held["values"], 1)}
    paths = write_score_figures(held, tmp_path)
    assert max(path.stat().st_size for path in paths) < 300_000
