"""``grad_param``: |sum of gradients|."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unlearnlab.localise.grad_param as module
from toy import Toy, same
from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.stack import Stack, flat
from unlearnlab.train import Recipe


class TwoGroups(nn.Module):
    """Group ``a`` moves the logits; group ``b`` moves them only for images brighter than 1, of which there are none to forget."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat_x = x.flatten(1)
        logits: Tensor = self.a(flat_x) + self.b(flat_x) * (flat_x.amax(1, keepdim=True) > 1)
        return logits


def test_a_group_that_alone_matters_is_covered_first() -> None:
    stack = Stack.init(TwoGroups(), (0, 1))
    images = Images(torch.rand(8, 1, 2, 2), torch.arange(8) % 3, torch.arange(8), 3)
    split = Split(*(images.rows(torch.tensor([i])) for i in range(5)))
    mask = GradParam(budget=0.5)(stack, split, Context(seeds=(0, 1), recipe=Recipe()))
    assert all(bool(bits.all()) == name.startswith("a") for name, bits in mask.open.items())
    assert not any(bool(bits.any()) for name, bits in mask.open.items() if name.startswith("b"))


def test_is_the_largest_absolute_summed_gradient(toy: Toy) -> None:
    """Against an ordinary loop over models and images."""
    mask = toy.locate(GradParam(budget=0.2))
    for k in range(len(toy.stack)):
        model, total = toy.stack.member(k), torch.zeros(flat(mask.open).shape[1])
        for pixels, label in zip(toy.split.forget.pixels, toy.split.forget.labels, strict=True):
            loss = nn.functional.cross_entropy(model(pixels[None]), label[None])
            total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        cut = total.abs().sort(descending=True).values[int(0.2 * len(total)) - 1]
        unclear = (total.abs() - cut).abs() < 1e-5 * cut
        assert torch.equal(flat(mask.open)[k] | unclear, (total.abs() >= cut) | unclear)
        assert int(unclear.sum()) <= 3


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_size_does_not_matter(batch: int, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = toy.locate(GradParam())
    monkeypatch.setattr(module, "summed_gradient", lambda *given: summed_gradient(*given, batch=batch))
    assert same(toy.locate(GradParam()).open, whole.open)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_sizes_summed_per_batch(batch: int, toy: Toy) -> None:
    """Against an ordinary loop over models and batches, which hold the images in order of id."""
    turned = toy.forgetting(toy.split.forget.rows(torch.tensor([2, 0, 3, 1])))
    localiser = GradParam(budget=0.2, accumulate="abs_per_batch", gradient_batch=batch)
    mask, images = turned.locate(localiser), toy.split.forget.rows(toy.split.forget.ids.argsort())
    for k in range(len(toy.stack)):
        model, total = toy.stack.member(k), torch.zeros(flat(mask.open).shape[1])
        for at in range(0, 4, batch):
            loss = nn.functional.cross_entropy(model(images.pixels[at : at + batch]), images.labels[at : at + batch])
            total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).abs()
        cut = total.sort(descending=True).values[int(0.2 * len(total)) - 1]
        unclear = (total - cut).abs() < 1e-5 * cut
        assert torch.equal(flat(mask.open)[k] | unclear, (total >= cut) | unclear)
        assert int(unclear.sum()) <= 3
    assert not same(mask.open, toy.locate(GradParam(budget=0.2)).open)
    assert same(mask.open, toy.locate(localiser).open)


def test_gradients_of_one_batch_cancel_as_in_the_sum(toy: Toy) -> None:
    whole = GradParam(budget=0.2, accumulate="abs_per_batch")
    assert same(toy.locate(whole).open, toy.locate(GradParam(budget=0.2)).open)


def test_the_model_stays_as_it_was(toy: Toy) -> None:
    """No optimiser step on the way, as one port takes while it accumulates."""
    before = {name: p.clone() for name, p in toy.stack.params.items()}
    for accumulate in ("signed_sum", "abs_per_batch"):
        toy.locate(GradParam(accumulate=accumulate, gradient_batch=1))
    assert same(toy.stack.params, before)
