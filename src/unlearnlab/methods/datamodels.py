"""``datamodel_matching`` and ``datamodel_direct``: predict from attribution scores what a model without the forget set would answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unlearnlab.attribution import Attribution
from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.methods.oracle_matching import Anchor, Distance, ForgetMultiple, OracleMatching, Passes, Rate, RetainMultiple, Size, Views, match, neighbourhood
from unlearnlab.methods.settings import BatchNorm, Course, Update
from unlearnlab.spec import InputError, Setting, info, spec
from unlearnlab.stack import Stack, Tensors, head_names, in_mode

Multiplier = Annotated[float, Setting("factor of the predicted change", symbol="μ", ge=0, published="1; 0.5 to 2 are searched")]


def predicted_effect(method: Any, stack: Stack, split: Split, ids: Tensor, ctx: Context) -> Float[Tensor, "n c"]:
    """μ·Σ over S of τ on the images with these ids."""
    if ctx.attribution is None:
        raise InputError(f"method '{info(method).name}' needs attribution scores and none are at hand; estimate them first (attribution 'datamodels')")
    held, classes = Attribution.read(ctx.attribution), stack.params[head_names(stack)[0]].shape[1]
    if held.classes != classes:
        raise InputError(f"the attribution is of {held.classes} classes and the model of {classes}; estimate one on models of this architecture and data")
    multiplier: float = method.multiplier
    return (multiplier * held.effect(split.forget.ids, ids)).to(stack.device)


@spec("method", "datamodel_matching", paper="arXiv:2410.23232")
class DatamodelMatching:
    """Train the model to answer as attribution scores predict that it would, had it never seen the forget set.

    min mean over x in S′ ∪ R′ of ‖z(x) − t(x)‖² + λ‖θ − θ_o‖², t(x) = z_o(x) − μ·Σ_{i∈S} τ[i, x, :], z_o the original's logits in eval mode, asked
    once; multiplier = μ, all else as in ``oracle_matching``. Source: Georgiev et al. 2025 (methods.md §7.4).
    Differs from the published code: the original stays as it is while asked (there: left in train mode, so that its BatchNorm drifts);
    rows and columns of τ are found by id (there: by position, which a validation split shifts); the rest as ``oracle_matching`` says.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "attribution"})
    cost: ClassVar[str] = "E·(r+f)·n_f/n_r, and (r+1)·n_f/n_r forward passes; without the attribution"
    null: ClassVar[Mapping[str, Any] | None] = OracleMatching.null
    multiplier: Multiplier = 1.0
    retain_multiple: RetainMultiple = OracleMatching.retain_multiple
    forget_multiple: ForgetMultiple = OracleMatching.forget_multiple
    loss: Distance = OracleMatching.loss
    anchor: Anchor = OracleMatching.anchor
    lr: Rate = OracleMatching.lr
    epochs: Passes = OracleMatching.epochs
    batch: Size = OracleMatching.batch
    optimizer: Update = OracleMatching.optimizer
    schedule: Course = OracleMatching.schedule
    bn: BatchNorm = OracleMatching.bn
    augment: Views = OracleMatching.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        images, rows = neighbourhood(split, self, ctx)
        asked, where = torch.unique(images.ids[rows], return_inverse=True)  # the members' samples overlap: each point is read once
        wanted = self._answers(stack, images, rows, ctx) - predicted_effect(self, stack, split, asked, ctx)[where]
        return match(stack, images, rows, wanted if self.loss == "squared" else wanted.softmax(-1), len(split.forget), self, ctx)

    def _answers(self, stack: Stack, images: Images, rows: Int64[Tensor, "k m"], ctx: Context) -> Float[Tensor, "k m c"]:
        """The members' logits, each on its own rows of the images."""
        net, alone = in_mode(stack.net, "eval_all"), len(stack) == 1

        def one(tensors: Tensors, pixels: Tensor) -> Tensor:
            return (call_alone if alone else call_member)(net, tensors, pixels)

        found, tensors = [], stack.params | stack.buffers
        for part in torch.split(rows, self.batch, 1):
            pixels = images.pick(part).to(stack.device)
            with torch.no_grad():
                found.append(one({n: t[0] for n, t in tensors.items()}, pixels[0]).unsqueeze(0) if alone else torch.vmap(one)(tensors, pixels))
            ctx.progress.seen(part.shape[1])
        return torch.cat(found, 1)


@spec("method", "datamodel_direct", paper="arXiv:2410.23232")
class DatamodelDirect:
    """Do not change the model: correct its answers on given images by what the forget set is predicted to have added to them.

    z_u(x) = z_o(x) − μ·Σ_{i∈S} τ[i, x, :] on the points of the attribution; multiplier = μ. No model, so of use to metrics alone: it shows how good
    the targets of ``datamodel_matching`` are. Source: Georgiev et al. 2025 (methods.md §7.4).
    Differs from the published code: the original answers in eval mode, and rows and columns of τ are found by id.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "attribution"})
    cost: ClassVar[str] = "0, without the attribution"
    multiplier: Multiplier = 1.0

    def answer(self, stack: Stack, split: Split, ctx: Context, images: Images) -> Float[Tensor, "k n classes"]:
        """The corrected logits of every member on these images; all must be points of the attribution."""
        effect = predicted_effect(self, stack, split, images.ids, ctx)
        with torch.no_grad():
            logits = [stack.logits(images.pixels[at : at + 1024].to(stack.device)) for at in range(0, len(images), 1024)]
        return torch.cat(logits, 1) - effect
