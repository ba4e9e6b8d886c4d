"""``prune_first``: make the model sparse, then let a method forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from unlearnlab.contract import Context, Method
from unlearnlab.data.images import Split
from unlearnlab.fit import epochs_of
from unlearnlab.methods.waypoints import Waypoints
from unlearnlab.prune.cut import Dense, Pruning
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack


@spec("method", "prune_first", paper="arXiv:2304.04934")
class PruneFirst:
    """Make a model sparse and train what is left of it on all its data, then let a method forget with the pruned weights fixed at zero.

    θ_u = A(m ⊙ θ), m from the pruning on D = S ∪ R. For models of one's own; a study prunes originals and oracles alike (``prune``), so
    that floor and ceiling are sparse too. Source: Jia et al. 2023 ("prune first, then unlearn"; protocols.md §10).
    Differs from the published code: the pruned weights stay 0 whatever the method does. Note that the mask itself saw S.
    """

    cost: ClassVar[str] = "the pruning's training, and the method's"
    null: ClassVar[Mapping[str, Any] | None] = None
    pruning: Annotated[Pruning, Setting("how weights are removed and the rest is trained again", kind="pruning")]
    method: Annotated[Method, Setting("what forgets then", kind="method")]

    def __post_init__(self) -> None:
        if not callable(self.method):
            raise InputError(f"method 'prune_first' cannot hold '{self.method.__spec__.name}', which owns its training; prune within it, or choose another")

    @property
    def reads(self) -> frozenset[str]:
        init = {"original_init"} if self.pruning.needs & {"init", "rewind"} else frozenset()
        return frozenset({"forget", "retain"}) | init | self.method.reads

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if ctx.mask is not None:
            raise InputError("method 'prune_first' removes weights anywhere and cannot keep those outside a mask; localise the method it holds")
        return self.method(self.pruning(self._dense(stack, split, ctx), split.train, ctx.recipe, ctx.progress), split, ctx)

    def _dense(self, stack: Stack, split: Split, ctx: Context) -> Dense:
        init = ctx.original_init if self.pruning.needs & {"init", "rewind"} else None
        if "rewind" not in self.pruning.needs:
            return Dense(stack, init)
        if init is None or ctx.recipe.rewind is None:
            raise InputError("method 'prune_first' needs original_init and recipe.rewind to go back to an early epoch; or set pruning.rewind_to = 'trained'")
        # nobody kept the early epoch, so the training is run again up to there and beyond
        step = epochs_of(split.train, ctx.recipe.batch, ctx.recipe.rewind)
        way = Waypoints(init, [step], ctx.progress)  # a run that goes on after an interruption does not pass that epoch again
        ctx.recipe(init, split.train, ctx.progress, at_rewind=way.keep[step])
        return Dense(stack, init, way.at(step))
