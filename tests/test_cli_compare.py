"""``unlearnlab compare`` on studies in a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test_cli import Call, call
from test_comparing import ONE, OTHER, filed
from unlearnlab.store import Store, write_text_atomic

__all__ = ["call"]  # the fixture


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    for name, values in (("f.dense", ONE), ("f.sparse", OTHER)):
        filed(store, name, range(4), {"original": {"acc.test": values}, "finetune": {"acc.test": values}})
    write_text_atomic(store.study("f") / "index.json", json.dumps({"variants": ["f.dense", "f.sparse"]}))
    return store


def test_a_family_goes_to_its_folder(call: Call, store: Store) -> None:
    said = call("compare", "f")
    assert said.code == 0, said.err
    page = store.root / "studies" / "f" / "report.html"
    assert said.out.splitlines()[-1] == f"comparison: {page}"
    assert "paired: model i of one study" in said.out
    assert "sparse − dense" in page.read_text()
    assert json.loads((store.root / "studies" / "f" / "index.json").read_text()) == {"variants": ["f.dense", "f.sparse"]}


@pytest.mark.parametrize(("out", "folder"), [((), "compare-f.sparse-2"), (("--out", "here"), "here")])
def test_studies_go_here_or_where_it_is_said(call: Call, store: Store, tmp_path: Path, out: tuple[str, ...], folder: str) -> None:
    said = call("compare", "f.sparse", "f.dense", *out)
    assert said.code == 0, said.err
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["compare.json", "report.html", "tables"]  # no trace, no figure
    assert json.loads((tmp_path / folder / "compare.json").read_text())["studies"][0]["label"] == "sparse"


@pytest.mark.parametrize(
    ("words", "told"), [((), "needs two finished studies"), (("f.dense",), "alone"), (("f", "f.dense"), "named twice"), (("f", "no"), "no finished")]
)
def test_wrong_input_is_one_line(call: Call, store: Store, words: tuple[str, ...], told: str) -> None:
    said = call("compare", *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert told in said.err


def test_a_folder_that_cannot_be_written(call: Call, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = call("compare", "f", "--out", str(tmp_path / "file" / "x"))
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "name a folder with --out" in said.err
