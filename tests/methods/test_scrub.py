"""``scrub``: how many passes of which kind, what they minimise, and one optimiser for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from toy import Toy, furthest, make_toy, same
from unlearnlab.fit import Batch
from unlearnlab.methods.scrub import Scrub
from unlearnlab.optimizers import Adam, Sgd
from unlearnlab.spec import InputError

Record = Callable[[], list[Any]]


@pytest.mark.parametrize("passes", [0, 1, 3, 5])
def test_exactly_so_many_max_passes_each_before_a_min_pass(passes: int, toy: Toy, record: Record) -> None:
    calls = record()
    toy.unlearn(Scrub(epochs=5, max_epochs=passes, batch=20, forget_batch=3))
    up, down = ["max"] * 2, ["min"] * 3  # 3 + 1 forget images, 20 + 20 + 16 retain images
    (call,) = calls
    assert [batch.tag for batch in call.batches] == (up + down) * passes + down * (5 - passes)
    for tag, images, count in (("max", toy.split.forget, passes), ("min", toy.split.retain, 5)):
        seen = torch.cat([batch.ids for batch in call.batches if batch.tag == tag] or [torch.zeros(3, 0)], 1).view(3, count, len(images))
        assert torch.equal(seen.sort(2).values.long(), images.ids.sort().values.expand(3, count, -1))
    retained = torch.stack([batch.ids for batch in call.batches if batch.tag == "min" and batch.ids.shape[1] == 20])
    assert len({tuple(ids.tolist()) for ids in retained[:, 0]}) == len(retained)  # ever new batches


def test_rate_falls_by_epoch_though_epochs_are_not_equally_long(toy: Toy, record: Record) -> None:
    calls = record()
    toy.unlearn(Scrub(batch=28, forget_batch=1))  # 3 epochs of 4 + 2 steps, then 7 of 2
    toy.unlearn(Scrub(epochs=3, max_epochs=2, decay_at=(1.0,)))
    toy.unlearn(Scrub(epochs=5, decay_at=(0.6, 1.0)))
    first, second, third = ([call.settings["schedule"](step, len(call.batches), 1) for step in range(len(call.batches))] for call in calls)
    # decay epochs 5, 8, 9 of 10, so epoch 6 is the first at a tenth
    assert first == pytest.approx([1.0] * (18 + 4) + [0.1] * 6 + [0.01] * 2 + [0.001] * 2)
    assert second == [1.0] * 5
    assert third == pytest.approx([1.0] * 6 + [0.1] * 2)


def test_shares_of_few_epochs_are_rounded_up() -> None:
    assert Scrub().schedule.epochs == (5, 8, 9)
    assert Scrub(epochs=5).schedule.epochs == (3, 4, 5)
    assert Scrub(epochs=1, max_epochs=1).schedule.epochs == (1, 1, 1)  # never


def test_both_losses_by_hand() -> None:
    """Teacher's logits (ln 3, 0), student's (0, 0), T = 1: KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2."""
    batch = Batch(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.tensor([0]), "min")
    aux: Any = {"teacher": lambda x: x + torch.tensor([[math.log(3), 0.0]])}

    def value(tag: str, **settings: Any) -> float:
        return float(Scrub(**settings)._loss(lambda x: x, Batch(batch.images, batch.labels, batch.ids, tag), aux))

    apart = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert value("max", temperature=1.0) == pytest.approx(-apart)
    assert value("min", temperature=1.0) == pytest.approx(math.log(2) + 0.5 * apart)
    assert value("min", temperature=1.0, label_weight=3.0, teacher_weight=2.0) == pytest.approx(3 * math.log(2) + 2 * apart)
    p = math.sqrt(3) / (1 + math.sqrt(3))  # at T = 2 the teacher says (√3, 1)/(1 + √3)
    assert value("max", temperature=2.0) == pytest.approx(-4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))))


def test_distance_is_a_mean_over_examples() -> None:
    one = Batch(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([1]), torch.tensor([0]), "max")
    many = Batch(one.images.repeat(5, 1), one.labels.repeat(5), one.ids.repeat(5), "max")
    aux: Any = {"teacher": lambda x: x * 2}
    values = [float(Scrub()._loss(lambda x: x, batch, aux)) for batch in (one, many)]
    assert values[0] == pytest.approx(values[1])
    assert values[0] < 0


@pytest.mark.parametrize("update", [Sgd(weight_decay=5e-4), Adam(weight_decay=0.1)])
def test_against_a_plain_loop_with_one_optimiser_over_the_student(update: Any, record: Record) -> None:
    toy = make_toy("mlp").only(0)
    method = Scrub(epochs=3, max_epochs=2, batch=20, forget_batch=3, lr=5e-3, optimizer=update)
    found, calls = toy.unlearn(method), record()
    toy.unlearn(method)
    student, teacher = toy.stack.member(0).train(), toy.stack.member(0)
    weights = student.parameters()
    chosen: Any = torch.optim.SGD(weights, 1, 0.9, weight_decay=5e-4) if isinstance(update, Sgd) else torch.optim.Adam(weights, 1, weight_decay=0.1)
    for step, batch in enumerate(calls[0].batches):
        chosen.param_groups[0]["lr"] = 5e-3 * (1.0 if step < 5 + 5 else 0.1)  # decay epochs 2, 3, 3 of 3
        logits = student(batch.images[0])
        with torch.no_grad():
            aim = (teacher(batch.images[0]) / 2).softmax(1)
        apart = 4 * F.kl_div((logits / 2).log_softmax(1), aim, reduction="batchmean")
        loss = -apart if batch.tag == "max" else F.cross_entropy(logits, batch.labels[0]) + 0.5 * apart
        chosen.zero_grad()
        loss.backward()
        chosen.step()
    expected = {name: p.detach().unsqueeze(0) for name, p in student.named_parameters()}
    assert furthest(found.params, expected) < 1e-5
    assert furthest(found.params, toy.stack.params) > 1e-3


def test_the_teacher_stays_and_the_student_moves(toy: Toy) -> None:
    before = {name: p.clone() for name, p in toy.stack.params.items()}
    after = toy.unlearn(Scrub())
    assert same(toy.stack.params, before)
    assert not any(torch.equal(after.params[name], p) for name, p in before.items())


def test_without_weights_and_max_passes_only_decay_moves(toy: Toy) -> None:
    nothing: dict[str, Any] = {"label_weight": 0.0, "teacher_weight": 0.0, "max_epochs": 0, "lr": 0.1, "decay_at": (), "epochs": 4}
    assert same(toy.unlearn(Scrub(**nothing, optimizer=Sgd(weight_decay=0))).params, toy.stack.params)
    decayed = toy.unlearn(Scrub(**nothing, optimizer=Sgd(momentum=0, weight_decay=0.1)))
    assert furthest(decayed.params, {name: p * 0.99**4 for name, p in toy.stack.params.items()}) < 1e-6


def test_max_passes_push_the_outputs_on_the_forget_set_away(toy: Toy) -> None:
    def moved(method: Scrub) -> torch.Tensor:
        after = toy.unlearn(method)
        return (after.logits(toy.split.forget.pixels).softmax(2) - toy.stack.logits(toy.split.forget.pixels).softmax(2)).abs().sum((1, 2))

    with_max, without = (moved(Scrub(epochs=5, max_epochs=passes, batch=16, lr=0.02)) for passes in (5, 0))
    assert bool((with_max > without).all())


def test_frozen_batch_norm_keeps_its_averages() -> None:
    toy = make_toy("batch_norm")
    assert same(toy.unlearn(Scrub(epochs=1, max_epochs=1, bn="frozen")).buffers, toy.stack.buffers)
    assert not same(toy.unlearn(Scrub(epochs=1, max_epochs=1)).buffers, toy.stack.buffers)


def test_no_more_max_passes_than_epochs() -> None:
    with pytest.raises(InputError, match="max_epochs = 3 must be at most epochs = 2"):
        Scrub(epochs=2)
