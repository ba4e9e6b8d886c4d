"""``boundary_shrink`` and ``boundary_expand``: move forget images across the decision boundary, to the next class or to one of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import cross_entropy
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.pixels import as_floats, require_floats
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors, head_names, in_mode

PAPER = "Chen et al. 2023, CVPR"
AT_ONCE = 256  # images attacked at a time


@spec("method", "boundary_shrink", paper=PAPER)
class BoundaryShrink:
    """Teach the model, for each forget image, the class that lies nearest behind its decision boundary.

    x′ = clip(x + ε·sign ∂ₓCE(f_o(x), y), 0, 1), y′ = argmax f_o(x′) over the classes but y; min CE(f(x), y′) on S, from θ_o.
    perturbation = ε, lr = η, epochs = E. The attack runs in pixel space, in units of the pixel range: x′ of uint8 images is rounded to
    whole pixel values; float32 images must lie in [0, 1]. ``pgd``: the attack in ``attack_steps`` steps of 2.5·ε/``attack_steps`` within
    ε of x (Madry et al. 2018), from x. ``with_retain``: R, with its own labels, is shuffled among S.
    Source: Chen et al. 2023 (methods.md §3.1).
    Differs from the published code: y′ is never y (there it may be: ``exclude_true = false``) and comes from the original, once; the
    clipping is done before any normalisation; BatchNorm keeps its running averages (published: bn = "train").
    """

    designed_for: ClassVar[str] = "class"
    cost: ClassVar[str] = "(E + 1 + attack steps)·n_f/n_r; with_retain: E more"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0}
    perturbation: Annotated[float, Setting("largest change of a pixel by the attack, as a share of the pixel range", symbol="ε", ge=0, published="0.1")] = 0.1
    attack: Annotated[Literal["fgsm", "pgd"], Setting("one step along the sign of the gradient, or several")] = "fgsm"
    attack_steps: Annotated[int, Setting("steps of pgd", ge=1)] = 10
    exclude_true: Annotated[bool, Setting("the new label is never the label the image has", published="false")] = True
    with_retain: Annotated[bool, Setting("train on the retain set as well")] = False
    lr: LearningRate = 1e-3
    epochs: Epochs = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "frozen"
    augment: Augment = "train"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget", "retain"} if self.with_retain else {"forget"})

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        nearest = self.nearest(stack, split.forget, ctx.progress)
        images, labels = split.forget, nearest
        if self.with_retain:
            images = split.train  # in order of id
            chosen = torch.isin(images.ids, split.forget.ids)
            labels = images.labels.repeat(len(stack), 1)
            labels[:, chosen] = nearest[:, split.forget.ids.argsort()]
        stream = batches(images, self, ctx, "order.train" if self.with_retain else "order.forget", labels=lambda epoch: labels)
        per_epoch = stream.steps_per_epoch
        return descend(stack, stream, cross_entropy, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch)

    def nearest(self, stack: Stack, images: Images, progress: Progress) -> Int64[Tensor, "k n"]:
        """y′ of each member and image."""
        require_floats(stack, images, "method 'boundary_shrink'")
        found = []
        for at in range(0, len(images), AT_ONCE):
            labels = images.labels[at : at + AT_ONCE]
            logits = _logits(stack, self.attacked(stack, images.pixels[at : at + AT_ONCE].to(stack.device), labels, progress))
            progress.seen(len(labels))
            found.append((self._without(logits, labels) if self.exclude_true else logits).argmax(2))
        return torch.cat(found, 1)

    def attacked(self, stack: Stack, pixels: Tensor, labels: Tensor, progress: Progress) -> Float[Tensor, "k n c h w"]:
        """x′ of each member: floats in [0, 1], of uint8 images such as 8 bits can hold."""
        x, whole = as_floats(pixels), pixels.dtype == torch.uint8
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise InputError(
                f"method 'boundary_shrink' attacks pixels in [0, 1], these float32 images go from {float(x.min()):g} to {float(x.max()):g};"
                " give uint8 images, or normalise inside the net"
            )
        steps = 1 if self.attack == "fgsm" else self.attack_steps
        length = self.perturbation if self.attack == "fgsm" else 2.5 * self.perturbation / steps
        x = x.expand(len(stack), *x.shape)
        low, high = (x - self.perturbation).clamp(min=0), (x + self.perturbation).clamp(max=1)
        moved = x
        for _ in range(steps):
            moved = moved.detach().clone().requires_grad_()
            with torch.enable_grad():
                loss = nn.functional.cross_entropy(_logits(stack, moved).flatten(0, 1), labels.repeat(len(stack)), reduction="sum")
                (slope,) = torch.autograd.grad(loss, moved)
            progress.seen(len(labels), len(labels))
            moved = torch.clamp(moved.detach() + length * slope.sign(), low, high)
        return (moved * 255).round() / 255 if whole else moved

    def _without(self, logits: Float[Tensor, "k n classes"], labels: Tensor) -> Float[Tensor, "k n classes"]:
        return logits.masked_fill(nn.functional.one_hot(labels, logits.shape[2]).bool(), -torch.inf)


def _logits(stack: Stack, pixels: Float[Tensor, "k n c h w"]) -> Float[Tensor, "k n classes"]:
    """Logits of every member on images of its own, in eval mode."""
    net, tensors = in_mode(stack.net, "eval_all"), stack.params | stack.buffers
    if len(stack) == 1:
        return call_alone(net, {n: t[0] for n, t in tensors.items()}, pixels[0]).unsqueeze(0)
    found: Tensor = torch.vmap(lambda own, x: call_member(net, own, x))(tensors, pixels)
    return found


@spec("method", "boundary_expand", paper=PAPER)
class BoundaryExpand:
    """Teach the model to put the forget images into a class of their own, and then take that class away.

    The head gets a row for class C (old rows as they are, the new one as torch begins linear layers); min CE(f(x), C) on S; the row is
    dropped. lr = η, epochs = E. Source: Chen et al. 2023 (methods.md §3.2).
    Differs from the published code: the extra logit does not stay in the model; C is counted at the head (there: 10);
    BatchNorm keeps its running averages (published: bn = "train").
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    designed_for: ClassVar[str] = "class"
    cost: ClassVar[str] = "E·n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0}
    lr: Annotated[float, Setting("learning rate", symbol="η", ge=0, published="1e-5 to 1e-3")] = 1e-4
    epochs: Epochs = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "frozen"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        head = head_names(stack)
        classes = stack.params[head[0]].shape[1]
        wide = self.widened(stack, ctx)
        shadow = torch.full((len(stack), len(split.forget)), classes)
        stream = batches(split.forget, self, ctx, "order.forget", labels=lambda epoch: shadow)
        per_epoch = stream.steps_per_epoch
        mask = None if ctx.mask is None else Mask(_longer(ctx.mask.open, head), wide.fingerprint)
        after = descend(wide, stream, cross_entropy, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, mask=mask)
        kept = {name: p[:, :classes].clone() if name in head else p for name, p in after.params.items()}
        return replace(after, net=stack.net, params=kept, live=stack.live)

    def widened(self, stack: Stack, ctx: Context) -> Stack:
        """The same models with one more class."""
        head, net = head_names(stack), copy.deepcopy(stack.net)
        layer = net.get_submodule(head[0].rpartition(".")[0])
        assert isinstance(layer, nn.Linear)
        layer.out_features += 1
        for name in head:  # no new layer, which would draw from the global generator
            own = name.rpartition(".")[2]
            setattr(layer, own, nn.Parameter(torch.cat([getattr(layer, own), getattr(layer, own)[:1]]), requires_grad=False))
        bound, lots = layer.in_features**-0.5, [generator(seed, "fresh_init") for seed in ctx.seeds]
        params = dict(stack.params)
        for name in head:
            held = params[name]
            row = torch.stack([torch.rand(1, *held.shape[2:], generator=lot) for lot in lots]).to(held)
            params[name] = torch.cat([held, bound * (2 * row - 1)], 1)
        return replace(stack, net=net, params=params, live=_longer(stack.live, head))


def _longer(bits: Tensors, head: list[str]) -> Tensors:
    """A mask with a row more of the head, open."""
    return {name: torch.cat([held, torch.ones_like(held[:, :1])], 1) if name in head else held for name, held in bits.items()}
