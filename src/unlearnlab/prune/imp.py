"""``imp``: iterative magnitude pruning with rewinding."""

from __future__ import annotations

from typing import Annotated

from unlearnlab.data.images import Images
from unlearnlab.progress import Progress
from unlearnlab.prune.cut import Dense, IncludeLinear, magnitudes, prunable, without_lowest
from unlearnlab.prune.omp import RewindTo, again
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe


@spec("pruning", "imp", paper="arXiv:1803.03635")
class Imp:
    """Remove a fifth of the weights that are left, go back to an early epoch, train, and do so again and again.

    Repeat {remove the share q of the live prunable weights with the smallest |θ|, θ ← m ⊙ θ_r, train epochs r…E}; after k rounds a share
    (1−q)^k is left. share = q, rounds = k; 13 rounds of .2 remove 94.5 %. Source: Frankle & Carbin 2019; Jia et al. 2023 (protocols.md §10).
    Differs from the published code: the models that come back are trained after the last removal; epochs as in ``omp``.
    """

    share: Annotated[float, Setting("share of the live weights removed in a round", symbol="q", gt=0, lt=1, published="0.2")] = 0.2
    rounds: Annotated[int, Setting("times that weights are removed", symbol="k", ge=1, published="13 (94.5 %), 14 (95.6 %)")] = 13
    rewind_to: RewindTo = "rewind"
    include_linear: IncludeLinear = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"trained", self.rewind_to})

    def __call__(self, dense: Dense, images: Images, recipe: Recipe, progress: Progress) -> Stack:
        stack = dense.state("trained", "imp")
        names = prunable(stack.net, self.include_linear)
        for _ in range(self.rounds):
            sparse = without_lowest(stack, magnitudes(stack, names), self.share)
            stack = again(sparse, dense, self.rewind_to, "imp", images, recipe, progress)
        return stack
