"""``rum``: divide the forget set into groups, and forget them one after the other, each by a method of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Context, Method, Refiner, Scores
from unlearnlab.data.images import Images, Split
from unlearnlab.refine import seed_of
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, info, spec
from unlearnlab.stack import Stack


@dataclass(frozen=True, eq=False)
class Step:
    """One group's turn: ``split.forget`` is the group S_i, ``split.retain`` is R_i, and θ_i = ``after`` was made from θ_{i−1} = ``before``."""

    group: str
    method: Method
    split: Split
    before: Stack
    after: Stack


@spec("method", "rum", paper="arXiv:2406.01257")
class Rum:
    """Divide the forget set into groups and forget these one after the other, from the least to the most memorised, each by a fitting method.

    θ_i = A_i(θ_{i−1}, S_i, R_i) with R_i = D ∖ (S_1 ∪ … ∪ S_i): images whose turn is still to come are retained, and those that had theirs never
    return, also where nothing was done to them (``original``). Each step computes its masks from θ_{i−1} and S_i, and draws
    random numbers of its own. ``each``: the method A, or one for each group, the easiest group's first, whatever the order.
    Published: low original, mid finetune, high salun. One group is the method itself, bit for bit; ``refine`` = shuffle is the control.
    Source: Zhao et al. 2024 (protocols.md §9). Differs from the published code: every step starts from the model that the step before it left,
    and its mask and its training see the same R_i (there: some steps start anew from θ_o, and retain sets differ between stages); scores are
    oriented, so that order and retain sets agree for every one (there: for confidence they do not, and a forgotten group is learnt again).
    """

    cost: ClassVar[str] = "the sum of the groups'"
    null: ClassVar[Mapping[str, Any] | None] = None
    refine: Annotated[Refiner, Setting("how the forget set is divided into groups", kind="refiner", published="by_score")]
    each: Annotated[tuple[Method, ...], Setting("the method for all groups, or one for each, the easiest first", symbol="A", kind="method")]
    order: Annotated[Literal["ascending", "descending", "random"], Setting("which group is forgotten first: the easiest, the hardest, or any")] = "ascending"

    def __post_init__(self) -> None:
        if not self.each:
            raise InputError("method 'rum' needs a method for its groups; name one for all, or one for each, in `each`")
        for one in self.each:
            if not callable(one):
                raise InputError(f"method 'rum' cannot hold '{info(one).name}', which gives no models back for the next group")
        if not isinstance(self.refine, Refiner):  # a plugin's
            raise InputError(f"refiner '{info(self.refine).name}' does not say which score it reads; give it `score`, \"\" for none")
        names = self._names
        if names and len(self.each) not in (1, len(names), *([len(names) + 1] if self.refine.score else [])):  # images without a score are one group more
            raise self._wrong_number(names)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget", "retain"} | ({"scores"} if self.refine.score else set())).union(*(one.reads for one in self.each))

    @property
    def row(self) -> str:
        """What a study calls it."""
        names = [str(getattr(one, "row", info(one).name)) for one in self.each]
        parts = names[0] if len(set(names)) == 1 else "+".join(names)  # one method, be it with settings for each group
        name = info(self.refine).name
        groups = self.refine.score if name == "by_score" else name
        return f"rum-{groups}-{parts}{'' if self.order == 'ascending' else f'-{self.order}'}"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        for step in self.steps(stack, split, ctx):
            stack = step.after
        return stack

    def groups(self, split: Split, scores: Mapping[str, Scores]) -> dict[str, Int64[Tensor, " ids"]]:
        """The ids of every group; raises ``InputError`` where they are no division of the forget set, or not as many as there are methods."""
        groups = dict(self.refine(split, scores))
        _check_cover(info(self.refine).name, groups, split.forget)
        self._assigned(tuple(groups))
        return groups

    def steps(self, stack: Stack, split: Split, ctx: Context) -> Iterator[Step]:
        """The turns of all groups in order, each carried out when it is asked for."""
        groups = self.groups(split, ctx.scores)
        methods, left = self._assigned(tuple(groups)), split.forget
        for at, name in enumerate(self._ordered(tuple(groups), split.forget)):
            turn = torch.isin(left.ids.cpu(), groups[name]).to(left.ids.device)
            asked, left = left.rows(turn), left.rows(~turn)
            mine = replace(split, forget=asked, retain=Images.join([split.retain, left]) if len(left) else split.retain)
            after = methods[name](stack, mine, replace(ctx, seeds=_seeds(ctx.seeds, len(mine.retain)) if at else ctx.seeds))
            yield Step(name, methods[name], mine, stack, after)
            stack = after

    @property
    def _names(self) -> tuple[str, ...]:
        """What the groups are called, where the refiner knows without looking at images; also those that turn out empty."""
        return tuple(getattr(self.refine, "names", ()))

    def _assigned(self, groups: tuple[str, ...]) -> dict[str, Method]:
        """The method of every group: by name, since an empty group is left out and must not hand its method to the next."""
        if len(self.each) == 1:
            return dict.fromkeys(groups, self.each[0])
        names = (*self._names, *(name for name in groups if name not in self._names))
        if len(names) != len(self.each):
            raise self._wrong_number(names)
        return dict(zip(names, self.each, strict=True))

    def _ordered(self, groups: tuple[str, ...], forget: Images) -> tuple[str, ...]:
        if self.order == "random":
            chance = generator(seed_of(forget.ids.tolist()), "rum.order")
            return tuple(groups[at] for at in torch.randperm(len(groups), generator=chance).tolist())
        return groups if self.order == "ascending" else groups[::-1]

    def _wrong_number(self, names: tuple[str, ...]) -> InputError:
        made = f"refiner '{info(self.refine).name}' makes {len(names)} ({', '.join(names)})"
        return InputError(f"method 'rum' names {len(self.each)} methods in `each`, and {made}; give one for all groups, or one for each")


def _seeds(seeds: tuple[int, ...], retained: int) -> tuple[int, ...]:
    """Of a later turn, by how many images it retains, which no two turns share: counted on, it would draw again what a method around or within it draws."""
    return tuple(generator(seed, "rum.turn", retained).initial_seed() for seed in seeds)


def _check_cover(refiner: str, groups: Mapping[str, Int64[Tensor, " ids"]], forget: Images) -> None:
    """Refuse groups that do not name every forget image exactly once."""
    named, ids = torch.cat([torch.empty(0, dtype=torch.int64), *groups.values()]).sort().values, forget.ids.cpu().sort().values
    if torch.equal(named, ids):
        return
    for what, wrong in (("in two", named[1:][named[1:] == named[:-1]]), ("in none", ids[~torch.isin(ids, named)]), ("in one", named[~torch.isin(named, ids)])):
        if len(wrong):
            stray = ", and is not to be forgotten" if what == "in one" else ""
            raise InputError(f"refiner '{refiner}' put image id {int(wrong[0])} {what} of its groups{stray}; every forget image must be in exactly one")
