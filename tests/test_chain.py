"""Requests in order: every step starts from the last, nothing removed comes back, and drift is told."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from unlearnlab import artefacts as make
from unlearnlab import filing, measuring, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.attribution import Attribution
from unlearnlab.chain import run_requests
from unlearnlab.cli import call
from unlearnlab.engine import Local
from unlearnlab.planning import needed, plan
from unlearnlab.spec import InputError
from unlearnlab.store import Store

TINY = (
    "models=3",
    'net={name="mlp", hidden=[12]}',
    "recipe.epochs=2",
    "partition.train=120",
    "partition.held_out=60",
    "partition.test=100",
    "forget.count=10",
    "forget.mislabelled=5",
    'methods=[{name="finetune", epochs=1}, {name="salun", epochs=1}, {name="reset_finetune", epochs=1}]',
    'metrics=[{name="acc", part="test"}, "tow"]',
)


def chain(root: Path, sets: str, *changes: str, until: str = "audit"):
    name, what = studyfiles.read("digits", [*TINY, f"requests={{sets={sets}}}", *changes])
    with Local(1) as engine:
        return run_requests(what, name, Store(root), until=until, engine=engine)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Three requests: ten images as the study's forget set says, then twice others at random."""
    root = tmp_path_factory.mktemp("chain")
    runners, drift = chain(root, '[{name="random", count=8, draw=1}, {name="random", count=6, draw=2}]')
    return root, runners, drift


def test_every_step_starts_from_the_models_of_the_last(done) -> None:
    _, runners, _ = done
    for before, after in pairwise(runners):
        for name in ("finetune", "salun", "reset_finetune"):
            for parent, key in zip(before.unlearned[name], after.unlearned[name], strict=True):
                manifest = after.store.manifest("stacks", key)
                assert manifest["parent"] == f"stacks/{parent}"
                assert manifest["origin"].partition("/")[2] in runners[0].originals
        assert after.unlearned["original"] != before.unlearned["original"]  # another split, but always the originals
        assert after.store.manifest("stacks", after.unlearned["original"][0])["parent"] == f"stacks/{runners[0].originals[0]}"


def test_what_is_retained_shrinks_and_nothing_removed_comes_back(done) -> None:
    _, runners, _ = done
    gone: set[int] = set()
    for at, runner in enumerate(runners):
        split = ground.load_split(runner.setup, runner.data_key, runner.forget_key)
        seen = ground.load_request(runner.setup, runner.data_key, runner.forget_key)
        asked = set(seen.forget.ids.tolist())
        assert len(asked) == (10, 8, 6)[at]
        assert not asked & gone
        gone |= asked
        assert set(split.forget.ids.tolist()) == gone
        assert not set(seen.retain.ids.tolist()) & gone
        assert len(seen.retain) == 120 - len(gone)
        oracle = runner.store.manifest("stacks", runner.oracles[0])
        assert oracle["images"] == seen.retain.fingerprint  # retrained on what is left


def test_each_request_is_a_group_of_the_audit(done) -> None:
    _, runners, _ = done
    last = runners[-1]
    audit = measuring.gather(last.setup, last.data_key, last.forget_key, last.ensembles("finetune"))
    forget = audit.unlearned.part == 0
    assert [int((audit.groups[f"request {at}"] & forget).sum()) for at in (1, 2, 3)] == [10, 8, 6]
    assert all(bool(audit.groups[f"request {at}"][~forget].all()) for at in (1, 2, 3))


def test_a_later_request_draws_numbers_of_its_own(tmp_path: Path) -> None:
    method = '{name="localised", where={name="random", budget=0.4}, method={name="finetune", epochs=1}}'
    runners, _ = chain(tmp_path, '[{name="random", count=8, draw=1}]', f"methods=[{method}]", until="mask")
    first, second = (make.load_mask(runner.setup, runner.masks["localised"][0]) for runner in runners)
    assert any(not torch.equal(bits, second.open[name]) for name, bits in first.open.items())  # the lot depends on the seeds alone


def test_drift_is_measured_against_retraining_at_every_step(done) -> None:
    root, runners, drift = done
    assert [(row.request, row.removed) for row in drift if row.method == "finetune"] == [(1, 10), (2, 18), (3, 24)]
    assert {row.method for row in drift} == set(runners[0].unlearned)
    assert not any(row.retrain_now for row in drift if row.method in ("retrain", "original"))
    rows = list(csv.DictReader((root / "studies" / "digits" / "drift.csv").read_text().splitlines()))
    assert len(rows) == len(drift)
    assert (root / "studies" / "digits" / "drift.svg").read_text().startswith("<svg")


def test_nothing_is_made_twice_and_tidying_keeps_all(done) -> None:
    root, runners, _ = done
    stacks = {path.name for path in (root / "stacks").iterdir()}
    chain(root, '[{name="random", count=8, draw=1}, {name="random", count=6, draw=2}]')
    assert {path.name for path in (root / "stacks").iterdir()} == stacks
    live, unfinished = needed(runners[0].store)
    assert {("stacks", name) for name in stacks} <= live
    assert not unfinished


