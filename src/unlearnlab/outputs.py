"""``Outputs``: what models say about examples. Each model is evaluated once; everything reads the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from unlearnlab.data.images import PARTS, Images
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, headless


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits of M models on n examples, made in eval mode without augmentation.

    ``member[m, i]``: was example i in model m's training set. ``part[i]``: index into ``PARTS``.
    ``models``: the models' seeds, for messages and pairing.
    """

    logits: Float[Tensor, "models examples classes"]
    member: Bool[Tensor, "models examples"]
    labels: Int64[Tensor, " examples"]
    ids: Int64[Tensor, " examples"]
    part: Int64[Tensor, " examples"]
    models: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.logits.dim() != 3:
            raise InputError(f"logits must have the shape [models, examples, classes], got {list(self.logits.shape)}")
        m, n, c = self.logits.shape
        if c < 2:
            raise InputError(f"logits have {c} class; a margin needs at least 2")
        if self.member.shape != (m, n) or len(self.labels) != n or len(self.ids) != n or len(self.part) != n or len(self.models) != m:
            raise InputError(f"outputs of {m} models on {n} examples do not fit their labels, ids, parts, membership or seeds")
        if n and (int(self.labels.min()) < 0 or int(self.labels.max()) >= c):
            raise InputError(f"labels must lie in 0 to {c - 1}, the classes of the logits; got {int(self.labels.min())} to {int(self.labels.max())}")

    def __len__(self) -> int:
        return len(self.logits)

    def require_finite(self) -> None:
        """Raise ``InputError`` naming the first model and example with a NaN or infinite logit."""
        bad = (~torch.isfinite(self.logits).all(-1)).nonzero()
        if len(bad):
            model, example = bad[0].tolist()
            where = f"model {self.models[model]} has a NaN or infinite logit on example id {int(self.ids[example])}"
            raise InputError(f"{where}; expected finite logits: retrain or drop that model")

    def of(self, part: str) -> Outputs:
        """The examples of one part."""
        if part not in PARTS:
            raise InputError(f"unknown part '{part}'; parts: {', '.join(PARTS)}")
        here = self.part == PARTS.index(part)
        return self if bool(here.all()) else self.examples(here)  # itself, so that what was computed of it is kept

    def examples(self, index: Tensor) -> Outputs:
        """These examples only (a mask or positions)."""
        return Outputs(self.logits[:, index], self.member[:, index], self.labels[index], self.ids[index], self.part[index], self.models)

    def rows(self, index: Tensor | Sequence[int]) -> Outputs:
        """These models only, in this order."""
        index = torch.as_tensor(index, dtype=torch.int64)  # an empty list too
        if index.tolist() == list(range(len(self))):
            return self
        return Outputs(self.logits[index], self.member[index], self.labels, self.ids, self.part, tuple(self.models[int(i)] for i in index))

    @cached_property
    def margin(self) -> Float64[Tensor, "models examples"]:
        """Logit margin z_y − logsumexp of the other logits = log p_y/(1−p_y)."""
        return margin(self.logits, self.labels)

    @cached_property
    def log_prob(self) -> Float64[Tensor, "models examples classes"]:
        """log softmax in float64."""
        return self.logits.double().log_softmax(-1)

    @cached_property
    def loss(self) -> Float64[Tensor, "models examples"]:
        """Cross-entropy −log p_y of each example, in nats."""
        return -_pick(self.log_prob, self.labels)

    @cached_property
    def predicted(self) -> Int64[Tensor, "models examples"]:
        """argmax class; ties go to the lowest index."""
        return lowest_argmax(self.logits)

    @staticmethod
    def join(parts: Sequence[Outputs]) -> Outputs:
        """Models of several chunks over the same examples, in order."""
        first = parts[0]
        assert all(torch.equal(first.ids, part.ids) for part in parts), "chunks must cover the same examples"
        return Outputs(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.member for part in parts]),
            first.labels,
            first.ids,
            first.part,
            tuple(seed for part in parts for seed in part.models),
        )


