"""DUCI: how much of the forget set is still used? A membership attack, corrected for how often it errs on models of known training sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Interval, Result, not_computed
from unlearnlab.metrics.rmia import GAMMA, OFFSET, LogP, OfGamma, OfOffset, OfPopulation, beaten, log_p, offline, references_of, suffix
from unlearnlab.metrics.statistics import beside, bootstrap_models, in_order, t_of
from unlearnlab.outputs import Outputs, lowest_argmax
from unlearnlab.spec import spec

LEAST_ADVANTAGE = 0.05  # TPR − FPR, by which p̂ is divided
DRAWS, ROWS = 1000, 100  # bootstrap samples, and how many at a time
FAR = 0.1  # of oracles from 0, or of originals from 1


def leave_one_out(
    forget: LogP, member: Bool[Tensor, "models n"], population: LogP, a: float, gamma: float
) -> tuple[Int64[Tensor, "models n"], Bool[Tensor, "models n"]]:
    """Scores of every reference by all others, never by itself; and which images some other reference is new to, so that they count."""
    counts, known = torch.zeros(forget.shape, dtype=torch.int64), torch.zeros(forget.shape, dtype=torch.bool)
    unseen = torch.zeros(population.shape, dtype=torch.bool)
    for j in range(len(forget)):
        rest = torch.arange(len(forget)) != j
        x, z = offline(forget[rest], member[rest], a), offline(population[rest], unseen[rest], a)
        counts[j], known[j] = beaten(forget[j : j + 1] - x, population[j : j + 1] - z, gamma)[0], (~member[rest]).any(0)
    return counts, known


def at_least(counts: Int64[Tensor, "models n"], of: Bool[Tensor, "models n"], most: int) -> Float64[Tensor, "models cuts"]:
    """Per model, how many of these scores are >= t, for every cut t = 0 … most."""
    cells = (counts + (most + 1) * torch.arange(len(counts))[:, None])[of]
    each = torch.bincount(cells, minlength=len(counts) * (most + 1)).reshape(len(counts), most + 1)
    return each.flip(1).cumsum(1).flip(1).double()


@dataclass(frozen=True, eq=False)
class Rates:
    """How often references are called members of what they saw and did not see, for every cut: counts per reference, and how many images."""

    caught: Float64[Tensor, "references cuts"]
    accused: Float64[Tensor, "references cuts"]
    members: Float64[Tensor, " references"]
    others: Float64[Tensor, " references"]

    @staticmethod
    def of(counts: Int64[Tensor, "models n"], known: Bool[Tensor, "models n"], member: Bool[Tensor, "models n"], most: int) -> Rates:
        seen, unseen = known & member, known & ~member
        return Rates(at_least(counts, seen, most), at_least(counts, unseen, most), seen.sum(1).double(), unseen.sum(1).double())

    def best(self) -> int:
        """The cut with the largest TPR − FPR over all references: of equally good ones the smallest, among scores that occur."""
        gain = self.caught.sum(0) * self.others.sum() - self.accused.sum(0) * self.members.sum()  # whole numbers: equal means equal
        return int(lowest_argmax(gain.where(self.occur, -torch.inf)))

    @property
    def occur(self) -> Bool[Tensor, " cuts"]:
        """Cuts that are some reference's score."""
        reached = self.caught.sum(0) + self.accused.sum(0)
        return reached > torch.cat([reached[1:], reached.new_zeros(1)])

    @property
    def sides(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What makes the TPR and what makes the FPR: counts, and of how many."""
        return (self.caught, self.members), (self.accused, self.others)


@dataclass(frozen=True, eq=False)
class Used:
    """p̂ = (share of forget called used − FPR)/(TPR − FPR) of models whose scores are counts of population images beaten."""

    rates: Rates
    cut: int
    tpr: float
    fpr: float

    @staticmethod
    def by(rates: Rates) -> Used:
        cut = rates.best()
        tpr, fpr = (float(of[:, cut].sum() / size.sum()) for of, size in rates.sides)
        return Used(rates, cut, tpr, fpr)

    def of(self, counts: Int64[Tensor, "models n"]) -> Float64[Tensor, " models"]:
        """p̂ of every model; "used" is score >= t, as where the rates were found."""
        return ((counts >= self.cut).double().mean(1) - self.fpr) / (self.tpr - self.fpr)

    def interval(self, counts: Int64[Tensor, "models n"], seed: int) -> Interval:
        """Of the mean p̂. References and models are drawn again, each with all its images, and the cut is chosen anew each time.

        The standard error is the draws', the quantile Student's: percentiles are too narrow with few references. Draws whose references
        saw, or did not see, no usable image have no rates and are left out.
        """
        n, references = len(counts), len(self.rates.members)
        called = at_least(counts, torch.ones_like(counts, dtype=torch.bool), self.rates.caught.shape[1] - 1) / counts.shape[1]
        w, v = bootstrap_models(references, DRAWS, seed, "duci.references"), bootstrap_models(n, DRAWS, seed, "duci.models")
        drawn = []
        for at in range(0, DRAWS, ROWS):
            rows = slice(at, at + ROWS)
            tpr, fpr = ((w[rows] @ of) / (w[rows] @ size)[:, None] for of, size in self.rates.sides)
            cut = lowest_argmax((tpr - fpr).where(self.rates.occur, -torch.inf)).unsqueeze(1)
            tpr, fpr, called_used = (of.gather(1, cut)[:, 0] for of in (tpr, fpr, v[rows] @ called))
            drawn.append((called_used - fpr) / (tpr - fpr).clamp_min(LEAST_ADVANTAGE))
        again = torch.cat(drawn)
        se, method = float(again[~again.isnan()].std()), "t, bootstrap over references and models"
        return t_of(float(self.of(counts).mean()), se, min(n, references) - 1, method=method)


@spec("metric", "duci", paper="github.com/privacytrustlab/ml_privacy_meter")
class Duci:
    """Which share of the forget set a model still uses: 0 none of it, 1 all of it, below 0 pushed past; oracles and originals stand beside.

    Scores are those of `rmia.auc` (offline). Every reference is scored by the others, and over all references and forget images
    TPR(t) and FPR(t) are the shares with score >= t of what they saw and did not see; t maximises TPR − FPR (of equally good ones
    the smallest). p̂ = (share of forget with score >= t − FPR)/(TPR − FPR) for each model (Tong et al.; metrics §4.4). The interval holds
    the uncertainty of references, cut and models, and takes the images as they are. Not computed where TPR − FPR < .05. ``tpr``, ``fpr``: at that cut.

    One pair of rates serves all images at every number of references: with rates per image the simulated p̂ had 1.4 to 1.6 times the
    error at 16 and at 40 references. The best of all cuts is a little too good for its references: simulated oracles have p̂ of about
    .02, .015, .01 and .005 instead of 0 at 4, 8, 16 and 40 references, which the floor shows too and the rescaled value does not.

    Differs from the published code: ">=" in both places, masked means, no model among its own references.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    references: ClassVar[int] = 4
    needs: ClassVar[frozenset[str]] = frozenset({"references"})
    trust: ClassVar[int] = 5
    ideal: ClassVar[str] = "the oracles' value, which would be 0 if reference models were like them"
    caution: ClassVar[str] = (
        "how often the attack errs was learnt on models trained on half of the images, and need not hold for others: where oracles do not come out at 0 and "
        "originals at 1, read the rescaled value"
    )
    a: OfOffset = OFFSET
    gamma: OfGamma = GAMMA
    population: OfPopulation = "test"

    @property
    def key(self) -> str:
        return f"duci{suffix(self.a, self.gamma, self.population)}"

    def __call__(self, audit: Audit) -> Result:
        ready = references_of(self, audit, self.references, self.population, "forget")
        if isinstance(ready, Result):
            return ready
        seen, notes = ready
        forget, others = seen.of("forget"), seen.of(self.population)
        counts, known = leave_one_out(log_p(forget), forget.member, log_p(others), self.a, self.gamma)
        rates = Rates.of(counts, known, forget.member, len(others.labels))
        for size, what in ((rates.members, "saw"), (rates.others, "did not see")):
            if not bool(size.any()):
                return not_computed(self.key, self.better, f"no reference {what} a forget image that some other reference is new to", audit)
        used = Used.by(rates)
        if used.tpr - used.fpr < LEAST_ADVANTAGE:
            why = f"the attack hardly works on the references: TPR − FPR = {used.tpr - used.fpr:.3f}, needs {LEAST_ADVANTAGE}"
            return not_computed(self.key, self.better, why, audit)
        keep = (~forget.member).any(0)
        x, z = offline(log_p(forget), forget.member, self.a)[keep], offline(log_p(others), others.member, self.a)

        def scored(outputs: Outputs) -> Tensor:
            return beaten(log_p(outputs.of("forget"))[:, keep] - x, log_p(outputs.of(self.population)) - z, self.gamma)

        called = scored(in_order(audit.unlearned))
        u, o, p = (used.of(scored(side)) for side in (audit.unlearned, audit.oracles, audit.originals))
        gone = int((~keep).sum())
        apart = [float(of.mean()) for of in (o, p) if len(of)]
        if any(abs(mean - wanted) > FAR for mean, wanted in zip(apart, (0.0, 1.0), strict=False)):
            words = " and ".join(f"{who} come out at {mean:.2f}" for who, mean in zip(("oracles", "originals"), apart, strict=False))
            notes = (*notes, f"{words}, not at 0 and 1: read the rescaled value")
        extra = {"references": float(len(seen)), "tpr": used.tpr, "fpr": used.fpr, "cut": used.cut / len(others.labels)}
        return beside(u, o, p, audit.parents).result(
            self,
            audit,
            float(u.mean()),
            int(keep.sum()),
            ci=used.interval(called, audit.seed),
            per_model=tuple(u.tolist()),
            notes=(*notes, "rates over all forget images together"),
            dropped=((gone, "forget images that no reference is new to"),) if gone else (),
            extra=extra,
        )
