"""Facts of the methods that edit weights once, by Fisher information and influence (methods.md §2.9, §2.10)."""

from __future__ import annotations

from facts import Facts, Sizes, both

DRAWN = 20  # examples of the retain set's 56


def fisher(n: Sizes) -> tuple[int, int]:
    """Forward once, backward once for every class."""
    return DRAWN, DRAWN * n.classes


FACTS = {
    "fisher_forgetting": Facts(
        fisher,
        short={"fisher_examples": DRAWN},
        other={"noise": 1e-5, "fisher_examples": 30},
        one_shot=True,
    ),
    "influence_unlearning": Facts(
        lambda n: both(n.retain + n.forget + DRAWN),
        short={"samples": DRAWN},
        busy={"solver": "conjugate_gradient", "iterations": 3},
        other={"step": 0.5, "samples": 30, "damping": 0.1, "iterations": 2},
        one_shot=True,
    ),
}
