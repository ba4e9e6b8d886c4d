"""``weighted_grad_param``: the weights whose removal the forget set's loss would feel most, one by one."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import AlwaysOpen, Budget, MinKeep, Normalise, Ranking, Within, rank
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack


@spec("localiser", "weighted_grad_param", paper="arXiv:2412.02432")
class WeightedGradParam:
    """Open the weights whose value times their loss gradient over the forget set is largest.

    m = 1 for the ⌊q·P⌋ largest |θ ⊙ Σ_{x∈S} ∂_θ CE(x)|; budget = q. Eval mode, no augmentation.
    Source: Torkzadehmahani et al. 2025 (methods.md §5.1).
    Differs from the published code: the gradient of the summed loss, whatever the batch size (there: sums of batch means).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    budget: Budget = 0.3
    normalise: Normalise = "none"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        slopes = summed_gradient(stack, split.forget, ctx.progress)
        scores = {name: (weights * slopes[name]).abs() for name, weights in stack.params.items()}
        return rank(stack, scores, normalise=self.normalise, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)
