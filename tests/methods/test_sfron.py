"""``sfron``: forget steps among retain steps, weighted, masked and clipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from toy import Toy, furthest, make_toy, same
from unlearnlab.fit import Batch, cross_entropy, fit
from unlearnlab.gradients import mean_squared_gradient, summed_gradient
from unlearnlab.methods.sfron import SfRon
from unlearnlab.methods.training import batches
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.progress import Progress
from unlearnlab.stack import per_member

PLAIN = Sgd(momentum=0, weight_decay=0)


def test_forget_steps_stand_among_retain_steps(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    method = SfRon(steps=7, forget_every=3, batch=4)
    toy.unlearn(method)
    assert len(calls) == 1  # one optimiser makes all steps
    found = calls[0].batches
    forget = set(toy.split.forget.ids.tolist())
    assert "".join("F" if set(batch.ids.flatten().tolist()) <= forget else "r" for batch in found) == "FrrrFrrrFr"
    assert [method.round(step)[0] for step in range(10)] == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6]
    weights = [float(batch.tag) for batch in found if batch.tag]
    assert weights == pytest.approx([25 * (1 + math.cos(math.pi * k / 7)) / 2 for k in (0, 3, 6)])
    course = calls[0].settings["schedule"]
    assert [course(step, 10, 1) for step in (0, 1, 4, 5, 9)] == pytest.approx([(1 + math.cos(math.pi * k / 7)) / 2 for k in (0, 0, 3, 3, 6)])


def test_images_with_a_high_loss_count_less(toy: Toy, record: Callable[[], list[Any]]) -> None:
    """Weights 1/√CE of losses .25 and 4 are 2 and ½, of a sum of 2 they are 1.6 and .4."""
    calls = record()
    toy.unlearn(SfRon(steps=1))
    log_p = torch.tensor([0.25, 4.0])
    logits = torch.stack([-log_p, torch.log1p(-(-log_p).exp())], 1).requires_grad_()
    batch = replace(calls[0].batches[0], labels=torch.zeros(2, dtype=torch.int64), images=logits, tag="3.0")
    value = calls[0].settings["loss"](lambda images: images, batch, {})
    assert float(value.detach()) == pytest.approx(-3 * (1.6 * 0.25 + 0.4 * 4) / 2, rel=1e-5)
    (slope,) = torch.autograd.grad(value, logits)  # the weights are constants
    (each,) = torch.autograd.grad(F.cross_entropy(logits, batch.labels, reduction="none").sum(), logits)
    assert torch.allclose(slope, -3 * torch.tensor([[0.8], [0.2]]) * each, atol=1e-6)


def test_a_loss_of_zero_is_no_division_by_zero(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(SfRon(steps=1))
    logits = torch.tensor([[200.0, 0.0], [0.0, 0.0]])
    batch = replace(calls[0].batches[0], labels=torch.zeros(2, dtype=torch.int64), images=logits, tag="3.0")
    assert math.isfinite(float(calls[0].settings["loss"](lambda images: images, batch, {})))


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
def test_without_its_tricks_it_is_alternating_ascent_and_finetuning(net: str) -> None:
    """adaptivity 0, all weights open, f = 1, no clipping: against a plain loop over the same batches."""
    toy = make_toy(net)
    method = SfRon(steps=6, forget_every=1, forget_weight=0.5, adaptivity=0.0, threshold=0.0, clip=1e9, batch=16, schedule=Constant(), augment="none")
    ctx = toy.context()
    forget, retain = (batches(images, method, ctx, name) for images, name in ((toy.split.forget, "order.forget"), (toy.split.retain, "order.retain")))

    def stream(step: int) -> Batch:
        return retain(step // 2) if step % 2 else replace(forget(step // 2), tag=str(step // 2))

    def loss(net: Any, batch: Batch, aux: Any) -> torch.Tensor:
        sign = -0.5 * (1 + math.cos(math.pi * int(batch.tag) / 6)) / 2 if batch.tag else 1
        return sign * cross_entropy(net, batch, aux)

    expected = fit(toy.stack, stream, loss, lr=0.01, optimizer=method.optimizer, steps=12)
    after = toy.unlearn(method)
    assert furthest(after.params, expected.params) < 1e-6
    assert net == "small_cnn" or furthest(after.buffers, expected.buffers) < 1e-6


def test_mask_is_where_the_forget_set_matters_more(toy: Toy) -> None:
    """Batches count by their sizes; with batches of one image both kinds of squares are the same."""
    progress = Progress()
    mine = SfRon(batch=40).open(toy.stack, toy.split, progress)
    assert (progress.forward, progress.backward) == (60, 60)
    retain = [summed_gradient(toy.stack, toy.split.retain.rows(torch.arange(*ends)), Progress()) for ends in ((0, 40), (40, 56))]
    forget = summed_gradient(toy.stack, toy.split.forget, Progress())
    for n, bits in mine.items():
        of_retain = (retain[0][n] / 40) ** 2 * 40 / 56 + (retain[1][n] / 16) ** 2 * 16 / 56
        ratio = ((forget[n] / 4) ** 2 + 1e-15) / (of_retain + 1e-15)
        near = (ratio - 1).abs() < 1e-4
        assert torch.equal(bits[~near], (ratio >= 1)[~near])
    ones, each = (SfRon(batch=1, threshold=2.0, squares=kind).open(toy.stack, toy.split, Progress()) for kind in ("batch", "example"))  # type: ignore[arg-type]
    squares = [mean_squared_gradient(toy.stack, images, Progress()) for images in (toy.split.forget, toy.split.retain)]
    for n, bits in each.items():
        assert torch.equal(bits, (squares[0][n] + 1e-15) / (squares[1][n] + 1e-15) >= 2)
    wrong = sum(int((ones[n] != bits).sum()) for n, bits in each.items())
    assert wrong <= 0.001 * sum(bits.numel() for bits in each.values())  # rounding at the threshold


def test_mask_is_of_this_forget_set(toy: Toy) -> None:
    """Nothing is remembered from another one."""
    masks = [SfRon().open(toy.stack, replace(toy.split, forget=toy.split.forget.rows(torch.tensor(rows))), Progress()) for rows in ([0, 1], [2, 3], [0, 1])]
    assert same(masks[0], masks[2])
    assert not same(masks[0], masks[1])


def forget_step(toy: Toy, **settings: Any) -> dict[str, torch.Tensor]:
    """How far the weights move by one forget step."""
    method = SfRon(**{"steps": 1, "lr": 1.0, "optimizer": PLAIN, "schedule": Constant(), **settings})
    calls: list[dict[str, torch.Tensor]] = []
    rule = method.optimizer

    class Watched:
        start = staticmethod(rule.start)
        weight_decay = 0.0

        @staticmethod
        def update(params: Any, grads: Any, state: Any, lr: float, step: int) -> Any:
            calls.append(grads)
            return rule.update(params, grads, state, lr, step)

    object.__setattr__(method, "optimizer", Watched())
    toy.unlearn(method)
    return calls[0]


def test_forget_gradients_are_masked_and_clipped_per_member(toy: Toy) -> None:
    free, clipped = forget_step(toy, clip=1e9), forget_step(toy, clip=0.5)
    opened = SfRon().open(toy.stack, toy.split, Progress())
    assert all(not g[~opened[n]].any() for n, g in free.items())
    assert any(g.any() for g in free.values())
    norms = per_member(free, lambda g: g.square().sum(1)).sqrt()
    assert bool((norms > 0.5).all())
    for n, g in free.items():
        expected = g * (0.5 / norms).view(-1, *[1] * (g.dim() - 1))
        assert torch.allclose(clipped[n], expected, atol=1e-6)


def test_retain_steps_are_neither_masked_nor_clipped(toy: Toy) -> None:
    method = SfRon(steps=1, lr=1.0, forget_weight=0.0, threshold=1e30, clip=1e-6, batch=60, optimizer=PLAIN, schedule=Constant())
    gradient = summed_gradient(toy.stack, toy.split.retain, Progress())
    expected = {n: p - gradient[n] / 56 for n, p in toy.stack.params.items()}
    assert furthest(toy.unlearn(method).params, expected) < 1e-5


SHORT: dict[str, Any] = {"steps": 5, "forget_every": 2, "forget_weight": 1.0, "batch": 16}


def test_slow_share_one_is_no_slow_update(toy: Toy) -> None:
    plain = toy.unlearn(SfRon(**SHORT))
    assert same(plain.params, toy.unlearn(SfRon(slow_share=1.0, slow_every=3, **SHORT)).params)
    assert same(toy.unlearn(SfRon(slow_share=0.0, slow_every=5, **SHORT)).params, toy.stack.params)  # they never follow
    assert furthest(plain.params, toy.unlearn(SfRon(slow_share=1 - 1e-9, **SHORT)).params) < 1e-5


def test_slow_weights_follow_by_their_share(toy: Toy) -> None:
    """One slow update after two rounds, at the very end."""
    two = SHORT | {"steps": 2, "slow_every": 2}
    fast, slow = toy.unlearn(SfRon(**two)).params, toy.unlearn(SfRon(slow_share=0.25, **two)).params
    assert furthest(slow, {n: 0.75 * p + 0.25 * fast[n] for n, p in toy.stack.params.items()}) < 1e-6
    # an update after each of two rounds: each covers the share of what is left
    each = toy.unlearn(SfRon(slow_share=0.25, **(two | {"slow_every": 1}))).params
    assert furthest(each, slow) > 1e-5


def test_mask_is_made_anew_before_each_forget_step(toy: Toy) -> None:
    first = SHORT | {"steps": 1}
    assert same(toy.unlearn(SfRon(**first)).params, toy.unlearn(SfRon(mask_refresh="every_forget_step", **first)).params)
    ctx = toy.context()
    anew = toy.unlearn(SfRon(mask_refresh="every_forget_step", **SHORT), ctx)
    assert not same(anew.params, toy.unlearn(SfRon(**SHORT)).params)
    assert ctx.progress.forward == 3 * 60 + 3 * 4 + (16 + 16 + 16 + 8 + 16)


@pytest.mark.parametrize("refresh", ["once", "every_forget_step"])
def test_it_goes_on_where_it_was_interrupted(toy: Toy, tmp_path: Path, refresh: str) -> None:
    """Also between a retain and a forget step: nothing it needs is kept outside the saved state."""
    method = SfRon(mask_refresh=refresh, slow_share=0.5, slow_every=2, **SHORT)  # type: ignore[arg-type]
    whole = toy.unlearn(method)

    class StoppedError(RuntimeError): ...

    for stop in (3, 4, 6):

        def tell(done: int, total: int, stop: int = stop) -> None:
            if done == stop:
                raise StoppedError

        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            toy.unlearn(method, replace(toy.context(), progress=_Eager(folder, tell)))
        assert (folder / "fit-1.safetensors").exists()
        assert same(toy.unlearn(method, replace(toy.context(), progress=Progress(folder))).params, whole.params)


class _Eager(Progress):
    """Saves after every step and tells of every step."""

    def __init__(self, folder: Path, tell: Callable[[int, int], None]) -> None:
        super().__init__(folder, every=-1.0)
        self.each = tell

    def step(self, done: int, total: int) -> None:
        self.each(done, total)


def test_pruned_weights_are_no_part_of_the_norm(toy: Toy) -> None:
    sparse = toy.stack.pruned({n: p.abs() > p.abs().mean() for n, p in toy.stack.params.items()})
    opened = SfRon(threshold=0.0).open(sparse, toy.split, Progress())
    assert same(opened, sparse.live)
    clipped = forget_step(replace(toy, stack=sparse), clip=0.01, threshold=0.0)
    norms = per_member(clipped, lambda g: g.square().sum(1)).sqrt()
    assert torch.allclose(norms, torch.full((3,), 0.01), rtol=1e-3)
    assert all(not g[~sparse.live[n]].any() for n, g in clipped.items())
