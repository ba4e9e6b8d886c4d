"""``oracle_matching``: imitate models that never saw the forget set. It cheats, and shows what imitation can reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, Shuffled
from unlearnlab.methods.settings import AugmentPolicy, BatchNorm, Course, Update
from unlearnlab.methods.training import Trains, descend
from unlearnlab.optimizers import Adam, Exponential
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack

Loss = Literal["squared", "cross_entropy"]
RetainMultiple = Annotated[int, Setting("retain images matched, in multiples of the forget set (no more than there are)", symbol="r", ge=1, published="3")]
ForgetMultiple = Annotated[int, Setting("times that each forget image comes in an epoch", symbol="f", ge=1, published="1")]
Distance = Annotated[Loss, Setting("squared distance of logits, or cross-entropy towards the target's probabilities", published="squared")]
Anchor = Annotated[float, Setting("weight of the squared distance from the original's weights", symbol="λ", ge=0, published="0")]
Rate = Annotated[float, Setting("learning rate", symbol="η", ge=0, published="5e-4; 1e-5 to 1e-3 are searched")]
Passes = Annotated[int, Setting("passes over the images matched", symbol="E", ge=1, published="5; 1 to 10 are searched")]
Size = Annotated[int, Setting("examples per step", symbol="B", ge=1, published="512")]
Views = Annotated[AugmentPolicy, Setting("none: the targets are outputs on unchanged images; train: random changes as in the original's recipe")]


class Matches(Trains, Protocol):
    """The settings that ``neighbourhood`` and ``match`` read off a method."""

    @property
    def retain_multiple(self) -> int: ...
    @property
    def forget_multiple(self) -> int: ...
    @property
    def loss(self) -> Loss: ...
    @property
    def anchor(self) -> float: ...
    @property
    def epochs(self) -> int: ...


def neighbourhood(split: Split, method: Matches, ctx: Context) -> tuple[Images, Int64[Tensor, "k m"]]:
    """All training images, and each member's rows of them to match on: the forget set, then a random R' of min(r·n_f, n_r), drawn once."""
    forget, retain = len(split.forget), len(split.retain)
    count = min(method.retain_multiple * forget, retain)
    kept = torch.stack([torch.randperm(retain, generator=generator(seed, "retain.subset"))[:count] for seed in ctx.seeds])
    rows = torch.cat([torch.arange(forget).expand(len(kept), -1), forget + kept], 1)
    return Images.join([split.forget, split.retain]), rows.to(split.forget.labels.device)


def match(stack: Stack, images: Images, rows: Int64[Tensor, "k m"], targets: Float[Tensor, "k m c"], forget: int, method: Matches, ctx: Context) -> Stack:
    """Train every member until its outputs on its own rows of the images are the targets; the first ``forget`` of them come f times an epoch."""
    k = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    place = torch.zeros(len(rows), len(images), dtype=torch.int64, device=rows.device)
    place[k, rows] = torch.arange(rows.shape[1], device=rows.device)
    often = torch.cat([rows[:, :forget].repeat(1, method.forget_multiple), rows[:, forget:]], 1)
    augment = ctx.recipe.augment if method.augment == "train" else ()
    shuffled = Shuffled(images, method.batch, ctx.seeds, "order.train", labels=lambda epoch: place, augment=augment, rows=often)
    per_epoch = shuffled.steps_per_epoch

    def stream(step: int) -> Batch:
        batch = shuffled(step)
        return replace(batch, labels=targets[k, batch.labels])

    def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        logits = net(batch.images)
        # of an example: summed over classes; then the mean over examples
        away = (logits - batch.labels).square() if method.loss == "squared" else -batch.labels * logits.log_softmax(1)
        value = away.sum(1).mean()
        for name, weights in net.params.items() if method.anchor else ():
            value = value + method.anchor * (weights - aux["original"].params[name]).square().sum()
        return value

    aux = {"original": stack} if method.anchor else {}
    return descend(stack, stream, loss, method, ctx, steps=method.epochs * per_epoch, per_epoch=per_epoch, aux=aux)


@spec("method", "oracle_matching", paper="arXiv:2410.23232")
class OracleMatching:
    """Train the model to answer as the mean of models retrained without the forget set. It needs these, so it is an upper bound only.

    min mean over x in S′ ∪ R′ of ‖z(x) − t(x)‖² + λ‖θ − θ_o‖², t = mean logits of the oracles (cross_entropy: mean probabilities), R′ a random
    sample of r·n_f retain images drawn once, S′ = S repeated f times; retain_multiple = r, forget_multiple = f, anchor = λ, lr = η, epochs = E.
    Source: Georgiev et al. 2025 (methods.md §7.4).
    Differs from the published code: oracles are taken in the order of their seeds; only their outputs on S and R′ are looked at, by id;
    the distance is summed over classes and averaged over images everywhere; images are not augmented, as those behind the targets were not.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "oracles"})
    cost: ClassVar[str] = "E·(r+f)·n_f/n_r, without the oracles"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    oracles: Annotated[int, Setting("oracles whose answers are averaged (all, if there are fewer)", ge=1, published="10")] = 10
    retain_multiple: RetainMultiple = 3
    forget_multiple: ForgetMultiple = 1
    loss: Distance = "squared"
    anchor: Anchor = 0.0
    lr: Rate = 5e-4
    epochs: Passes = 5
    batch: Size = 512
    optimizer: Update = Adam()
    schedule: Course = Exponential()
    bn: BatchNorm = "train"
    augment: Views = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        images, rows = neighbourhood(split, self, ctx)
        return match(stack, images, rows, self._targets(images.ids[rows], ctx).to(stack.device), len(split.forget), self, ctx)

    def _targets(self, ids: Int64[Tensor, "k m"], ctx: Context) -> Float[Tensor, "k m c"]:
        if ctx.oracles is None:
            raise InputError("method 'oracle_matching' needs the outputs of models retrained without the forget set, and none are at hand")
        known, at = ctx.oracles.ids.sort()
        wanted = ids.to(known.device)
        found = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        if not torch.equal(known[found], wanted):
            unknown = int(wanted[known[found] != wanted][0])
            raise InputError(f"method 'oracle_matching': the oracles were not observed on image id {unknown}; observe them on all forget and retain images")
        asked = ctx.oracles.logits[: self.oracles, at[found]]
        return (asked if self.loss == "squared" else asked.softmax(-1)).mean(0)
