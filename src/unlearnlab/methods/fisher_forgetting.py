"""``fisher_forgetting``: drown, once and without training, the weights that the retain set does not need in noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.gradients import drawn_rows, fisher_information, mean_squared_gradient
from unlearnlab.methods.recalibrate import Recalibrate, recalibrated
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack, Tensors, flat, head_names, unflat

Noise = Annotated[float, Setting("scale of the noise's variance", symbol="α", ge=0, published="1e-6 (SSD's code), about 1e-9 (Unlearn-Sparse), 1e-9 to 1e-6")]
Head = Annotated[Literal["none", "zero_row"], Setting("zero the head's rows of the forget set's classes and give them variance 1e-4 (×10)")]
Estimate = Annotated[
    Literal["per_example", "batch32_legacy", "empirical_true_label"],
    Setting("Fisher information: of each example over all classes; of the means of batches of 32; of each example's own label alone"),
]
FisherExamples = Annotated[int, Setting("retain examples it is measured on, drawn by each model", ge=1, published="all (batches of 1 or 32)")]


@spec("method", "fisher_forgetting", paper="arXiv:1911.04933")
class FisherForgetting:
    """Add noise to every weight, the more the less the retain set depends on it; no training.

    F_j = mean over x in R of Σ_c p_c(x)·(∂_j(−log p_c(x)))², v = α·min(1/(F+1e-8), 1e3; head: 1e2), averaged over dimension 1 (the weights
    that one output takes from all inputs; live ones only), ×10 in the head and in tensors of one dimension; θ_u = θ + √v·N(0, 1).
    noise = α, fisher_examples: size of the sample of R that F is measured on.
    Source: Golatkar et al. 2020 and the code of its reimplementations (methods.md §2.9).
    Differs from the published code: F is of single examples, on a sample of R (there: mean over batches of 32 of Σ_c p̄_c·(∂_j mean(−log p_c))²,
    here ``batch32_legacy``; not smaller by the batch size, as is said of it, but several times larger for a confident net); the head is the last
    linear layer (there: whatever leads with the number of classes), and no row of it is zeroed unless asked (there: when the forget set has
    4500 or 450 images, of class −1 if none is named); pruned weights take no part in averages.
    """

    cost: ClassVar[str] = "C·min(N, n_r)/n_r backward (empirical_true_label: min(N, n_r)/n_r), N = fisher_examples; with bn_recalibrate 1 more, forward"
    null: ClassVar[Mapping[str, Any] | None] = {"noise": 0.0, "head": "none"}
    noise: Noise = 1e-7
    head: Head = "none"
    fisher: Estimate = "per_example"
    fisher_examples: FisherExamples = 2000
    bn_recalibrate: Recalibrate = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"retain", "forget"} if self.head == "zero_row" else {"retain"})

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        variance, means = self.variances(stack, self.information(stack, split.retain, ctx)), dict(stack.params)
        if self.head == "zero_row":
            rows = _classes(stack, split.forget)
            for name in head_names(stack):
                means[name] = means[name].index_fill(1, rows, 0)
                variance[name] = variance[name].index_fill(1, rows, 10 * 1e-4)
        drawn = [torch.randn(flat(stack.params).shape[1], generator=generator(seed, "noise")) for seed in ctx.seeds]
        lots = unflat(torch.stack(drawn).to(stack.device), stack.params)
        edited = {name: (mean + variance[name].sqrt() * lots[name]).to(mean.dtype) for name, mean in means.items()}
        after = stack.having(edited if ctx.mask is None else ctx.mask.choose(edited, stack.params))
        return recalibrated(after, split.retain, ctx) if self.bn_recalibrate else after

    def information(self, stack: Stack, retain: Images, ctx: Context) -> Tensors:
        """F of every weight: name -> [K, *shape]."""
        rows = drawn_rows(retain, self.fisher_examples, ctx.seeds)
        if self.fisher == "empirical_true_label":
            return mean_squared_gradient(stack, retain, ctx.progress, rows=rows)
        return fisher_information(stack, retain, ctx.progress, rows=rows, batch=32 if self.fisher == "batch32_legacy" else 1)

    def variances(self, stack: Stack, information: Tensors) -> Tensors:
        """v of every weight."""
        head = head_names(stack)
        return {name: self._variance(f, stack.live.get(name), in_head=name in head) for name, f in information.items()}

    def _variance(self, information: Tensor, live: Tensor | None, *, in_head: bool) -> Tensor:
        v = self.noise * (1 / (information + 1e-8)).clamp(max=1e2 if in_head else 1e3)
        if v.dim() > 2:  # dimension 1 of each member's tensor is 2 here
            counts = torch.ones_like(v) if live is None else live.to(v.dtype)
            v = ((v * counts).sum(2, keepdim=True) / counts.sum(2, keepdim=True).clamp(min=1)).expand_as(v)
        return 10 * v if in_head or v.dim() == 2 else v


def _classes(stack: Stack, forget: Images) -> Tensor:
    """The classes of the forget set; refused where they are all there are."""
    held: Tensor = torch.unique(forget.labels)
    classes = stack.params[head_names(stack)[0]].shape[1]
    if len(held) == classes:
        raise InputError(
            f"head = 'zero_row' zeroes the rows of the forget set's classes, and it holds all {classes}; forget fewer classes, or set head = 'none'"
        )
    return held.to(stack.device)
