"""``weighted_grad_channel``: the channels whose weights matter most to the forget set (DEL)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import Budget, allowed, open_channels, open_weights
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack

TopShare = Annotated[float, Setting("share of a channel's weights, the largest, that its score is the mean of", gt=0, le=1)]
TopkRule = Annotated[Literal["share_of_entries", "legacy_out_channels"], Setting("what the share is taken of")]
OneDim = Annotated[Literal["max", "legacy_elementwise"], Setting("how biases and normalisation weights are scored")]
Tie = Annotated[Literal["whole_channel", "legacy_argsort"], Setting("whether the channel at the cut stays whole")]


@spec("localiser", "weighted_grad_channel", paper="arXiv:2412.02432")
class WeightedGradChannel:
    """Open the output channels whose weights, times their gradient on the forget set, are largest.

    a = |θ ⊙ Σ_{x∈S} ∂_θ CE(x)|; score of channel o = mean of the largest ``top_share`` of a[o, …]; a 1-D tensor
    (bias, BatchNorm) is one channel with score max a. Channels open whole, best first, while they fit the budget (α).
    ``top_share`` = 1 is the rule for transformers. Source: Torkzadehmahani et al. 2025 (methods.md §5.2).
    Differs from the published code, whose behaviour the ``legacy`` values reproduce: it averages int(top_share · C_out) entries of a
    channel whatever its size, ranks 1-D tensors weight by weight, and may split the channel at the cut.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    budget: Budget = 0.3
    top_share: TopShare = 0.1
    topk_rule: TopkRule = "share_of_entries"
    one_dim: OneDim = "max"
    tie: Tie = "whole_channel"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        slopes = summed_gradient(stack, split.forget, ctx.progress)
        scores = {name: self._scores(name, (weights * slopes[name]).abs()) for name, weights in stack.params.items()}
        if self.tie == "whole_channel":
            return open_channels(stack, scores, self.budget)
        each = {name: s.repeat_interleave(stack.params[name][0].numel() // s.shape[1], 1) for name, s in scores.items()}
        return open_weights(stack, each, self.budget)

    def _scores(self, name: str, values: Tensor) -> Tensor:
        """[K, *shape] -> [K, units]."""
        if values.dim() == 2:
            return values.amax(1, keepdim=True) if self.one_dim == "max" else values
        entries = values.flatten(2)
        _, channels, size = entries.shape
        legacy = self.topk_rule == "legacy_out_channels"
        count = min(allowed(self.top_share, channels), size) if legacy else max(1, allowed(self.top_share, size))
        if count == 0:
            raise InputError(
                f"topk_rule = 'legacy_out_channels' with top_share = {self.top_share:g} leaves nothing to average "
                f"in '{name}' with its {channels} output channels; use 'share_of_entries'"
            )
        return entries.topk(count, 2).values.mean(2)
