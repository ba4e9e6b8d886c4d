"""What methods, localisers, scores and metrics are given and must give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from unlearnlab.data.images import Images, Split
from unlearnlab.data.partition import Parts
from unlearnlab.outputs import Outputs
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, info
from unlearnlab.stack import Mask, Stack
from unlearnlab.train import Recipe

Better = Literal["lower", "higher", "match_oracle"]
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Scores:
    """One number for every training image, known by id: higher = more memorised, NaN = not known.

    ``scale``: values of ``memorisation`` are differences of probabilities; of a ``proxy`` only the order means anything.
    ``beside``: further tensors with one row an image, such as ``stderr``.
    """

    name: str
    ids: Int64[Tensor, " n"]
    values: Float64[Tensor, " n"]
    scale: Literal["memorisation", "proxy"] = "proxy"
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        short = [name for name, held in {"ids": self.ids, **self.beside}.items() if len(held) != len(self.values)]
        if self.values.dim() != 1 or short:
            what = f"one number for each image, and one row of {', '.join(short)}" if short else "one number for each image"
            raise InputError(f"score '{self.name}' needs {what}; got numbers of the shape {list(self.values.shape)}")
        if len(torch.unique(self.ids)) != len(self.ids):
            raise InputError(f"score '{self.name}' names some image id twice; give one number for each image")

    def __len__(self) -> int:
        return len(self.values)

    def of(self, ids: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The scores of the images with these ids; raises ``InputError`` for one that was not scored."""
        return self.values[self.rows(ids)]

    def rows(self, ids: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """Where the images with these ids stand; raises ``InputError`` for one that was not scored."""
        ids = ids.cpu()
        order = self.ids.argsort()
        found = order[torch.searchsorted(self.ids[order], ids).clamp(max=len(order) - 1)] if len(order) else torch.zeros_like(ids)
        missing = ids if not len(order) else ids[self.ids[found] != ids]
        if len(missing):
            raise InputError(f"image id {int(missing[0])} has no score '{self.name}' ({len(missing)} such image(s)); score the training set of this study")
        return found


@dataclass(frozen=True, eq=False)
class Context:
    """What a method may know besides the model and the data.

    ``seeds``: one per member, for every random draw of the method. ``original_init``: the original's
    own initial weights. ``mask``: weights a method may change (a combinator sets it, methods hand it to ``fit``).
    ``progress`` counts example passes; methods never time themselves.
    """

    seeds: tuple[int, ...]
    recipe: Recipe
    device: torch.device = CPU
    progress: Progress = field(default_factory=Progress)
    mask: Mask | None = None
    original_init: Stack | None = None
    oracles: Outputs | None = None
    attribution: Path | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    state: Mapping[str, Path] = field(default_factory=dict)


class Undeclared(RuntimeError):  # noqa: N818 - it reads as a sentence
    """A method reached for something it does not declare in ``reads``."""


class Forbidden:
    """Stands where a method may not look; any use raises ``Undeclared``."""

    def __init__(self, method: str, what: str) -> None:
        object.__setattr__(self, "_words", f"method '{method}' used '{what}' without declaring it in its `reads`; add it there, or do not use it")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Undeclared(object.__getattribute__(self, "_words"))

    __getattr__ = __len__ = __iter__ = __getitem__ = __bool__ = __call__ = _refuse


# What of Split and Context must be declared; the rest of Context (seeds, recipe, device, progress) is for all.
SPLIT_PARTS = ("forget", "retain", "validation", "control", "test")
CONTEXT_PARTS = ("original_init", "oracles", "attribution", "scores", "state")
READABLE = frozenset({"forget", "retain", "validation", *CONTEXT_PARTS})  # never control or test


def only_declared(method: Method | Answers, split: Split, ctx: Context) -> tuple[Split, Context]:
    """Split and context in which everything the method does not declare raises when touched."""
    name, reads = info(method).name, method.reads
    unknown = reads - READABLE
    if unknown:
        raise InputError(f"method '{name}' declares that it reads '{min(unknown)}'; a method may read: {', '.join(sorted(READABLE))}")
    hidden = {part: cast(Any, Forbidden(name, part)) for part in (*SPLIT_PARTS, *CONTEXT_PARTS) if part not in reads}
    return (
        replace(split, **{part: hidden[part] for part in SPLIT_PARTS if part in hidden}),
        replace(ctx, **{part: hidden[part] for part in CONTEXT_PARTS if part in hidden}),
    )


@runtime_checkable
class Method(Protocol):
    """Makes every model of a stack forget ``split.forget``. The input stack is untouched, a new one comes back.

    ``reads`` names what it uses of ``Split`` and ``Context``; all else is replaced by a sentinel that raises.
    ``null``: the settings under which it must change nothing (None: it has none, see the contract test).
    ``cost``: a formula in epochs over the retain set, with the symbols of the settings, n_f, n_r and n = n_f + n_r.
    """

    cost: ClassVar[str]
    null: ClassVar[Mapping[str, Any] | None]

    @property
    def reads(self) -> frozenset[str]: ...

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack: ...


@runtime_checkable
class Answers(Protocol):
    """What unlearns without giving a ``Stack`` back: an ensemble, a linear head, a prediction of outputs.

    ``answer`` makes it forget ``split.forget`` and gives the logits on ``images`` (eval mode), of as many models as ``stack`` has.
    It owns its training, if any, from ``ctx.seeds``; ``ctx.progress`` counts what the deletion cost, not that training.
    """

    cost: ClassVar[str]

    @property
    def reads(self) -> frozenset[str]: ...

    def answer(self, stack: Stack, split: Split, ctx: Context, images: Images) -> Float[Tensor, "k n classes"]: ...


@runtime_checkable
class EnsembleScore(Protocol):
    """A score read off many models, each trained on a random ``share`` of the training set.

    ``seen``: their outputs on the training images (part retain), held-out ones (validation) and the test set, with true membership.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]]

    @property
    def models(self) -> int: ...

    @property
    def share(self) -> float: ...

    def __call__(self, seen: Outputs) -> Scores: ...


@runtime_checkable
class ProbeScore(Protocol):
    """A score from few models of its own, watched in training (``start`` = init) or looked at when trained (``start`` = trained).

    ``evidence``: what is gathered; scores that gather the same share it. ``probe`` gathers from a chunk of models, one row each;
    ``score`` makes one number for every image of what all models gave. Audited models are never probed.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]]
    evidence: ClassVar[str]
    start: ClassVar[Literal["init", "trained"]]

    @property
    def models(self) -> int: ...

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Shaped[Tensor, "k n ..."]]: ...

    def score(self, gathered: Mapping[str, Shaped[Tensor, "k n ..."]], ids: Int64[Tensor, " n"]) -> Scores: ...


