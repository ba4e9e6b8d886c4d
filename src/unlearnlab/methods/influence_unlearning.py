"""``influence_unlearning``: one Newton step, without training, towards the weights that training without the forget set would find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlearnlab import gradients
from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.gradients import drawn_rows, fisher_product, gradient_rows, mean_squared_gradient, summed_gradient
from unlearnlab.methods.recalibrate import Recalibrate, recalibrated
from unlearnlab.progress import Progress
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Mask, Stack, flat, unflat

SETTLED = 1e-6  # a conjugate gradient stops where what is left of v, ‖v − Hx‖/‖v‖, is smaller

Row = Float[Tensor, "k p"]
Variant = Annotated[Literal["exact", "legacy"], Setting("how H⁻¹v is found: as it is defined, or by the published recursion (which is no inverse)")]
Solver = Annotated[
    Literal["auto", "woodbury", "conjugate_gradient", "diagonal"],
    Setting("of the exact variant: woodbury holds all N gradients, conjugate_gradient none; auto: woodbury where they fit; diagonal: H without the rest"),
]
Step = Annotated[
    float,
    Setting("length of the step", symbol="α", ge=0, published="legacy: 1 to 20 (SalUn), 1 to 100 (RUM), 1900 to 42000 (DEL's CIFAR-10), 4000, 6000, 2000"),
]
Samples = Annotated[int, Setting("retain examples that H is made of, drawn by each model", symbol="N", ge=1, published="1000; 300000 on ImageNet")]
Damping = Annotated[float, Setting("of H, which has no inverse otherwise", symbol="λ", gt=0, published="1, implicitly")]
Iterations = Annotated[int, Setting("most steps of the conjugate gradient, each three passes over the N examples", ge=1)]


@spec("method", "influence_unlearning")
class InfluenceUnlearning:
    """Move the weights, in one step, to about where training without the forget set would have ended; no training.

    v = (n_f/n)(ḡ_f − ḡ_r), ḡ = mean of per-example gradients of CE; H = λI + (1/N) Σ g_i g_iᵀ over N examples of R; θ_u = θ + α·H⁻¹v.
    step = α, samples = N, damping = λ. By Woodbury with the gradients as the rows of G: H⁻¹v = (v − Gᵀ(λN·I + GGᵀ)⁻¹Gv)/λ, in double
    precision; or by conjugate gradients, which stop at ``iterations``, solved or not. Weights pruned stay out of H and v.
    ``legacy``: o = g_1, k = v; for each later g: t = o·g, k ← k − (k·g)/(N+t)·o, o ← o(1 − t/(N+t)), over the first N+2 examples of R. As o stays
    parallel to g_1, that is k = v − g_1 (v·h)/(N + g_1·h) with h the sum of the later g: so it is computed.
    Source: Koh & Liang 2017, Izzo et al. 2021, Singh & Alistarh 2020 (methods.md §2.10); there is no ``kfac``.
    Differs from the published code: its recursion is not the inverse it stands for and takes the first examples in file order (here
    ``legacy``); the damping is a setting (there: 1); the retain gradient is always of the retain set.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "(n + N)/n_r (legacy: N + 2 for N; conjugate_gradient: up to 2·iterations·N/n_r forward, half of it backward, for N)"
    null: ClassVar[Mapping[str, Any] | None] = {"step": 0.0}
    variant: Variant = "exact"
    solver: Solver = "auto"
    step: Step = 1.0
    samples: Samples = 1000
    damping: Damping = 1e-2
    iterations: Iterations = 100
    bn_recalibrate: Recalibrate = False

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        n_f, n_r = len(split.forget), len(split.retain)
        of_forget, of_retain = (flat(summed_gradient(stack, images, ctx.progress)) for images in (split.forget, split.retain))
        v = (of_forget - of_retain * (n_f / n_r)) / (n_f + n_r) * flat(Mask.everything(stack).open)
        move = unflat(self._legacy(stack, split.retain, v, ctx) if self.variant == "legacy" else self._exact(stack, split.retain, v, ctx), stack.params)
        edited = {name: p + self.step * move[name] for name, p in stack.params.items()}
        after = stack.having(edited if ctx.mask is None else ctx.mask.choose(edited, stack.params))
        return recalibrated(after, split.retain, ctx) if self.bn_recalibrate else after

    def _exact(self, stack: Stack, retain: Images, v: Row, ctx: Context) -> Row:
        rows, live = drawn_rows(retain, self.samples, ctx.seeds), flat(Mask.everything(stack).open)
        if self.solver == "diagonal":
            return v / (self.damping + flat(mean_squared_gradient(stack, retain, ctx.progress, rows=rows)))
        held = min(self.samples, len(retain)) * v.shape[1] * v.element_size()  # of one member: what is solved with what does not depend on K
        if self.solver == "woodbury" or (self.solver == "auto" and held <= gradients.MEMORY):
            some = max(1, gradients.MEMORY // held)  # members whose gradients are held at a time
            found = []
            for at in range(0, len(stack), some):
                members = slice(at, at + some)
                mine, counted = None if rows is None else rows[members], ctx.progress if at == 0 else Progress()  # counted once, as members at once are
                g = torch.cat(list(gradient_rows(stack.rows(range(len(stack))[members]), retain, counted, rows=mine)), 1)
                found.append(woodbury(g.mul_(live[members].unsqueeze(1)), v[members], self.damping))
            return torch.cat(found)
        return conjugate_gradient(lambda x: self.damping * x + live * fisher_product(stack, retain, x, ctx.progress, rows=rows), v, self.iterations)

    def _legacy(self, stack: Stack, retain: Images, v: Row, ctx: Context) -> Row:
        last = min(self.samples + 2, len(retain))
        first, later = retain.rows(torch.arange(1)), retain.rows(torch.arange(1, last))
        g_1 = flat(summed_gradient(stack, first, ctx.progress))
        h = flat(summed_gradient(stack, later, ctx.progress)) if len(later) else torch.zeros_like(g_1)
        g_1 = g_1 * flat(Mask.everything(stack).open)  # v is 0 there already
        return v - g_1 * ((v * h).sum(1, keepdim=True) / (self.samples + (g_1 * h).sum(1, keepdim=True)))


def woodbury(g: Float[Tensor, "k n p"], v: Row, damping: float) -> Row:
    """(λI + GᵀG/N)⁻¹v of every member, by an N×N system in double precision."""
    n, pieces = g.shape[1], list(zip(torch.split(g, 4096, 2), torch.split(v, 4096, 1), strict=True))  # so that no second copy of G is held
    gram, product = torch.zeros(len(g), n, n, dtype=torch.float64, device=g.device), torch.zeros(len(g), n, 1, dtype=torch.float64, device=g.device)
    for some, own in pieces:
        gram += some.double() @ some.double().mT
        product += some.double() @ own.double().unsqueeze(2)
    gram.diagonal(dim1=1, dim2=2).add_(damping * n)
    weights = torch.cholesky_solve(product, torch.linalg.cholesky(gram))
    return torch.cat([(own.double() - (some.double().mT @ weights).squeeze(2)) / damping for some, own in pieces], 1).to(v.dtype)


def conjugate_gradient(times_h: Callable[[Row], Row], v: Row, iterations: int) -> Row:
    """x with Hx = v of every member, in at most so many steps; a member that is done stands still."""
    x, left, direction = torch.zeros_like(v), v, v
    size = start = v.square().sum(1, keepdim=True)
    for _ in range(iterations):
        going = size > SETTLED**2 * start
        if not bool(going.any()):
            break
        turned = times_h(direction)
        length = torch.where(going, size / (direction * turned).sum(1, keepdim=True), 0)  # 0/0 where v = 0
        x, left = x + length * direction, left - length * turned
        after = left.square().sum(1, keepdim=True)
        direction, size = left + torch.where(going, after / size, 0) * direction, after
    return x
