"""``gradient_ascent``: E·⌈n_f/B⌉ steps up, bounded by clipping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toy import Interrupted, Stops, Toy, furthest, make_toy, same
from unlearnlab.data.images import Split
from unlearnlab.methods.gradient_ascent import GradientAscent
from unlearnlab.optimizers import Sgd
from unlearnlab.progress import Progress
from unlearnlab.stack import Stack


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
    usual = toy.unlearn(GradientAscent(lr=0.1, epochs=20))  # with momentum and weight decay
    assert not usual.diverged
    assert all(bool(p.isfinite().all()) for p in usual.params.values())
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


@pytest.mark.parametrize(("budget", "steps"), [(0, 10), (7, 7), (30, 10)])
def test_step_budget(budget: int, steps: int, toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(GradientAscent(batch=3, step_budget=budget))
    assert len(calls[0].batches) == steps


def probability(stack: Stack, split: Split) -> list[float]:
    """Mean probability of the true label on the forget set, by an ordinary loop."""
    found = []
    for k in range(len(stack)):
        with torch.no_grad():
            p = stack.member(k)(split.forget.pixels).softmax(1)
        found.append(float(p[torch.arange(len(p)), split.forget.labels].mean()))
    return found


@pytest.mark.parametrize(("net", "bn", "lr", "clip"), [("small_cnn", "frozen", 0.05, 1.5), ("batch_norm", "train", 0.2, 3.0)])
def test_each_member_stops_at_chance_and_stays_bit_for_bit(net: str, bn: Any, lr: float, clip: float) -> None:
    toy = make_toy(net)
    settings: dict[str, Any] = {"lr": lr, "bn": bn, "batch": 2, "clip": clip}
    runs = [toy.unlearn(GradientAscent(epochs=epochs, **settings)) for epochs in range(1, 8)]
    ps = [probability(run, toy.split) for run in runs]
    ends = [next((i for i, p in enumerate(ps) if p[k] <= 0.1), 6) for k in range(3)]
    assert len(set(ends)) > 1  # not all at the same epoch
    assert min(ends) < 6
    ctx = toy.context()
    found = toy.unlearn(GradientAscent(epochs=7, stop_at_chance=True, **settings), ctx)
    for k, end in enumerate(ends):
        one, expected = found.rows([k]), runs[end].rows([k])
        assert same(one.params | one.buffers, expected.params | expected.buffers)
    assert (ctx.progress.forward, ctx.progress.backward) == (7 * 4 + 6 * 4, 7 * 4)


def test_what_diverges_after_a_members_end_does_not_count(toy: Toy) -> None:
    wild: dict[str, Any] = {"lr": 0.05, "clip": 0.0, "epochs": 6, "batch": 3}
    assert {bad.seed for bad in toy.unlearn(GradientAscent(**wild)).diverged} == {0, 1, 2}
    stopped = toy.unlearn(GradientAscent(**wild, stop_at_chance=True))
    assert stopped.diverged == ()
    assert all(bool(p.isfinite().all()) for p in stopped.params.values())
    ruined = toy.unlearn(GradientAscent(**wild | {"lr": 1e4}, stop_at_chance=True))  # before the first look
    assert {bad.seed for bad in ruined.diverged} == {0, 1, 2}


def test_stopping_survives_an_interruption(toy: Toy, tmp_path: Path) -> None:
    method = GradientAscent(lr=0.05, batch=2, clip=1.5, epochs=7, stop_at_chance=True)
    whole, undisturbed = toy.unlearn(method), toy.context()
    toy.unlearn(method, undisturbed)
    with pytest.raises(Interrupted):
        toy.unlearn(method, replace(toy.context(), progress=Stops(tmp_path, 9)))
    again = replace(toy.context(), progress=Progress(tmp_path, every=0))
    assert same(toy.unlearn(method, again).params, whole.params)
    assert again.progress.example_passes == undisturbed.progress.example_passes
