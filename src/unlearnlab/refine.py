"""How a forget set is divided into groups that are forgotten one after the other, the easiest first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import Split
from unlearnlab.metrics.groups import bands
from unlearnlab.scores.entanglement import centroid_distances, entanglements, features_of
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, digest, spec, suggest

Groups = Annotated[int, Setting("groups, as equal as can be", symbol="K", ge=1, published="3")]


def score_at_hand(refiner: str, name: str, scores: Mapping[str, Scores]) -> Scores:
    """The scores of this name; raises ``InputError`` where there are none."""
    if name not in scores:
        known = f"{suggest(name, scores)} (given: {', '.join(scores) or 'none'})"
        raise InputError(f"refiner '{refiner}' goes by the score '{name}', which is not at hand{known}; a study makes it, and `unlearn` takes it as scores=…")
    return scores[name]


def groups_of(ids: Int64[Tensor, " n"], masks: Mapping[str, Bool[Tensor, " n"]]) -> dict[str, Int64[Tensor, " ids"]]:
    """The ids within each mask, ascending; empty groups are left out."""
    return {name: ids[mask].sort().values for name, mask in masks.items() if bool(mask.any())}


def numbered(count: int) -> tuple[str, ...]:
    """Names of groups that have no better ones."""
    return tuple(str(at) for at in range(1, count + 1))


@spec("refiner", "by_score", paper="arXiv:2406.01257")
class ByScore:
    """Divide the forget set by how strongly its images are memorised, as a score tells: into equal parts, or where you cut.

    Groups are cut by rank of (score, id), lowest first; ``cuts``: rising scores, one on a cut belongs above it. Three groups are
    called low, mid and high, others 1, 2, …. Images without a score (NaN) come last, in a group ``unscored``: nobody
    knows that they are easy. Source: Zhao et al. 2024 (protocols.md §9).
    Differs from the published code: equal scores are told apart by id, in every stage alike; scores are oriented (there: confidence and its
    like are not, so that their "high" group is the easy one).
    """

    score: Annotated[str, Setting("name of the score; a study makes it", published="memorisation, confidence, ho_ret …")] = "memorisation"
    groups: Groups = 3
    cuts: Annotated[tuple[float, ...], Setting("scores between the groups, rising; in place of equal parts")] = ()

    def __post_init__(self) -> None:
        if list(self.cuts) != sorted(set(self.cuts)):
            raise InputError(f"refiner 'by_score': cuts = {list(self.cuts)} must rise, each above the one before")

    @property
    def names(self) -> tuple[str, ...]:
        """What the groups of scored images are called, also those that turn out empty."""
        count = len(self.cuts) + 1 if self.cuts else self.groups
        return ("low", "mid", "high") if count == 3 else numbered(count)

    def __call__(self, split: Split, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        ids = split.forget.ids.cpu()
        values = score_at_hand("by_score", self.score, scores).of(ids)
        known = values[~values.isnan()]
        found = groups_of(ids, bands(values, ids, self.names, self.cuts or None))
        if self.cuts and len(known) and len(found.keys() - {"unscored"}) == 1:
            reach = f"scores '{self.score}' of the forget set go from {float(known.min()):.3g} to {float(known.max()):.3g}"
            raise InputError(f"refiner 'by_score': no cut of {list(self.cuts)} divides anything: {reach}; cut between them, or leave cuts out")
        return found


@spec("refiner", "by_class")
class ByClass:
    """Divide the forget set by class (by release label): one group a class, in order of their numbers.

    Source: ours; the groups are called by the number of the class. Differs from the published code: there is none.
    """

    score: ClassVar[str] = ""

    def __call__(self, split: Split, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        labels = split.forget.true_labels.cpu()
        return groups_of(split.forget.ids.cpu(), {str(label): labels == label for label in torch.unique(labels).tolist()})


@spec("refiner", "given")
class Given:
    """Divide the forget set into the groups you name, here or in a JSON file, in your order.

    The file holds lists of ids, or a table of them by name. Every image of the forget set must be in exactly one group.
    Source: ours. Differs from the published code: there is none.
    """

    score: ClassVar[str] = ""
    groups: Annotated[tuple[tuple[int, ...], ...], Setting('lists of ids, in the order in which they are forgotten (reversed by order = "descending")')] = ()
    file: Annotated[str | None, Setting("a JSON file of them: a list of lists of ids, or a table of such lists by name")] = None

    def __post_init__(self) -> None:
        if self.groups and self.file is not None:
            raise InputError("refiner 'given': give either groups, as lists of ids, or a file of them, not both")
        if self.file is None:
            self._all()

    @property
    def names(self) -> tuple[str, ...]:
        """What the groups are called; nothing while they lie in a file."""
        return numbered(len(self.groups))

    def __call__(self, split: Split, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        wanted, where = set(split.forget.ids.tolist()), dict(self._all())
        named = {i for ids in where.values() for i in ids}
        if stray := sorted(named - wanted):
            raise InputError(f"refiner 'given' names image id {stray[0]}, which is not in the forget set ({len(stray)} such id(s)); leave it out")
        if missing := sorted(wanted - named):
            raise InputError(f"refiner 'given': image id {missing[0]} of the forget set is in no group ({len(missing)} such id(s)); put it in one")
        return {name: torch.tensor(sorted(ids)) for name, ids in where.items() if ids}

    def content(self) -> dict[str, Any]:
        """The groups themselves, wherever they lie."""
        return {"groups": [[name, sorted(ids)] for name, ids in self._all()]}

    def _all(self) -> list[tuple[str, Sequence[int]]]:
        """Name and ids of every group; raises ``InputError`` for an id that is named twice."""
        found = list(zip(self.names, self.groups, strict=True)) if self.file is None else _read(Path(self.file).expanduser())
        seen: dict[int, str] = {}
        for name, ids in found:
            for i in ids:
                if i in seen:
                    both = f"twice in group '{name}'" if seen[i] == name else f"in group '{seen[i]}' and in group '{name}'"
                    raise InputError(f"refiner 'given': image id {i} is {both}; every image is forgotten once")
                seen[i] = name
        return [(name, ids) for name, ids in found]


def _read(path: Path) -> list[tuple[str, Sequence[int]]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    except OSError as error:
        raise InputError(f"cannot read the groups in {path}: {error.strerror}; give the path of an existing file") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    pairs: list[Any] = held if isinstance(held, list) else []
    if not (pairs and all(isinstance(one, tuple) for one in pairs)):  # a table comes as pairs, in its order
        pairs = list(zip(numbered(len(pairs)), pairs, strict=True))
    names = [name for name, _ in pairs]
    if not pairs or len(set(names)) < len(names) or not all(_whole(ids) for _, ids in pairs):
        raise InputError(f"{path} does not hold groups; expected a list of lists of ids, or a table of such lists with a name for each")
    return pairs


def _whole(ids: Any) -> bool:
    return isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)


@spec("refiner", "shuffle", paper="arXiv:2406.01257")
class Shuffle:
    """Divide the forget set at random: the control that tells what refining by a score adds to forgetting in steps.

    As many groups of the same sizes as ``by_score`` makes by rank. The draw depends on the ids of the forget set and on ``draw`` alone, so every model
    and every seed of a study has the same groups. Source: Zhao et al. 2024 (protocols.md §5, §9).
    Differs from the published code: the same images are cut that the refined run cuts, with a generator of its own.
    """

    score: ClassVar[str] = ""
    groups: Groups = 3
    draw: Annotated[int, Setting("another number draws other groups", ge=0)] = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What the groups are called, also those that turn out empty."""
        return numbered(self.groups)

    def __call__(self, split: Split, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        ids = split.forget.ids.cpu().sort().values
        lots = torch.randperm(len(ids), generator=generator(seed_of(ids.tolist()), "refine.shuffle", self.draw))
        return groups_of(ids, bands(lots.double(), ids, self.names))


def seed_of(ids: Iterable[int]) -> int:
    """The seed of what is drawn for a forget set alike in every study: a digest of its ids, whatever their order."""
    return int(digest(sorted(ids)), 16)


@spec("refiner", "by_entanglement", paper="arXiv:2406.01257")
class ByEntanglement:
    """Divide the forget set by how far its images lie from the centre of all training images; the group least entangled with the others first.

    The forget set is cut into equal groups by rank of (distance to the mean of D in the features of the score ``centroid_distance``, id), and
    each group S_i is measured against D∖S_i (mean over the score's models). Groups follow one another by rising entanglement ES, whatever the
    distance; three are called low, mid and high, others 1, 2, …. ES is about the mean of all images; about the midpoint of both means it
    orders groups of one size alike. Source: Zhao et al. 2024 (protocols.md §8, §9).
    Differs from the published code: there is none that refines by entanglement.
    """

    score: ClassVar[str] = "centroid_distance"
    groups: Groups = 3

    @property
    def names(self) -> tuple[str, ...]:
        """What the groups are called, the least entangled first."""
        return ("low", "mid", "high") if self.groups == 3 else numbered(self.groups)

    def __call__(self, split: Split, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        held = score_at_hand("by_entanglement", self.score, scores)
        forget = split.forget.ids.cpu().sort().values
        if self.groups > len(forget):
            raise InputError(f"refiner 'by_entanglement': groups = {self.groups}, but the forget set has {len(forget)} images; set fewer groups")
        train = torch.cat([forget, split.retain.ids.cpu()]).sort().values
        seen = features_of(held, train)
        rows = torch.searchsorted(train, forget)
        cut = bands(centroid_distances(seen)[rows], forget, numbered(self.groups))
        measured = entanglements(seen, [rows[mask] for mask in cut.values()]).mean(0)
        parts = list(cut.values())
        ordered = [parts[at] for at in measured.argsort(stable=True).tolist()]
        return groups_of(forget, dict(zip(self.names, ordered, strict=True)))
