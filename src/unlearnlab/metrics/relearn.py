"""How soon is the forget set known again? Models are taught it once more, and whoever still knew it gets there first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result, not_computed
from unlearnlab.metrics.accuracy import correct
from unlearnlab.metrics.statistics import beside, by_seed, calibrated, t_interval, unfit, welch_interval
from unlearnlab.spec import InputError, Setting, digest, spec

ADDED = 0.01  # to both step counts of the anamnesis index, which may be 0


@dataclass(frozen=True)
class Lesson:
    """How a copy of a model is taught the forget set again: plain SGD, with batches that depend on the draw alone, the same for every model."""

    lr: float
    momentum: float
    batch: int
    steps: int
    draws: int

    @property
    def key(self) -> str:
        """The key of ``Audit.relearning`` under which such curves are found."""
        return digest(asdict(self))


def steps_until(
    curves: Float64[Tensor, "models draws steps"], wanted: Float64[Tensor, " models"]
) -> tuple[Float64[Tensor, "models draws"], Bool[Tensor, "m d"]]:
    """After how many steps a curve is first at what is wanted of its model, and whether it ever is; the last step where it never is.

    Counted, not looked up: the place of the first maximum is 0, at once, where nothing is ever reached.
    """
    there = curves >= wanted[:, None, None] - 1e-9  # .95 · .8 is above .76 in floats
    before = (there.cumsum(-1) == 0).sum(-1)
    return before.clamp(max=curves.shape[-1] - 1).double(), there.any(-1)


@dataclass(frozen=True)
class Taught:
    """Steps that each unlearned model and each oracle needs, mean over draws, as the audit orders them; and what there is to say of it."""

    unlearned: Float64[Tensor, " unlearned"]
    oracles: Float64[Tensor, " oracles"]
    notes: tuple[str, ...]
    extra: dict[str, float]


@spec("metric", "relearn.steps", paper="arXiv:1911.04933")
class RelearnSteps:
    """How many training steps on the forget set until it is known again? Far fewer than an oracle needs: the knowledge was only hidden.

    t = the first step after which the accuracy on the forget set is at least (1 − tolerance) times the original's own, on a copy, evaluated
    after every step; per model the mean over draws, then the mean over models (Golatkar et al.; metrics §7.1). The mark for an unlearned
    model is set by its own original where that is known, else by the originals' mean; oracles are held to the same marks, one each in the
    order of seeds, since the steps to a mean mark are not the mean of the steps. A copy that is not there after ``steps`` steps
    is censored: it counts as ``steps``, is counted in ``censored``, and the value is then too low. ``area``: mean height of the curves,
    which no censoring touches. Reads relearning curves [models, draws, steps], and the originals' logits.

    Differs from the published code: steps, not epochs, which are too coarse for a ratio; and what is never reached is not step 0.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "as many steps as the oracles need (the floor); an original needs none"
    caution: ClassVar[str] = (
        "where an oracle knows most of the forget set without having seen it, all are there at once; depends on the learning rate, and says nothing where"
        " many copies are censored"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"relearning"})
    key: ClassVar[str] = "relearn.steps"
    lr: Annotated[float, Setting("learning rate, the same at every step", symbol="η", gt=0)] = 0.02
    momentum: Annotated[float, Setting("momentum", symbol="μ", ge=0, lt=1)] = 0.9
    batch: Annotated[int, Setting("forget images per step", ge=1)] = 32
    steps: Annotated[int, Setting("most steps: who is not there by then is censored", symbol="T", ge=1)] = 100
    draws: Annotated[int, Setting("repetitions, each with another order of the images", ge=1)] = 3
    tolerance: Annotated[float, Setting("how far below the original's accuracy counts as known again, as a share of it", ge=0, lt=1, published="0.05")] = 0.05

    @property
    def lesson(self) -> Lesson:
        """What the models must have been taught for this metric."""
        return Lesson(float(self.lr), float(self.momentum), self.batch, self.steps, self.draws)

    def __call__(self, audit: Audit) -> Result:
        found = self.taught(audit)
        if isinstance(found, Result):
            return found
        u, o = found.unlearned, found.oracles
        known = torch.zeros(len(audit.originals))  # an original is at its own accuracy before the first step
        notes = (*found.notes, "an original needs 0 steps by definition")
        more = {"ci": t_interval(u), "per_model": tuple(u.tolist()), "notes": notes, "extra": found.extra}
        return beside(u, o, known, audit.parents).result(self, audit, float(u.mean()), len(audit.unlearned.of("forget").labels), **more)

    def taught(self, audit: Audit) -> Taught | Result:
        """Steps of every model, or why there are none."""
        missing = unfit(self, audit, "forget")
        if missing:
            return missing
        held = audit.relearning.get(self.lesson.key)
        if held is None:
            return not_computed(self.key, self.better, "the models were taught the forget set again with other settings than this metric's", audit)
        curves = {"unlearned models": held.unlearned, "oracles": held.oracles}
        for (who, curve), side in zip(curves.items(), (audit.unlearned, audit.oracles), strict=True):
            if len(curve) != len(side):
                return not_computed(self.key, self.better, f"{len(curve)} {who} were taught the forget set again, and this audit has {len(side)}", audit)
            if curve.dim() != 3 or curve.shape[1] < 1 or curve.shape[2] < 2:
                raise InputError(f"relearning curves must have the shape [models, draws, 1 + steps] with at least one step, got {list(curve.shape)}")
            if not bool(torch.isfinite(curve).all()):
                raise InputError(
                    f"the relearning curves of the {who} hold NaN or infinities; expected shares from 0 to 1: a model that breaks knows nothing, 0"
                )
        if not len(audit.originals):
            return not_computed(self.key, self.better, "there are no originals, whose accuracy is the mark to be reached", audit)
        own = correct(audit.originals.of("forget"))
        mark = (1 - self.tolerance) * (own.mean().expand(len(audit.unlearned)) if audit.parents is None else own[audit.parents])
        u, there_u = steps_until(held.unlearned.double(), mark)
        o, there_o = steps_until(held.oracles.double(), _like(mark, audit))
        late_u, late_o, last = int((~there_u).sum()), int((~there_o).sum()), held.unlearned.shape[-1] - 1
        if 2 * late_u > there_u.numel() and 2 * late_o > there_o.numel():
            why = f"most unlearned models and most oracles do not know the forget set again after {last} steps; give more steps, or a higher lr"
            return not_computed(self.key, self.better, why, audit)
        late = {"unlearned": (late_u, there_u.numel()), "oracle": (late_o, there_o.numel())}
        notes = tuple(
            f"{count} of {runs} {who} runs censored: not there after {last} steps, and counted as {last}" for who, (count, runs) in late.items() if count
        )
        extra = {"steps_oracles": float(o.mean()), "area": _area(held.unlearned), "area_oracles": _area(held.oracles)}
        return Taught(u.mean(1), o.mean(1), notes, {**extra, "censored": float(late_u), "censored_oracles": float(late_o)})


