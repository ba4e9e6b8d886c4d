"""Who is trained on and who is held out: a stratified split from its own seed, and the held-out controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from unlearnlab.data.corrupt import flip
from unlearnlab.data.images import Images, Split
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec


@dataclass(frozen=True, eq=False)
class Parts:
    """A data set divided before anything is forgotten."""

    train: Images
    held_out: Images
    test: Images


@spec("partition", "stratified")
class Stratified:
    """Random parts of given sizes with the same share of every class (as near as whole images allow)."""

    train: Annotated[int, Setting("images trained on", ge=2)] = 500
    held_out: Annotated[int, Setting("images held out for control and validation", ge=1)] = 297
    test: Annotated[int, Setting("images for the test accuracy", ge=1)] = 1000

    def __call__(self, images: Images, seed: int) -> Parts:
        wanted = self.train + self.held_out + self.test
        if wanted > len(images):
            raise InputError(
                f"partition 'stratified' asks for {self.train} + {self.held_out} + {self.test} = {wanted} images, but there are {len(images)}; ask for fewer"
            )
        rows = torch.arange(len(images))
        chosen = []
        for name in ("train", "held_out", "test"):
            at = stratified(images.true_labels[rows], getattr(self, name), seed, f"partition.{name}")
            chosen.append(images.rows(rows[at]))
            rows = rows[~torch.isin(torch.arange(len(rows)), at)]
        return Parts(*chosen)


def stratified(labels: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Ascending positions of ``count`` random examples, each class in proportion (largest remainders, ties to the lower class)."""
    chance = generator(seed, purpose)
    sizes = torch.bincount(labels)
    take = apportion(sizes.tolist(), count)
    chosen = [torch.empty(0, dtype=torch.int64)]  # to choose none of none is no error
    for label, k in enumerate(take):
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=chance)[:k]])
    return torch.cat(chosen).sort().values


def apportion(weights: Sequence[int], total: int, caps: Sequence[int] | None = None) -> list[int]:
    """Divide ``total`` in proportion to ``weights`` into whole numbers of at most ``caps`` (largest remainders)."""
    caps = list(weights) if caps is None else list(caps)
    whole = sum(weights) or 1
    exact = [total * weight / whole for weight in weights]
    given = [min(math.floor(x), cap) for x, cap in zip(exact, caps, strict=True)]
    # the most underserved first; ties to the lower index; never above the cap
    while sum(given) < total:
        open_ = [i for i, cap in enumerate(caps) if given[i] < cap]
        if not open_:
            raise InputError(f"cannot choose {total} images: only {sum(caps)} fit")
        given[max(open_, key=lambda i: (exact[i] - given[i], -i))] += 1
    return given


def split_for(parts: Parts, forget: Tensor, seed: int) -> Split:
    """The split for a forget set (ids): retain is the rest of train, control is drawn from the held-out images as the forget set was."""
    ids = check_forget(parts.train, forget)
    forgotten = parts.train.take(ids)
    control, validation = draw_control(forgotten, parts.held_out, seed)
    split = Split(forgotten, parts.train.without(ids), validation, control, parts.test)
    split.check()
    return split


def check_forget(train: Images, forget: Tensor) -> list[int]:
    """The ids to forget, sorted; raises ``InputError`` if empty, repeated, outside the training set, or all of it."""
    ids: list[int] = sorted(int(i) for i in forget)
    if not ids:
        raise InputError("the forget set is empty: name at least one image to forget")
    twice = [a for a, b in pairwise(ids) if a == b]
    if twice:
        raise InputError(f"forget id {twice[0]} is given twice; give every id once")
    outside = sorted(set(ids) - set(train.ids.tolist()))
    if outside:
        raise InputError(
            f"forget id {outside[0]} is not in the training set of {len(train)} images ({len(outside)} such id(s)); forget only what was trained on"
        )
    if len(ids) == len(train):
        raise InputError(f"the forget set is the whole training set ({len(ids)} images): nothing would be left to retain; forget fewer, or train a new model")
    return ids


def draw_control(forget: Images, held_out: Images, seed: int) -> tuple[Images, Images]:
    """Control and validation images. Control: as many held-out images as possible with the forget set's composition.

    Classes (by true label) in the forget set's proportion, exactly as many mislabelled per clean one (to the nearest image
    where the held-out images are too few for that), flipped by the same symmetric corruption. What is left is validation,
    with its labels as they are.
    """
    classes = forget.classes
    wanted = torch.bincount(forget.true_labels, minlength=classes)
    there = torch.bincount(held_out.true_labels, minlength=classes)
    shared = (wanted > 0) & (there > 0)
    if not bool(shared.any()):
        raise InputError("no held-out image has a class of the forget set: there are no controls to compare with; hold out more images")
    scale = min(Fraction(int(h), int(w)) for h, w in zip(there[shared], wanted[shared], strict=True))  # exact: floats lose an image now and then
    caps = [math.floor(scale * int(w)) if s else 0 for w, s in zip(wanted, shared, strict=True)]
    mislabelled = int(forget.mislabelled.sum())
    unit = len(forget) // math.gcd(len(forget), mislabelled)  # the least number with exactly the forget set's share
    total = sum(caps) // unit * unit or sum(caps)
    counts = apportion(wanted.tolist(), total, caps)
    flips = apportion(torch.bincount(forget.true_labels[forget.mislabelled], minlength=classes).tolist(), round(total * mislabelled / len(forget)), counts)
    chance = generator(seed, "control.who")
    chosen, flipped = [], []
    for label in range(classes):
        members = (held_out.true_labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=chance)]
        chosen.append(members[: counts[label]])
        flipped.append(members[: flips[label]])
    rows = torch.cat(chosen).sort().values
    control = flip(held_out, torch.cat(flipped).sort().values, seed, "control.to").rows(rows)
    return control, held_out.rows(~torch.isin(torch.arange(len(held_out)), rows))