@runtime_checkable
class FiledScore(Protocol):
    """A score that somebody has computed already. ``test``, ``size``: images of the release and their number, by which a file is seen to be too long."""

    def read(self, train: Images, test: Images | None = None, size: int | None = None) -> Scores: ...


Score = EnsembleScore | ProbeScore | FiledScore


@runtime_checkable
class Refiner(Protocol):
    """Divides a forget set into groups that are forgotten one after the other: name -> ids, the easiest to forget first.

    ``score``: the name of the score that it reads ("": none). Groups are disjoint and cover the forget set. A group that would be
    empty is left out.
    """

    @property
    def score(self) -> str: ...

    def __call__(self, split: Split, scores: Mapping[str, Scores]) -> Mapping[str, Int64[Tensor, " ids"]]: ...


@runtime_checkable
class Localiser(Protocol):
    """Decides which weights may change: name -> bool [K, *shape]."""

    @property
    def reads(self) -> frozenset[str]: ...

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask: ...


@dataclass(frozen=True, eq=False)
class Triggered:
    """What originals, oracles and unlearned models say of held-out images with the trigger painted on; ``labels`` are the true ones."""

    originals: Outputs
    oracles: Outputs
    unlearned: Outputs
    target: int  # the class that the trigger asks for


@dataclass(frozen=True, eq=False)
class Relearning:
    """Accuracy on the forget set while models are taught it again, before the first step and after each; rows as in the audit.

    ``draws``: repetitions with another order of the images, the same ones for every model.
    """

    oracles: Float64[Tensor, "models draws steps"]
    unlearned: Float64[Tensor, "models draws steps"]