@spec("metric", "ain", paper="arXiv:2201.05629")
class AnamnesisIndex:
    """How soon an unlearned model learns the forget set again, in units of an oracle: below 1 it still knew, above 1 it was pushed away.

    AIN = (t_U + .01)/(t_O + .01) with t the steps of ``relearn.steps``; geometric mean over the models of both sides, since ratios multiply
    (Chundawat et al.; metrics §7.1). Interval: Welch's on the logarithms. Where copies are censored, so is the ratio: a note says how many.
    Differs from the published code: several models and orders a side instead of one, steps instead of epochs.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "1; an original scores almost 0"
    caution: ClassVar[str] = "means nothing where oracles know the forget set from the start, and is unsteady where they need a few steps only"
    needs: ClassVar[frozenset[str]] = frozenset({"relearning"})
    key: ClassVar[str] = "ain"
    steps: Annotated[RelearnSteps, Setting("how steps are counted", kind="metric")] = RelearnSteps()

    def __call__(self, audit: Audit) -> Result:
        found = self.steps.taught(audit)
        if isinstance(found, Result):
            return replace(found, key=self.key)
        u, o = (steps + ADDED for steps in (found.unlearned, found.oracles))
        at_once = int((found.oracles == 0).sum())
        notes = list(found.notes)
        if at_once:
            notes.append(f"{at_once} of {len(o)} oracles know the forget set from the start (t = 0), where the index says nothing")
        logs = welch_interval(u.log(), o.log())
        ci = logs and replace(logs, lo=float(torch.tensor(logs.lo).exp()), hi=float(torch.tensor(logs.hi).exp()), method="Welch over models, of logarithms")
        value, order = _ratio(u, o), by_seed(audit)
        anchors = calibrated(_ratio, u[order[0]], o[order[1]], torch.full((len(audit.originals),), ADDED, dtype=torch.float64), audit.seed)
        per_model = tuple((u / o.log().mean().exp()).tolist())
        extra = {"steps": float(found.unlearned.mean()), **found.extra}
        n = len(audit.unlearned.of("forget").labels)
        return anchors.result(self, audit, value, n, perfect=1.0, ci=ci, per_model=per_model, notes=notes, extra=extra)


def _like(mark: Float64[Tensor, " unlearned"], audit: Audit) -> Float64[Tensor, " oracles"]:
    """The marks of the unlearned models for the oracles, by the order of seeds of both, and again from the first where oracles are more."""
    rank = torch.tensor(audit.oracles.models).argsort().argsort()
    return mark[torch.tensor(audit.unlearned.models).argsort()][rank % len(mark)]


def _ratio(u: Tensor, o: Tensor) -> float:
    return float((u.log().mean() - o.log().mean()).exp())


def _area(curves: Float64[Tensor, "models draws steps"]) -> float:
    """Mean height, by trapezia."""
    return float(((curves[..., 1:] + curves[..., :-1]) / 2).double().mean())
