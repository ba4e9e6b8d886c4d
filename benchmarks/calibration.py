"""How often the audit is wrong, on simulated studies whose truth is known; the result goes to ``calibration.json``.

python benchmarks/calibration.py           # all of it, ten minutes on two quiet cores; a second call goes on where the first was stopped
python benchmarks/calibration.py --quick   # a tenth of the studies, printed and not filed

Three questions. **coverage**: of every metric that has an interval, how often it holds the truth (``cover``). **accused**: of ten
perfect methods, how often any is accused (``perfect_methods``). **power**: what is accused how often (``Seen``).
`python docs/make.py` puts the result into docs/metrics.md.

Margins of a model on image j are mean_j + sd_j (√c a + √f L_j·b + √(1−c−f) e): ``a`` is the model's own level, common to all
images; ``b`` are five factors with random loadings, |L_j| = 1; ``e`` is independent. Originals lie gap_j sd_j higher: half
the images (mislabelled) by 4 to 8 sd, half (clean) by about .3 sd; their own spread is .7 of an oracle's. With c = .005 that gives the precision and
the power that metrics.md §1.3a and §5.6 report of digits (interval of the trace ± .02 at N = 32); 32 + 32 MLPs trained once on
digits had mislabelled gaps of 8 to 14 sd, clean ones of -9 to 0 and c = .0135 (± .007), an easier case. A perfect method's
models share half the variance of ``a`` with their originals. Ten methods share originals and oracles, as in a real study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded, here and in every worker

import torch
from torch import Tensor

from unlearnlab import spec
from unlearnlab.auditing import power
from unlearnlab.contract import Audit, Relearning, Triggered
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.omnibus import omnibus
from unlearnlab.metrics.relearn import RelearnSteps
from unlearnlab.metrics.statistics import clopper_pearson, holm, t_of
from unlearnlab.metrics.trace import share_left
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import RANGES, generator

RESULT = Path(__file__).with_suffix(".json")
SIZES = (16, 32, 64, 128)  # models a side
METHODS = 10
ALPHA = 0.05
WANTED = 0.92  # coverage of a 95 % interval
SHIFTED = 0.4  # of the trace left by the method that is not perfect


# ---- margins of the forget set alone: accusations and power


@dataclass(frozen=True)
class Regime:
    common: float = 0.005  # c
    factors: float = 0.0  # f
    gaps: tuple[float, float] = (4.0, 8.0)  # of mislabelled images, in sd
    n: int = 32
    images: int = 62
    methods: int = METHODS


REGIMES = {
    "digits": Regime(),
    "correlated": Regime(factors=0.3),
    "narrow": Regime(gaps=(2.0, 4.0)),
}


@dataclass(frozen=True, eq=False)
class Study:
    """Margins [models, images]; ``gap``: what the forget set adds to an original's margins."""

    originals: Tensor
    oracles: Tensor
    perfect: tuple[Tensor, ...]
    level: Tensor
    gap: Tensor
    sd: Tensor


def simulate(regime: Regime, seed: int) -> Study:
    """One study of perfect methods: the same seed gives the same margins."""
    g = generator(seed, repr(regime))  # every regime draws for itself

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    half = regime.images // 2
    low, high = regime.gaps
    level, sd = 3 + 2 * normal(regime.images), (0.3 * normal(regime.images)).exp()
    wrong = low + (high - low) * torch.rand(half, generator=g, dtype=torch.float64)
    gap = torch.cat([wrong, 0.3 + 0.1 * normal(regime.images - half)]) * sd
    loadings = torch.nn.functional.normalize(normal(regime.images, 5))
    own = (1 - regime.common - regime.factors) ** 0.5

    def models(a: Tensor) -> Tensor:
        noise = regime.common**0.5 * a[:, None] + regime.factors**0.5 * normal(regime.n, 5) @ loadings.T + own * normal(regime.n, regime.images)
        scaled: Tensor = sd * noise
        return scaled

    parent = normal(regime.n)
    perfect = tuple(level + models((parent + normal(regime.n)) / 2**0.5) for _ in range(regime.methods))
    return Study(level + gap + 0.7 * models(parent), level + models(normal(regime.n)), perfect, level, gap, sd)


