"""``selective_pruning`` and variants: two copies that really move, quantiles by hand, and nothing reset beyond them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import Toy, make_toy, same
from unlearnlab.localise.random import Random
from unlearnlab.methods import training
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.reinit import kaiming_normal
from unlearnlab.methods.selective_pruning import SelectivePruning, SelectivePruningComplex, SelectivePruningLast, below
from unlearnlab.optimizers import Constant, Cosine, Sgd
from unlearnlab.stack import Stack, head_names

FAMILY: list[Any] = [SelectivePruning, SelectivePruningLast, SelectivePruningComplex]
SHORT: dict[str, Any] = {"overfit_epochs": 5, "epochs": 1, "batch": 16}


@dataclass
class Trained:
    before: Stack
    after: Stack
    settings: dict[str, Any]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Trained]:
    """What every fit started from and came to."""
    done, real = [], training.fit

    def fit(stack: Stack, stream: Any, loss: Any, **settings: Any) -> Stack:
        after = real(stack, stream, loss, **settings)
        done.append(Trained(stack, after, settings))
        return after

    monkeypatch.setattr(training, "fit", fit)
    return done


def change(a: Stack, b: Stack, name: str) -> Tensor:
    return (a.params[name] - b.params[name]).abs()


def test_below_by_hand() -> None:
    rows = torch.tensor([[[4.0, 1.0], [3.0, 2.0]], [[1.0, 1.0], [1.0, 5.0]]])
    assert below(rows, 0.5).tolist() == [[[False, True], [False, True]], [[False, False], [False, False]]]  # ties at the quantile stay
    assert below(rows, 0.75).tolist()[0] == [[False, True], [True, True]]
    assert not below(rows, 0.0).any()
    assert below(rows, 0.24).sum() == 0  # never more than the share
    assert below(rows, 1.0).all()
    live = torch.tensor([[[True, False], [True, True]], [[True, True], [True, True]]])
    assert below(rows, 0.5, live).tolist()[0] == [[False, False], [False, True]]  # of the live 4, 3, 2 the smallest
    assert not below(rows, 1.0, live)[0, 0, 1]


def test_share_is_counted_in_decimals() -> None:
    assert int(below(torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(0)), 0.29).sum()) == 29


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("select", ["small_change", "large_change"])
def test_quantile_zero_is_finetune_bit_for_bit(family: Any, select: str) -> None:
    toy = make_toy("batch_norm")
    method = family(quantile=0, select=select, **SHORT)
    plain = toy.unlearn(FineTune(lr=0.001, epochs=1, batch=16, optimizer=Sgd(nesterov=True)))
    after = toy.unlearn(method)
    assert same(after.params | after.buffers, plain.params | plain.buffers)


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("select", ["small_change", "large_change"])
def test_resets_what_moved_least_or_most(toy: Toy, fits: list[Trained], family: Any, select: str) -> None:
    toy.unlearn(family(select=select, **SHORT))
    *copies, last = fits
    fresh_names = [name for name, p in toy.stack.params.items() if p.dim() > 2]
    fresh = kaiming_normal(toy.stack, fresh_names, toy.context().seeds, mode="fan_in")
    allowed = head_names(toy.stack) if family is SelectivePruningLast else fresh_names
    for name, p in toy.stack.params.items():
        reset = last.before.params[name] != p
        if name not in fresh or name not in allowed:
            assert not reset.any()
            continue
        assert torch.equal(last.before.params[name][reset], fresh[name][reset])
        for k in range(3):
            share = int(reset[k].sum()) / reset[k].numel()
            assert 0 < share <= 0.3
            assert share > 0.29 - 1 / reset[k].numel() or family is SelectivePruningComplex
            for copy in copies:
                moved = change(toy.stack, copy.after, name)[k]
                inside, outside = moved[reset[k]], moved[~reset[k]]
                quantile = moved.flatten().sort(descending=select == "large_change").values[int(0.3 * moved.numel() + 1e-9)]
                assert bool((inside < quantile).all() if select == "small_change" else (inside > quantile).all())
                assert outside.numel() > 0


def test_complex_takes_what_neither_copy_moved(toy: Toy, fits: list[Trained]) -> None:
    toy.unlearn(SelectivePruningComplex(**SHORT))
    first, second, last = fits
    for name in [name for name, p in toy.stack.params.items() if p.dim() > 2]:
        both = below(change(toy.stack, first.after, name), 0.3) & below(change(toy.stack, second.after, name), 0.3)
        assert torch.equal(last.before.params[name] != toy.stack.params[name], both)


def test_second_copy_moves_at_a_third_of_the_rate_on_few_retain_images(toy: Toy, fits: list[Trained], record: Callable[[], list[Any]]) -> None:
    """In whole numbers 0.01 // 3 is 0: the second copy would be the original, and nothing would be reset."""
    toy.unlearn(SelectivePruningComplex(sample_share=0.1, **SHORT))
    _, second, _ = fits
    assert second.settings["lr"] == pytest.approx(0.01 / 3)
    assert all(float((second.after.params[name] != p).float().mean()) > 0.99 for name, p in toy.stack.params.items() if p.dim() > 2)
    assert same(second.before.params, toy.stack.params)  # not from the first copy
    calls = record()
    toy.unlearn(SelectivePruningComplex(sample_share=0.1, overfit_epochs=2, epochs=1))
    seen = [set(torch.cat([batch.ids[k] for batch in calls[1].batches]).tolist()) for k in range(3)]
    assert all(len(ids) == 5 and ids <= set(toy.split.retain.ids.tolist()) for ids in seen)
    assert len({frozenset(ids) for ids in seen}) == 3
    assert [len(call.batches[0].labels[0]) for call in calls] == [4, 5, 56]


