"""The four learning-event scores: every formula by hand, the running means against a loop over examples, and who scores high."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toy import NETS, Interrupted, Stops, same
from unlearnlab.data.augment import Crop
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.data.partition import Parts, Stratified
from unlearnlab.fit import Shuffled
from unlearnlab.optimizers import Constant
from unlearnlab.outputs import lowest_argmax
from unlearnlab.progress import Progress
from unlearnlab.scores.learning_events import EVENTS, BiAcc, Confidence, Entropy, LearningEvents, MaxConf, events_of, learning_events
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

SCORES = {"confidence": Confidence(), "max_conf": MaxConf(), "entropy": Entropy(), "bi_acc": BiAcc()}
SEEDS = (0, 1, 2)
SHORT = Recipe(epochs=3, batch=7, lr=0.05, schedule=Constant())


@cache
def make_parts(train: int = 200, noise: float = 0.2) -> Parts:
    """Real digits, a fifth of the training labels wrong; not in order of id, for scores go by position."""
    parts = Stratified(train, 100, 100)(Digits()(), 0)
    images = SymmetricNoise(noise)(parts.train, 1)
    return replace(parts, train=images.rows(torch.randperm(train, generator=torch.Generator().manual_seed(3))))


def start(net: str = "mlp", seeds: tuple[int, ...] = SEEDS) -> Stack:
    return Stack.init(NETS[net]((1, 8, 8), 10), seeds)


def auc(values: Tensor, bad: Tensor) -> float:
    """Chance that a mislabelled image scores higher than a clean one."""
    mine, others = values[bad].unsqueeze(1), values[~bad]
    return float(((mine > others).double() + (mine == others) / 2).mean())


# -- one answer ------------------------------------------------------------------------------------


def answer(*logits: float, label: int = 0) -> dict[str, float]:
    return dict(zip(EVENTS, events_of(torch.tensor([[logits]]), torch.tensor([[label]])).flatten().tolist(), strict=True))


def test_an_answer_by_hand() -> None:
    half = answer(math.log(2), 0.0, 0.0, label=1)  # probabilities 1/2, 1/4, 1/4
    assert half == pytest.approx({"confidence": 0.25, "max_conf": 0.5, "entropy": 1.5 * math.log(2), "bi_acc": 0.0}, abs=1e-6)
    assert answer(0.0, 0.0, 0.0, 0.0)["entropy"] == pytest.approx(math.log(4))


def test_a_saturated_answer_has_no_entropy() -> None:
    assert answer(1000.0, 0.0, -1000.0) == {"confidence": 1.0, "max_conf": 1.0, "entropy": 0.0, "bi_acc": 1.0}
    assert answer(1000.0, 0.0, -1000.0, label=2) == {"confidence": 0.0, "max_conf": 1.0, "entropy": 0.0, "bi_acc": 0.0}


def test_ties_go_to_the_lowest_class() -> None:
    assert [answer(1.0, 3.0, 3.0, label=label)["bi_acc"] for label in range(3)] == [0.0, 1.0, 0.0]
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randint(0, 3, (2, 500, 5), generator=draws).float(), torch.randint(0, 5, (2, 500), generator=draws)
    assert torch.equal(events_of(logits, labels)[3], (lowest_argmax(logits) == labels).float())


# -- running means ---------------------------------------------------------------------------------


def plain_means(stack: Stack, k: int, train: Images, recipe: Recipe) -> dict[str, list[float]]:
    """One model by torch's own loop on the same batches; one epoch, step and example after the other."""
    model, place = stack.member(k).train(), {i: at for at, i in enumerate(train.ids.tolist())}
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
    stream = Shuffled(train, recipe.batch, stack.seeds, "order", augment=recipe.augment)
    sums = {name: [0.0] * len(train) for name in EVENTS}
    for step in range(recipe.epochs * stream.steps_per_epoch):
        batch = stream(step)
        logits = model(batch.images[k])
        for i, label, row in zip(batch.ids[k].tolist(), batch.labels[k].tolist(), logits.detach().double().softmax(1).tolist(), strict=True):
            sums["confidence"][place[i]] += row[label]
            sums["max_conf"][place[i]] += max(row)
            sums["entropy"][place[i]] -= sum(p * math.log(p) for p in row)
            sums["bi_acc"][place[i]] += row.index(max(row)) == label
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, batch.labels[k]).backward()
        optimizer.step()
    return {name: [value / recipe.epochs for value in held] for name, held in sums.items()}


