"""Who is not forgotten? Disjoint bands of examples, and metrics within a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Metric, Result, not_computed
from unlearnlab.spec import InputError

LEAST = 30  # forget examples; smaller groups are shown as counts


def bands(
    scores: Float[Tensor, " n"], ids: Int64[Tensor, " n"], names: Sequence[str] = ("low", "middle", "high"), cuts: Sequence[float] | None = None
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


def of_group(metric: Metric, audit: Audit, name: str) -> Result:
    """The metric on one of the audit's groups under the key ``group.{scheme}.{band}.{key}``; a count where the group is too small.

    A group's name is ``scheme.band``, such as memorisation.high; without a scheme it is one of labels, such as mislabelled.
    """
    inside = audit.group(name)
    key, size = f"group.{name if '.' in name else f'label.{name}'}.{metric.key}", len(inside.unlearned.of("forget").labels)
    if size < LEAST:
        return replace(not_computed(key, metric.better, f"{size} forget images, needs {LEAST}", audit), n_examples=size)
    return replace(metric(inside), key=key)
