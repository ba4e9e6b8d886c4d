"""``memorisation``: how much an image's own presence in training helps models to answer it right, and its presence to answer others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import PARTS
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError, Setting, info, spec

ENTRIES = 2**22  # numbers held besides the matrices at a time: 32 MiB in int64


@dataclass(frozen=True, eq=False)
class Memorised:
    """What ``estimate_memorisation`` found for every image; NaN where one of the counts is 0.

    ``right_in``, ``right_out``: share of right answers among the models that were trained on the image, and among the others.
    """

    values: Float64[Tensor, " n"]
    right_in: Float64[Tensor, " n"]
    right_out: Float64[Tensor, " n"]
    stderr: Float64[Tensor, " n"]
    n_in: Int64[Tensor, " n"]
    n_out: Int64[Tensor, " n"]


def estimate_memorisation(correct: Bool[Tensor, "k n"], member: Bool[Tensor, "k n"]) -> Memorised:
    """Share of right answers among the models that were trained on an image, less the share among the others.

    ``correct[k, i]``: does model k answer image i as it is labelled; ``member[k, i]``: was it trained on it. NumPy arrays will do.
    mem = a − b, standard error sqrt(a(1−a)/n_in + b(1−b)/n_out), which says 0 where all models of either side agree.
    """
    right, inside = _matrix(correct, "correct"), _matrix(member, "member")
    if right.shape != inside.shape:
        raise InputError(f"correct is {_shape(right)} and member {_shape(inside)}; expected the same models and images in both")
    n_in = inside.sum(0)
    n_out = len(inside) - n_in
    right_in = (right & inside).sum(0)
    a, b = right_in.double() / n_in, (right.sum(0) - right_in).double() / n_out  # 0/0 is NaN
    return Memorised(a - b, a, b, (a * (1 - a) / n_in + b * (1 - b) / n_out).sqrt(), n_in, n_out)


def estimate_influence(correct: Bool[Tensor, "k t"], member: Bool[Tensor, "k n"]) -> Float32[Tensor, "n t"]:
    """For every training image i and other image j: by how much training on i raises the share of models that answer j right.

    ``correct[k, j]``: does model k answer image j as it is labelled; ``member[k, i]``: was it trained on image i. NumPy arrays will do.
    infl = (MᵀC)/n_in − ((1−M)ᵀC)/n_out, a row for each training image; NaN where one of the counts is 0.
    """
    right, inside = _matrix(correct, "correct"), _matrix(member, "member")
    if len(right) != len(inside):
        raise InputError(f"correct is {_shape(right)} and member {_shape(inside)}; expected the same models in both")
    c, n_in = right.float(), inside.sum(0).unsqueeze(1)
    n_out, total = len(inside) - n_in, c.sum(0)
    found = torch.empty(inside.shape[1], right.shape[1])
    piece = max(1, ENTRIES // max(1, right.shape[1], len(right)))
    for rows in (slice(at, at + piece) for at in range(0, len(found), piece)):
        both = inside[:, rows].T.float() @ c  # whole numbers, exact in float32 up to 2^24 models
        found[rows] = both / n_in[rows] - (total - both) / n_out[rows]
    return found


@spec("score", "memorisation", paper="arXiv:2008.03703")
class Memorisation:
    """How much more often models answer a training image right if they were trained on it.

    mem(i) = Pr[f(x_i) = y_i | i ∈ T] − Pr[f(x_i) = y_i | i ∉ T] over ``models`` = K random parts T of the training set, each a ``share`` of it, and as
    many models trained from scratch by the study's own recipe; y_i is the label that was trained on. Beside it: ``stderr``, ``n_in``, ``n_out``
    (how many models were trained on the image, and how many not), ``right_in``, ``right_out`` (which shares of these are
    right); NaN where one of the counts is 0.
    ``influence``: also infl(i → j), the same of a test image j, float32 [training images, test images], the columns in the order of the
    test images of the data set as divided (``Parts.test``, part test of ``Outputs``). 2 GB for CIFAR-10.
    Models are trained in chunks, in the order of their seeds: a larger K trains only those that are new (and again the last chunk, if K was no
    multiple of the chunk: 8 small nets), and ``datamodels`` of the same share reads the same ones. Their logits are kept on all images,
    4·classes + 1 bytes an image and model: 74 kB a model on digits (30 MB for 400), 2.5 MB on CIFAR-10 (1 GB; 1.6 GB for a net so large that a
    chunk is one model, since each repeats ids and labels), 24 MB on CIFAR-100.
    Source: Feldman 2020; Feldman & Zhang 2020, section 2 (protocols.md §6). Differs from the published code: |T| = round(share·n), not int(share·n),
    which in floating point is one less at some n, such as 45 000; NaN, not 0, where a side is empty; net and recipe are those of the models
    that will be unlearned (RUM: another stem and recipe); logits are kept and not correctness alone, since attributions need them too.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "memorisation"
    models: Annotated[
        int,
        Setting("models, each trained on a random part of the training set", symbol="K", ge=2, published="400 (CIFAR-10), 2 000 (MNIST), 4 000 (CIFAR-100)"),
    ] = 400
    share: Annotated[float, Setting("share of the training set that each model sees", gt=0, lt=1, published="0.7")] = 0.7
    influence: Annotated[bool, Setting("also say by how much each training image helps with each test image")] = False

    def __call__(self, seen: Outputs) -> Scores:
        if len(seen) != self.models:
            raise InputError(f"score 'memorisation' was given outputs of {len(seen)} models; expected models = {self.models}")
        train, test = (seen.part == PARTS.index(name) for name in ("retain", "test"))
        right, inside = _right(seen), seen.member[:, train]
        found = estimate_memorisation(right[:, train], inside)
        beside = {name: getattr(found, name) for name in ("stderr", "n_in", "n_out", "right_in", "right_out")}
        if self.influence:
            beside["influence"] = estimate_influence(right[:, test], inside)
        return Scores(info(self).name, seen.ids[train], found.values, self.scale, beside)


def _right(seen: Outputs) -> Bool[Tensor, "models examples"]:
    """Who answers what right, read off a few models at a time: the logits may be gigabytes."""
    piece = max(1, ENTRIES // max(1, seen.logits[0].numel()))
    found = []
    for at in range(0, len(seen), piece):
        some = seen.rows(range(at, min(at + piece, len(seen))))
        some.require_finite()  # a model that diverged answers one class throughout, which would look like knowledge
        found.append(some.predicted == seen.labels)
    return torch.cat(found)


def _matrix(given: Any, name: str) -> Bool[Tensor, "k n"]:
    held = torch.as_tensor(given)
    if held.dim() != 2:
        raise InputError(f"{name} has the shape {list(held.shape)}; expected [models, images]")
    if held.dtype != torch.bool and not bool(((held == 0) | (held == 1)).all()):
        raise InputError(f"{name} must say yes or no (true or false, 1 or 0) for each model and image; got other numbers")
    return held.bool()


def _shape(held: Tensor) -> str:
    return f"{held.shape[0]} models × {held.shape[1]} images"
