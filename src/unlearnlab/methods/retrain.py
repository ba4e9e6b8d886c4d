"""``retrain``: train from scratch without the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.spec import InputError, spec
from unlearnlab.stack import Stack


@spec("method", "retrain")
class Retrain:
    """Train a new model from scratch on the retain set alone, with the original's own recipe: the gold standard.

    θ_r = Train(fresh initial weights of each member's seed, R). Last-epoch weights; nothing is selected.
    Source: the definition of exact unlearning (methods.md §2.1). Differs from the published code: the recipe is the original's, to the last setting
    (there: other lengths, schedules or augmentation than the original's), and every tensor is initialised anew.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E_train"
    null: ClassVar[Mapping[str, Any] | None] = None

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if ctx.mask is not None:
            raise InputError("method 'retrain' starts from fresh weights and cannot keep those outside a mask; use 'reset_finetune' with a mask")
        return ctx.recipe(stack.fresh(ctx.seeds), split.retain, ctx.progress)