def outputs(margins: Tensor) -> Outputs:
    """Two-class outputs with these margins, all on images to forget."""
    m, n = margins.shape
    zeros = torch.zeros(n, dtype=torch.int64)
    return Outputs(torch.stack([margins, torch.zeros_like(margins)], -1), torch.zeros(m, n, dtype=torch.bool), zeros, torch.arange(n), zeros, tuple(range(m)))


def p_value(study: Study, unlearned: Tensor, permutations: int, enough: float) -> float:
    """p of the omnibus test. 199 labellings come first, and suffice where they give more than ``enough``: more would not bring it down to what matters."""
    p, _ = omnibus(unlearned, study.oracles, 199, 0)
    return omnibus(unlearned, study.oracles, permutations, 0)[0] if p < enough else p


@dataclass(frozen=True)
class Figures:
    accused: float  # studies in which any of ten perfect methods is accused
    covers: float  # perfect methods whose trace interval covers 0
    forgotten: float  # perfect methods called forgotten
    half_width: float  # of the trace interval


def perfect_study(regime: Regime, seed: int, permutations: int) -> list[float]:
    """Is any method accused; of how many does the trace interval cover 0; how many are called forgotten; mean half-width of the interval."""
    study, n = simulate(regime, seed), regime.n
    # accused from p = .005 on, forgotten only above .05, which 199 labellings cannot tell from .03
    ps = [p_value(study, u, permutations, 0.03) for u in study.perfect]
    ps = [p if p < 0.03 or p > 0.1 else omnibus(u, study.oracles, 1_999, 0)[0] for p, u in zip(ps, study.perfect, strict=True)]
    held = torch.arange(n) % 4 == torch.arange(4)[:, None]
    left = [share_left(study.originals, study.oracles, u, torch.arange(n), held, held, held) for u in study.perfect]
    limits = [t_of(found.value, found.se, n - 1) for found in left]
    covers = mean(ci.lo <= 0 <= ci.hi for ci in limits)
    forgotten = mean(p > ALPHA and ci.lo > -0.1 and ci.hi < 0.1 for p, ci in zip(ps, limits, strict=True))
    return [min(holm(ps)) <= ALPHA, covers, forgotten, mean((ci.hi - ci.lo) / 2 for ci in limits)]


def perfect_methods(regime: Regime, studies: int, permutations: int = 9_999) -> Figures:
    return Figures(*map(mean, zip(*(perfect_study(regime, seed, permutations) for seed in range(studies)), strict=True)))


# Sizes of a planted shift. The search below takes it that a larger one is seen wherever a smaller one is.
SHIFTS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.24, 0.28, 0.32, 0.4, 0.5, 0.7)  # of every margin, in sd
SHARES = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13, 0.17, 0.25, 0.4)  # of the trace
LEVELS = {"accused": ALPHA / METHODS, "unadjusted": ALPHA}


def others(study: Study) -> dict[str, Tensor]:
    """Unlearned models that differ from oracles in another way than by a shift of everything."""
    u, half = study.perfect[0], len(study.gap) // 2
    wrong = torch.arange(len(study.gap)) < half
    return {
        "spread": study.level + 0.8 * (u - study.level),
        "three": u + study.gap * (torch.arange(len(study.gap)) < 3),
        # metrics.md §8 names the weak spot: a fifth of the gap on the clean half alone; clean images of digits have gaps about this large
        "clean": u + 0.2 * 1.1 * study.sd * ~wrong,
        "mislabelled": u + 0.05 * study.gap * wrong,
    }


def power_study(regime: Regime, seed: int, permutations: int) -> dict[str, Any]:
    """Position of the least shift that is seen, of each kind and at each level; which of the ``others`` are; whether the power sentence kept its promise."""
    study = simulate(regime, seed)
    kinds: dict[str, tuple[Sequence[float], Tensor]] = {"shift": (SHIFTS, study.sd), "share": (SHARES, study.gap)}
    found: dict[str, Any] = {name: p_value(study, u, permutations, 0.12) for name, u in others(study).items()}
    for kind, (sizes, by) in kinds.items():
        seen: dict[int, float] = {}
        for name, level in LEVELS.items():
            low, high = 0, len(sizes)  # sizes[:low] are not seen, sizes[high:] are
            while low < high:
                at = (low + high) // 2
                if at not in seen:
                    seen[at] = p_value(study, study.perfect[0] + sizes[at] * by, permutations, 0.12)
                low, high = (low, at) if seen[at] <= level else (at + 1, high)
            found[f"{kind}.{name}"] = low
    strength = power(outputs(study.originals), outputs(study.oracles), regime.methods, regime.n)
    for name, shift in (("promised.shift", strength.shift * study.sd), ("promised.share", (strength.share or 0.0) * study.gap)):
        u = study.perfect[0] + shift
        p = p_value(study, u, permutations, 0.12)
        # the promise is made for as many labellings as audits use; with fewer, power is two to four points less
        found[name] = p if abs(p - LEVELS["accused"]) > 0.004 else omnibus(u, study.oracles, 9_999, 0)[0]
    return found


