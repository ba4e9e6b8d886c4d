"""``prmq``: prune nearly all weights, start them anew, train towards labels and the original's confidence, round to half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, Loss
from unlearnlab.localise.ranking import allowed
from unlearnlab.methods.ct import ContestBatch, ContestRate
from unlearnlab.methods.settings import Augment, BatchNorm, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack, Tensors, flat, head_names, top_share, unflat


@spec("method", "prmq", paper="arXiv:2410.01276")
class Prmq:
    """Start the smallest 99 % of the weights anew, train on the retain set towards its labels and the original's confidence, and round to half precision.

    1. the share q of smallest |θ| over weights and biases of all convolutions and linear layers; 2. these weights ~ U(±1/√fan_in), these
    biases = 0; 3. ⌊E·batches⌋ steps of CE_w(R) + mean (H(p) − H(p_o))² with class weights w_c = n_c^−0.1 and p_o of the frozen original; all
    weights train; 4. weights rounded to float16. pruned = q, lr = η, epochs = E. Source: NeurIPS'23 contest, place 4, as re-implemented by
    Cadet et al. 2024 (methods.md §6.4).
    Differs from the published code: it takes one step more; a class that R lacks has weight 0 (there: the weights no longer fit the classes);
    running averages are not rounded.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "4/3·E"
    null: ClassVar[Mapping[str, Any] | None] = None
    pruned: Annotated[float, Setting("share of the weights that start anew", symbol="q", ge=0, le=1, published="0.99; searched in 0…1")] = 0.99
    half: Annotated[bool, Setting("round the weights to float16 at the end")] = True
    lr: ContestRate = 5e-4
    epochs: Annotated[float, Setting("passes over the retain set, the last may be a part", symbol="E", gt=0, published="3.2")] = 3.2
    batch: ContestBatch = 64
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        anew = self._anew(stack, ctx)
        start = stack.having(anew if ctx.mask is None else ctx.mask.choose(anew, stack.params))
        stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch = stream.steps_per_epoch
        classes = stack.params[head_names(stack)[0]].shape[1]
        loss, steps = towards_confidence(mild_weights(split.retain, classes)), allowed(self.epochs, per_epoch)
        trained = descend(start, stream, loss, self, ctx, steps=steps, per_epoch=per_epoch, aux={"teacher": stack})
        if not self.half:
            return trained
        rounded = {name: p.half().float() for name, p in trained.params.items()}
        return trained.having(rounded if ctx.mask is None else ctx.mask.choose(rounded, trained.params))

    def _anew(self, stack: Stack, ctx: Context) -> Tensors:
        """All weights, the smallest replaced."""
        edited = dict(stack.params)
        for at, (name, small) in enumerate(self.smallest(stack).items()):
            weights = stack.params[name]
            # a bias has no fan in, and is put to 0
            fresh = uniform(weights, ctx.seeds, at) / weights[0, 0].numel() ** 0.5 if weights.dim() > 2 else torch.zeros_like(weights)
            edited[name] = torch.where(small, fresh, weights)
        return edited

    def smallest(self, stack: Stack) -> Tensors:
        """Which weights of convolutions and linear layers are among the smallest, over all layers: name -> bool [K, *shape]; pruned ones never."""
        layers = {name for name, module in stack.net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        ranked = {name: p for name, p in stack.params.items() if name.rpartition(".")[0] in layers}
        live = flat({name: stack.live.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in ranked.items()})
        count = (self.pruned * live.sum(1)).round().long()
        return unflat(top_share((-flat(ranked).abs()).masked_fill(~live, -torch.inf), count), ranked)


def uniform(like: Tensor, seeds: tuple[int, ...], at: int) -> Tensor:
    """Numbers [K, *shape] ~ U(−1, 1), each member's from its own generator; ``at`` tells tensors apart."""
    return torch.stack([torch.rand(like.shape[1:], generator=generator(seed, "fresh_weights", at)) for seed in seeds]).to(like.device) * 2 - 1


def mild_weights(images: Images, classes: int) -> Tensor:
    """n_c^−0.1 of each class [C], 0 where there is no image."""
    counts = torch.bincount(images.labels, minlength=classes)
    return torch.where(counts > 0, counts.clamp(min=1).float() ** -0.1, 0.0)


def towards_confidence(weights: Tensor) -> Loss:
    """Class-weighted cross-entropy (a weighted mean) plus the mean squared difference from the teacher's entropy."""

    def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        logits = net(batch.images)
        apart = entropy(logits) - entropy(aux["teacher"](batch.images))
        return F.cross_entropy(logits, batch.labels, weight=weights) + apart.square().mean()

    return loss


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each example's prediction, in nats [n]."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
