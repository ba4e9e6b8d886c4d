"""``neggrad_plus``: two losses, and forget batches that reshuffle."""

from __future__ import annotations

from collections.abc import Callable
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


def test_one_step_is_the_weighted_difference_of_gradients(toy: Toy) -> None:
    method = NegGradPlus(retain_weight=0.7, lr=0.1, epochs=1, optimizer=Sgd(momentum=0, weight_decay=0))
    after, progress = toy.unlearn(method), toy.context().progress
    retain, forget = (summed_gradient(toy.stack, images, progress) for images in (toy.split.retain, toy.split.forget))
    expected = {n: p - 0.1 * (0.7 * retain[n] / 56 - 0.3 * forget[n] / 4) for n, p in toy.stack.params.items()}
    assert furthest(after.params, expected) < 1e-6
