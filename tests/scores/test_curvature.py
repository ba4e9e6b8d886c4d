"""Loss curvature: against autograd in double precision, one example at a time; exact for a linear model; and who scores high."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from test_learning_events import SHORT, auc, make_parts, start
from torch import Tensor, nn

from toy import Interrupted, Stops
from unlearnlab.data.images import Images
from unlearnlab.nets.mlp import Mlp
from unlearnlab.progress import Progress
from unlearnlab.scores import curvature
from unlearnlab.scores.curvature import LossCurvature, as_floats
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

RANDOM = LossCurvature(directions="rademacher", count=3)


@cache
def learnt(net: str = "mlp", images: int = 45) -> tuple[Stack, Images]:
    train = make_parts(images).train
    return Recipe(epochs=5, batch=9)(start(net), train), train


def naive(stack: Stack, k: int, images: Images, signs: Tensor | None = None, h: float = 0.01) -> list[float]:
    """‖∂CE(x + z) − ∂CE(x)‖, one example at a time in double precision; along given signs [n, ...] instead of the gradient's own."""
    model, found = stack.member(k).double(), []

    def slope(x: Tensor, label: int) -> Tensor:
        x = x.clone().requires_grad_()
        nn.functional.cross_entropy(model(x.unsqueeze(0)), torch.tensor([label])).backward()
        assert x.grad is not None
        return x.grad

    for at, label in enumerate(images.labels.tolist()):
        x = images.pixels[at].double() / 255
        g = slope(x, label)
        sign = g.sign() if signs is None else signs[at].double()
        z = h * sign / sign.norm()
        found.append(float((slope(x + z, label) - g).norm()))
    return found


@pytest.mark.parametrize("net", ["mlp", "small_cnn", "batch_norm", "vit"])
def test_curvature_is_that_of_a_loop_over_examples(net: str) -> None:
    stack, train = learnt(net)
    found = LossCurvature().now(stack, train, Progress())
    for k in range(len(stack)):
        expected = torch.tensor(naive(stack, k, train), dtype=torch.float64)
        # pixels with next to no gradient may have the other sign in single precision, and a kink may lie between
        torch.testing.assert_close(found[k].median(), expected.median(), rtol=1e-2, atol=1e-6)
        assert float(((found[k] - expected).abs() < 1e-2 * expected + 1e-5).double().mean()) > 0.9


