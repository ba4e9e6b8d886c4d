"""``random``: seeded lots."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from toy import Toy, same
from unlearnlab.localise.random import Random
from unlearnlab.stack import flat


@pytest.mark.parametrize("granularity", ["parameter", "channel"])
def test_the_seed_and_nothing_else_decides(granularity: str, toy: Toy) -> None:
    where = Random(budget=0.4, granularity=granularity)
    first, ctx = toy.locate(where), toy.context()
    torch.manual_seed(7)
    assert same(toy.locate(where).open, first.open)
    assert not same(toy.locate(where, toy.context(shift=1)).open, first.open)
    swapped = toy.locate(where, replace(ctx, seeds=(ctx.seeds[1], ctx.seeds[0], ctx.seeds[2])))
    assert torch.equal(flat(swapped.open)[0], flat(first.open)[1])


def test_draws_are_uniform(toy: Toy) -> None:
    """Every weight is as likely as any other: over 300 seeds its count is within five standard deviations of 120."""
    one = toy.only(0)
    count = torch.stack([flat(one.locate(Random(budget=0.4), one.context(shift=shift)).open)[0] for shift in range(300)]).float().sum(0)
    assert float((count - 120).abs().max()) < 5 * (300 * 0.4 * 0.6) ** 0.5
