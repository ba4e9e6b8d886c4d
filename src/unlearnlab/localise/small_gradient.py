"""``small_gradient``: the weights on whose change forget set and retain set agree most."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import AlwaysOpen, Budget, Granularity, MinKeep, Normalise, Ranking, Within, rank
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack


@spec("localiser", "small_gradient", paper="arXiv:2406.09073")
class SmallGradient:
    """Open the weights for which the gradients of retain set and forget set differ least.

    m = 1 for the ⌊q·P⌋ smallest |ḡ_R − ḡ_S|, ḡ_X = mean over X of ∂_θ CE(x); budget = q. Source: the second-placed entry of the NeurIPS 2023
    contest, MSG (methods.md §5.1, §6.2), which re-initialises these weights: they are as good as idle.
    Differs from the published code: means over all of R and S (there: sums over S and a random part of R of its size, in train mode);
    one ranking over all tensors (there: 30 % of each convolution, here ``ranking = "per_tensor"``).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    budget: Budget = 0.3
    granularity: Granularity = "parameter"
    normalise: Normalise = "none"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        ours, theirs = (summed_gradient(stack, part, ctx.progress) for part in (split.forget, split.retain))
        gaps = {name: (theirs[name] / len(split.retain) - slope / len(split.forget)).abs() for name, slope in ours.items()}
        return rank(
            stack, {name: -gap for name, gap in gaps.items()}, granularity=self.granularity, normalise=self.normalise,
            ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep,
        )  # fmt: skip

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
