"""``selective_pruning`` and two variants: overfit a copy on the forget set, renew the weights that hardly moved, fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Shuffled
from unlearnlab.localise.ranking import allowed
from unlearnlab.methods.class_weights import ClassWeights, class_weighted
from unlearnlab.methods.finetune import FineTunes, finetuned
from unlearnlab.methods.reinit import reinitialised
from unlearnlab.methods.sample import SampleShare, sampled
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack, Tensors, head_names

Change = Literal["small_change", "large_change"]
OverfitRate = Annotated[float, Setting("constant learning rate of the copy that overfits the forget set", ge=0)]
OverfitEpochs = Annotated[int, Setting("passes of a copy over the images it overfits", ge=1)]
Quantile = Annotated[float, Setting("largest share of each tensor that is re-initialised", symbol="q", ge=0, le=1)]
Select = Annotated[Change, Setting("re-initialise the weights that moved least, or most, while the copy overfitted")]


@spec("method", "selective_pruning")
class SelectivePruning:
    """Find the weights that hardly move when a copy overfits the forget set, start them anew, and fine-tune on the retain set.

    θ_a: a copy of θ_o trained on S with overfit_lr for overfit_epochs. D_a = |θ_o − θ_a|; in every tensor of two or more dimensions the
    entries with D_a < quantile_q(D_a) are drawn anew (Kaiming normal, fan-in), being taken as already tied to S; then min CE(R) with
    lr = η, epochs = E. The quantile of n entries is the (⌊q·n⌋ + 1)-th smallest, so that never more than a share q is drawn anew; q = 0 is
    ``finetune`` bit for bit. select = "large_change" takes the largest D_a instead.
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4.1).
    Differs from the published code: it has no such function, only the one for the head; images come in new orders, augmented as in
    training, from the method's own seeds (there: retain images in their given order, unaugmented; seeds are ignored). A mask binds
    the re-initialisation and the fine-tuning, not the copy, which is thrown away; pruned weights take no part in the ranking.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E + overfit_epochs·n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"quantile": 0.0, "lr": 0.0, "bn": "frozen"}
    overfit_lr: OverfitRate = 0.01
    overfit_epochs: OverfitEpochs = 20
    quantile: Quantile = 0.3
    select: Select = "small_change"
    class_weights: ClassWeights = "none"
    lr: LearningRate = 0.001
    epochs: Epochs = 5
    batch: BatchSize = 128
    optimizer: Update = Sgd(nesterov=True)
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        copy = overfitted(stack, batches(split.forget, self, ctx, "order.forget"), split, self, ctx, self.overfit_lr)
        chosen = quantiles(stack, copy, weights(stack), self)
        return finetuned(reinitialised(told(stack, copy), chosen, ctx), split, self, ctx)


@spec("method", "selective_pruning_last")
class SelectivePruningLast:
    """As ``selective_pruning``, but only weights of the classifier head are started anew.

    Everything as there, with D_a and its quantile taken on the weight of the last linear layer alone; the copy overfits with all weights.
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4.1).
    Differs from the published code: as ``selective_pruning``; the head is found by its kind, and is never replaced by a new one (there: at
    every stage on face images).
    """

    reads: ClassVar[frozenset[str]] = SelectivePruning.reads
    cost: ClassVar[str] = SelectivePruning.cost
    null: ClassVar[Mapping[str, Any] | None] = SelectivePruning.null
    overfit_lr: OverfitRate = SelectivePruning.overfit_lr
    overfit_epochs: OverfitEpochs = SelectivePruning.overfit_epochs
    quantile: Quantile = SelectivePruning.quantile
    select: Select = SelectivePruning.select
    class_weights: ClassWeights = SelectivePruning.class_weights
    lr: LearningRate = SelectivePruning.lr
    epochs: Epochs = SelectivePruning.epochs
    batch: BatchSize = SelectivePruning.batch
    optimizer: Update = SelectivePruning.optimizer
    schedule: Course = SelectivePruning.schedule
    bn: BatchNorm = SelectivePruning.bn
    augment: Augment = SelectivePruning.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        copy = overfitted(stack, batches(split.forget, self, ctx, "order.forget"), split, self, ctx, self.overfit_lr)
        chosen = quantiles(stack, copy, [name for name in weights(stack) if name in head_names(stack)], self)
        return finetuned(reinitialised(told(stack, copy), chosen, ctx), split, self, ctx)


