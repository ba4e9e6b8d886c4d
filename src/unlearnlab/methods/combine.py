"""Methods that hold methods: ``localised`` lets any method change only what a localiser opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from unlearnlab.contract import Context, Localiser, Method
from unlearnlab.data.images import Split
from unlearnlab.spec import InputError, Setting, info, spec
from unlearnlab.stack import Mask, Stack


@spec("method", "localised")
class Localised:
    """Let a method change only the weights that a localiser opens; the others stay bit for bit.

    θ_u = m ⊙ θ + (1−m) ⊙ θ_o, m from the model at hand and this forget set. Within another ``localised`` only what both open may change
    (and the classifier head, where ``reset_finetune`` opens it).
    Source: methods.md §5.1, §1.6. Differs from the published code: the mask holds for weights and optimiser state
    (there: it multiplies the gradient only, so weight decay and old momentum still move masked weights).
    """

    cost: ClassVar[str] = "the method's, and the localiser's"
    null: ClassVar[Mapping[str, Any] | None] = None
    where: Annotated[Localiser, Setting("which weights may change", kind="localiser")]
    method: Annotated[Method, Setting("what changes them", kind="method")]

    def __post_init__(self) -> None:
        if not callable(self.method):
            raise InputError(f"method 'localised' cannot hold '{info(self.method).name}', which gives no models back and owns its training")

    @property
    def reads(self) -> frozenset[str]:
        return self.where.reads | self.method.reads

    @property
    def apart(self) -> str:
        """What a study calls it that has several."""
        return f"{info(self.where).name}-{info(self.method).name}"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        mask = self.where(stack, split, ctx)
        if ctx.mask is not None:
            mask = Mask({name: bits & ctx.mask.open[name] for name, bits in mask.open.items()}, mask.parent)
        return self.method(stack, split, replace(ctx, mask=mask))
