"""A study whose models are pruned: originals and oracles are sparse in the same places, and so is all that is unlearned from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlearnlab import artefacts as make
from unlearnlab import groundwork as ground
from unlearnlab import study
from unlearnlab.engine import Local
from unlearnlab.planning import plan
from unlearnlab.spec import InputError
from unlearnlab.store import Store

TINY = (
    "models=2",
    'net={name="small_cnn", widths=[4, 4, 4]}',
    "recipe.epochs=2",
    "recipe.rewind=1",
    "partition.train=120",
    "partition.held_out=60",
    "partition.test=100",
    "forget.count=12",
    "forget.mislabelled=6",
    'methods=[{name="finetune", epochs=1}, {name="salun", epochs=1}, {name="del", epochs=1}, {name="reset_finetune", epochs=1}]',
    'metrics=[{name="acc", part="test"}, "delta.changed", "sparsity.prunable", "sparsity.all"]',
)


def run(root: Path, *changes: str, until: str = "audit") -> study.Runner:
    name, what = study.read("digits", [*TINY, *changes])
    with Local(1) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine)


@pytest.mark.parametrize("pruning", ["omp", "synflow"])
def test_everything_is_as_sparse_as_the_originals_and_in_the_same_places(pruning: str, tmp_path: Path) -> None:
    changes = (f'prune={{name="{pruning}", sparsity=0.8}}',)
    done = run(tmp_path, *changes)
    images = ground.load_data(done.setup, done.data_key).train
    parents = [make.load_stack(done.setup, key, images) for key in done.originals]
    assert parents[0].live
    for keys in (done.oracles, *done.unlearned.values()):
        for parent, key in zip(parents, keys, strict=True):
            held = make.load_stack(done.setup, key, images)
            for name, live in parent.live.items():
                assert torch.equal(held.live[name], live)
                assert int((held.params[name][~live] != 0).sum()) == 0
    oracle = make.load_stack(done.setup, done.oracles[0], images)
    assert not torch.equal(oracle.params["1.weight"], parents[0].params["1.weight"])  # fresh weights, never rewound ones
    rows = {row["method"]: row["results"] for row in done.document["rows"]}
    weights = sum(live[0].numel() for live in parents[0].live.values())
    for name in ("original", "retrain", "finetune", "del"):
        assert rows[name]["sparsity.prunable"]["value"] == pytest.approx(round(0.8 * weights) / weights)
        assert 0 < rows[name]["sparsity.all"]["value"] < rows[name]["sparsity.prunable"]["value"]
    assert all(item.reused == item.models for item in plan(study.read("digits", [*TINY, *changes])[1], done.store))
    made = {path.name for path in (tmp_path / "stacks").iterdir()}
    run(tmp_path, *changes)
    assert {path.name for path in (tmp_path / "stacks").iterdir()} == made


def test_a_dense_study_has_no_sparsity_and_no_masks(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert not make.load_stack(done.setup, done.originals[0], ground.load_data(done.setup, done.data_key).train).live
    assert done.document["rows"][0]["results"]["sparsity.prunable"]["value"] == 0.0


def test_a_pruning_without_its_states_is_refused_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set recipe\.rewind"):
        run(tmp_path, "prune=omp", "recipe={name='standard', epochs=2}", until="prune")
