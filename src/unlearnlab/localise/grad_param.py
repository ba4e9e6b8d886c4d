"""``grad_param``: the weights that the forget set's loss is most sensitive to (SalUn's saliency map)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import Budget, open_weights
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors

Accumulate = Annotated[
    Literal["signed_sum", "abs_per_batch"],
    Setting("a weight's salience: size of its summed gradient, or sum of the sizes of its mean gradients on batches",
            published="signed_sum (SalUn), abs_per_batch (another library under the same name)"),
]  # fmt: skip
GradientBatch = Annotated[int, Setting("images per batch of abs_per_batch, taken in order of id", ge=1)]


@spec("localiser", "grad_param", paper="arXiv:2310.12508")
class GradParam:
    """Open the weights with the largest loss gradient over the forget set.

    m = 1 for the ⌊q·P⌋ largest entries of |Σ_{x∈S} ∂_θ CE(x)|; budget = q. Eval mode, no augmentation.
    accumulate = "abs_per_batch": of Σ_B |mean_{x∈B} ∂_θ CE(x)| instead, where gradients of different batches cannot cancel; it depends
    on the batches, so these hold ``gradient_batch`` images each in order of id. Source: Fan et al. 2024 (methods.md §2.8, §5.1).
    Differs from the published code: the gradient is that of the summed loss, so that batch size and order do not
    matter (there: the sum of batch means, which weighs a short last batch more); exactly ⌊q·P⌋ weights open.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    budget: Budget = 0.5
    accumulate: Accumulate = "signed_sum"
    gradient_batch: GradientBatch = 256

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        if self.accumulate == "abs_per_batch":
            return open_weights(stack, self._per_batch(stack, split, ctx), self.budget)
        slopes = summed_gradient(stack, split.forget, ctx.progress)
        return open_weights(stack, {name: slope.abs() for name, slope in slopes.items()}, self.budget)

    def _per_batch(self, stack: Stack, split: Split, ctx: Context) -> Tensors:
        total = {name: torch.zeros_like(p) for name, p in stack.params.items()}
        for rows in torch.split(split.forget.ids.argsort(), self.gradient_batch):
            slopes = summed_gradient(stack, split.forget.rows(rows), ctx.progress)
            total = {name: held + slopes[name].abs() / len(rows) for name, held in total.items()}
        return total
