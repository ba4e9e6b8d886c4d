"""The audit: gathers logits, runs metrics, checks what must hold, and judges. Loud on failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Audit, Metric, Result
from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.metrics.accuracy import correct
from unlearnlab.metrics.groups import band_differences, of_group
from unlearnlab.metrics.omnibus import Omnibus, origin
from unlearnlab.metrics.statistics import holm, t_of, welch_lower
from unlearnlab.metrics.trace import Trace
from unlearnlab.outputs import Outputs, observe
from unlearnlab.seeds import RANGES
from unlearnlab.spec import InputError, build, info

if TYPE_CHECKING:
    from unlearnlab.stack import Stack

CALIBRATION = ("original", "retrain")  # rows that show where 1 and 0 lie; no verdict, and no share in Holm's correction
NEEDED = 16  # models a side for a verdict
# What is also measured on each group: the share left, what is a mean over its images, and what papers on groups report.
GROUPABLE = ("trace", "mia_lr.auc", "acc.forget", "tow", "tow_mia", "klom.smooth.forget", "klom.gauss.forget", "eps.crossfit.forget", "disagree.forget")
# The order of trust (metrics.md §8): a metric's ``trust`` is its place here. First come the integrity checks: where one fails, no number is shown.
TRUST = {
    2: "Can these models be told from oracles at all, and how much is left? What a verdict rests on, and what certifies",
    3: "How far from the oracles, in any direction? Distances, to be read against floor and ceiling",
    4: "Image by image, beside many oracles: is any of them out of line? And planted triggers and confusions, where there are any: hard to fake",
    5: "Attacks that know models trained with and without each image",
    6: "Does it behave as an oracle does? Easy to match without forgetting",
    7: "Attacks on a single model: passed by hiding, or by forgetting too much",
    8: "What it costs and what else changed: never a ground for “forgotten”",
}
HELD_OUT = ("validation", "control", "test")
JUDGING = ("trace", "perm.omnibus")  # what a verdict rests on
DEFAULT: tuple[Any, ...] = (*JUDGING, "energy", "mia_lr.auc", *({"name": "acc", "part": part} for part in ("forget", "retain", "test")))


# ---- running metrics


def measure(audit: Audit, metrics: Iterable[Metric], groups: Sequence[str] = ()) -> dict[str, Result]:
    """Every metric on all examples, and those of ``GROUPABLE`` on each named group under ``group.<scheme>.<band>.<key>``.

    Beside the traces of groups stand their ``band_differences``. A metric that breaks is raised again as a ``RuntimeError`` with
    its name; wrong input stays an ``InputError``.
    """
    found: list[Result] = []
    for metric in metrics:
        try:
            found.append(metric(audit))
            found += [of_group(metric, audit, name) for name in groups if metric.key in GROUPABLE]
            found += band_differences(audit, groups, metric) if isinstance(metric, Trace) else []
        except InputError:
            raise
        except Exception as error:
            raise RuntimeError(f"metric '{metric.key}' failed: {type(error).__name__}: {error}") from error
    return {result.key: result for result in found}


def described(metrics: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    """How to read each metric, by key: what it asks, what a perfect unlearner scores, when not to trust it, its place in ``TRUST``."""
    found = {}
    for metric in metrics:  # a plugin's may leave these out
        found[metric.key] = {"summary": info(metric).summary, "trust": getattr(metric, "trust", max(TRUST))}
        found[metric.key] |= {name: getattr(metric, name, "") for name in ("ideal", "caution")}
    return found


# ---- what must hold before any number is believed


def integrity(audit: Audit, name: str) -> tuple[str, ...]:
    """One sentence for every check that fails; none where all is well. Where one fails, no metric is to be shown."""
    originals, oracles, unlearned = audit.originals, audit.oracles, audit.unlearned
    for who, seen in (("oracles", oracles), ("unlearned models", unlearned)):
        for what in ("ids", "labels", "part"):
            if not torch.equal(getattr(seen, what), getattr(originals, what)):
                return (f"originals and {who} were not observed on the same images: their {what} differ",)
    failed = []
    for seen in (originals, oracles, unlearned):
        try:
            seen.require_finite()
        except InputError as error:
            failed.append(str(error))
    forget, retain = originals.of("forget"), originals.of("retain")
    both = forget.ids[torch.isin(forget.ids, retain.ids)]
    if len(both):
        failed.append(f"image id {int(both[0])} is in both the forget and the retain set ({len(both)} such image(s))")
    if not forget.member.all():
        failed.append(f"image id {int(forget.ids[~forget.member.all(0)][0])} is to be forgotten, but some original was never trained on it")
    if (known := oracles.of("forget").member).any():
        failed.append(f"image id {int(forget.ids[known.any(0)][0])} is to be forgotten, but some oracle was trained on it")
    for part in HELD_OUT:
        if originals.of(part).member.any() or oracles.of(part).member.any():
            failed.append(f"some {part} images were trained on; they must be held out")
    marks = {who: _fingerprints(seen) for who, seen in (("originals", originals), ("oracles", oracles), ("unlearned models", unlearned))}
    failed += [f"two of the {who} are the same model" for who in ("originals", "oracles") if len(set(marks[who])) < len(marks[who])]
    failed += [f"some {who} are oracles" for who in ("originals", "unlearned models") if set(marks[who]) & set(marks["oracles"])]
    if name != "original":
        if all(_still(audit)):
            failed.append(f"{len(unlearned)} of {len(unlearned)} unlearned models did not change at all")
    elif len(originals) and audit.parents is not None and marks["unlearned models"] != [marks["originals"][row] for row in audit.parents.tolist()]:
        failed.append("the row 'original' does not hold the originals; that name is kept for them")
    return tuple(failed)


def _still(audit: Audit) -> list[bool]:
    """Which unlearned models are their originals. All of them: the method did not run, or did nothing. A few: a finding, said beside the verdict.

    A method may rightly find nothing to change in one model (no weight passes SSD's threshold, no epoch of SCRUB+R is better than none). To show no number
    then would hide what it did to the others, to leave those models out would flatter it.
    """
    if "changed" in audit.facts:
        return [bool(share <= 0) for share in audit.facts["changed"]]
    known = set(_fingerprints(audit.originals))
    return [mark in known for mark in _fingerprints(audit.unlearned)]


def _fingerprints(outputs: Outputs) -> list[int]:
    return [hash(row.numpy().tobytes()) for row in outputs.logits.detach().cpu().contiguous()]


# ---- verdicts


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on. ``reason``: why none is possible; ``lo`` and ``hi``: limits of the trace."""

    n: int
    reason: str = ""
    mark: bool = True  # the forget set left a mark on the originals that this audit can see
    damaged: bool = False
    checked: bool = True  # retain or test accuracy is known, so that damage would have shown
    p: float = 1.0
    holm: float = 1.0
    trace: float = 0.0
    lo: float = 0.0
    hi: float = 0.0
    power: str = ""
    still: str = ""  # how many unlearned models are their originals


@dataclass(frozen=True)
class Rule:
    """One line of the table of verdicts. ``verdict`` is completed with the evidence; its words before the colon are the label."""

    number: str
    condition: str
    verdict: str
    fires: Callable[[Evidence], bool]


NO_TRACE = "this forget set leaves no trace at N={n}"
STILL = "; {still} models did not change at all"
UNCHECKED = "; damage not looked for: neither retain nor test accuracy is known"
WELCH = "on retain or test accuracy the one-sided Welch lower limits (level .05/2m) of oracle − unlearned and of original − unlearned both exceed 2 points"
# The first rule that fires wins, but for 2, which only puts its word before the verdict of 3-5 (metrics.md §8).
VERDICTS = (
    Rule("0", "an integrity check fails, N < 16, or some U has no original of its own", "no verdict: {reason}", lambda e: bool(e.reason)),
    Rule("1", "p(originals v oracles) > .01, or the trace's denominator is not above 0", f"no verdict: {NO_TRACE}", lambda e: not e.mark),
    Rule("2", WELCH, "damaged, ", lambda e: e.damaged),
    Rule("3a", "Holm p <= .05 and the trace interval is above 0", "not forgotten: {left:.0f} % of the trace left", lambda e: e.holm <= 0.05 and e.lo > 0),
    Rule("3b", "Holm p <= .05 and the trace interval is below 0", "over-forgotten", lambda e: e.holm <= 0.05 and e.hi < 0),
    Rule("3c", "Holm p <= .05 and the trace interval covers 0", "not forgotten: distinguishable, not towards the original", lambda e: e.holm <= 0.05),
    Rule("4", "raw p > .05, trace interval within ±.10", "forgotten: indistinguishable at N={n}; {power}", lambda e: e.p > 0.05 and max(-e.lo, e.hi) < 0.1),
    Rule("5", "otherwise", "unresolved", lambda e: True),
)


def rules() -> list[tuple[str, str, str]]:
    """Number, condition and verdict of every rule, with words where an audit puts its numbers."""
    words = {"left": "x", "reason": "reason", "power": "power sentence"}
    told = [re.sub(r"\{(\w+)[^}]*\}", lambda found: words[found[1]], rule.verdict.replace("N={n}", "N")) for rule in VERDICTS]
    told = ["damaged, followed by the words of 3a to 5" if rule.number == "2" else text for rule, text in zip(VERDICTS, told, strict=True)]
    return [(rule.number, rule.condition, text) for rule, text in zip(VERDICTS, told, strict=True)]


@dataclass(frozen=True)
class Verdict:
    label: str
    rule: str
    text: str
    damaged: bool = False


def judge(evidence: Evidence) -> Verdict:
    """The verdict on one method: the first rule of ``VERDICTS`` that fires."""
    fired = [rule for rule in VERDICTS if rule.fires(evidence)]
    damaged = evidence.damaged and fired[0].number not in ("0", "1")
    rule = next(rule for rule in fired if rule.number != "2")
    words = rule.verdict.format(n=evidence.n, reason=evidence.reason, left=100 * evidence.trace, power=evidence.power)
    words += "" if evidence.checked or rule.number in ("0", "1") else UNCHECKED
    words += STILL.format(still=evidence.still) if evidence.still else ""
    return Verdict(rule.verdict.split(":")[0], rule.number, ("damaged, " if damaged else "") + words, damaged)


@dataclass(frozen=True)
class Power:
    """What the test would have seen: a ``shift`` of all forget margins, in sd of an oracle, and the share of the trace worth as much."""

    shift: float
    share: float | None
    probability: float = 0.8

    def __str__(self) -> str:
        share = "" if self.share is None else f", or {100 * self.share:.0f} % of the trace,"
        return f"a uniform shift of {self.shift:.2f} sd{share} would have been seen with probability {self.probability:g}"


def power(originals: Outputs, oracles: Outputs, family: int, n: int) -> Power:
    """x = √2 (t_{1−a/2, 2N−2} + .84) s_a/√N · 1.15, a = .05/m, s_a = sd over oracles of the mean standardised forget margin.

    15 % is the price of taking the best of three statistics. The share of the trace that moves this mean as far is x over
    the originals' mean standardised gap: a cautious figure where gaps differ in sign or size, since the energy distance
    then sees less. None where it would be more than the whole trace. Source: metrics.md §8, with Student's quantile in the place of
    the normal one: shifts so named had been seen with probability .70 to .77 up to N = 64 (`benchmarks/calibration.py`).
    """
    o, p = oracles.of("forget").margin, originals.of("forget").margin
    sd = o.std(0)
    sd = torch.where(sd > 1e-3 * sd.median(), sd, torch.inf)  # images on which oracles never differ say nothing
    s = float(((o - o.mean(0)) / sd).mean(1).std())
    reach = t_of(0.0, 1.0, 2 * n - 2, 1 - 0.05 / family).hi
    shift = 1.15 * 2**0.5 * (reach + 0.84) * s / n**0.5
    gap = abs(float(((p.mean(0) - o.mean(0)) / sd).mean()))
    return Power(shift, shift / gap if shift < gap else None)


@dataclass(frozen=True)
class Row:
    """One method of a report. ``p`` and ``holm_p`` are those of `perm.omnibus`; calibration rows have no ``holm_p``."""

    name: str
    results: Mapping[str, Result]
    verdict: Verdict
    p: float | None
    holm_p: float | None
    calibration: bool


@dataclass(frozen=True)
class AuditReport:
    """Verdicts and results of every method audited together."""

    rows: tuple[Row, ...]
    power: Power | None
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise InputError(f"no row '{name}' in this report; it has: {', '.join(found)}")
        return found[name]

    def to_json(self) -> dict[str, Any]:
        rows = [{**asdict(replace(row, results={})), "results": {key: result.to_json() for key, result in row.results.items()}} for row in self.rows]
        return {"rows": rows, "power": asdict(self.power) if self.power else None, "notes": list(self.notes)}

    @staticmethod
    def from_json(held: Mapping[str, Any]) -> AuditReport:
        def row(of: Mapping[str, Any]) -> Row:
            results = {key: Result.from_json(result) for key, result in of["results"].items()}
            return Row(**{**of, "results": results, "verdict": Verdict(**of["verdict"])})

        return AuditReport(tuple(map(row, held["rows"])), Power(**held["power"]) if held["power"] else None, tuple(held["notes"]))

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [("method", "trace", "95 % interval", "p", "Holm p", "verdict")]
        for row in self.rows:
            trace = row.results.get("trace")
            value, ci = (None, None) if trace is None else (trace.value, trace.ci)
            numbers = ("–", "–") if value is None or ci is None else (f"{value:.3f}", f"{ci.lo:.3f} to {ci.hi:.3f}")
            lines.append((row.name, *numbers, *("–" if p is None else f"{p:.4f}" for p in (row.p, row.holm_p)), row.verdict.text))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*table, *([f"Power: {self.power}."] if self.power else []), *(f"Note: {note}." for note in self.notes)])


