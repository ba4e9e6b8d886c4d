"""``omp``: one-shot magnitude pruning with rewinding."""

from __future__ import annotations

from typing import Annotated, Literal

from unlearnlab.data.images import Images
from unlearnlab.progress import Progress
from unlearnlab.prune.cut import Dense, IncludeLinear, Sparsity, magnitudes, prunable, without_lowest
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

RewindTo = Annotated[
    Literal["rewind", "init", "trained"],
    Setting("weights that training starts from again: those after recipe.rewind epochs, the initial ones (lottery ticket), or the trained ones"),
]


@spec("pruning", "omp", paper="arXiv:2304.04934")
class Omp:
    """Remove the smallest weights of the trained models at once, go back to an early epoch, and train what is left.

    m = 1 where |θ_E| is among the (1−p) largest of all prunable weights; θ ← m ⊙ θ_r; then epochs r…E of the recipe. sparsity = p,
    r = recipe.rewind. Source: Jia et al. 2023 (protocols.md §10), after Ma et al. 2021.
    Differs from the published code: epochs r to E are trained at their own place of the schedule (there: E more epochs, with a schedule
    moved on by r, which a cosine or one-cycle schedule does not have).
    """

    sparsity: Sparsity = 0.95
    rewind_to: RewindTo = "rewind"
    include_linear: IncludeLinear = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"trained", self.rewind_to})

    def __call__(self, dense: Dense, images: Images, recipe: Recipe, progress: Progress) -> Stack:
        trained = dense.state("trained", "omp")
        names = prunable(trained.net, self.include_linear)
        sparse = without_lowest(trained, magnitudes(trained, names), self.sparsity)
        return again(sparse, dense, self.rewind_to, "omp", images, recipe, progress)


def again(sparse: Stack, dense: Dense, rewind_to: str, pruning: str, images: Images, recipe: Recipe, progress: Progress) -> Stack:
    """Train what is left of the weights, from the state ``rewind_to`` of the dense models and its place in the schedule."""
    back = dense.state(rewind_to, pruning).pruned(sparse.live)
    start = recipe.rewind or 0 if rewind_to == "rewind" else 0
    return recipe(back, images, progress, start=start)
