"""``influence_unlearning``: one Newton step towards the weights without the forget set."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from toy import Toy, furthest, make_toy, same
from unlearnlab import gradients
from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.gradients import drawn_rows, gradient_rows, summed_gradient
from unlearnlab.methods import influence_unlearning
from unlearnlab.methods.influence_unlearning import InfluenceUnlearning, conjugate_gradient
from unlearnlab.progress import Progress
from unlearnlab.stack import Stack, flat
from unlearnlab.train import Recipe


class Double(nn.Linear):
    """A linear classifier in double precision."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(inputs, classes, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1).double())


def points(n: int, inputs: int, classes: int, seed: int = 0) -> Images:
    """Points whose labels a linear model draws."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 1, inputs, generator=draw)
    p = (x.flatten(1) @ torch.randn(inputs, classes, generator=draw)).softmax(1)
    return Images(x, torch.multinomial(p, 1, generator=draw)[:, 0], torch.arange(n), classes)


def split_of(images: Images, n_f: int) -> Split:
    rows = torch.arange(len(images))
    part = images.rows(rows[:n_f])
    return Split(part, images.rows(rows[n_f:]), part, part, part)


def context(k: int) -> Context:
    return Context(seeds=tuple(range(70, 70 + k)), recipe=Recipe(), progress=Progress())


def mean_gradients(stack: Stack, split: Split) -> Tensor:
    """v = (n_f/n)(ḡ_f − ḡ_r)."""
    n_f, n_r = len(split.forget), len(split.retain)
    of_forget, of_retain = (flat(summed_gradient(stack, images, Progress())) for images in (split.forget, split.retain))
    return n_f / (n_f + n_r) * (of_forget / n_f - of_retain / n_r)


def change(stack: Stack, after: Stack) -> Tensor:
    return flat(after.params) - flat(stack.params)


def fisher(stack: Stack, images: Images, rows: Tensor | None = None) -> Tensor:
    g = torch.cat(list(gradient_rows(stack, images, Progress(), rows=rows)), 1)
    return g.mT @ g / g.shape[1]


@pytest.mark.parametrize(("solver", "close"), [("woodbury", 1e-10), ("auto", 1e-10), ("conjugate_gradient", 1e-5)])
@pytest.mark.parametrize("n", [50, 200])
def test_exact_equals_a_dense_solve(solver: str, close: float, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """P = 6, N = 50, in double precision; from all of the retain set and from each model's own sample of it."""
    stack, split = Stack.init(Double(3, 2), (0, 1)), split_of(points(n + 5, 3, 2), 5)
    ctx = context(2)
    after = InfluenceUnlearning(solver=solver, samples=50, damping=1e-2, step=0.7)(stack, split, ctx)
    h = fisher(stack, split.retain, drawn_rows(split.retain, 50, ctx.seeds)) + 1e-2 * torch.eye(6, dtype=torch.float64)
    expected = 0.7 * torch.linalg.solve(h, mean_gradients(stack, split))
    assert float((change(stack, after) - expected).abs().max()) < close * float(expected.abs().max())
    monkeypatch.setattr(influence_unlearning, "SETTLED", 1e-12)
    if solver == "conjugate_gradient":  # and to the end, if it is not stopped
        after = InfluenceUnlearning(solver=solver, samples=50, damping=1e-2, step=0.7)(stack, split, context(2))
        assert float((change(stack, after) - expected).abs().max()) < 1e-10 * float(expected.abs().max())


