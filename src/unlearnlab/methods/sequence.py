"""``sequence``: several methods, one after the other, on the same forget set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from unlearnlab.contract import Context, Method
from unlearnlab.data.images import Split
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack


@spec("method", "sequence", version=2)
class Sequence:
    """Let several methods forget the same set, each starting from the model the one before it left.

    θ_u = A_k(… A_2(A_1(θ_o))). Each step draws random numbers of its own and computes its mask from the model it is given.
    For several *sets* one after the other, see a study's ``requests``.
    Source: DESIGN (a combinator); methods.md §5.4. Differs from the published code: there is none.
    """

    cost: ClassVar[str] = "the sum of the steps'"
    null: ClassVar[Mapping[str, Any] | None] = None
    steps: Annotated[tuple[Method, ...], Setting("methods, in order", kind="method")]

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError("method 'sequence' needs at least one step; name methods in `steps`")
        for step in self.steps:
            if not callable(step):
                raise InputError(f"method 'sequence' cannot hold '{step.__spec__.name}', which gives no models back for the next step")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(step.reads for step in self.steps))

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        for at, step in enumerate(self.steps):
            # a later step does not count its seeds on: that is what later requests do
            seeds = tuple(generator(seed, "sequence.step", at).initial_seed() for seed in ctx.seeds) if at else ctx.seeds
            stack = step(stack, split, replace(ctx, seeds=seeds))
        return stack
