"""Who is forgotten: each spec chooses ids from the training set. Ids are rows of the release; order has no meaning."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.checkpoints import load_plain
from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.data.partition import stratified
from unlearnlab.data.predicate import check_condition, holds
from unlearnlab.scores.entanglement import entanglements, features_of
from unlearnlab.seeds import generator
from unlearnlab.spec import ALIASES, InputError, Setting, lookup, spec, suggest

ALIASES["forget"] = {"by_memorisation": "by_score", "by_memorization": "by_score", "by_proxy": "by_score", "group_index": "by_entanglement"}


class ForgetSet(Protocol):
    """Chooses ids to forget from the training images; the seed is the study's.

    ``eligible``: which images could have been chosen, so that controls are drawn among the like of them.
    """

    def __call__(self, train: Images, seed: int) -> Int64[Tensor, " ids"]: ...

    def eligible(self, images: Images) -> Bool[Tensor, " n"]: ...


@runtime_checkable
class ScoredForgetSet(Protocol):
    """Chooses by a score of the training images: disjoint groups, by name, that are also audited one by one.

    ``score``: the name of the score that it reads. ``scheme``: what the groups go by, where it is not that score.
    """

    @property
    def score(self) -> str: ...

    def groups(self, train: Images, seed: int, scores: Scores) -> dict[str, Int64[Tensor, " ids"]]: ...


def anyone(images: Images) -> Bool[Tensor, " n"]:
    return torch.ones(len(images), dtype=torch.bool)


def pick(kind: str, images: Images, count: int, seed: int, purpose: str, *, by_class: bool = False) -> Int64[Tensor, " ids"]:
    """``count`` random ids, ascending; raises ``InputError`` where there are not so many."""
    if count > len(images):
        raise InputError(f"forget set '{kind}' asks for {count} images, but there are {len(images)} to choose from; ask for fewer")
    chance = generator(seed, purpose)
    rows = stratified(images.true_labels, count, seed, purpose) if by_class else torch.randperm(len(images), generator=chance)[:count]
    return images.ids[rows].sort().values


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
        return pick("random", images, count, seed, f"forget.{self.draw}.{kind}", by_class=self.by_class)

    def eligible(self, images: Images) -> Tensor:
        return anyone(images)


@spec("forget", "class")
class ClassForget:
    """Forget every training image of one class (by its release label)."""

    label: Annotated[int | str, Setting("the class: its number, or its name where the release names classes", ge=0)] = 0
    drop_from_test: Annotated[bool, Setting("leave the class out of the test set")] = False

    def __call__(self, train: Images, seed: int) -> Tensor:
        return train.ids[self.eligible(train)]

    def eligible(self, images: Images) -> Tensor:
        return images.true_labels == class_number(images, self.label, "class")


@spec("forget", "partial_class")
class PartialClass:
    """Forget a number of random training images of some classes only (DEL's non-iid forget sets: CIFAR-10 classes 2 and 5, SVHN 3 and 6)."""

    labels: Annotated[tuple[int | str, ...], Setting("the classes: numbers, or names where the release names them", ge=0)] = (2, 5)
    count: Annotated[int, Setting("images to forget, from all these classes together", symbol="n", ge=1)] = 5000
    draw: Annotated[int, Setting("another number draws another forget set", ge=0)] = 0

    def __post_init__(self) -> None:
        if not self.labels:
            raise InputError("forget set 'partial_class': labels is empty; name at least one class")

    def __call__(self, train: Images, seed: int) -> Tensor:
        return pick("partial_class", train.rows(self.eligible(train)), self.count, seed, f"forget.{self.draw}.any")

    def eligible(self, images: Images) -> Tensor:
        wanted = [class_number(images, label, "partial_class") for label in self.labels]
        return torch.isin(images.true_labels, torch.tensor(wanted))


@spec("forget", "sub_class")
class SubClass:
    """Forget every training image of a sub-class, such as the rockets among CIFAR-20's vehicles."""

    value: Annotated[int | str, Setting("the sub-class: a number or a name")] = "rocket"
    column: Annotated[str, Setting("the column of the release that holds sub-classes")] = "fine"
    drop_from_test: Annotated[bool, Setting("leave the sub-class out of the test set")] = False

    def __call__(self, train: Images, seed: int) -> Tensor:
        chosen = train.ids[self.eligible(train)]
        if not len(chosen):
            known = train.columns[self.column].words
            hint = suggest(str(self.value), known) if known else ""
            raise InputError(f"forget set 'sub_class': no training image has {self.column} = {self.value!r}{hint}")
        return chosen

    def eligible(self, images: Images) -> Tensor:
        if self.column not in images.columns:
            raise InputError(
                f"forget set 'sub_class': these images have no column '{self.column}'{suggest(self.column, images.columns)};"
                f" they have: {', '.join(images.columns) or 'none'}"
            )
        column = self.column
        if isinstance(self.value, int) and images.columns[column].words and f"{column}_label" in images.columns:
            column = f"{column}_label"  # the number of a sub-class that also has a name
        return holds(f"{column} == {self.value!r}", images)


@spec("forget", "attribute")
class Attribute:
    """Forget the training images of which a condition holds, such as ``age < 20`` or ``user == "u17"``."""

    where: Annotated[str, Setting("condition on the columns of the release, on label and on id")]
    count: Annotated[int | None, Setting("forget so many of them at random (none given: all)", ge=1)] = None
    draw: Annotated[int, Setting("another number draws another forget set", ge=0)] = 0

    def __post_init__(self) -> None:
        check_condition(self.where)

    def __call__(self, train: Images, seed: int) -> Tensor:
        chosen = train.rows(self.eligible(train))
        if not len(chosen):
            raise InputError(f"forget set 'attribute': no training image has {self.where}; the forget set would be empty")
        return chosen.ids if self.count is None else pick("attribute", chosen, self.count, seed, f"forget.{self.draw}.any")

    def eligible(self, images: Images) -> Tensor:
        return holds(self.where, images)


@spec("forget", "by_score", paper="arXiv:2406.01257")
class ByScore:
    """Forget the training images that are memorised least, half or most, as a score tells, or a third of each.

    Images are ordered by (score, id). Of n = ``count``: low takes the first n, high the last n, mid the n nearest to ½ (of a proxy: to the
    median), ties again by (score, id); mix takes ⌊n/3⌋ high, ⌊n/3⌋ mid and the rest low, so that mix of 3 000 is the union of the three groups
    of 1 000. Groups are disjoint, or refused with the numbers. Images without a score (NaN) are chosen by the band ``unscored`` alone.
    Source: Zhao et al. 2024 (protocols.md §5). Differs from the published code: equal scores are told apart by id, in every stage
    alike (there: by each script's own sort); the middle of a proxy is its median (there, in an older variant: the middle of its range,
    ``mid_range``, so that one infinite score makes "mid" the same as "high"); proxies point the same way as memorisation.
    """

    score: Annotated[str, Setting("name of the score; a study makes it", published="memorisation, confidence, ho_ret …")] = "memorisation"
    band: Annotated[Literal["low", "mid", "high", "mix", "unscored"], Setting("which images, by their score; mix: a third of each of the first three")] = "mix"
    count: Annotated[int, Setting("images to forget, from all groups together", symbol="n", ge=1, published="3000 (mix: 3 × 1000)")] = 3000
    mid_rule: Annotated[
        Literal["default", "half", "median", "mid_range"],
        Setting("what mid is nearest to: ½ for memorisation and the median for proxies, always one of these, or the middle of the range",
                published="half, median, mid_range", legacy=("mid_range",)),
    ] = "default"  # fmt: skip
    low: Annotated[Literal["smallest", "nearest_zero"], Setting("low: the smallest scores, noise below 0 among them, or those nearest to 0")] = "smallest"

    def __post_init__(self) -> None:
        if self.band == "mix" and self.count < 3:
            raise InputError(f"forget set 'by_score': a mix of count = {self.count} has not one image for each of three groups; expected at least 3")
        if self.mid_rule == "half" or self.low == "nearest_zero":  # refused before hours of scoring, where the score says what it is
            self._check_scale(getattr(lookup("score", self.score), "scale", "memorisation"))

    def groups(self, train: Images, seed: int, scores: Scores) -> dict[str, Tensor]:
        self._check_scale(scores.scale)
        by_id = train.ids.cpu().argsort()
        ids = train.ids.cpu()[by_id]
        values = scores.of(ids)
        known = ~values.isnan()
        if self.band == "unscored":
            self._check_count(int((~known).sum()), f"without a score '{self.score}'")
            return {"unscored": ids[~known][: self.count]}
        self._check_count(int(known.sum()), f"with a score '{self.score}'" + ("" if bool(known.all()) else f", and {int((~known).sum())} without"))
        values, order = values[known].sort(stable=True)  # by (score, id)
        ids = ids[known][order]
        third = self.count // 3
        sizes = {"low": self.count - 2 * third, "mid": third, "high": third} if self.band == "mix" else {self.band: self.count}
        found = {name: ids[self._nearest(name, values, scores.scale)[:size]].sort().values for name, size in sizes.items()}
        shared = {f"{a} and {b}": int(torch.isin(found[a], found[b]).sum()) for a, b in combinations(found, 2)}
        if any(shared.values()):
            told = ", ".join(f"{pair} share {count}" for pair, count in shared.items() if count)
            raise InputError(
                f"forget set 'by_score': of the groups of {' + '.join(map(str, sizes.values()))} images {told}, but they must be disjoint"
                f" ({len(ids)} images have a score); ask for fewer, or for another mid_rule"
            )
        return found

    def eligible(self, images: Images) -> Tensor:
        return anyone(images)

    def _nearest(self, name: str, values: Float64[Tensor, " n"], scale: str) -> Int64[Tensor, " n"]:
        """Where the images stand that fit a band best, the best first; ``values`` ascend."""
        if name == "high":
            return torch.arange(len(values)).flip(0)
        if name == "low":
            return values.abs().argsort(stable=True) if self.low == "nearest_zero" else torch.arange(len(values))
        rule = ("half" if scale == "memorisation" else "median") if self.mid_rule == "default" else self.mid_rule
        middle = values[(len(values) - 1) // 2 : len(values) // 2 + 1]  # one value or two
        middle = middle[middle.isfinite()] if bool(middle.isfinite().any()) else middle[:1]  # an infinite neighbour must not move the median
        centre = {"half": 0.5, "mid_range": float(values[0] + values[-1]) / 2, "median": float(middle.mean())}[rule]
        if math.isnan(centre):
            raise InputError(f"forget set 'by_score': scores '{self.score}' reach from -inf to inf, which has no middle; set mid_rule = 'median'")
        if math.isinf(centre):  # what is nearest to infinity is the largest
            return (values.neg() if centre > 0 else values).argsort(stable=True)
        return (values - centre).abs().argsort(stable=True)

    def _check_scale(self, scale: str) -> None:
        wrong = [f"{name} = '{held}'" for name, held in (("mid_rule", self.mid_rule), ("low", self.low)) if held in ("half", "nearest_zero")]
        if scale == "proxy" and wrong:
            raise InputError(
                f"forget set 'by_score': {wrong[0]} is defined for memorisation only, and the score '{self.score}' is a proxy, of which"
                f" only the order means anything; leave {wrong[0].split()[0]} out"
            )

    def _check_count(self, there: int, which: str) -> None:
        if self.count > there:
            raise InputError(f"forget set 'by_score' asks for {self.count} images (band = '{self.band}'), but there are {there} {which}; ask for fewer")


@spec("forget", "mislabelled")
class Mislabelled:
    """Forget every training image whose label a corruption changed (interclass confusion, label noise)."""

    def __call__(self, train: Images, seed: int) -> Tensor:
        if not bool(train.mislabelled.any()):
            raise InputError("forget set 'mislabelled': no training label was changed; give the study a corruption, such as interclass_confusion")
        return train.ids[train.mislabelled]

    def eligible(self, images: Images) -> Tensor:
        return anyone(images)


@spec("forget", "backdoor")
class BackdoorForget:
    """Forget every training image that bears the trigger of the study's backdoor."""

    def __call__(self, train: Images, seed: int) -> Tensor:
        if not bool(train.triggered.any()):
            raise InputError("forget set 'backdoor': no training image bears a trigger; give the study the corruption backdoor")
        return train.ids[train.triggered]

    def eligible(self, images: Images) -> Tensor:
        return anyone(images)


@spec("forget", "by_entanglement", paper="arXiv:2406.01257")
class ByEntanglement:
    """Forget training images that lie apart from the others in the features of a net (low, easy to forget), among them (high), or between.

    Sort D by distance to its centroid (score ``centroid_distance``; ties by id), cut it into ``parts`` equal groups, draw ``count`` images
    from each candidate (``neighbours`` groups side by side), and measure the entanglement ES of every such draw S against D∖S (mean over the
    score's models). **low, mid and high are the least, the middle (of an even number: the lower) and the greatest ES, whatever the distance.**
    Candidates are those that begin at the three ``picks`` (numbered from 0, in any order), or all side by side: groups 0 to w−1, w to 2w−1, ….
    mix takes ⌊n/3⌋ high, ⌊n/3⌋ mid and the rest low, by the ES of draws of ⌊n/3⌋. All draws are equally large, so ES about either centre
    (the mean of all images, the midpoint of both means) orders them alike. Source: Zhao et al. 2024 (protocols.md §8).
    Published: picks 3, 12, 14 of parts = 15 (CIFAR); 0, 49, 97 of 100 with neighbours = 3 (Tiny ImageNet).
    Differs from the published code: labels follow measured ES (there: the number of the group); images of a group are drawn at random
    (there: the nearest to the centroid first); means are true ones (there: means of batch means).
    """

    count: Annotated[int, Setting("images to forget, from all groups together", symbol="n", ge=1, published="3000")] = 3000
    level: Annotated[Literal["low", "mid", "high", "mix"], Setting("which entanglement; mix: a third of each")] = "high"
    parts: Annotated[int, Setting("groups of equal size, by distance to the centroid", symbol="G", ge=3, published="15 (CIFAR), 100 (Tiny ImageNet)")] = 15
    neighbours: Annotated[int, Setting("groups side by side that make one candidate", symbol="w", ge=1, published="1, 3 (Tiny ImageNet)")] = 1
    picks: Annotated[
        tuple[int, int, int] | None,
        Setting("first groups of three candidates, from 0 (none given: every candidate)", ge=0, published="3, 12, 14 (CIFAR); 0, 49, 97 (Tiny ImageNet)"),
    ] = None
    within: Annotated[Literal["random", "nearest_first"], Setting("which images of a candidate are taken", legacy=("nearest_first",))] = "random"
    draw: Annotated[int, Setting("another number draws other images", ge=0)] = 0

    def __post_init__(self) -> None:
        name, apart = "forget set 'by_entanglement'", self.neighbours
        if self.level == "mix" and self.count < 3:
            raise InputError(f"{name}: a mix of count = {self.count} has not one image for each of three groups; expected at least 3")
        if self.picks is None and self.parts // apart < 3:
            raise InputError(f"{name}: parts = {self.parts} make {self.parts // apart} candidate(s) of neighbours = {apart} groups; expected at least 3")
        if self.picks is not None:
            first = sorted(self.picks)
            if first[-1] + apart > self.parts:
                held = f"the candidate at picks = {first[-1]} ends with group {first[-1] + apart - 1}"
                raise InputError(f"{name}: {held}, but groups are 0 to {self.parts - 1}; pick lower ones, or set parts")
            if min(first[1] - first[0], first[2] - first[1]) < apart:
                held = f"picks = {list(self.picks)} share groups, since each stands for {apart} side by side"
                raise InputError(f"{name}: {held}; pick them further apart")

    scheme: ClassVar[str] = "entanglement"

    @property
    def score(self) -> str:
        return "centroid_distance"

    def groups(self, train: Images, seed: int, scores: Scores) -> dict[str, Tensor]:
        ids = train.ids.cpu().sort().values
        distance = scores.of(ids)
        if bool(distance.isnan().any()):
            held = f"image id {int(ids[distance.isnan()][0])} has no distance (NaN; {int(distance.isnan().sum())} such image(s))"
            raise InputError(f"forget set 'by_entanglement': {held}; make the score '{self.score}' of models that did not diverge")
        if self.parts > len(ids):
            raise InputError(f"forget set 'by_entanglement': parts = {self.parts}, but there are {len(ids)} training images; set fewer parts")
        third = self.count // 3
        sizes = {"low": self.count - 2 * third, "mid": third, "high": third} if self.level == "mix" else {self.level: self.count}
        cut = distance.argsort(stable=True).tensor_split(self.parts)
        starts = range(0, self.parts - self.neighbours + 1, self.neighbours) if self.picks is None else self.picks
        candidates = [self._drawn(torch.cat(cut[at : at + self.neighbours]), at, seed, max(sizes.values())) for at in starts]
        drawn = [rows[: min(sizes.values())] for rows in candidates]
        measured = entanglements(features_of(scores, ids), drawn).mean(0)
        if bool(measured.isnan().any()):
            raise InputError("forget set 'by_entanglement': all training images have the same features, so there is no ES; train the score's net longer")
        order = measured.argsort(stable=True).tolist()
        place = {"low": order[0], "mid": order[(len(order) - 1) // 2], "high": order[-1]}
        return {name: ids[candidates[place[name]][:size]].sort().values for name, size in sizes.items()}

    def eligible(self, images: Images) -> Tensor:
        return anyone(images)

    def _drawn(self, rows: Int64[Tensor, " n"], start: int, seed: int, size: int) -> Int64[Tensor, " size"]:
        """Images of the candidate that begins with group ``start``; a smaller draw is the beginning of a larger one."""
        if size > len(rows):
            which = f"group {start}" if self.neighbours == 1 else f"groups {start} to {start + self.neighbours - 1}"
            raise InputError(
                f"forget set 'by_entanglement' asks for {size} images of {which} (of {self.parts}), which hold {len(rows)}; ask for fewer, set fewer parts,"
                " or more neighbours"
            )
        if self.within == "nearest_first":
            return rows[:size]
        return rows[torch.randperm(len(rows), generator=generator(seed, f"forget.{self.draw}.entanglement", start))[:size]]


@spec("forget", "ids")
class IdsForget:
    """Forget the training images with these ids, given here or in a file (.txt, .npy, .json, .csv, .npz, .pt, .pth).

    Ids are rows of the original release, in every file: positions within a part of it (the 45 000 images that somebody kept, say) name other images.
    """

    ids: Annotated[tuple[int, ...], Setting("rows of the release")] = ()
    file: Annotated[
        str | None, Setting("a file of ids: text, a NumPy array, a JSON list, a CSV table with a column 'id', or a list or tensor saved by torch")
    ] = None
    origin: Annotated[str, Setting("where others get the file, said where it is not there")] = ""

    def __post_init__(self) -> None:
        if self.ids and self.file is not None:
            raise InputError("forget set 'ids': give either ids or a file of them, not both")

    def __call__(self, train: Images, seed: int) -> Tensor:
        return torch.tensor(self._all(), dtype=torch.int64)

    def eligible(self, images: Images) -> Tensor:
        return anyone(images)

    def content(self) -> dict[str, Any]:
        """The ids themselves, wherever they lie."""
        return {"ids": sorted(self._all())}

    def _all(self) -> list[int]:
        if self.file is None:
            return list(self.ids)
        path = Path(self.file).expanduser()
        if self.origin and not path.exists():
            raise InputError(f"forget set 'ids': there is no {path}; put there {self.origin}")
        return read_ids(path)


@spec("requests", "in_order")
class Requests:
    """Forget more sets, one after the other, each from the model that the request before it left.

    Step t gets θ^(t) = A(θ^(t−1), S^(t), D^(t)) with D^(t) = D without all that was ever asked for, and is compared with retraining on
    D^(t). ``forget`` is S^(1), ``sets`` are S^(2), S^(3), …. Where a row's ToW falls below the share ``tow`` of what retrained models
    score, or its retain accuracy is further than ``gap`` from theirs, the report says: retrain now. Source: protocols.md §13.
    """

    sets: Annotated[tuple[ForgetSet, ...], Setting("the forget sets after the first, in order", kind="forget", usual="ids")]
    tow: Annotated[float, Setting("retrain where the ToW falls below this share of the retrained models'", ge=0, le=1)] = 0.9
    gap: Annotated[float, Setting("retrain where the retain accuracy is further than this from the retrained models'", ge=0, le=1)] = 0.05


def class_number(images: Images, label: int | str, kind: str) -> int:
    """The number of a class given by number or name; raises ``InputError`` for an unknown one."""
    if isinstance(label, str):
        column = images.columns.get("class")
        if column is None or label not in column.words:
            words = () if column is None else column.words
            known = f"its number, 0 to {images.classes - 1}"
            raise InputError(f"forget set '{kind}': there is no class '{label}'{suggest(label, words)}; give {known}, or its name in the release")
        numbers = images.true_labels[column.values == column.words.index(label)]
        return int(numbers[0]) if len(numbers) else -1  # none of it here
    if label >= images.classes:
        raise InputError(f"forget set '{kind}': label = {label}, but the classes are 0 to {images.classes - 1}")
    return label


def read_ids(path: Path) -> list[int]:
    """The ids in a file; raises ``InputError`` saying what is wrong with it."""
    readers = {".txt": _from_text, ".npy": _from_npy, ".json": _from_json, ".csv": _from_csv, ".npz": _from_npz, ".pt": _from_torch, ".pth": _from_torch}
    if path.suffix not in readers:
        pickled = path.suffix in (".pkl", ".pickle")
        why = ": a pickle may run code of whoever wrote it, so it is never read; save the ids with numpy.save;" if pickled else ":"
        raise InputError(f"cannot read ids from {path}{why} expected a file that ends in {', '.join(readers)}")
    try:
        found = readers[path.suffix](path)
    except OSError as error:
        raise InputError(f"cannot read the ids in {path}: {error.strerror}; give the path of an existing file") from error
    except (pickle.UnpicklingError, RuntimeError) as error:  # torch's own words advise to load it unsafely
        raise InputError(f"{path} holds more than numbers, or is damaged, and is not read; save the ids alone, with torch.save or numpy.save") from error
    except Exception as error:  # what is damaged makes zip, NumPy and its parser of headers fail in their own ways
        raise InputError(f"{path} does not hold ids: {' '.join(str(error).split())}; expected one whole number for each image") from error
    ids = []
    for one in found:
        # NaN and infinity compare as too large
        if not (isinstance(one, (int, float)) and not isinstance(one, bool) and abs(one) < 2**63 and one == one // 1):
            raise InputError(f"{path} does not hold ids: {one!r} is no whole number")
        ids.append(int(one))
    return ids


def _from_text(path: Path) -> Sequence[Any]:
    lines = (line.partition("#")[0] for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [_number(word) for line in lines for word in line.replace(",", " ").split()]


def _number(word: str) -> int | float:
    """``numpy.savetxt`` writes 7 as 7.000000000000000000e+00."""
    try:
        return int(word)
    except ValueError:
        return float(word)


def _from_npy(path: Path) -> Sequence[Any]:
    import numpy as np

    with path.open("rb") as file:
        return _listed(np.load(file, allow_pickle=False))


def _from_npz(path: Path) -> Sequence[Any]:
    import numpy as np

    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:  # NumPy leaves a damaged file open
        return _listed(held[_which(held.files)])


def _from_torch(path: Path) -> Sequence[Any]:
    held = load_plain(path)
    if isinstance(held, dict):
        held = held[_which(list(held))]
    return [one.tolist() if hasattr(one, "tolist") else one for one in held] if isinstance(held, (list, tuple)) else _listed(held)


def _which(names: Sequence[Any]) -> Any:
    """The only entry of a table, or the only one that says it is of the forget set."""
    found = [name for name in names if "forget" in str(name).lower()] if len(names) > 1 else names
    if len(found) != 1:
        told = f"{len(found)} of its entries ({', '.join(map(str, list(found)[:6]))}) are of the forget set" if found else "none of its entries says forget"
        raise ValueError(f"{told} (it has: {', '.join(map(str, list(names)[:6])) or 'none'}), and it is not clear which is meant; save one alone")
    return found[0]


def _listed(held: Any) -> list[Any]:
    """The numbers in an array or tensor; the places that are true in one of booleans."""
    if not hasattr(held, "ravel"):
        raise ValueError(f"it holds a {type(held).__name__}, not a list, array or tensor")
    flat = held.ravel()
    if len(flat) != max(held.shape, default=1):
        raise ValueError(f"it holds an array of the shape {list(held.shape)}")
    if str(flat.dtype).removeprefix("torch.") == "bool":
        flat = flat.nonzero()[0] if not isinstance(flat, Tensor) else flat.nonzero()[:, 0]  # a membership mask over the release
    return list(flat.tolist())


def _from_json(path: Path) -> Sequence[Any]:
    held = json.loads(path.read_text(encoding="utf-8-sig"))
    found = held["ids"] if isinstance(held, dict) else held
    if not isinstance(found, list) or not all(isinstance(one, (int, float)) for one in found):
        raise ValueError("it is neither a list of numbers nor a table with 'ids'")
    return found


def _from_csv(path: Path) -> Sequence[Any]:
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        return []
    heading = [cell.strip().lower() for cell in rows[0]]
    if "id" in heading:
        return [int(row[heading.index("id")]) for row in rows[1:]]
    if len(rows[0]) > 1:
        raise ValueError(f"it has the columns {', '.join(rows[0])}, and none is called 'id'")
    return [int(row[0]) for row in rows]