def margin(logits: Float[Tensor, "... n c"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, "... n"]:
    """z_y − logsumexp(z without y), in float64: finite where p/(1−p) has long overflowed."""
    z = logits.double()
    return _pick(z, labels) - _without(z, labels).logsumexp(-1)


def hinge(logits: Float[Tensor, "... n c"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, "... n"]:
    """z_y − the largest other logit, in float64."""
    z = logits.double()
    return _pick(z, labels) - _without(z, labels).amax(-1)


def log_one_minus(logits: Float[Tensor, "... c"]) -> Float64[Tensor, "... c"]:
    """log(1 − p_k) for every class k, exact also where p_k rounds to 1."""
    log_p = logits.double().log_softmax(-1)
    top = lowest_argmax(logits).unsqueeze(-1)
    z = logits.double()
    of_top = z.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True) - z.logsumexp(-1, keepdim=True)
    # p_k <= 1/2 away from the top, where log1p is exact; the placeholder keeps -p = -1 out of log1p
    return torch.log1p(-log_p.exp().scatter(-1, top, 0.0)).scatter(-1, top, of_top)


def entropy(logits: Float[Tensor, "... c"]) -> Float64[Tensor, " ..."]:
    """−Σ p log p in nats, with 0 at p = 0."""
    log_p = logits.double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def modified_entropy(logits: Float[Tensor, "... n c"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, "... n"]:
    """−(1−p_y) log p_y − Σ_{k≠y} p_k log(1−p_k) (Song & Mittal 2020)."""
    log_p, log_not = logits.double().log_softmax(-1), log_one_minus(logits)
    others = log_p.exp() * log_not
    own = _pick(log_not, labels).exp() * _pick(log_p, labels)
    return -own - _without(others, labels, 0.0).sum(-1)


def lowest_argmax(logits: Float[Tensor, "... c"]) -> Int64[Tensor, " ..."]:
    """argmax over classes; ties go to the lowest index (torch.argmax promises no order)."""
    classes = logits.shape[-1]
    first = torch.arange(classes, 0, -1, device=logits.device, dtype=torch.float32)  # reducing whole numbers takes ten times as long
    best = torch.where(logits == logits.amax(-1, keepdim=True), first, 0.0).amax(-1)
    return (classes - best.long()).clamp_max(classes - 1)


def _pick(values: Tensor, labels: Tensor) -> Tensor:
    index = labels.expand(values.shape[:-1]).unsqueeze(-1)
    return values.gather(-1, index).squeeze(-1)


def _without(values: Tensor, labels: Tensor, fill: float = -torch.inf) -> Tensor:
    index = labels.expand(values.shape[:-1]).unsqueeze(-1)
    return values.scatter(-1, index, fill)


def observe(stack: Stack, images: Images, *, member: Tensor, part: Tensor, batch: int = 1024) -> Outputs:
    """Evaluate every model of a stack on every image once: eval mode, no augmentation, nothing dropped."""
    with torch.no_grad():
        logits = torch.cat([stack.logits(images.pixels[at : at + batch].to(stack.device)) for at in range(0, len(images), batch)], 1)
    return Outputs(logits.float().cpu(), member, images.labels.cpu(), images.ids.cpu(), part, stack.seeds)


def features(stack: Stack, images: Images, batch: int = 1024) -> Float[Tensor, "k n d"]:
    """What every model's classifier head is fed on every image, in eval mode, on the stack's device.

    Raises ``InputError`` for a net whose head is not fed one row an image.
    """
    body = headless(stack)
    alike = not (body.params or body.buffers)  # the head is all there is: there is nothing to map over
    if alike:
        body = replace(body, seeds=body.seeds[:1])
    with torch.no_grad():
        rows = torch.cat([body.logits(images.pixels[at : at + batch].to(stack.device)) for at in range(0, len(images), batch)], 1)
    if rows.shape[1] != len(images):
        raise InputError(f"the classifier head of this net is fed {rows.shape[1]} rows for {len(images)} images; expected one row of features an image")
    return rows.expand(len(stack), -1, -1) if alike else rows
