"""``grad_param``: the weights that the forget set's loss is most sensitive to (SalUn's saliency map)."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import Budget, open_weights
from unlearnlab.spec import spec
from unlearnlab.stack import Mask, Stack


@spec("localiser", "grad_param", paper="arXiv:2310.12508")
class GradParam:
    """Open the weights with the largest loss gradient over the forget set.

    m = 1 for the ⌊q·P⌋ largest entries of |Σ_{x∈S} ∂_θ CE(x)|; budget = q. Eval mode, no augmentation.
    Source: Fan et al. 2024 (methods.md §2.8, §5.1).
    Differs from the published code: the gradient is that of the summed loss, so that batch size and order do not
    matter (there: the sum of batch means, which weighs a short last batch more); exactly ⌊q·P⌋ weights open.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    budget: Budget = 0.5

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        slopes = summed_gradient(stack, split.forget, ctx.progress)
        return open_weights(stack, {name: slope.abs() for name, slope in slopes.items()}, self.budget)
