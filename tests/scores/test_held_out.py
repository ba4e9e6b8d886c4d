"""Held-out retraining: the divergence by hand, the early stop of each member, the whole against torch's own loop, and who scores high."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from test_learning_events import SEEDS, auc, make_parts, start
from torch import Tensor, nn

from toy import Interrupted, Stops, furthest, same
from unlearnlab.data.partition import Parts
from unlearnlab.fit import Batch, Seen, Shuffled
from unlearnlab.progress import Progress
from unlearnlab.scores.held_out import AllStopped, HoRet, Stopping, divergence
from unlearnlab.spec import InputError, legacy
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

RECIPE = Recipe(epochs=15, batch=10)
BATCH = Recipe(batch=20)  # five steps an epoch over 100 held-out images
SCORE = HoRet(epochs=12, patience=1, lr=0.2)  # on which members stop after 4, 7 and 7 epochs


@cache
def trained(net: str = "batch_norm") -> tuple[Stack, Parts]:
    parts = make_parts(100)
    return RECIPE(start(net), parts.train), parts


def copied(stack: Stack) -> dict[str, Tensor]:
    """For a stack's fingerprint is remembered."""
    return {name: tensor.clone() for name, tensor in (stack.params | stack.buffers).items()}


# -- the divergence --------------------------------------------------------------------------------


def test_divergence_by_hand() -> None:
    """Of (1/2, 1/2) and (9/10, 1/10): ½[(−.4)·log(5/9) + .4·log 5] = .2·log 9."""
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([math.log(9), 0.0])
    assert float(divergence(p, q)) == pytest.approx(0.2 * math.log(9))
    assert float(divergence(q, p)) == float(divergence(p, q))
    assert float(divergence(p, p + 3)) == pytest.approx(0, abs=1e-12)


def test_divergence_of_certainties_is_finite() -> None:
    """Probabilities are clamped at 1e-10: ½·2·log 1e10."""
    p, q = torch.tensor([2000.0, 0.0]), torch.tensor([0.0, 2000.0])
    assert float(divergence(p, q)) == pytest.approx(math.log(1e10))


# -- when a copy stops -----------------------------------------------------------------------------


def test_each_member_is_kept_as_it_stopped() -> None:
    """Patience 2. Weights tell the epoch; the first member's loss rises at once, the second's is never finite, the third's falls for ever."""
    stack = start("batch_norm")
    stopping = Stopping(stack, epochs=6, patience=2)
    losses = torch.tensor([[3, 4, 3, 1, 1, 1], [math.nan] * 6, [6, 5, 4, 3, 2, 1]])
    for epoch in range(6):
        now = replace(stack, **{held: {n: torch.full_like(t, epoch) for n, t in getattr(stack, held).items()} for held in ("params", "buffers")})
        for first in (True, False):  # two steps of an epoch, the second of one image
            size, loss = (3, losses[:, epoch]) if first else (1, losses[:, epoch] + 0.1)
            batch = Batch(*(torch.zeros(3, size) for _ in range(3)))
            stopping(Seen(2 * epoch + 1 - first, batch, torch.zeros(0), loss, now.params, lambda now=now: now, not first))
        assert stopping.state["stopped"].tolist() == [epoch >= 2, epoch >= 1, epoch >= 5]
    for tensors in stopping.held():
        assert all((t[0] == 2).all() and (t[1] == 1).all() and (t[2] == 5).all() for t in tensors.values())


def test_every_image_counts_alike_in_an_epochs_loss() -> None:
    """Batches of 3 and 1: losses of 1 and 4 are less in sum than 2 and 2 (7 against 8), though more as means of batches."""
    stack = start()
    stopping = Stopping(stack, epochs=9, patience=1)
    for step, (size, loss) in enumerate([(3, 1.0), (1, 4.0), (3, 2.0), (1, 2.0)]):
        shown = Seen(
            step, Batch(*(torch.zeros(3, size) for _ in range(3))), torch.zeros(0), torch.tensor([loss, -loss, loss / 10 - step]), {}, lambda: stack, size == 1
        )
        stopping(shown)
    assert stopping.state["stopped"].tolist() == [True, False, False]


def test_the_last_to_stop_breaks_off() -> None:
    stopping, stack = Stopping(start(), epochs=9, patience=1), start()
    batch = Batch(*(torch.zeros(3, 2) for _ in range(3)))
    seen = Seen(0, batch, torch.zeros(0), torch.tensor([1.0, 2.0, 3.0]), stack.params, lambda: stack, True)
    stopping(seen)
    with pytest.raises(AllStopped):
        stopping(seen)


# -- the score -------------------------------------------------------------------------------------


