"""Proxies in a study: the four learning-event scores come from one training run, and every image gets its number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from test_study import run
from unlearnlab import filing, study
from unlearnlab import groundwork as ground
from unlearnlab.seeds import RANGES

EVENTS = ("confidence", "max_conf", "entropy", "bi_acc")
LISTED = "scores=['confidence', 'max_conf', 'entropy', 'bi_acc', {name='ho_ret', epochs=2}, {name='loss_curvature', every=2}]"


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> study.Runner:
    return run(tmp_path_factory.mktemp("probes"), [LISTED], until="score")


def manifests(runner: study.Runner, kind: str) -> dict[str, dict]:
    store = runner.setup.store
    return {folder.name: store.manifest(kind, folder.name) for folder in (store.root / kind).iterdir() if "." not in folder.name}


def test_the_event_scores_share_one_probe(scored: study.Runner) -> None:
    probes, scores = manifests(scored, "probes"), manifests(scored, "scores")
    assert sorted(held["name"] for held in probes.values()) == ["ho_ret", "learning_events", "loss_curvature"]
    (events,) = (f"probes/{key}" for key, held in probes.items() if held["name"] == "learning_events")
    assert all(scores[scored.scores[name]]["read_off"] == [events] for name in EVENTS)
    assert all(held["seeds"] == [RANGES["probe"]] for held in probes.values()), "one model each, none of them audited"


def test_every_training_image_has_its_scores(scored: study.Runner) -> None:
    train = ground.load_data(scored.setup, scored.data_key).train
    for name in (*EVENTS, "ho_ret", "loss_curvature"):
        held = filing.load_scores(scored.setup, scored.scores[name])
        assert held.name == name
        assert bool(held.of(train.ids).isfinite().all())
        assert len(torch.unique(held.values)) > 2


def test_what_is_there_is_not_gathered_again(scored: study.Runner) -> None:
    root: Path = scored.setup.store.root
    before = {path: path.stat().st_mtime_ns for path in (root / "probes").glob("*/manifest.json")}
    more = LISTED.replace("'entropy'", "{name='entropy', models=2}")
    again = run(root, [more], until="score")
    assert again.scores["entropy"] != scored.scores["entropy"]
    assert {name: again.scores[name] for name in ("confidence", "ho_ret")} == {name: scored.scores[name] for name in ("confidence", "ho_ret")}
    held = filing.load_scores(again.setup, again.scores["entropy"])
    assert "stderr" in held.beside
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
