"""Every study that comes with the package: it can be read, planned and made small, and says where its settings come from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from unlearnlab import cli
from unlearnlab.spec import info
from unlearnlab.studyfiles import presets, read_family

NAMES = sorted(presets())
# protocols §17
DEL, RUM = ("del_cifar_iid", "del_cifar_noniid", "del_imagenet100", "del_svhn_vit"), ("rum_entangled", "rum_mem", "rum_proxy")
SPARSE = ("salun_random10", "salun_random50", "sparse_class0", "sparse_imp", "sparse_random10", "sparse_synflow", "trojan")
OTHERS = ("certified_linear", "contest_top7", "easydub", "fwp_agedb", "fwp_cifar10", "scrub_ic", "ssd_subclass")
PUBLISHED = sorted((*DEL, *RUM, *SPARSE, *OTHERS))
ROOT = Path(__file__).parents[1]


def settings(table: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The settings that a file writes down, as dotted paths; what stands in a list goes by its name."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from settings(value, (*path, name))
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for one in value:
                yield from settings({key: held for key, held in one.items() if key != "name"}, (*path, name, one.get("name", "*")))
        elif not (name == "name" and path):
            yield (*path, name)


def test_all_published_experiments_are_here() -> None:
    assert not set(PUBLISHED) - set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_where_it_comes_from(name: str) -> None:
    table = tomllib.loads(presets()[name].read_text(encoding="utf-8"))
    said = [one.split(".") for origin in table.get("provenance", ()) for one in origin["settings"]]
    written = set(settings({key: held for key, held in table.items() if key not in ("title", "notes", "provenance", "variants", "seed")}))
    for changes in table.get("variants", {}).values():
        for path, value in changes.items():
            if path != "title":
                at = tuple(path.split("."))
                written |= (set(settings(value, at)) if isinstance(value, dict) else set()) or {at}
    silent = [
        ".".join(path)
        for path in sorted(written)
        if not any(len(words) <= len(path) and all("*" in (a, b) or fnmatchcase(a, b) for a, b in zip(path, words, strict=False)) for words in said)
    ]
    assert not silent, f"{name}: [[provenance]] says nothing of {', '.join(silent)}"
    assert all(origin["source"] for origin in table["provenance"])


@pytest.mark.parametrize("name", NAMES)
def test_the_small_form_keeps_every_stage_row_and_metric(name: str) -> None:
    whole, small = read_family(name).studies, read_family(name, small=True).studies
    assert [one.replace(name, f"{name}-small", 1) for one in whole] == list(small)
    for a, b in zip(whole.values(), small.values(), strict=True):
        assert list(a.rows()) == list(b.rows())
        assert [info(one) for one in a.metrics] == [info(one) for one in b.metrics]
        for stage in ("prune", "requests", "budget", "tune", "corruption"):
            mine, theirs = getattr(a, stage), getattr(b, stage)
            if stage == "corruption" and info(a.forget).name == "by_score":
                continue  # clean digits are hardly memorised: the small form flips some labels
            assert (mine and info(mine).name) == (theirs and info(theirs).name)
        assert info(b.dataset).name in ("digits", "digits_pairs")


@pytest.mark.parametrize("name", NAMES)
def test_presets_names_and_explains_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["presets", name]) == 0
    out = capsys.readouterr().out
    assert out.endswith(presets()[name].read_text(encoding="utf-8"))
    assert tomllib.loads(out) == tomllib.loads(presets()[name].read_text(encoding="utf-8"))  # what is told of it are comments
    assert any(line.startswith("# published: ") for line in out.splitlines()) or name not in PUBLISHED


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_planned_without_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    assert cli.call(["run", name, "--dry-run", "--data-root", str(tmp_path)]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    for what in ("models to train: ", "time: ", "memory: ", "published: "):
        assert what in told
    assert not (tmp_path / "store").exists()


def test_the_last_small_runs_are_of_todays_presets() -> None:
    """``make nightly`` runs them all; its last results are in the repository."""
    held = json.loads((ROOT / "benchmarks" / "presets.json").read_text(encoding="utf-8"))
    assert set(held["presets"]) == set(PUBLISHED)
    assert not [name for name, found in held["presets"].items() if "error" in found or found["cpu_seconds"] > held["limit"]]
