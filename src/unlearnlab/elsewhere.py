"""``elsewhere``: another forget set of the same kind, without any image of the first: what methods are tuned on."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.forgetsets import (
    Attribute,
    BackdoorForget,
    ClassForget,
    ForgetSet,
    Mislabelled,
    PartialClass,
    RandomForget,
    ScoredForgetSet,
    SubClass,
    anyone,
    class_number,
)
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, info, spec


def elsewhere(like: ForgetSet, draw: int) -> ForgetSet:
    """Another forget set of the same kind; every ``draw`` (1, 2, …) gives one that shares no image with the others."""
    return ElsewhereByScore(like, draw) if isinstance(like, ScoredForgetSet) else Elsewhere(like, draw)  # type: ignore[return-value]  # groups are chosen apart


@spec("forget", "elsewhere")
class Elsewhere:
    """Forget other images of the same kind as another forget set does, and none of its own.

    ``random``, ``partial_class``, ``attribute`` with a count: another draw from what is left. ``class``, ``sub_class``: the next one that is
    trained on, by number, after the last the first. Others: random images, as many of every class (true label), and of these as many corrupted.
    Source: ours. Differs from the published code: there is none.
    """

    like: Annotated[ForgetSet, Setting("the forget set that is spared", kind="forget")]
    draw: Annotated[int, Setting("each number chooses images that no smaller one does", ge=1)] = 1

    def __post_init__(self) -> None:
        if isinstance(self.like, ScoredForgetSet):
            raise InputError(f"forget set 'elsewhere': '{info(self.like).name}' goes by a score; say forget = 'elsewhere_by_score'")
        if isinstance(self.like, Mislabelled | BackdoorForget):
            raise InputError(
                f"forget set 'elsewhere': '{info(self.like).name}' is every image that was corrupted, and none of the kind is left;"
                " corrupt others, with the corruption 'elsewhere'"
            )

    def __call__(self, train: Images, seed: int) -> Tensor:
        own = self.like(train, seed)
        chosen, left = own, train.without(own.tolist())
        for draw in range(1, self.draw + 1):
            try:
                chosen = self._another(train, left, own, seed, draw)
            except InputError as error:
                what = f"there is no other forget set like '{info(self.like).name}' (draw {draw})"
                raise InputError(f"{what}: {error}; tune on fewer sets, or on a smaller forget set") from error
            left = left.without(chosen.tolist())
        return chosen

    def eligible(self, images: Images) -> Bool[Tensor, " n"]:
        """Anyone: controls are drawn by class, and tuning does not look at them."""
        return anyone(images)

    def _another(self, train: Images, left: Images, own: Tensor, seed: int, draw: int) -> Int64[Tensor, " ids"]:
        like = self.like
        if isinstance(like, ClassForget):
            return train.ids[train.true_labels == _after(train.true_labels, class_number(train, like.label, "class"), draw, "labels")]
        if isinstance(like, SubClass):
            values = train.columns[like.column].values
            return train.ids[values == _after(values, values[like.eligible(train)][0].item(), draw, f"values of {like.column}")]
        if isinstance(like, RandomForget | PartialClass) or (isinstance(like, Attribute) and like.count is not None and like.count <= _fit(like, left)):
            return replace(like, draw=like.draw + draw)(left, seed)
        return _composed_as(train.take(own.tolist()), left, seed, draw)


@spec("forget", "elsewhere_by_score")
class ElsewhereByScore:
    """Forget the images that a forget set by score would choose if its own were not there: the same band of what is left.

    Source: ours. Differs from the published code: there is none.
    """

    like: Annotated[ScoredForgetSet, Setting("the forget set that is spared", kind="forget")]
    draw: Annotated[int, Setting("each number chooses images that no smaller one does", ge=1)] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.like, ScoredForgetSet):
            raise InputError(f"forget set 'elsewhere_by_score': '{info(self.like).name}' goes by no score; say forget = 'elsewhere'")

    @property
    def score(self) -> str:
        return self.like.score

    @property
    def scheme(self) -> str:
        return str(getattr(self.like, "scheme", self.score))

    def groups(self, train: Images, seed: int, scores: Scores) -> dict[str, Tensor]:
        found = self.like.groups(train, seed, scores)
        for _ in range(self.draw):
            train = train.without(torch.cat(list(found.values())).tolist())
            found = self.like.groups(train, seed, scores)
        return found

    def eligible(self, images: Images) -> Bool[Tensor, " n"]:
        return anyone(images)


def _fit(like: Attribute, images: Images) -> int:
    return int(like.eligible(images).sum())


def _after(values: Tensor, own: float, draw: int, what: str) -> float:
    """The ``draw``-th value after ``own`` among those there are, in order, after the last the first."""
    there = torch.unique(values).tolist()
    if draw >= len(there):
        raise InputError(f"the training images have {len(there)} different {what}, the audited one among them")
    return float(there[(there.index(own) + draw) % len(there)])


def _composed_as(own: Images, left: Images, seed: int, draw: int) -> Int64[Tensor, " ids"]:
    """Random ids with as many images of each class, corrupted and not, as these images have."""
    chosen = []
    for label in torch.unique(own.true_labels).tolist():
        for corrupted in (False, True):
            count = int(((own.true_labels == label) & (own.corrupted == corrupted)).sum())
            ids = left.ids[(left.true_labels == label) & (left.corrupted == corrupted)]
            if count > len(ids):
                raise InputError(f"it needs {count} {'corrupted' if corrupted else 'clean'} images of class {label}, and {len(ids)} are left")
            chosen.append(ids[torch.randperm(len(ids), generator=generator(seed, f"forget.elsewhere.{draw}", label, int(corrupted)))[:count]])
    return torch.cat(chosen).sort().values
