"""``fcs``: three phases in turn, each with an optimiser of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from toy import Toy, same
from unlearnlab.fit import Batch
from unlearnlab.methods.fcs import Fcs, InTurn
from unlearnlab.methods.prmq import entropy
from unlearnlab.optimizers import Adam, Optimizer, Sgd
from unlearnlab.stack import Net

ONES, BARE = torch.ones(1, 1), Sgd(momentum=0, weight_decay=0)


def alone(name: str) -> dict[str, float]:
    """Settings under which one of the phases moves weights, the others not."""
    return {rate: 0.0 for rate in ("flat_lr", "forget_lr", "final_lr", "lr") if rate != name}


def loss(method: Fcs, logits: Tensor, tag: str, beside: Tensor | None = None) -> Tensor:
    """Its loss on given logits."""
    also = None if beside is None else Batch(beside, torch.zeros(len(beside)), torch.zeros(len(beside)))
    return method._loss(cast(Net, lambda images: images), Batch(logits, torch.zeros(len(logits), dtype=torch.int64), torch.zeros(1), tag, also), {})


def test_the_first_pass_makes_predictions_on_the_forget_set_less_sure(toy: Toy) -> None:
    after = toy.unlearn(Fcs(epochs=1, batch=1, bn="frozen", **alone("flat_lr")))
    before_, after_ = ([float(entropy(one).mean()) for one in s.logits(toy.split.forget.pixels)] for s in (toy.stack, after))
    assert all(a > b for a, b in zip(after_, before_, strict=True))


def test_the_first_loss_is_the_divergence_of_the_prediction_from_uniform_one_sided() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    expected = (math.log(1 / 3 / 0.5) + 2 * math.log(1 / 3 / 0.25)) / 3 / 2  # the other way round it would be .5·log(.5·3) + .5·log(.25·3)
    assert float(loss(Fcs(), p.log(), "flatten")) == pytest.approx(expected, abs=1e-6)


def test_the_contrastive_loss_by_hand_and_the_retain_logits_are_held_fixed() -> None:
    forget, retain = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = loss(Fcs(temperature=2.0), forget, "contrast", retain)
    assert float(value.detach()) == pytest.approx(math.log(math.exp(0.5) + 1) - 0.25, abs=1e-6)  # similarities ½ and 0
    value.backward()
    assert forget.grad is not None
    assert retain.grad is None


def test_phases_take_turns(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Fcs(epochs=3, batch=3))
    assert len(calls) == 1
    batches, f, r = calls[0].batches, 2, 19  # batches of 4 and of 56 images
    assert [batch.tag for batch in batches] == ["flatten"] * f + (["contrast"] * f + ["train"] * r) * 3
    forget, retain = (set(images.ids.tolist()) for images in (toy.split.forget, toy.split.retain))
    for at in (0, f, f + (f + r), f + 2 * (f + r)):  # each pass is over all of S
        assert set(torch.cat([batch.ids for batch in batches[at : at + f]], 1)[0].tolist()) == forget
    paired = [torch.cat([batch.also.ids for batch in batches[at : at + f]], 1)[0].tolist() for at in (f, f + (f + r), f + 2 * (f + r))]
    assert all(len(set(ids)) == 6 and set(ids) <= retain for ids in paired)  # full batches of R beside short ones of S
    assert len({tuple(ids) for ids in paired}) == 3  # from a fresh shuffle each round
    for epoch in range(3):
        trained = [batch.ids[0] for batch in batches[f + epoch * (f + r) + f : f + (epoch + 1) * (f + r)]]
        assert sorted(torch.cat(trained).tolist()) == sorted(retain)


def test_learning_rates(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Fcs(epochs=2, batch=2))
    steps, per_epoch = calls[0].settings["steps"], calls[0].settings["per_epoch"]
    rates = [calls[0].settings["lr"] * calls[0].settings["schedule"](step, steps, per_epoch) for step in range(steps)]
    by = {tag: [rate for rate, batch in zip(rates, calls[0].batches, strict=True) if batch.tag == tag] for tag in ("flatten", "contrast", "train")}
    assert by["flatten"] == [0.005, 0.005]
    assert by["contrast"] == pytest.approx([1e-6 + (3e-4 - 1e-6) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])  # step by step
    assert by["train"] == pytest.approx([0.001 * 2 / 64] * 56)


def test_the_retain_rate_grows_with_the_batch(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Fcs())
    assert calls[0].settings["schedule"](2, 17, 2) == pytest.approx(0.004)  # at the published batch size 256
    assert calls[0].batches[2].tag == "train"


def turns(first: Optimizer, second: Optimizer) -> InTurn:
    """Two phases, a step each by turns."""
    return InTurn({"a": (first, lambda at: 1.0), "b": (second, lambda at: 1.0)}, lambda step: ("ab"[step % 2], step // 2))


def run(optimizer: InTurn, steps: int) -> list[float]:
    params, found = {"w": torch.zeros(1, 1)}, []
    state = optimizer.start(params)
    for step in range(steps):
        params = optimizer.update(params, {"w": ONES}, state, optimizer(step, steps, 2), step)
        found.append(float(params["w"]))
    return found


def test_optimisers_do_not_share_momentum_and_keep_it_over_the_rounds() -> None:
    # a: velocity 1, 1.9; b: velocity 1, 1.5. A shared one would be 1, 1.9 (or 1.5), …; one lost between turns would be 1 throughout.
    assert run(turns(Sgd(0.9, 0.0), Sgd(0.5, 0.0)), 4) == pytest.approx([-1, -2, -3.9, -5.4])


def test_each_optimiser_counts_its_own_steps() -> None:
    # Adam's bias correction: with equal gradients every step has length 1, if its count of steps is its own
    assert run(turns(Adam(), BARE), 6) == pytest.approx([-1, -2, -3, -4, -5, -6], abs=1e-4)


def test_weight_decay_is_that_of_the_phase(toy: Toy) -> None:
    zero = {"forget_optimizer": BARE, "bn": "frozen", "epochs": 1}
    for name in ("flat_lr", "forget_lr"):  # weight decay of the retain rounds does not reach the other two
        plain, decayed = (toy.unlearn(Fcs(**alone(name), **zero, optimizer=Sgd(weight_decay=d))) for d in (0.0, 0.5))  # type: ignore[arg-type]
        assert same(plain.params, decayed.params)
    plain, decayed = (toy.unlearn(Fcs(**alone("lr"), **zero, optimizer=Sgd(weight_decay=d))) for d in (0.0, 0.5))  # type: ignore[arg-type]
    assert not same(plain.params, decayed.params)


def test_more_forgotten_than_retained(toy: Toy) -> None:
    turned = replace(toy.split, forget=toy.split.retain, retain=toy.split.forget)
    few, ctx = replace(toy.only(0), split=turned), toy.only(0).context()
    few.unlearn(Fcs(epochs=2, batch=3), ctx)
    beside = 9 * 4 + 3  # 19 batches a round: nine shuffles of R's four images (in batches of 3 and 1), and one batch of 3
    assert ctx.progress.forward == 56 + 2 * (56 + beside + 4)