@pytest.mark.parametrize(("net", "recipe"), [("mlp", SHORT), ("batch_norm", SHORT), ("mlp", replace(SHORT, augment=(Crop(padding=1),)))])
def test_means_are_those_of_a_loop_over_examples(net: str, recipe: Recipe) -> None:
    """In training mode, of the batch as it was augmented, before the step; the short last batch of an epoch included."""
    parts, stack = make_parts(45), start(net)
    found = learning_events(stack, parts, recipe, Progress())
    for k in range(len(SEEDS)):
        expected = plain_means(stack, k, parts.train, recipe)
        for name in EVENTS:
            torch.testing.assert_close(found[name][k], torch.tensor(expected[name], dtype=torch.float64), atol=2e-4, rtol=1e-4)


def test_how_many_steps_are_counted_at_a_time_does_not_matter() -> None:
    """None fits; one does; two and a bit do; all of an epoch do."""
    parts = make_parts(45)
    watchers = [LearningEvents(parts.train, 3, pending=3 * 10 * room) for room in (3, 7, 17, 1000)]
    assert [one.room for one in watchers] == [3, 7, 17, 45]
    SHORT(start(), parts.train, watch=watchers)
    means = [watcher.means(SHORT.epochs) for watcher in watchers]
    for one in means[1:]:
        for name in EVENTS:
            torch.testing.assert_close(one[name], means[0][name], atol=1e-6, rtol=1e-6)


def test_members_are_independent_and_watching_costs_no_pass() -> None:
    parts, progress, unwatched = make_parts(45), Progress(), Progress()
    together = learning_events(start(), parts, SHORT, progress)
    SHORT(start(), parts.train, unwatched)
    assert (progress.forward, progress.backward) == (unwatched.forward, unwatched.backward) == (135, 135)
    for k, seed in enumerate(SEEDS):
        alone = learning_events(start(seeds=(seed,)), parts, SHORT, Progress())
        for name in EVENTS:
            torch.testing.assert_close(alone[name][0], together[name][k], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pending", [2**20, 3 * 10 * 17])
def test_an_interruption_changes_no_bit(pending: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnlab.scores.learning_events.LearningEvents.__init__.__defaults__", (pending,))
    parts = make_parts(45)
    whole = learning_events(start(), parts, SHORT, Progress())
    for at in (3, 5, 6):  # in the first epoch, at the end of the second, near the end
        with pytest.raises(Interrupted):
            learning_events(start(), parts, SHORT, Stops(tmp_path, at))
    assert same(learning_events(start(), parts, SHORT, Progress(tmp_path, every=0)), whole)
    assert same(learning_events(start(), parts, SHORT, Progress(tmp_path)), whole), "nor does a finished run that is read again"


# -- scores ----------------------------------------------------------------------------------------


def test_mislabelled_digits_score_higher() -> None:
    parts = make_parts()
    found = learning_events(start(), parts, Recipe(epochs=25, batch=20), Progress())
    for name, score in SCORES.items():
        scores = score.score(found, parts.train.ids)
        assert (scores.name, scores.scale) == (name, "proxy")
        assert torch.equal(scores.ids, parts.train.ids)
        assert auc(scores.values, parts.train.mislabelled) > (0.95 if name in ("confidence", "bi_acc") else 0.75), name


def test_scores_are_means_over_models_and_rise_with_difficulty() -> None:
    gathered = {name: torch.tensor([[0.9, 0.2], [0.7, 0.0]], dtype=torch.float64) for name in EVENTS}
    ids = torch.tensor([7, 3])
    for name, score in SCORES.items():
        expected = [0.8, 0.1] if name == "entropy" else [0.2, 0.9]
        found = score.score(gathered, ids)
        assert found.values.tolist() == pytest.approx(expected)
        assert found.beside["stderr"].tolist() == pytest.approx([0.1, 0.1])  # sd .2/√2, over √2
        assert not score.score({key: held[:1] for key, held in gathered.items()}, ids).beside


def test_training_that_diverges_is_no_evidence() -> None:
    with pytest.raises(InputError, match=r"diverged for seed 0 at step \d+.*\(3 of 3 models\); lower the recipe's lr"):
        learning_events(start(), make_parts(45), replace(SHORT, lr=1e30), Progress())
