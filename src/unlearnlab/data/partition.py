"""Who is trained on and who is held out: a stratified split from its own seed, and the held-out controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Bool
from torch import Tensor

from unlearnlab.data.corrupt import Clean, Corruption
from unlearnlab.data.images import Facts, Images, Split
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec


@dataclass(frozen=True, eq=False)
class Parts:
    """A data set divided before anything is forgotten."""

    train: Images
    held_out: Images
    test: Images

    def to(self, device: torch.device | str) -> Parts:
        return Parts(self.train.to(device), self.held_out.to(device), self.test.to(device))


@spec("partition", "stratified")
class Stratified:
    """Random parts of given sizes with the same share of every class (as near as whole images allow)."""

    train: Annotated[int, Setting("images trained on", ge=2)] = 500
    held_out: Annotated[int, Setting("images held out for control and validation", ge=1)] = 297
    test: Annotated[int, Setting("images for the test accuracy", ge=1)] = 1000

    def sizes(self, facts: Facts | None) -> tuple[int, int, int]:
        """How many images will be trained on, held out and tested on."""
        return self.train, self.held_out, self.test

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


@spec("partition", "released")
class Released:
    """The release's own training and test images; some of its training images are held out for control and validation.

    ``held_out`` = 0.1 with ``by_class`` is the published split of CIFAR: 45 000 trained on, 5 000 held out.
    """

    held_out: Annotated[float, Setting("share of the released training images that is held out", gt=0, lt=1)] = 0.1
    by_class: Annotated[bool, Setting("the same share of every class")] = True
    train: Annotated[int | None, Setting("train on so many of the rest only (none given: on all)", ge=2)] = None
    test: Annotated[int | None, Setting("test on so many of the released test images only (none given: on all)", ge=1)] = None

    def sizes(self, facts: Facts | None) -> tuple[int, int, int] | None:
        """How many images will be trained on, held out and tested on; None where the release is not known, or has no test images."""
        if facts is None or not facts.test:
            return None
        held = self._held(facts.train)
        return self.train or facts.train - held, held, self.test or facts.test

    def __call__(self, images: Images, seed: int) -> Parts:
        split = images.columns.get("split")
        if split is None or not 0 < int(split.values.sum()) < len(images):
            raise InputError("partition 'released': this data set comes without test images of its own; use partition 'stratified', which draws them")
        pool, test = images.rows(split.values == 0), images.rows(split.values == 1)
        held = self._choose(pool, self._held(len(pool)), seed, "partition.held_out")
        rest = pool.rows(~torch.isin(torch.arange(len(pool)), held))
        if self.train is not None:
            rest = rest.rows(self._choose(rest, self.train, seed, "partition.train"))
        if self.test is not None:
            test = test.rows(self._choose(test, self.test, seed, "partition.test"))
        return Parts(rest, pool.rows(held), test)

    def _held(self, pool: int) -> int:
        return round(self.held_out * pool)

    def _choose(self, images: Images, count: int, seed: int, purpose: str) -> Tensor:
        if not 0 < count <= len(images):
            raise InputError(f"partition 'released' asks for {count} of {len(images)} images ({purpose.partition('.')[2]}); ask for fewer, and at least one")
        if self.by_class:
            return stratified(images.true_labels, count, seed, purpose)
        return torch.randperm(len(images), generator=generator(seed, purpose))[:count].sort().values


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


Chosen = Callable[[Images], Bool[Tensor, " n"]]


def split_for(
    parts: Parts, forget: Tensor, seed: int, *, corruption: Corruption | None = None, eligible: Chosen | None = None, drop_from_test: bool = False
) -> Split:
    """The split for a forget set (ids): retain is the rest of train, control is drawn from the held-out images as the forget set was.

    ``corruption``: what was done to the training images, to be done to controls alike (none given: flipped labels are flipped
    uniformly). ``eligible``: who could have been forgotten (a sub-class, an age); only such images become controls.
    ``drop_from_test``: leave such images out of the test set.
    """
    ids = check_forget(parts.train, forget)
    forgotten = parts.train.take(ids)
    control, validation = draw_control(forgotten, parts.held_out, seed, corruption or Clean(), eligible)
    test = parts.test
    if drop_from_test and eligible is not None:
        test = test.rows(~eligible(test))
        if not len(test):
            raise InputError("drop_from_test leaves no test image: every one is of the kind that is forgotten")
    split = Split(forgotten, parts.train.without(ids), validation, control, test)
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
        what = f"forget id {outside[0]} is not in the training set of {len(train)} images ({len(outside)} such id(s))"
        raise InputError(f"{what}; forget only what was trained on (forget.json of `unlearnlab forget` lists those ids)")
    if len(ids) == len(train):
        raise InputError(f"the forget set is the whole training set ({len(ids)} images): nothing would be left to retain; forget fewer, or train a new model")
    return ids


def draw_control(forget: Images, held_out: Images, seed: int, corruption: Corruption | None = None, eligible: Chosen | None = None) -> tuple[Images, Images]:
    """Control and validation images. Control: as many held-out images as possible with the forget set's composition.

    Classes (by true label) in the forget set's proportion, exactly as many corrupted per clean one (to the nearest image
    where the held-out images are too few for that), corrupted as the training images were; but at most nine tenths of the
    held-out images, and of those of a corrupted forget set's classes. What is left is validation, as the release has it.
    """
    corruption, classes = corruption or Clean(), forget.classes
    fit = torch.ones(len(held_out), dtype=torch.bool) if eligible is None else eligible(held_out)
    wanted = torch.bincount(forget.true_labels, minlength=classes)
    there = torch.bincount(held_out.true_labels[fit], minlength=classes)
    shared = (wanted > 0) & (there > 0)
    if not bool(shared.any()):
        what = "is of the kind that is forgotten" if eligible is not None and not bool(fit.any()) else "has a class of the forget set"
        how = "hold out more images, or forget by a file of ids, whose controls are drawn by class"
        raise InputError(f"no held-out image {what}: there are no controls to compare with; {how}")
    scale = min(Fraction(int(h), int(w)) for h, w in zip(there[shared], wanted[shared], strict=True))  # exact: floats lose an image now and then
    corrupted = int(forget.corrupted.sum())
    most = int(there[shared].sum()) if corrupted else len(held_out)  # confused classes must be seen as they are as well: validation needs some
    scale = min(scale, Fraction(9 * most, 10 * int(wanted[shared].sum())))
    caps = [math.floor(scale * int(w)) if s else 0 for w, s in zip(wanted, shared, strict=True)]
    if not sum(caps):  # so many classes, and so few images held out, that not even one of each fits
        caps = [int(s) for s in shared]
    unit = len(forget) // math.gcd(len(forget), corrupted)  # the least number with exactly the forget set's share
    total = sum(caps) // unit * unit or sum(caps)
    counts = apportion(wanted.tolist(), total, caps)
    hit = torch.bincount(forget.true_labels[forget.corrupted], minlength=classes).tolist()
    room = [count if some else 0 for count, some in zip(counts, hit, strict=True)]  # a class that no corruption touched stays as it is
    changed = apportion(hit, min(round(total * corrupted / len(forget)), sum(room)), room)
    chance = generator(seed, "control.who")
    chosen, alike = [], []
    for label in range(classes):
        members = ((held_out.true_labels == label) & fit).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=chance)]
        chosen.append(members[: counts[label]])
        alike.append(members[: changed[label]])
    rows = torch.cat(chosen).sort().values
    control = corruption.alike(held_out, torch.cat(alike).sort().values, seed).rows(rows)
    return control, held_out.rows(~torch.isin(torch.arange(len(held_out)), rows))
