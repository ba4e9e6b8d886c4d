"""Is a planted confusion gone? For forget sets of two classes whose images were given one another's label before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.accuracy import correct, of_each_model, with_example_interval
from unlearnlab.metrics.statistics import unfit
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError, Setting, info, spec

Seen = Annotated[Literal["forget", "test"], Setting("forget: is the confusion memorised? test: has it spread to images never seen?")]
One = Annotated[int | None, Setting("one of the two classes (neither given: as the labels of the forget set show)", symbol="A", ge=0)]
Other = Annotated[int | None, Setting("the other one", symbol="B", ge=0)]


def swapped(audit: Audit) -> tuple[int, int] | str:
    """The two classes whose forget images bear one another's label, the lower first, or why there are no such two."""
    assert audit.true_labels is not None
    of = (audit.unlearned.part == PARTS.index("forget")) & (audit.unlearned.labels != audit.true_labels)
    kinds = set(zip(audit.true_labels[of].tolist(), audit.unlearned.labels[of].tolist(), strict=True))
    if len(kinds) == 2 and min(kinds) == max(kinds)[::-1]:
        return min(kinds)
    found = (
        f"true class -> label: {', '.join(f'{true} -> {label}' for true, label in sorted(kinds)[:4])}{', …' * (len(kinds) > 4)}"
        if kinds
        else "none is mislabelled"
    )
    return f"the forget images are not two classes with their labels swapped ({found}); name two classes by a and b"


def _key(name: str, a: int | None, b: int | None, part: str) -> str:
    return f"{name}.{part}" if a is None or b is None else f"{name}.{min(a, b)}_{max(a, b)}.{part}"  # other classes are another quantity


def _check(metric: Metric, a: int | None, b: int | None) -> None:
    if a == b is not None or (a is None) != (b is None):
        raise InputError(f"metric '{info(metric).name}': a = {a}, b = {b}; name two different classes, or neither, then the forget set shows them")


def _of_pair(metric: Metric, audit: Audit, part: str, a: int | None, b: int | None, quantity: Callable[[Outputs, int], Tensor]) -> Result:
    """The mean over models of ``quantity(outputs, A + B)``, of the images truly of class A or B; their ``labels`` are then the true ones."""
    missing = unfit(metric, audit, part)
    if missing:
        return missing
    pair = (a, b) if a is not None and b is not None else swapped(audit)
    if isinstance(pair, str):
        return not_computed(metric.key, metric.better, pair, audit)
    classes, true = audit.unlearned.logits.shape[-1], audit.true_labels
    if max(pair) >= classes:
        raise InputError(f"metric '{info(metric).name}': a = {a}, b = {b}, but the classes are 0 to {classes - 1}")
    assert true is not None
    of = torch.isin(true, torch.tensor(pair))
    if not (of & (audit.unlearned.part == PARTS.index(part))).any():
        return not_computed(metric.key, metric.better, f"no {part} image is of class {pair[0]} or {pair[1]}", audit)
    truly = replace(audit, **{side: replace(getattr(audit, side), labels=true) for side in ("originals", "oracles", "unlearned")}).restrict(of)
    return with_example_interval(of_each_model(metric, truly, part, lambda outputs: quantity(outputs, sum(pair))))


@spec("metric", "ic.err", paper="arXiv:2201.06640")
class ConfusionError:
    """Share of the images of two classes, once confused on purpose, that are classified wrongly; measured against their true labels.

    (off-diagonal entries of the rows A and B of the confusion matrix, true × predicted)/(|A| + |B|), per model, then the mean
    (Goel et al.; Kurmanji et al.; metrics §7.2). The forget set is images of A labelled B and of B labelled A. Reads logits and true labels.

    Differs from the published code: any number of classes, not five; the forget set counts against its true labels, not the swapped ones.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"true_labels"})
    trust: ClassVar[int] = 4  # above the attacks of place 5, where it applies: the cause was planted, and is hard to hide
    ideal: ClassVar[str] = "the oracles' share, not 0: they confuse some images of any two classes too"
    caution: ClassVar[str] = "a damaged model errs more in all classes, and other errors than the planted ones count: read `ic.fgt` beside it"
    part: Seen = "forget"
    a: One = None
    b: Other = None

    def __post_init__(self) -> None:
        _check(self, self.a, self.b)

    @property
    def key(self) -> str:
        return _key("ic.err", self.a, self.b, self.part)

    def __call__(self, audit: Audit) -> Result:
        return _of_pair(self, audit, self.part, self.a, self.b, lambda outputs, _: 1 - correct(outputs))


@spec("metric", "ic.fgt", paper="arXiv:2302.09880")
class ConfusionLeft:
    """Share of the images of two classes, once confused on purpose, that are still taken for one another.

    (c_AB + c_BA)/(|A| + |B|) of the confusion matrix c, true × predicted, per model, then the mean (Goel et al.; Kurmanji et al.;
    metrics §7.2). ``count``: c_AB + c_BA itself, as published, to be compared on sets of one size only. Reads logits and true labels.

    Differs from the published code: as `ic.err`, and a share.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"true_labels"})
    trust: ClassVar[int] = 4
    ideal: ClassVar[str] = "the oracles' share, near 0 where the two classes are unlike"
    caution: ClassVar[str] = "a model that calls these images something else altogether scores 0: read `ic.err` beside it"
    part: Seen = "forget"
    a: One = None
    b: Other = None

    def __post_init__(self) -> None:
        _check(self, self.a, self.b)

    @property
    def key(self) -> str:
        return _key("ic.fgt", self.a, self.b, self.part)

    def __call__(self, audit: Audit) -> Result:
        found = _of_pair(self, audit, self.part, self.a, self.b, _taken_for_the_other)
        return found if found.value is None else replace(found, extra={**found.extra, "count": found.value * found.n_examples})


def _taken_for_the_other(outputs: Outputs, both: int) -> Tensor:
    return (outputs.predicted == both - outputs.labels).double().mean(1)
