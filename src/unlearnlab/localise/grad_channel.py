"""``grad_channel``: the channels that the forget set's loss is most sensitive to."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import AlwaysOpen, Budget, MinKeep, Normalise, Ranking, TopShare, Within, best_of_channels, rank_units
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack


@spec("localiser", "grad_channel", paper="arXiv:2412.02432")
class GradChannel:
    """Open the output channels with the largest loss gradient over the forget set.

    a = |Σ_{x∈S} ∂_θ CE(x)|; score of channel o = mean of the largest ``top_share`` of a[o, …]; a 1-D tensor (bias, BatchNorm) is one
    channel with score max a. Channels open whole, best first, while they fit the budget. The unweighted counterpart of DEL's criterion.
    Source: Torkzadehmahani et al. 2025 (methods.md §5.1, §5.2).
    Differs from the published code: as ``weighted_grad_channel``, whose legacy variants are not repeated here.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    granularity: ClassVar[str] = "channel"
    budget: Budget = 0.3
    top_share: TopShare = 0.1
    normalise: Normalise = "none"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        slopes = summed_gradient(stack, split.forget, ctx.progress)
        units = best_of_channels(stack, {name: slope.abs() for name, slope in slopes.items()}, self.top_share)
        return rank_units(stack, units, normalise=self.normalise, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
