"""What a run of a study would do, without doing any of it, and what finished studies need of the store.

Nothing is written or downloaded: data and earlier work are found by the manifests in the store. Of what was never run here a few steps are timed,
on noise.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from unlearnlab import artefacts as make
from unlearnlab import estimating, evidence, filing
from unlearnlab import groundwork as ground
from unlearnlab.auditing import CALIBRATION
from unlearnlab.contract import EnsembleScore, FiledScore, ProbeScore
from unlearnlab.data.partition import Parts
from unlearnlab.engine import Engine, Local
from unlearnlab.forgetsets import ScoredForgetSet
from unlearnlab.spec import InputError, digest, identity, info, to_dict
from unlearnlab.store import Store
from unlearnlab.study import STAGES, Runner, Study

Manifests = Mapping[str, Mapping[str, Any]]
Chunks = Sequence[tuple[str, tuple[int, ...]]]  # key and seeds of each chunk


@dataclass(frozen=True)
class Item:
    """One row of models: how many there must be, how many of them are there, what one costs.

    ``reused``: None where the data is not in the store. ``seconds`` per model: None where nothing like it has been run.
    """

    stage: str
    row: str
    models: int
    reused: int | None
    seconds: float | None

    @property
    def to_train(self) -> int:
        return self.models - (self.reused or 0)


def plan(study: Study, store: Store | None, *, until: str = "report", plugins: Sequence[str] = (), gpu: bool = False) -> list[Item]:
    """The models that ``study.run`` would train and reuse, in order; ``store``: None where there is none yet, ``gpu``: on what models are to be trained.

    Raises ``InputError`` for a forget set that does not fit the data, where the data is in the store.
    """
    made = {} if store is None else _manifests(store, "outputs") | _manifests(store, "probes") | _manifests(store, "stacks")
    keys = {} if store is None else _keys(study, store, tuple(plugins))
    trained = [] if study.original.paths else [("original", "originals")]
    sparse = [] if study.prune is None else [("prune", "sparse originals")]
    scores = _gathering(study)
    subset = [*(("score", row) for row in scores), *([("score", "subset models")] if study.attributing else [])]
    counts = {row: score.models for row, score in scores.items()} | {"subset models": study.attribution.models, "reference models": study.references}
    rows = [
        *trained,
        *subset,
        *sparse,
        *([("oracle", "dense oracles")] if study.prune is not None and study.mask_from == "retain" else []),
        ("oracle", "oracles"),
        *([("oracle", "reference models")] if "references" in evidence.needed(study.metrics) else []),
        *(("unlearn", name) for name in study.rows()),
    ]
    alike = {key: body for key, body in made.items() if (body.get("device", "cpu") != "cpu") == gpu}  # what a model takes on one says nothing of the other
    items, planned = list[Item](), set() if store is None else set(_manifests(store, "stopped"))  # what was stopped is not done again
    for stage, row in rows:
        if STAGES.index(stage) > STAGES.index(until):
            continue
        count = 1 if row == "sparse originals" and study.original.shared else counts.get(row, study.models)
        if row in keys:  # more than asked for, where they come in whole chunks
            count = sum(len(seeds) for _, seeds in keys[row])
        reused = sum(len(seeds) for key, seeds in keys[row] if key in made or key in planned) if row in keys else None
        items.append(Item(stage, row, count, reused, _seconds(study, row, alike)))
        planned |= {key for key, _ in keys.get(row, ())}  # rows may share models: those of an earlier row are there for a later one
    later = 0 if study.requests is None else len(study.requests.sets)
    again = [item for item in items if item.stage in ("oracle", "unlearn") and item.row != "original"]
    return items + [replace(item, row=f"request {at}: {item.row}", reused=None) for at in range(2, later + 2) for item in again]


def _gathering(study: Study) -> dict[str, EnsembleScore | ProbeScore]:
    """The rows of models that scores are read off, each with one of its scores: what several are read off is made once."""
    found: dict[str, list[tuple[str, EnsembleScore | ProbeScore]]] = {}
    for name, score in study.scored().items():
        if isinstance(score, FiledScore):
            continue
        of = [score.models, score.share] if isinstance(score, EnsembleScore) else [score.evidence, {**identity(score), "name": ""}]
        found.setdefault(digest(of), []).append((name, score))
    return {f"models for {', '.join(name for name, _ in held)}": held[0][1] for held in found.values()}


def lacking(study: Study) -> list[str]:
    """The metrics of a study that will not be computed for want of models, in words: known before anything is trained."""
    found = []
    for metric in study.metrics:
        if study.models < metric.minimum:
            found.append(f"{metric.key} will not be computed: it needs models = {metric.minimum} or more, and this study has {study.models}")
        elif "references" in getattr(metric, "needs", ()) and study.references < getattr(metric, "references", 0):
            least = getattr(metric, "references", 0)
            found.append(f"{metric.key} will not be computed: it needs references = {least} or more, and this study has {study.references}")
    return found


@dataclass(frozen=True)
class Outlook:
    """What a study would take, told without anything of it having been run: None is what cannot be told.

    ``passes``: images that a model of each row is trained on, counted each time.
    """

    sizes: estimating.Sizes | None = None
    passes: Mapping[str, float | None] = field(default_factory=dict)
    pace: estimating.Pace | None = None
    footprint: estimating.Footprint | None = None
    trial: bool = False  # the pace was taken where the work will be done: it counts for more than what earlier runs took

    def seconds(self, item: Item) -> float | None:
        """Of one model: as like ones took, else (after a trial, first of all) as the steps timed tell."""
        passes = self.passes.get(_row(item))
        if passes is None or (item.seconds is not None and not (self.trial and self.pace)):
            return item.seconds
        return 0.0 if not passes else None if self.pace is None else passes * self.pace.seconds


def outlook(
    study: Study,
    items: Sequence[Item],
    store: Store | None,
    *,
    until: str = "report",
    plugins: Sequence[str] = (),
    gpu: bool = False,
    trial: Engine | None = None,
) -> Outlook:
    """What the items of a plan would take; a few steps of training are timed where no model like them was ever made here.

    ``gpu``: do jobs compute on one? ``trial``: an engine on which some more steps are timed, whatever was made before.
    """
    there, forget = None if store is None else _data(study, store, tuple(plugins)), None
    if there is not None and not isinstance(study.forget, ScoredForgetSet):
        forget = len(ground.choose(study.forget, there[1].train, [], study.seed)[0])
    held = estimating.sizes(study, None if there is None else there[1], forget)
    if held is None:
        return Outlook()
    scores, net, made = _gathering(study), estimating.build_net(study, held, tuple(plugins)), Counter[str]()
    for item in items:
        made[_row(item)] += item.to_train
    passes = {row: estimating.passes(study, row, scores, held) for row in made}
    strange = trial is not None or any(item.seconds is None and item.to_train and passes[_row(item)] for item in items)
    finished = STAGES.index(until) >= STAGES.index("audit")
    footprint = estimating.footprint(study, net, held, +made, finished=finished, stored=there is not None, gpu=gpu)  # before the steps need memory
    return Outlook(held, passes, estimating.pace(study, held, tuple(plugins), trial) if strange else None, footprint, trial is not None)


def _row(item: Item) -> str:
    """Without the number of the request."""
    return item.row.rpartition(": ")[2]


def summary(items: Sequence[Item], workers: int, seen: Outlook | None = None, gpus: float = 0.0, jobs_each: int = 1) -> list[str]:
    """How many models, and with an outlook of what images, how much work, memory and disk; how long, with so many workers, of so many GPUs each.

    Jobs that share a GPU are reckoned to take turns. ``jobs_each``: a worker does so many in a row.
    """
    models, known = sum(item.to_train for item in items), all(item.reused is not None for item in items)
    lines = [
        f"models to train: {models}, reused: {sum(item.reused or 0 for item in items)}" if known else f"models to train: {models} at most, reused: unknown"
    ]
    if seen is not None:
        lines += _told(seen, items, workers, gpu=bool(gpus))
    seen = seen or Outlook()
    price = {item: seen.seconds(item) for item in items if item.to_train}
    strange = [item.row for item, seconds in price.items() if seconds is None]
    if strange and len(strange) == len(price):
        return [*lines, "time unknown: nothing like it has been run here"]
    if gpus and seen.pace is not None and seen.pace.device == "cpu":
        return [*lines, "GPU-hours and time unknown: no GPU here to time a step on; time it where the work would be done: --trial"]
    share, total = gpus if 0 < gpus < 1 else 1.0, 0.0
    for stage in dict.fromkeys(item.stage for item in price):
        mine = {item: seconds or 0.0 for item, seconds in price.items() if item.stage == stage}
        chunk = 1 if seen.pace is None else seen.pace.chunk
        jobs = sum(math.ceil(item.to_train / chunk) for item in mine)
        at_once = share * min(workers, math.ceil(jobs / jobs_each))
        longest = min(jobs, jobs_each) * max(min(chunk, item.to_train) * seconds for item, seconds in mine.items())
        total += max(sum(item.to_train * seconds for item, seconds in mine.items()) / at_once, longest)
    timed = ""
    if seen.pace is not None:
        part, steps = "in part " * any(item.seconds for item in price), f"{seen.pace.steps} step{'s' * (seen.pace.steps > 1)}"
        where = "in a trial" if seen.trial else "here"
        timed = f", {'' if seen.trial else part}from {steps} timed {where} just now ({seen.pace.device})"
    more = f", and more for {', '.join(strange)}: nothing like it has been run here" if strange else ""
    spent = sum(item.to_train * (seconds or 0.0) for item, seconds in price.items()) * max(1.0, gpus)
    lines.append(f"compute: about {spent / 3600:.2g} {'GPU' if gpus else 'core'}-hours{more}")
    return [*lines, f"time: about {_span(total)} of training and unlearning with {workers} worker(s){timed}{more}"]


def _told(seen: Outlook, items: Sequence[Item], workers: int, *, gpu: bool) -> list[str]:
    if seen.sizes is None or (held := seen.footprint) is None:
        return ["images, memory and disk: unknown until the data is there"]
    work = 3 * sum(item.to_train * (seen.passes.get(_row(item)) or 0) for item in items)  # forward 1, backward 2
    judging, own, last = held.base + held.judge, held.base + max(held.work, held.judge), held.base + held.whole
    beside_gpu = f"{_size(held.work)} of the accelerator and {_size(judging)} beside it"
    memory = beside_gpu if gpu else _size(max(own, last) if workers == 1 else own)
    beside = "" if workers == 1 else f" for each of {workers} workers, and {_size(last)} for the process that compares them in the end"
    return [
        f"images: {seen.sizes}",
        f"work: about {work:.2g} example passes, a method's reckoned from its epochs",
        f"memory: about {memory}{beside}",
        f"disk: about {_size(held.disk)}",
    ]


def _span(seconds: float) -> str:
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 100)):
        if seconds < most * length:
            return f"{seconds / length:{'.1f' if unit == 'h' else '.0f'}} {unit}"
    return f"{seconds / 86400:.0f} days"


def _size(count: float) -> str:
    size, unit = (count / 1e9, "GB") if count >= 1e8 else (count / 1e6, "MB")
    return f"{size:.0f} {unit}" if size >= 10 else f"{size:.2g} {unit}"


def needed(store: Store) -> tuple[set[tuple[str, str]], list[str]]:
    """The artefacts that finished studies name, with all their parents; and the names of unfinished studies."""
    entries, live, unfinished = {(row.kind, row.key) for row in store.list()}, set[tuple[str, str]](), []
    for folder in sorted(path for path in (store.root / "studies").glob("*") if path.is_dir()):
        index = folder / "index.json"
        if not index.exists():
            unfinished.append(folder.name)
            continue
        try:
            live |= {(kind, key) for kind, _, key in (name.partition("/") for name in _texts(json.loads(index.read_text(encoding="utf-8"))))}
        except ValueError as error:  # rather remove nothing than what a study needs
            raise InputError(f"{index} is damaged ({error}); run the study '{folder.name}' again before tidying") from error
    fresh = live & entries
    while fresh:  # parents of parents
        named = {text.rpartition("/")[2] for entry in fresh for text in _texts(store.manifest(*entry))}
        fresh = {entry for entry in entries - live if entry[1] in named}
        live |= fresh
    return live, unfinished


def _texts(held: Any) -> Iterator[str]:
    """All text in nested plain data."""
    if isinstance(held, str):
        yield held
    elif isinstance(held, dict | list):
        for one in held.values() if isinstance(held, dict) else held:
            yield from _texts(one)


def _keys(study: Study, store: Store, plugins: tuple[str, ...]) -> dict[str, Chunks]:
    """The chunks of every row that is known; none where the data is not in the store, few where the forget set waits for scores."""
    there = _data(study, store, plugins)
    if there is None:
        return {}
    runner, parts = there
    setup, train = runner.setup, parts.train.fingerprint

    def trained(role: str, images: str) -> Chunks:
        return [(make.trained_key(setup, images, seeds), seeds) for seeds in runner.chunks(role)]

    imported = [(make.imported_key(setup, seeds), seeds) for _, seeds in runner.imports()] if study.original.paths else None
    keys = {"originals": imported or trained("original", train)}
    steps = runner.score_steps()
    for row, score in _gathering(study).items():
        gathered, _ = steps[info(score).name]
        seeds = runner.chunks("subset" if isinstance(score, EnsembleScore) else "probe", score.models)
        keys[row] = [(key, own) for (_, key, _), own in zip(gathered, seeds, strict=True)]
    if study.attributing:
        chunks = runner.chunks("subset", study.attribution.models)
        keys["subset models"] = [(key, seeds) for (_, key, _), seeds in zip(runner.subset_jobs(), chunks, strict=True)]
    scores = {name: key for name, (_, (kind, key, _)) in steps.items() if store.get(kind, key) is not None}
    asked: list[list[int]] = []
    for at, one in enumerate((study.forget, *(() if study.requests is None else study.requests.sets)), 1):
        if isinstance(one, ScoredForgetSet) and one.score not in scores:
            return keys
        held = filing.load_scores(setup, scores[one.score]) if isinstance(one, ScoredForgetSet) else None
        try:
            asked.append(ground.choose(one, parts.train, [i for ids in asked for i in ids], study.seed, held)[0])
        except InputError as error:
            raise InputError(f"request {at}: {error}" if study.requests is not None else str(error)) from error
    split = ground.divide(parts, torch.tensor(asked[0]), study.seed, (study.forget,), study.corruption)

    left, parents = split.retain.fingerprint, keys["originals"]
    if study.prune is None and not study.original.sparse:
        keys["oracles"] = trained("oracle", left)
    else:
        if study.prune is not None:
            parents = keys["sparse originals"] = [(make.pruned_key(setup, dense, train, seeds), seeds) for dense, seeds in parents]
        if study.mask_from == "retain":
            keys["dense oracles"] = trained("oracle", left)
            keys["oracles"] = [(make.pruned_key(setup, dense, left, seeds), seeds) for dense, seeds in keys["dense oracles"]]
        else:
            like = [(parent, seeds) for (parent, _), seeds in runner.descent(parents, "oracle")]
            keys["oracles"] = [(make.trained_key(setup, left, seeds, one), seeds) for one, seeds in like]
    keys["reference models"] = [(evidence.reference_key(setup, split.fingerprint, seeds), seeds) for seeds in runner.chunks("reference", study.references)]
    runner.scores = {name: key for name, (_, (_, key, _)) in steps.items()}
    for name, method in study.rows().items():
        sources = runner.sources(name, method, [key for key, _ in parents], [filing.outputs_key(key, split.fingerprint) for key, _ in keys["oracles"]])
        keys[name] = [(make.unlearned_key(setup, to_dict(method), source, split.fingerprint), source.seeds) for source in sources]
        if study.budget is not None and study.budget.over == "stop" and name not in CALIBRATION:  # what was stopped is not done again
            limit = study.budget.limit(make.retraining_passes(study.recipe, len(split.retain)))
            noted = [(make.stopped_key(key, limit), key, seeds) for key, seeds in keys[name]]
            keys[name] = [(note if store.get("stopped", note) is not None else key, seeds) for note, key, seeds in noted]
    return keys


def _data(study: Study, store: Store, plugins: tuple[str, ...]) -> tuple[Runner, Parts] | None:
    """The study's images and a runner that knows their key; None where they are not in the store."""
    wanted = {"spec": identity(study.dataset), "seed": study.seed} | {kind: identity(getattr(study, kind)) for kind in ("partition", "corruption")}
    found = [key for key, body in _manifests(store, "data").items() if all(body.get(name) == held for name, held in wanted.items())]
    if not found:
        return None
    runner = Runner(study, "", store, Local(1), plugins, lambda *_: None, "cpu", data_key=found[-1])
    try:
        return runner, ground.load_data(runner.setup, found[-1])
    except FileNotFoundError:
        return None  # a run would read the data set anew


