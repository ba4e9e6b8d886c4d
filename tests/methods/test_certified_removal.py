"""``certified_removal``: bounds that hold, steps of second order, and a certificate that is never claimed wrongly."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import make_toy
from unlearnlab.data.images import Images
from unlearnlab.methods.certified_removal import BudgetSpent, CertifiedRemoval, Data, Heads, features, gradient, minimise, solve
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack

STRONG = CertifiedRemoval(penalty=1.0)


def points(count: int, classes: int = 2, size: tuple[int, ...] = (1, 2, 2), seed: int = 0) -> Images:
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=drawn)
    pixels = torch.randn(count, *size, generator=drawn) + labels.view(-1, 1, 1, 1)
    return Images(pixels, labels, torch.arange(count) + 100, classes)


def left(heads: Heads) -> Tensor:
    """Length of the true gradient at the weights, on the images left [K, C]."""
    return gradient(heads.data, heads.weights, heads.slope, heads.method.penalty).norm(dim=-1)


def test_what_is_left_never_exceeds_its_bound_in_1000_random_removals() -> None:
    """Ten members with data of their own, a hundred removals each."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(10, 150, 4, generator=drawn, dtype=torch.float64)
    data = Data(x / x.norm(dim=-1, keepdim=True), 2.0 * torch.randint(2, (3, 150), generator=drawn).double() - 1)
    heads = Heads(CertifiedRemoval(penalty=1e-2, noise=1.0, epsilon=1e9), tuple(range(10)), data, torch.arange(150), "", None)
    heads.retrain()
    ratios = []
    for i in torch.randperm(150, generator=drawn)[:100].tolist():
        heads.remove([i])
        true = left(heads)
        assert bool((true <= heads.spent).all())
        ratios.append(float((true / heads.spent).max()))
    assert len(heads.ids) == 50
    assert heads.certificate.removed == 100
    assert max(ratios) > 0.01  # the bound is not empty talk


def test_the_gram_matrix_is_that_of_the_rows_left_after_every_step() -> None:
    """Down-dated once a removal, not once a class."""
    images = points(30, classes=5)
    heads = replace(STRONG, epsilon=1e6).fit(images, (0,))
    for i in images.ids[:20].tolist():
        heads.remove([i])
        x = heads.data.x[0]
        assert torch.equal(heads.ids, images.ids[images.ids > i])
        assert torch.allclose(heads.gram[0], x.T @ x, atol=1e-12)


def test_the_bound_by_hand() -> None:
    images = points(12)
    heads = replace(STRONG, penalty=0.1, noise=0.5, epsilon=1e3).fit(images, (0,))
    before, w = heads.spent.clone(), heads.weights[0, 0].clone()
    x, y, b = heads.data.x[0], heads.data.y[0], heads.slope[0, 0]
    heads.remove([100])
    rest, s = x[1:], torch.sigmoid(x[1:] @ w)
    hessian = rest.T @ torch.diag(s * (1 - s)) @ rest + 0.1 * 11 * torch.eye(4, dtype=torch.float64)
    loss_slope = -y[0] * torch.sigmoid(-y[0] * (x[0] @ w)) * x[0]
    move = torch.linalg.inv(hessian) @ (0.1 * w + loss_slope)
    assert torch.allclose(heads.weights[0, 0], w + move)
    bound = 0.25 * torch.linalg.matrix_norm(rest, 2) * move.norm() * (rest @ move).norm()
    assert float(heads.spent[0, 0] - before[0, 0]) == pytest.approx(float(bound), rel=1e-9)
    assert torch.equal(heads.slope[0, 0], b)  # the slope stays


