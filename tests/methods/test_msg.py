"""``msg``: which weights start anew, and how the others are slowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from toy import Toy, furthest, make_toy, same
from unlearnlab.gradients import summed_gradient
from unlearnlab.methods.msg import Msg, RiseAndFall
from unlearnlab.optimizers import Sgd
from unlearnlab.progress import Progress
from unlearnlab.stack import weights_of


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
def test_exactly_thirty_percent_of_each_kernel_start_anew_and_biases_stay(net: str, record: Callable[[], list[Any]]) -> None:
    toy, calls = make_toy(net), record()
    toy.unlearn(Msg())
    start = calls[0].stack
    for name, p in toy.stack.params.items():
        expected = round(0.3 * p[0].numel()) if name in weights_of(toy.stack.net, nn.Conv2d) else 0
        assert (start.params[name] != p).flatten(1).sum(1).tolist() == [expected] * 3, name
    assert same(start.buffers, toy.stack.buffers)  # gradients are taken in eval mode


def test_fresh_values_have_the_variance_of_fan_out(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Msg(reinitialised=1.0))
    for name in weights_of(toy.stack.net, nn.Conv2d):
        fresh = calls[0].stack.params[name]
        assert float(fresh.std()) == pytest.approx((2 / (fresh.shape[1] * 9)) ** 0.5, rel=0.15)
        assert not torch.equal(fresh[0], fresh[1])


def test_those_with_the_smallest_difference_of_gradients(toy: Toy) -> None:
    few = replace(toy, split=replace(toy.split, retain=toy.split.retain.rows(torch.arange(4))))  # as many as there are to forget: no choice among them
    method, lot = Msg(reinitialised=0.9), Progress()  # more than have no gradient at all
    anew = method.anew(few.stack, few.split, few.context())
    retain, forget = (summed_gradient(few.stack, images, lot) for images in (few.split.retain, few.split.forget))
    assert list(anew) == weights_of(few.stack.net, nn.Conv2d)
    for name, here in anew.items():
        apart = (retain[name] - forget[name]).abs()
        for k in range(3):
            assert float(apart[k][here[k]].max()) <= float(apart[k][~here[k]].min()) + 1e-6
    here, summed = anew["6.weight"][0], (retain["6.weight"] + forget["6.weight"]).abs()[0]  # with the same sign for both, others would be chosen
    assert float(summed[here].max()) > float(summed[~here].min())


def test_pruned_weights_neither_rank_nor_count(toy: Toy) -> None:
    lots = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(3)) < 0.5 for name, p in toy.stack.params.items() if name == "3.weight"}
    sparse = replace(toy, stack=toy.stack.pruned(lots))
    here = Msg().anew(sparse.stack, sparse.split, sparse.context())["3.weight"]
    assert not bool(here[~lots["3.weight"]].any())
    assert here.flatten(1).sum(1).tolist() == [round(0.3 * int(live.sum())) for live in lots["3.weight"]]


def test_each_member_looks_at_retained_images_of_its_own(toy: Toy) -> None:
    one = replace(toy, stack=toy.stack.rows([0, 0]))
    one = replace(one, stack=replace(one.stack, seeds=(0, 1)), init=toy.init.rows([0, 1]))
    ctx = one.context()
    here = Msg().anew(one.stack, one.split, ctx)["6.weight"]
    assert not torch.equal(here[0], here[1])  # the same weights, other images
    assert ctx.progress.forward == ctx.progress.backward == 8  # per model


@pytest.mark.parametrize("slowed", ["all", "kernels"])
def test_gradients_are_slowed_but_where_weights_start_anew(slowed: Any, toy: Toy, record: Callable[[], list[Any]]) -> None:
    method, calls = Msg(slowed=slowed), record()
    toy.unlearn(method)
    anew = method.anew(toy.stack, toy.split, toy.context())
    factor = calls[0].settings["edit_grad"]({name: torch.ones_like(p) for name, p in toy.stack.params.items()}, 0)
    for name, found in factor.items():
        others = 1.0 if slowed == "kernels" and name not in anew else 0.1
        expected = torch.where(anew[name], 1.0, 0.1) if name in anew else torch.full_like(found, others)
        assert torch.equal(found, expected), name


def test_weight_decay_is_not_slowed(toy: Toy) -> None:
    method = Msg(reinitialised=0, slow=0, epochs=1, lr=0.1, optimizer=Sgd(momentum=0, weight_decay=0.5))
    assert furthest(toy.unlearn(method).params, {name: p * (1 - 0.1 * 0.5) for name, p in toy.stack.params.items()}) < 1e-6


def test_course_of_the_learning_rate() -> None:
    five = RiseAndFall(5)
    assert [five(step, 10, 2) for step in range(10)] == pytest.approx([share for share in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3) for _ in range(2)])
    assert [RiseAndFall(2)(step, 2, 1) for step in range(2)] == [1, 0.5]
    assert RiseAndFall(1)(0, 1, 1) == 1


def test_layers_keep_their_types_and_running_averages_do_not_drift() -> None:
    toy = make_toy("batch_norm")
    after = toy.unlearn(Msg(lr=0, bn="frozen", epochs=1))
    assert [type(module) for module in after.net.modules()] == [type(module) for module in toy.stack.net.modules()]
    assert same(after.buffers, toy.stack.buffers)


def test_without_convolutions_all_weight_matrices_are_kernels() -> None:
    toy = make_toy("mlp").only(0)
    assert list(Msg().anew(toy.stack, toy.split, toy.context())) == ["2.weight", "4.weight"]
