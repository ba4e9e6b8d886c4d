"""``random``: weights or channels by lot; the control every localiser must beat."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.ranking import Budget, open_channels, open_weights
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors


@spec("localiser", "random")
class Random:
    """Open weights or whole channels drawn by lot, each member its own, at the same budget as the localiser it is compared with.

    m = 1 for the ⌊q·P⌋ largest of P uniform draws; budget = q. Source: control of DEL and SalUn.
    Differs from the published code: nothing known to differ.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    budget: Budget = 0.3
    granularity: Annotated[Literal["parameter", "channel"], Setting("what is drawn: single weights, or output channels that open whole")] = "parameter"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        if self.granularity == "parameter":
            return open_weights(stack, self._draw(stack, ctx, {n: p.shape[1:] for n, p in stack.params.items()}), self.budget)
        units = {name: p.shape[1:2] if p.dim() > 2 else torch.Size([1]) for name, p in stack.params.items()}
        return open_channels(stack, self._draw(stack, ctx, units), self.budget)

    @staticmethod
    def _draw(stack: Stack, ctx: Context, shapes: dict[str, torch.Size]) -> Tensors:
        """One uniform number per unit of every member: name -> [K, *shape]."""
        members = []
        for seed in ctx.seeds:
            lot = generator(seed, "localise")
            members.append({name: torch.rand(shape, generator=lot) for name, shape in shapes.items()})
        return {name: torch.stack([member[name] for member in members]).to(stack.device) for name in shapes}
