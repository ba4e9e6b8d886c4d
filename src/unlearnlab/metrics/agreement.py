"""Do unlearned models and oracles say the same? Closeness in accuracies (ToW) and disagreement image by image."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result
from unlearnlab.metrics.accuracy import correct
from unlearnlab.metrics.statistics import Part, calibrated, jackknife, sides, t_interval, unfit
from unlearnlab.spec import InputError, Setting, spec

PARTS_OF_TOW: tuple[Part, ...] = ("forget", "retain", "test")


def tug_of_war(u: Float64[Tensor, "models 3"], o: Float64[Tensor, "models 3"]) -> Float64[Tensor, " models"]:
    """Π (1 − |gap|) over forget, retain and test accuracy of paired models; raises ``InputError`` for percentages."""
    gaps = (u - o).abs()
    if bool((gaps > 1).any()):
        raise InputError(f"an accuracy gap of {float(gaps.max()):g} is out of range: expected shares from 0 to 1, not percent; divide by 100")
    return (1 - gaps).prod(1)


@spec("metric", "tow", paper="arXiv:2406.01257")
class TugOfWar:
    """One number for forgetting and usefulness: the product of three closenesses to the oracle; 1 is the same oracle again.

    ToW = (1 − |ΔFA|)(1 − |ΔRA|)(1 − |ΔTA|), Δ = U_i − O_i, per pair of models, then the mean (RUM, Zhao et al.; metrics §6.1).
    Pairs go by the order of the models' seeds. Another oracle scores below 1: that is the floor. Reads logits.
    """

    better: ClassVar[Better] = "higher"
    minimum: ClassVar[int] = 3
    key: ClassVar[str] = "tow"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, *PARTS_OF_TOW)
        if missing:
            return missing
        per_part = [[correct(side) for side in sides(audit, part)] for part in PARTS_OF_TOW]
        u, o, p = (torch.stack(columns, 1) for columns in zip(*per_part, strict=True))
        pairs = min(len(u), len(o))
        each = tug_of_war(u[:pairs], o[:pairs])
        same = sorted(audit.unlearned.models)[:pairs] == sorted(audit.oracles.models)[:pairs]
        notes = [] if same else ["no shared seeds: models are paired in the order of their seeds"]
        if len(u) != len(o):
            notes.append(f"{pairs} pairs of {len(u)} unlearned models and {len(o)} oracles")
        n = sum(len(audit.unlearned.of(part).labels) for part in PARTS_OF_TOW)
        place = {seed: at for at, seed in enumerate(sorted(audit.unlearned.models))}
        order = [place[seed] for seed in audit.unlearned.models]
        per_model = tuple(each[order].tolist()) if len(place) == len(each) else None
        found = calibrated(lambda x, y: float(tug_of_war(x, y).mean()), u, o, p, audit.seed)
        return found.result(self, audit, float(each.mean()), n, perfect=1.0, ci=t_interval(each), per_model=per_model, notes=notes)


def votes(predicted: Int64[Tensor, "models n"], classes: int) -> Float64[Tensor, "n classes"]:
    """Share of the models that choose each class, per example."""
    n = predicted.shape[1]
    cells = predicted + classes * torch.arange(n)
    return torch.bincount(cells.flatten(), minlength=n * classes).reshape(n, classes).double() / len(predicted)


@spec("metric", "disagree")
class Disagreement:
    """How often an unlearned model and an oracle choose different classes; two oracles also differ at times.

    1 − Σ_c f_U(c) f_O(c) per image with f the shares of models that vote c: the mean over all pairs U_i, O_j (metrics §6.2).
    Labels play no part, so that going from one wrong class to another counts. Reads logits [models, examples, classes].
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"disagree.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        u, o, p = (side.predicted for side in sides(audit, self.part))
        classes = audit.unlearned.logits.shape[-1]

        def per_example(x: Tensor, y: Tensor) -> Tensor:
            return 1 - (votes(x, classes) * votes(y, classes)).sum(1)

        each, shares = per_example(u, o), votes(o, classes)
        (ci,) = jackknife(lambda i, j: per_example(u[i], o[j]).mean()[None], len(u), len(o))
        found = calibrated(lambda x, y: float(per_example(x, y).mean()), u, o, p, audit.seed)
        of_model = 1 - shares.gather(1, audit.unlearned.of(self.part).predicted.T).mean(0)
        return found.result(self, audit, float(each.mean()), len(each), ci=ci, per_example=tuple(each.tolist()), per_model=tuple(of_model.tolist()))