def test_what_solving_leaves_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a step leaves half of what was to be removed, whatever the bound for a whole one."""

    def half(data: Data, weights: Tensor, right: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        move, missed = solve(data, weights, right, penalty)
        return move / 2, missed + right.norm(dim=-1) / 2

    heads = replace(STRONG, epsilon=1e3).fit(points(40), (0, 1))
    monkeypatch.setattr("unlearnlab.methods.certified_removal.solve", half)
    heads.remove([100])
    assert bool((left(heads) <= heads.spent).all())
    assert float(left(heads).min()) > 1e-3


def test_a_removal_is_a_retraining_to_second_order() -> None:
    """With twice the data and the slope in proportion, a removal moves half as far and errs by a quarter as much."""
    errors, moves = [], []
    for copies in (8, 16, 32):
        once = points(20)
        x = features(STRONG, once, None).repeat(1, copies, 1)
        data = Data(x, (2 * torch.nn.functional.one_hot(once.labels, 2).T.double() - 1).repeat(1, copies))
        slope = copies * torch.tensor([[[0.3, -0.2, 0.1, 0.5], [-0.3, 0.2, 0.4, 0.0]]], dtype=torch.float64)
        method = CertifiedRemoval(penalty=0.01)
        before, _ = minimise(data, slope, method, lambda: None)
        keep = torch.arange(20 * copies) > 0
        rest = data.rows(keep)
        move, _ = solve(rest, before, gradient(data.rows(~keep), before, torch.zeros_like(slope), method.penalty), method.penalty)
        retrained, _ = minimise(rest, slope, method, lambda: None)
        errors.append(float((before + move - retrained).norm()))
        moves.append(float((before - retrained).norm()))
    assert errors[-1] < 0.01 * moves[-1]
    for at in range(2):
        assert moves[at] / moves[at + 1] == pytest.approx(2, rel=0.1)
        assert errors[at] / errors[at + 1] == pytest.approx(4, rel=0.15)


def test_training_leaves_what_it_says_and_that_counts() -> None:
    heads = STRONG.fit(make_toy().split.train, (0, 1))
    assert torch.allclose(heads.spent, left(heads))
    assert float(heads.spent.max()) <= 1e-10
    loose = replace(STRONG, steps=1, penalty=1e-3).fit(make_toy().split.train, (0, 1))
    assert torch.allclose(loose.spent, left(loose))
    assert float(loose.spent.min()) > 1e-3
    assert loose.certificate.spent == pytest.approx(loose.spent.sum(1).tolist())  # heads add up
    hopeless = replace(STRONG, steps=1, penalty=1e-3, epsilon=1e-6).fit(make_toy().split.train, (0,))
    assert hopeless.certificate.epsilon is None  # nothing removed, but not trained well enough to certify anything
    assert "certified removal" not in str(hopeless.certificate)


def test_training_finds_the_minimum_also_from_far() -> None:
    """Without shorter steps Newton's method runs off to and fro on saturated losses."""
    data = Data(torch.tensor([[[1.0], [1.0], [-1.0]]], dtype=torch.float64), torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64))
    slope = torch.tensor([[[40.0]]], dtype=torch.float64)
    weights, size = minimise(data, slope, CertifiedRemoval(penalty=1e-2), lambda: None)
    assert float(size) <= 1e-9
    grid = torch.linspace(-2000, 500, 250_001, dtype=torch.float64)
    value = 3 * torch.nn.functional.softplus(-grid) + 0.03 / 2 * grid**2 + 40 * grid
    assert float(weights) == pytest.approx(float(grid[value.argmin()]), abs=0.02)


def test_the_budget_is_that_of_the_theorem() -> None:
    method = CertifiedRemoval(noise=10, epsilon=2, delta=1e-3)
    assert method.budget == pytest.approx(10 * 2 / math.sqrt(2 * math.log(1500)))


def test_slopes_are_normal_with_the_given_deviation_and_each_training_draws_others() -> None:
    images = points(40, size=(1, 20, 20))
    heads = replace(STRONG, noise=3.0).fit(images, tuple(range(10)))
    assert float(heads.slope.std()) == pytest.approx(3.0, rel=0.05)  # of 8000
    assert abs(float(heads.slope.mean())) < 0.15
    before = heads.slope
    heads.retrain()
    assert not bool((heads.slope == before).any())