Logged = Mapping[str, tuple[Tensor, Tensor, Tensor]]  # part -> accuracies of unlearned models, oracles and originals


def judge_family(
    rows: Mapping[str, tuple[Audit, Mapping[str, Result]]], notes: tuple[str, ...] = (), logged: Mapping[str, Logged] | None = None
) -> AuditReport:
    """Verdicts on methods audited together: Holm over all but the calibration rows, whose number is the family's size m.

    ``rows``: name -> audit and what ``measure`` found in it, at least `trace` and `perm.omnibus`. A method without a p
    stays in the family, so that dropping one never helps another; one that fails a check is shown without any result.
    ``logged``: by row, accuracies on retain and test that were noted elsewhere, for audits without such images.
    """
    broken = {name: "; ".join(integrity(audit, name)) for name, (audit, _) in rows.items()}
    rows = {name: (audit, {} if broken[name] else results) for name, (audit, results) in rows.items()}
    family = [name for name in rows if name not in CALIBRATION]
    m = max(1, len(family))
    raw = {name: results["perm.omnibus"].p if "perm.omnibus" in results else None for name, (_, results) in rows.items()}
    adjusted = dict(zip(family, holm([1.0 if (p := raw[name]) is None else p for name in family]), strict=True))
    marks: dict[tuple[int, int], bool] = {}  # whether originals differ from oracles at all: once for each pair of ensembles
    judged, strength = [], None
    for name, (audit, results) in rows.items():
        n = min(len(audit.unlearned), len(audit.oracles), len(audit.originals))
        evidence, seen_p, calibration = Evidence(n, broken[name] or _reason(audit, results, n)), raw[name], name in CALIBRATION
        if not evidence.reason:
            pair = id(audit.originals), id(audit.oracles)
            if pair not in marks:
                p = Omnibus()(replace(audit, unlearned=audit.originals, parents=torch.arange(len(audit.originals)))).p
                marks[pair] = p is not None and p <= 0.01
                strength = power(audit.originals, audit.oracles, m, n)
            assert seen_p is not None, "a metric that was computed on independent originals has a p"
            trace, holm_p = results["trace"], adjusted.get(name, seen_p)
            harm = _damaged(audit, m, (logged or {}).get(name, {}))
            mark = marks[pair] and trace.value is not None
            evidence = Evidence(n, "", mark, harm is True, harm is not None, seen_p, holm_p, power=str(strength))
            if trace.value is not None and trace.ci is not None:
                evidence = replace(evidence, trace=trace.value, lo=trace.ci.lo, hi=trace.ci.hi)
        if name != "original" and not broken[name] and any(still := _still(audit)):
            evidence = replace(evidence, still=f"{sum(still)} of {len(still)}")
        verdict = Verdict("calibration", "", "calibration") if calibration and not evidence.reason else judge(evidence)
        judged.append(Row(name, results, verdict, seen_p, None if seen_p is None else adjusted.get(name), calibration))
    return AuditReport(tuple(judged), strength, notes)