def test_diagonal_leaves_out_the_rest_of_h() -> None:
    stack, split = Stack.init(Double(3, 2), (0, 1)), split_of(points(55, 3, 2), 5)
    after = InfluenceUnlearning(solver="diagonal", damping=0.1)(stack, split, context(2))
    expected = mean_gradients(stack, split) / (0.1 + fisher(stack, split.retain).diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(change(stack, after), expected)


@pytest.mark.parametrize("solver", ["woodbury", "conjugate_gradient"])
def test_pruned_weights_stay_out_of_h(solver: str) -> None:
    stack, split = Stack.init(Double(3, 2), (0, 1)), split_of(points(55, 3, 2), 5)
    live = torch.tensor([[[True, False, True], [True, True, False]], [[False, True, True], [True, True, True]]])
    stack = stack.pruned({"weight": live})
    after = InfluenceUnlearning(solver=solver)(stack, split, context(2))
    for k in range(2):
        bits = live[k].flatten()
        h = fisher(stack, split.retain)[k][bits][:, bits] + 1e-2 * torch.eye(int(bits.sum()), dtype=torch.float64)
        expected = torch.linalg.solve(h, mean_gradients(stack, split)[k][bits])
        torch.testing.assert_close(change(stack, after)[k][bits], expected, rtol=1e-4, atol=1e-8)
        assert (flat(after.params)[k][~bits] == 0).all()


def test_legacy_on_a_pruned_net_is_the_recursion_on_the_weights_that_are_left() -> None:
    """The gradient of a pruned weight is 0 in a net that multiplies weights by their mask, as the published code's does."""
    stack, split = Stack.init(Double(3, 2), (0, 1)), split_of(points(55, 3, 2), 5)
    live = torch.tensor([[[True, False, True], [True, True, False]], [[False, True, True], [True, True, True]]])
    stack, bits = stack.pruned({"weight": live}), live.flatten(1)
    after = InfluenceUnlearning(variant="legacy", samples=20)(stack, split, context(2))
    g = torch.cat(list(gradient_rows(stack, split.retain, Progress())), 1)[:, :22]
    expected = torch.stack([recursion(v * own, mine * own, 20) for v, mine, own in zip(mean_gradients(stack, split), g, bits, strict=True)])
    torch.testing.assert_close(change(stack, after), expected, rtol=1e-9, atol=1e-12)


def optimum(images: Images) -> Tensor:
    """Weights of logistic regression on these points by Newton's method: [classes, inputs], those of a class sum to zero over classes."""
    x, classes = images.pixels.flatten(1).double(), images.classes
    weight = torch.zeros(classes * x.shape[1], dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ weight.view(classes, -1).T, images.labels)

    for _ in range(12):
        weight = weight - torch.linalg.pinv(torch.func.hessian(loss)(weight)) @ torch.func.grad(loss)(weight)
    assert float(torch.func.grad(loss)(weight).abs().max()) < 1e-12
    return weight.view(classes, -1)


def test_approaches_the_true_optimum_without_the_forget_set() -> None:
    """Logistic regression on 4 000 points whose labels a logistic model drew, so that H is close to the curvature of the loss."""
    images = points(4000, 3, 3, seed=1)
    stack = Stack.init(Double(3, 3), (0,)).having({"weight": optimum(images).unsqueeze(0)})
    errors, lengths = [], []
    for n_f in (512, 64, 1):
        split = split_of(images, n_f)
        after = InfluenceUnlearning(samples=4000, damping=1e-5, solver="conjugate_gradient")(stack, split, context(1))
        true = optimum(split.retain).flatten() - flat(stack.params)[0]
        errors.append(float((change(stack, after)[0] - true).norm()))
        lengths.append(float(true.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
    assert all(error < 0.15 * length for error, length in zip(errors, lengths, strict=True))


def recursion(v: Tensor, gradients: Tensor, n: int) -> Tensor:
    """The published loop, as it is written there."""
    k, o = v.clone(), gradients[0].clone()
    for g in gradients[1:]:
        t = torch.dot(o, g)
        k -= (torch.dot(k, g) / (n + t)) * o
        o -= (t / (n + t)) * o
    return k


@pytest.mark.parametrize("samples", [1, 30, 1000])
def test_legacy_is_the_published_recursion(samples: int) -> None:
    """Over the first N + 2 examples, or all if there are fewer."""
    stack, split = Stack.init(Double(3, 2), (0, 1)), split_of(points(65, 3, 2), 5)
    ctx = context(2)
    after = InfluenceUnlearning(variant="legacy", samples=samples, step=3.0)(stack, split, ctx)
    g = torch.cat(list(gradient_rows(stack, split.retain, Progress())), 1)[:, : samples + 2]
    expected = torch.stack([recursion(v, mine, samples) for v, mine in zip(mean_gradients(stack, split), g, strict=True)])
    torch.testing.assert_close(change(stack, after), 3 * expected, rtol=1e-9, atol=1e-12)
    assert (ctx.progress.forward, ctx.progress.backward) == (65 + min(samples + 2, 60),) * 2


def test_legacy_change_less_the_step_along_v_is_parallel_to_the_first_gradient(toy: Toy) -> None:
    after = toy.unlearn(InfluenceUnlearning(variant="legacy", step=10.0, samples=5))
    g_1 = flat(summed_gradient(toy.stack, toy.split.retain.rows(torch.arange(1)), Progress()))
    rest = change(toy.stack, after) - 10 * mean_gradients(toy.stack, toy.split)
    assert float(nn.functional.cosine_similarity(rest, g_1).abs().min()) > 1 - 1e-4
    later = replace(toy.split, retain=toy.split.retain.rows(torch.tensor([0, 6, 5, 4, 3, 2, 1, *range(7, 56)])))  # the same seven first
    other = replace(toy.split, retain=toy.split.retain.rows(torch.arange(55, -1, -1)))
    assert furthest(replace(toy, split=later).unlearn(InfluenceUnlearning(variant="legacy", step=10.0, samples=5)).params, after.params) < 1e-5
    assert furthest(replace(toy, split=other).unlearn(InfluenceUnlearning(variant="legacy", step=10.0, samples=5)).params, after.params) > 1e-4


@pytest.mark.parametrize("variant", ["exact", "legacy"])
@pytest.mark.parametrize("solver", ["woodbury", "conjugate_gradient", "diagonal"])
def test_no_step_no_change(variant: str, solver: str, toy: Toy) -> None:
    method = cast(InfluenceUnlearning, replace(InfluenceUnlearning(step=0, samples=9, iterations=2), variant=variant, solver=solver))
    assert same(toy.unlearn(method).params, toy.stack.params)


def test_memory_decides_how_many_members_are_solved_at_once_and_then_the_solver(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    method, weights = InfluenceUnlearning(samples=10), flat(toy.stack.params).shape[1]
    used: list[str] = []
    for name in ("woodbury", "conjugate_gradient"):
        real = getattr(influence_unlearning, name)
        monkeypatch.setattr(influence_unlearning, name, lambda first, *rest, name=name, real=real: used.append(name) or real(first, *rest))
    ctx = toy.context()
    whole = toy.unlearn(method, ctx)
    assert used == ["woodbury"]
    for held, expected in ((2.5, ["woodbury"] * 2), (1, ["woodbury"] * 3), (0.9, ["conjugate_gradient"])):
        used.clear()
        monkeypatch.setattr(gradients, "MEMORY", int(held * 10 * weights * 4))
        again = toy.context()
        after = toy.unlearn(method, again)
        assert used == expected
        assert furthest(after.params, whole.params) < 1e-5
        if held >= 1:
            assert (again.progress.forward, again.progress.backward) == (ctx.progress.forward, ctx.progress.backward) == (70, 70)
        else:  # each product: two passes forward, one backward
            turns = (again.progress.backward - 60) // 10
            assert (again.progress.forward, again.progress.backward) == (60 + 20 * turns, 60 + 10 * turns)
            assert 2 <= turns <= 20


def test_conjugate_gradient_by_hand() -> None:
    """A member that is done stands still while others go on; one of zeros stays zero; the number of steps is kept."""
    h = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    v = torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    calls: list[Tensor] = []

    def times(x: Tensor) -> Tensor:
        calls.append(x)
        return x @ h

    found = conjugate_gradient(times, v, 50)
    torch.testing.assert_close(found, torch.tensor([[1, 0.5, 0.25], [3, 0, 0], [0, 0, 0]], dtype=torch.float64))
    assert len(calls) == 3
    assert conjugate_gradient(times, v, 1)[0].tolist() == pytest.approx([3 / 7] * 3)


def test_each_model_draws_its_own_sample() -> None:
    toy = make_toy()
    one, again, other = (toy.unlearn(InfluenceUnlearning(samples=10), toy.context(shift=shift)) for shift in (0, 0, 1))
    assert same(one.params, again.params)
    assert not same(one.params, other.params)
    alone = toy.only(2).unlearn(InfluenceUnlearning(samples=10))
    assert furthest(alone.params, one.rows([2]).params) < 1e-5
