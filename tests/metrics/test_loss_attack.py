"""The loss attack: ranks by hand, the batched logistic regression against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import study
from sklearn.linear_model import LogisticRegression

from unlearnlab.metrics.loss_attack import LossAccuracy, LossAuc, logistic
from unlearnlab.outputs import Outputs


def with_losses(forget: list[float], control: list[float]):
    """An audit of 3 + 3 + 3 models that all have these losses."""
    audit = study(3)
    parts = torch.tensor([0] * len(forget) + [3] * len(control))
    loss = torch.tensor(forget + control, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(loss), (loss.exp() - 1).log()], -1).expand(3, -1, -1)
    n = len(loss)
    seen = Outputs(logits, torch.zeros(3, n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64), torch.arange(n), parts, (0, 1, 2))
    assert seen.loss[0].tolist() == pytest.approx(loss.tolist())
    return replace(audit, originals=seen, oracles=seen, unlearned=seen, groups={})


def test_members_with_low_losses_are_found() -> None:
    low, high = torch.linspace(0.1, 0.5, 20).tolist(), torch.linspace(1, 2, 30).tolist()
    audit = with_losses(low, high)
    assert LossAuc()(audit).value == 1.0
    assert LossAuc()(audit).extra["ks"] == 1.0
    assert LossAccuracy()(audit).value == 1.0
    assert LossAuc()(with_losses(high, low)).value == 0.0  # forgotten too well is seen as well
    assert LossAccuracy()(with_losses(high, low)).extra["distance"] == 0.5


def test_equal_and_constant_losses_are_a_coin() -> None:
    same = torch.linspace(0.1, 2, 20).tolist()
    assert LossAuc()(with_losses(same, same)).value == 0.5
    assert LossAuc()(with_losses(same, same)).extra["ks"] == 0.0
    lopsided = with_losses([0.7] * 10, [0.7] * 90)
    assert (LossAuc()(lopsided).value, LossAccuracy()(lopsided).value) == (0.5, 0.5)


def test_ties_count_half() -> None:
    audit = with_losses([0.3, 0.5] * 5, [0.5, 0.7] * 5)
    assert LossAuc()(audit).value == pytest.approx(0.875)


def test_too_few_images() -> None:
    assert LossAuc()(with_losses([0.1] * 9, [0.2] * 30)).missing == "not computed: 9 forget examples, needs 10"
    assert LossAccuracy()(with_losses([0.1] * 30, [0.2] * 4)).missing == "not computed: 4 control examples, needs 10"


def test_sign_and_order() -> None:
    values = [LossAuc()(study(6, left)).value for left in (1.0, 0.5, 0.0)]
    assert values[0] > 0.75
    assert values == sorted(values, reverse=True)
    assert LossAuc()(study(6, 1.0)).rescaled == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.5])
def test_logistic_is_scikit_learns(spread: float) -> None:
    draws = np.random.default_rng(0)
    x = np.exp(spread * draws.standard_normal((4, 60)))  # losses have long tails
    y = np.arange(60) % 2.0
    x[1] += 5 * y  # separable
    slopes, intercepts = logistic(torch.from_numpy(x), torch.from_numpy(y))
    for row, slope, intercept in zip(x, slopes.tolist(), intercepts.tolist(), strict=True):
        z = (row - row.mean()) / row.std()
        theirs = LogisticRegression(tol=1e-10, max_iter=1000).fit(z[:, None], y)
        assert slope * row.std() == pytest.approx(theirs.coef_[0, 0], abs=1e-5)
        assert intercept + slope * row.mean() == pytest.approx(theirs.intercept_[0], abs=1e-5)


def test_rounding_is_no_feature() -> None:
    member = torch.arange(60) < 20
    x = torch.full((60,), 0.7, dtype=torch.float64)
    x[member] = torch.nextafter(x[member], torch.tensor(1.0).double())
    slope, _ = logistic(x[None], member.double())
    assert slope.item() == 0


def test_accuracy_follows_a_plain_loop() -> None:
    """Not the same splits, hence the same number only on average."""
    audit = study(6, 1.0)
    forget, control = audit.unlearned.of("forget").loss.numpy(), audit.unlearned.of("control").loss.numpy()
    draws, found = np.random.default_rng(0), []
    for f, c in zip(forget, control, strict=True):
        for _ in range(12):
            x = np.concatenate([draws.permutation(f)[:40], draws.permutation(c)[:40]])
            test = np.r_[0:4, 40:44]
            train = np.setdiff1d(np.arange(80), test)
            z, y = (x - x[train].mean()) / x[train].std(), (np.arange(80) < 40).astype(float)
            found.append(LogisticRegression().fit(z[train, None], y[train]).score(z[test, None], y[test]))
    value = LossAccuracy()(audit).value
    assert value is not None
    assert value == pytest.approx(np.mean(found), abs=0.06)