def _reason(audit: Audit, results: Mapping[str, Result], n: int) -> str:
    """Why rule 0 fires although all checks pass, or nothing."""
    if n < NEEDED:
        return f"N={n}, needs {NEEDED}"
    if not audit.independent:
        return (
            "it is not known whether every unlearned model comes from an original of its own"
            if audit.parents is None
            else f"the unlearned models do not come from independent originals: {origin(audit.parents)}"
        )
    for key in JUDGING:
        if key not in results:
            return f"'{key}' was not measured"
        missing = results[key].missing
        if missing and NO_TRACE.format(n=n) not in missing:
            return f"'{key}' {missing}"
    return ""


def _damaged(audit: Audit, m: int, logged: Logged) -> bool | None:
    """Rule 2: clearly worse than the worse of oracles and originals, which may themselves lie points apart. None: nobody knows."""
    known = []
    for part in ("retain", "test"):
        if (audit.unlearned.part == PARTS.index(part)).any():
            known.append(tuple(correct(seen.of(part)) for seen in (audit.unlearned, audit.oracles, audit.originals)))
        elif part in logged:
            known.append(logged[part])
    # 1 − .98 is above .02 in floats
    worse = [min(welch_lower(o, u, 0.05 / (2 * m)), welch_lower(p, u, 0.05 / (2 * m))) > 0.02 + 1e-12 for u, o, p in known]
    return any(worse) if known else None


