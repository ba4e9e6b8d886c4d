"""Ensembles that belong together: the same examples in the same order, and what to know before comparing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.data.images import PARTS
from unlearnlab.layouts.arrays import Held, NotFinite
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError

Layout: TypeAlias = Literal["fwp", "study", "plain"]
FORGET, RETAIN, TEST = (PARTS.index(name) for name in ("forget", "retain", "test"))
KEPT = ("retain", "forget", "test")  # the parts of a metrics.csv


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Models of one kind, by what they say. ``accuracies``: shares by part (``KEPT``), as a metrics.csv has them; empty where there is none."""

    name: str
    outputs: Outputs
    accuracies: Mapping[str, Float64[Tensor, " models"]]
    source: Path


@dataclass(frozen=True, eq=False)
class Folder:
    """What a folder of logits holds; all ensembles cover the same examples in the same order.

    Examples are all ``forget`` where no file says otherwise, and numbered by row where none has ids. Models without seeds are numbered
    on from the oracles', so that none is taken for an oracle's pair. ``notes``: what the reader should know.
    """

    path: Path
    layout: Layout
    oracles: Ensemble
    originals: Ensemble | None
    approaches: tuple[Ensemble, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What there is in a folder, before anything large is read. ``approaches``: by name."""

    layout: Layout
    oracles: Callable[[], Held]
    approaches: Mapping[str, Callable[[], Held]]
    originals: Callable[[], Held] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def accuracies(outputs: Outputs) -> dict[str, Float64[Tensor, " models"]]:
    """The share of each part of ``KEPT`` that each model gets right; of the parts that have examples."""
    parts = {name: outputs.part == PARTS.index(name) for name in KEPT}
    right = outputs.predicted == outputs.labels
    return {name: right[:, mask].double().mean(1) for name, mask in parts.items() if bool(mask.any())}


def together(path: Path, listing: Listing, approach: str | None = None) -> Folder:
    """Read what is listed (``approach``: of the approaches only this one) and see that it fits together."""
    oracles, left_out = _several(listing.oracles()), dict[str, str]()
    names = sorted(listing.approaches) if approach is None else [approach]
    stand_in = next((name for name in ("originals", "original") if name in listing.approaches), None) if listing.originals is None else None
    held = dict[str, Held]()
    for name in sorted({*names, *([] if stand_in is None else [stand_in])}):
        try:
            held[name] = _several(listing.approaches[name]())
        except NotFinite as error:
            if listing.layout != "study" or name in (approach, stand_in):  # a study goes on without a method that diverged, and so do we
                raise
            left_out[name] = f"{name}: is left out: {error}"
    if not held:
        raise InputError(next(iter(left_out.values())))
    if strange := [name for name in held if not name.isprintable()]:  # they steer terminals, and no figure can hold them
        raise InputError(f"{path} holds an approach called {strange[0]!a}, with signs that cannot be printed; give it another name")
    originals = None if listing.originals is None else listing.originals()

    everything = [oracles, *([] if originals is None else [originals]), *held.values()]
    for one in everything[1:]:
        _same_examples(oracles, one)
    ids, part = _shared("ids", everything), _shared("part", everything)
    ids = torch.arange(len(oracles.labels)) if ids is None else ids
    part = torch.full_like(oracles.labels, FORGET) if part is None else part
    _check_examples(path, ids, part)

    first = 0 if oracles.models is None else min(oracles.models)
    last = len(oracles.logits) - 1 if oracles.models is None else max(oracles.models)
    knew, learnt = part == RETAIN, (part == RETAIN) | (part == FORGET)
    by_name = {name: _ensemble(name, one, ids, part, learnt, last + 1) for name, one in held.items()}
    judges = _ensemble("oracles", oracles, ids, part, knew, first)
    if bool((seen := judges.outputs.of("forget").member).any()):
        at = int(seen.any(0).nonzero()[0])
        raise InputError(
            f"{oracles.file}: some oracle was trained on id {int(judges.outputs.of('forget').ids[at])}, which is to be forgotten; oracles never saw it"
        )
    before = None if originals is None else _ensemble("originals", originals, ids, part, learnt, last + 1)
    notes = [*listing.notes, *left_out.values(), *(note for one in everything for note in one.notes)]
    if stand_in is not None:
        before = replace(by_name[stand_in], name="originals")
        notes.append(f"'{stand_in}' is taken for the originals, as that is its name")
    approaches = tuple(by_name[name] for name in names if name in by_name)
    return Folder(path, listing.layout, judges, before, approaches, (*notes, *_repeats(judges, approaches)))


def _several(held: Held) -> Held:
    if len(held.logits) < 2:
        raise InputError(f"{held.file} holds one model; a distribution needs at least 2: train it with more seeds")
    return held


def _same_examples(oracles: Held, one: Held) -> None:
    here, there = one.logits.shape, oracles.logits.shape
    for at, what in ((2, "classes"), (1, "examples")):
        if here[at] != there[at]:
            raise InputError(f"{one.file} has {here[at]} {what} and {oracles.file} has {there[at]}; expected the same {what} in every file")
    for what in ("ids", "labels", "part"):
        a, b = getattr(oracles, what), getattr(one, what)
        if a is None or b is None or torch.equal(a, b):
            continue
        differ = (a != b).nonzero()[:, 0]
        at = int(differ[0])
        same = bool(torch.equal(a.sort().values, b.sort().values))
        hint = "the same ones in another order: sort both by id" if same and what == "ids" else "save the same examples in the same order"
        first = f"first: row {at}, {_word(what, b[at])} and {_word(what, a[at])}"
        raise InputError(f"{what} of {one.file} and {oracles.file} differ on {len(differ)} of {len(a)} examples ({first}); {hint}")


def _word(what: str, value: Tensor) -> str:
    return PARTS[int(value)] if what == "part" else str(int(value))


def _shared(what: str, everything: Sequence[Held]) -> Tensor | None:
    """What any of the files says; those that say it were compared with the oracles, and are here with one another."""
    said = [one for one in everything if getattr(one, what) is not None]
    for one in said[1:]:
        _same_examples(said[0], one)
    return getattr(said[0], what) if said else None


def _check_examples(path: Path, ids: Int64[Tensor, " n"], part: Int64[Tensor, " n"]) -> None:
    for who in (part != TEST, part == TEST):  # test images may be numbered anew
        ordered, _ = ids[who].sort()
        if len(twice := ordered[1:][ordered[1:] == ordered[:-1]]):
            parts = sorted({PARTS[i] for i in part[who & (ids == twice[0])].tolist()}, key=PARTS.index)
            where = f"both {' and '.join(parts)}" if len(parts) > 1 else f"there twice, as {parts[0]}"
            raise InputError(f"{path}: id {int(twice[0])} is {where} ({len(twice)} such id(s)); expected every id once: an image is either forgotten or kept")
    if not bool((part == FORGET).any()):
        held = sorted({PARTS[i] for i in part.tolist()}, key=PARTS.index)
        raise InputError(f"{path} has no example of part forget (it has: {', '.join(held)}); expected the logits of the images to be forgotten")


def _ensemble(name: str, held: Held, ids: Tensor, part: Tensor, member: Bool[Tensor, " n"], first: int) -> Ensemble:
    models = tuple(range(first, first + len(held.logits))) if held.models is None else held.models
    trained = member.expand(len(held.logits), -1) if held.member is None else held.member
    return Ensemble(name, Outputs(held.logits, trained, held.labels, ids, part, models), held.accuracies, held.file)


def _repeats(oracles: Ensemble, approaches: Sequence[Ensemble]) -> list[str]:
    """Models that are there twice, bit for bit: a mistake that no metric can see through."""
    judges, *known = ([hash(rows.numpy().tobytes()) for rows in one.outputs.logits] for one in (oracles, *approaches))
    notes = []
    for one, marks in zip((oracles, *approaches), (judges, *known), strict=True):
        if twice := len(marks) - len(set(marks)):
            notes.append(f"{one.name}: {twice} of {len(marks)} models repeat another one, bit for bit")
    for at, (one, marks) in enumerate(zip(approaches, known, strict=True)):
        if marks == judges:
            notes.append(f"{one.name}: holds the oracles themselves, bit for bit: compared with them it says nothing")
        elif same := sum(mark in set(judges) for mark in marks):
            notes.append(f"{one.name}: {same} of {len(marks)} models are oracles, bit for bit")
        for other, others in zip(approaches[at + 1 :], known[at + 1 :], strict=True):
            if marks == others:
                notes.append(f"{one.name} and {other.name} hold the same models, bit for bit")
    return notes
