"""``unlearnlab attack`` on real folders: the published layout, and a study's own."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from test_cli import Call, call
from unlearnlab.layouts import Ensemble, accuracies, read, write_fwp, write_plain
from unlearnlab.metrics import epsilon_published
from unlearnlab.outputs import Outputs, hinge

__all__ = ["call"]  # the fixture

MODELS, EXAMPLES, CLASSES = 80, 30, 4
Make = Callable[..., Ensemble]


def made(name: str, shift: float, seed: int, models: int = MODELS) -> Ensemble:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(EXAMPLES) % CLASSES
    margin = torch.linspace(-1, 3, EXAMPLES) + shift + torch.randn(models, EXAMPLES, generator=draws)
    logits = margin[..., None] * torch.nn.functional.one_hot(labels, CLASSES) + 0.1 * torch.randn(models, EXAMPLES, CLASSES, generator=draws)
    member = torch.full((models, EXAMPLES), name != "oracles")
    zeros = torch.zeros(EXAMPLES, dtype=torch.int64)
    seen = Outputs(logits, member, labels, torch.arange(EXAMPLES), zeros, tuple(range(1000 * seed, 1000 * seed + models)))
    return Ensemble(name, seen, {**accuracies(seen), "retain": torch.full((models,), 0.99, dtype=torch.float64)}, Path())


@pytest.fixture
def logits(tmp_path: Path) -> Path:
    """A folder in the published layout: a perfect approach, one that leaves much, and a copy of the oracles; one table is two points off."""
    oracles, leaky = made("oracles", 0.0, 0), made("finetune", 1.5, 2)
    off = {**leaky.accuracies, "forget": leaky.accuracies["forget"] - 0.02}
    approaches = [made("retrained", 0.0, 1), replace(leaky, accuracies=off), replace(oracles, name="baseline")]
    write_fwp(tmp_path / "logits", oracles, approaches)
    return tmp_path / "logits"


def test_a_published_folder(call: Call, logits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    before = {path: path.stat().st_mtime_ns for path in logits.rglob("*")}
    said = call("attack", str(logits))
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines()[:-1])) <= 100
    held = read(logits)
    for one in held.approaches:
        eps = epsilon_published.published(*(hinge(side.outputs.logits, side.outputs.labels) for side in (one, held.oracles)), 0.05)
        line = next(line for line in said.out[said.out.index("published recipe") :].splitlines() if line.startswith(one.name))
        shown = line.split()[1]
        assert shown == ("identical" if one.name == "baseline" else f"{epsilon_published.median(eps):.2f}")
    assert "finetune: forget accuracy is" in said.out
    assert "no p and no verdict" in said.out
    assert "Holm" not in said.out
    page = tmp_path / "attack-logits" / "report.html"
    assert said.out.rstrip().endswith(f"report: {page.relative_to(tmp_path)}")
    assert page.read_text().count("<svg") == 3
    with (page.parent / "tables" / "epsilon.csv").open(newline="") as file:
        table = {row["approach"]: row for row in csv.DictReader(file)}
    assert list(table) == ["baseline", "finetune", "retrained", "oracles, split in half"]
    assert float(table["retrained"]["crossfit"]) < 0.2 < float(table["finetune"]["crossfit"])
    assert {path: path.stat().st_mtime_ns for path in logits.rglob("*")} == before  # nothing is written into somebody's data


def test_one_approach_with_originals_and_a_further_metric(call: Call, logits: Path, tmp_path: Path) -> None:
    said = call(
        "attack", str(logits), "finetune", "--originals", "N", "--delta", "0.1", "--metrics", "tow", "--metrics", "loss", "--out", str(tmp_path / "out")
    )
    assert said.code == 0, said.err
    assert "Epsilon at δ = 0.1" in said.out
    assert "every unlearned model comes from an original of its own, as --originals N says" in " ".join(said.out.split())
    assert re.search(r"perm\.omnibus", said.out)
    assert "not computed: there are no retain examples" in said.out
    assert "loss.forget" in said.out
    assert "retrained" not in said.out
    assert (tmp_path / "out" / "attack.json").exists()
    assert not (tmp_path / "attack-logits").exists()


def test_with_originals_logits_there_is_a_verdict(call: Call, tmp_path: Path) -> None:
    parts = [made(name, shift, seed, 20) for name, shift, seed in (("oracles", 0.0, 0), ("originals", 2.0, 1), ("half", 1.0, 2), ("done", 0.0, 3))]
    write_plain(tmp_path / "plain", parts[0], parts[1], parts[2:])
    said = call("attack", str(tmp_path / "plain"), "--originals", "N")
    assert said.code == 0, said.err
    assert "of the trace left" in said.out
    assert re.search(r"^half .*not forgotten", said.out, re.MULTILINE)
    assert "Power:" in said.out
    assert "no verdict" in call("attack", str(tmp_path / "plain"), "--out", str(tmp_path / "again")).out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "there is no folder nowhere"),
        (("logits", "finetone"), "holds no approach 'finetone'; did you mean 'finetune'?"),
        (("logits", "--metrics", "toww"), "unknown metric 'toww'; did you mean 'tow'?"),
        (("logits", "--originals", "none"), "--originals none is none of N"),
        (("logits", "--delta", "2"), "delta = 2 is out of range"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(call: Call, logits: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    said = call("attack", *words)
    assert said.code == 2
    assert told in said.err
    assert len(said.err.splitlines()) == 1
    assert not list(tmp_path.glob("attack-*"))


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("taken", "is a file; name another folder with --out"),
        ("taken/deeper", "is a file; name another folder with --out"),
        ("/proc/no", "cannot"),
        ("logits", "lies in logits, which is only read"),
        ("logits/finetune/report", "lies in logits, which is only read"),
    ],
)
def test_a_report_that_can_go_nowhere_is_one_line(call: Call, logits: Path, tmp_path: Path, out: str, told: str) -> None:
    (tmp_path / "taken").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    said = call("attack", "logits", "finetune", "--out", out)
    assert said.code == 2
    assert told in said.err
    assert len(said.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken").read_text() == "mine"


def test_from_within_the_folder_another_place_is_asked_for(call: Call, logits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(logits)
    before = sorted(logits.rglob("*"))
    said = call("attack", ".", "finetune")
    assert (said.code, said.out) == (2, "")
    assert "--out" in said.err
    assert sorted(logits.rglob("*")) == before


def test_approaches_may_be_called_anything(call: Call, tmp_path: Path) -> None:
    names = ("delta", "id", "=1+1", "$x^2_{", "[red]", "<i>", '"onload=x')
    write_fwp(tmp_path / "odd", made("oracles", 0.0, 0, 20), [made(name, 1.0, at, 20) for at, name in enumerate(names, 1)])
    said = call("attack", "odd")
    assert said.code == 0, said.err
    with (tmp_path / "attack-odd" / "tables" / "per_example.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["id"] for line in table] == [str(at) for at in range(EXAMPLES)]
    assert {f"{name}.crossfit" for name in names} <= set(table[0])
    with (tmp_path / "attack-odd" / "tables" / "curves.csv").open(newline="") as file:
        assert {line["approach"] for line in csv.DictReader(file) if line["crossfit"]} == set(names)  # halves of 10 oracles are too few
    page = (tmp_path / "attack-odd" / "report.html").read_text()
    assert "default-src &#39;none&#39;" in page
    assert "&lt;i&gt;" in page
    assert "<i>" not in page


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\udcff"])
def test_names_that_cannot_be_printed_are_refused(call: Call, tmp_path: Path, name: str) -> None:
    write_fwp(tmp_path / "odd", made("oracles", 0.0, 0, 4), [made("plain", 1.0, 1, 4)])
    (tmp_path / "odd" / "plain").rename(tmp_path / "odd" / name)
    said = call("attack", "odd")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert ascii(name) in said.err
    assert not list(tmp_path.glob("attack-*"))


def test_the_name_of_the_row_to_compare_with_is_taken(call: Call, tmp_path: Path) -> None:
    write_fwp(tmp_path / "odd", made("oracles", 0.0, 0, 20), [made("oracles, split in half", 1.0, 1, 20)])
    said = call("attack", "odd")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "give it another" in said.err


def test_a_folder_that_may_not_be_read_is_one_line(call: Call, tmp_path: Path) -> None:
    said = call("attack", "a" * 5000)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "cannot read" in said.err
