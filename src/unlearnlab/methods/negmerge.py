"""``negmerge``: subtract what several ways of fine-tuning on the forget set agree on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.recalibrate import Recalibrate, recalibrated
from unlearnlab.methods.settings import AugmentPolicy, BatchNorm, BatchSize, Course, Update
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Divergence, Stack, Tensors

_EVERY = "the copies take every combination of rates, weight decays, passes and augmentation"


@spec("method", "negmerge", paper="arXiv:2410.05583")
class NegMerge:
    """Fine-tune copies on the forget set in several ways, and take away from the model the changes on whose direction they agree.

    τ_j = θ_j − θ_o for J copies trained on S with different settings; τ[c] = mean over j of τ_j[c] where at least a share ``consensus`` of
    them has one sign (0 has none), else 0; θ_u = θ_o − λ·τ. strengths = λ; of several each model takes the largest at which it loses
    at most ``allowed_loss`` of its validation accuracy. Source: Kim et al. 2025 (methods.md §7.1; that rule is unverified).
    Differs from the published code: copies must differ in their settings and are not chosen among (a port merges three repeats of one learning
    rate and picks the rate by retain minus forget accuracy). BatchNorm's running averages stay the original's
    (``bn_recalibrate``: they are measured anew on R).
    """

    cost: ClassVar[str] = "Σ over the copies of their passes · n_f/n_r; with bn_recalibrate 1 more, forward"
    null: ClassVar[Mapping[str, Any] | None] = {"strengths": (0.0,)}
    rates: Annotated[tuple[float, ...], Setting(f"learning rates; {_EVERY}", symbol="η", ge=0, published="1e-4, 5e-4, 1e-3 (a port)")] = (1e-4, 5e-4, 1e-3)
    decays: Annotated[tuple[float, ...], Setting(f"weight decays, in place of the update rule's own; {_EVERY}", ge=0)] = (5e-4,)
    passes: Annotated[tuple[int, ...], Setting(f"passes over the forget set; {_EVERY}", symbol="E", ge=1, published="1 (a port)")] = (1, 2, 3)
    augment: Annotated[tuple[AugmentPolicy, ...], Setting(f"random changes of the images: the recipe's (train), or none; {_EVERY}")] = ("train",)
    consensus: Annotated[float, Setting("share of the copies that must agree on a sign", ge=0.5, le=1, published="1")] = 1.0
    strengths: Annotated[
        tuple[float, ...], Setting("how much of the agreed change is taken away; of several the largest that validation accuracy allows",
                                   symbol="λ", ge=0, published="tuned, 0.05 to 2"),
    ] = (1.0,)  # fmt: skip
    allowed_loss: Annotated[float, Setting("validation accuracy that the choice may cost (a share, 0.05 = 5 points)", ge=0, le=1)] = 0.05
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "frozen"
    bn_recalibrate: Recalibrate = False

    def __post_init__(self) -> None:
        for name in ("rates", "decays", "passes", "augment", "strengths"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"method 'negmerge': {name} = {list(values)} must name at least one value, and none twice")
        if not hasattr(self.optimizer, "weight_decay"):
            raise InputError("method 'negmerge': the optimizer has no weight_decay to vary; choose sgd, adam or adamw")

    @property
    def reads(self) -> frozenset[str]:
        more = {"validation": len(self.strengths) > 1, "retain": self.bn_recalibrate}
        return frozenset({"forget"} | {part for part, read in more.items() if read})

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        total = {name: torch.zeros_like(p) for name, p in stack.params.items()}
        rising, falling = ({name: torch.zeros_like(p, dtype=torch.int16) for name, p in stack.params.items()} for _ in range(2))
        diverged: dict[int, Divergence] = {bad.seed: bad for bad in stack.diverged}
        ways = list(self.ways())
        for way in ways:
            tuned = way(stack, replace(split, retain=split.forget), ctx)  # to this fine-tuning, S is the set to train on
            diverged |= {bad.seed: bad for bad in tuned.diverged if bad.seed not in diverged}
            for name, p in stack.params.items():
                change = tuned.params[name] - p
                total[name] += change
                rising[name] += change > 0
                falling[name] += change < 0
        least = math.ceil(self.consensus * len(ways) - 1e-9)
        agreed = {name: torch.where(torch.maximum(rising[name], falling[name]) >= least, t / len(ways), 0) for name, t in total.items()}
        strength = torch.full((len(stack),), self.strengths[0], device=stack.device)
        if len(self.strengths) > 1:
            strength = self._largest(stack, agreed, split.validation, ctx)
        after = replace(_without(stack, agreed, strength), diverged=tuple(diverged.values()))
        return recalibrated(after, split.retain, ctx) if self.bn_recalibrate else after

    def ways(self) -> Iterator[FineTune]:
        """How the copies are trained."""
        for lr, decay, epochs, augment in itertools.product(self.rates, self.decays, self.passes, self.augment):
            rule: Any = replace(self.optimizer, weight_decay=decay)  # type: ignore[type-var]
            yield FineTune(lr=lr, epochs=epochs, batch=self.batch, optimizer=rule, schedule=self.schedule, bn=self.bn, augment=augment)

    def _largest(self, stack: Stack, agreed: Tensors, images: Images, ctx: Context) -> Float[Tensor, " k"]:
        least = _accuracy(stack, images, ctx) - self.allowed_loss - 1e-9
        chosen = torch.full((len(stack),), -1.0, device=stack.device)
        for strength in sorted(self.strengths):
            tried = _without(stack, agreed, torch.full_like(chosen, strength))
            chosen = torch.where(_accuracy(tried, images, ctx) >= least, strength, chosen)
        if bool((chosen < 0).any()):
            seed = stack.seeds[int((chosen < 0).nonzero()[0])]
            raise InputError(
                f"method 'negmerge': each of strengths costs model {seed} more than {self.allowed_loss:g} of validation accuracy; add smaller ones"
            )
        return chosen


def _without(stack: Stack, change: Tensors, strength: Float[Tensor, " k"]) -> Stack:
    return stack.having({name: p - strength.view(-1, *[1] * (p.dim() - 1)) * change[name] for name, p in stack.params.items()})


def _accuracy(stack: Stack, images: Images, ctx: Context) -> Float[Tensor, " k"]:
    right = torch.zeros(len(stack), device=stack.device, dtype=torch.float64)
    for at in range(0, len(images), 1024):
        labels = images.labels[at : at + 1024].to(stack.device)
        with torch.no_grad():
            right += (stack.logits(images.pixels[at : at + 1024].to(stack.device)).argmax(-1) == labels).sum(1)
        ctx.progress.seen(len(labels))
    return right / len(images)
