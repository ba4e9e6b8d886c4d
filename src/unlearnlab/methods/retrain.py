"""``retrain``: train from scratch without the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe


@spec("method", "retrain")
class Retrain:
    """Train a new model from scratch on the retain set alone, with the original's own recipe: the gold standard.

    θ_r = Train(fresh initial weights of each member's seed, R). Last-epoch weights; nothing is selected.
    Source: the definition of exact unlearning (methods.md §2.1). Differs from the published code: the recipe is the original's, to the last setting
    (there: other lengths, schedules or augmentation than the original's), and every tensor is initialised anew.
    Variants for regularised models: ``label_smoothing`` = ε, ``sharpness`` = ρ of adaptive SAM, with one optimiser for the whole run (there: a
    new one each epoch, which loses the momentum). A pruned model is retrained from fresh weights with its mask kept.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    certified: ClassVar[str] = "exact"
    cost: ClassVar[str] = "E_train"
    null: ClassVar[Mapping[str, Any] | None] = None
    label_smoothing: Annotated[float, Setting("instead of the recipe's own, if more than 0", symbol="ε", ge=0, lt=1, published="0.1")] = 0.0
    sharpness: Annotated[float, Setting("radius of adaptive SAM, instead of the recipe's, if more than 0", symbol="ρ", ge=0, published="2.0")] = 0.0

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if ctx.mask is not None:
            raise InputError("method 'retrain' starts from fresh weights and cannot keep those outside a mask; use 'reset_finetune' with a mask")
        changed: dict[str, Any] = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        changed |= {"sharpness": self.sharpness, "adaptive": True} if self.sharpness else {}
        if changed and not isinstance(ctx.recipe, Recipe):
            raise InputError(f"method 'retrain' cannot change {', '.join(changed)} of a recipe of one's own; write another recipe")
        recipe = replace(ctx.recipe, **changed) if changed else ctx.recipe
        return recipe(stack.fresh(ctx.seeds), split.retain, ctx.progress)