def plain(model: nn.Module, k: int, parts: Parts, score: HoRet) -> tuple[Tensor, int]:
    """One copy by torch's own loop on the same batches; its divergences, and after how many epochs it stopped."""
    moved = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(moved.parameters(), lr=score.lr, momentum=0.9, weight_decay=5e-4)
    stream, best, since, epoch = Shuffled(parts.held_out, BATCH.batch, SEEDS, "order.held_out"), math.inf, 0, 0
    while since < score.patience and epoch < score.epochs:
        total = 0.0
        for step in range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch):
            batch = stream(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(moved(batch.images[k]), batch.labels[k])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch.labels[k])
        epoch, since, best = epoch + 1, 0 if total < best else since + 1, min(total, best)
    moved.eval()
    with torch.no_grad():
        p, q = (net(parts.train.pixels).double().softmax(1).clamp(min=1e-10) for net in (model, moved))
    return torch.tensor([sum(float(a * (a / b).log() + b * (b / a).log()) / 2 for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]), epoch


def test_the_whole_is_that_of_a_plain_loop() -> None:
    stack, parts = trained()
    before, progress = copied(stack), Progress()
    found = SCORE.probe(stack, parts, BATCH, progress)["symmetric_kl"]
    assert same(stack.params | stack.buffers, before)
    ends = []
    for k in range(len(SEEDS)):
        expected, end = plain(stack.member(k), k, parts, SCORE)
        torch.testing.assert_close(found[k].float(), expected, rtol=1e-2, atol=1e-3)
        ends.append(end)
    assert len(set(ends)) > 1, "members stop at different times"
    assert max(ends) < SCORE.epochs, "and the fit is broken off"
    assert (progress.forward, progress.backward) == (max(ends) * 100 + 2 * 100, max(ends) * 100)


def test_members_are_independent() -> None:
    stack, parts = trained()
    together = SCORE.probe(stack, parts, BATCH, Progress())["symmetric_kl"]
    for k in range(len(SEEDS)):
        alone = SCORE.probe(stack.rows([k]), parts, BATCH, Progress())["symmetric_kl"][0]
        torch.testing.assert_close(alone, together[k], rtol=1e-2, atol=1e-3)


def test_an_interruption_changes_no_bit(tmp_path: Path) -> None:
    stack, parts = trained()
    before, undisturbed, progress = copied(stack), Progress(), Progress(tmp_path, every=0)
    whole = SCORE.probe(stack, parts, BATCH, undisturbed)
    for at in (8, 15, 4):  # in the second epoch, when one member has stopped, shortly before the rest do
        with pytest.raises(Interrupted):
            SCORE.probe(stack, parts, BATCH, Stops(tmp_path, at))
    assert same(SCORE.probe(stack, parts, BATCH, progress), whole)
    assert (progress.forward, progress.backward) == (undisturbed.forward, undisturbed.backward)
    assert same(SCORE.probe(stack, parts, BATCH, Progress(tmp_path)), whole), "nor does one that had been broken off"
    assert same(stack.params | stack.buffers, before)


def test_pruned_weights_stay_pruned() -> None:
    stack, parts = trained("mlp")
    name, weights = next(iter(stack.params.items()))
    sparse = stack.pruned({name: weights.abs() > weights.abs().median()})
    moved = HoRet(epochs=2).moved(sparse, parts.held_out, BATCH, Progress())
    assert bool((moved.params[name][~sparse.live[name]] == 0).all())
    assert furthest(moved.params, sparse.params) > 0


@pytest.mark.parametrize(("net", "lr"), [("mlp", 0.1), ("small_cnn", 0.02)])
def test_mislabelled_digits_score_higher(net: str, lr: float) -> None:
    """Without normalisation the published rate of .1 shakes small_cnn: its loss rises, it stops after 5 to 15 epochs, and clean images move as well."""
    parts = make_parts()
    stack, score = Recipe(epochs=25, batch=20)(start(net), parts.train), HoRet(lr=lr, epochs=15)
    found = score.score(score.probe(stack, parts, Recipe(batch=20), Progress()), parts.train.ids)
    assert (found.name, found.scale) == ("ho_ret", "proxy")
    assert torch.equal(found.ids, parts.train.ids)
    assert auc(found.values, parts.train.mislabelled) > 0.9


def test_the_published_code_trains_on_the_test_set() -> None:
    stack, parts = trained("mlp")
    published = HoRet(epochs=2, heldout="test_legacy")
    assert legacy(published) == ["heldout = test_legacy"]
    assert not legacy(HoRet())
    swapped = replace(parts, held_out=parts.test, test=parts.held_out)
    found = published.probe(stack, parts, BATCH, Progress())
    assert same(found, HoRet(epochs=2).probe(stack, swapped, BATCH, Progress()))
    assert not same(found, HoRet(epochs=2).probe(stack, parts, BATCH, Progress()))


def test_fine_tuning_that_diverges_is_no_evidence() -> None:
    stack, parts = trained("mlp")
    with pytest.raises(InputError, match=r"fine-tuning diverged for seed 0 \(3 of 3 models\); lower its lr, now 1e\+30"):
        HoRet(lr=1e30).probe(stack, parts, BATCH, Progress())