# ---- the public verb


def audit(
    *,
    originals: Outputs | Stack | Any,
    oracles: Outputs | Stack | Any,
    unlearned: Mapping[str, Outputs | Stack | Any],
    labels: Any = None,
    part: Sequence[str] | Any = None,
    ids: Any = None,
    member: Mapping[str, Any] | None = None,
    groups: Mapping[str, Any] | None = None,
    metrics: Iterable[Any] | None = None,
    parents: Literal["own", "one"] | None = "own",
    seed: int = 0,
    split: Split | None = None,
    references: Outputs | Stack | Any = None,
    true_labels: Any = None,
) -> AuditReport:
    """Did they really forget? Judges unlearned models against models that never saw the forget set.

    Each ensemble is an ``Outputs``, an array of logits [models, examples, classes] made by any framework (with ``labels``
    [examples] and ``part`` [examples], names or indices into forget, retain, validation, control, test), or a ``Stack``
    (with ``split``). ``parents``: "own": row i of an unlearned ensemble was made from row i of the originals; "one": all from
    row 0; None: unknown. ``member``: ``originals`` and ``oracles`` -> bool [examples] or [models, examples], who was trained on what;
    by default as the parts say. The names "original" (the originals themselves) and "retrain" are kept for calibration.
    ``groups``: name -> bool [examples]. ``metrics``: specs, names or tables. ``references``: models that are not audited, each trained on
    a known part of the forget, retain and control images, for attacks that learn from them: ``Outputs``, or anything else with
    ``member["references"]`` [models, examples]. ``true_labels`` [examples]: as released, where some were changed (else the split's, if there is one).
    """
    if not unlearned:
        raise InputError("nothing to audit: 'unlearned' is empty; give at least one named ensemble")
    if parents not in ("own", "one", None):
        raise InputError(f"parents = {parents!r} must be 'own', 'one' or None")
    gather = _Gather(labels, part, ids, member or {}, split)
    held_p, held_o = gather("originals", originals), gather("oracles", oracles)
    chosen = [build("metric", metric) for metric in (DEFAULT if metrics is None else metrics)]
    chosen = [made for made in (build("metric", name) for name in JUDGING) if made.key not in {metric.key for metric in chosen}] + chosen
    bands = {name: torch.as_tensor(mask, dtype=torch.bool) for name, mask in (gather.groups(held_p.ids) if groups is None else groups).items()}
    wrong = next((name for name, mask in bands.items() if mask.shape != held_p.ids.shape), None)
    if wrong is not None:
        raise InputError(f"group '{wrong}' has shape {tuple(bands[wrong].shape)}; expected one true or false for each of {len(held_p.ids)} examples")
    true = gather.true_labels(held_p, true_labels)
    aside = None if references is None else gather.references(references, held_p)
    strangers = set() if aside is None else set(_fingerprints(aside))

    def check_apart(who: str, side: Outputs) -> None:
        if strangers and not strangers.isdisjoint(_fingerprints(side)):
            raise InputError(f"a reference model is also one of the {who}; an attack must not learn from a model that is audited: leave it out")

    check_apart("originals", held_p)
    check_apart("oracles", held_o)
    rows = {}
    for name, given in unlearned.items():
        held_u = gather(name, given)
        if held_u.logits.shape[1:] != held_p.logits.shape[1:] or held_o.logits.shape[1:] != held_p.logits.shape[1:]:
            shapes = ", ".join(f"{who} {tuple(seen.logits.shape)}" for who, seen in (("originals", held_p), ("oracles", held_o), (name, held_u)))
            raise InputError(f"all models must be seen on the same examples and classes; got logits of {shapes}")
        if parents == "own" and len(held_u) != len(held_p):
            raise InputError(f"'{name}' has {len(held_u)} models and there are {len(held_p)} originals; give one for each original, or parents='one' or None")
        kin: Int64[Tensor, " unlearned"] | None = {"own": torch.arange(len(held_u)), "one": torch.zeros(len(held_u), dtype=torch.int64)}.get(parents or "")
        check_apart(name, held_u)
        seen = Audit(held_p, held_o, held_u, kin, bands, {}, seed, references=aside, true_labels=true)
        rows[name] = (seen, {} if integrity(seen, name) else measure(seen, chosen, tuple(bands)))
    return judge_family(rows, () if member or labels is None else ("who was trained on what is taken from the parts, not checked",))


