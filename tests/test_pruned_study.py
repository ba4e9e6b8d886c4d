"""A study whose models are pruned: originals and oracles are sparse in the same places, and so is all that is unlearned from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlearnlab import artefacts as make
from unlearnlab import filing, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.engine import Local
from unlearnlab.methods.del_ import Del
from unlearnlab.planning import plan
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
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
    name, what = studyfiles.read("digits", [*TINY, *changes])
    with Local(1) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine)


@pytest.mark.parametrize("pruning", ["omp", "synflow"])
def test_everything_is_as_sparse_as_the_originals_and_in_the_same_places(pruning: str, tmp_path: Path) -> None:
    changes = (f'prune={{name="{pruning}", sparsity=0.8}}',)
    done = run(tmp_path, *changes)
    images = ground.load_data(done.setup, done.data_key).train
    parents = [filing.load_stack(done.setup, key, images) for key in done.originals]
    assert parents[0].live
    for keys in (done.oracles, *done.unlearned.values()):
        for parent, key in zip(parents, keys, strict=True):
            held = filing.load_stack(done.setup, key, images)
            for name, live in parent.live.items():
                assert torch.equal(held.live[name], live)
                assert int((held.params[name][~live] != 0).sum()) == 0
    oracle = filing.load_stack(done.setup, done.oracles[0], images)
    assert not torch.equal(oracle.params["1.weight"], parents[0].params["1.weight"])  # fresh weights, never rewound ones
    rows = {row["method"]: row["results"] for row in done.document["rows"]}
    weights = sum(live[0].numel() for live in parents[0].live.values())
    for name in ("original", "retrain", "finetune", "del"):
        assert rows[name]["sparsity.prunable"]["value"] == pytest.approx(round(0.8 * weights) / weights)
        assert 0 < rows[name]["sparsity.all"]["value"] < rows[name]["sparsity.prunable"]["value"]
    assert all(item.reused == item.models for item in plan(studyfiles.read("digits", [*TINY, *changes])[1], done.store))
    assert all(item.seconds is not None for item in plan(studyfiles.read("digits", [*TINY, *changes, "forget.draw=1"])[1], done.store))
    made = {path.name for path in (tmp_path / "stacks").iterdir()}
    run(tmp_path, *changes)
    assert {path.name for path in (tmp_path / "stacks").iterdir()} == made


def test_a_dense_study_has_no_sparsity_and_no_masks(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert not filing.load_stack(done.setup, done.originals[0], ground.load_data(done.setup, done.data_key).train).live
    assert done.document["rows"][0]["results"]["sparsity.prunable"]["value"] == 0.0


def test_a_pruning_without_its_states_is_refused_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.rewind is not given; set it"):
        run(tmp_path, "prune=omp", "recipe={name='standard', epochs=2}", until="prune")


def test_one_original_for_all_is_pruned_once(tmp_path: Path) -> None:
    trained = run(tmp_path / "first", "models=1", until="original")
    images = ground.load_data(trained.setup, trained.data_key).train
    torch.save(filing.load_stack(trained.setup, trained.originals[0], images).member(0).state_dict(), tmp_path / "model.pt")
    changes = (
        f"original={{name='checkpoint', checkpoint='{tmp_path}/model.pt'}}",
        'prune={name="omp", sparsity=0.8, rewind_to="trained"}',
        'methods=[{name="finetune", epochs=1}]',
    )
    done = run(tmp_path / "second", *changes)
    (parent,) = (filing.load_stack(done.setup, key, images) for key in done.originals)
    assert len(parent) == 1
    for key in (*done.oracles, *done.unlearned["retrain"], *done.unlearned["finetune"]):
        held = filing.load_stack(done.setup, key, images)
        for name, live in parent.live.items():
            assert torch.equal(held.live[name], live.expand(2, *live.shape[1:]))
            assert int((held.params[name][~held.live[name]] != 0).sum()) == 0
    items = {item.row: item for item in plan(studyfiles.read("digits", [*TINY, *changes])[1], done.store)}
    assert items["sparse originals"].models == 1
    assert all(item.reused == item.models for item in items.values())


def test_sparsity_is_of_what_was_to_be_pruned(tmp_path: Path) -> None:
    done = run(tmp_path, 'prune={name="synflow", sparsity=0.8, rounds=3, include_linear=true}', until="prune")
    assert done.store.manifest("stacks", done.originals[0])["sparsity_prunable"] == pytest.approx([0.8, 0.8], abs=0.003)


def test_a_net_of_layers_of_its_own_has_no_prunable_weights() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))

    assert make._sparsity(Stack.of([Own()], (0,))) == {"sparsity_all": [0.75]}


def test_initial_weights_are_as_sparse_as_the_original(tmp_path: Path) -> None:
    """Else a method that starts from them, or repeats the training, would have pruned weights back."""
    done = run(tmp_path, 'prune={name="synflow", sparsity=0.8, rounds=3}', until="prune")
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    source = make.Source(done.originals[0], (0, 1))
    original, ctx = make.at_hand(done.setup, Del(), source, split, Progress())
    assert ctx.original_init is not None
    for name, live in original.live.items():
        assert torch.equal(ctx.original_init.live[name], live)
        assert int((ctx.original_init.params[name][~live] != 0).sum()) == 0


def test_the_report_says_where_the_pruning_saw_the_forget_set(tmp_path: Path) -> None:
    few = 'methods=[{name="finetune", epochs=1}]'
    seen = run(tmp_path, few, 'prune={name="omp", sparsity=0.8}').document["notes"]
    assert any("pruned by 'omp': which weights are left was learnt from all training images, the forget set among them" in note for note in seen)
    blind = run(tmp_path, few, 'prune={name="synflow", sparsity=0.8, rounds=3}').document["notes"]
    assert not any("pruned by" in note for note in blind)


def test_oracles_may_be_pruned_by_themselves_so_that_no_mask_saw_the_forget_set(tmp_path: Path) -> None:
    changes = ('prune={name="omp", sparsity=0.8}', 'mask_from="retain"', 'methods=[{name="finetune", epochs=1}]')
    done = run(tmp_path, *changes)
    images = ground.load_data(done.setup, done.data_key).train
    retain = ground.load_split(done.setup, done.data_key, done.forget_key).retain.fingerprint
    for key in done.oracles:
        manifest = done.store.manifest("stacks", key)
        dense = done.store.manifest("stacks", manifest["parent"].partition("/")[2])
        assert manifest["images"] == dense["images"] == retain  # dense training, the choice of weights, and what came after
    original, oracle = (filing.load_stack(done.setup, keys[0], images) for keys in (done.originals, done.oracles))
    assert not torch.equal(original.live["1.weight"], oracle.live["1.weight"])
    assert int(original.live["1.weight"].sum()) > 0
    assert not any("the forget set among them" in note for note in done.document["notes"])
    assert all(item.reused == item.models for item in plan(studyfiles.read("digits", [*TINY, *changes])[1], done.store))


def test_what_is_restored_is_what_was_saved_weights_and_places(tmp_path: Path) -> None:
    """Published code that loads weights before it attaches masks leaves its convolutions at random values."""
    from toy import make_toy, same
    from unlearnlab import filing
    from unlearnlab.prune.cut import magnitudes, prunable, without_lowest

    done = run(tmp_path, 'prune={name="synflow", sparsity=0.5}', until="prune")
    images = ground.load_data(done.setup, done.data_key).train
    kept = filing.load_stack(done.setup, done.originals[0], images)
    sparse = without_lowest(kept, magnitudes(kept, prunable(kept.net, False)), 0.5)
    filing.save_stack(tmp_path / "weights.safetensors", sparse)
    again = filing.load_tensors(done.setup, tmp_path, images)
    assert same(again.params, sparse.params)
    assert same(again.live, sparse.live)
    assert again.fingerprint == sparse.fingerprint
    assert torch.equal(again.logits(images.pixels[:5]), sparse.logits(images.pixels[:5]))
    dense = make_toy("small_cnn").stack
    assert dense.pruned({"1.weight": torch.ones_like(dense.params["1.weight"], dtype=torch.bool)}).fingerprint != dense.fingerprint


def test_mask_from_without_pruning_is_refused() -> None:
    with pytest.raises(InputError, match="this study prunes nothing"):
        studyfiles.read("digits", ['mask_from="retain"'])
