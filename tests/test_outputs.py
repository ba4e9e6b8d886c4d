"""Stable primitives at their hand-computed values, and the table of logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unlearnlab.data.images import PARTS, Images
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.outputs import Outputs, entropy, hinge, log_one_minus, lowest_argmax, margin, modified_entropy, observe
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack

Z = torch.tensor([[2.0, 0.0, 0.0]])
HUGE = torch.tensor([[30.0, 0.0, 0.0]])
Y = torch.tensor([0])


def outputs(logits: Tensor, labels: Tensor | None = None, **settings: Tensor | tuple[int, ...]) -> Outputs:
    m, n, _ = logits.shape
    held = {
        "member": torch.zeros(m, n, dtype=torch.bool),
        "ids": torch.arange(n) * 10,
        "part": torch.arange(n) % len(PARTS),
        "models": tuple(range(100, 100 + m)),
    }
    return Outputs(logits, labels=torch.zeros(n, dtype=torch.int64) if labels is None else labels, **{**held, **settings})  # type: ignore[arg-type]


def test_hand_computed_values() -> None:
    seen = outputs(Z.unsqueeze(0), Y)
    assert seen.loss.item() == pytest.approx(0.239545, abs=1e-6)
    assert seen.log_prob[0, 0].tolist() == pytest.approx([-0.239545, -2.239545, -2.239545], abs=1e-6)
    assert seen.margin.item() == pytest.approx(2 - math.log(2), abs=1e-12)
    assert hinge(Z, Y).item() == 2.0
    assert hinge(Z, torch.tensor([2])).item() == -2.0
    assert log_one_minus(Z)[0, 0].item() == pytest.approx(-1.546398, abs=1e-6)
    assert log_one_minus(Z)[0, 1].item() == pytest.approx(math.log1p(-math.exp(-2.239545)), abs=1e-6)
    p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert entropy(p).item() == pytest.approx(0.801819, abs=1e-6)
    assert modified_entropy(p, Y).item() == pytest.approx(0.162167, abs=1e-6)
    assert modified_entropy(p, torch.tensor([2])).item() == pytest.approx(2.959736, abs=1e-6)
    assert seen.margin.dtype == seen.loss.dtype == torch.float64


def test_confident_logits_stay_exact() -> None:
    other = math.exp(-30) / (1 + 2 * math.exp(-30))  # probability of each other class
    assert margin(HUGE, Y).item() == pytest.approx(29.306853, abs=1e-6)
    assert outputs(HUGE.unsqueeze(0), Y).loss.item() == pytest.approx(math.log1p(2 * math.exp(-30)), rel=1e-2, abs=0)
    assert log_one_minus(HUGE)[0].tolist() == pytest.approx([math.log(2 * other), -other, -other], rel=1e-9, abs=0)
    assert modified_entropy(HUGE, Y).item() == pytest.approx(2 * other * 2 * other + 2 * other * other, rel=1e-2, abs=0)  # 1e-26, not rounding noise
    assert modified_entropy(HUGE, torch.tensor([1])).item() == pytest.approx(30 + 30 - math.log(2), rel=1e-9)
    for z in (HUGE * 1000, HUGE * -1000, HUGE * 0):
        for value in (margin(z, Y), hinge(z, Y), entropy(z), modified_entropy(z, Y), log_one_minus(z)):
            assert torch.isfinite(value).all(), (z, value)


def test_adding_a_constant_changes_nothing() -> None:
    z, y = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2, 3, 0])
    for measure in (margin, hinge, modified_entropy):
        torch.testing.assert_close(measure(z + 100, y), measure(z, y), rtol=1e-9, atol=1e-9)
    for k in range(5):  # one by one is all at once
        torch.testing.assert_close(margin(z, y)[:, k], margin(z[:, k : k + 1], y[k : k + 1])[:, 0])


def test_ties_go_to_the_lowest_class() -> None:
    assert lowest_argmax(torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])).tolist() == [1, 0, 2]
    assert outputs(torch.zeros(2, 3, 4)).predicted.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_choosing_examples_models_and_parts() -> None:
    seen = outputs(torch.randn(3, 7, 4), torch.arange(7) % 4, member=torch.rand(3, 7) < 0.5)
    assert seen.of("retain").ids.tolist() == [10, 60]
    assert torch.equal(seen.of("retain").logits, seen.logits[:, [1, 6]])
    assert torch.equal(seen.of("retain").member, seen.member[:, [1, 6]])
    assert torch.equal(seen.examples(seen.labels == 2).margin, seen.margin[:, [2, 6]])
    turned = seen.rows([2, 0])
    assert turned.models == (102, 100)
    assert torch.equal(turned.logits, seen.logits[[2, 0]])
    assert len(turned) == 2
    with pytest.raises(InputError, match="unknown part 'val'; parts: forget"):
        seen.of("val")
    joined = Outputs.join([seen.rows([0]), seen.rows([1, 2])])
    assert joined.models == seen.models
    assert all(torch.equal(getattr(joined, name), getattr(seen, name)) for name in ("logits", "member", "labels", "ids", "part"))
    with pytest.raises(AssertionError, match="same examples"):
        Outputs.join([seen, seen.of("retain")])


def test_what_does_not_fit_is_refused() -> None:
    good = outputs(torch.zeros(2, 3, 4))
    for name, value in (("labels", torch.zeros(2)), ("ids", torch.zeros(4)), ("part", torch.zeros(1)), ("member", torch.zeros(3, 2)), ("models", (1,))):
        with pytest.raises(InputError, match="do not fit"):
            outputs(good.logits, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 class; a margin needs at least 2"):
        outputs(torch.zeros(2, 3, 1))
    with pytest.raises(InputError, match=r"shape \[models, examples, classes\], got \[3, 4\]"):
        Outputs(torch.zeros(3, 4), torch.zeros(1, 3), torch.zeros(3), torch.zeros(3), torch.zeros(3), (0,))
    for label in (-1, 4):
        with pytest.raises(InputError, match="labels must lie in 0 to 3"):
            outputs(good.logits, torch.tensor([0, 1, label]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_named(value: float) -> None:
    logits = torch.zeros(2, 3, 4)
    outputs(logits).require_finite()
    logits[1, 2, 0] = value
    with pytest.raises(InputError, match="model 101 has a NaN or infinite logit on example id 20"):
        outputs(logits).require_finite()


def test_observing_changes_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    data = Images(torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=draw), torch.arange(9), torch.arange(9) + 5, 10)
    stack = Stack.init(SmallCnn(norm="batch")((1, 8, 8), 10), (3, 4))
    before = stack.fingerprint
    member, part = torch.rand(2, 9) < 0.5, torch.arange(9) % 5
    one, two = (observe(stack, data, member=member, part=part) for _ in range(2))
    assert torch.equal(one.logits, two.logits)
    assert not one.logits.requires_grad
    stack.__dict__.pop("fingerprint")
    assert stack.fingerprint == before
    assert (one.models, one.ids.tolist(), one.labels.tolist()) == ((3, 4), data.ids.tolist(), data.labels.tolist())
    assert torch.equal(one.member, member)
    torch.testing.assert_close(observe(stack, data, member=member, part=part, batch=4).logits, one.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.logits[1], stack.member(1)(data.pixels).detach(), rtol=1e-5, atol=1e-6)
