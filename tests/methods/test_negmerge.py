"""``negmerge``: only changes with one sign in all copies are taken away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import Toy, furthest, make_toy, same
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.negmerge import NegMerge
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, Tensors

RATES = (0.01, 0.05, 0.1)


def tuned(toy: Toy, lr: float, passes: int = 1) -> Stack:
    """A copy fine-tuned on the forget set."""
    method = FineTune(lr=lr, epochs=passes, optimizer=Sgd(weight_decay=5e-4), bn="frozen")
    return method(toy.stack, replace(toy.split, retain=toy.split.forget), toy.context())


def changes(toy: Toy, settings: list[tuple[float, int]]) -> dict[str, torch.Tensor]:
    """θ_j − θ_o of all copies, stacked in front."""
    copies = [tuned(toy, *one).params for one in settings]
    return {n: torch.stack([copy[n] - p for copy in copies]) for n, p in toy.stack.params.items()}


def merged(toy: Toy, **settings: Any) -> Tensors:
    return toy.unlearn(NegMerge(**{"rates": RATES, "passes": (1, 3), **settings})).params


ALL = [(lr, passes) for lr in RATES for passes in (1, 3)]


def test_one_copy_is_the_negated_task_vector(toy: Toy) -> None:
    after = merged(toy, rates=(0.05,), passes=(3,), strengths=(0.7,))
    expected = {n: p - 0.7 * (tuned(toy, 0.05, 3).params[n] - p) for n, p in toy.stack.params.items()}
    assert furthest(after, expected) < 1e-6


@pytest.mark.parametrize(("consensus", "least"), [(1.0, 6), (0.8, 5), (0.5, 3)])
def test_agreed_coordinates_only(toy: Toy, consensus: float, least: int) -> None:
    """The mean over all copies where enough have one sign: counted one by one here."""
    tau, expected, kept, total = changes(toy, ALL), {}, 0, 0
    for n, p in toy.stack.params.items():
        agree = torch.maximum((tau[n] > 0).sum(0), (tau[n] < 0).sum(0)) >= least
        expected[n] = p - torch.where(agree, tau[n].mean(0), 0)
        kept, total = kept + int(agree.sum()), total + agree.numel()
    assert furthest(merged(toy, consensus=consensus), expected) < 1e-6
    assert 0 < kept < total or consensus < 0.8


def test_order_of_the_copies_does_not_matter(toy: Toy) -> None:
    turned = merged(toy, rates=RATES[::-1], passes=(3, 1))
    assert furthest(merged(toy), turned) < 1e-6
    assert not same(merged(toy), toy.stack.params)


def test_running_averages_stay_but_when_measured_anew() -> None:
    toy = make_toy("batch_norm")
    settings: dict[str, Any] = {"rates": RATES, "passes": (3,), "bn": "train"}
    plain, anew = toy.unlearn(NegMerge(**settings)), toy.unlearn(NegMerge(bn_recalibrate=True, **settings))
    assert same(plain.buffers, toy.stack.buffers)
    assert same(plain.params, anew.params)
    assert not same(plain.buffers, anew.buffers)


def test_it_takes_the_largest_strength_that_validation_accuracy_allows(toy: Toy) -> None:
    """Each member its own; every candidate is tried here as a fixed strength."""
    strengths = (0.5, 3.0, 10.0, 20.0, 40.0, 80.0)
    images = toy.split.validation

    def accuracy(stack: Stack) -> torch.Tensor:
        return (stack.logits(images.pixels).argmax(2) == images.labels).double().mean(1)

    tried = {s: toy.unlearn(NegMerge(rates=RATES, passes=(3,), strengths=(s,))) for s in strengths}
    allowed = 0.15
    least = accuracy(toy.stack) - allowed - 1e-9
    chosen = [max(s for s, stack in tried.items() if float(accuracy(stack)[k]) >= float(least[k])) for k in range(3)]
    ctx = toy.context()
    found = toy.unlearn(NegMerge(rates=RATES, passes=(3,), strengths=strengths[::-1], allowed_loss=allowed), ctx)
    for k, strength in enumerate(chosen):
        assert same(found.rows([k]).params, tried[strength].rows([k]).params)
    assert len(set(chosen)) > 1
    assert max(chosen) < 80
    assert ctx.progress.forward == 9 * 4 + 7 * 10
    assert (NegMerge(strengths=(1.0, 2.0)).reads, NegMerge().reads) == ({"forget", "validation"}, {"forget"})


def test_no_strength_allowed_is_an_error(toy: Toy) -> None:
    with pytest.raises(InputError, match=r"each of strengths costs model \d+ more than 0 of validation accuracy"):
        toy.unlearn(NegMerge(rates=RATES, passes=(3,), strengths=(1000.0, 2000.0), allowed_loss=0.0))


def test_copies_must_differ() -> None:
    with pytest.raises(InputError, match="none twice"):
        NegMerge(rates=(1e-3, 1e-3, 1e-3))
    with pytest.raises(InputError, match="at least one value"):
        NegMerge(passes=())
    assert len(list(NegMerge().ways())) == 9
    assert len({repr(way) for way in NegMerge().ways()}) == 9


def test_a_copy_that_diverges_is_told(toy: Toy) -> None:
    after = toy.unlearn(NegMerge(rates=(0.01, 1e30), passes=(3,)))
    assert {bad.seed for bad in after.diverged} == {0, 1, 2}
