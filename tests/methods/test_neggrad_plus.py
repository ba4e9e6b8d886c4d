"""``neggrad_plus``: two losses, and forget batches that reshuffle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import Toy, furthest, make_toy, same
from unlearnlab.gradients import summed_gradient
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.neggrad_plus import NegGradPlus
from unlearnlab.optimizers import Sgd


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp"])
def test_retain_weight_one_is_finetune_bit_for_bit(net: str) -> None:
    toy = make_toy(net)
    plain = toy.unlearn(FineTune(epochs=3, batch=16))
    assert same(toy.unlearn(NegGradPlus(retain_weight=1, epochs=3, batch=16)).params, plain.params)
    assert not same(toy.unlearn(NegGradPlus(epochs=3, batch=16)).params, plain.params)
    frozen = FineTune(epochs=3, batch=16, bn="frozen")
    assert same(toy.unlearn(NegGradPlus(retain_weight=1, epochs=3, batch=16, bn="frozen")).buffers, toy.unlearn(frozen).buffers)


def test_forget_batches_reshuffle_at_each_pass(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(NegGradPlus(epochs=1, batch=2))
    batches = calls[0].batches
    assert len(batches) == 28
    forget = torch.cat([batch.also.ids for batch in batches], 1)[0]
    passes = forget.view(14, 4)  # fourteen passes over the forget set within one epoch
    assert torch.equal(passes.sort(1).values, toy.split.forget.ids.sort().values.expand(14, 4))
    assert len({frozenset(one[:2].tolist()) for one in passes}) > 1  # other batches, not the first pass again
    assert torch.equal(torch.cat([batch.ids for batch in batches], 1)[0].sort().values, toy.split.retain.ids.sort().values)


def test_both_orders_are_drawn_apart(toy: Toy, record: Callable[[], list[Any]]) -> None:
    """With as many images to retain as to forget, their places in an epoch are not the same."""
    even = replace(toy, split=replace(toy.split, retain=toy.split.retain.rows(torch.arange(4))))
    calls = record()
    even.unlearn(NegGradPlus(epochs=8, batch=4))
    of_retain, of_forget = (torch.cat(ids, 1).argsort(1) for ids in zip(*((b.ids, b.also.ids) for b in calls[0].batches), strict=True))
    assert not torch.equal(of_retain, of_forget)
    assert not torch.equal(of_forget[0], of_forget[1])


def test_one_step_is_the_weighted_difference_of_gradients(toy: Toy) -> None:
    method = NegGradPlus(retain_weight=0.7, lr=0.1, epochs=1, optimizer=Sgd(momentum=0, weight_decay=0))
    after, progress = toy.unlearn(method), toy.context().progress
    retain, forget = (summed_gradient(toy.stack, images, progress) for images in (toy.split.retain, toy.split.forget))
    expected = {n: p - 0.1 * (0.7 * retain[n] / 56 - 0.3 * forget[n] / 4) for n, p in toy.stack.params.items()}
    assert furthest(after.params, expected) < 1e-6


@pytest.mark.parametrize("net", ["small_cnn", "mlp"])
def test_one_forward_for_both_batches_is_the_same_without_batch_norm(net: str) -> None:
    toy = make_toy(net)
    apart, joint = (toy.unlearn(NegGradPlus(joint_forward=flag, epochs=2, batch=16)) for flag in (False, True))
    assert furthest(apart.params, joint.params) < 1e-5
    plain = toy.unlearn(FineTune(epochs=2, batch=16))
    assert furthest(toy.unlearn(NegGradPlus(retain_weight=1, joint_forward=True, epochs=2, batch=16)).params, plain.params) < 1e-5


def test_one_forward_for_both_batches_shares_the_statistics_of_batch_norm() -> None:
    """One step against torch, and one update of the running averages instead of two."""
    toy = make_toy("batch_norm").only(0)
    settings: dict[str, Any] = {"retain_weight": 0.7, "lr": 0.1, "epochs": 1, "optimizer": Sgd(momentum=0, weight_decay=0)}
    apart, joint = (toy.unlearn(NegGradPlus(joint_forward=flag, **settings)) for flag in (False, True))
    before, two, one = (next(int(b) for n, b in stack.buffers.items() if n.endswith("tracked")) for stack in (toy.stack, apart, joint))
    assert (two - before, one - before) == (2, 1)
    model, retain, forget = toy.stack.member(0).train(), toy.split.retain, toy.split.forget
    logits = model(torch.cat([retain.pixels, forget.pixels]))
    loss = 0.7 * torch.nn.functional.cross_entropy(logits[:56], retain.labels) - 0.3 * torch.nn.functional.cross_entropy(logits[56:], forget.labels)
    slopes = dict(zip(toy.stack.params, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    assert furthest(joint.params, {n: p - 0.1 * slopes[n] for n, p in toy.stack.params.items()}) < 1e-5
    assert furthest(joint.params, apart.params) > 1e-4
    for n, buffer in model.named_buffers():
        assert torch.allclose(joint.buffers[n][0], buffer, atol=1e-5)


def test_pull_towards_the_original(toy: Toy) -> None:
    """Nothing in the first step, when the weights are the original's; in the second −η·2λ(θ − θ_o) more."""
    settings: dict[str, Any] = {"lr": 0.1, "optimizer": Sgd(momentum=0, weight_decay=0)}
    first, second = (toy.unlearn(NegGradPlus(epochs=epochs, **settings)) for epochs in (1, 2))
    pulled_first, pulled_second = (toy.unlearn(NegGradPlus(epochs=epochs, pull=5.0, **settings)) for epochs in (1, 2))
    assert furthest(first.params, pulled_first.params) < 1e-7
    expected = {n: p - 0.1 * 2 * 5.0 * (first.params[n] - toy.stack.params[n]) for n, p in second.params.items()}
    assert furthest(pulled_second.params, expected) < 1e-6
    assert furthest(pulled_second.params, second.params) > 1e-3
