"""Settings of methods, searched for on other forget sets of the same kind, by other models: never on the set that is audited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearnlab import artefacts as make
from unlearnlab import groundwork as ground
from unlearnlab.contract import Method
from unlearnlab.data.elsewhere import Elsewhere as CorruptElsewhere
from unlearnlab.elsewhere import elsewhere
from unlearnlab.engine import Engine, Job, Local
from unlearnlab.forgetsets import BackdoorForget, Mislabelled
from unlearnlab.metrics.trace import Trace
from unlearnlab.searching import Range, settled, space, values
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build, info, suggest, to_dict
from unlearnlab.store import Store
from unlearnlab.study import STAGES, Runner, Study, Watch
from unlearnlab.terms import Origin, Tuning
from unlearnlab.trials import LOOKED_AT, Seen, load_trial, make_trial, score, trial_key
from unlearnlab.tuned import Trial, Tuned, having, listed, write_tuned

FIRST, PER_SET = 50_000, 1_000  # numbers of the models of the tuning sets: a study's own are below
OBJECTIVE = "|trace| + (|dRA| + |dFA| + |dVA|)/3"

Jobs = list[tuple[str, Job]]  # key of a trial, and what makes it


def tune(
    study: Study,
    name: str,
    store: Store,
    methods: Sequence[str],
    *,
    tuning: Tuning | None = None,
    wanted: Mapping[str, tuple[float, float]] | None = None,
    engine: Engine | None = None,
    plugins: Sequence[str] = (),
    watch: Watch | None = None,
    data_root: str | None = None,
    device: str | None = None,
) -> list[Tuned]:
    """Search for settings of methods (rows of the study, or other registered ones), with as many trials for each; interrupted work goes on.

    ``tuning``: how much (none given: what the study says, else the defaults); ``wanted``: only these settings, between these bounds. What is chosen
    depends on the study and on nothing else: not on the other methods, nor on how many workers there are.
    """
    plan, optuna, tell = tuning or study.tune or Tuning(), _optuna(), watch or (lambda *_: None)
    if plan.models > PER_SET or plan.sets >= FIRST // PER_SET or study.models > FIRST:
        raise InputError(f"tuning takes at most {FIRST // PER_SET - 1} sets of {PER_SET} models, of a study of {FIRST}; got {plan.sets} of {plan.models}")
    rows = _rows(study, methods)
    searched = {row: space(method, wanted) for row, method in rows.items()}
    machine = engine or Local(1)
    sets = [
        Runner(
            own,
            f"{name}.tuning-{draw}",
            store,
            machine,
            tuple(plugins),
            _watching(tell, draw),
            device or machine.device,
            data_root,
            first=FIRST + PER_SET * draw,
        )
        for draw, own in enumerate(_others(study, tuple(rows.values()), plan), 1)
    ]
    for stage in STAGES[: STAGES.index("oracle") + 1]:  # all sets are chosen before anything is trained
        for runner in sets:
            getattr(runner, stage)()
            runner.save_index()
    sides = [_sides(runner) for runner in sets]
    for runner, pair in zip(sets, sides, strict=True):  # what an index names, `tidy` keeps
        runner.beside |= {f"trials/{side}": [f"trials/{key}" for key, _ in jobs] for side, jobs in zip(("original", "oracle"), pair, strict=True)}
    _make(store, machine, [job for pair in sides for jobs in pair for job in jobs])
    seen = [[load_trial(runner.setup, [key for key, _ in jobs]) for jobs in pair] for runner, pair in zip(sets, sides, strict=True)]

    searches = {row: _search(optuna, study.seed, row, rows[row], searched[row]) for row in rows}
    found: dict[str, list[Trial]] = {row: [] for row in rows}
    for at in range(plan.trials):
        tell("trials", at * len(rows), plan.trials * len(rows))
        asked = {row: search.ask() for row, search in searches.items()}
        tried = {row: _suggested(asked[row], searched[row], values(rows[row]), first=at == 0) for row in rows}
        jobs = {row: [_jobs(runner, settled(rows[row], tried[row])) for runner in sets] for row in rows}
        for runner, mine in zip(sets, zip(*jobs.values(), strict=True), strict=True):
            for row, held in zip(rows, mine, strict=True):
                runner.beside.setdefault(f"trials/{row}", []).extend(f"trials/{key}" for key, _ in held)
            runner.save_index()
        _make(store, machine, [job for held in jobs.values() for mine in held for job in mine])
        for row, held in jobs.items():
            trial = _scored(tried[row], sets, seen, held)
            searches[row].tell(asked[row], trial.objective)
            found[row].append(trial)
    tell("trials", plan.trials * len(rows), plan.trials * len(rows))
    return [_tuned(row, rows[row], searched[row], found[row], study, plan) for row in rows]


def tuned_study(study: Study, name: str, store: Store, **how: Any) -> Study:
    """The study with settings searched for as its ``tune`` says, all methods with equal budgets; what cannot be tuned stays, and a note says why.

    ``how``: as for ``tune``. What was chosen is also written below the study's folder, as by the command.
    """
    chosen, notes = [], list[str]()
    for row, method in listed(study).items():
        try:
            space(method)
            chosen.append(row)
        except InputError as error:
            notes.append(f"{row}: {error}")
    found = tune(study, name, store, chosen, **how) if chosen else []
    for one in found:
        if one.best.fault:
            notes.append(f"{one.row}: not tuned: none of the {len(one.trials)} settings tried could be scored ({one.trials[0].fault})")
        else:
            write_tuned(one, store.study(name))
    made = having(study, {one.row: (one.method, one.origin) for one in found if not one.best.fault})
    return replace(made, notes=(*made.notes, *notes))


def told(study: Study) -> str:
    """What tuning a study takes, in words."""
    plan, rows = study.tune or Tuning(), 0
    for method in listed(study).values():
        try:
            rows += bool(space(method))
        except InputError:
            continue
    train, unlearn = 2 * plan.sets * plan.models, rows * plan.trials * plan.sets * plan.models
    return (
        f"tuning first: {train} models to train on {plan.sets} other forget sets, and {unlearn} to unlearn:"
        f" {plan.trials} trials for each of {rows} method(s), with {plan.models} models on each set"
    )


# ---- parts


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("tuning searches with optuna, which is not installed; install it: pip install 'unlearnlab[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _rows(study: Study, methods: Sequence[str]) -> dict[str, Method]:
    there, found = listed(study), dict[str, Method]()
    for name in methods:
        if name not in there and (several := [row for row in there if row.startswith(f"{name}-")]):
            raise InputError(f"cannot tune '{name}': it is not clear which is meant; name one of: {', '.join(several)}")
        try:
            found[name] = there[name] if name in there else build("method", name)
        except InputError as error:
            raise InputError(f"cannot tune '{name}'{suggest(name, there)}: {error}; the study lists: {', '.join(there) or 'none'}") from error
    return found


def _others(study: Study, methods: tuple[Method, ...], plan: Tuning) -> list[Study]:
    """A study for each of the other forget sets."""
    if study.requests is not None:
        raise InputError("a study with [requests] cannot be tuned: all its forget sets are audited; tune a study with the first of them alone")
    shared = {"methods": methods, "models": plan.models, "original": build("original", "trained"), "metrics": (Trace(),)}
    shared |= {"scores": tuple(study.scored().values()), "tune": None, "provenance": (), "notes": ()}
    # where all that was corrupted is forgotten, nothing of the kind is left, and other images are corrupted
    everything = isinstance(study.forget, Mislabelled | BackdoorForget)
    found = []
    for draw in range(1, plan.sets + 1):
        other = {"corruption": CorruptElsewhere(study.corruption, draw)} if everything else {"forget": elsewhere(study.forget, draw)}
        found.append(replace(study, title=f"{study.title}: tuning set {draw}", **shared, **other))
    return found


def _watching(tell: Watch, draw: int) -> Watch:
    return lambda stage, done, total: tell(f"tuning set {draw}, {stage}", done, total)


def _sides(runner: Runner) -> tuple[Jobs, Jobs]:
    """What shows what the originals and the oracles of a set say."""
    split, same = ground.load_split(runner.setup, runner.data_key, runner.forget_key).fingerprint, {"name": "original"}

    def jobs(stacks: Sequence[str], role: str) -> Jobs:
        sources = [make.Source(made, seeds) for made, seeds in zip(stacks, runner.chunks(role), strict=True)]
        return [_job(runner, same, source, split, None, f"observe tuning {role}s") for source in sources]

    return jobs(runner.originals, "original"), jobs(runner.oracles, "oracle")


def _jobs(runner: Runner, method: Method) -> Jobs:
    """What tries a method on a set: a job for each chunk of its originals."""
    split, limit = ground.load_split(runner.setup, runner.data_key, runner.forget_key).fingerprint, None
    if runner.study.budget is not None:
        limit = runner.allowed[1]
    sources = runner.sources("original", method, runner.originals, ())
    return [_job(runner, to_dict(method), source, split, limit, f"try {info(method).name}") for source in sources]


def _job(runner: Runner, table: ground.Table, source: make.Source, split: str, limit: int | None, label: str) -> tuple[str, Job]:
    given = (runner.setup, runner.data_key, runner.forget_key, table, source, limit)
    return trial_key(runner.setup, table, source, split, limit), Job(make_trial, given, label)


def _make(store: Store, engine: Engine, jobs: Jobs) -> None:
    """Run the jobs whose trial is missing or damaged."""
    for _ in engine.run([job for key, job in dict(jobs).items() if store.get("trials", key) is None]):
        pass


def _search(optuna: Any, seed: int, row: str, method: Method, searched: Mapping[str, Range]) -> Any:
    """A search of its own for each row, which begins with the study's own settings."""
    chance = generator(seed, f"tune.{row}").initial_seed() % 2**32
    found = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=chance, n_startup_trials=5))
    own = values(method)
    found.enqueue_trial({path: bounds.there(own[path]) for path, bounds in searched.items()})
    return found


