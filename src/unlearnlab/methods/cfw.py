"""``cfw``: noise on the first convolution, then training on the retain set with class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, Loss
from unlearnlab.methods.ct import ContestBatch, ContestRate
from unlearnlab.methods.settings import Augment, BatchNorm, Course, Epochs, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Cosine, Sgd
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import CONVOLUTIONS, Net, Stack, Tensors, weights_of


@spec("method", "cfw", paper="arXiv:2410.01276")
class Cfw:
    """Add strong noise to the first convolution, train on the retain set with rare classes weighted up, and add a little noise before the last epoch.

    W ← W + N(0, σ₁²); min mean of w_y·CE over R for E epochs; after epoch E−2 (from 0) W ← W + N(0, σ₂²). noise = σ₁, late_noise = σ₂,
    lr = η, epochs = E. class_weights: w_c = n_r/(C·n_c) with C the classes that R has (balanced), or 1 for the first class and .05 for
    the others (contest). Source: NeurIPS'23 contest, place 3, as re-implemented by Cadet et al. 2024 (methods.md §6.3).
    Differs from the published code: each example's loss has its weight (there, and with weighting = "legacy_batch": the mean loss of a
    batch times its mean weight); W is the first convolution (without one: the first linear layer), or what
    ``layers`` names (there: children of the net with "conv" in their name, silently none in most nets); the cosine falls at each step
    (there: at each epoch).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E"
    null: ClassVar[Mapping[str, Any] | None] = {"noise": 0.0, "late_noise": 0.0, "lr": 0.0, "bn": "frozen"}
    noise: Annotated[float, Setting("standard deviation of the noise at the start", symbol="σ₁", ge=0, published="0.6; searched in 0…1")] = 0.6
    late_noise: Annotated[float, Setting("and before the last epoch", symbol="σ₂", ge=0, published="0.005; searched in 0…1")] = 0.005
    layers: Annotated[tuple[str, ...], Setting("names of the modules whose weights get the noise; none: the first convolution", symbol="W")] = ()
    class_weights: Annotated[Literal["balanced", "contest"], Setting("weights of the classes", symbol="w")] = "balanced"
    weighting: Annotated[Literal["per_example", "legacy_batch"], Setting("what the weights multiply: each loss, or the batch's mean loss")] = "per_example"
    lr: ContestRate = 7e-4
    epochs: Epochs = 4
    batch: ContestBatch = 64
    optimizer: Update = Sgd()
    schedule: Course = Cosine()
    bn: BatchNorm = "train"
    augment: Augment = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        names = self.noised(stack)
        shaken = self._shaken(stack.params, names, ctx.seeds, self.noise, turn=0)
        start = stack.having(shaken if ctx.mask is None else ctx.mask.choose(shaken, stack.params))
        stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch = stream.steps_per_epoch

        def late(params: Tensors, step: int) -> Tensors:
            last_epoch_next = step + 1 == (self.epochs - 1) * per_epoch
            return self._shaken(params, names, ctx.seeds, self.late_noise, turn=1) if last_epoch_next else params

        loss = weighted(self.weights(split.retain), self.weighting)
        return descend(start, stream, loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, after_step=late)

    def noised(self, stack: Stack) -> list[str]:
        """Names of the weights that get noise; never none."""
        if not self.layers:
            return [first_weight(stack)]
        held = {name: name.rpartition(".")[0] for name, p in stack.params.items() if p.dim() > 2}
        missing = [layer for layer in self.layers if layer not in held.values()]
        if missing:
            known = ", ".join(f"'{name}'" for name in dict.fromkeys(held.values()))
            raise InputError(f"method 'cfw': layers names '{missing[0]}', which is no module with weights to add noise to; this net has {known}")
        return [name for name, layer in held.items() if layer in self.layers]

    def weights(self, images: Images) -> Tensor:
        """The weight of each class [C]; 0 for classes of which there is no image."""
        counts = torch.bincount(images.labels, minlength=images.classes)
        if self.class_weights == "contest":
            return torch.where(torch.arange(len(counts), device=counts.device) == 0, 1.0, 0.05)
        return torch.where(counts > 0, len(images) / (int((counts > 0).sum()) * counts.clamp(min=1)), 0.0)

    def _shaken(self, params: Tensors, names: Sequence[str], seeds: Sequence[int], sd: float, turn: int) -> Tensors:
        return params | {name: params[name] + sd * gaussian(params[name], seeds, turn, at) for at, name in enumerate(names)}


def first_weight(stack: Stack) -> str:
    """Name of the first convolution's weights; in a net without one, of the first linear layer's."""
    return next(iter(weights_of(stack.net, *CONVOLUTIONS) or weights_of(stack.net, nn.Linear)))


def gaussian(like: Tensor, seeds: Sequence[int], *counters: int) -> Tensor:
    """Standard normal numbers [K, *shape], each member's from its own generator."""
    return torch.stack([torch.randn(like.shape[1:], generator=generator(seed, "noise", *counters)) for seed in seeds]).to(like.device)


def weighted(weights: Tensor, weighting: Literal["per_example", "legacy_batch"]) -> Loss:
    """Cross-entropy times the weight of each example's class, averaged over the batch."""

    def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        each, own = F.cross_entropy(net(batch.images), batch.labels, reduction="none"), weights[batch.labels]
        return (each * own).mean() if weighting == "per_example" else each.mean() * own.mean()

    return loss
