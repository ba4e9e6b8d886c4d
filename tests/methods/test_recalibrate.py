"""BatchNorm's running averages measured anew after a one-shot edit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from toy import Toy, furthest, make_toy, same
from unlearnlab.methods import recalibrate
from unlearnlab.methods.fisher_forgetting import FisherForgetting
from unlearnlab.methods.influence_unlearning import InfluenceUnlearning
from unlearnlab.methods.recalibrate import recalibrated
from unlearnlab.methods.ssd import Ssd
from unlearnlab.seeds import generator
from unlearnlab.stack import Stack


def by_torch(toy: Toy, k: int, size: int) -> dict[str, torch.Tensor]:
    """Buffers of member k from torch's own cumulative average, over batches of this size in the member's order."""
    model = copy.deepcopy(toy.stack.net)
    model.load_state_dict({name: tensor[k] for name, tensor in (toy.stack.params | toy.stack.buffers).items()})
    model.eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    order = torch.randperm(len(toy.split.retain), generator=generator(toy.context().seeds[k], "order.recalibrate"))
    with torch.no_grad():
        for rows in order.split(size):
            model(toy.split.retain.pixels[rows])
    return dict(model.named_buffers())


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("size", [56, 14])
def test_is_the_cumulative_average_of_one_pass(size: int, chain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 56 images in one batch; in four of 14, though batches may hold 15. Stacked and alone, grouped and by ``vmap``."""
    toy = make_toy("batch_norm")
    if not chain:  # a hook, which the grouped way does not take
        net = copy.deepcopy(toy.stack.net)
        net[1].register_forward_hook(lambda layer, given, out: out * 1)
        toy = replace(toy, stack=replace(toy.stack, net=net))
    monkeypatch.setattr(recalibrate, "BATCH", 60 if size == 56 else 15)
    for some in (toy, toy.only(1)):
        ctx, before = some.context(), some.stack.fingerprint
        after = recalibrated(some.stack, some.split.retain, ctx)
        assert (ctx.progress.forward, ctx.progress.backward) == (56, 0)
        assert after.params is some.stack.params
        assert not same(after.buffers, some.stack.buffers)
        for k in range(len(after)):
            for name, expected in by_torch(some, k, size).items():
                torch.testing.assert_close(after.buffers[name][k], expected, rtol=1e-4, atol=1e-5)
        some.stack.__dict__.pop("fingerprint")
        assert some.stack.fingerprint == before


def test_batches_count_by_their_size_and_none_is_a_single_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """57 images in batches of at most 28: three of 19, not two of 28 and one of 1. 55 in batches of 28: 28 and 27, weighted."""
    toy = make_toy("batch_norm").only(0)
    monkeypatch.setattr(recalibrate, "BATCH", 28)
    retain = toy.split.retain.rows(torch.arange(55))
    after = recalibrated(toy.stack, retain, toy.context())
    order = torch.randperm(55, generator=generator(toy.context().seeds[0], "order.recalibrate"))
    first = toy.stack.member(0)[:2].eval()  # pixels and the first convolution: no BatchNorm before it
    means = [first(retain.pixels[rows]).mean((0, 2, 3)) for rows in order.split(28)]
    torch.testing.assert_close(after.buffers["2.running_mean"][0], (means[0] * 28 + means[1] * 27) / 55, rtol=1e-4, atol=1e-6)
    assert after.buffers["2.num_batches_tracked"].tolist() == [2]
    more = toy.split.train.rows(torch.arange(57))
    assert recalibrated(toy.stack, more, toy.context()).buffers["2.num_batches_tracked"].tolist() == [3]


def test_a_net_without_running_averages_stays_and_costs_nothing() -> None:
    toy = make_toy("small_cnn")
    ctx = toy.context()
    assert recalibrated(toy.stack, toy.split.retain, ctx) is toy.stack
    assert ctx.progress.forward == 0
    unaveraged = Stack.init(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), (0,))
    assert recalibrated(unaveraged, toy.split.retain, ctx) is unaveraged


def test_other_layers_are_in_eval_mode() -> None:
    """Dropout would set half of what BatchNorm sees to zero."""
    toy = make_toy("batch_norm").only(0)
    plain, dropping = (nn.Sequential(nn.Flatten(), *between, nn.BatchNorm1d(64), nn.Linear(64, 10)) for between in ([], [nn.Dropout(0.5)]))
    pixels = replace(toy.split.retain, pixels=toy.split.retain.pixels.float())
    without = recalibrated(Stack.init(plain, (0,)), pixels, toy.context())
    drops = recalibrated(Stack.init(dropping, (0,)), pixels, toy.context())
    assert torch.equal(without.buffers["1.running_mean"], drops.buffers["2.running_mean"])


@pytest.mark.parametrize("method", [Ssd(selection=1), FisherForgetting(noise=1e-4, fisher_examples=10), InfluenceUnlearning(samples=10)])
def test_one_shot_methods_offer_it(method: Ssd | FisherForgetting | InfluenceUnlearning) -> None:
    toy = make_toy("batch_norm")
    off, on = toy.context(), toy.context()
    plain, anew = toy.unlearn(method, off), toy.unlearn(replace(method, bn_recalibrate=True), on)
    assert same(plain.buffers, toy.stack.buffers)  # by default the averages stay
    assert same(plain.params, anew.params)
    assert same(anew.buffers, recalibrated(plain, toy.split.retain, toy.context()).buffers)  # those of the edited weights
    assert furthest(anew.buffers, recalibrated(toy.stack, toy.split.retain, toy.context()).buffers) > 1e-4
    assert (on.progress.forward, on.progress.backward) == (off.progress.forward + 56, off.progress.backward)
