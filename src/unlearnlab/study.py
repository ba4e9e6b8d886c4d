"""``Study``: a whole experiment as one value, and the stages that make everything it asks for."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tomli_w
import torch

from unlearnlab import artefacts as make
from unlearnlab import evidence, filing, measuring, scoring
from unlearnlab import groundwork as ground
from unlearnlab.auditing import CALIBRATION, TRUST, AuditReport, described, judge_family, rules
from unlearnlab.contract import Answers, Audit, EnsembleScore, FiledScore, Localiser, Method, Metric, Refiner, Score
from unlearnlab.data.images import Images, grey_levels
from unlearnlab.engine import Engine, Job, Local
from unlearnlab.forgetsets import ForgetSet, Requests, ScoredForgetSet
from unlearnlab.methods.rum import Rum
from unlearnlab.prune.cut import Pruning
from unlearnlab.report import write_report
from unlearnlab.scores.entanglement import describe
from unlearnlab.seeds import generator, model_seeds
from unlearnlab.spec import InputError, Setting, build, info, legacy, spec, suggest, to_dict, within
from unlearnlab.stack import Divergence, chunk_size
from unlearnlab.store import Store, write_text_atomic
from unlearnlab.terms import Budget, Origin, Tuning, mark, told
from unlearnlab.train import Recipe

STAGES = ("data", "original", "score", "forget", "prune", "oracle", "mask", "unlearn", "audit", "report")
SHOWN = 256  # forget images that a report may picture: more would make it megabytes long
# What a study measures that does not say.
METRICS: Any = (
    *("trace", "perm.omnibus", "energy", "mia_lr.auc"),
    *({"name": "acc", "part": part} for part in ("retain", "forget", "validation", "test")),
    *("avg_gap", "tow", "cost.fraction", "delta.changed", "delta.rel_l2"),
)
Watch = Callable[[str, int, int], None]
T = TypeVar("T")


@spec("study", "study")
class Study:
    """Originals, oracles and, for every method, one unlearned model from each original, audited together."""

    title: Annotated[str, Setting("what the report is called")]
    dataset: Annotated[Any, Setting("where the images come from", kind="dataset")]
    partition: Annotated[Any, Setting("who is trained on, held out and tested on", kind="partition")]
    net: Annotated[Any, Setting("the network", kind="net")]
    recipe: Annotated[Recipe, Setting("how models are trained from scratch", kind="recipe")]
    forget: Annotated[ForgetSet, Setting("who is forgotten", kind="forget", usual="ids")]
    methods: Annotated[tuple[Method, ...], Setting("unlearning methods; 'original' and 'retrain' are always there", kind="method")]
    requests: Annotated[Requests | None, Setting("more forget sets, asked for once the first is forgotten", kind="requests", usual="in_order")] = None
    metrics: Annotated[tuple[Metric, ...], Setting("what is measured", kind="metric")] = METRICS
    corruption: Annotated[Any, Setting("what is done to the training labels", kind="corruption")] = "none"
    original: Annotated[Any, Setting("where the originals come from", kind="original", usual="checkpoint")] = "trained"
    prune: Annotated[Pruning | None, Setting("make originals and oracles sparse, before anything is forgotten", kind="pruning")] = None
    mask_from: Annotated[
        Literal["all", "retain"], Setting("oracles keep the originals' pruned weights, which saw the forget set, or are pruned on their own")
    ] = "all"
    attribution: Annotated[Any, Setting("how attributions are estimated, for methods that read them", kind="attribution")] = "datamodels"
    scores: Annotated[
        tuple[Score, ...], Setting("scores of the training images, besides those that forget sets and methods ask for by name", kind="score")
    ] = ()
    normalise: Annotated[bool, Setting("let nets subtract the data set's mean and divide by its deviation")] = True
    models: Annotated[int, Setting("originals, and as many oracles, retrained and unlearned models per method", ge=1)] = 32
    references: Annotated[int, Setting("models trained on known random halves of the images, made only where a metric reads them", ge=2)] = 64
    seed: Annotated[int, Setting("shifts every seed of the study", ge=0)] = 0
    budget: Annotated[Budget | None, Setting("what a method may spend", kind="budget", usual="retraining")] = None
    tune: Annotated[Tuning | None, Setting("search for settings of the methods on other forget sets first", kind="tuning", usual="search")] = None
    provenance: Annotated[tuple[Origin, ...], Setting("where settings come from; the last word counts", kind="provenance", usual="origin")] = ()
    notes: Annotated[tuple[str, ...], Setting("remarks shown in the report")] = ()

    def __post_init__(self) -> None:
        if self.prune is None and self.mask_from != "all":
            raise InputError("mask_from = 'retain' says where oracles are pruned, and this study prunes nothing; give prune = \"omp\", or leave it out")
        if self.prune is not None and "rewind" in self.prune.needs and self.recipe.rewind is None and not self.original.paths:
            raise InputError(
                f"prune = '{info(self.prune).name}' goes back to the weights after recipe.rewind epochs, and recipe.rewind is not given; set it"
                " (published: 8), or prune.rewind_to = 'init' or 'trained'"
            )
        if len(self.original.paths) not in (0, 1, self.models):
            raise InputError(f"[original] names {len(self.original.paths)} checkpoints for {self.models} models; give one for each, or one for all")

        self.scored()

    def scored(self) -> dict[str, Score]:
        """Every score that the study lists, or that a forget set or a method names, by name; raises ``InputError`` for two of one name."""
        found: dict[str, Score] = {}
        for score in self.scores:
            name = info(score).name
            if name in found:
                raise InputError(f"a study has one score of a name, and '{name}' is listed twice; leave one out")
            found[name] = score
        asking = (self.forget, *(() if self.requests is None else self.requests.sets), *self.methods)
        for one in (one for asker in asking for one in within(asker)):
            # a setting `score` of anything else names none
            named = isinstance(one, {"forget": ScoredForgetSet, "refiner": Refiner}.get(info(one).kind, ()))
            if named and one.score and one.score not in found:
                found[one.score] = build("score", one.score)
                # a forgotten setting must not train hundreds of models
                if info(one).kind == "refiner" and isinstance(self.forget, ScoredForgetSet) and isinstance(found[one.score], EnsembleScore):
                    raise InputError(
                        f"refiner '{info(one).name}' goes by the score '{one.score}' and the forget set by '{self.forget.score}'; give"
                        f' refine = {{name = "{info(one).name}", score = "{self.forget.score}"}}, or list \'{one.score}\' in [[scores]] as well'
                    )
        for name, score in found.items():  # a plugin's, which may lack something
            if not isinstance(score, Score):
                raise InputError(f"score '{name}' is of no known kind: give it what EnsembleScore, ProbeScore or FiledScore of unlearnlab.contract ask for")
        return found

    @property
    def attributing(self) -> bool:
        """Does a method read attributions?"""
        return any("attribution" in method.reads for method in self.methods)

    def rows(self) -> dict[str, Method]:
        """Every audited method under a name of its own: calibration first, repeated names numbered."""
        rows: dict[str, Method] = {name: build("method", name) for name in CALIBRATION}
        listed = [method for method in self.methods if method not in rows.values()]
        often = Counter(map(row_name, listed))
        called = [str(getattr(method, "apart", name)) if often[name := row_name(method)] > 1 else name for method in listed]
        total, seen = Counter(called), Counter[str](CALIBRATION)
        for name, method in zip(called, listed, strict=True):
            seen[name] += 1
            rows[f"{name}-{seen[name]}" if total[name] > 1 or name in CALIBRATION else name] = method
        return rows


def row_name(method: Method) -> str:
    """What a method's row is called: its name, or what a method that holds others calls itself by them."""
    return str(getattr(method, "row", info(method).name))


