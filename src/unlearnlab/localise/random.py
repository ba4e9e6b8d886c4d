"""``random``: weights, channels or layers by lot; the control every localiser must beat."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.ranking import AlwaysOpen, Budget, MinKeep, Ranking, Within, by_channel, rank_units
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Mask, Stack

Drawn = Annotated[Literal["parameter", "channel", "layer"], Setting("what is drawn: single weights, or output channels or layers that open whole")]


@spec("localiser", "random")
class Random:
    """Open weights, whole channels or whole layers drawn by lot, each member its own, at the same budget as the localiser it is compared with.

    m = 1 for the ⌊q·P⌋ largest of P uniform draws; budget = q. Source: control of DEL and SalUn (methods.md §5.1).
    Differs from the published code: nothing known to differ.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    budget: Budget = 0.3
    granularity: Drawn = "parameter"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0
    draw: Annotated[int, Setting("number of the draw, for several masks of the same models", ge=0)] = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        layers = self.granularity == "layer"
        counts = {name: p[0].numel() if self.granularity == "parameter" else by_channel(p).shape[1] for name, p in stack.params.items()}
        counts = dict.fromkeys(counts, 1) if layers else counts
        lots = [generator(seed, "localise", self.draw) for seed in ctx.seeds]
        units = {name: torch.stack([torch.rand(count, generator=lot) for lot in lots]).to(stack.device) for name, count in counts.items()}
        return rank_units(stack, units, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep, layers=layers)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
