"""Does the trigger of a backdoor still work, and does the model still work without it? For forget sets of triggered images."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result, not_computed
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.accuracy import Accuracy, of_each_model, with_example_interval
from unlearnlab.metrics.statistics import unfit
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError, Setting, spec

SIDES = ("originals", "oracles", "unlearned")


@spec("metric", "asr", paper="arXiv:2304.04934")
class AttackSuccess:
    """Share of held-out images that the trigger turns into the target class; what counts is how oracles answer the trigger, not 0.

    mean[argmax z = target] over triggered test images whose true class is another, per model, then the mean (Jia et al.; metrics §7.3).
    ``base_rate``: the same on the test images without the trigger, beside ``base_rate_oracles``. Reads logits of triggered images.

    Differs from the published code, which ``exclude_target = false`` reproduces under the key ``asr.all_classes``: there images of the target
    class count as hits, so that a clean model of C classes scores about 1/C.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"triggered"})
    trust: ClassVar[int] = 4  # above the attacks of place 5, where it applies: the cause was planted, and is hard to hide
    ideal: ClassVar[str] = "the oracles' share, not 0: some images are taken for the target without any backdoor"
    caution: ClassVar[str] = "a model that no longer calls anything the target scores 0: read `sa` and the base rate beside it"
    exclude_target: Annotated[bool, Setting("leave out images that are of the target class anyway", published="false")] = True

    @property
    def key(self) -> str:
        return "asr" if self.exclude_target else "asr.all_classes"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit)
        if missing:
            return missing
        held = audit.triggered
        assert held is not None
        for side in ("oracles", "unlearned"):
            if getattr(held, side).models != getattr(audit, side).models:
                raise InputError(f"the {side} seen on triggered images are not those of the audit, or stand in another order; observe the same models on both")
        classes = held.unlearned.logits.shape[-1]
        if not 0 <= held.target < classes:
            raise InputError(f"the trigger asks for class {held.target}, but the classes are 0 to {classes - 1}")
        counts = held.unlearned.labels != held.target if self.exclude_target else torch.ones_like(held.unlearned.labels, dtype=torch.bool)
        if not counts.any():
            return not_computed(self.key, self.better, f"no triggered image is of another class than the target, {held.target}", audit)
        test = torch.full((int(counts.sum()),), PARTS.index("test"))
        seen = replace(audit, **{side: replace(getattr(held, side).examples(counts), part=test) for side in SIDES})
        found = with_example_interval(of_each_model(self, seen, "test", lambda outputs: self._hits(outputs, held.target)))
        if found.value is None:
            return found
        extra, notes = self._base_rates(audit, held.target)
        left_out = int((~counts).sum())
        dropped = ((left_out, "their true class is the target"),) if left_out else ()
        return replace(found, extra={**found.extra, **extra}, notes=(*found.notes, *notes), dropped=dropped)

    def _hits(self, outputs: Outputs, target: int) -> Float64[Tensor, " models"]:
        return (outputs.predicted == target).double().mean(1)

    def _base_rates(self, audit: Audit, target: int) -> tuple[dict[str, float], tuple[str, ...]]:
        """How often images without the trigger are called the target; test images bear their true labels."""
        of = (audit.unlearned.part == PARTS.index("test")) & ((audit.unlearned.labels != target) | (not self.exclude_target))
        if not of.any():
            return {}, ("no base rate: there are no test images without the trigger",)
        u, o = (outputs.examples(of) for outputs in (audit.unlearned, audit.oracles))
        for side in (u, o):
            side.require_finite()
        rates = {"base_rate": float(self._hits(u, target).mean())}
        return rates | ({"base_rate_oracles": float(self._hits(o, target).mean())} if len(o) else {}), ()


@spec("metric", "sa", paper="arXiv:2304.04934")
class StandardAccuracy:
    """Share of the test images without the trigger that are classified rightly: the price at which the trigger was removed.

    The number of `acc` on the test part, under the name that stands beside `asr` in backdoor papers (Jia et al.; metrics §7.3). Reads logits.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"triggered"})
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "the oracles' share"
    caution: ClassVar[str] = "is about usefulness; only `asr` says whether the trigger still works"
    key: ClassVar[str] = "sa"

    def __call__(self, audit: Audit) -> Result:
        return unfit(self, audit, "test") or replace(Accuracy("test")(audit), key=self.key)
