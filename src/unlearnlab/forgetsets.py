"""Who is forgotten: each spec chooses ids from the training set. Ids are rows of the release; order has no meaning."""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.data.partition import stratified
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec


class ForgetSet(Protocol):
    """Chooses ids to forget from the training images; the seed is the study's."""

    def __call__(self, train: Images, seed: int) -> Int64[Tensor, " ids"]: ...


@spec("forget", "random")
class RandomForget:
    """Forget random training images, optionally a fixed number of mislabelled ones among them."""

    count: Annotated[int, Setting("images to forget", ge=1)] = 62
    mislabelled: Annotated[int | None, Setting("how many of them have a flipped label (none given: as they come)", ge=0)] = None
    by_class: Annotated[bool, Setting("the same share of every class")] = False
    draw: Annotated[int, Setting("another number draws another forget set", ge=0)] = 0

    def __call__(self, train: Images, seed: int) -> Tensor:
        if self.mislabelled is None:
            return self._choose(train, self.count, seed, "any")
        if self.mislabelled > self.count:
            raise InputError(f"forget set 'random': mislabelled = {self.mislabelled} is more than count = {self.count}")
        kinds = {"mislabelled": (train.mislabelled, self.mislabelled), "clean": (~train.mislabelled, self.count - self.mislabelled)}
        return torch.cat([self._choose(train.rows(mask), count, seed, kind) for kind, (mask, count) in kinds.items()]).sort().values

    def _choose(self, images: Images, count: int, seed: int, kind: str) -> Tensor:
        if count > len(images):
            raise InputError(f"forget set 'random' asks for {count}{'' if kind == 'any' else ' ' + kind} images, but the training set has {len(images)}")
        purpose = f"forget.{self.draw}.{kind}"
        rows = (
            stratified(images.true_labels, count, seed, purpose) if self.by_class else torch.randperm(len(images), generator=generator(seed, purpose))[:count]
        )
        return images.ids[rows].sort().values


@spec("forget", "class")
class ClassForget:
    """Forget every training image of one class (by its release label)."""

    label: Annotated[int, Setting("the class", ge=0)] = 0

    def __call__(self, train: Images, seed: int) -> Tensor:
        if self.label >= train.classes:
            raise InputError(f"forget set 'class': label = {self.label}, but the classes are 0 to {train.classes - 1}")
        return train.ids[train.true_labels == self.label]


@spec("forget", "ids")
class IdsForget:
    """Forget the training images with these ids."""

    ids: Annotated[tuple[int, ...], Setting("rows of the release")]

    def __call__(self, train: Images, seed: int) -> Tensor:
        return torch.tensor(self.ids, dtype=torch.int64)
