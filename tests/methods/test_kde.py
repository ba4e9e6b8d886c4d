"""``kde``: what is reset, and which of the three losses acts on which images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from toy import Toy, make_toy
from unlearnlab.contract import Forbidden, only_declared
from unlearnlab.fit import Batch
from unlearnlab.methods.kde import Kde, reset_names
from unlearnlab.optimizers import Constant, Cosine
from unlearnlab.spec import InputError
from unlearnlab.stack import Net

P, TAUGHT = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.7, 0.2, 0.1]])


def soft(p: list[float], temperature: float) -> list[float]:
    powers = [q ** (1 / temperature) for q in p]
    return [one / sum(powers) for one in powers]


def value(loss: Any) -> float:
    batch = Batch(P.log(), torch.tensor([1]), torch.arange(1))
    return float(loss(cast(Net, lambda x: x), batch, {"teacher": cast(Net, lambda x: TAUGHT.log())}))


@pytest.mark.parametrize(
    ("net", "names"),
    [
        ("small_cnn", {"1.weight", "1.bias", "10.weight", "10.bias"}),
        ("batch_norm", {"1.weight", "13.weight", "13.bias"}),
        ("mlp", {"2.weight", "2.bias", "4.weight", "4.bias"}),
        ("vit", {"embedding.weight", "embedding.bias", "head.weight", "head.bias"}),
    ],
)
def test_first_convolution_and_head_are_reset_and_nothing_else(net: str, names: set[str], record: Callable[[], list[Any]]) -> None:
    toy, calls = make_toy(net), record()
    toy.unlearn(Kde())
    assert reset_names(toy.stack) == names
    fresh, start = toy.stack.fresh(toy.context().seeds).params, calls[0].stack
    for name, p in toy.stack.params.items():
        assert torch.equal(start.params[name], fresh[name] if name in names else p), name
    assert not torch.equal(start.params[sorted(names)[1]], toy.stack.params[sorted(names)[1]])


def test_first_validation_images_then_retained_ones(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Kde(batch=16, warm_up_epochs=2))
    warm, then = calls
    for call, images, steps, lr, schedule in ((warm, toy.split.validation, 2, 9e-4, Constant()), (then, toy.split.retain, 12, 1e-3, Cosine())):
        assert {int(i) for batch in call.batches for i in batch.ids.flatten()} == set(images.ids.tolist())
        assert (call.settings["steps"], call.settings["lr"], call.settings["schedule"]) == (steps, lr, schedule)
        assert call.settings["aux"]["teacher"] is toy.stack
        assert call.settings["optimizer"].weight_decay == 5e-4
    assert then.stack is warm.stack  # goes on where the warm-up ended


def test_losses_by_hand(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Kde())
    mine, theirs = soft(P[0].tolist(), 5), soft(TAUGHT[0].tolist(), 5)
    divergence = sum(q * math.log(q / p) for p, q in zip(mine, theirs, strict=True))  # without the factor T² = 25
    cross = -sum(q * math.log(p) for p, q in zip(mine, theirs, strict=True))
    assert value(calls[0].settings["loss"]) == pytest.approx(divergence, abs=1e-6)
    assert value(calls[1].settings["loss"]) == pytest.approx(-math.log(0.25) + divergence + cross, abs=1e-6)


def test_never_sees_the_forget_set(toy: Toy) -> None:
    split, ctx = only_declared(Kde(), toy.split, toy.context())
    assert all(isinstance(getattr(split, part), Forbidden) for part in ("forget", "control", "test"))
    Kde(epochs=1, warm_up_epochs=1)(toy.stack, split, ctx)


def test_validation_and_test_images_must_not_overlap(toy: Toy) -> None:
    shared = replace(toy.split, validation=toy.split.test.rows(torch.arange(3)))
    with pytest.raises(InputError, match="is in both the validation and the test set"):
        shared.check()


def test_without_validation_images_it_says_what_to_do(toy: Toy) -> None:
    none = replace(toy, split=replace(toy.split, validation=toy.split.validation.rows(torch.arange(0))))
    with pytest.raises(InputError, match="there are none; hold some out"):
        none.unlearn(Kde())
