"""``shallowest``: the first layers of the forward pass, whatever the data; a control."""

from __future__ import annotations

from typing import ClassVar

import torch

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.ranking import AlwaysOpen, Budget, Ranking, by_channel, rank_units
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack, blocks


@spec("localiser", "shallowest", paper="arXiv:2412.02432")
class Shallowest:
    """Open layer after layer from the input until the budget is spent, without a look at the data.

    Layers in the order of the forward pass; the last one opens in part, by output channel in order of definition. budget = q.
    Source: baseline of Torkzadehmahani et al. 2025 (methods.md §5.1, details unverified).
    Differs from the published code: not compared.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    granularity: ClassVar[str] = "channel"
    budget: Budget = 0.3
    always_open: AlwaysOpen = "none"

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        depth = {name: at for at, block in enumerate(blocks(stack.net)) for name in block}
        units = {name: torch.full(by_channel(p).shape[:2], -float(depth[name]), device=stack.device) for name, p in stack.params.items()}
        return rank_units(stack, units, always_open=self.always_open)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
