"""``fisher_ratio``: importance for the forget set over importance for the retain set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toy import Toy, make_toy
from unlearnlab.gradients import mean_squared_gradient
from unlearnlab.localise.fisher_ratio import FisherRatio
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import flat, head_names


@pytest.fixture(scope="module")
def mlp() -> Toy:
    return make_toy("mlp")


def by_loops(toy: Toy, k: int, part: str) -> torch.Tensor:
    """Mean of squared gradients, one example after the other."""
    model, images = toy.stack.member(k), getattr(toy.split, part)
    total = torch.zeros(sum(p.numel() for p in model.parameters()))
    for row in range(len(images)):
        loss = torch.nn.functional.cross_entropy(model(images.pixels[row : row + 1]), images.labels[row : row + 1])
        total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).square()
    return total / len(images)


def test_a_threshold_opens_what_matters_that_much_more(mlp: Toy) -> None:
    ours, theirs = by_loops(mlp, 1, "forget"), by_loops(mlp, 1, "retain")
    for threshold in (1.0, 5.0):
        opened = flat(mlp.locate(FisherRatio(threshold=threshold)).open)[1]
        clear = (ours / (threshold * theirs) - 1).abs() > 1e-3
        assert torch.equal(opened[clear], (ours >= threshold * theirs)[clear] & (ours > 0)[clear])
    assert not flat(mlp.locate(FisherRatio(threshold=1e30)).open)[1][theirs > 0].any()


def test_a_larger_threshold_opens_a_part_of_it(mlp: Toy) -> None:
    low, high = (flat(mlp.locate(FisherRatio(threshold=value)).open) for value in (1.0, 4.0))
    assert bool((low | ~high).all())
    assert int(high.sum()) < int(low.sum())


def test_a_budget_opens_the_largest_ratios(mlp: Toy) -> None:
    where = FisherRatio(budget=0.2)
    ratios, opened = flat(where.ratios(mlp.stack, mlp.split, mlp.context())), flat(mlp.locate(where).open)
    for k in range(3):
        assert float(ratios[k][opened[k]].min()) >= float(ratios[k][~opened[k]].max())


def test_channels_compare_their_mean_importances(mlp: Toy) -> None:
    where = FisherRatio(granularity="channel", threshold=1.0)
    mask, name = mlp.locate(where), head_names(mlp.stack)[0]
    ours, theirs = (mean_squared_gradient(mlp.stack, part, Progress())[name].mean(2) for part in (mlp.split.forget, mlp.split.retain))
    assert torch.equal(mask.open[name].all(2), ours >= theirs)
    assert torch.equal(mask.open[name].all(2), mask.open[name].any(2))


def test_what_neither_set_uses_stays_closed(mlp: Toy) -> None:
    """0/0: a unit that is always off has no gradient at all."""
    first, bias = list(mlp.stack.params)[:2]
    dead = mlp.stack.having(mlp.stack.params | {first: mlp.stack.params[first] * 0, bias: mlp.stack.params[bias] * 0 - 1})
    mask = FisherRatio(threshold=1e-6)(dead, mlp.split, mlp.context())
    assert not mask.open[first].any()
    assert not mask.open[bias].any()
    assert mask.open[head_names(mlp.stack)[1]].any()


def test_the_head_opens_with_a_threshold_too(mlp: Toy) -> None:
    plain, headed = (mlp.locate(FisherRatio(threshold=3.0, always_open=value)) for value in ("none", "head"))
    assert torch.equal(flat(headed.open), flat(plain.opening(head_names(mlp.stack)).open))


@pytest.mark.parametrize("idle", [{"ranking": "per_tensor"}, {"min_keep": 1}])
def test_a_threshold_leaves_nothing_to_rank(idle: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a threshold ranks nothing; leave ranking and min_keep out"):
        FisherRatio(threshold=1.0, **idle)
