"""``ssd``: shrink, once and without training, the weights that matter far more to the forget set than to all data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import mean_squared_gradient
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack


@spec("method", "ssd", paper="arXiv:2308.07707")
class Ssd:
    """Shrink the weights that matter far more to the forget set than to the whole training set; no training.

    I_X[j] = mean over X of (∂_j CE(x))²; where I_S[j] > α·I_D[j]: θ_j ← θ_j · min(1, λ·I_D[j]/I_S[j])^exponent.
    selection = α, dampening = λ, D = S ∪ R. Since D holds S, I_S/I_D never exceeds n/n_f: a selection of n/n_f or more changes nothing.
    Source: Foster et al. 2024 (methods.md §2.11).
    Differs from the published code: squares of per-example gradients (there: of batch means, which depend on the batch size); no example
    is dropped; I_D is put together from S and R, so that no example passes twice; 0/0 leaves the weight alone.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "n/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"selection": 1e30}
    selection: Annotated[float, Setting("how many times more a weight must matter to the forget set to be shrunk", symbol="α", ge=0)] = 10.0
    dampening: Annotated[float, Setting("strength of the weight that is left", symbol="λ", ge=0)] = 1.0
    exponent: Annotated[float, Setting("power of the shrinking factor", gt=0)] = 1.0

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        of_forget = mean_squared_gradient(stack, split.forget, ctx.progress)
        of_retain = mean_squared_gradient(stack, split.retain, ctx.progress)
        share = len(split.forget) / (len(split.forget) + len(split.retain))
        edited = {name: self.dampened(p, of_forget[name], torch.lerp(of_retain[name], of_forget[name], share)) for name, p in stack.params.items()}
        return stack.having(edited if ctx.mask is None else ctx.mask.choose(edited, stack.params))

    def dampened(self, weights: Tensor, of_forget: Tensor, of_all: Tensor) -> Tensor:
        """The weights after the edit, given both importances."""
        factor = (self.dampening * of_all / of_forget).clamp(max=1) ** self.exponent  # 0/0 is NaN, but 0 > α·0 is false
        return torch.where(of_forget > self.selection * of_all, weights * factor, weights)
