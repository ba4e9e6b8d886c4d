"""Which share of the mark that the forget set left on a model is still there? 1: the original, 0: an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result, not_computed
from unlearnlab.metrics.statistics import t_of, unfit, welch_lower
from unlearnlab.outputs import Outputs
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]
Held = Bool[Tensor, "folds models"]


@spec("metric", "trace")
class Trace:
    """The share of the original's mark that is left: 1 = the original, 0 = an oracle, below 0 = pushed past it.

    On three quarters of the models: gap g_j = mean P_j − mean O_j, s_j² = (var O_j + var P_j)/2. The rest are
    scored a = Σ_j (g_j/s_j²)(m_j − mean O_j) / Σ_j g_j²/s_j², m the logit margin on forget example j.
    trace = (mean a_U − mean a_O)/(mean a_P − mean a_O); U_i and its original P_i are always held out together.
    Variance [var(a_U − trace·a_P)/N + (1 − trace)² var(a_O)/M]/(mean a_P − mean a_O)², t with N − 1 df.
    Unbiased at 0, hence no floor. Not computed where the denominator's one-sided lower 95 % limit is not above 0.
    It sees only the direction of the original: read `perm.omnibus` and `energy` beside it. Source: metrics.md §5.6.
    """

    folds: Annotated[int, Setting("folds over models; each is scored by a direction found on the others", ge=2, le=16)] = 4
    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 2
    ideal: ClassVar[str] = "0, and in an interval that covers 0 in 95 of 100 studies"
    caution: ClassVar[str] = "sees one direction only, from originals to oracles: a method that moved elsewhere can show 0, so read perm.omnibus beside it"

    @property
    def key(self) -> str:
        return "trace"

    def __call__(self, audit: Audit) -> Result:
        left = self.left(audit)
        if isinstance(left, Result):
            return left
        unlearned = audit.unlearned.of("forget")
        return Result(
            self.key,
            left.value,
            self.better,
            perfect=0.0,
            ci=t_of(left.value, left.se, len(unlearned) - 1, 0.95),
            n_models=(len(unlearned), len(audit.oracles), len(audit.originals)),
            n_examples=len(unlearned.labels),
            notes=_lineage(audit.parents),
            extra={"gap": left.gap, "gap_lower": left.gap_lower, "oracle_sd": left.oracle_sd, "se": left.se},
            per_example=tuple(left.per_example.tolist()),
            per_model=tuple(left.per_model.tolist()),
        )

    def left(self, audit: Audit) -> Left | Result:
        """All that the estimate rests on, or the ``not computed`` result."""
        missing = unfit(self, audit, "forget")
        if missing is not None:
            return missing
        originals, oracles, unlearned = (seen.of("forget") for seen in (audit.originals, audit.oracles, audit.unlearned))
        if not len(originals):
            return not_computed(self.key, self.better, "no originals were given", audit)
        n = min(len(originals), len(oracles), len(unlearned))
        if n < self.minimum:
            return not_computed(self.key, self.better, f"N={n}, needs {self.minimum}", audit)
        held = hold_out(originals, oracles, unlearned, audit.parents, self.folds)
        left = share_left(originals.margin, oracles.margin, unlearned.margin, audit.parents, *held)
        if left.gap_lower <= 0:
            reason = f"this forget set leaves no trace at N={n}"
            return replace(not_computed(self.key, self.better, reason, audit), n_examples=len(unlearned.labels))
        return left


@dataclass(frozen=True, eq=False)
class Left:
    """``gap``: mean a_P − mean a_O; ``oracle_sd``: sd of the held-out oracles' scores in units of the gap.

    ``pulls``: how far each model pulls the value, one tensor for each set of models that were made independently: unlearned
    models with their originals (or apart, where parents are unknown), and oracles. se² = Σ var(pulls)/their number.
    """

    value: float
    se: float
    gap: float
    gap_lower: float
    oracle_sd: float
    per_model: Float64[Tensor, " models"]
    per_example: Float64[Tensor, " examples"]
    pulls: tuple[Float64[Tensor, " models"], ...]


def share_left(p: Margins, o: Margins, u: Margins, parents: Int64[Tensor, " models"] | None, out_p: Held, out_o: Held, out_u: Held) -> Left:
    """``trace`` and its standard error from margins; ``out_*[f, i]``: model i is held out, hence scored, in fold f."""
    a_p, a_o, a_u = _scores(p, o, u, out_p, out_o, out_u)
    # gathered by parent, so that an original handed in as its own unlearned model gives x/x, exactly 1
    a_p = a_p if parents is None else a_p[parents]
    gap = a_p.mean() - a_o.mean()
    value = (a_u.mean() - a_o.mean()) / gap
    own = (a_u, -value * a_p) if parents is None else (a_u - value * a_p,)
    pulls = tuple(of / gap for of in (*own, (value - 1) * a_o))
    # per example the gap may be nil: no less than its own standard error, so that noise is not blown up
    gaps, least = p.mean(0) - o.mean(0), (_spread(p, o) * (1 / len(p) + 1 / len(o))).sqrt()
    own_gap = torch.where(gaps < 0, -1.0, 1.0) * gaps.abs().clamp_min(least)
    return Left(
        value=float(value),
        se=standard_error(pulls),
        gap=float(gap),
        gap_lower=welch_lower(a_p, a_o, 0.05),
        oracle_sd=float(_var(a_o).sqrt() / gap.abs()),
        per_model=(a_u - a_o.mean()) / gap,
        per_example=(u.mean(0) - o.mean(0)) / own_gap,
        pulls=pulls,
    )


def standard_error(pulls: Sequence[Float64[Tensor, " models"]]) -> float:
    """Of a value that independent sets of models pull: √Σ var/number."""
    return math.sqrt(sum(float(_var(of)) / len(of) for of in pulls))


def hold_out(originals: Outputs, oracles: Outputs, unlearned: Outputs, parents: Int64[Tensor, " models"] | None, folds: int) -> tuple[Held, Held, Held]:
    """Who is held out in which fold. Dealt by rank of the seed, so that the order of models does not matter.

    Where all come from fewer originals than there are folds, those originals are held out throughout.
    """
    out_p, out_o, out_u = (_deal(seen.models, folds) for seen in (originals, oracles, unlearned))
    if parents is not None:
        if len(set(parents.tolist())) < folds:
            out_p = torch.isin(torch.arange(len(originals)), parents).expand(folds, -1)
        out_u = out_p[:, parents]
    return out_p, out_o, out_u


def _deal(seeds: tuple[int, ...], folds: int) -> Held:
    ranks = torch.tensor(seeds).argsort(stable=True).argsort()
    return ranks % folds == torch.arange(folds)[:, None]


def _scores(p: Margins, o: Margins, u: Margins, *out: Held) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out position of every model along the direction oracles -> originals, averaged over the folds it is held out in."""
    totals = [torch.zeros(len(m), dtype=torch.float64) for m in (p, o, u)]
    for out_p, out_o, out_u in zip(*out, strict=True):
        fit_p, fit_o = p[~out_p], o[~out_o]
        centre = fit_o.mean(0)
        gap = fit_p.mean(0) - centre
        weight = gap / _spread(fit_p, fit_o)
        weight = weight / (gap * weight).sum().clamp_min(torch.finfo(torch.float64).tiny)  # equal margins everywhere: all scores 0
        for total, m, held in zip(totals, (p, o, u), (out_p, out_o, out_u), strict=True):
            # a sum over rows, not a matmul: BLAS may round the same row differently in another place
            total[held] += ((m[held] - centre) * weight).sum(-1)
    a_p, a_o, a_u = (total / held.sum(0) for total, held in zip(totals, out, strict=True))
    return a_p, a_o, a_u


def _spread(p: Margins, o: Margins) -> Float64[Tensor, " examples"]:
    """s_j² = (var O_j + var P_j)/2, at least (1e-3 of the typical sd)²; 1 where nothing varies at all."""
    s2 = (_var(p) + _var(o)) / 2
    typical = s2.mean()
    return s2.clamp_min(1e-6 * typical) if typical > 0 else torch.ones_like(s2)


def _var(values: Tensor) -> Tensor:
    return values.var(0) if len(values) > 1 else torch.zeros_like(values[0])


def _lineage(parents: Int64[Tensor, " models"] | None) -> tuple[str, ...]:
    if parents is None:
        return ("originals of the unlearned models unknown: held out apart, interval unpaired",)
    sources = len(set(parents.tolist()))
    if sources == 1:
        return ("one original for all: the interval does not cover differences between originals",)
    return () if sources == len(parents) else (f"{sources} originals for {len(parents)} unlearned models: the interval is too narrow",)