def test_a_spent_budget_refuses_and_the_refusal_survives_reload(tmp_path: Path) -> None:
    images = points(60)
    heads = CertifiedRemoval(penalty=0.5, noise=1.0, epsilon=0.5).fit(images, (0, 1), folder=tmp_path)
    removed = 0
    while heads.without([100 + removed], Progress()).spent.sum(1).max() <= heads.method.budget:
        certificate = heads.remove([100 + removed])
        removed += 1
        assert certificate.epsilon == 0.5
        assert max(certificate.spent) <= certificate.budget
        assert str(certificate).startswith(f"(0.5, 0.0001)-certified removal of {removed} images")
    before, i = copy.copy(heads), 100 + removed
    with pytest.raises(BudgetSpent, match="nothing was removed"):
        heads.remove([i])
    assert 0 < removed < 59
    assert torch.equal(heads.weights, before.weights)
    opened = Heads.load(tmp_path, images)
    for one in (heads, opened):
        assert one.pending == [i]
        assert one.certificate.epsilon is None
        assert "0.5" not in str(one.certificate)  # no ε that is not certified
        with pytest.raises(BudgetSpent, match="refused before"):
            one.remove([images.ids[-1].item()])
    opened.retrain()
    assert opened.certificate.epsilon == 0.5
    assert "no removal since needs a certificate" in str(opened.certificate)
    assert i not in opened.ids.tolist()
    assert len(opened.ids) == 60 - removed - 1
    again = Heads.load(tmp_path, images.without([i]))
    assert torch.equal(again.weights, opened.weights)
    with pytest.raises(InputError, match="removed before"):
        again.remove([i])


