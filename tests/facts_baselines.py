"""Facts of the baselines, SalUn, SSD, DEL and the combinators (methods.md §2, §5)."""

from __future__ import annotations

from facts import Facts, Sizes, both
from unlearnlab.localise.random import Random
from unlearnlab.localise.weight_magnitude import WeightMagnitude
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.l1_sparse import L1Sparse


def beside(n: Sizes) -> int:
    """Forget images in endless batches, one beside every retain batch."""
    turns = [min(n.batch, n.forget - at) for at in range(0, n.forget, n.batch)]
    return sum(turns[step % len(turns)] for step in range(n.epochs * n.steps(n.retain)))


RESETS = {"null": "resets before it trains"}

FACTS = {
    "original": Facts(lambda n: (0, 0), exempt={"moves": "does nothing by definition", "seed": "draws nothing"}),
    "retrain": Facts(
        lambda n: both(n.recipe_epochs * n.retain),
        other={"label_smoothing": 0.1, "sharpness": 0.5},
        exempt={"null": "starts from fresh weights", "mask": "refuses a mask: see the test of its own"},
    ),
    "finetune": Facts(lambda n: both(n.epochs * n.retain)),
    "gradient_ascent": Facts(lambda n: both(n.epochs * n.forget), busy={"lr": 0.1, "epochs": 6, "clip": 0.0}, other={"step_budget": 1}),
    "neggrad_plus": Facts(lambda n: both(n.epochs * n.retain + beside(n)), other={"retain_weight": 0.5, "pull": 1.0}),
    "l1_sparse": Facts(lambda n: both(n.epochs * n.retain), other={"final_threshold": 0.01}),
    "random_label": Facts(lambda n: both(n.epochs * (n.retain + n.forget))),
    "salun": Facts(
        lambda n: both(n.epochs * (n.retain + n.forget) + n.forget),
        busy={"accumulate": "abs_per_batch", "gradient_batch": 1},
        other={"gradient_batch": 3},
    ),
    "ssd": Facts(
        lambda n: both(n.retain + n.forget),
        busy={"selection": 1.0, "importance": "batch_mean"},
        exempt={"seed": "draws nothing"},
        one_shot=True,
    ),
    "reset_finetune": Facts(lambda n: both(n.epochs * n.retain), exempt=RESETS, opens_head=True),
    "del": Facts(lambda n: both(n.epochs * n.retain + n.forget), exempt=RESETS, opens_head=True),
    "localised": Facts(
        lambda n: both(n.epochs * n.retain),
        build=Localised(where=Random(budget=0.5, granularity="channel"), method=FineTune()),
        other={"where": WeightMagnitude(), "method": L1Sparse()},
        exempt={"null": "is nothing where the method it holds is nothing: see the test of its own"},
    ),
}
