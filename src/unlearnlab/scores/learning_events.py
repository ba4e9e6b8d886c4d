"""``confidence``, ``max_conf``, ``entropy``, ``bi_acc``: how a model answers each image while it learns, from one training run for all four.

Every answer is that of the training-time forward pass, before the step is taken: nothing is evaluated besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.data.partition import Parts
from unlearnlab.fit import Seen
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

EVENTS = ("confidence", "max_conf", "entropy", "bi_acc")
PENDING = 2**20  # logits of all members that wait to be counted

Models = Annotated[int, Setting("models made for it, over whose scores the mean is taken", ge=1, published="1")]


@spec("score", "confidence")
class Confidence:
    """How unsure of an image's own label a model is while it learns: what takes long to be learnt is memorised.

    1 − mean over epochs of p_y, the probability of the label trained on, in the training-time forward pass.
    With augmentation these are answers to the augmented image; label smoothing does not enter. Source: protocols.md §7.
    Differs from the published code: it keeps the mean itself, so that its "high" group is the easy one.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "learning_events"
    start: ClassVar[Literal["init", "trained"]] = "init"
    models: Models = 1

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Tensor]:
        return learning_events(stack, parts, recipe, progress)

    def score(self, gathered: Mapping[str, Tensor], ids: Int64[Tensor, " n"]) -> Scores:
        return over_models("confidence", 1 - gathered["confidence"], ids)


@spec("score", "max_conf")
class MaxConf:
    """How unsure of any label a model is while it learns, right or wrong.

    1 − mean over epochs of max_c p_c, from the same run as ``confidence``, and with the same difference from the published code.
    Source: protocols.md §7.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "learning_events"
    start: ClassVar[Literal["init", "trained"]] = "init"
    models: Models = 1

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Tensor]:
        return learning_events(stack, parts, recipe, progress)

    def score(self, gathered: Mapping[str, Tensor], ids: Int64[Tensor, " n"]) -> Scores:
        return over_models("max_conf", 1 - gathered["max_conf"], ids)


@spec("score", "entropy")
class Entropy:
    """How evenly a model spreads its belief over the classes while it learns.

    Mean over epochs of −Σ_c p_c log p_c in nats, from the same run as ``confidence``. Source: protocols.md §7.
    Differs from the published code: it keeps the negative, and NaN where some p_c underflows; here log p comes from log-softmax.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "learning_events"
    start: ClassVar[Literal["init", "trained"]] = "init"
    models: Models = 1

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Tensor]:
        return learning_events(stack, parts, recipe, progress)

    def score(self, gathered: Mapping[str, Tensor], ids: Int64[Tensor, " n"]) -> Scores:
        return over_models("entropy", gathered["entropy"], ids)