@dataclass(frozen=True, eq=False)
class _Gather:
    """Turns whatever the user has into ``Outputs``."""

    labels: Any
    part: Any
    ids: Any
    member: Mapping[str, Any]
    split: Split | None

    def __call__(self, who: str, given: Any) -> Outputs:
        if isinstance(given, Outputs):
            return given
        if hasattr(given, "seeds") and hasattr(given, "logits"):
            if self.split is None:
                raise InputError(f"'{who}' is a Stack: give the split it is to be observed on (split=…)")
            images, where = self.split.together()
            return observe(given, images, member=self._member(who, where, len(given.seeds)), part=where)
        try:
            logits = torch.as_tensor(given)
        except (RuntimeError, TypeError, ValueError) as error:
            what = f"'{who}' must be Outputs, a Stack or logits [models, examples, classes]; got {type(given).__name__}"
            raise InputError(f"{what}: stack modules with ul.Stack.of(models, seeds=range(len(models))) and give split=…") from error
        if logits.ndim != 3 or not logits.is_floating_point():
            raise InputError(f"'{who}' must be Outputs, a Stack or logits [models, examples, classes]; got shape {tuple(logits.shape)} of {logits.dtype}")
        if self.labels is None or self.part is None:
            raise InputError("logits alone do not say what is right and what is to be forgotten: give labels=… and part=…, one for each example")
        if unknown := [name for name in self.part if isinstance(name, str) and name not in PARTS]:
            raise InputError(f"unknown part '{unknown[0]}'; parts: {', '.join(PARTS)}")
        where = torch.tensor([PARTS.index(name) if isinstance(name, str) else int(name) for name in self.part])
        if len(where) and not 0 <= int(where.min()) <= int(where.max()) < len(PARTS):
            raise InputError(f"part indices run from 0 to {len(PARTS) - 1} ({', '.join(PARTS)}); got {int(where.min())} to {int(where.max())}")
        ids = torch.arange(logits.shape[1]) if self.ids is None else torch.as_tensor(self.ids)
        start = RANGES["reference"] if who == "references" else 0  # other models than the audited ones, and metrics know models by their seeds
        seeds = tuple(range(start, start + len(logits)))
        return Outputs(logits, self._member(who, where, len(logits)), torch.as_tensor(self.labels).long(), ids, where, seeds)

    def references(self, given: Any, like: Outputs) -> Outputs:
        """Of the same images as the audited models, with known membership."""
        if not isinstance(given, Outputs) and "references" not in self.member:
            what = "references are of use only where it is known who of them saw which image"
            raise InputError(f"{what}: give Outputs, or member={{'references': …}}, true or false for each model and example")
        held = self("references", given)
        if held.logits.shape[1:] != like.logits.shape[1:]:
            raise InputError(f"references must be seen on the same examples and classes as the originals; got logits of {tuple(held.logits.shape)}")
        for what in ("ids", "labels", "part"):
            if not torch.equal(getattr(held, what), getattr(like, what)):
                raise InputError(f"references and originals were not observed on the same images: their {what} differ; observe both in the same order")
        return held

    def true_labels(self, like: Outputs, given: Any) -> Tensor | None:
        """As given, or as the split knows them."""
        if given is None:
            images = None if self.split is None else Images.join(getattr(self.split, name) for name in PARTS)
            return images.true_labels.cpu() if images is not None and torch.equal(images.ids.cpu(), like.ids) else None
        held, classes = torch.as_tensor(given), like.logits.shape[2]
        if held.shape != like.labels.shape or held.is_floating_point() or not bool(((held >= 0) & (held < classes)).all()):
            what = f"true_labels must be one class from 0 to {classes - 1} for each of {len(like.labels)} examples"
            raise InputError(f"{what}; got {tuple(held.shape)} of {held.dtype}, {held.min()} to {held.max()}" if held.numel() else what)
        return held.long()

    def groups(self, ids: Tensor) -> dict[str, Tensor]:
        """Mislabelled and clean, where the split knows and some image is mislabelled."""
        if self.split is None:
            return {}
        images = Images.join(getattr(self.split, name) for name in PARTS)
        known = bool(images.mislabelled.any()) and torch.equal(images.ids, ids)
        return {"mislabelled": images.mislabelled, "clean": ~images.mislabelled} if known else {}

    def _member(self, who: str, where: Tensor, models: int) -> Tensor:
        role = who if who in ("oracles", "references") else "originals"
        trained = ("retain",) if role == "oracles" else ("forget", "retain")
        held = self.member.get(role)
        known = torch.isin(where, torch.tensor([PARTS.index(name) for name in trained])) if held is None else torch.as_tensor(held, dtype=torch.bool)
        return known.expand(models, len(where))