def test_an_interrupted_training_leaves_the_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the heads that know the refused image would pass for heads trained without it."""
    heads = CertifiedRemoval(penalty=0.5, noise=1.0, epsilon=1e-3).fit(points(60), (0,), folder=tmp_path)
    with pytest.raises(BudgetSpent):
        heads.remove([100])

    def tired(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("unlearnlab.methods.certified_removal.minimise", tired)
        with pytest.raises(KeyboardInterrupt):
            heads.retrain()
    assert heads.pending == [100]
    assert heads.certificate.epsilon is None
    assert 100 in heads.ids.tolist()
    opened = Heads.load(tmp_path, points(60))
    for one in (heads, opened):
        one.retrain()
        assert 100 not in one.ids.tolist()
        assert torch.allclose(one.spent, left(one))
    assert torch.equal(heads.weights, opened.weights)


def test_state_survives_reload_and_goes_on_alike(tmp_path: Path) -> None:
    images = points(50, classes=3)
    method = replace(STRONG, epsilon=5.0)
    whole, part = method.fit(images, (0, 1)), method.fit(images, (0, 1), folder=tmp_path)
    for heads in (whole, part):
        heads.remove([100, 101])
    opened = Heads.load(tmp_path, images.without([100, 101]))
    for heads in (whole, opened):
        heads.remove([110])
    assert torch.equal(whole.weights, opened.weights)
    assert whole.certificate == opened.certificate
    assert torch.equal(whole.logits(images), opened.logits(images))
    with pytest.raises(InputError, match="holds heads already"):
        method.fit(images, (0, 1), folder=tmp_path)
    for ids, message in (([100], "removed before"), ([7], "not among"), ([], "at least one"), (opened.ids.tolist(), "leave at least one")):
        with pytest.raises(InputError, match=message):
            opened.remove(ids)


def test_features_are_rows_of_length_one() -> None:
    toy = make_toy()
    rows = features(CertifiedRemoval(), toy.split.train, None)
    assert rows.shape == (1, 60, 64)
    assert rows.dtype == torch.float64
    assert torch.allclose(rows.norm(dim=-1), torch.ones(1, 60, dtype=torch.float64))
    whole = toy.split.train.pixels.flatten(1).double()
    assert torch.allclose(rows[0], whole / whole.norm(dim=1, keepdim=True))
    black = Images(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2), 2)
    assert int(features(CertifiedRemoval(), black, None).count_nonzero()) == 0


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp", "vit"])
def test_penultimate_features_are_what_the_head_is_fed(net: str) -> None:
    toy = make_toy(net)
    method = CertifiedRemoval(features="penultimate")
    rows = features(method, toy.split.test, toy.stack)
    head = [p for name, p in toy.stack.params.items() if name.rpartition(".")[0] == list(toy.stack.params)[-1].rpartition(".")[0]]
    logits = toy.stack.logits(toy.split.test.pixels).double()
    # up to the length of each row, the head makes the logits of them
    solved = torch.stack([_lengths(rows[k], head[0][k].double(), head[1][k].double(), logits[k]) for k in range(3)])
    assert float(solved.max()) < 1e-3


def _lengths(rows: Tensor, weight: Tensor, bias: Tensor, logits: Tensor) -> Tensor:
    """How far logits − bias are from a multiple of weight·row, relative."""
    mine, theirs = rows @ weight.T, logits - bias
    length = (mine * theirs).sum(1, keepdim=True) / mine.square().sum(1, keepdim=True)
    return ((length * mine - theirs).norm(dim=1) / theirs.norm(dim=1)).max()


def test_a_certificate_of_the_head_alone_says_so() -> None:
    toy = make_toy()
    pixels, ids = STRONG.fit(toy.split.train, (0, 1, 2)), toy.split.forget.ids[:1].tolist()
    head = replace(STRONG, features="penultimate").fit(toy.split.train, (0, 1, 2), toy.stack)
    assert "THE LINEAR HEAD ONLY" in str(head.remove(ids))
    assert "the whole model" in str(pixels.remove(ids))
    with pytest.raises(InputError, match="features of another net"):
        head.logits(toy.split.test, toy.init)
    with pytest.raises(InputError, match="needs the stack"):
        head.logits(toy.split.test)


def test_an_overspent_member_is_trained_anew_and_the_others_are_not() -> None:
    toy = make_toy()
    asked = toy.split.test
    method = replace(STRONG, noise=10.0)
    kept = method.fit(toy.split.train, toy.context().seeds, toy.stack)
    after = kept.without(toy.split.forget.ids.tolist(), Progress())
    spent = after.spent.sum(1)
    between = float(spent.sort().values[1:].mean())  # the worst of three is over
    tight = replace(method, epsilon=between / method.budget)
    ctx = toy.context()
    found = tight.answer(toy.stack, toy.split, ctx, asked)
    over = spent > between
    assert int(over.sum()) == 1
    stays = after.logits(asked)
    assert torch.equal(found[~over], stays[~over])
    anew = tight.fit(toy.split.retain, ctx.seeds, toy.stack)  # the same images, but its second slope
    anew.retrain()
    assert torch.allclose(found[over], anew.logits(asked)[over], atol=1e-6)
    assert ctx.progress.forward > 60 + 59 + 58 + 57  # training anew is part of the cost


def test_a_group_is_removed_by_the_sum_of_gradients() -> None:
    images, method = points(40), replace(STRONG, penalty=0.05, epsilon=1e3)
    one, four = method.fit(images, (0,)), replace(method, group=4).fit(images, (0,))
    for heads in (one, four):
        heads.remove([100, 101, 102, 103])
        assert bool((left(heads) <= heads.spent).all())
        assert torch.allclose(heads.gram, heads.data.x.mT @ heads.data.x, atol=1e-12)
    assert float((one.weights - four.weights).abs().max()) < 0.05 * float(one.weights.abs().max())
    assert float(four.spent.sum()) > float(one.spent.sum())


def test_memory_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = points(30, classes=4)
    whole = STRONG.fit(images, (0, 1))
    monkeypatch.setattr("unlearnlab.methods.certified_removal.MEMORY", 1)
    piecewise: Any = STRONG.fit(images, (0, 1))
    assert torch.allclose(whole.weights, piecewise.weights, atol=1e-10)


def test_each_member_has_features_of_its_own() -> None:
    toy = make_toy()
    method = replace(STRONG, features="penultimate")
    together = method.fit(toy.split.train, (5, 6, 7), toy.stack)
    for k in range(3):
        one: Stack = toy.stack.rows([k])
        alone = method.fit(toy.split.train, (5 + k,), one)
        assert torch.allclose(together.weights[k], alone.weights[0], atol=1e-6)