def test_random_directions_are_those_of_a_loop_over_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member, epoch, piece and image has directions of its own, and all squared changes count alike."""
    monkeypatch.setattr(curvature, "AT_ONCE", 20)
    stack, train = learnt("small_cnn")
    found = RANDOM.now(stack, train, Progress(), epoch=4)
    for k, seed in enumerate(stack.seeds):
        lots = {at: generator(seed, "curvature", 4, at) for at in (0, 20, 40)}
        total = torch.zeros(len(train), dtype=torch.float64)
        for _ in range(3):
            drawn = [torch.randint(0, 2, (min(20, 45 - at), 1, 8, 8), generator=lot, dtype=torch.int8) for at, lot in lots.items()]
            total += torch.tensor(naive(stack, k, train, torch.cat(drawn) * 2 - 1), dtype=torch.float64).square()
        torch.testing.assert_close(found[k], total / 3, rtol=2e-2, atol=1e-7)
    assert not torch.equal(RANDOM.now(stack, train, Progress(), epoch=5), found)


def linear(scale: float = 1.0) -> tuple[Stack, Images]:
    train = make_parts(30).train
    stack = Recipe(epochs=5, batch=9)(Stack.init(Mlp(hidden=())((1, 8, 8), 10), (0, 1)), train)
    return stack.having({name: p * scale for name, p in stack.params.items()}), train


def test_a_linear_model_by_hand() -> None:
    """∂_x CE = Wᵀ(p − e_y): its change is Wᵀ(p(x + z) − p(x)), which is not zero, for the loss bends where the logits do not."""
    stack, train = linear()
    w, b = (p.double() for p in stack.params.values())
    x = as_floats(train.pixels).double().flatten(1)
    p = (x @ w.mT + b.unsqueeze(1)).softmax(-1)
    sign = ((p - nn.functional.one_hot(train.labels, 10)) @ w).sign()
    z = 0.01 * sign / sign.norm(dim=2, keepdim=True)
    moved = ((x + z) @ w.mT + b.unsqueeze(1)).softmax(-1)
    torch.testing.assert_close(LossCurvature().now(stack, train, Progress()), ((moved - p) @ w).norm(dim=2), rtol=1e-3, atol=1e-6)


def test_small_steps_scale() -> None:
    """To first order ‖H z‖ is proportional to the length of z."""
    stack, train = linear()
    long, short = (LossCurvature(step=h).now(stack, train, Progress()) for h in (0.02, 0.005))
    torch.testing.assert_close(long / short, torch.full_like(long, 4.0), rtol=0.02, atol=0)


def test_a_flat_loss_has_no_curvature() -> None:
    """Where the loss is 0 to the last bit, so are all gradients, and no direction is to be had from them."""
    stack, train = linear(1e6)
    found = LossCurvature().now(stack, train, Progress())
    assert bool(found.isfinite().all())
    right = stack.logits(train.pixels).argmax(2) == train.labels
    assert bool((found[right] == 0).any())
    assert bool(RANDOM.now(stack, train, Progress()).isfinite().all())


def test_float_pixels_stay_as_they_are() -> None:
    stack, train = learnt()
    floats = replace(train, pixels=as_floats(train.pixels))
    assert torch.equal(LossCurvature().now(stack, train, Progress()), LossCurvature().now(stack, floats, Progress()))


# -- over a training run ---------------------------------------------------------------------------


@pytest.mark.parametrize("score", [LossCurvature(), LossCurvature(every=2), RANDOM])
def test_the_score_is_the_mean_over_epochs(score: LossCurvature) -> None:
    parts, progress = make_parts(45), Progress()
    found = score.probe(start(), parts, replace(SHORT, epochs=5), progress)["curvature"]
    seen = [epoch for epoch in range(1, 6) if epoch % score.every == 0]
    each = []
    for epoch in seen:  # a constant learning rate: the first epochs of a longer run are a shorter one
        stack = replace(SHORT, epochs=epoch)(start(), parts.train)
        each.append(score.now(stack, parts.train, Progress(), epoch))
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-6, atol=1e-9)
    looks = 45 * len(seen) * (4 if score.directions == "rademacher" else 2)
    assert (progress.forward, progress.backward) == (5 * 45 + looks, 5 * 45 + looks)


@pytest.mark.parametrize("score", [LossCurvature(), RANDOM])
def test_members_are_independent(score: LossCurvature) -> None:
    parts = make_parts(45)
    together = score.probe(start(), parts, SHORT, Progress())["curvature"]
    for k, seed in enumerate((0, 1, 2)):
        alone = score.probe(start(seeds=(seed,)), parts, SHORT, Progress())["curvature"][0]
        assert float(((alone - together[k]).abs() < 0.02 * together[k] + 1e-6).double().mean()) > 0.9


@pytest.mark.parametrize("score", [LossCurvature(), RANDOM])
def test_an_interruption_changes_no_bit(score: LossCurvature, tmp_path: Path) -> None:
    parts, undisturbed, progress = make_parts(45), Progress(), Progress(tmp_path, every=0)
    whole = score.probe(start(), parts, SHORT, undisturbed)["curvature"]
    for at in (7, 5):  # at the end of the first epoch, in the second
        with pytest.raises(Interrupted):
            score.probe(start(), parts, SHORT, Stops(tmp_path, at))
    assert torch.equal(score.probe(start(), parts, SHORT, progress)["curvature"], whole)
    assert (progress.forward, progress.backward) == (undisturbed.forward, undisturbed.backward)


@pytest.mark.parametrize("directions", ["sign", "rademacher"])
def test_mislabelled_digits_score_higher(directions: str) -> None:
    score, parts = LossCurvature(directions=directions, every=5, count=4), make_parts()
    found = score.score(score.probe(start(), parts, Recipe(epochs=30, batch=20), Progress()), parts.train.ids)
    assert (found.name, found.scale) == ("loss_curvature", "proxy")
    assert auc(found.values, parts.train.mislabelled) > 0.75


# -- bad input -------------------------------------------------------------------------------------


def test_it_must_look_at_least_once() -> None:
    with pytest.raises(InputError, match=r"every = 4 epochs, but the recipe has 3"):
        LossCurvature(every=4).probe(start(), make_parts(45), SHORT, Progress())


class Shifts(nn.Module):
    """Scales by 1/255 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels.float().flatten(1) / 255)


def test_a_net_that_sees_floats_otherwise_is_refused() -> None:
    with pytest.raises(InputError, match="answers them otherwise"):
        LossCurvature().probe(Stack.init(Shifts(), (0, 1)), make_parts(45), SHORT, Progress())