def _suggested(trial: Any, searched: Mapping[str, Range], own: Mapping[str, float], *, first: bool) -> dict[str, float]:
    found = {}
    for path, bounds in searched.items():
        low, high = bounds.ends()
        found[path] = bounds.value(trial.suggest_float(path, low, high, log=bounds.scale != "even"))
    return {path: own[path] for path in searched} if first else found


def _scored(tried: Mapping[str, float], sets: Sequence[Runner], seen: Sequence[Sequence[Seen]], jobs: Sequence[Jobs]) -> Trial:
    """A trial, by what its chunks on every set have shown."""
    held = []
    for runner, (originals, oracles), mine in zip(sets, seen, jobs, strict=True):
        unlearned = load_trial(runner.setup, [key for key, _ in mine])
        if unlearned.fault:
            return Trial(tried, float("inf"), fault=unlearned.fault)
        split = ground.load_split(runner.setup, runner.data_key, runner.forget_key)
        held.append(score(originals, oracles, unlearned, [len(getattr(split, part)) for part in LOOKED_AT]))
    return Trial(tried, sum(one["objective"] for one in held) / len(held), tuple(held))


def _tuned(row: str, method: Method, searched: Mapping[str, Range], trials: Sequence[Trial], study: Study, plan: Tuning) -> Tuned:
    best, first = min(trials, key=lambda trial: trial.objective), trials[0]
    draws = "draw 1" if plan.sets == 1 else f"draws 1 to {plan.sets}"
    faint = sum(held["trace"] is None for held in best.sets)
    where = f"{plan.sets} other forget set(s) like '{info(study.forget).name}' ({draws}, {plan.models} originals and {plan.models} oracles each)"
    words = [
        f"{plan.trials} trials by TPE on {where}",
        f"objective {OBJECTIVE}, mean over sets: {best.objective:.3g}" + ("" if first.fault else f", of the settings before: {first.objective:.3g}"),
        *([f"no trace could be measured on {faint} of the sets, and none is counted there"] if faint else []),
    ]
    origin = Origin("tuned", tuple(f"methods.{info(method).name}.{path}" for path in searched), "; ".join(words))
    return Tuned(row, settled(method, best.settings), dict(searched), tuple(trials), origin)