@spec("score", "bi_acc")
class BiAcc:
    """In how many of its epochs a model gets an image wrong.

    1 − mean over epochs of 1[argmax = y] (ties go to the lowest class), from the same run as ``confidence``, and with the same
    difference from the published code. Source: protocols.md §7.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "learning_events"
    start: ClassVar[Literal["init", "trained"]] = "init"
    models: Models = 1

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Tensor]:
        return learning_events(stack, parts, recipe, progress)

    def score(self, gathered: Mapping[str, Tensor], ids: Int64[Tensor, " n"]) -> Scores:
        return over_models("bi_acc", 1 - gathered["bi_acc"], ids)


def learning_events(stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> dict[str, Float64[Tensor, "k n"]]:
    """Train on all training images; the means over all epochs of p_y, max_c p_c, entropy and 1[argmax = y], in the order of ``parts.train``."""
    events = LearningEvents(parts.train, len(stack))
    require_learnt(recipe(stack, parts.train, progress, watch=[events]), "learning events")
    return events.means(recipe.epochs)


class LearningEvents:
    """Sums, over the epochs of a fit, what every member answers to every image.

    The logits of a step only wait in line; they are counted many steps at a time, classes first: on small nets that costs a tenth
    of counting every batch. What waits is part of ``state``, and when it is counted depends on the step alone: so an interruption
    neither loses anything nor changes a bit.
    """

    def __init__(self, train: Images, members: int, pending: int = PENDING) -> None:
        device, n = train.labels.device, len(train)
        self.room = max(1, min(n, pending // (members * train.classes)))
        self.order = train.ids.argsort()
        self.ids, self.labels = train.ids[self.order], train.labels
        self.first = (torch.arange(members, device=device) * n).unsqueeze(1)  # where each member's sums begin
        self.state = {
            "sums": torch.zeros(len(EVENTS), members * n, dtype=torch.float64, device=device),
            "logits": torch.zeros(members, self.room, train.classes, device=device),
            "ids": torch.zeros(members, self.room, dtype=torch.int64, device=device),
            "waiting": torch.zeros((), dtype=torch.int64),  # read every step, so it stays on the CPU
        }

    def __call__(self, seen: Seen) -> None:
        ids, logits, at = seen.batch.ids, seen.logits, int(self.state["waiting"])
        size = ids.shape[1]
        if at + size > self.room:
            self._count_waiting(at)
            at = 0
        if size > self.room:
            self._count(ids, logits.float())
            return
        self.state["ids"][:, at : at + size] = ids
        self.state["logits"][:, at : at + size] = logits
        self.state["waiting"].fill_(at + size)
        if seen.epoch_ends:  # later an image might wait twice
            self._count_waiting(at + size)

    def means(self, epochs: int) -> dict[str, Float64[Tensor, "k n"]]:
        """By name, of everything seen: each epoch holds every image once."""
        sums = self.state["sums"].view(len(EVENTS), len(self.first), -1)
        return dict(zip(EVENTS, sums / epochs, strict=True))

    def _count_waiting(self, waiting: int) -> None:
        if waiting:
            self._count(self.state["ids"][:, :waiting], self.state["logits"][:, :waiting])
        self.state["waiting"].zero_()

    def _count(self, ids: Int64[Tensor, "k b"], logits: Float[Tensor, "k b classes"]) -> None:
        rows = self.order[torch.searchsorted(self.ids, ids.contiguous())]
        found = events_of(logits, self.labels[rows]).flatten(1)
        self.state["sums"].index_add_(1, (rows + self.first).flatten(), found.double())


def events_of(logits: Float[Tensor, "k b classes"], labels: Int64[Tensor, "k b"]) -> Float[Tensor, "4 k b"]:
    """p_y, max_c p_c, −Σ p log p and 1[argmax = y] of every answer, in the order of ``EVENTS``; argmax takes the lowest class of a tie."""
    z = logits.movedim(-1, 0).contiguous()  # log-softmax over ten classes is fifteen times as fast with the classes first
    log_p = z.log_softmax(0)
    p = log_p.exp()
    places = torch.arange(len(z), dtype=torch.float32, device=z.device).view(-1, 1, 1)  # the least of floats is found ten times as fast as of integers
    lowest = torch.where(z == z.amax(0), places, float(len(z))).amin(0)  # as outputs.lowest_argmax, with the classes first
    return torch.stack([p.gather(0, labels.unsqueeze(0))[0], p.amax(0), -(p * log_p).sum(0), (lowest == labels).to(p.dtype)])


def over_models(name: str, values: Float[Tensor, "k n"], ids: Int64[Tensor, " n"]) -> Scores:
    """The mean over models as the score, its standard error beside it where there is more than one."""
    values = values.double()
    beside = {"stderr": values.std(0) / len(values) ** 0.5} if len(values) > 1 else {}
    return Scores(name, ids, values.mean(0), "proxy", beside)


def require_learnt(stack: Stack, what: str) -> None:
    """Refuse what models say whose training diverged."""
    if found := stack.diverged:
        raise InputError(f"{what}: training diverged for {found[0]} ({len(found)} of {len(stack)} models); lower the recipe's lr")
