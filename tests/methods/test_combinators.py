"""``sequence``, ``prune_first`` and ``finetune_prune``: methods in a row, and methods on sparse models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from toy import Interrupted, Stops, Toy, make_toy, same
from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.finetune_prune import FineTunePrune
from unlearnlab.methods.prune_first import PruneFirst
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.salun import SalUn
from unlearnlab.methods.sequence import Sequence
from unlearnlab.progress import Progress
from unlearnlab.prune.cut import Dense, prunable, sparsity
from unlearnlab.prune.omp import Omp
from unlearnlab.prune.synflow import SynFlow
from unlearnlab.seeds import at_step, generator
from unlearnlab.spec import InputError, build, spec
from unlearnlab.stack import Stack


def test_a_sequence_is_its_steps_in_order(toy: Toy) -> None:
    first, then = RandomLabel(epochs=1, batch=16), SalUn(epochs=1, batch=16, budget=0.3)
    together, ctx = toy.unlearn(Sequence(steps=(first, then))), toy.context()
    later = replace(ctx, seeds=tuple(generator(seed, "sequence.step", 1).initial_seed() for seed in ctx.seeds))
    assert same(together.params, replace(toy, stack=toy.unlearn(first)).unlearn(then, later).params)  # the mask is that of the model at hand
    assert not same(together.params, replace(toy, stack=toy.unlearn(first)).unlearn(then).params)  # and its draws are its own
    assert not same(together.params, toy.unlearn(Sequence(steps=(then, first))).params)
    assert Sequence(steps=(first, FineTune())).reads == {"forget", "retain"}


@spec("method", "draws_of_a_sequence")
class Draws:
    """Notes the seeds that it is given."""

    cost: ClassVar[str] = "0"
    null: ClassVar[Mapping[str, Any] | None] = None
    reads: ClassVar[frozenset[str]] = frozenset({"forget"})

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        DRAWN.extend(ctx.seeds)
        return stack


DRAWN: list[int] = []


def test_no_step_draws_what_a_later_request_draws(toy: Toy) -> None:
    DRAWN.clear()
    for request in range(3):
        ctx = toy.context()
        toy.unlearn(Sequence(steps=(Draws(), Draws(), Draws())), replace(ctx, seeds=tuple(at_step(seed, request) for seed in ctx.seeds)))
    assert len(set(DRAWN)) == len(DRAWN) == 27


def test_the_cost_of_a_sequence_is_the_sum(toy: Toy) -> None:
    ctx = toy.context()
    toy.unlearn(Sequence(steps=(FineTune(epochs=2), RandomLabel(epochs=3))), ctx)
    assert ctx.progress.backward == 2 * 56 + 3 * 60


def test_senseless_sequences_are_refused() -> None:
    with pytest.raises(InputError, match="at least one step"):
        Sequence(steps=())
    with pytest.raises(InputError, match="cannot hold 'sisa', which gives no models back"):
        Sequence(steps=(FineTune(), build("method", "sisa")))


def test_prune_first_refuses_a_method_that_gives_no_models_back() -> None:
    with pytest.raises(InputError, match="cannot hold 'sisa'"):
        PruneFirst(pruning=Omp(), method=build("method", "sisa"))


@pytest.mark.parametrize("epochs", range(1, 8))
def test_finetune_prune_ends_at_its_sparsity_whatever_the_epochs(epochs: int) -> None:
    toy = make_toy("small_cnn").only(0)
    after = toy.unlearn(FineTunePrune(epochs=epochs, sparsity=0.9, batch=56))
    chosen = prunable(after.net, False)
    weights = sum(after.params[n][0].numel() for n in chosen)
    assert float(sparsity(after, chosen)) == pytest.approx(1 - round(0.1 * weights) / weights, abs=1e-12)


def test_finetune_prune_removes_before_every_second_epoch_from_the_last() -> None:
    assert {e: FineTunePrune(epochs=e).removals() for e in range(1, 7)} == {1: [0], 2: [0], 3: [0, 1], 4: [0, 2], 5: [0, 1, 3], 6: [0, 2, 4]}
    for e in range(1, 40):
        assert len(FineTunePrune(epochs=e).removals()) == (e - 1) // 2 + 1


def test_finetune_prune_without_removal_is_finetune_but_for_momentum(toy: Toy) -> None:
    plain: Any = build("optimizer", {"name": "sgd", "momentum": 0.0})
    schedule: Any = build("schedule", "cosine")
    pruning = FineTunePrune(epochs=4, batch=16, sparsity=0.0, optimizer=plain, schedule=schedule)
    assert same(toy.unlearn(pruning).params, toy.unlearn(FineTune(epochs=4, batch=16, optimizer=plain, schedule=schedule)).params)


def test_prune_first_is_pruning_and_then_the_method(toy: Toy) -> None:
    pruning, method = SynFlow(sparsity=0.7, rounds=5), RandomLabel(epochs=2, batch=16)
    after = toy.unlearn(PruneFirst(pruning=pruning, method=method))
    sparse = pruning(Dense(init=toy.init), toy.split.train, toy.recipe, Progress())
    assert same(after.params, replace(toy, stack=sparse).unlearn(method).params)
    for n, live in sparse.live.items():  # hard, for the whole of unlearning
        assert int((after.params[n][~live] != 0).sum()) == 0


def test_prune_first_finds_the_early_epoch_by_training_again(toy: Toy) -> None:
    method = PruneFirst(pruning=Omp(sparsity=0.5), method=FineTune(epochs=1))
    with pytest.raises(InputError, match=r"recipe\.rewind"):
        toy.unlearn(method)
    rewinding, early = replace(toy, recipe=replace(toy.recipe, rewind=1)), []
    rewinding.recipe(toy.init, toy.split.train, at_rewind=early.append)
    sparse = Omp(sparsity=0.5)(Dense(toy.stack, toy.init, early[0]), toy.split.train, rewinding.recipe, Progress())
    assert same(rewinding.unlearn(method).params, replace(rewinding, stack=sparse).unlearn(FineTune(epochs=1)).params)


@pytest.mark.parametrize("at", [3, 9, 15, 19])  # before and after the early epoch of the first training; in the second; in the method
def test_prune_first_goes_on_after_an_interruption(at: int, toy: Toy, tmp_path: Path) -> None:
    rewinding, method = replace(toy, recipe=replace(toy.recipe, rewind=1)), PruneFirst(pruning=Omp(sparsity=0.5), method=FineTune(epochs=1, batch=16))
    undisturbed, again = toy.context(), replace(toy.context(), progress=Progress(tmp_path, every=0))
    whole = rewinding.unlearn(method, replace(undisturbed, recipe=rewinding.recipe))
    with pytest.raises(Interrupted):
        rewinding.unlearn(method, replace(undisturbed, recipe=rewinding.recipe, progress=Stops(tmp_path, at + 1)))
    assert same(rewinding.unlearn(method, replace(again, recipe=rewinding.recipe)).params, whole.params)
    assert (again.progress.forward, again.progress.backward) == (undisturbed.progress.forward, undisturbed.progress.backward)


@pytest.mark.parametrize("method", [FineTunePrune(), PruneFirst(pruning=Omp(rewind_to="trained"), method=FineTune())])
def test_what_prunes_refuses_a_mask(method: Any, toy: Toy) -> None:
    from unlearnlab.localise.random import Random

    with pytest.raises(InputError, match="cannot keep those outside a mask"):
        toy.unlearn(method, toy.context(mask=toy.locate(Random(budget=0.5))))


def test_retraining_a_sparse_model_starts_fresh_with_its_mask(toy: Toy) -> None:
    sparse = SynFlow(sparsity=0.7, rounds=5)(Dense(init=toy.init), toy.split.train, toy.recipe, Progress())
    again = replace(toy, stack=sparse).unlearn(build("method", "retrain"))
    assert same(again.live, sparse.live)
    for n, live in sparse.live.items():
        assert int((again.params[n][~live] != 0).sum()) == 0
        assert not torch.equal(again.params[n], sparse.params[n])


def test_regularised_retraining_differs_from_plain_and_from_each_other(toy: Toy) -> None:
    variants = [build("method", {"name": "retrain", **more}) for more in ({}, {"label_smoothing": 0.1}, {"sharpness": 2.0})]
    made = [toy.unlearn(method) for method in variants]
    assert not any(same(made[i].params, made[j].params) for i, j in ((0, 1), (0, 2), (1, 2)))
    smoothed = replace(toy.recipe, label_smoothing=0.1)
    assert same(made[1].params, replace(toy, recipe=smoothed).unlearn(variants[0]).params)
    adaptive = replace(toy.recipe, sharpness=2.0, adaptive=True)
    assert same(made[2].params, replace(toy, recipe=adaptive).unlearn(variants[0]).params)
