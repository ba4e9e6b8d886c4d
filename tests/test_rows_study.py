"""Rows of a study that need more than models and images, or that give no models back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unlearnlab import filing, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.attribution import Attribution
from unlearnlab.engine import Local
from unlearnlab.planning import needed, plan
from unlearnlab.spec import InputError, build
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
    "attribution.models=40",
    'methods=["oracle_matching", "datamodel_matching", "datamodel_direct", "sisa", "certified_removal", {name="retrain", label_smoothing=0.1}]',
    'metrics=[{name="acc", part="test"}, "delta.changed", "cost.example_passes"]',
)
ANSWERED = ("datamodel_direct", "sisa", "certified_removal")


def run(root: Path, *changes: str, until: str = "audit") -> study.Runner:
    name, what = studyfiles.read("digits", [*TINY, *changes])
    with Local(1) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> study.Runner:
    return run(tmp_path_factory.mktemp("rows"))


def test_rows_without_models_are_audited_from_what_they_answer(done) -> None:
    assert done.answered == set(ANSWERED)
    rows = {row["method"]: row["results"] for row in done.document["rows"]}
    for name in ANSWERED:
        assert len(done.unlearned[name]) == 1
        assert done.store.get("stacks", done.unlearned[name][0]) is None
        seen = filing.load_outputs(done.setup, done.unlearned[name])
        assert seen.logits.shape[0] == 3
        assert bool(torch.isfinite(seen.logits).all())
        assert rows[name]["acc.test"]["value"] is not None
        assert rows[name]["delta.changed"]["missing"] == "not computed: 'changed' was not measured"
        assert rows[name]["cost.example_passes"]["value"] is not None
    assert rows["oracle_matching"]["delta.changed"]["value"] > 0


def test_the_attribution_covers_every_image_and_is_kept_with_its_outputs(done) -> None:
    held = Attribution.read(ground.stored(done.setup, "attribution", done.attribution_key))
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    images, _ = split.together()
    assert set(held.point_ids.tolist()) == set(images.ids.tolist())
    assert set(held.train_ids.tolist()) == set(split.train.ids.tolist())
    manifest = done.store.manifest("attribution", done.attribution_key)
    seen = filing.load_outputs(done.setup, [one.partition("/")[2] for one in manifest["subsets"]])
    assert len(seen) == held.meta["models"] == 40
    trained = torch.isin(seen.ids, split.train.ids)
    assert seen.member[:, trained].sum(1).tolist() == [60] * 40  # half of 120
    assert not bool(seen.member[:, ~trained].any())


def test_what_is_predicted_is_the_original_minus_the_effect(done) -> None:
    answered = filing.load_outputs(done.setup, done.unlearned["datamodel_direct"])
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    originals = filing.load_outputs(done.setup, [filing.outputs_key(key, split.fingerprint) for key in done.originals])
    held = Attribution.read(ground.stored(done.setup, "attribution", done.attribution_key))
    effect = held.effect(split.forget.ids, originals.ids)
    assert torch.allclose(answered.logits, originals.logits - effect, atol=1e-5)


def test_variants_of_retraining_are_rows_of_their_own(done) -> None:
    assert "retrain-2" in done.unlearned
    assert done.unlearned["retrain-2"] != done.unlearned["retrain"]
    seen = filing.load_outputs(done.setup, [filing.outputs_key(done.unlearned["retrain-2"][0], done.store.manifest("forget", done.forget_key)["split"])])
    assert not bool(seen.member[:, seen.part == 0].any())  # it never saw the forget set


def test_nothing_is_made_twice_and_the_plan_knows(done) -> None:
    before = {path for kind in ("stacks", "outputs", "attribution") for path in (done.store.root / kind).iterdir()}
    again = run(done.store.root)
    assert again.unlearned == done.unlearned
    assert {path for kind in ("stacks", "outputs", "attribution") for path in (done.store.root / kind).iterdir()} == before
    items = {item.row: item for item in plan(done.study, done.store)}
    assert items["subset models"].models == items["subset models"].reused == 40
    assert all(item.reused == item.models for item in items.values())


def test_tidying_keeps_attributions_and_answers(done) -> None:
    run(done.store.root)
    live, _ = needed(done.store)
    kept = {("attribution", done.attribution_key), *(("outputs", done.unlearned[name][0]) for name in ANSWERED)}
    assert kept <= live
    index = json.loads((done.store.study("digits") / "index.json").read_text())
    assert index["outputs/unlearned/sisa"] == [f"outputs/{done.unlearned['sisa'][0]}"]


def test_a_study_that_reads_no_attribution_trains_no_subset_models(tmp_path: Path) -> None:
    done = run(tmp_path, 'methods=["finetune"]', until="oracle")
    assert not (done.store.root / "attribution").exists()


def test_triggered_controls_and_attributions_do_not_go_together(tmp_path: Path) -> None:
    corrupted = ('corruption={name="backdoor", share=0.1}', 'forget={name="backdoor"}')
    with pytest.raises(InputError, match="leave the datamodel methods out"):
        run(tmp_path, *corrupted, 'methods=["datamodel_direct"]', until="score")
    assert not (tmp_path / "stacks").exists()  # before anything is trained


def test_legacy_settings_are_printed_in_the_header(tmp_path: Path) -> None:
    method = '{name="localised", where={name="weighted_grad_channel", tie="legacy_argsort"}, method={name="finetune", epochs=1}}'
    notes = run(tmp_path, f"methods=[{method}]").document["notes"]
    assert "localised: tie = legacy_argsort reproduces published code, not what it should be" in notes
    assert not any("reproduces" in note for note in run(tmp_path, 'methods=["finetune"]').document["notes"])


def test_answers_refuse_to_be_called_on_a_model() -> None:
    from unlearnlab.unlearning import unlearn

    images = ground.Images(torch.rand(20, 1, 8, 8), torch.arange(20) % 10, torch.arange(20), 10)
    net = build("net", "mlp")((1, 8, 8), 10)
    with pytest.raises(InputError, match="gives no model back"):
        unlearn(net, forget=images.rows(torch.arange(5)), retain=images.rows(torch.arange(5, 20)), method="sisa")
