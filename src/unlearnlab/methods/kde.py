"""``kde``: reset the first convolution and the head, then distil the original back, first on validation images, then on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch
from unlearnlab.methods.cfw import first_weight
from unlearnlab.methods.ct import ContestBatch, ContestRate
from unlearnlab.methods.settings import Augment, BatchNorm, Course, Epochs, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Cosine, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack, head_names


@spec("method", "kde", paper="arXiv:2410.01276")
class Kde:
    """Reset the first convolution and the head, then learn the original's outputs on validation images, and its outputs and the labels on the retain set.

    1. fresh first convolution (without one: the first layer with weights of two or more dimensions) and head; 2. min KL(p_o ‖ p) at
    temperature T on V, without the factor T²; 3. min CE + KL(p_o ‖ p) + soft CE(p_o, p), the latter two at T, on R, with a fresh optimiser.
    temperature = T; warm_up_lr, warm_up_epochs of 2; lr, epochs of 3. p_o: the frozen original.
    Reads validation images: if they also choose a model or serve a membership test, hold out another part for that.
    Source: NeurIPS'23 contest, place 6 (7th private), as re-implemented by Cadet et al. 2024 (methods.md §6.6).
    Differs from the published code: layers are found by type and order (there: by the names conv1, fc and head); the soft CE takes one
    log-softmax (there: a second, which changes nothing); the cosine falls at each step (there: at each epoch).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain", "validation"})
    cost: ClassVar[str] = "4/3·(E + warm_up_epochs·n_validation/n_r)"
    null: ClassVar[Mapping[str, Any] | None] = None
    temperature: Annotated[float, Setting("divides the logits of both models", symbol="T", gt=0, published="5; searched in 0…5")] = 5.0
    warm_up_lr: Annotated[float, Setting("learning rate on the validation images", ge=0, published="9e-4")] = 9e-4
    warm_up_epochs: Annotated[int, Setting("passes over the validation images", ge=0, published="3")] = 3
    lr: ContestRate = 1e-3
    epochs: Epochs = 3
    batch: ContestBatch = 64
    optimizer: Update = Sgd()
    schedule: Course = Cosine()
    bn: BatchNorm = "train"
    augment: Augment = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if not len(split.validation):
            raise InputError("method 'kde' distils on validation images and there are none; hold some out")
        fresh, anew = stack.fresh(ctx.seeds).params, reset_names(stack)
        reset = {name: fresh[name] if name in anew else p for name, p in stack.params.items()}
        start = stack.having(reset if ctx.mask is None else ctx.mask.choose(reset, stack.params))
        held_out, retain = batches(split.validation, self, ctx, "order.validation"), batches(split.retain, self, ctx, "order.retain")
        teacher, warm_up, per_epoch = {"teacher": stack}, held_out.steps_per_epoch, retain.steps_per_epoch
        warm = descend(
            start, held_out, self._distil, self, ctx, steps=self.warm_up_epochs * warm_up, per_epoch=warm_up, lr=self.warm_up_lr, schedule=Constant(),
            aux=teacher,
        )  # fmt: skip
        return descend(warm, retain, self._distil_and_learn, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, aux=teacher)

    def _distil(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        return soft_divergence(net(batch.images), aux["teacher"](batch.images), self.temperature)

    def _distil_and_learn(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        logits, taught, t = net(batch.images), aux["teacher"](batch.images), self.temperature
        soft = F.cross_entropy(logits / t, (taught / t).softmax(1))
        return F.cross_entropy(logits, batch.labels) + soft_divergence(logits, taught, t) + soft


def soft_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of predictions at a temperature, averaged over examples."""
    mine, theirs = (logits / temperature).log_softmax(1), (taught / temperature).log_softmax(1)
    return (theirs.exp() * (theirs - mine)).sum(1).mean()  # torch's own kl_div runs one model at a time under vmap


def reset_names(stack: Stack) -> set[str]:
    """Names of all parameters of the first convolution (or first layer) and of the head."""
    first = first_weight(stack).rpartition(".")[0]
    return {name for name in stack.params if name.rpartition(".")[0] == first} | set(head_names(stack))