# ---- running it


def run(
    study: Study,
    name: str,
    store: Store,
    *,
    until: str = "report",
    engine: Engine | None = None,
    plugins: Sequence[str] = (),
    watch: Watch | None = None,
    device: str | None = None,
    data_root: str | None = None,
    earlier: Sequence[ForgetSet] = (),
    parents: Mapping[str, tuple[str, ...]] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Runner:
    """Make whatever the study needs and the store lacks, up to a stage; interrupted work goes on where it stopped.

    ``earlier``, ``parents``: for a later request, the forget sets of those before it, and of each row the keys of the models they left.
    ``left_out``: rows that left none, being over the budget, and at which request (1, 2, …).
    """
    if until not in STAGES:
        raise InputError(f"unknown stage '{until}'{suggest(until, STAGES)}; stages: {', '.join(STAGES)}")
    machine = engine or Local(1)
    if device not in (None, "cpu") and not torch.cuda.is_available():
        raise InputError(f"device = '{device}': this machine has no accelerator that torch can use; leave it out, or give 'cpu'")
    before = tuple(earlier), dict(parents or {})
    runner = Runner(
        study, name, store, machine, tuple(plugins), watch or (lambda *_: None), device or machine.device, data_root, *before, left_out=dict(left_out or {})
    )
    for stage in STAGES[: STAGES.index(until) + 1]:
        getattr(runner, stage)()
        runner.save_index()
    return runner


def places(study: Study) -> dict[str, Localiser]:
    """The localiser of every method that works under a mask, by row."""
    return {name: where for name, method in study.rows().items() if (where := make.place_of(method)) is not None}


def choose_forget(study: Study, name: str, store: Store, *, plugins: Sequence[str] = (), data_root: str | None = None) -> dict[str, Any]:
    """Choose who is forgotten and say all there is to say of it, as plain data; nothing is trained."""
    runner = run(study, name, store, until="data", plugins=plugins, data_root=data_root, device="cpu")
    if runner.by_score:
        runner.forget_by_stored_scores()
    split, manifest = ground.load_split(runner.setup, runner.data_key, runner.forget_key), store.manifest("forget", runner.forget_key)
    names, train = split.forget.columns.get("class"), split.train
    counts = {part: torch.bincount(images.true_labels, minlength=images.classes) for part, images in (("t", train), ("f", split.forget), ("c", split.control))}

    def called(label: int) -> str:
        rows = (train.true_labels == label).nonzero()[:1, 0]
        word = f" {names.words[int(train.columns['class'].values[rows])]}" if names is not None and len(rows) else ""
        return f"{label}{word}" if word.strip() != str(label) else str(label)

    parts = ground.load_data(runner.setup, runner.data_key)
    eligible = getattr(study.forget, "eligible", None)
    alike = 0 if eligible is None or bool(eligible(parts.train).all()) else sum(int(eligible(part).sum()) for part in (parts.held_out, parts.test))
    return {
        "kind": info(study.forget).name,
        "settings": to_dict(study.forget),
        "seed": study.seed,
        "data": runner.data_key,
        "split": manifest["split"],
        "hash": manifest["ids"],
        "count": manifest["count"],
        "trained_on": len(train),
        "corrupted": manifest["corrupted"],
        "controls": len(split.control),
        "alike_not_trained_on": alike,
        "classes": [
            {"class": called(label), "forgotten": int(counts["f"][label]), "trained_on": int(counts["t"][label]), "controls": int(counts["c"][label])}
            for label in range(train.classes)
        ],
        "groups": runner.forget_groups(),
        "ids": split.forget.ids.tolist(),
        "parts": {name: getattr(parts, name).ids.tolist() for name in ("train", "held_out", "test")},
    }


@dataclass
class Runner:
    """The stages of one study, and the keys of what they made."""

    study: Study
    name: str
    store: Store
    engine: Engine
    plugins: tuple[str, ...]
    watch: Watch
    device: str
    data_root: str | None = None
    earlier: tuple[ForgetSet, ...] = ()
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    first: int = 0  # number of the first original, oracle and retrained model: what tunes a study has others than the study
    data_key: str = ""
    forget_key: str = ""
    scores: dict[str, str] = field(default_factory=dict)
    underway: list[str] = field(default_factory=list)
    beside: dict[str, list[str]] = field(default_factory=dict)
    originals: tuple[str, ...] = ()
    oracles: tuple[str, ...] = ()
    masks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unlearned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    left_out: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int | None] = field(default_factory=dict)  # by a row under a budget: example passes a model; None: stopped
    refused: dict[str, list[str]] = field(default_factory=dict)  # rows over the budget, and what there is of them

    @property
    def setup(self) -> ground.Setup:
        held: dict[str, Any] = {kind: to_dict(getattr(self.study, kind)) for kind in ground.KINDS}
        held["earlier"] = tuple(to_dict(one) for one in self.earlier)
        held["scores"] = tuple(self.scores.items())
        held["attribution"] = to_dict(self.study.attribution)
        held["prune"] = None if self.study.prune is None else to_dict(self.study.prune)
        held |= {"normalise": self.study.normalise, "data_root": self.data_root, "plugins": self.plugins, "jobs_on": self.device}
        return ground.Setup(str(self.store.root), self.study.seed, **held)

    def data(self) -> None:
        self.data_key = ground.make_data(self.setup)
        if not self.by_score:
            self.forget()  # needs no model: a bad forget set is refused before hours of training
        if self.study.budget is not None:
            make.retraining_passes(self.study.recipe, 0)  # so is a recipe that does not tell
        write_text_atomic(self.store.study(self.name) / "study.toml", tomli_w.dumps(without_none(to_dict(self.study))))

    def original(self) -> None:
        train = ground.load_data(self.setup, self.data_key).train
        filing.architecture(self.setup, train)  # refuses a net that does not fit the images, before anything is trained
        if self.study.original.paths and not self.study.original.inits:
            for method in self.study.rows().values():
                if "original_init" in method.reads:
                    raise make.no_initial(method)
        self.originals = self._imported() if self.study.original.paths else self._trained("original", train, None)

    def score(self) -> None:
        """Scores of the training images, and attributions, where something reads them."""
        steps = self.score_steps().values()
        evidence = {key: (kind, key, job) for gathered, _ in steps for kind, key, job in gathered}  # scores may share it
        attributing = {key: (kind, key, job) for kind, key, job in self.subset_jobs()} if self.study.attributing else {}
        self._make("score", [*(evidence | attributing).values()])
        self._make("read scores", [read for _, read in steps])
        self.scores = {name: key for name, (_, (_, key, _)) in self.score_steps().items()}
        if attributing:
            job = Job(scoring.make_attribution, (self.setup, self.data_key, tuple(attributing)), "estimate attributions")
            self._make("attribution", [("attribution", self.attribution_key, job)])

    def score_steps(self) -> dict[str, tuple[list[scoring.Wanted], scoring.Wanted]]:
        """For every score, what gathers what it is read off, and what reads it."""
        train = ground.load_data(self.setup, self.data_key).train.fingerprint
        return {name: scoring.score_steps(self.setup, self.data_key, train, score, self.chunks) for name, score in self.study.scored().items()}

    def subset_jobs(self) -> list[scoring.Wanted]:
        """The models that attributions are estimated from."""
        train, chosen = ground.load_data(self.setup, self.data_key).train.fingerprint, self.study.attribution
        return scoring.subset_jobs(self.setup, self.data_key, train, self.chunks("subset", chosen.models), chosen.share)

    @cached_property
    def attribution_key(self) -> str:
        return scoring.attribution_key(self.setup, self.data_key, [key for _, key, _ in self.subset_jobs()])

    def forget(self) -> None:
        self.forget_key = ground.make_forget(self.setup, self.data_key)
        if self.study.attributing and bool(ground.load_split(self.setup, self.data_key, self.forget_key).control.triggered.any()):
            raise InputError("attributions are estimated on images as released, and this forget set's controls bear a trigger: leave the datamodel methods out")

        request, scores, refined = ground.load_request(self.setup, self.data_key, self.forget_key), self.scores, dict[str, Any]()
        for method in self.study.methods:  # groups that do not fit are refused before anything is trained for them
            if isinstance(method, Rum) and (not method.refine.score or method.refine.score in scores):
                made = method.groups(request, {name: filing.load_scores(self.setup, key) for name, key in scores.items() if name == method.refine.score})
                refined[row_name(method)] = {name: ids.tolist() for name, ids in made.items()}
        if refined:
            write_text_atomic(self.store.study(self.name) / "groups.json", json.dumps(refined, indent=1))

    def forget_by_stored_scores(self) -> None:
        """Choose by scores that are there already; raises ``InputError`` where they are not."""
        wanted = {one.score for one in (self.study.forget, *self.earlier) if isinstance(one, ScoredForgetSet)}
        for name, (_, (kind, key, _)) in self.score_steps().items():
            if name in wanted and self.store.get(kind, key) is None:
                if not isinstance(self.study.scored()[name], FiledScore):
                    raise InputError(f"who is forgotten goes by the score '{name}', which is not made yet; make it first: unlearnlab score, on the same study")
                self._make("read scores", [self.score_steps()[name][1]])
            if self.store.get(kind, key) is not None:
                self.scores[name] = key
        self.forget()

    def forget_groups(self) -> dict[str, Any]:
        """Of the groups in which the forget set was chosen by a score, by ``score.group``: how many images, and the least and the greatest score.

        Where the score keeps features, also how far the group is entangled with all other training images of this request.
        """
        found: dict[str, Any] = {}
        groups = {name: torch.tensor(ids, dtype=torch.int64) for name, ids in ground.load_groups(self.setup, self.forget_key).items()}
        for name, ids in groups.items():
            scores = filing.load_scores(self.setup, self.scores[cast(ScoredForgetSet, self.study.forget).score])
            values = scores.of(ids)
            known = values[~values.isnan()]
            least, most = (float(known.min()), float(known.max())) if len(known) else (None, None)
            found[name] = {"count": len(ids), "least": least, "most": most}
            if "features" in scores.beside:
                split = ground.load_request(self.setup, self.data_key, self.forget_key)
                found[name] |= describe({name: ids}, scores, "global", split.train.ids)[name] | {"count": len(ids)}
                found[name]["entanglement_midpoint"] = describe({name: ids}, scores, "midpoint", split.train.ids)[name]["entanglement"]
        return found

    @property
    def by_score(self) -> bool:
        """Must scores be made before it is known who is forgotten?"""
        return any(isinstance(one, ScoredForgetSet) for one in (self.study.forget, *self.earlier))

    def prune(self) -> None:
        if self.study.prune is None:
            return
        train, jobs = ground.load_data(self.setup, self.data_key).train, []
        for dense, (_, seeds) in zip(self.originals, self.imports(), strict=True):
            job = Job(make.make_pruned, (self.setup, self.data_key, None, dense, seeds), "prune originals")
            jobs.append(("stacks", make.pruned_key(self.setup, dense, train.fingerprint, seeds), job))
        self._make("prune", jobs)
        self.originals = tuple(key for _, key, _ in jobs)
        self._refuse_divergence("original", self.originals)

    def oracle(self) -> None:
        """Oracles, and the models that metrics take as references, where one does."""
        self._oracles()
        self._gather("references", self.evidence.trained())

    def _oracles(self) -> None:
        retain = ground.load_split(self.setup, self.data_key, self.forget_key).retain
        if self.study.prune is None and not self.study.original.sparse:
            self.oracles = self._trained("oracle", retain, self.forget_key)
            return
        jobs = []
        if self.study.mask_from == "retain":
            dense = self._trained("oracle", retain, self.forget_key)
            for key, seeds in zip(dense, self.chunks("oracle"), strict=True):
                job = Job(make.make_pruned, (self.setup, self.data_key, self.forget_key, key, seeds), "prune oracles")
                jobs.append(("stacks", make.pruned_key(self.setup, key, retain.fingerprint, seeds), job))
            self._make("prune", jobs)
            self.oracles = tuple(key for _, key, _ in jobs)
            self._refuse_divergence("oracle", self.oracles)
            return
        for like, seeds in self.descent(self.originals, "oracle"):
            job = Job(make.make_trained, (self.setup, self.data_key, self.forget_key, seeds, like), "train oracles")
            jobs.append(("stacks", make.trained_key(self.setup, retain.fingerprint, seeds, like), job))
        self._make("oracle", jobs)
        self.oracles = tuple(key for _, key, _ in jobs)
        self._refuse_divergence("oracle", self.oracles)

    def mask(self) -> None:
        """Methods compute their masks themselves, from the model at hand; here the same ones are kept, to be looked at, each with a random control."""
        found = {name: where for name, where in places(self.study).items() if name not in self.left_out}
        self.masks = self._located("mask", {name: [where] * len(self.chunks("original")) for name, where in found.items()})
        reached = {name: [make.mask_share(self.setup, key) for key in keys] for name, keys in self.masks.items()}
        self.controls = self._located("control", {name: [make.control_for(found[name], share) for share in shares] for name, shares in reached.items()})

    def unlearn(self) -> None:
        split = ground.load_split(self.setup, self.data_key, self.forget_key).fingerprint
        rows = {name: method for name, method in self.study.rows().items() if name not in self.left_out}
        if any("oracles" in method.reads for method in rows.values()):
            self._observe(dict.fromkeys(self.oracles, ("retain",)))
        jobs = []
        stopping = self.study.budget is not None and self.study.budget.over == "stop"
        for name, method in rows.items():
            table, keys, limit = to_dict(method), [], self.allowed[1] if stopping and name not in CALIBRATION else None
            work, kind = (make.make_answered, "outputs") if name in self.answered else (make.make_unlearned, "stacks")
            for source in self.sources(name, method, self.originals, [filing.outputs_key(key, split) for key in self.oracles]):
                keys.append(make.unlearned_key(self.setup, table, source, split))
                job = Job(work, (self.setup, self.data_key, self.forget_key, table, source, limit), f"unlearn {name}")
                jobs.append((*self._unlearnt(kind, keys[-1], limit), job))
            self.unlearned[name] = tuple(keys)
        jobs.sort(key=lambda job: "retrain" not in job[2].label)  # the longest first
        self._make("unlearn", jobs)
        if self.study.budget is not None:
            self._judge_costs(stopping)

    def audit(self) -> None:
        everything, without = ("forget", "retain"), ("retain",)
        seen: dict[str, tuple[str, ...]] = dict.fromkeys(self.originals, everything) | dict.fromkeys(self.oracles, without)
        for name, made in self.unlearned.items():
            seen |= {} if name in self.answered else dict.fromkeys(made, without if self._retrains(name) else everything)
        self._observe(seen)
        wanted = {(made, name): jobs for name in self.unlearned for made, jobs in self.evidence.beside(self.row(name)).items()}
        self._gather("evidence", {f"{made}/{name}" if made.endswith("unlearned") else made: jobs for (made, name), jobs in wanted.items()})
        asked = {name: self._measuring(name) for name in self.unlearned}
        keys = {name: measuring.metrics_key(*held) for name, held in asked.items()}
        self._make("audit", [("metrics", keys[name], Job(measuring.make_metrics, held, f"measure {name}")) for name, held in asked.items()])
        found = {name: measuring.load_results(self.setup, made) for name, made in keys.items()}
        audits = {name: measuring.gather(self.setup, self.data_key, self.forget_key, self.ensembles(name)) for name in self.unlearned}
        report = judge_family({name: (audits[name], found[name]) for name in self.unlearned}, self._notes())
        self.document = self._document(report, audits)
        write_text_atomic(self.store.study(self.name) / "audit.json", json.dumps(self.document))

    def report(self) -> None:
        write_report(self.document, self.store.study(self.name))

    @property
    def failed(self) -> list[str]:
        """Methods that an integrity check disqualified."""
        return [row["method"] for row in self.document.get("rows", ()) if row["verdict"]["rule"] == "0" and not row["results"]]

    def save_index(self) -> None:
        """Human name -> keys of everything made so far, and of what is being made; what ``tidy`` keeps."""
        unlearned = {f"unlearned/{name}": keys for name, keys in self.unlearned.items() if name not in self.answered}
        answered = {f"outputs/unlearned/{name}": [f"outputs/{key}" for key in self.unlearned[name]] for name in self.answered if name in self.unlearned}
        stacks = {"original": self.originals, "oracle": self.oracles, **unlearned}
        index: dict[str, Any] = {"data": f"data/{self.data_key}"} | ({"forget": f"forget/{self.forget_key}"} if self.forget_key else {})
        index |= {f"scores/{name}": f"scores/{key}" for name, key in self.scores.items()}
        if self.study.attributing and self.store.get("attribution", self.attribution_key) is not None:
            index["attribution"] = f"attribution/{self.attribution_key}"
        index |= {f"stacks/{name}": [f"stacks/{key}" for key in keys] for name, keys in stacks.items() if keys} | answered
        index |= {f"stopped/{name}": held for name, held in self.refused.items()}
        located = {**self.masks, **{f"{name}/random": keys for name, keys in self.controls.items()}}
        index |= {f"masks/{name}": [f"masks/{key}" for key in keys] for name, keys in located.items()}
        index |= self.beside
        path = self.store.study(self.name) / "index.json"
        if self.document:
            split = ground.load_split(self.setup, self.data_key, self.forget_key).fingerprint
            index |= {f"outputs/{name}": [f"outputs/{filing.outputs_key(key, split)}" for key in keys] for name, keys in stacks.items()}
            index |= {f"metrics/{name}": f"metrics/{measuring.metrics_key(*self._measuring(name))}" for name in self.unlearned}
        elif path.exists():  # part of a run must not give up what an earlier whole one made
            index = json.loads(path.read_text()) | index
        index.pop("underway", None)
        index |= {"underway": self.underway} if self.underway else {}
        write_text_atomic(path, json.dumps(index, indent=1))

    # ---- parts

    def chunks(self, role: str, count: int | None = None) -> list[tuple[int, ...]]:
        count = count or self.study.models
        if role == "subset":  # whole chunks, so that a study that asks for more models later trains only more chunks
            count += -count % self.chunk
        shared = role not in ("original", "oracle", "retrain")  # scores and attributions serve both
        seeds = model_seeds(role, count, self.study.seed, 0 if shared else self.first)
        return [seeds[at : at + self.chunk] for at in range(0, len(seeds), self.chunk)]

    @cached_property
    def chunk(self) -> int:
        """Members of a chunk; once a run, since a large net takes a second to make."""
        return chunk_size(filing.architecture(self.setup, ground.load_data(self.setup, self.data_key).train))

    @cached_property
    def answered(self) -> set[str]:
        """The rows that give outputs and no models."""
        return {name for name, method in self.study.rows().items() if isinstance(method, Answers)}

    def _located(self, stage: str, wanted: Mapping[str, Sequence[Localiser]]) -> dict[str, tuple[str, ...]]:
        """For every method its masks, those of one localiser for each chunk of originals; methods may share them."""
        split, jobs, keys = ground.load_split(self.setup, self.data_key, self.forget_key).fingerprint, dict[str, Job](), dict[str, tuple[str, ...]]()
        rows = self.study.rows()
        for name, each in wanted.items():
            made = []
            for where, whole in zip(each, self.sources(name, rows[name], self.originals, ()), strict=True):
                table, source = to_dict(where), replace(whole, attribution="", scores=())  # of a method's reads a localiser needs the initial weights at most
                made.append(make.mask_key(self.setup, table, source, split))
                jobs[made[-1]] = Job(make.make_mask, (self.setup, self.data_key, self.forget_key, table, source), f"localise {info(where).name}")
            keys[name] = tuple(made)
        self._make(stage, [("masks", key, job) for key, job in jobs.items()])
        return keys

    def seen_masks(self) -> dict[str, Any]:
        """For every method with a mask what there is to see of it, as plain data."""
        train = ground.load_data(self.setup, self.data_key).train
        return {name: dict(make.describe_masks(self.setup, train, keys, self.controls[name])) for name, keys in self.masks.items()}

    def sources(self, name: str, method: Method, originals: Sequence[str], oracles: Sequence[str]) -> Iterator[make.Source]:
        """What each chunk of a row is made from; ``oracles``: the keys of their outputs."""
        seen = tuple(oracles) if "oracles" in method.reads else ()
        role = "retrain" if self._retrains(name) else "original"  # retrained models draw from seeds of their own
        for at, (original, seeds) in enumerate(self.descent(originals, role)):
            parent, origin = (self.parents[name][at], original) if name in self.parents else (original, "")
            wanted = {one.score for one in within(method) if info(one).kind == "refiner" and one.score} if "scores" in method.reads else set()
            scores = tuple((name, key) for name, key in self.scores.items() if name in wanted)
            yield make.Source(parent, seeds, origin, seen, self.attribution_key if "attribution" in method.reads else "", scores)

    @property
    def allowed(self) -> tuple[int, int]:
        """Under a budget: what retraining takes, and what a method may, in example passes a model."""
        assert self.study.budget is not None
        retained = len(ground.load_split(self.setup, self.data_key, self.forget_key).retain)
        whole = make.retraining_passes(self.study.recipe, retained)
        return whole, self.study.budget.limit(whole)

    def _unlearnt(self, kind: str, key: str, limit: int | None) -> tuple[str, str]:
        """Where unlearned models are, or the note that they were stopped."""
        note = "" if limit is None else make.stopped_key(key, limit)
        return ("stopped", note) if note and self.store.get(kind, key) is None and self.store.get("stopped", note) is not None else (kind, key)

    def _judge_costs(self, stopping: bool) -> None:
        """What every row took, by its dearest chunk; rows that are over the budget are left out of all that follows, where it stops them."""
        limit = self.allowed[1]
        for name in [name for name in self.unlearned if name not in CALIBRATION]:
            kind = "outputs" if name in self.answered else "stacks"
            held = [self._unlearnt(kind, key, limit if stopping else None) for key in self.unlearned[name]]
            stopped = any(found == "stopped" for found, _ in held)
            passes = None if stopped else max(int(self.store.manifest(*one)["example_passes"]) for one in held)
            self.spent[name] = passes
            if stopping and (passes is None or passes > limit):
                self.refused[name] = ["/".join(one) for one in held]
                del self.unlearned[name]

    def _costs(self) -> dict[str, Any] | None:
        """The budget and who was within, as plain data; None where there is none."""
        if self.study.budget is None:
            return None
        rows, (whole, limit) = dict[str, Any](), self.allowed
        for name in [name for name in self.study.rows() if name not in CALIBRATION]:
            passes = self.spent.get(name)
            share = None if passes is None else passes / whole
            rows[name] = {"passes": passes, "share": share, "within": passes is not None and passes <= limit, "stopped": passes is None}
            rows[name] |= {"request": self.left_out[name]} if name in self.left_out else {}
        return {"fraction": self.study.budget.fraction_of_retrain, "over": self.study.budget.over, "limit": limit, "retrain": whole, "rows": rows}

    def _retrains(self, name: str) -> bool:
        return info(self.study.rows()[name]).name == "retrain"

    def _observe(self, seen: Mapping[str, tuple[str, ...]]) -> None:
        """Evaluate stored stacks (key -> the parts they were trained on) on every image of the split."""
        split, jobs = ground.load_split(self.setup, self.data_key, self.forget_key).fingerprint, []
        for key, trained_on in seen.items():
            observing = (self.setup, self.data_key, self.forget_key, key, trained_on)
            jobs.append(("outputs", filing.outputs_key(key, split), Job(measuring.make_outputs, observing, "observe")))
        self._make("observe", jobs)

    def descent(self, parents: Sequence[T], role: str) -> Iterator[tuple[T, tuple[int, ...]]]:
        """For every chunk of unlearned models the chunk of their originals (the same one for all, if there is but one original), and their seeds."""
        return ((parents[0 if self.study.original.shared else at], seeds) for at, seeds in enumerate(self.chunks(role)))

    def imports(self) -> list[tuple[int, tuple[int, ...]]]:
        """The chunks of originals, as from files: the number of the first file, and their seeds; a single one where it serves all."""
        chunks = self.chunks("original")
        if self.study.original.shared:
            chunks = [chunks[0][:1]]
        return [(sum(map(len, chunks[:at])), seeds) for at, seeds in enumerate(chunks)]

    def _imported(self) -> tuple[str, ...]:
        jobs = [
            ("stacks", make.imported_key(self.setup, seeds), Job(make.make_imported, (self.setup, self.data_key, first, seeds), "read originals"))
            for first, seeds in self.imports()
        ]
        self._make("original", jobs)
        return tuple(key for _, key, _ in jobs)

    def _trained(self, role: str, images: Images, forget: str | None) -> tuple[str, ...]:
        jobs = []
        for seeds in self.chunks(role):
            job = Job(make.make_trained, (self.setup, self.data_key, forget, seeds), f"train {role}s")
            jobs.append(("stacks", make.trained_key(self.setup, images.fingerprint, seeds), job))
        self._make(role, jobs)
        keys = tuple(key for _, key, _ in jobs)
        self._refuse_divergence(role, keys)
        return keys

    def _make(self, stage: str, jobs: Sequence[tuple[str, str, Job]]) -> None:
        """Run the jobs whose artefact is missing or damaged."""
        missing = [(key, job) for kind, key, job in jobs if self.store.get(kind, key) is None]
        if missing:
            self.underway = [f"{kind}/{key}" for kind, key, _ in jobs]
            self.save_index()
            self.watch(stage, 0, len(missing))
        for done, (at, made) in enumerate(self.engine.run([job for _, job in missing]), 1):
            if made != missing[at][0]:  # a worker reads plugins when it starts
                raise InputError(f"'{missing[at][1].label}' has another key than was asked for: a plugin was edited while the study ran; run it again")
            self.watch(stage, done, len(missing))
        self.underway = []

    def _refuse_divergence(self, role: str, keys: Sequence[str]) -> None:
        found = [one for key in keys for one in filing.divergences(self.setup, key)]
        if found:
            share = f"{len(found)} of {self.study.models} {role}s ({_first(found)})"
            raise InputError(f"training diverged in {share}; the others are finished and kept: lower recipe.lr, now {self.study.recipe.lr:g}")

    @property
    def evidence(self) -> evidence.Evidence:
        """What the metrics read beside originals, oracles and unlearned models."""
        split = ground.load_split(self.setup, self.data_key, self.forget_key).fingerprint
        return evidence.Evidence(self.setup, self.data_key, self.forget_key, split, self.study.metrics, self.study.references, self.chunks)

    def _gather(self, stage: str, wanted: Mapping[str, Sequence[scoring.Wanted]]) -> None:
        jobs = {(kind, key): (kind, key, job) for held in wanted.values() for kind, key, job in held}  # rows share most of them
        self._make(stage, list(jobs.values()))
        self.beside |= {f"beside/{name}": [f"{kind}/{key}" for kind, key, _ in held] for name, held in wanted.items()}

    def row(self, name: str) -> measuring.Ensembles:
        """The ensembles of a row."""
        return measuring.Ensembles(self.originals, self.oracles, self.unlearned[name], name in self.answered)

    def ensembles(self, name: str) -> measuring.Ensembles:
        """The ensembles of a row, and what its metrics read beside them."""
        return self.evidence.naming(self.row(name))

    def _measuring(self, name: str) -> tuple[ground.Setup, str, str, measuring.Ensembles, str, list[ground.Table]]:
        """What a method's metrics are made from."""
        return self.setup, self.data_key, self.forget_key, self.ensembles(name), name, [to_dict(metric) for metric in self.study.metrics]

    def _notes(self) -> tuple[str, ...]:
        notes = list(self.study.notes)
        if self.study.original.paths:
            seen = "normalised by the data set's mean and deviation" if self.study.normalise else "scaled to [0, 1]"
            notes.append(
                f"originals come from {len(self.study.original.paths)} file(s): this means something only if they were trained on exactly this study's"
                f" training images, by its recipe, as the oracles were, on pixels {seen}"
            )
        estimated = ["attributions"] * self.study.attributing
        estimated += ["scores"] * any(not isinstance(score, FiledScore) for score in self.study.scored().values())
        if estimated and (self.study.prune is not None or self.study.original.paths):
            notes.append(f"{' and '.join(estimated)} come from dense models trained by this study's recipe, not from the like of the originals")
        if "references" in evidence.needed(self.study.metrics) and (self.study.prune is not None or self.study.original.paths):
            notes.append("reference models are dense and trained by this study's recipe: attacks that read them expect of originals what these may not do")
        for name, method in self.study.rows().items():
            if "oracles" in method.reads:
                notes.append(f"{name}: was trained on answers of the very oracles that judge it: a bound for others, not a rival of theirs")
            if getattr(method, "certified", "") and name in self.answered:
                notes.append(f"{name}: trains models of its own kind, and is judged by oracles that are not (docs/exact.md)")
        for name, method in self.study.rows().items() if self.study.budget is not None else ():
            words = {"attribution": "attributions", "oracles": "oracles", "scores": "scores"}
            if read := [word for part, word in words.items() if part in method.reads]:
                notes.append(f"{name}: what it took to make the {' and '.join(read)} that it reads is not counted in its budget")
            if getattr(method, "certified", "") and name in self.answered:
                notes.append(f"{name}: its budget counts what a deletion takes, not the training of the models that it deletes from")
            if uncounted := getattr(method, "uncounted", ""):
                notes.append(f"{name}: its budget does not count {uncounted}")
        split = ground.load_split(self.setup, self.data_key, self.forget_key)
        halves = bool(torch.isin(split.forget.labels, split.retain.labels).all())  # no class is forgotten whole
        for name, method in self.study.rows().items():
            if halves and getattr(method, "designed_for", "") == "class":
                notes.append(f"{name}: made for forgetting whole classes, and here every class is retained in part")
        if self.study.prune is not None and "trained" in self.study.prune.needs and self.study.mask_from == "all":
            notes.append(
                f"pruned by '{info(self.study.prune).name}': which weights are left was learnt from all training images, the forget set among them,"
                " and oracles and retrained models have the same ones"
            )
        if self.study.original.sparse:
            notes.append(
                "originals come pruned: their masks were learnt elsewhere, perhaps from the forget set, and oracles and retrained models have the same ones"
            )
        chosen = {"the forget set": self.study.forget, **{f"score {name}": score for name, score in self.study.scored().items()}, **self.study.rows()}
        for name, one in chosen.items():
            if settings := legacy(one):
                notes.append(f"{name}: {', '.join(settings)} reproduces published code, not what it should be")
        for name, keys in self.unlearned.items():
            kind = "outputs" if name in self.answered else "stacks"
            found = [one for key in keys for one in filing.divergences(self.setup, key, kind)]
            if found:
                notes.append(f"{name}: {len(found)} of {self.study.models} models diverged ({_first(found)}); lower its lr")
        return tuple(notes)

    def _document(self, report: AuditReport, audits: Mapping[str, Audit]) -> dict[str, Any]:
        split = ground.load_split(self.setup, self.data_key, self.forget_key)
        held, methods = report.to_json(), self.study.rows()
        rows = [
            {**row, "method": row["name"], "settings": to_dict(methods[row["name"]]), "origin": mark(methods[row["name"]], self.study.provenance)}
            for row in held["rows"]
        ]
        if (budget := self._costs()) is not None:
            rows = [{**row, "budget.share": budget["rows"].get(row["method"], {}).get("share")} for row in rows]
        first = next(iter(audits.values()))
        seen = {"original": first.originals, "oracle": first.oracles, **{name: audit.unlearned for name, audit in audits.items() if name != "original"}}
        forget = split.forget.to("cpu")
        order = torch.randperm(len(forget), generator=generator(self.study.seed, "report"))
        some = order[:SHOWN].sort().values
        return {
            "title": self.study.title,
            "preset": self.name,
            "study": to_dict(self.study),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": _environment() | {"seconds": round(time.monotonic() - self.started, 1), "device": self.device},
            "models": {"originals": len(first.originals), "oracles": self.study.models, "retrained": self.study.models},
            "data": {part: len(getattr(split, part)) for part in ("forget", "retain", "control", "validation", "test")}
            | {"classes": forget.classes, "mislabelled_forget": int(forget.mislabelled.sum())},
            "rows": rows,
            "masks": self.seen_masks(),
            "power": "" if report.power is None else str(report.power),
            "metrics": described(self.study.metrics),
            "trust": [[rank, words] for rank, words in TRUST.items()],
            "verdict_rules": [list(rule) for rule in rules()],
            "notes": list(report.notes),
            "provenance": told(self.study),
            "budget": budget,
            "forget": {
                "of": len(forget),
                "ids": forget.ids[some].tolist(),
                "labels": forget.labels[some].tolist(),
                "true_labels": forget.true_labels[some].tolist(),
                "pixels": grey_levels(forget.pixels[some]).tolist(),
                "margins": {name: outputs.of("forget").margin[:, some].round(decimals=4).tolist() for name, outputs in seen.items()},
            },
        }


def _first(found: Sequence[Divergence]) -> str:
    return f"first: {found[0]}"


def _environment() -> dict[str, Any]:
    cpu = next((line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), platform.processor())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unlearnlab": metadata.version("unlearnlab"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def without_none(value: Any) -> Any:
    """TOML has no null: a setting left at None is left out."""
    if isinstance(value, dict):
        return {name: without_none(held) for name, held in value.items() if held is not None}
    return [without_none(held) for held in value] if isinstance(value, list) else value
