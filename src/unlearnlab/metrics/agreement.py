"""Do unlearned models and oracles say the same? Closeness in accuracies (ToW) and disagreement image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.metrics.accuracy import correct
from unlearnlab.metrics.statistics import Part, by_seed, calibrated, jackknife, sides, t_interval, unfit
from unlearnlab.metrics.svc_attack import attack
from unlearnlab.spec import InputError, Setting, spec

PARTS_OF_TOW: tuple[Part, ...] = ("forget", "retain", "test")


def tug_of_war(u: Float64[Tensor, "models 3"], o: Float64[Tensor, "models 3"]) -> Float64[Tensor, " models"]:
    """Π (1 − |gap|) over three shares of paired models, such as forget, retain and test accuracy; raises ``InputError`` for percentages."""
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
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "below 1: what another set of oracles scores in pairs with these ones (the floor)"
    caution: ClassVar[str] = (
        "a model that was pushed past the oracles, or that hides what it knows, can come close to 1: it compares three averages, and no single image"
    )
    key: ClassVar[str] = "tow"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, *PARTS_OF_TOW)
        if missing:
            return missing
        u, o, p = (torch.stack(columns, 1) for columns in _accuracies(audit, *PARTS_OF_TOW))
        return _closeness(self, audit, u, o, p)


@spec("metric", "tow_mia", paper="arXiv:2406.01257")
class TugOfWarMia:
    """Tug of war with an attack in the place of forget accuracy: do forget images look as unseen as they do to an oracle?

    ToW-MIA = (1 − |ΔMIA|)(1 − |ΔRA|)(1 − |ΔTA|), MIA the share of the forget set that `mia_svc` with ``confidence`` calls unseen,
    attacked inside each model by itself; per pair of models, then the mean (RUM, Zhao et al.; metrics §6.1). Pairs as in `tow`.
    """

    better: ClassVar[Better] = "higher"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "below 1: what another set of oracles scores in pairs with these ones (the floor)"
    caution: ClassVar[str] = "as far to be trusted as the attack inside it, which a method can pass by making the model unsure everywhere"
    key: ClassVar[str] = "tow_mia"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, *PARTS_OF_TOW, "control")
        if missing:
            return missing
        by = attack(self, audit)
        if isinstance(by, Result):
            return by
        called = [by.efficacy(outputs)[order] for outputs, order in zip((audit.unlearned, audit.oracles, audit.originals), by_seed(audit), strict=True)]
        for who, values in zip(("unlearned models", "oracles"), called, strict=False):
            if bad := int(values.isnan().sum()):
                return not_computed(self.key, self.better, f"confidence is constant for {bad} of {len(values)} {who}", audit)
        u, o, p = (torch.stack([mia, *columns], 1) for mia, columns in zip(called, _accuracies(audit, "retain", "test"), strict=True))
        known = ~p.isnan().any(1)
        notes = [by.note] if bool(known.all()) else [by.note, f"confidence is constant for {int((~known).sum())} originals, which are left out"]
        return _closeness(self, audit, u, o, p[known], notes, by.dropped)


def _accuracies(audit: Audit, *parts: Part) -> tuple[tuple[Tensor, ...], ...]:
    """For unlearned models, oracles and originals by seed: the accuracy of each model on these parts."""
    return tuple(zip(*([correct(side) for side in sides(audit, part)] for part in parts), strict=True))


def _closeness(metric: Metric, audit: Audit, u: Tensor, o: Tensor, p: Tensor, notes: Sequence[str] = (), dropped: tuple[tuple[int, str], ...] = ()) -> Result:
    """``tug_of_war`` of pairs in the order of their seeds, with its floor between halves of the oracles."""
    pairs = min(len(u), len(o))
    each = tug_of_war(u[:pairs], o[:pairs])
    same = sorted(audit.unlearned.models)[:pairs] == sorted(audit.oracles.models)[:pairs]
    said = [*notes] if same else [*notes, "no shared seeds: models are paired in the order of their seeds"]
    if len(u) != len(o):
        said.append(f"{pairs} pairs of {len(u)} unlearned models and {len(o)} oracles")
    n = sum(len(audit.unlearned.of(part).labels) for part in PARTS_OF_TOW) - sum(count for count, _ in dropped)
    place = {seed: at for at, seed in enumerate(sorted(audit.unlearned.models))}
    order = [place[seed] for seed in audit.unlearned.models]
    per_model = tuple(each[order].tolist()) if len(place) == len(each) else None
    found = calibrated(lambda x, y: float(tug_of_war(x, y).mean()), u, o, p, audit.seed)
    return found.result(metric, audit, float(each.mean()), n, perfect=1.0, ci=t_interval(each), per_model=per_model, notes=said, dropped=dropped)


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
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "as often as two oracles disagree (the floor), never 0"
    caution: ClassVar[str] = (
        "sees the chosen class alone: margins may have changed much where no prediction did; and models surer than oracles disagree with them less than "
        "oracles among themselves, so that below the floor is no better than perfect"
    )
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
