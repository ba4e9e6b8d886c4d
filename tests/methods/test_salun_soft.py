"""``salun_soft``: ``random_label`` with a pull towards the original that fades over all steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.localise.random import Random
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.salun_soft import SalUnSoft, pulled
from unlearnlab.optimizers import Cosine, Sgd
from unlearnlab.stack import flat, unflat

INF = float("inf")


def test_pull_by_hand() -> None:
    """Ways 1, −2, 3, −4, 5 from the anchor: the second smallest is 2, so all come 2 nearer; closed weights (the first, below) have no rank."""
    anchor = torch.tensor([[10.0, 20, 30, 40, 50]]).repeat(3, 1)
    weights = anchor + torch.tensor([1.0, -2, 3, -4, 5])
    open_ = torch.ones(3, 5, dtype=torch.bool)
    open_[2, 0] = False
    found = pulled(weights, anchor, open_, [2, 0, 2])
    assert found[0].tolist() == [10, 20, 31, 38, 53]
    assert torch.equal(found[1], weights[1])  # nothing at all, bit for bit
    assert found[2].tolist() == [10, 20, 30, 39, 52]


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp"])
@pytest.mark.parametrize("share", [0.0, 1e-9])
def test_a_vanishing_share_is_random_label_bit_for_bit(share: float, net: str) -> None:
    toy = make_toy(net)
    soft, plain = toy.unlearn(SalUnSoft(start_share=share, epochs=3, batch=16)), toy.unlearn(RandomLabel(epochs=3, batch=16))
    assert same(soft.params | soft.buffers, plain.params | plain.buffers)


def test_settings_reach_random_label(toy: Toy) -> None:
    settings: dict[str, Any] = {
        "passes": "sequential", "redraw": "once", "exclude_true": True, "lr": 0.02, "epochs": 2, "batch": 20,
        "optimizer": Sgd(momentum=0.5), "schedule": Cosine(), "bn": "frozen", "augment": "none",
    }  # fmt: skip
    assert same(toy.unlearn(SalUnSoft(start_share=0, **settings)).params, toy.unlearn(RandomLabel(**settings)).params)


def test_share_falls_over_all_steps_and_the_anchor_is_always_the_original(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(SalUnSoft(start_share=0.3, epochs=2, batch=15))
    settings = calls[0].settings
    assert settings["steps"] == 8
    start = flat(toy.stack.params)
    size = start.shape[1]
    way = torch.stack([torch.randperm(size, generator=torch.Generator().manual_seed(k)) for k in range(3)]) + 1.0
    sign = torch.where(torch.rand(3, size) < 0.5, -1.0, 1.0)
    for step in range(8):
        after = flat(settings["after_step"](unflat(start + sign * way, toy.stack.params), step))
        threshold = int(0.3 * (1 - step / 8) * size + 1e-9)  # the s-th smallest of 1, 2, … P
        expected = start + sign * (way - threshold).clamp(min=0)
        assert torch.allclose(after, expected, atol=1e-2)
        assert torch.equal((after == start).sum(1), torch.full((3,), threshold))


def test_after_one_step_the_share_is_back_at_the_original(toy: Toy) -> None:
    after, start = flat(toy.unlearn(SalUnSoft(start_share=0.4, epochs=1)).params), flat(toy.stack.params)
    back = (after == start).float().mean(1)
    assert bool((back >= 0.4 - 1e-3).all())
    assert bool((back < 0.5).all())


def test_closed_and_pruned_weights_have_no_rank(toy: Toy) -> None:
    """A quarter of what may change goes back, however much may not change."""
    mask = toy.locate(Random(budget=0.4))
    after = toy.unlearn(SalUnSoft(start_share=0.25, epochs=1), toy.context(mask=mask))
    open_ = flat(mask.open)
    for k in range(3):
        back = (flat(after.params)[k] == flat(toy.stack.params)[k])[open_[k]].float().mean()
        assert 0.249 < float(back) < 0.3
    sparse = replace(toy, stack=toy.stack.pruned({n: bits for n, bits in toy.locate(Random(budget=0.3, draw=1)).open.items() if bits.dim() > 2}))
    left = flat({n: sparse.stack.live.get(n, torch.ones_like(p, dtype=torch.bool)) for n, p in toy.stack.params.items()})
    after = sparse.unlearn(SalUnSoft(start_share=0.25, epochs=1))
    for k in range(3):
        back = (flat(after.params)[k] == flat(sparse.stack.params)[k])[left[k]].float().mean()
        assert 0.249 < float(back) < 0.3