def test_a_trigger_says_retrain_now(done) -> None:
    root, *_ = done
    strict = chain(root, '[{name="random", count=8, draw=1}]', "requests.gap=0.0", "requests.tow=1.0")[1]
    assert all(row.retrain_now for row in strict if row.method == "finetune" and abs(row.retain_gap) > 0)
    lenient = chain(root, '[{name="random", count=8, draw=1}]', "requests.gap=1.0", "requests.tow=0.0")[1]
    assert not any(row.retrain_now for row in lenient)


def test_ids_already_removed_are_refused_by_name(tmp_path: Path) -> None:
    first = '{name="ids", ids=[%s]}'
    name, what = studyfiles.read("digits", [*TINY])
    with Local(1) as engine:
        runner = study.run(what, name, Store(tmp_path), until="data", engine=engine)
    ids = ground.load_split(runner.setup, runner.data_key, runner.forget_key)
    old, new = ids.forget.ids[:2].tolist(), ids.retain.ids[:2].tolist()
    asked = first % ", ".join(map(str, old + new))
    with pytest.raises(InputError, match=rf"request 2 of 2: .*2 id\(s\) that an earlier request removed already: {old[0]}, {old[1]}; leave them out"):
        chain(tmp_path, f"[{asked}]")


def test_the_plan_counts_every_request(done) -> None:
    root, *_ = done
    _, what = studyfiles.read("digits", [*TINY, 'requests={sets=[{name="random", count=8, draw=1}]}'])
    rows = {item.row: item.models for item in plan(what, Store(root))}
    assert rows["request 2: oracles"] == rows["request 2: finetune"] == 3
    assert "request 2: original" not in rows


def test_the_command_tells_of_drift(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path))
    changes = [word for change in (*TINY, 'requests={sets=[{name="random", count=8, draw=1}]}') for word in ("--set", change)]
    assert call(["run", "digits", "--workers", "1", *changes]) == 0
    told = capsys.readouterr().out
    assert "request 2 of 2" in told
    assert "drift from models retrained on what is left" in told
    assert (tmp_path / "studies" / "digits.request-2" / "report.html").exists()


def test_a_later_request_that_cannot_be_met_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="request 3 of 3: forget set 'random' asks for 800"):
        chain(tmp_path, '[{name="random", count=8, draw=1}, {name="random", count=800, draw=2}]')
    assert not (tmp_path / "stacks").exists()


def test_a_later_request_by_score_that_cannot_be_met_is_refused_before_anything_is_forgotten(tmp_path: Path) -> None:
    scores = 'scores=[{name="memorisation", models=8}]'
    with pytest.raises(InputError, match="request 2 of 2: forget set 'by_score' asks for 800"):
        chain(tmp_path, '[{name="by_score", band="high", count=800}]', scores)
    assert len(list((tmp_path / "stacks").glob("*/manifest.json"))) == 1  # the originals
    with pytest.raises(InputError, match="request 2 of 3: forget set 'random' asks for 800"):
        chain(tmp_path / "other", '[{name="random", count=800}, {name="by_score", band="high", count=9}]', scores)
    assert not (tmp_path / "other" / "stacks").exists()  # nor trained, where it is known without scores


def test_answers_without_models_take_back_every_request(tmp_path: Path) -> None:
    """They start from the originals each time, which saw all of it; and another order of requests is the same deletion."""
    methods = 'methods=["datamodel_direct", "sisa"]'
    runners, _ = chain(tmp_path, '[{name="random", count=8, draw=1}]', methods, "attribution.models=40")
    last = runners[-1]
    split = ground.load_split(last.setup, last.data_key, last.forget_key)
    originals = filing.load_outputs(last.setup, [filing.outputs_key(key, split.fingerprint) for key in last.originals])
    effect = Attribution.read(ground.stored(last.setup, "attribution", last.attribution_key)).effect(split.forget.ids, originals.ids)
    answered = filing.load_outputs(last.setup, last.unlearned["datamodel_direct"])
    assert torch.allclose(answered.logits, originals.logits - effect, atol=1e-5)
    name, what = studyfiles.read("digits", [*TINY, methods, "attribution.models=40", f"forget={{name='ids', ids={split.forget.ids.tolist()}}}"])
    with Local(1) as engine:
        once = study.run(what, f"{name}-once", Store(tmp_path), until="unlearn", engine=engine)
    assert once.unlearned["sisa"] == last.unlearned["sisa"]
    passes = last.store.manifest("outputs", last.unlearned["sisa"][0])["example_passes"]
    with Local(1) as engine:
        fresh = study.run(what, name, Store(tmp_path / "other"), until="unlearn", engine=engine)
    assert fresh.store.manifest("outputs", fresh.unlearned["sisa"][0])["example_passes"] == passes


def test_the_report_of_a_study_with_requests_is_found(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path))
    (tmp_path / "studies" / "digits.request-1").mkdir(parents=True)
    (tmp_path / "studies" / "digits.request-1" / "audit.json").write_text("{}")
    assert call(["report", "digits"]) == 2
    assert "unlearnlab report digits.request-1" in capsys.readouterr().err


def test_the_plan_refuses_requests_that_cannot_be_met(done) -> None:
    root, runners, _ = done
    old = ground.load_split(runners[0].setup, runners[0].data_key, runners[0].forget_key).forget.ids[0].item()
    _, what = studyfiles.read("digits", [*TINY, f'requests={{sets=[{{name="ids", ids=[{old}]}}]}}'])
    with pytest.raises(InputError, match=rf"request 2: .*already: {old}; leave them out"):
        plan(what, Store(root))