def _seconds(study: Study, row: str, made: Manifests) -> float | None:
    """What a model of this row has cost here before: the same recipe (and method) on the same net, whatever the data."""
    net, recipe = identity(study.net), identity(study.recipe)
    score = _gathering(study).get(row)
    trained = [body for body in made.values() if body.get("spec") == recipe and body.get("net") == net]
    if row == "sparse originals":
        like = [body for body in made.values() if body.get("spec") == identity(study.prune) and body.get("recipe") == recipe]
    elif row in ("originals", "oracles", "dense oracles"):
        like = [body for body in trained if "share" not in body]
    elif isinstance(score, EnsembleScore) or row in ("subset models", "reference models"):
        share = score.share if isinstance(score, EnsembleScore) else evidence.SHARE if row == "reference models" else study.attribution.share
        like = [body for body in trained if body.get("share") == share]
        whole = [body["compute_seconds"] for body in trained if "share" not in body]
        if not like and whole:
            return float(share * median(whole))  # training time goes by the number of images
    elif score is not None:  # how much longer it takes to look than to train, nobody can tell beforehand
        looks = {name: held for name, held in identity(score)["settings"].items() if name != "models"}
        alike = [body for body in made.values() if body.get("evidence") == score.evidence and body.get("settings") == looks]
        like = [body for body in alike if body.get("recipe") == recipe and body.get("net") == net]
        first = [made[name] for body in like if (name := body.get("trained", "").rpartition("/")[2]) in made]
        if like and first:
            return float(median(body["compute_seconds"] for body in like) + median(body["compute_seconds"] for body in first))
    else:
        method = identity(study.rows()[row])
        alike = [body for body in made.values() if body.get("spec") == method and body.get("recipe") == recipe]
        like = [body for body in alike if _net(body, made) == net]
    return median(body["compute_seconds"] for body in like) if like else None


def _net(body: Mapping[str, Any], made: Manifests) -> Any:
    """The net of models, or of those that they were made from, through pruning and earlier requests; None where they are gone."""
    while "net" not in body and "parent" in body:
        body = made.get(body["parent"].rpartition("/")[2], {})
    return body.get("net")


def _manifests(store: Store, kind: str) -> dict[str, dict[str, Any]]:
    """By key, oldest first; what cannot be read will be made again, so it is not there."""
    rows = sorted((row for row in store.list(kind) if row.created), key=lambda row: row.created)
    return {row.key: store.manifest(kind, row.key) for row in rows}
