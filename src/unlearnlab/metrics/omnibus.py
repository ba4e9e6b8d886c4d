"""Can unlearned models be told from oracles at all? The permutation test that decides, and the energy distance."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Anchor, Audit, Better, Result, not_computed
from unlearnlab.metrics.statistics import NO_CEILING, SPLITS, halves, in_order, jackknife, relabellings, sides, t_of, unfit
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]
Labels = Bool[Tensor, "labellings models"]


@spec("metric", "perm.omnibus")
class Omnibus:
    """Probability of a difference this large between unlearned models and oracles if there were none.

    Margins of both on the forget set, each column divided by its sd over all models. Three statistics: energy
    distance e, shift s = |mean of U − mean of O|, spread v = |mean_j log(var U_j/var O_j)|; each becomes a
    permutation p-value for every relabelling of the models, the smallest of the three is compared with its own
    distribution under relabelling. p = share of relabellings (the observed one included) as extreme as the observed;
    up to N = 7 all of them are counted.
    Exact where U and O are exchangeable, hence a ``p`` is given only if every U_i has its own independent original;
    ``value`` is the same share in any case. Source: metrics.md §1.3a.
    """

    permutations: Annotated[int, Setting("random relabellings of the models", symbol="B", ge=1_999)] = 9_999
    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 4
    trust: ClassVar[int] = 2
    ideal: ClassVar[str] = "any value, each as likely as another: below .05 in one study of twenty"
    caution: ClassVar[str] = (
        "valid only where every unlearned model has an original of its own; a large p with few models acquits nobody: read the power sentence"
    )

    @property
    def key(self) -> str:
        return "perm.omnibus"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, "forget")
        if missing is not None:
            return missing
        u, o = (in_order(seen.of("forget")).margin for seen in (audit.unlearned, audit.oracles))
        notes: tuple[str, ...] = () if audit.independent else (f"p not valid: {origin(audit.parents)}",)
        n = min(len(u), len(o))
        if n < 6:
            # a statistic symmetric in U and O takes every value twice when both are equally many
            notes += (f"N={n}: p cannot fall below {(2 if len(u) == len(o) else 1) / comb(len(u) + len(o), n):.2g}",)
        p, parts = omnibus(u, o, self.permutations, audit.seed)
        return Result(
            self.key,
            p,
            self.better,
            p=p if audit.independent else None,
            n_models=(len(u), len(o), len(audit.originals)),
            n_examples=u.shape[1],
            notes=notes,
            extra=parts,
        )


@spec("metric", "energy")
class Energy:
    """How far the unlearned models' margins lie from the oracles', whatever the direction of the difference.

    e = 2 mean D(U,O) − mean D(U,U) − mean D(O,O) over distinct pairs, D = ||Z_a − Z_b||/√n, Z as in `perm.omnibus`.
    Its mean over oracle pairs is exactly 0 at every N; ``rescaled`` = e/e(originals, oracles). Interval: jackknife
    over 8 groups of models, an unlearned model and its original leaving together. Source: metrics.md §1.3, §1.3a, §1.4.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 3
    ideal: ClassVar[str] = "0 on average, as other oracles do"
    caution: ClassVar[str] = "a distance says that models differ and not in which direction; trace says that"

    @property
    def key(self) -> str:
        return "energy"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, "forget")
        if missing is not None:
            return missing
        if 0 < len(audit.originals) < self.minimum:
            return not_computed(self.key, self.better, f"N={len(audit.originals)}, needs {self.minimum}", audit)
        u, o, p = (seen.margin for seen in sides(audit, "forget"))
        floor = torch.tensor([energy_distance(o[a], o[b]) for a, b in halves(len(o), SPLITS, audit.seed, "halves.oracles")])
        low = Anchor(0.0, float(floor.std()), SPLITS, f"exactly 0 at every N; sd at N/2 = {len(o) // 2} models a side")
        sizes = (len(u), len(o), len(p))
        if not len(p):
            (ci,) = jackknife(lambda i, j: torch.tensor([energy_distance(u[i], o[j])], dtype=torch.float64), len(u), len(o))
            value = energy_distance(u, o)
            return Result(self.key, value, self.better, 0.0, ci, floor=low, n_models=sizes, n_examples=u.shape[1], notes=(NO_CEILING,))

        def compute(some_u: Tensor, some_o: Tensor) -> Tensor:
            value = energy_distance(u[some_u], o[some_o])
            ceiling = energy_distance(p[some_u] if audit.independent else p, o[some_o])
            return torch.tensor([value, ceiling, value / ceiling if ceiling else torch.nan], dtype=torch.float64)

        value, ceiling, ratio = compute(torch.arange(len(u)), torch.arange(len(o))).tolist()
        ci, ceiling_ci, ratio_ci = jackknife(compute, len(u), len(o))
        resolved = ceiling_ci.lo > 0
        return Result(
            self.key,
            value,
            self.better,
            perfect=0.0,
            ci=ci,
            floor=low,
            ceiling=Anchor(ceiling, (ceiling_ci.hi - ceiling_ci.lo) / (2 * t_of(0.0, 1.0, 7).hi), note=f"originals against oracles at N = {len(o)}"),
            rescaled=ratio if resolved else None,
            rescaled_ci=ratio_ci if resolved else None,
            n_models=sizes,
            n_examples=u.shape[1],
            notes=() if resolved else ("not resolvable: the interval of the ceiling reaches the floor",),
        )


