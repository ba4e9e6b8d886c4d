"""``oracle_matching``, and the training it shares with ``datamodel_matching``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import Toy, furthest, make_toy, oracles, same
from unlearnlab.methods.oracle_matching import OracleMatching
from unlearnlab.optimizers import Sgd
from unlearnlab.outputs import Outputs, observe
from unlearnlab.spec import InputError

PLAIN = Sgd(momentum=0, weight_decay=0)


def matched(toy: Toy, seen: Outputs, method: OracleMatching) -> Any:
    return method(toy.stack, toy.split, replace(toy.context(), oracles=seen))


def own_outputs(toy: Toy) -> Outputs:
    images, part = toy.split.together()
    return observe(toy.stack, images, member=part.expand(3, -1) < 2, part=part)


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_one_that_already_answers_so_does_not_move(bn: str) -> None:
    """With BatchNorm in training mode, only what BatchNorm does to the outputs moves it."""
    for net in ("small_cnn", "batch_norm"):
        toy = make_toy(net).only(0)
        seen = own_outputs(make_toy(net)).rows([0])
        after = matched(toy, seen, OracleMatching(lr=0.01, epochs=3, optimizer=PLAIN, bn=bn))  # type: ignore[arg-type]
        stays = furthest(after.params, toy.stack.params) < 1e-5
        assert stays == (bn == "frozen" or net == "small_cnn")
        assert net == "small_cnn" or (furthest(after.buffers, toy.stack.buffers) == 0) == (bn == "frozen")


@pytest.mark.parametrize("count", [1, 10])
def test_one_oracle_and_ten(toy: Toy, count: int) -> None:
    two = oracles("small_cnn", 10)
    ten = two.rows([0, 1] * 5)
    after = matched(toy, ten, OracleMatching(oracles=count, epochs=2))
    same_mean = replace(two, logits=ten.logits[:count].mean(0, keepdim=True).expand(2, -1, -1))
    assert furthest(after.params, matched(toy, same_mean, OracleMatching(epochs=2)).params) < 1e-5
    assert not same(after.params, toy.stack.params)


def test_targets_are_found_by_id_and_others_are_never_looked_at(toy: Toy, record: Callable[[], list[Any]]) -> None:
    seen = oracles("small_cnn", 10)
    ruined = replace(seen, logits=torch.where((seen.part > 1).view(1, -1, 1), torch.nan, seen.logits))
    turned = ruined.examples(torch.randperm(len(seen.ids), generator=torch.Generator().manual_seed(0)))
    assert same(matched(toy, turned, OracleMatching(epochs=2)).params, matched(toy, seen, OracleMatching(epochs=2)).params)
    calls = record()
    matched(toy, turned, OracleMatching(epochs=1, batch=7))
    where = {i: row for row, i in enumerate(seen.ids.tolist())}
    for batch in calls[0].batches:
        expected = seen.logits[:, torch.tensor([[where[i] for i in ids] for ids in batch.ids.tolist()])].mean(0)
        assert torch.equal(batch.labels, expected)


def test_forget_images_come_f_times_and_a_part_of_the_others_once(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    seen = oracles("small_cnn", 10)
    matched(toy, seen, OracleMatching(epochs=2, batch=5, retain_multiple=2, forget_multiple=3))
    ids = torch.cat([batch.ids for batch in calls[0].batches], 1).view(3, 2, 20)
    forget = set(toy.split.forget.ids.tolist())
    drawn = []
    for member in ids:
        for epoch in member.tolist():
            assert sorted(i for i in epoch if i in forget) == sorted(sorted(forget) * 3)
        kept = [sorted(i for i in epoch if i not in forget) for epoch in member.tolist()]
        assert kept[0] == kept[1]  # drawn once
        assert len(set(kept[0])) == 8
        assert set(kept[0]) <= set(toy.split.retain.ids.tolist())
        drawn.append(tuple(kept[0]))
    assert len(set(drawn)) == 3  # each member its own
    matched(toy, seen, OracleMatching(epochs=1, retain_multiple=1000))
    assert sum(batch.ids.shape[1] for batch in calls[1].batches) == 60  # no more than there are


def loss_of(toy: Toy, record: Callable[[], list[Any]], targets: Tensor, logits: Tensor, weights: Tensor, **settings: Any) -> float:
    """The loss the method hands to ``fit``, of a pretended net with these logits and weights (those of the original are 0)."""
    calls = record()
    matched(toy, oracles("small_cnn", 10), OracleMatching(**settings))

    class Pretended:
        def __init__(self, weights: Tensor) -> None:
            self.params = {"w": weights}

        def __call__(self, images: Tensor) -> Tensor:
            return logits

    batch = replace(calls[0].batches[0], labels=targets)
    return float(calls[0].settings["loss"](Pretended(weights), batch, {"original": Pretended(torch.zeros_like(weights))}))


def test_distance_is_summed_over_classes_and_averaged_over_images(toy: Toy, record: Callable[[], list[Any]]) -> None:
    logits, targets, weights = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([1.0, 2.0])
    assert loss_of(toy, record, targets, logits, weights) == pytest.approx((25 + 1) / 2)
    assert loss_of(toy, record, targets, logits, weights, anchor=0.1) == pytest.approx(13 + 0.1 * 5)
    entropy = loss_of(toy, record, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.zeros(2, 2), weights, loss="cross_entropy")
    assert entropy == pytest.approx(float(torch.tensor(2.0).log()))


def test_cross_entropy_is_towards_mean_probabilities(toy: Toy, record: Callable[[], list[Any]]) -> None:
    seen, calls = oracles("small_cnn", 10), record()
    matched(toy, seen, OracleMatching(epochs=1, batch=60, loss="cross_entropy"))
    batch = calls[0].batches[0]
    at = int((seen.ids == int(batch.ids[1, 0])).nonzero())
    assert torch.allclose(batch.labels[1, 0], seen.logits[:, at].softmax(1).mean(0))


def test_learning_rate_falls_by_a_twentieth_an_epoch() -> None:
    schedule = OracleMatching().schedule
    assert [schedule(step, 20, 4) for step in (0, 3, 4, 8, 19)] == pytest.approx([1, 1, 0.95, 0.95**2, 0.95**4])


def test_it_comes_closer_to_the_oracles(toy: Toy) -> None:
    seen, pixels = oracles("small_cnn", 10), toy.split.forget.pixels
    target = seen.of("forget").logits.mean(0)
    after = matched(toy, seen, OracleMatching(epochs=10, lr=0.003, batch=8))
    before, now = ((stack.logits(pixels) - target).square().sum(2).mean(1) for stack in (toy.stack, after))
    assert bool((now < 0.7 * before).all())


def test_what_is_missing_is_named(toy: Toy) -> None:
    with pytest.raises(InputError, match="needs the outputs of models retrained"):
        OracleMatching()(toy.stack, toy.split, toy.context())
    seen = oracles("small_cnn", 10)
    gone = int(toy.split.forget.ids[1])
    with pytest.raises(InputError, match=f"not observed on image id {gone}"):
        matched(toy, seen.examples(seen.ids != gone), OracleMatching())