# What a metric may need beside the three ensembles, and what is said where an audit lacks it.
NEEDS = {
    "references": "there are no reference models, trained on known random halves of the images",
    "untrained": "there are no untrained nets to compare with",
    "triggered": "these models were not shown images that bear a trigger",
    "relearning": "the models were not taught the forget set again",
    "true_labels": "the true labels are not known",
}


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything a metric may look at. All outputs cover the same examples in the same order.

    ``parents[i]``: row of ``originals`` that unlearned model i was made from (None: unknown; all equal: one
    original for all). ``groups``: named boolean masks over the examples, e.g. ``mislabelled`` and ``clean``.
    ``facts``: measured numbers, one per unlearned model: ``seconds``, ``retrain_seconds``, ``example_passes``,
    ``retrain_example_passes``, ``peak_bytes``, ``changed`` (share of weights that differ from the parent),
    ``rel_l2``, ``outside_mask``, ``oracle_rel_l2`` …; a metric whose fact is absent is not computed.
    ``references``: models trained on known random halves of forget, retain and control images together (``member`` says who saw what).
    ``untrained``: fresh nets. ``relearning``: by the key of the settings that it was made with. ``true_labels`` [examples]: as released.
    """

    originals: Outputs
    oracles: Outputs
    unlearned: Outputs
    parents: Int64[Tensor, " unlearned"] | None = None
    groups: Mapping[str, Bool[Tensor, " examples"]] = field(default_factory=dict)
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    references: Outputs | None = None
    untrained: Outputs | None = None
    triggered: Triggered | None = None
    relearning: Mapping[str, Relearning] = field(default_factory=dict)
    true_labels: Int64[Tensor, " examples"] | None = None

    def restrict(self, index: Bool[Tensor, " examples"]) -> Audit:
        """The same audit on some of the examples."""
        return replace(
            self,
            originals=self.originals.examples(index),
            oracles=self.oracles.examples(index),
            unlearned=self.unlearned.examples(index),
            groups={name: mask[index] for name, mask in self.groups.items()},
            references=None if self.references is None else self.references.examples(index),
            untrained=None if self.untrained is None else self.untrained.examples(index),
            true_labels=None if self.true_labels is None else self.true_labels[index],
        )

    def group(self, name: str) -> Audit:
        """The examples of one group only; raises ``InputError`` for an unknown group."""
        if name not in self.groups:
            raise InputError(f"unknown group '{name}'; this audit has: {', '.join(self.groups) or 'none'}")
        return self.restrict(self.groups[name])

    @property
    def independent(self) -> bool:
        """Was every unlearned model made from an original of its own?"""
        return self.parents is not None and len(set(self.parents.tolist())) == len(self.parents)


@dataclass(frozen=True)
class Interval:
    lo: float
    hi: float
    level: float
    method: str  # how it was computed: "t over models", "jackknife over 8 groups of models" …


@dataclass(frozen=True)
class Anchor:
    """Floor or ceiling: mean and sd of the metric over ``splits`` splits or relabellings."""

    mean: float
    sd: float | None = None
    splits: int = 1
    note: str = ""  # e.g. "at N/2 = 16 models a side"


@dataclass(frozen=True)
class Result:
    """One metric of one method. A metric that cannot be computed has no value and says why in ``missing``."""

    key: str
    value: float | None
    better: Better
    perfect: float | None = None  # None: whatever an oracle scores
    ci: Interval | None = None
    floor: Anchor | None = None
    ceiling: Anchor | None = None
    rescaled: float | None = None  # (value − floor)/(ceiling − floor), at the floor's N; never clipped
    rescaled_ci: Interval | None = None
    p: float | None = None
    n_models: tuple[int, int, int] = (0, 0, 0)  # unlearned, oracles, originals
    n_examples: int = 0
    dropped: tuple[tuple[int, str], ...] = ()  # (how many examples, why)
    notes: tuple[str, ...] = ()
    extra: Mapping[str, float] = field(default_factory=dict)  # further numbers under plain names
    per_example: tuple[float, ...] | None = None
    per_model: tuple[float, ...] | None = None  # the same quantity for each unlearned model, for pictures
    missing: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(held: Mapping[str, Any]) -> Result:
        nested = {"ci": Interval, "rescaled_ci": Interval, "floor": Anchor, "ceiling": Anchor}
        values = {f.name: held[f.name] for f in fields(Result)}
        for name, kind in nested.items():
            values[name] = kind(**held[name]) if held[name] is not None else None
        for name in ("n_models", "notes", "per_example", "per_model"):
            values[name] = tuple(held[name]) if held[name] is not None else None
        values["dropped"] = tuple((count, why) for count, why in held["dropped"])
        return Result(**values)


def not_computed(key: str, better: Better, reason: str, audit: Audit | None = None) -> Result:
    """A result without a value, saying why: `N=4, needs 16`."""
    sizes = (0, 0, 0) if audit is None else (len(audit.unlearned), len(audit.oracles), len(audit.originals))
    return Result(key, None, better, n_models=sizes, missing=f"not computed: {reason}")


@runtime_checkable
class Metric(Protocol):
    """A pure function of outputs. ``key`` names the definition; ``minimum`` is the least N that means anything.

    One that needs more than the three ensembles names it in ``needs``, a ClassVar frozenset of keys of ``NEEDS``. Ours also have, for the
    docs and the report, ``ideal`` (what a perfect unlearner scores), ``caution`` (when not to trust it) and ``trust`` (its place in the
    order of trust, 2 best to 8; metrics.md §8).
    """

    better: ClassVar[Better]
    minimum: ClassVar[int]

    @property
    def key(self) -> str: ...

    def __call__(self, audit: Audit) -> Result: ...