@spec("method", "selective_pruning_complex")
class SelectivePruningComplex:
    """As ``selective_pruning``, but only weights that also hardly move when a second copy overfits a few retain images.

    θ_a as there; θ_b: a copy of θ_o trained on sample_share of R (each model its own images) with second_lr_factor·overfit_lr for as many
    epochs. Drawn anew where D_a < quantile_q(D_a) and D_b < quantile_q(D_b), per tensor, D_b = |θ_o − θ_b|; then min CE(R).
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4.2).
    Differs from the published code: as ``selective_pruning``; the second rate is a third of the first (there: 0.01 // 3 = 0, so that θ_b = θ_o,
    D_b is 0 everywhere, nothing is below its quantile and the method is fine-tuning: second_lr_factor = 0).
    """

    reads: ClassVar[frozenset[str]] = SelectivePruning.reads
    cost: ClassVar[str] = "E + overfit_epochs·(n_f/n_r + sample_share)"
    null: ClassVar[Mapping[str, Any] | None] = SelectivePruning.null
    overfit_lr: OverfitRate = SelectivePruning.overfit_lr
    overfit_epochs: OverfitEpochs = SelectivePruning.overfit_epochs
    second_lr_factor: Annotated[
        float, Setting("learning rate of the copy that overfits retain images, over that of the other", ge=0, published="1/3; 0 in the code")
    ] = 1 / 3
    sample_share: SampleShare = 0.02
    quantile: Quantile = SelectivePruning.quantile
    select: Select = SelectivePruning.select
    class_weights: ClassWeights = SelectivePruning.class_weights
    lr: LearningRate = SelectivePruning.lr
    epochs: Epochs = SelectivePruning.epochs
    batch: BatchSize = SelectivePruning.batch
    optimizer: Update = SelectivePruning.optimizer
    schedule: Course = SelectivePruning.schedule
    bn: BatchNorm = SelectivePruning.bn
    augment: Augment = SelectivePruning.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        first = overfitted(stack, batches(split.forget, self, ctx, "order.forget"), split, self, ctx, self.overfit_lr)
        few = batches(split.retain, self, ctx, "order.sample", rows=sampled(split.retain, self.sample_share, ctx.seeds))
        second = overfitted(told(stack, first), few, split, self, ctx, self.overfit_lr * self.second_lr_factor)
        of_forget, of_few = (quantiles(stack, copy, weights(stack), self) for copy in (first, second))
        chosen = {name: bits & of_few[name] for name, bits in of_forget.items()}
        return finetuned(reinitialised(told(stack, second), chosen, ctx), split, self, ctx)


class Prunes(FineTunes, Protocol):
    """The settings that the functions below read off a method."""

    @property
    def overfit_epochs(self) -> int: ...
    @property
    def quantile(self) -> float: ...
    @property
    def select(self) -> Change: ...


def weights(stack: Stack) -> list[str]:
    """Names of all tensors of two or more dimensions: no biases, no normalisation."""
    return [name for name, stacked in stack.params.items() if stacked.dim() > 2]


def overfitted(stack: Stack, stream: Shuffled, split: Split, method: Prunes, ctx: Context, lr: float) -> Stack:
    """A copy trained on these images alone, at a constant rate and without regard to the mask: only its distance is of interest."""
    loss, per_epoch = class_weighted(method.class_weights, stack, split), stream.steps_per_epoch
    steps = method.overfit_epochs * per_epoch
    return descend(stack, stream, loss, method, ctx, steps=steps, per_epoch=per_epoch, lr=lr, schedule=Constant(), mask=None)


def told(stack: Stack, copy: Stack) -> Stack:
    """The stack, knowing which members' copies diverged: their selections mean nothing."""
    return replace(stack, diverged=copy.diverged)


def quantiles(stack: Stack, copy: Stack, names: Sequence[str], method: Prunes) -> Tensors:
    """In each of these tensors, the share ``quantile`` that moved least (or most) from the stack to its copy: name -> bool [K, *shape]."""
    sign = 1 if method.select == "small_change" else -1
    changes = {name: sign * (stack.params[name] - copy.params[name]).abs() for name in names}
    return {name: below(change, method.quantile, stack.live.get(name)) for name, change in changes.items()}


def below(change: Tensor, share: float, live: Tensor | None = None) -> Bool[Tensor, "k ..."]:
    """Where an entry of [K, *shape] is less than the quantile of its member's live entries; pruned entries never are."""
    ranked = change if live is None else torch.where(live, change, torch.inf)
    rows = ranked.flatten(1).sort(1).values
    counts = [rows.shape[1]] * len(rows) if live is None else live.flatten(1).sum(1).tolist()
    ends = torch.cat([rows, torch.full_like(rows[:, :1], torch.inf)], 1)  # a share of 1 takes all
    at = torch.tensor([allowed(share, count) for count in counts], device=change.device).unsqueeze(1)
    return ranked < ends.gather(1, at).view(-1, *[1] * (change.dim() - 1))
