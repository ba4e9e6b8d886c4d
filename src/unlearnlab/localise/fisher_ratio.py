"""``fisher_ratio``: the weights that matter far more to the forget set than to the retain set."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import mean_squared_gradient
from unlearnlab.localise.ranking import AlwaysOpen, Budget, Granularity, MinKeep, Ranking, Within, rank_units, unit_means
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors, head_names

Threshold = Annotated[float | None, Setting("open every weight whose ratio is at least this, in place of a budget", symbol="γ", gt=0, published="1 (SFRon)")]


@spec("localiser", "fisher_ratio", paper="arXiv:2409.19732")
class FisherRatio:
    """Open the weights that matter far more to the forget set than to the retain set.

    I_X[j] = mean over X of (∂_j CE(x))²; m = 1 for the ⌊q·P⌋ largest I_S/I_R, or where I_S/I_R ≥ γ if a ``threshold`` = γ is set (which
    may open nothing, or everything). Channels and layers: the ratio of their mean importances. 0/0 counts as 0.
    Source: the selection rules of SSD and SFRon (methods.md §2.11, §5.1, §7.2).
    Differs from the published code: squares of per-example gradients (there: of batch means, which depend on the batch size).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    budget: Budget = 0.3
    threshold: Threshold = None
    granularity: Granularity = "parameter"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def __post_init__(self) -> None:
        if self.threshold is not None and (self.ranking, self.min_keep) != ("global", 0):
            raise InputError("localiser 'fisher_ratio': a threshold ranks nothing; leave ranking and min_keep out, or set a budget in its place")

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        units, layers = self.ratios(stack, split, ctx), self.granularity == "layer"
        return rank_units(stack, units, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep, layers=layers)

    def ratios(self, stack: Stack, split: Split, ctx: Context) -> Tensors:
        """I_S/I_R of every weight, channel or layer: name -> [K, units]."""
        ours, theirs = (unit_means(stack, mean_squared_gradient(stack, part, ctx.progress), self.granularity) for part in (split.forget, split.retain))
        return {name: torch.where(mine > 0, mine / theirs[name], 0) for name, mine in ours.items()}

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        if self.threshold is None:
            return self.rank(stack, split, ctx).mask(self.budget)
        opened = {name: self._spread(ratio >= self.threshold, stack.params[name]) for name, ratio in self.ratios(stack, split, ctx).items()}
        mask = Mask(opened, stack.fingerprint).opening(head_names(stack) if self.always_open == "head" else [])
        return Mask({name: bits & stack.live.get(name, bits) for name, bits in mask.open.items()}, mask.parent)

    @staticmethod
    def _spread(units: Tensor, like: Tensor) -> Tensor:
        return units.unsqueeze(2).expand(*units.shape, like[0].numel() // units.shape[1]).reshape(like.shape)