def test_published_rate_zero_resets_nothing(toy: Toy) -> None:
    plain = FineTune(lr=0.001, epochs=1, batch=16, optimizer=Sgd(nesterov=True))
    assert same(toy.unlearn(SelectivePruningComplex(second_lr_factor=0, **SHORT)).params, toy.unlearn(plain).params)


def test_defaults_are_those_published(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(SelectivePruning(schedule=Cosine()))
    assert [call.settings["lr"] for call in calls] == [0.01, 0.001]
    assert [call.settings["steps"] for call in calls] == [20, 5]
    assert [call.settings["schedule"] for call in calls] == [Constant(), Cosine()]  # the copy's rate is constant
    assert all(call.settings["optimizer"] == Sgd(momentum=0.9, weight_decay=5e-4, nesterov=True) for call in calls)


@pytest.mark.parametrize("family", FAMILY)
def test_a_mask_binds_reset_and_relearning_but_not_the_copies(toy: Toy, fits: list[Trained], family: Any) -> None:
    mask = toy.locate(Random(budget=0.3))
    after = toy.unlearn(family(**SHORT), toy.context(mask=mask))
    *copies, last = fits
    for name, is_open in mask.open.items():
        p = toy.stack.params[name]
        assert all(bool((copy.after.params[name] != p)[~is_open].any()) for copy in copies)
        assert torch.equal(last.before.params[name][~is_open], p[~is_open])
        assert torch.equal(after.params[name][~is_open], p[~is_open])


def test_pruned_weights_take_no_part_in_the_ranking(fits: list[Trained]) -> None:
    toy, name = make_toy("mlp"), "2.weight"
    live = torch.rand(toy.stack.params[name].shape, generator=torch.Generator().manual_seed(3)) < 0.2
    sparse = Toy(toy.stack.pruned({name: live}), toy.init, toy.split, toy.made_as)
    sparse.unlearn(SelectivePruning(**SHORT))
    reset = fits[-1].before.params[name] != sparse.stack.params[name]
    for k in range(3):
        assert 0.28 < int(reset[k].sum()) / int(live[k].sum()) <= 0.3  # among the zeros none would be left of the 30 %


@pytest.mark.parametrize("family", FAMILY)
def test_a_copy_that_diverges_is_told(toy: Toy, family: Any) -> None:
    after = toy.unlearn(family(overfit_lr=1e30, **SHORT))
    assert [found.seed for found in after.diverged] == list(toy.stack.seeds)


@pytest.mark.parametrize("family", FAMILY)
def test_the_head_is_never_replaced(family: Any) -> None:
    toy = make_toy("batch_norm")
    assert same(toy.unlearn(family(quantile=0, lr=0, **{**SHORT, "overfit_epochs": 1})).params, toy.stack.params)
