"""``ssd``: shrink, once and without training, the weights that matter far more to the forget set than to all data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.gradients import mean_squared_gradient
from unlearnlab.methods.recalibrate import Recalibrate, recalibrated
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack, Tensors

Selection = Annotated[
    float,
    Setting(
        "how many times more a weight must matter to the forget set to be shrunk",
        symbol="α",
        ge=0,
        published="10 on ResNet-18; ViT 25 (sub-class), 5 (class); PinsFace 50; DEL's code: 1 or 16 on CIFAR-10, 5 on SVHN, 2 on ImageNet-100",
    ),
]
Dampening = Annotated[float, Setting("strength of the weight that is left", symbol="λ", ge=0, published="1; PinsFace 0.1; ViT on SVHN 3")]
Importance = Annotated[
    Literal["per_example", "batch_mean"],
    Setting("mean of squared gradients of single examples, or of the means of batches", legacy=("batch_mean",)),
]


@spec("method", "ssd", paper="arXiv:2308.07707")
class Ssd:
    """Shrink the weights that matter far more to the forget set than to the whole training set; no training.

    I_X[j] = mean over X of (∂_j CE(x))²; where I_S[j] > α·I_D[j]: θ_j ← θ_j · min(1, λ·I_D[j]/I_S[j])^exponent.
    selection = α, dampening = λ, D = S ∪ R. Since D holds S, I_S/I_D never exceeds n/n_f: a selection of n/n_f or more changes nothing.
    Parameters of one number (attention temperatures, which are logarithms: half of one is no half) stay as they are.
    Source: Foster et al. 2024 (methods.md §2.11).
    Differs from the published code: squares of per-example gradients (there: of batch means, which depend on the batch size, here
    ``batch_mean``: batches of R and then S, in order); no example is dropped; I_D is put together from S and R, so that no example passes twice;
    0/0 leaves the weight alone.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "n/n_r (batch_mean: n_f/n_r more); with bn_recalibrate 1 more, forward"
    null: ClassVar[Mapping[str, Any] | None] = {"selection": 1e30}
    selection: Selection = 10.0
    dampening: Dampening = 1.0
    exponent: Annotated[float, Setting("power of the shrinking factor", gt=0)] = 1.0

    importance: Importance = "per_example"
    batch: Annotated[int, Setting("examples per batch of batch_mean", ge=1, published="64 to 128")] = 64
    bn_recalibrate: Recalibrate = False

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        of_forget, of_all = self._importances(stack, split, ctx)
        edited = {name: p if p[0].numel() == 1 else self.dampened(p, of_forget[name], of_all[name]) for name, p in stack.params.items()}
        after = stack.having(edited if ctx.mask is None else ctx.mask.choose(edited, stack.params))
        return recalibrated(after, split.retain, ctx) if self.bn_recalibrate else after

    def _importances(self, stack: Stack, split: Split, ctx: Context) -> tuple[Tensors, Tensors]:
        """I_S and I_D of every weight."""
        if self.importance == "batch_mean":
            everyone = Images.join([split.retain, split.forget])
            of_forget, of_all = (mean_squared_gradient(stack, images, ctx.progress, batch=self.batch) for images in (split.forget, everyone))
            return of_forget, of_all
        of_forget, of_retain = (mean_squared_gradient(stack, images, ctx.progress) for images in (split.forget, split.retain))
        share = len(split.forget) / (len(split.forget) + len(split.retain))
        return of_forget, {name: torch.lerp(of_retain[name], of_forget[name], share) for name in of_forget}

    def dampened(self, weights: Tensor, of_forget: Tensor, of_all: Tensor) -> Tensor:
        """The weights after the edit, given both importances."""
        factor = (self.dampening * of_all / of_forget).clamp(max=1) ** self.exponent  # 0/0 is NaN, but 0 > α·0 is false
        return torch.where(of_forget > self.selection * of_all, weights * factor, weights)
