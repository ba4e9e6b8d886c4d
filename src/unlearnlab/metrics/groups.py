"""Who is not forgotten? Disjoint bands of examples, and metrics within a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Metric, Result, not_computed
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.statistics import holm, p_of, t_of
from unlearnlab.metrics.trace import Left, Trace, standard_error
from unlearnlab.spec import InputError

LEAST = 30  # forget examples; smaller groups are shown as counts
RISING = ("unscored", "clean", "mislabelled", "low", "mid", "high")  # a difference is that of the later one minus the earlier one


def bands(
    scores: Float[Tensor, " n"], ids: Int64[Tensor, " n"], names: Sequence[str] = ("low", "mid", "high"), cuts: Sequence[float] | None = None
) -> dict[str, Bool[Tensor, " n"]]:
    """Disjoint masks over the examples, by rank in equal shares, or by ``cuts`` (a score on a cut belongs to the upper band).

    Equal scores are ordered by id; NaN scores form a band ``unscored``. Scores must come from models other than the audited
    ones, or regression to the mean shows as a trend.
    """
    if cuts is not None and (len(cuts) != len(names) - 1 or sorted(cuts) != list(cuts)):
        raise InputError(f"cuts = {list(cuts)} do not make the {len(names)} bands {', '.join(names)}; expected {len(names) - 1} rising numbers")
    known = ~scores.isnan()
    if cuts is not None:
        band = torch.bucketize(scores.double(), torch.tensor(cuts, dtype=torch.float64), right=True)
    else:
        by_id = ids.argsort()
        order = by_id[scores.double()[by_id].argsort(stable=True)]  # NaN sorts last
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        band = rank * len(names) // max(1, int(known.sum()))
    masks = {name: known & (band == at) for at, name in enumerate(names)}
    masks |= {} if bool(known.all()) else {"unscored": ~known}
    assert bool((torch.stack(list(masks.values())).sum(0) == 1).all()), "bands must be disjoint and cover every example"
    return masks


def inside(audit: Audit, name: str) -> Audit:
    """The audit with one group as forget set: its forget images, and the control images like them, since attacks compare like with like.

    Retained, validation and test images stay whole. Raises ``InputError`` for an unknown group.
    """
    if name not in audit.groups:
        return audit.group(name)  # raises
    stay = torch.isin(audit.unlearned.part, torch.tensor([PARTS.index(part) for part in ("retain", "validation", "test")]))
    return audit.restrict(audit.groups[name] | stay)


def scheme_of(name: str) -> tuple[str, str]:
    """Scheme and band of a group: memorisation.high is a band of a score; without a dot it is one of labels, such as mislabelled."""
    scheme, _, band = name.rpartition(".")
    return scheme or "label", band


def of_group(metric: Metric, audit: Audit, name: str) -> Result:
    """The metric on one of the audit's groups under the key ``group.{scheme}.{band}.{key}``; a count where the group is too small."""
    held = inside(audit, name)
    key, size = ".".join(("group", *scheme_of(name), metric.key)), len(held.unlearned.of("forget").labels)
    if size < LEAST:
        return replace(not_computed(key, metric.better, f"{size} forget images, needs {LEAST}", audit), n_examples=size)
    found = metric(held)
    return replace(found, key=key, missing=found.missing and found.missing.replace("this forget set", "this group"))


def band_differences(audit: Audit, names: Sequence[str], trace: Trace | None = None) -> list[Result]:
    """How much more of the trace is left in one band than in another, under ``difference.{scheme}.{band}.{other}.trace``.

    For every two groups of a scheme that share no forget image and are not too small. The same models are scored in all bands, so
    that what a model pulls in one is subtracted from what it pulls in the other: se² = Σ var(pull_a − pull_b)/number, over
    unlearned models with their originals and over oracles; Student's t with N − 1 df. ``p`` is two-sided, ``holm_p`` corrected for
    the pairs of the scheme (metrics §7.4). They speak of these images: two random groups of images may differ in truth.

    Simulated at N = 16 and 32, the intervals cover .92 to .99, and Holm accuses somebody wrongly in .02 to .06 of studies; percentiles of a joint
    bootstrap over models cover .91 to .97. At worst .8 and .2: where models differ as a whole by more than a band's gap, and keep these
    differences when they unlearn.
    """
    trace = trace or Trace()
    forget = audit.unlearned.part == PARTS.index("forget")
    sized = {name: mask for name in names if int((mask := audit.groups[name] & forget).sum()) >= LEAST}
    found = {name: trace.left(audit.restrict(mask)) for name, mask in sized.items()}
    schemes: dict[str, list[Result]] = {}
    for one, other in combinations(sized, 2):
        if scheme_of(one)[0] == scheme_of(other)[0] and not bool((sized[one] & sized[other]).any()):
            a, b = sorted((one, other), key=_rank, reverse=True) if _rank(one) != _rank(other) else (other, one)
            key = ".".join(("difference", *scheme_of(a), scheme_of(b)[1], trace.key))
            schemes.setdefault(scheme_of(a)[0], []).append(_difference(key, audit, (a, b), (found[a], found[b]), int((sized[a] | sized[b]).sum())))
    return [result for held in schemes.values() for result in _corrected(held)]


def _rank(name: str) -> int:
    band = scheme_of(name)[1]
    return RISING.index(band) if band in RISING else -1


def _difference(key: str, audit: Audit, names: tuple[str, str], sides: tuple[Left | Result, Left | Result], size: int) -> Result:
    n_models = (len(audit.unlearned), len(audit.oracles), len(audit.originals))
    for name, side in zip(names, sides, strict=True):
        if isinstance(side, Result):
            why = (side.missing or "").removeprefix("not computed: ").replace("this forget set", f"'{scheme_of(name)[1]}'")
            return replace(not_computed(key, "match_oracle", why, audit), n_examples=size)
    a, b = (side for side in sides if not isinstance(side, Result))
    value, se, df = a.value - b.value, standard_error([x - y for x, y in zip(a.pulls, b.pulls, strict=True)]), n_models[0] - 1
    extra, p = {"se": se}, p_of(value, se, df)
    return Result(key, value, "match_oracle", perfect=0.0, ci=t_of(value, se, df), p=p, n_models=n_models, n_examples=size, extra=extra)


def _corrected(results: Sequence[Result]) -> list[Result]:
    """With Holm's p among those that have a p."""
    known = [result.p for result in results if result.p is not None]
    adjusted = iter(holm(known))
    return [result if result.p is None else replace(result, extra={**result.extra, "holm_p": next(adjusted)}) for result in results]
