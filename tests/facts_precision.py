"""Facts of the methods of "Forget with Precision" (methods.md §4)."""

from __future__ import annotations

from facts import Facts, Sizes, both
from unlearnlab.optimizers import Constant

OVERFIT = 3  # passes of an overfitting copy, in short
RATES = {"forget_lr": 0.02, "forget_epochs": 2, "overfit_lr": 0.05, "overfit_epochs": 9, "quantile": 0.6, "sample_share": 0.2, "second_lr_factor": 1.0}


def pruned(n: Sizes, extra: int = 0) -> tuple[int, int]:
    return both(n.epochs * n.retain + OVERFIT * (n.forget + extra))


def some(n: Sizes) -> int:
    """Two in a hundred, but at least one."""
    return max(1, n.retain // 50)


def changed(*names: str) -> dict[str, float]:
    return {name: RATES[name] for name in names}


PRUNING = ("overfit_lr", "overfit_epochs", "quantile")

FACTS = {
    "poison": Facts(lambda n: both(n.epochs * n.forget)),
    "poison_full": Facts(lambda n: both(n.epochs * (n.forget + n.retain)), other={"schedule": Constant()}),
    "hybrid_two_stage": Facts(lambda n: both(n.epochs * n.retain + n.forget), other=changed("forget_lr", "forget_epochs")),
    "selective_pruning": Facts(pruned, short={"overfit_epochs": OVERFIT}, other=changed(*PRUNING)),
    "selective_pruning_last": Facts(pruned, short={"overfit_epochs": OVERFIT}, other=changed(*PRUNING)),
    "selective_pruning_complex": Facts(
        lambda n: pruned(n, some(n)), short={"overfit_epochs": OVERFIT}, other=changed(*PRUNING, "sample_share", "second_lr_factor")
    ),
    "activation_reset": Facts(
        lambda n: (n.epochs * n.retain + n.forget + some(n), n.epochs * n.retain),
        busy={"tolerance": 0.5},
        other={"tolerance": 0.2, "sample_share": 0.5},
    ),
}
