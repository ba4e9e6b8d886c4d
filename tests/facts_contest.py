"""Facts of the seven methods of the NeurIPS'23 contest (methods.md §6)."""

from __future__ import annotations

from facts import Facts, Sizes, both
from unlearnlab.optimizers import Constant, Sgd


def fcs(n: Sizes) -> tuple[int, int]:
    beside = min(n.steps(n.forget) * n.batch, n.retain)  # full batches of R, the last of a shuffle excepted
    return both(n.forget + n.epochs * (n.forget + beside + n.retain))


RESETS = {"null": "resets before it trains"}

FACTS = {
    "fcs": Facts(
        fcs,
        other={"flat_lr": 0.01, "forget_lr": 1e-3, "final_lr": 1e-4, "temperature": 2.0, "forget_optimizer": Sgd(weight_decay=0.1)},
    ),
    "msg": Facts(lambda n: both(2 * n.forget + n.epochs * n.retain), other={"reinitialised": 0.5, "slow": 0.5}),
    "cfw": Facts(lambda n: both(n.epochs * n.retain), other={"noise": 0.1, "late_noise": 0.1, "layers": ("4",), "schedule": Constant()}),
    "prmq": Facts(
        lambda n: (2 * n.epochs * n.retain, n.epochs * n.retain),
        other={"pruned": 0.5},
        # to a rounded weight the last bit of a sum may be worth 5e-4 of its value, so stacked and separate differ by as much
        short={"half": False},
        exempt=RESETS,
    ),
    "ct": Facts(lambda n: both(n.epochs * n.retain), other={"schedule": Constant()}, exempt={"null": "transposes before it trains"}),
    "kde": Facts(
        lambda n: (2 * (2 * n.validation + n.epochs * n.retain), 2 * n.validation + n.epochs * n.retain),
        short={"warm_up_epochs": 2},
        other={"temperature": 2.0, "warm_up_lr": 0.01, "warm_up_epochs": 1, "schedule": Constant()},
        exempt=RESETS,
    ),
    "rni": Facts(
        lambda n: both((n.epochs + 2) * n.retain),
        short={"final_lr": (2e-4, 1e-3)},
        other={"layers": 2, "noised": 0.4, "noise": 0.1, "final_lr": (1e-3,)},
        exempt=RESETS,
    ),
}
