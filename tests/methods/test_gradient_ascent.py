"""``gradient_ascent``: E·⌈n_f/B⌉ steps up, bounded by clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from toy import Toy, furthest, make_toy, same
from unlearnlab.methods.gradient_ascent import GradientAscent
from unlearnlab.optimizers import Sgd


@pytest.mark.parametrize(("batch", "steps"), [(1, 20), (3, 10), (4, 5), (256, 5)])
def test_steps_are_passes_over_the_forget_set(batch: int, steps: int, toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(GradientAscent(batch=batch))
    assert len(calls[0].batches) == steps
    assert {int(i) for held in calls[0].batches for i in held.ids.flatten()} == set(toy.split.forget.ids.tolist())


def test_climbs_the_forget_loss(toy: Toy) -> None:
    after = toy.unlearn(GradientAscent(lr=0.01))
    for before_logits, after_logits in zip(toy.stack.logits(toy.split.forget.pixels), after.logits(toy.split.forget.pixels), strict=True):
        before, now = (torch.nn.functional.cross_entropy(logits, toy.split.forget.labels) for logits in (before_logits, after_logits))
        assert now > before


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp"])
def test_clipping_keeps_the_largest_rate_finite_and_bounds_the_way(net: str) -> None:
    toy = make_toy(net)
    plain = Sgd(momentum=0.0, weight_decay=0.0)
    after = toy.unlearn(GradientAscent(lr=0.1, epochs=20, optimizer=plain))
    assert not after.diverged
    for k in range(3):  # twenty steps of length lr · clip at most
        way = torch.cat([(after.params[n][k] - p[k]).flatten() for n, p in toy.stack.params.items()]).norm()
        assert float(way) < 20 * 0.1 * 1.0 + 1e-3
    free = toy.unlearn(GradientAscent(lr=0.1, epochs=20, optimizer=plain, clip=0.0))
    assert free.diverged or furthest(free.params, toy.stack.params) > furthest(after.params, toy.stack.params)


def test_frozen_batch_norm_is_not_updated_on_forget_images() -> None:
    toy = make_toy("batch_norm")
    frozen, train = (toy.unlearn(GradientAscent(bn=bn)) for bn in ("frozen", "train"))
    assert same(frozen.buffers, toy.stack.buffers)
    assert not same(train.buffers, toy.stack.buffers)


def test_penalty_pulls_towards_zero(toy: Toy) -> None:
    """Its gradient is γ·sign θ, with the sign of descent."""
    pulled = toy.unlearn(GradientAscent(epochs=1, clip=0.0, penalty=1e3, optimizer=Sgd(momentum=0, weight_decay=0)))
    free = toy.unlearn(GradientAscent(epochs=1, clip=0.0, optimizer=Sgd(momentum=0, weight_decay=0)))
    for name, p in toy.stack.params.items():
        assert torch.allclose(free.params[name] - pulled.params[name], 1e-4 * 1e3 * p.sign(), atol=1e-5)
