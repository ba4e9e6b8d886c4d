"""``weighted_grad_all_data``: the channels that matter most to all training data; a control that knows nothing of the forget set."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import AlwaysOpen, Budget, MinKeep, Normalise, Ranking, TopShare, Within, best_of_channels, rank_units
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack


@spec("localiser", "weighted_grad_all_data", paper="arXiv:2412.02432")
class WeightedGradAllData:
    """Open the output channels whose weights, times their gradient on all training data, are largest.

    a = |θ ⊙ Σ_{x∈D} ∂_θ CE(x)|, D = S ∪ R, then as ``weighted_grad_channel``: a control that is not specific to the forget set.
    Source: Torkzadehmahani et al. 2025, code ("weighted_grad_all"; methods.md §5.1).
    Differs from the published code: as ``weighted_grad_channel``, whose legacy variants are not repeated here.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    granularity: ClassVar[str] = "channel"
    budget: Budget = 0.3
    top_share: TopShare = 0.1
    normalise: Normalise = "none"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        of_forget, of_retain = (summed_gradient(stack, part, ctx.progress) for part in (split.forget, split.retain))
        values = {name: (weights * (of_forget[name] + of_retain[name])).abs() for name, weights in stack.params.items()}
        units = best_of_channels(stack, values, self.top_share)
        return rank_units(stack, units, normalise=self.normalise, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