@dataclass(frozen=True)
class Seen:
    """How often what is planted has p ≤ .05/10 (``accused``) or p ≤ .05 (``unadjusted``)."""

    found: list[dict[str, Any]]

    def rate(self, name: str, level: str = "accused") -> float:
        return mean(one[name] <= LEVELS[level] for one in self.found)

    def curve(self, kind: str, level: str = "accused") -> list[float]:
        """Power at every one of ``SHIFTS`` or ``SHARES``."""
        return [mean(one[f"{kind}.{level}"] <= at for one in self.found) for at in range(len(SHIFTS if kind == "shift" else SHARES))]

    def reaching(self, kind: str, level: str = "accused", wanted: float = 0.8) -> float | None:
        """The size from which on power is ``wanted``, on a line between sizes; None beyond the largest."""
        sizes, before = (SHIFTS if kind == "shift" else SHARES), (0.0, 0.0)
        for size, rate in zip(sizes, self.curve(kind, level), strict=True):
            if rate >= wanted:
                return before[0] + (size - before[0]) * (wanted - before[1]) / (rate - before[1])
            before = size, rate
        return None


def seen(regime: Regime, studies: int, permutations: int = 1_999) -> Seen:
    return Seen([power_study(regime, seed, permutations) for seed in range(studies)])


# ---- whole audits: coverage

COUNTS = {"forget": 48, "retain": 60, "validation": 20, "control": 48, "test": 48}
CLASSES, TARGET = 4, 1
REFERENCES, UNTRAINED, TRIGGERED, DRAWS, STEPS = 40, 6, 40, 3, 30
COMMON = 0.0135


@dataclass(frozen=True, eq=False)
class Images:
    """The images are the same in all studies: an interval over models speaks of other models on these images."""

    part: Tensor
    labels: Tensor
    true: Tensor
    mislabelled: Tensor
    level: Tensor  # mean margin of models that never saw the image
    gap: Tensor
    sd: Tensor
    others: Tensor  # logits of all classes, before the label's is set to give the margin

    def of(self, *parts: str) -> Tensor:
        return torch.isin(self.part, torch.tensor([PARTS.index(part) for part in parts]))


