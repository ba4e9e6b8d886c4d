"""Facts of the recent methods (methods.md §7)."""

from __future__ import annotations

from facts import Facts, Sizes, both
from unlearnlab.methods.sfron import SfRon
from unlearnlab.optimizers import AdamW, Constant

ROUNDS, EVERY = 18, 4
SHORT_COPIES = {"rates": (0.01, 0.02), "passes": (2, 3)}
ALL_PASSES = 2 * (2 + 3)


def endless(batches: int, images: int, size: int) -> int:
    """Examples of so many batches of a stream that reshuffles at each pass."""
    turns = [min(size, images - at) for at in range(0, images, size)]
    return sum(turns[step % len(turns)] for step in range(batches))


def matched(n: Sizes) -> int:
    """The forget set, and three times as many retain images."""
    return n.forget + min(3 * n.forget, n.retain)


def predicted(n: Sizes) -> tuple[int, int]:
    return (n.epochs + 1) * matched(n), n.epochs * matched(n)


MATCHING = {"retain_multiple": 2, "forget_multiple": 2, "anchor": 0.5, "optimizer": AdamW()}

FACTS = {
    "negmerge": Facts(
        lambda n: both(ALL_PASSES * n.forget),
        short=SHORT_COPIES,
        busy={"strengths": (0.01, 10.0), "allowed_loss": 0.99},
        other={
            "rates": (0.01, 0.03),
            "decays": (0.05,),
            "passes": (2, 5),
            "augment": ("none",),
            "consensus": 0.5,
            "strengths": (0.01, 1.5),
            "allowed_loss": 0.01,
        },
    ),
    "sfron": Facts(
        lambda n: both(endless(ROUNDS, n.retain, n.batch) + endless(-(-ROUNDS // EVERY), n.forget, n.batch) + n.forget + n.retain),
        build=SfRon(steps=60),  # at 1500 steps the tests would take minutes
        short={"steps": ROUNDS, "forget_every": EVERY, "forget_weight": 2.0},
        busy={"slow_share": 0.7, "slow_every": 2, "clip": 0.5},
        other={
            "steps": 20,
            "forget_every": 3,
            "forget_weight": 0.1,
            "adaptivity": 2.0,
            "threshold": 2.0,
            "slow_share": 0.5,
            "slow_every": 3,
            "schedule": Constant(),
        },
    ),
    "delete": Facts(lambda n: (2 * n.epochs * n.forget, n.epochs * n.forget), other={"temperature": 2.0}),
    "oracle_matching": Facts(lambda n: both(n.epochs * matched(n)), busy={"oracles": 2}, other={**MATCHING, "oracles": 1}),
    "datamodel_matching": Facts(predicted, other={**MATCHING, "multiplier": 0.5}),
    "datamodel_direct": Facts(lambda n: (0, 0), other={"multiplier": 0.5}, exempt={"seed": "draws nothing", "mask": "holds no weights"}),
}
