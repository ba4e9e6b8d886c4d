"""``random_label``: train on the forget set with random labels, and on the retain set as before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, Edit, Loss, Shuffled, Stream, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack, head_names

Passes = Annotated[
    Literal["concat", "sequential"],
    Setting("each epoch: forget and retain images shuffled together, or first the former, then the latter",
            published="sequential for CIFAR-10 and SVHN, concat for CIFAR-100 and Tiny (SalUn); concat (RUM)"),
]  # fmt: skip
Redraw = Annotated[
    Literal["epoch", "once"],
    Setting("when random labels are drawn; an image comes once an epoch, so per batch would be the same as per epoch",
            published="per batch (sequential) or per epoch (concat)"),
]  # fmt: skip
ExcludeTrue = Annotated[bool, Setting("never draw the label the image has", published="false")]
RelabelRate = Annotated[
    float,
    Setting("learning rate", symbol="η", ge=0, published="0.013 (SalUn, 10 % of CIFAR-10), 6e-3 (its users), 0.1 (RUM); cosine to half of it (DEL)"),
]
RetainWeight = Annotated[
    float, Setting("weight of each retain image's loss beside each forget image's", symbol="α", gt=0, published="1; 0.1 to 10 are searched")
]
RelabelEpochs = Annotated[int, Setting("passes over all training images", symbol="E", ge=1, published="10 (SalUn), 5 to 10 (RUM)")]


@spec("method", "random_label", paper="arXiv:1911.04933")
class RandomLabel:
    """Go on training with random labels on the forget set and the given labels on the retain set.

    min CE(S, y′) + α·CE(R) with y′ uniform over the C classes, from θ_o; retain_weight = α, lr = η, epochs = E. Source: Golatkar et al. 2020;
    Graves et al. 2021; Fan et al. 2024 (the "RL" of SalUn, "SRL" of deepunlearn; methods.md §2.7).
    Differs from the published code: labels pass through a function and are never written into a data set (there: silently without effect for some
    data sets, or poisoning the retain set through a shared one); classes are counted at the head (there: 10).
    SalUn's code redraws labels per batch in its sequential passes, per epoch in the others. Either way an image is shown once an epoch,
    so both are redraw = "epoch" here: no image ever meets another label by the finer one.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E·n/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    passes: Passes = "concat"
    redraw: Redraw = "epoch"
    exclude_true: ExcludeTrue = False
    retain_weight: RetainWeight = 1.0
    lr: RelabelRate = 0.013
    epochs: RelabelEpochs = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        return self.train(stack, split, ctx)

    def train(self, stack: Stack, split: Split, ctx: Context, edit_grad: Edit | None = None) -> Stack:
        """The whole method; ``edit_grad`` goes to ``fit``."""
        stream, per_epoch = self.stream(stack, split, ctx)
        return descend(stack, stream, self.loss(split), self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, edit_grad=edit_grad)

    def loss(self, split: Split) -> Loss:
        """Cross-entropy in which a retain image counts α."""
        if self.retain_weight == 1:
            return cross_entropy
        forgotten = torch.zeros(int(split.train.ids.max()) + 1, dtype=torch.bool, device=split.forget.ids.device)
        forgotten[split.forget.ids] = True

        def weighted(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
            each = torch.nn.functional.cross_entropy(net(batch.images), batch.labels, reduction="none")
            return (each * torch.where(forgotten[batch.ids], 1.0, self.retain_weight)).mean()

        return weighted

    def stream(self, stack: Stack, split: Split, ctx: Context) -> tuple[Stream, int]:
        """Batches, and how many make an epoch."""
        classes = stack.params[head_names(stack)[0]].shape[1]

        def relabelled(images: Images, purpose: str) -> Shuffled:
            chosen = torch.isin(images.ids, split.forget.ids)
            return batches(images, self, ctx, purpose, labels=lambda epoch: self.labels(images, chosen, ctx.seeds, classes, epoch))

        if self.passes == "concat":
            both = relabelled(split.train, "order.train")
            return both, both.steps_per_epoch
        forget, retain = relabelled(split.forget, "order.forget"), batches(split.retain, self, ctx, "order.retain")
        first, then = forget.steps_per_epoch, retain.steps_per_epoch

        def one_after_the_other(step: int) -> Batch:
            epoch, at = divmod(step, first + then)
            return forget(epoch * first + at) if at < first else retain(epoch * then + at - first)

        return one_after_the_other, first + then

    def labels(self, images: Images, chosen: Tensor, seeds: Sequence[int], classes: int, epoch: int) -> Tensor:
        """The labels of an epoch [K, n]: random where ``chosen``, as given elsewhere."""
        given, where = images.labels.cpu(), chosen.cpu()
        held = given[where]

        def drawn(seed: int) -> Tensor:
            lot = generator(seed, "labels", epoch if self.redraw == "epoch" else 0)
            if self.exclude_true:
                return (held + torch.randint(1, classes, held.shape, generator=lot)) % classes
            return torch.randint(classes, held.shape, generator=lot)

        return torch.stack([given.masked_scatter(where, drawn(seed)) for seed in seeds])
