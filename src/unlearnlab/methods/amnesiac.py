"""``amnesiac``: give the forget set wrong labels for good, or take back the training steps in which it took part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Seen, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Adam, Constant
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack, Tensors, per_member

NEAR = 1e-3  # how far a replay may end from the original, as a share of the way that training went


@spec("method", "amnesiac", paper="arXiv:2010.10981")
class Amnesiac:
    """Train on the forget set with one fixed wrong label for each image, or undo the training steps that saw any of it.

    ``relabel``: min CE(S, y′) + CE(R), y′ ≠ y drawn once, uniformly over the classes that R holds. ``subtract``: θ = θ_o − Σ Δ_t over the
    steps t of the original training whose batch holds an image of S, Δ_t the change of the weights in step t (momentum and weight decay
    included); then repair: min CE(R). lr = η, epochs = E, of the training on S and R or of the repair.
    The Δ_t are not stored while originals train: the training is repeated from the original's initial weights, which gives the same
    steps, and an original that was not trained so is refused. What that costs is not counted, since a stored history would save it.
    Buffers are not subtracted; BatchNorm's follow in the repair. Source: Graves et al. 2021 (methods.md §3.6).
    Differs from the published code: nothing in ``relabel``, which is what published ports do; ``subtract`` is the paper's method.
    """

    cost: ClassVar[str] = "relabel: E·n/n_r; subtract: E, and during training the storage of all weights for each step with an image of S"
    null: ClassVar[Mapping[str, Any] | None] = {"variant": "relabel", "lr": 0.0, "bn": "frozen"}
    variant: Annotated[Literal["relabel", "subtract"], Setting("wrong labels, or training steps taken back")] = "relabel"
    lr: LearningRate = 1e-4
    epochs: Annotated[int, Setting("passes over the images trained on", symbol="E", ge=1, published="3; subtract: 1 to 5")] = 3
    batch: BatchSize = 128
    optimizer: Update = Adam()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget", "retain"} | ({"original_init"} if self.variant == "subtract" else set()))

    @property
    def uncounted(self) -> str:
        """What it takes that no budget counts."""
        return "repeating the original training, which stands for a history that nobody stored" if self.variant == "subtract" else ""

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if self.variant == "relabel":
            images, start = split.train, stack
            labels = self.labels(images, torch.isin(images.ids, split.forget.ids), ctx.seeds)
            stream = batches(images, self, ctx, "order.train", labels=lambda epoch: labels)
        else:
            taken_back = self.taken_back(stack, split, ctx)
            start = stack.having(taken_back if ctx.mask is None else ctx.mask.choose(taken_back, stack.params))
            stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch = stream.steps_per_epoch
        return descend(start, stream, cross_entropy, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch)

    def labels(self, images: Images, chosen: Tensor, seeds: Sequence[int]) -> Int64[Tensor, "k n"]:
        """Wrong labels where ``chosen``: of a class that other images have, and never the image's own."""
        given, where = images.labels.cpu(), chosen.cpu()
        left, held = torch.bincount(given[~where]).nonzero()[:, 0], given[where]
        place = torch.searchsorted(left, held).clamp(max=len(left) - 1)
        stays = left[place] == held  # does the image's own class remain?
        if len(left) == 1 and bool(stays.any()):
            raise InputError(f"method 'amnesiac' finds no wrong label: all images retained, and some to forget, are of class {int(left[0])}")

        def drawn(seed: int) -> Tensor:
            lot = generator(seed, "labels", 0)
            other = place + torch.randint(1, max(2, len(left)), held.shape, generator=lot)
            rank = torch.where(stays, other % len(left), torch.randint(len(left), held.shape, generator=lot))
            return given.masked_scatter(where, left[rank])

        return torch.stack([drawn(seed) for seed in seeds])

    def taken_back(self, stack: Stack, split: Split, ctx: Context) -> Tensors:
        """θ_o − Σ Δ_t, each member's own steps."""
        if ctx.original_init is None:
            raise InputError("variant = 'subtract' repeats the original's training and needs its initial weights; set variant = 'relabel'")
        start, images = replace(ctx.original_init, seeds=stack.seeds), split.train
        before, result = start.params, dict(stack.params)

        def collect(seen: Seen) -> None:
            nonlocal before
            hit = torch.isin(seen.batch.ids, split.forget.ids).any(1)
            for name, now in seen.params.items():
                taken = hit.view(-1, *[1] * (now.dim() - 1))
                result[name] = torch.where(taken, result[name] - (now - before[name]), result[name])
            before = seen.params

        replayed = ctx.recipe(start, images, Progress(), watch=[collect])
        _require_same(replayed, stack, start)
        return result


def _require_same(replayed: Stack, stack: Stack, start: Stack) -> None:
    """Bits differ between devices and chunk sizes, but a replay with another recipe or other images ends far away."""

    def distance(a: Tensors, b: Tensors) -> Tensor:
        return per_member({name: a[name] - b[name] for name in b}, lambda t: t.square().sum(1)).sqrt()

    off = distance(replayed.params, stack.params) / distance(stack.params, start.params)
    if not bool((off <= NEAR).all()):
        far = f"{float(off.nan_to_num(torch.inf).max()):.2g} of the way from its initial weights"
        raise InputError(
            f"method 'amnesiac': trained again, the original ends elsewhere, by {far}; recipe, images, initial weights and the models trained"
            " beside it must be those of its training: pass them, or set variant = 'relabel'"
        )