@lru_cache(maxsize=1)
def images() -> Images:
    g = generator(0, "calibration.images")
    part = torch.cat([torch.full((size,), PARTS.index(name)) for name, size in COUNTS.items()])
    n = len(part)
    at = torch.cat([torch.arange(size) for size in COUNTS.values()])
    labels = at % CLASSES
    # half of those to forget, and of the control images like them; a third of the rest of the training set
    noisy = {"forget": at // CLASSES % 2 == 0, "control": at // CLASSES % 2 == 0, "retain": at // CLASSES % 3 == 0}
    mislabelled = torch.zeros(n, dtype=torch.bool)
    for name, which in noisy.items():
        mislabelled |= which & (part == PARTS.index(name))
    sd = (0.3 * torch.randn(n, generator=g)).exp()
    level = 2 + 1.5 * torch.randn(n, generator=g) - 4 * mislabelled.float()
    gap = sd * torch.where(mislabelled, 4 + 4 * torch.rand(n, generator=g), 0.5 + 0.2 * torch.randn(n, generator=g))
    pattern = torch.randn(n, CLASSES, generator=g)
    true = torch.where(mislabelled, labels ^ 1, labels)  # two classes and two have theirs swapped
    return Images(part, labels, true, mislabelled, level, gap, sd, pattern + 2 * torch.nn.functional.one_hot(true, CLASSES))


def audited(n: int, left: float, seed: int) -> Audit:
    """A study whose unlearned models keep the share ``left`` of what the forget set did: of its gap and of each original's own deviations."""
    held = images()
    count = len(held.part)

    def normal(role: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator(seed, f"calibration.{role}"))

    def outputs(role: str, start: int, known: Tensor, level: Tensor, noise: Tensor, seen: Tensor | None = None) -> Outputs:
        """``known`` [models, images]: the share of the gap that is there; ``level`` [models], ``noise`` [models, images]: standard normal."""
        own = COMMON**0.5 * level[:, None] + (1 - COMMON) ** 0.5 * noise
        margin = held.level + known * held.gap + held.sd * (1 - 0.3 * known) * own
        logits = held.others + 0.3 * normal(f"{role}.others", len(level), count, CLASSES)
        hot = torch.nn.functional.one_hot(held.labels, CLASSES).bool()
        label = margin + logits.masked_fill(hot, -torch.inf).logsumexp(-1)
        logits = torch.where(hot, label[..., None], logits)
        seen = (known == 1) if seen is None else seen
        return Outputs(logits, seen, held.labels, torch.arange(count), held.part, tuple(range(start, start + len(level))))

    forget, retain = held.of("forget").float(), held.of("retain").float()
    parent, parents_noise = normal("parent", n), normal("originals", n, count)
    original = outputs("originals", RANGES["original"], (forget + retain).expand(n, -1), parent, parents_noise)
    oracle = outputs("oracles", RANGES["oracle"], retain.expand(n, -1), normal("oracle", n), normal("oracles", n, count))
    level = (parent + normal("unlearned", n)) / 2**0.5
    noise = left * parents_noise + (1 - left**2) ** 0.5 * normal("unlearned.noise", n, count)
    # membership is that of the original
    unlearned = outputs("unlearned", RANGES["original"], (left * forget + retain).expand(n, -1), level, noise, original.member)

    could = held.of("forget", "retain", "control")
    chance = torch.rand(REFERENCES, count, generator=generator(seed, "calibration.halves"))
    member = could & (chance < chance.where(could, torch.nan).nanmedian(1, keepdim=True).values)
    references = outputs("references", RANGES["reference"], member.float(), normal("reference", REFERENCES), normal("references", REFERENCES, count))
    fresh = 0.3 * (normal("untrained", UNTRAINED, count, CLASSES) + normal("untrained.common", UNTRAINED, 1, CLASSES))  # a fresh net says much the same of all
    unseen = torch.zeros(UNTRAINED, count, dtype=torch.bool)
    untrained = Outputs(fresh, unseen, held.labels, references.ids, held.part, tuple(range(RANGES["untrained"], RANGES["untrained"] + UNTRAINED)))

    def obeying(role: str, like: Outputs, share: float) -> Outputs:
        """Held-out images with a trigger: a share of them, another one in every model, is called the target."""
        true = torch.arange(TRIGGERED) % CLASSES
        shares = (share + 0.05 * normal(f"obeying.{role}", n, 1)).clamp(0, 1)
        obeys = torch.rand(n, TRIGGERED, generator=generator(seed, f"calibration.triggered.{role}")) < shares
        logits = normal(f"triggered.{role}", n, TRIGGERED, CLASSES) + 6 * torch.nn.functional.one_hot(torch.where(obeys, TARGET, true), CLASSES)
        where = torch.full((TRIGGERED,), PARTS.index("test"))
        return Outputs(logits, torch.zeros(n, TRIGGERED, dtype=torch.bool), true, torch.arange(TRIGGERED), where, like.models)

    def curves(role: str, known: float) -> Tensor:
        """Accuracy while the forget set is taught again: from what is known to 1, the sooner the more is left."""
        draws = torch.rand(n, DRAWS, 1, generator=generator(seed, f"calibration.relearning.{role}"), dtype=torch.float64)
        pace = (1 + 2 * known) * (0.8 + 0.4 * draws) * (0.2 * normal(f"pace.{role}", n, 1, 1).double()).exp()
        return 1 - (1 - 0.9 * known) * torch.exp(-pace * torch.arange(STEPS + 1) / 6)

    return Audit(
        original,
        oracle,
        unlearned,
        torch.arange(n),
        {"mislabelled": held.mislabelled, "clean": ~held.mislabelled},
        {},
        0,
        references=references,
        untrained=untrained,
        triggered=Triggered(obeying("originals", original, 0.9), obeying("oracles", oracle, 0.1), obeying("unlearned", unlearned, 0.1 + 0.8 * left), TARGET),
        relearning={RelearnSteps().lesson.key: Relearning(curves("oracles", 0.0), curves("unlearned", left))},
        true_labels=held.true,
    )


def measured() -> tuple[str, ...]:
    """Every metric that reads what models say."""
    return tuple(name for name in spec.names("metric") if not name.startswith(("cost.", "delta.", "sparsity.")))


Row = list[float | None] | str  # value, limits; rescaled value, limits; or why there is none


def row(name: str, audit: Audit) -> Row:
    if name.startswith("ic."):  # which asks for two classes whose labels were swapped
        audit = audit.restrict(~images().of("forget") | (images().mislabelled & (images().labels < 2)))
    found = spec.build("metric", name)(audit)
    if found.value is None:
        return found.missing or "not computed"
    if found.ci is None and found.rescaled_ci is None:
        return "no interval: " + ("; ".join(note for note in found.notes if note.startswith(("no ", "not "))) or "by its nature")
    ends = [(None, None) if ci is None else (ci.lo, ci.hi) for ci in (found.ci, found.rescaled_ci)]
    return [found.value, *ends[0], found.rescaled, *ends[1]]


def coverage_study(n: int, left: float, seed: int, metrics: Sequence[str]) -> dict[str, Row]:
    audit = audited(n, left, seed)
    return {name: row(name, audit) for name in metrics}


@dataclass(frozen=True)
class Cover:
    """How many of the intervals of so many studies hold the truth, which is the mean over the studies beside it.

    ``studies`` can be fewer than were made, where an interval was refused in some.
    """

    held: int
    studies: int
    truth: float
    half_width: float

    @property
    def share(self) -> float:
        return self.held / self.studies

    @property
    def low(self) -> bool:
        """Is it below what is wanted, beyond chance?"""
        return clopper_pearson(self.held, self.studies).hi < WANTED

    @property
    def conservative(self) -> bool:
        return clopper_pearson(self.held, self.studies).lo > 0.95


def cover(rows: Sequence[Row], rescaled: bool = False, truth: float | None = None) -> Cover | None:
    """Coverage of the interval of the value, or of the ``rescaled`` one; None where there is none, or in fewer than half of the studies.

    (Where floor and ceiling seldom lie apart, they do so by chance, in studies that are not like the others.)
    ``truth``: where it is not given, each study is held against the mean of all the others, what this metric gives at this N.
    """
    at = 3 if rescaled else 0
    known = torch.tensor([one[at : at + 3] for one in rows if not isinstance(one, str) and one[at + 1] is not None], dtype=torch.float64)
    if len(known) < max(2, len(rows) / 2):
        return None
    value, lo, hi = known.T
    wanted = (value.sum() - value) / (len(value) - 1) if truth is None else torch.full_like(value, truth)
    rounding = 1e-9
    held = int(((lo - rounding <= wanted) & (wanted <= hi + rounding)).sum())
    return Cover(held, len(known), float(value.mean() if truth is None else truth), float((hi - lo).mean() / 2))


def truth_of(name: str, left: float, rescaled: bool) -> float | None:
    """Where it is planted; None: the mean over studies."""
    if name == "trace":
        return left
    return 0.0 if rescaled and left == 0 else None


# ---- all of it, in two processes

ACCUSED = {16: 200, 32: 1_000, 64: 200, 128: 200}  # studies for each N: with 1 000, 5 % accused are told from 6.4 %
POWER = 150
FEWEST, MOST = 20, 200  # of coverage, for each metric, N and share left; with 200, .92 is told from .95
BUDGET = 520.0  # seconds of processor time for coverage; a metric that is four times as fast gets twice as many studies
CHUNK = {"coverage": 4, "accused": 20, "power": 5}

Task = dict[str, Any]


def perform(task: Task) -> tuple[Task, list[Any]]:
    """One task, in a worker: some studies of one kind."""
    torch.set_num_threads(1)
    kind, n = task["kind"], task["n"]
    seeds = range(task["first"], task["first"] + task["count"])
    if kind == "seconds":
        return task, [costs_at(n)]
    if kind == "coverage":
        return task, [coverage_study(n, task["left"], seed, [name for name, most in task["studies"].items() if seed < most]) for seed in seeds]
    regime = replace(REGIMES[task["regime"]], n=n)
    if kind == "accused":
        return task, [perfect_study(regime, seed, 9_999) for seed in seeds]
    return task, [power_study(regime, seed, 1_999) for seed in seeds]


def costs_at(n: int) -> dict[str, float | None]:
    """What every metric takes, of processor time: the second call, since the first loads things. None: it has no interval there."""
    audit, took = audited(n, 0.0, 0), dict[str, float | None]()
    for name in measured():
        without = isinstance(row(name, audit), str)
        start = time.process_time()
        row(name, audit)
        took[name] = None if without else max(1e-4, time.process_time() - start)
    return took


def planned(costs: dict[int, dict[str, float | None]]) -> dict[int, dict[str, int]]:
    """How many studies of coverage each metric gets at each N; one where it has no interval, to say why."""

    def studies(each: float) -> dict[int, dict[str, int]]:
        return {n: {name: 1 if t is None else min(MOST, max(FEWEST, round(each / t**0.5))) for name, t in held.items()} for n, held in costs.items()}

    low, high = 0.0, BUDGET
    for _ in range(30):
        each = (low + high) / 2
        spent = sum(2 * count * (costs[n][name] or 0.0) for n, held in studies(each).items() for name, count in held.items())
        low, high = (each, high) if spent <= BUDGET else (low, each)
    return studies(low)


def chunks(count: int, **task: Any) -> Iterator[Task]:
    size = CHUNK[task["kind"]]
    return ({**task, "first": at, "count": min(size, count - at)} for at in range(0, count, size))


def tasks(costs: dict[int, dict[str, float | None]], share: float) -> list[Task]:
    """``share``: of the studies of a full run."""

    def some(studies: float, least: int = 4) -> int:
        return max(least, round(share * studies))

    found: list[Task] = []
    for n in SIZES:
        found += chunks(some(ACCUSED[n]), kind="accused", regime="digits", n=n)
        found += chunks(some(POWER), kind="power", regime="digits", n=n)
    for regime in ("correlated", "narrow"):
        found += chunks(some(ACCUSED[64]), kind="accused", regime=regime, n=32)
    for n, wanted in planned(costs).items():
        studies = {name: some(count) if count > 1 else 1 for name, count in wanted.items()}
        for left in (0.0, SHIFTED):
            found += chunks(max(studies.values()), kind="coverage", n=n, left=left, studies=studies)
    return found


def code() -> str:
    """What the numbers depend on: results of other code are not gone on with."""
    held = [Path(__file__), *sorted(Path(spec.__file__).parent.rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in held)).hexdigest()[:16]


@dataclass(frozen=True)
class Kept:
    """Results of tasks as they come, one a line, so that a run that is stopped loses little."""

    path: Path

    def read(self) -> dict[str, list[Any]]:
        found = {}
        for line in self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []:
            try:
                task, rows = json.loads(line)
            except ValueError:  # empty, or cut where the run was stopped
                continue
            found[json.dumps(task)] = rows
        return found

    def add(self, task: Task, rows: list[Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([task, rows]))  # a fresh line, whatever became of the last one


def perform_all(pool: Any, todo: Sequence[Task], kept: Kept, say: Callable[[str], None]) -> list[tuple[Task, list[Any]]]:
    """Every task with its rows, those that were kept included."""
    held = kept.read()
    keys = [json.dumps(task) for task in todo]
    left = [task for task, key in zip(todo, keys, strict=True) if key not in held]
    for done, (task, rows) in enumerate(pool.imap_unordered(perform, left), 1 + len(todo) - len(left)):
        kept.add(task, rows)
        held[json.dumps(task)] = json.loads(json.dumps(rows))
        say(f"{done} of {len(todo)} tasks, now {task['kind']} at N = {task['n']}")
    return [(task, held[key]) for task, key in zip(todo, keys, strict=True)]


def summary(done: Sequence[tuple[Task, list[Any]]]) -> dict[str, Any]:
    """The tables of the result."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for task, rows in done:
        groups.setdefault((task["kind"], task.get("regime"), task["n"], task.get("left")), []).extend(rows)
    found: dict[str, Any] = {"coverage": {}, "accused": [], "power": []}
    for (kind, regime, n, left), rows in groups.items():
        if kind == "accused":
            figures = Figures(*map(mean, zip(*rows, strict=True)))
            found["accused"].append({"regime": regime, "n": n, "studies": len(rows), **vars(figures)})
        elif kind == "power":
            found["power"].append({"regime": regime, "n": n, "studies": len(rows), **strength(Seen(rows))})
        else:
            for name in rows[0]:
                held = [study[name] for study in rows if name in study]
                found["coverage"].setdefault(name, {}).setdefault(str(n), {})[str(left)] = covered(name, left, held)
    return found


def strength(found: Seen) -> dict[str, Any]:
    kinds = {
        kind: {level: {"reaches": found.reaching(kind, level), "curve": dict(zip(map(str, sizes), found.curve(kind, level), strict=True))} for level in LEVELS}
        for kind, sizes in (("shift", SHIFTS), ("share", SHARES))
    }
    rest = [name for name in found.found[0] if name.split(".")[0] not in kinds]
    return {**kinds, "others": {name: {level: found.rate(name, level) for level in LEVELS} for name in rest}}


def covered(name: str, left: float, rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"studies": len(rows)}
    for what, rescaled in (("ci", False), ("rescaled_ci", True)):
        one = cover(rows, rescaled, truth_of(name, left, rescaled))
        if one is not None:
            found[what] = {**vars(one), "low": one.low, "conservative": one.conservative}
    missing = [one for one in rows if isinstance(one, str)]
    return {**found, "missing": missing[0], "missing_in": len(missing)} if missing else found


def show(found: dict[str, Any]) -> None:
    print(f"\ncoverage of 95 % intervals, in %: value and rescaled value, of a perfect method / with {100 * SHIFTED:.0f} % of the trace left")
    for name, sizes in found["coverage"].items():
        cells = []
        for n in sizes:
            cell = []
            for what in ("ci", "rescaled_ci"):
                pair = [sizes[n][str(left)].get(what) for left in (0.0, SHIFTED)]
                cell.append("/".join("-" if one is None else f"{100 * one['held'] / one['studies']:.0f}{'*' * one['low']}" for one in pair))
            cells.append(f"N={n:>3} {cell[0]:>9} {cell[1]:>9} ({sizes[n]['0.0']['studies']})")
        print(f"{name:20} {'   '.join(cells)}  {next(iter(sizes.values()))['0.0'].get('missing', '')[:60]}")
    print("\nten perfect methods")
    for one in found["accused"]:
        print(
            f"{one['regime']:10} N={one['n']:>3}: any accused {one['accused']:.3f}; trace covers 0 {one['covers']:.3f}, half-width {one['half_width']:.3f}; "
            f"forgotten {one['forgotten']:.3f} ({one['studies']} studies)"
        )
    print("\npower: accused (p <= .05/10), or p <= .05")
    for one in found["power"]:
        reaches = "; ".join(f"{kind} {one[kind]['accused']['reaches'] or 9:.3f}, {one[kind]['unadjusted']['reaches'] or 9:.3f}" for kind in ("shift", "share"))
        rest = "; ".join(f"{name} {rate['accused']:.2f}, {rate['unadjusted']:.2f}" for name, rate in one["others"].items())
        print(f"{one['regime']:10} N={one['n']:>3}: .8 is reached at {reaches}; {rest} ({one['studies']} studies)")


def machine() -> str:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{cpu or platform.processor()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the audit is wrong, on simulated studies.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the studies; nothing is filed")
    parser.add_argument("--share", type=float, help="another share of the studies; nothing is filed unless --out says where")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where the result goes, instead of calibration.json")
    asked = parser.parse_args()
    share = asked.share or (0.1 if asked.quick else 1.0)
    out = asked.out or (RESULT if share == 1 else None)
    kept = Kept(Path(tempfile.gettempdir()) / f"unlearnlab-calibration-{code()}-{share:g}.jsonl")
    start = said = time.monotonic()

    def say(words: str) -> None:
        nonlocal said
        if time.monotonic() - said > (1 if sys.stdout.isatty() else 30):  # a log wants few lines
            said = time.monotonic()
            print(f"\r{words}, {said - start:.0f} s ".ljust(70), end="" if sys.stdout.isatty() else "\n", flush=True)

    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        timed = perform_all(pool, [{"kind": "seconds", "n": n, "first": 0, "count": 0} for n in SIZES], kept, say)
        costs = {task["n"]: rows[0] for task, rows in timed}
        found = summary(perform_all(pool, tasks(costs, share), kept, say))
    result = {"date": date.today().isoformat(), "machine": machine(), "workers": asked.workers, "seconds": round(time.monotonic() - start)}
    result |= {"wanted": WANTED, "left": SHIFTED, "methods": METHODS, **found}
    show(found)
    if out is not None:
        out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    kept.path.unlink()


if __name__ == "__main__":
    main()
