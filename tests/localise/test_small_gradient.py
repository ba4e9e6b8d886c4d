"""``small_gradient``: where forget set and retain set agree."""

from __future__ import annotations

import torch

from toy import Toy
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.small_gradient import SmallGradient
from unlearnlab.progress import Progress
from unlearnlab.stack import flat


def test_opens_the_smallest_differences_of_mean_gradients(toy: Toy) -> None:
    means = [flat(summed_gradient(toy.stack, part, Progress())) / len(part) for part in (toy.split.forget, toy.split.retain)]
    gaps, opened = (means[0] - means[1]).abs(), flat(toy.locate(SmallGradient(budget=0.2)).open)
    for k in range(3):
        assert set(opened[k].nonzero().flatten().tolist()) == set(gaps[k].argsort(stable=True)[: int(0.2 * gaps.shape[1])].tolist())


def test_it_is_the_difference_and_not_either_gradient(toy: Toy) -> None:
    """Forgetting what is retained: the gradients are equal, so all weights tie, and the first ones open."""
    same = toy.forgetting(toy.split.retain)
    opened = flat(same.locate(SmallGradient(budget=0.2)).open)
    assert bool(opened[:, : int(0.2 * opened.shape[1])].all())


def test_a_share_of_each_tensor_as_published(toy: Toy) -> None:
    mask = toy.locate(SmallGradient(ranking="per_tensor"))
    assert {name: bits[0].sum().item() for name, bits in mask.open.items()} == {name: int(0.3 * p[0].numel()) for name, p in toy.stack.params.items()}
    assert torch.equal(mask.open["1.weight"].sum((1, 2, 3, 4)), torch.full((3,), int(0.3 * 90)))
