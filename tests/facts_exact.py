"""Facts of the exact and certified methods (methods.md §8)."""

from __future__ import annotations

import torch

from facts import Facts, Sizes, both
from toy import make_toy
from unlearnlab.methods.sisa import Sisa

SHARDS = {"shards": 3, "slices": 2}


def restarted(n: Sizes) -> int:
    """Of every shard that holds a forget image: what is left of its slices 1 to r, for each r from the first one hit, once an epoch."""
    split, method = make_toy().split, Sisa(**SHARDS)
    hit = list(zip(*(where.tolist() for where in method.places(split.forget.ids)), strict=True))
    shard, at = method.places(split.retain.ids)
    first = {s: min(r for t, r in hit if t == s) for s, _ in hit}
    epochs = max(1, round(2 * n.recipe_epochs / (method.slices + 1)))
    seen = [int(torch.sum((shard == s) & (at <= r))) for s in first for r in range(first[s], method.slices)]
    return epochs * sum(seen)


FACTS = {
    "sisa": Facts(lambda n: both(restarted(n)), short=SHARDS, other={"shards": 2, "slices": 3, "slice_epochs": 3, "draw": 1}),
    # under this penalty no member's budget is spent: one Newton step an image, each on all that are there
    "certified_removal": Facts(
        lambda n: both(sum(n.retain + n.forget - gone for gone in range(n.forget))),
        short={"penalty": 1.0},
        busy={"epsilon": 0.02},  # just enough for four images
        other={"penalty": 0.5, "noise": 5.0, "epsilon": 0.01, "delta": 1e-12, "group": 2, "steps": 1, "tolerance": 1.0},
    ),
    "noisy_finetune": Facts(lambda n: both(n.epochs * n.retain), other={"noise": 0.01}),
}