PARTS = ("energy", "shift", "spread")


def omnibus(u: Margins, o: Margins, permutations: int, seed: int) -> tuple[float, dict[str, float]]:
    """p-value of the default two-sample test; besides, each statistic and its p-value alone."""
    seen = statistics(standardise(u, o), labellings(len(u), len(o), permutations, seed))
    # how many labellings are at least as extreme, for every labelling and statistic: ties count against
    # it, and rounding must not break those that differ in the last bits only
    rounded = seen.round(decimals=9)
    above = seen.shape[1] - torch.searchsorted(rounded.sort(-1).values, rounded)
    least = above.amin(0)
    alone = {f"p_{name}": int(count) / seen.shape[1] for name, count in zip(PARTS, above[:, 0], strict=True)}
    return float((least <= least[0]).double().mean()), alone | dict(zip(PARTS, seen[:, 0].tolist(), strict=True))


def energy_distance(u: Margins, o: Margins) -> float:
    """Energy distance between the standardised margins of two groups of models; 0 on average where they are alike."""
    labels = torch.arange(len(u) + len(o)) < len(u)
    return float(energies(distances(standardise(u, o)), labels[None].double()))


def standardise(u: Margins, o: Margins) -> Float64[Tensor, "both examples"]:
    """Both groups as one array, every column centred and divided by its sd over all rows (at least 1e-3 of the median sd)."""
    both = torch.cat([u, o])
    sd = both.std(0)
    sd = sd.clamp_min(1e-3 * float(sd.median()))
    return (both - both.mean(0)) / torch.where(sd > 0, sd, 1.0)


@lru_cache(maxsize=2)  # all methods of a study are tested against the same labellings
def labellings(u: int, o: int, count: int, seed: int) -> Labels:
    """Row 0: the true labels (the first ``u`` models are the unlearned ones); then ``count`` random ones, or all others where there are no more."""
    if comb(u + o, u) <= count:
        every = torch.tensor(list(combinations(range(u + o), u)))
        return torch.zeros(len(every), u + o, dtype=torch.bool).scatter_(1, every, True)
    return torch.cat([(torch.arange(u + o) < u)[None], relabellings(u, o, count, seed)])


def statistics(z: Float64[Tensor, "both examples"], labels: Labels) -> Float64[Tensor, "3 labellings"]:
    """Energy distance, |mean shift| and |mean log variance ratio| under every labelling."""
    u, n = int(labels[0].sum()), z.shape[1]
    o = len(z) - u
    distance, level, square = distances(z), z.mean(1), z.square()
    total, square_total = level.sum(), square.sum(0)
    parts = []
    size = max(64, 2**16 // (n + len(z)))  # arrays of half a megabyte: they stay in cache
    for start in range(0, len(labels), size):
        x = labels[start : start + size].double()
        mean = x @ level / u
        # the columns of z sum to 0, so the oracles' sums are the unlearned ones' with the other sign
        sums, squares = (x @ z).square_(), x @ square
        var_u, var_o = (squares - sums / u).div_(u - 1), (square_total - squares).sub_(sums, alpha=1 / o).div_(o - 1)
        # columns have unit sd: 1e-6 is the floor of (1e-3 sd)²; a column without any spread has ratio 1
        spread = var_u.clamp_min_(1e-6).div_(var_o.clamp_min_(1e-6)).log_().mean(1).abs()
        parts.append(torch.stack([energies(distance, x), (mean - (total - mean * u) / o).abs(), spread]))
    return torch.cat(parts, 1)


def distances(z: Float64[Tensor, "both examples"]) -> Float64[Tensor, "both both"]:
    """Root mean squared difference of every two models."""
    # the fast mode of cdist is not 0 on equal rows
    found: Tensor = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist") / z.shape[1] ** 0.5
    return found


def energies(distance: Float64[Tensor, "both both"], x: Float64[Tensor, "labellings both"]) -> Float64[Tensor, " labellings"]:
    """2 mean D(U,O) − mean D(U,U) − mean D(O,O) for 0/1 rows x: with y = 1 − x, sums over pairs are xDx, xDy, yDy."""
    u = x.sum(1)
    o = len(distance) - u
    inner = ((x @ distance) * x).sum(1)
    across = x @ distance.sum(0) - inner
    found: Tensor = 2 * across / (u * o) - inner / (u * (u - 1)) - (distance.sum() - 2 * across - inner) / (o * (o - 1))
    return found


def origin(parents: Int64[Tensor, " models"] | None) -> str:
    """From how many originals the unlearned models come, in words."""
    if parents is None:
        return "originals unknown"
    sources = len(set(parents.tolist()))
    return "one original" if sources == 1 else f"{sources} originals for {len(parents)} unlearned models"
