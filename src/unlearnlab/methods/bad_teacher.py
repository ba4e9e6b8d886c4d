"""``bad_teacher``: on forget images follow a teacher that knows nothing, on retain images the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch
from unlearnlab.methods.settings import Augment, BatchNorm, Course, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Adam, Constant
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack


@spec("method", "bad_teacher", paper="arXiv:2205.08096")
class BadTeacher:
    """Learn from two teachers: on forget images from a model that was never trained, on some retain images from the original.

    l = 1 on S and 0 on R: q = l·softmax(z_bad/T) + (1−l)·softmax(z_o/T); min KL(q ‖ softmax(z/T)), from θ_o. temperature = T, lr = η,
    epochs = E; retain_share = ρ, the part of R that is drawn once, by each member its own. z_bad: a freshly initialised model of the same
    architecture; both teachers in eval mode. Source: Chundawat et al. 2023 (methods.md §3.3).
    Differs from the published code: KL is averaged over examples (there over examples × classes: ``kl_reduction = "mean_legacy"``); the
    bad teacher has the model's own architecture (there a ResNet-18 for ImageNet with 10 outputs); the student is in train mode.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E·(ρ·n_r + n_f)/n_r, and two more forward passes of each image"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    temperature: Annotated[float, Setting("by which all logits are divided", symbol="T", gt=0, published="1")] = 1.0
    retain_share: Annotated[float, Setting("part of the retain set that is trained on", symbol="ρ", gt=0, le=1, published="0.3; 1 (deepunlearn)")] = 0.3
    kl_reduction: Annotated[Literal["batchmean", "mean_legacy"], Setting("average over examples, or over examples × classes")] = "batchmean"
    lr: LearningRate = 1e-4
    epochs: Annotated[int, Setting("passes over the images trained on", symbol="E", ge=1, published="1; 10 with lr 0.01 (deepunlearn)")] = 1
    batch: Annotated[int, Setting("examples per step", symbol="B", ge=1, published="256; 128 for ViT")] = 256
    optimizer: Update = Adam()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        images = Images.join([split.forget, split.retain])
        rows = self.rows(len(split.forget), len(split.retain), ctx)
        # what the loss reads as label is l, and not the image's label
        is_forget = (torch.arange(len(images)) < len(split.forget)).long().expand(len(stack), -1)
        stream = batches(images, self, ctx, "order.train", rows=rows, labels=lambda epoch: is_forget)
        per_epoch, teachers = stream.steps_per_epoch, {"competent": stack, "incompetent": stack.fresh(ctx.seeds)}
        return descend(stack, stream, self._loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, aux=teachers)

    def rows(self, forget: int, retain: int, ctx: Context) -> Int64[Tensor, "k m"]:
        """Where, in S followed by R, each member's images stand: all of S, and its share of R."""
        count = max(1, round(self.retain_share * retain))
        drawn = torch.stack([torch.randperm(retain, generator=generator(seed, "retain.share"))[:count] for seed in ctx.seeds])
        return torch.cat([torch.arange(forget).expand(len(ctx.seeds), -1), forget + drawn], 1)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        bad, good, own = ((held(batch.images) / self.temperature).log_softmax(1) for held in (aux["incompetent"], aux["competent"], net))
        target = torch.where(batch.labels[:, None] == 1, bad, good)
        each = (target.exp() * (target - own)).sum(1)
        return each.mean() / (own.shape[1] if self.kl_reduction == "mean_legacy" else 1)
