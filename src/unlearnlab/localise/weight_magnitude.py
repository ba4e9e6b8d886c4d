"""``weight_magnitude``: the largest weights, whatever the data; a control."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.ranking import AlwaysOpen, Budget, Granularity, MinKeep, Normalise, Ranking, Within, rank
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack


@spec("localiser", "weight_magnitude", paper="arXiv:2412.02432")
class WeightMagnitude:
    """Open the weights of largest absolute value, without a look at the data.

    m = 1 for the ⌊q·P⌋ largest |θ|; budget = q. Source: Torkzadehmahani et al. 2025, code ("weight"; methods.md §5.1).
    Differs from the published code: |θ| is taken once (there: summed once per batch, a mere factor).
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    budget: Budget = 0.3
    granularity: Granularity = "parameter"
    normalise: Normalise = "none"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        return rank(
            stack, {name: weights.abs() for name, weights in stack.params.items()}, granularity=self.granularity, normalise=self.normalise,
            ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep,
        )  # fmt: skip

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
