"""From scores to masks: ranks and budgets, per member, over all tensors at once.

A mask is a prefix of one ranking, so the mask of a smaller budget is a subset of that of a larger one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import torch

from unlearnlab.spec import Setting
from unlearnlab.stack import Mask, Stack, Tensors, flat, top_share, unflat

Budget = Annotated[float, Setting("share of all weights that may change", symbol="q", gt=0, le=1)]


def open_weights(stack: Stack, scores: Tensors, budget: float) -> Mask:
    """Open the ⌊budget · P⌋ weights with the highest ``scores`` (name -> [K, *shape]); ties go to (order of definition, index)."""
    row = flat(scores)
    return Mask(unflat(top_share(row, allowed(budget, row.shape[1])), stack.params), stack.fingerprint)


def open_channels(stack: Stack, scores: Tensors, budget: float) -> Mask:
    """Open whole channels, best first, until the next one would exceed the budget; ties go to (order of definition, channel).

    ``scores``: name -> [K, units]; a tensor of n weights with u units has n/u consecutive weights in each.
    """
    sizes = torch.cat([torch.full((s.shape[1],), stack.params[name][0].numel() // s.shape[1]) for name, s in scores.items()]).to(stack.device)
    order = torch.cat(list(scores.values()), 1).argsort(dim=1, descending=True, stable=True)
    fits = sizes[order].cumsum(1) <= allowed(budget, int(sizes.sum()))
    chosen = torch.zeros_like(fits).scatter_(1, order, fits)
    return Mask(unflat(chosen.repeat_interleave(sizes, 1), stack.params), stack.fingerprint)


def allowed(budget: float, weights: int) -> int:
    """How many of so many weights a share of them is, rounded down."""
    return int(Decimal(str(budget)) * weights)  # in decimals: .29 × 100 is 29 weights, not the 28 of floating point
