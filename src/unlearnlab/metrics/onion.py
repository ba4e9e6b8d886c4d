"""Did forgetting some images lay others bare?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Interval, Result, not_computed
from unlearnlab.metrics.lira import consulted
from unlearnlab.metrics.statistics import beside, by_seed, jackknife, t_of, unfit
from unlearnlab.spec import spec

Scores = Float64[Tensor, "models n"]

TOP = 5  # images named
MOST = 4_000_000  # differences between originals that set the threshold


def usual(z: Scores) -> float:
    """99th percentile of the difference between two of these models on an image, over images and ordered pairs of models.

    Both orders of a pair give ±d, so that it is the 98th percentile of |d|. Beyond ``MOST`` differences pairs are taken by their distance in
    the order of the models, the near ones first, each model as often as another.
    """
    apart = range(1, min(len(z) // 2, max(1, MOST // z.numel())) + 1)
    every = torch.cat([(z - z.roll(k, 0))[: k if 2 * k == len(z) else None].abs().flatten() for k in apart])  # half-way round, pairs come twice
    return float(every.kthvalue(1 + round(0.98 * (len(every) - 1))).values)


def exposed(z: Scores, originals: Scores, threshold: float, own: Int64[Tensor, " models"] | None = None) -> Float64[Tensor, " models"]:
    """Share of images whose z rises by more than the threshold from an original to a model: the mean over originals other than the model's own.

    ``own``: rows of ``originals``; −1 where a model's own is not among them.
    """
    below = originals.T.contiguous().sort(1).values
    above = torch.searchsorted(below, (z - threshold).T.contiguous()).T  # originals strictly below z − threshold
    if own is None:
        return above.double().mean(1) / len(originals)
    there = own >= 0
    from_own = (z - threshold > originals[own.clamp_min(0)]) & there[:, None]
    return (above - from_own.long()).double().mean(1) / (len(originals) - there.long())


def intervals(u: Scores, o: Scores, p: Scores, own: Int64[Tensor, " models"] | None) -> tuple[Interval, Interval] | None:
    """Of the mean share of unlearned models, and of its excess over that of oracles; None with fewer than 3 originals.

    All models are compared with the same originals, which set the threshold too: a group of originals leaves the jackknife together with a
    group of unlearned models (its own, where row i of ``p`` is that of row i of ``u``). The variance among oracles is added to that of the excess.
    """
    if len(p) < 3:
        return None

    def without(i: Tensor, j: Tensor) -> Tensor:
        kept, at = p[j], torch.full((len(p),), -1).scatter(0, j, torch.arange(len(j)))
        threshold = usual(kept)
        mean = exposed(u[i], kept, threshold, None if own is None else at[own[i]]).mean()
        return torch.stack([mean, mean - exposed(o, kept, threshold).mean()])

    value, excess = jackknife(without, len(u), len(p))
    groups = min(8, len(u), len(p))
    unit = t_of(0.0, 1.0, groups - 1).hi
    se = math.hypot((excess.hi - excess.lo) / (2 * unit), float(exposed(o, p, usual(p)).std()) / math.sqrt(len(o)))
    return value, t_of((excess.lo + excess.hi) / 2, se, groups - 1, method=excess.method)


@spec("metric", "onion.new_exposed", paper="arXiv:2206.10469")
class NewlyExposed:
    """Share of retained images that give themselves away in an unlearned model and not before; perfect is the oracles' share, which is not 0.

    z = (m − μ_out)/σ_out: how far a model's margin on an image lies above those of references that never saw it. Δ = z_U − z_P on each
    retained image; exposed are Δ above the 99th percentile of Δ between two originals (Carlini et al., the privacy onion; metrics §5.5).
    ``excess``: the share above that of oracles, for which Δ = z_O − z_P, with its interval; ``top_1`` …: ids of the images that rise
    most. ``separation``, ``separation_exposed``: (μ_in − μ_out)/σ_out, what having been seen is worth on all retained images and on the
    top ones. Intervals are over unlearned models, oracles and originals; images and references are taken as they are. Needs 16 references.

    Where the paper leaves it open: P are all originals but U's own. Oracles and the threshold compare models that were trained apart; U and
    its own original have much noise in common, and the share would be below that of a perfect unlearner by that alone (``against_own``).
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    references: ClassVar[int] = 16
    needs: ClassVar[frozenset[str]] = frozenset({"references"})
    trust: ClassVar[int] = 5
    ideal: ClassVar[str] = "what the oracles score, near .01 or somewhat above: training without the forget set exposes other images too"
    caution: ClassVar[str] = "only the excess over the oracles says anything about a method; with few originals the threshold is itself uncertain"
    key: ClassVar[str] = "onion.new_exposed"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, "forget", "retain")
        if missing:
            return missing
        if len(audit.originals) < 2:
            return not_computed(self.key, self.better, f"{len(audit.originals)} original, needs 2", audit)
        seen = consulted(self, audit, self.references, "retain")
        if isinstance(seen, Result):
            return seen
        without, having = seen.bells()
        of_u, of_o, of_p = (without.z(side.margin[:, seen.at]) for side in (audit.unlearned, audit.oracles, audit.originals))
        by_u, by_o, by_p = by_seed(audit)
        by_p += [row for row in range(len(of_p)) if row not in set(by_p)]
        own = None if audit.parents is None else torch.tensor(by_p).argsort()[audit.parents[by_u]]
        threshold = usual(of_p[by_p])
        u, o, p = exposed(of_u, of_p, threshold, audit.parents), exposed(of_o, of_p, threshold), exposed(of_p, of_p, threshold, torch.arange(len(of_p)))
        rise, ids = of_u.mean(0) - of_p.mean(0), audit.unlearned.ids[seen.at]
        by_id = ids.argsort()
        top = by_id[rise[by_id].argsort(descending=True, stable=True)][:TOP]
        worth = (having.mean - without.mean) / without.sd
        extra = {
            "threshold": threshold,
            "excess": float(u.mean() - o.mean()),
            "separation": float(worth.mean()),
            "separation_exposed": float(worth[top].mean()),
            **{f"top_{rank}": float(i) for rank, i in enumerate(ids[top].tolist(), 1)},
        }
        ends = intervals(of_u[by_u], of_o[by_o], of_p[by_p], own)
        if ends is not None:
            extra |= {"excess_lo": ends[1].lo, "excess_hi": ends[1].hi}
        if audit.parents is not None:
            extra["against_own"] = float((of_u - of_p[audit.parents] > threshold).double().mean())
        notes = [seen.note, "no ratio: an original exposes 1 % by construction, which is no upper end"]
        notes += [] if ends else [f"no interval: {len(of_p)} originals, needs 3"]
        found, ci = replace(beside(u, o, p), rescaled=None, rescaled_ci=None, notes=tuple(notes)), ends and ends[0]
        return found.result(self, audit, float(u.mean()), len(seen.at), ci=ci, per_model=tuple(u.tolist()), dropped=seen.dropped, extra=extra)
