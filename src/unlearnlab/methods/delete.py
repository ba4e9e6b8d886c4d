"""``delete``: teach the forget set the model's own opinion, but for the class to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack, head_names


@spec("method", "delete", paper="arXiv:2503.23751")
class Delete:
    """Train on the forget set towards the model's own probabilities without the forgotten class; the retain set is never seen.

    min KL(q ‖ p) over S, q = softmax of the frozen original's logits /T with the logit of the forgotten class at −∞: its probability is 0,
    the others keep their proportions. hide = which classes, temperature = T, lr = η, epochs = E. Made for forgetting classes; of images chosen at
    random it makes their runner-up the answer, which no retrained model would give.
    Source: Zhou et al. 2025 (methods.md §7.3; lr, E and T there are unverified).
    Differs from the published code: the divergence is finite where q is 0; BatchNorm uses its running averages and does
    not update them on forget images alone (``bn = "train"``: it does); classes are counted at the head.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    designed_for: ClassVar[str] = "class"
    cost: ClassVar[str] = "E·n_f/n_r, and as much for the forward pass of the original"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0}
    hide: Annotated[
        Literal["own_class", "all_forgotten"], Setting("classes whose probability becomes 0: each image's own, or all that the forget set holds")
    ] = "own_class"
    temperature: Annotated[float, Setting("logits of both models are divided by it", symbol="T", gt=0)] = 1.0
    lr: LearningRate = 1e-3
    epochs: Epochs = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "frozen"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        stream = batches(split.forget, self, ctx, "order.forget")
        classes, per_epoch = stack.params[head_names(stack)[0]].shape[1], stream.steps_per_epoch
        forgotten = torch.zeros(classes, dtype=torch.bool, device=split.forget.labels.device)
        forgotten[split.forget.labels] = True
        if self.hide == "all_forgotten" and bool(forgotten.all()):
            raise InputError(f"method 'delete': the forget set holds all {classes} classes, so hide = 'all_forgotten' leaves none; use hide = 'own_class'")

        def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
            own = F.one_hot(batch.labels, classes).bool()
            target = self.target(aux["teacher"](batch.images), own if self.hide == "own_class" else forgotten)
            log_p = (net(batch.images) / self.temperature).log_softmax(1)
            return (torch.xlogy(target, target) - target * log_p).sum(1).mean()  # xlogy(0, 0) = 0, where q·log q is NaN

        return descend(stack, stream, loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, aux={"teacher": stack})

    def target(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """q: the probabilities without the hidden classes."""
        return (logits / self.temperature).masked_fill(hidden, -torch.inf).softmax(1)
