"""``rni``: epoch by epoch, add noise to some random layers and train only those; then fine-tune everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.localise.ranking import allowed
from unlearnlab.methods.cfw import gaussian
from unlearnlab.methods.ct import ContestBatch, ContestRate
from unlearnlab.methods.settings import Augment, BatchNorm, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Mask, Stack, head_names

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first covers instance normalisation too


@spec("method", "rni", paper="arXiv:2410.01276")
class Rni:
    """Epoch by epoch, add noise to some random layers and train only those on the retain set; then fine-tune all weights.

    The head starts anew. In each of E epochs m random parameter tensors (all, if there are fewer) and all normalisation tensors are
    open, the others stay; from the second epoch on ⌊share·m⌋ of the m first get noise N(0, σ²); one epoch of min CE(R), rate lr. Then one
    epoch over all weights for each rate in final_lr. layers = m, noised = share, noise = σ, epochs = E (9 − 4 in the paper's count).
    Each epoch has a fresh optimiser, as published. Source: NeurIPS'23 contest, place 7, as re-implemented by Cadet et al. 2024 (methods.md §6.7).
    Differs from the published code: normalisation is told by the module's type (there: by "bn" in the name, which misses shortcuts); a
    tensor may get noise whenever it is drawn (there, and with variant = "legacy_once": not once it was open in an earlier epoch); the
    validation set, on which an unused accuracy was computed, is not read.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E + number of final rates"
    null: ClassVar[Mapping[str, Any] | None] = None
    layers: Annotated[int, Setting("tensors trained in an epoch, besides those of normalisation", symbol="m", ge=1, published="9")] = 9
    noised: Annotated[float, Setting("share of these that get noise", ge=0, le=1, published="0.7; searched in 0…1")] = 0.7
    noise: Annotated[float, Setting("standard deviation of the noise", symbol="σ", ge=0, published="0.04; searched in 0…1")] = 0.04
    variant: Annotated[Literal["intended", "legacy_once"], Setting("whether a tensor that was open in an earlier epoch may get noise")] = "intended"
    lr: ContestRate = 2e-4
    epochs: Annotated[int, Setting("epochs with random layers", symbol="E", ge=1, published="5")] = 5
    final_lr: Annotated[tuple[float, ...], Setting("rates of the final epochs, one each", ge=0)] = (2e-4, 2e-4, 2e-4, 1e-3)
    batch: ContestBatch = 64
    optimizer: Update = Sgd()
    schedule: Annotated[Course, Setting("course of the learning rate within each epoch", kind="schedule")] = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        fresh = stack.fresh(ctx.seeds).params
        now = self._changed(stack, {name: fresh[name] for name in head_names(stack)}, ctx)
        free, ever = plain_names(stack), torch.zeros(len(stack), len(plain_names(stack)), dtype=torch.bool)
        for epoch in range(self.epochs):
            chosen, shaken = self.drawn(len(free), ctx.seeds, epoch)
            if self.variant == "legacy_once":
                shaken, ever = shaken & ~ever, ever | chosen
            if epoch:
                noisy = {
                    name: now.params[name] + self.noise * gaussian(now.params[name], ctx.seeds, epoch, at) * _per_tensor(shaken[:, at], now.params[name])
                    for at, name in enumerate(free)
                }
                now = self._changed(now, noisy, ctx)
            mask = self._only(now, {name: chosen[:, at] for at, name in enumerate(free)}, ctx)
            now = self._one_epoch(now, split, replace(ctx, mask=mask), epoch, self.lr)
        for at, lr in enumerate(self.final_lr):
            now = self._one_epoch(now, split, ctx, self.epochs + at, lr)
        return now

    def drawn(self, count: int, seeds: tuple[int, ...], epoch: int) -> tuple[Tensor, Tensor]:
        """Which of so many tensors are trained in an epoch, and which of these are to get noise: bool [K, count] each."""
        take = min(self.layers, count)
        ranks = torch.stack([torch.randperm(count, generator=generator(seed, "layers", epoch)) for seed in seeds])
        return ranks < take, ranks < allowed(self.noised, take)

    def _changed(self, stack: Stack, changes: Mapping[str, Tensor], ctx: Context) -> Stack:
        edited = {**stack.params, **changes}
        return stack.having(edited if ctx.mask is None else ctx.mask.choose(edited, stack.params))

    def _only(self, stack: Stack, chosen: Mapping[str, Tensor], ctx: Context) -> Mask:
        """These tensors (by name, bool [K]) and those of normalisation, within the context's mask."""
        whole = (ctx.mask or Mask.everything(stack)).open
        return Mask({name: bits & _per_tensor(chosen[name], bits) if name in chosen else bits for name, bits in whole.items()}, stack.fingerprint)

    def _one_epoch(self, stack: Stack, split: Split, ctx: Context, epoch: int, lr: float) -> Stack:
        retain = batches(split.retain, self, ctx, "order.retain")
        steps = retain.steps_per_epoch

        def stream(step: int) -> Batch:
            return retain(epoch * steps + step)

        return descend(stack, stream, cross_entropy, self, ctx, steps=steps, per_epoch=steps, lr=lr)


def plain_names(stack: Stack) -> list[str]:
    """Names of all parameters but those of normalisation."""
    norms = {name for name, module in stack.net.named_modules() if isinstance(module, NORMS)}
    return [name for name in stack.params if name.rpartition(".")[0] not in norms]


def _per_tensor(flags: Tensor, like: Tensor) -> Tensor:
    """[K] -> [K, 1, …], beside stacked weights."""
    return flags.view(-1, *[1] * (like.dim() - 1)).to(like.device)
