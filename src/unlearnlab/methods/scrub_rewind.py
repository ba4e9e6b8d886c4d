"""``scrub_rewind``: SCRUB, then back to the epoch at which the forget set is forgotten just as well as images never seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.scrub import (
    DecayAt,
    ForgetBatch,
    LabelWeight,
    MaxEpochs,
    RetainBatch,
    Scrub,
    ScrubEpochs,
    ScrubRate,
    ScrubUpdate,
    TeacherWeight,
    Temperature,
)
from unlearnlab.methods.settings import Augment, BatchNorm
from unlearnlab.methods.waypoints import Waypoints, logits_on, pick
from unlearnlab.outputs import lowest_argmax
from unlearnlab.spec import InputError, fields, spec
from unlearnlab.stack import Stack


@spec("method", "scrub_rewind", paper="arXiv:2302.09880")
class ScrubRewind:
    """Run SCRUB to its end, then go back to the epoch at which the model errs on the forget set as it does on similar images it never saw.

    err_f(k): error on S after k = 0…E epochs (0: the original); ref: error, after E epochs, on the validation images whose classes occur
    in S, under the labels that most images of S of the same true class bear: where S is confused cats, cats called dogs are the like of it.
    Each member returns to its own k with the smallest |err_f(k) − ref|, the smallest k on ties. Settings as in ``scrub``.
    Source: Kurmanji et al. 2023 ("SCRUB+R"; methods.md §2.6).
    Differs from the published code: the original is one of the candidates (there: index 0 is asked for but was never stored); the
    reference comes from validation images (ports: from the test set).
    """

    reads: ClassVar[frozenset[str]] = Scrub.reads | {"validation"}
    cost: ClassVar[str] = "E + M·n_f/n_r, and as much again forward through the original; forward also (E+1)·n_f/n_r and validation images"
    null: ClassVar[Mapping[str, Any] | None] = Scrub.null
    label_weight: LabelWeight = Scrub.label_weight
    teacher_weight: TeacherWeight = Scrub.teacher_weight
    temperature: Temperature = Scrub.temperature
    max_epochs: MaxEpochs = Scrub.max_epochs
    decay_at: DecayAt = Scrub.decay_at
    lr: ScrubRate = Scrub.lr
    epochs: ScrubEpochs = Scrub.epochs
    batch: RetainBatch = Scrub.batch
    forget_batch: ForgetBatch = Scrub.forget_batch
    optimizer: ScrubUpdate = Scrub.optimizer
    bn: BatchNorm = Scrub.bn
    augment: Augment = Scrub.augment

    def __post_init__(self) -> None:
        self._scrub()  # its checks are ours

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        forget, scrub = split.forget, self._scrub()
        alike = split.validation.rows(torch.isin(split.validation.labels, forget.labels))
        if not len(alike):
            classes = ", ".join(str(c) for c in sorted(set(forget.labels.tolist())))
            raise InputError(f"method 'scrub_rewind': no validation image has a class of the forget set ({classes}); give some, or use 'scrub'")
        stream, ends = scrub.passes(split, ctx)
        alike = replace(alike, labels=labelled_as(forget, alike))
        way = Waypoints(stack, ends[1:-1], ctx.progress)
        last = scrub.train(stack, stream, ends, ctx, way.keep)
        # |wrong_f/n_f − wrong_v/n_v| in whole numbers, times n_f·n_v, so that ties are ties
        reference = mistakes(last, alike, ctx) * len(forget)
        found, gap = stack, (mistakes(stack, forget, ctx) * len(alike) - reference).abs()
        for step in ends[1:]:
            then = last if step == ends[-1] else way.at(step)
            now = (mistakes(then, forget, ctx) * len(alike) - reference).abs()
            found, gap = pick(now < gap, then, found), torch.minimum(now, gap)
        return replace(found, diverged=last.diverged)

    def _scrub(self) -> Scrub:
        return Scrub(**{field.name: getattr(self, field.name) for field in fields(Scrub)})


def labelled_as(forget: Images, images: Images) -> Int64[Tensor, " n"]:
    """For each of these images, the label that most forget images of its class bear; its own where they are of two minds, or none is of its class."""
    found = torch.zeros(images.classes, images.classes, device=forget.labels.device)
    found.index_put_((forget.true_labels, forget.labels), torch.ones(len(forget), device=found.device), accumulate=True)
    found.diagonal().add_(0.5)
    return found.argmax(1).to(images.labels.device)[images.true_labels]


def mistakes(stack: Stack, images: Images, ctx: Context) -> Int64[Tensor, " k"]:
    """How many of these images each member gets wrong."""
    return (lowest_argmax(logits_on(stack, images, ctx.progress)) != images.labels.to(stack.device)).sum(1)
