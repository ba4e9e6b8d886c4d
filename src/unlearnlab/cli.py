"""The command ``unlearnlab``. Nothing heavy is imported before a command needs it: ``--help`` must answer at once."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter

from unlearnlab.machines import Machines, Room

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from unlearnlab.engine import Engine
    from unlearnlab.spec import Field
    from unlearnlab.store import Store
    from unlearnlab.studyfiles import Family

# As study.STAGES (a test compares them), which costs the import of torch.
Stage = Literal["data", "original", "score", "forget", "prune", "oracle", "mask", "unlearn", "audit", "report"]
Machine = Annotated[Machines, Parameter(name="*")]
HERE = Machines()
Changes = Annotated[list[str] | None, Parameter(name="--set", help="change a setting, such as recipe.epochs=30 or methods.salun.budget=0.3; may be repeated")]
Root = Annotated[Path | None, Parameter(name="--data-root", help="folder of the public data sets ($UNLEARNLAB_DATA, else ./data)", show_default=False)]
Small = Annotated[bool, Parameter(help="the small form: every stage and method, but on digits, with a small net and few models; minutes on two cores")]
Plugins = Annotated[list[Path] | None, Parameter(name="--plugin", help="a Python file with methods (or nets, metrics …) of your own; may be repeated")]


def _version() -> str:
    from importlib.metadata import version

    return f"unlearnlab {version('unlearnlab')}"


app = App(
    name="unlearnlab",
    help="Make image classifiers forget chosen training examples, and measure whether they really did.",
    version=_version,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a check or audit failed, 2 wrong input, 130 interrupted."""
    sys.exit(call(sys.argv[1:]))


def call(words: Sequence[str]) -> int:
    """Carry out one command line; returns its exit code."""
    from unlearnlab.spec import InputError

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ✓ shows ?
    try:
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (InputError, CycloptsError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:
        # Whoever read our output has left (`unlearnlab list methods | head`); without this, Python complains when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except RuntimeError as error:
        if type(error).__name__ != "WorkerError":
            raise
        return _complain(str(error), 1)


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"unlearnlab: {' '.join(text.split())}\n")
    return code


def _say(line: str = "") -> None:
    sys.stdout.write(f"{line}\n")


def _loaded(plugins: Sequence[Path] | None) -> list[str]:
    """Run the user's files of specs; their absolute paths."""
    from unlearnlab.spec import load_plugin

    for path in (own := [str(path.resolve()) for path in plugins or ()]):
        load_plugin(path)
    return own


# ---- running


@app.command
def demo(*, machines: Machine = HERE) -> int:
    """Run the embedded study on real digits, in a minute or two: a table and an HTML report."""
    return run("digits", machines=machines)


@app.command
def run(
    study: str,
    /,
    *,
    until: Annotated[Stage, Parameter(help="stop after this stage")] = "report",
    changes: Changes = None,
    machines: Machine = HERE,
    dry_run: Annotated[bool, Parameter(help="say what would be trained and reused, and do nothing")] = False,
    trial: Annotated[bool, Parameter(help="with --dry-run: time twenty steps of training where the work would be done")] = False,
    small: Small = False,
    tuned: Annotated[bool, Parameter(help="with the settings that unlearnlab tune chose for this study")] = False,
    data_root: Root = None,
    plugins: Plugins = None,
) -> int:
    """Make whatever a study (a preset or a TOML file) asks for and the store lacks, then report; interrupted work goes on.

    Settings come from the file and from --set alone. A file of several variants is run whole and compared, or one by FILE.VARIANT. Everything
    made is kept in .unlearnlab, or in $UNLEARNLAB_STORE.
    """
    from unlearnlab.spec import InputError
    from unlearnlab.store import Store
    from unlearnlab.studyfiles import read_family

    own = _loaded(plugins)
    family = read_family(study, changes or (), small=small)
    if tuned:
        family = _tuned(family)
    _tell_lacking(family.studies)
    machines.check()
    if trial and not dry_run:
        raise InputError("--trial times a few steps and trains nothing: give it with --dry-run")
    if trial or (dry_run and machines.address):  # only the cluster itself knows how much room it has
        with machines.opened(Store.default().root) as machine:
            return _plans(family, until, own, Room(machine.workers, machines.gpus, machines.jobs_each), machine if trial else None)
    if dry_run:
        return _plans(family, until, own, Room(machines.expected_workers(), machines.gpus, machines.jobs_each))
    store, failed = Store.default(), 0
    with machines.opened(store.root) as machine:
        how: dict[str, Any] = {"engine": machine, "plugins": own, "data_root": None if data_root is None else str(data_root)}
        for at, (name, asked) in enumerate(family.studies.items(), 1):
            if len(family.studies) > 1:
                _say(f"{name} ({at} of {len(family.studies)})")
            try:
                failed = max(failed, _run(asked, name, store, until, how))
            except InputError as error:
                raise InputError(f"{name}: {error}") if len(family.studies) > 1 else error from error
    if len(family.studies) > 1 and until == "report":
        _compare_family(family.name, list(family.studies), store)
    return failed


def _tuned(family: Family) -> Family:
    """All studies of a family with the settings that were chosen for each before; refused before any is run where there are none."""
    from dataclasses import replace

    from unlearnlab.tuned import with_tuned

    store = _needed_store()
    return replace(family, studies={name: with_tuned(asked, store.root / "studies" / name) for name, asked in family.studies.items()})


def _tell_lacking(studies: Mapping[str, Any]) -> None:
    """What will not be computed, once for all studies of a family."""
    from unlearnlab.planning import lacking

    for line in dict.fromkeys(line for asked in studies.values() for line in lacking(asked)):
        sys.stderr.write(f"note: {line}\n")


def _run(asked: Any, name: str, store: Store, until: str, how: Mapping[str, Any]) -> int:
    """Run one study, or its requests one after the other."""
    from unlearnlab import study as studies
    from unlearnlab.report import print_table

    with _watching() as watch:
        if asked.tune is not None and studies.STAGES.index(until) >= studies.STAGES.index("mask"):
            from unlearnlab.tuning import tuned_study

            asked = tuned_study(asked, name, store, watch=watch, **how)
        if asked.requests is not None:
            return _requests(asked, name, store, until, {**how, "watch": watch})
        runner = studies.run(asked, name, store, until=until, watch=watch, **how)
    if runner.document:
        print_table(runner.document)
    report = store.root / "studies" / name / "report.html"
    _say(f"report: {report}" if until == "report" else f"done up to stage '{until}'; kept in {store.root}")
    return _complain(f"the audit failed for: {', '.join(runner.failed)}", 1) if runner.failed else 0


def _compare_family(name: str, members: Sequence[str], store: Store) -> None:
    """One table and one picture over all studies of a family, under its own name."""
    from unlearnlab.store import write_text_atomic

    folder = store.study(name)
    write_text_atomic(folder / "index.json", json.dumps({"variants": list(members)}))
    _compared(store, members, folder)


def _compared(store: Store, studies: Sequence[str], folder: Path) -> None:
    """Compare finished studies: print it, and write it to a folder."""
    from unlearnlab.comparing import compare as comparison
    from unlearnlab.report.compare import print_comparison, write_compare

    document = comparison(store, studies).to_json()
    print_comparison(document, _console())
    _say(f"comparison: {write_compare(document, folder)}")


def _requests(study: Any, name: str, store: Store, until: str, how: dict[str, Any]) -> int:
    """Carry out a study's requests one after the other and tell how far the models drift from retrained ones."""
    from rich.table import Table

    from unlearnlab.chain import run_requests
    from unlearnlab.report import print_table

    runners, drift = run_requests(study, name, store, until=until, **how)
    for at, runner in enumerate(runners, 1):
        if runner.document:
            _say(f"request {at} of {len(runners)}")
            print_table(runner.document)
    table = Table("request", "removed", "method", "ToW", "retain gap", "disagree (test)", "", box=None)
    for row in drift:
        numbers = f"{row.tow:.3f}", f"{row.retain_gap:+.3f}", f"{row.disagree_test:.3f}"
        table.add_row(str(row.request), str(row.removed), row.method, *numbers, "retrain now" if row.retrain_now else "")
    if drift:
        _say("drift from models retrained on what is left:")
        _console().print(table)
        _say(f"drift: {store.root / 'studies' / name / 'drift.csv'}, drift.svg")
    _say("\n".join(f"report: {store.root / 'studies' / runner.name / 'report.html'}" for runner in runners) if until == "report" else f"done up to '{until}'")
    failed = sorted({method for runner in runners for method in runner.failed})
    return _complain(f"the audit failed for: {', '.join(failed)}", 1) if failed else 0


def _plans(family: Family, until: str, plugins: Sequence[str], room: Room, trial: Engine | None = None) -> int:
    """What each study of a family would do, and where its settings come from."""
    for name, asked in family.studies.items():
        if len(family.studies) > 1:
            _say(f"{name}")
        _plan(asked, until, plugins, room, trial)
        _say()
    for line in _provenance(family):
        _say(line)
    return 0


def _provenance(family: Family) -> list[str]:
    """Where the settings of a study come from; of a family, each line once."""
    from unlearnlab.terms import told

    return told(*family.studies.values())


def _plan(study: Any, until: str, plugins: Sequence[str], room: Room, trial: Engine | None) -> int:
    from rich.table import Table

    from unlearnlab.planning import outlook, plan, summary

    store = _store()
    items = plan(study, store, until=until, plugins=plugins, gpu=room.gpus > 0)
    table = Table("stage", "row", box=None)
    for heading in ("models", "to train", "reused"):
        table.add_column(heading, justify="right")
    for item in items:
        table.add_row(item.stage, item.row, str(item.models), str(item.to_train), "reuse unknown" if item.reused is None else str(item.reused))
    _console().print(table)
    if study.tune is not None:
        from unlearnlab.tuning import told

        _say(told(study))
    seen = outlook(study, items, store, until=until, plugins=plugins, gpu=room.gpus > 0, trial=trial)
    for line in summary(items, room.workers, seen, room.gpus, room.jobs_each):
        _say(line)
    return 0


@contextmanager
def _watching() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal's stderr; elsewhere one plain line per finished stage."""
    started = time.monotonic()
    if not sys.stderr.isatty():

        def tell(stage: str, done: int, total: int) -> None:
            if done == total > 0:
                sys.stderr.write(f"{stage}: {total} of {total} done after {time.monotonic() - started:.0f} s\n")

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}
        first = bars.add_task("working", total=None)  # the first chunk may take a while to be told of

        def show(stage: str, done: int, total: int) -> None:
            bars.update(first, visible=False)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


@app.command
def forget(study: str, /, *, changes: Changes = None, small: Small = False, data_root: Root = None, plugins: Plugins = None) -> None:
    """Choose who a STUDY forgets, without training anything: prints the classes and the hash, and writes the ids to a file."""
    from rich.table import Table

    from unlearnlab import study as studies
    from unlearnlab import studyfiles
    from unlearnlab.report.scores import group_words
    from unlearnlab.store import Store, write_text_atomic

    own = _loaded(plugins)
    name, asked = studyfiles.read(study, changes or (), small=small)
    store = Store.default()
    held = studies.choose_forget(asked, name, store, plugins=own, data_root=None if data_root is None else str(data_root))
    manifest = store.study(name) / "forget.json"
    write_text_atomic(manifest, json.dumps(held, indent=1, ensure_ascii=False))
    table = Table("class", box=None)
    for heading in ("forgotten", "trained on", "controls"):
        table.add_column(heading, justify="right")
    for row in held["classes"]:
        if row["forgotten"]:
            table.add_row(row["class"], *(str(row[heading]) for heading in ("forgotten", "trained_on", "controls")))
    _say(f"forget set '{held['kind']}': {held['count']} of {held['trained_on']} training images, {held['corrupted']} of them corrupted on purpose")
    _console().print(table)
    for line in group_words(held):
        _say(line)
    if held["alike_not_trained_on"]:
        _say(f"{held['alike_not_trained_on']} more such images are held out or tested on: nothing of them need be forgotten")
    if held["controls"] < min(held["count"], 10):
        _say(f"only {held['controls']} controls for {held['count']} images to forget: attacks will tell little; hold out more, or give the ids in a file")
    some = ", ".join(map(str, held["ids"][:10])) + (" …" if held["count"] > 10 else "")
    _say(f"ids: {some}\nhash: {held['hash']}\nmanifest: {manifest}")


@app.command
def mask(study: str, /, *, changes: Changes = None, small: Small = False, machines: Machine = HERE, data_root: Root = None, plugins: Plugins = None) -> None:
    """Choose the weights that the methods of a STUDY may change (as run --until mask), and show them by layer beside a random choice."""
    from unlearnlab import study as studies
    from unlearnlab import studyfiles
    from unlearnlab.report.masks import mask_table, mask_words, write_mask_figure
    from unlearnlab.spec import InputError, info
    from unlearnlab.store import Store

    own = _loaded(plugins)
    name, asked = studyfiles.read(study, changes or (), small=small)
    if not studies.places(asked):
        inside = (
            "; what rum holds makes its masks group by group, from the model that the group before left"
            if any(info(method).name == "rum" for method in asked.methods)
            else ""
        )
        raise InputError(f"no method of study '{name}' chooses weights before it starts; add one, such as salun, del or localised{inside}")
    store, root = Store.default(), None if data_root is None else str(data_root)
    with machines.opened(store.root) as machine, _watching() as watch:
        runner = studies.run(asked, name, store, until="mask", engine=machine, plugins=own, watch=watch, data_root=root)
    for method, held in runner.seen_masks().items():
        _say(f"{method}, by {held['spec']['name']}")
        _console().print(mask_table(held))
        for line in mask_words(held):
            _say(line)
        _say(f"picture: {write_mask_figure(method, held, store.study(name) / 'figures')}\n")


@app.command
def score(
    study: str,
    /,
    *,
    name: Annotated[str | None, Parameter(help="which score --write exports (the only one there is, else memorisation)", show_default=False)] = None,
    write: Annotated[Path | None, Parameter(help="export one score of all training images to this .npz file")] = None,
    layout: Annotated[Literal["own", "memorization", "tr_mem"], Parameter(help="of that file: ours, or one of the published ones")] = "own",
    changes: Changes = None,
    small: Small = False,
    machines: Machine = HERE,
    data_root: Root = None,
    plugins: Plugins = None,
) -> None:
    """Score the training images of a STUDY (as run --until score): who is memorised, and how well cheap proxies tell.

    Prints how each score agrees with true memorisation (Spearman, with n and interval), its cost as a share of the full estimate, and the most and
    least memorised images; writes pictures of them and a CSV file. Scores come from the study's [[scores]], and from what its forget set and methods name.
    """
    from unlearnlab import study as studies
    from unlearnlab import studyfiles
    from unlearnlab.data.images import Images
    from unlearnlab.filing import load_scores
    from unlearnlab.forgetsets import ScoredForgetSet
    from unlearnlab.groundwork import load_data
    from unlearnlab.report.scores import end_words, group_words, score_tables, score_words, write_score_figures, write_scores_csv
    from unlearnlab.scores.npz import write_scores
    from unlearnlab.scoring import seen_scores
    from unlearnlab.spec import InputError
    from unlearnlab.store import Store

    own = _loaded(plugins)
    called, asked = studyfiles.read(study, changes or (), small=small)
    scored = asked.scored()
    if not scored:
        raise InputError(f"study '{called}' asks for no score; add [[scores]] to it, or give --set 'scores=[{{name=\"memorisation\"}}]'")
    exported = _exported(name, list(scored), write)
    store, root = Store.default(), None if data_root is None else str(data_root)
    with machines.opened(store.root) as machine, _watching() as watch:
        runner = studies.run(asked, called, store, until="score", engine=machine, plugins=own, watch=watch, data_root=root)
    held = seen_scores(runner.setup, runner.data_key, scored, runner.score_steps())
    console = _console()
    for table in score_tables(held, console.width):
        console.print(table)
    for line in score_words(held):
        _say(line)
    for row in held["scores"]:
        _say("\n" + "\n".join(end_words(row)))
    _say()
    for picture in write_score_figures(held, store.study(called) / "figures"):
        _say(f"picture: {picture}")
    _say(f"scores: {write_scores_csv(held, store.study(called) / 'tables')}")
    for name, made in runner.scores.items():
        if (influence := store.root / "scores" / made / "influence.npy").exists():
            _say(f"influence of '{name}', training images by test images: {influence}")
    if write is not None:
        parts, made = load_data(runner.setup, runner.data_key), runner.scores[exported]
        several = [parts.train, parts.held_out, *([] if "split" in parts.test.columns else [parts.test])]  # of the release whose rows the ids are
        write_scores(write, load_scores(runner.setup, made), layout, Images.join(several), made)
        _say(f"{exported}: {write}")
    if isinstance(asked.forget, ScoredForgetSet):
        chosen = studies.choose_forget(asked, called, store, plugins=own, data_root=root)
        _say(f"forget set '{chosen['kind']}': {chosen['count']} of {chosen['trained_on']} training images")
        for line in group_words(chosen):
            _say(line)


def _exported(name: str | None, known: Sequence[str], file: Path | None) -> str:
    """The score that goes to a file; refused before hours of training where it is not clear which."""
    from unlearnlab.spec import InputError, suggest

    if file is None:
        if name is not None:
            raise InputError(f"--name {name} says which score goes to a file, and no file is given; add --write FILE.npz")
        return ""
    if name is None:
        if len(known) > 1 and "memorisation" not in known:
            raise InputError(f"this study has the scores {', '.join(known)}; say with --name which one goes to {file}")
        return known[0] if len(known) == 1 else "memorisation"
    if name not in known:
        raise InputError(f"this study has no score '{name}'{suggest(name, known)} (it has: {', '.join(known)})")
    return name


@app.command
def tune(
    study: str,
    /,
    *methods: Annotated[str, Parameter(name="METHOD", help="rows of the study, or other methods")],
    trials: Annotated[int | None, Parameter(help="settings tried for each method, the study's own first (20)", show_default=False)] = None,
    sets: Annotated[int | None, Parameter(help="other forget sets that they are tried on (2)", show_default=False)] = None,
    models: Annotated[int | None, Parameter(help="originals, and as many oracles, for each of these sets (8)", show_default=False)] = None,
    search: Annotated[list[str] | None, Parameter(help="search this setting only, such as lr=0.001..0.1; may be repeated")] = None,
    changes: Changes = None,
    small: Small = False,
    machines: Machine = HERE,
    data_root: Root = None,
    plugins: Plugins = None,
) -> int:
    """Search for settings of METHODs on other forget sets of the same kind as the one that a STUDY audits, with small oracle ensembles of their own.

    Every method has the same number of trials. The audited forget set is not forgotten, and the test images are not looked at. What is chosen is
    printed, and written below the study's folder, from where unlearnlab run STUDY --tuned takes it.
    """
    from dataclasses import replace

    from unlearnlab.searching import read_wanted
    from unlearnlab.spec import InputError
    from unlearnlab.store import Store
    from unlearnlab.studyfiles import read
    from unlearnlab.terms import Tuning
    from unlearnlab.tuned import write_tuned
    from unlearnlab.tuning import tune as find

    own = _loaded(plugins)
    name, asked = read(study, changes or (), small=small)
    if not methods:
        raise InputError(f"say which methods to tune; this study has: {', '.join(asked.rows())}")
    given = {key: value for key, value in (("trials", trials), ("sets", sets), ("models", models)) if value is not None}
    plan, wanted, store = replace(asked.tune or Tuning(), **given), read_wanted(search or ()), Store.default()
    with machines.opened(store.root) as machine, _watching() as watch:
        how: dict[str, Any] = {"engine": machine, "plugins": own, "watch": watch, "data_root": None if data_root is None else str(data_root)}
        found = find(asked, name, store, methods, tuning=plan, wanted=wanted, **how)
    failed = []
    for one in found:
        _say(f"\n{one.row}: {len(one.trials)} trials on {plan.sets} other forget sets, {plan.models} originals and {plan.models} oracles each; the best")
        _trials(one)
        if one.best.fault:
            failed.append(one.row)
            continue
        _say(", ".join(f"{path} = {value:g}" for path, value in one.best.settings.items()))
        _say(f"settings: {write_tuned(one, store.study(name))}")
    return _complain(f"no trial could be scored for: {', '.join(failed)}", 1) if failed else 0


def _trials(found: Any) -> None:
    """The best trials of a method, and the first one, which had the study's own settings."""
    from rich.table import Table

    table = Table("trial", *found.searched, "objective", "trace", "retain", "forget", "validation", "", box=None)
    order = sorted(range(len(found.trials)), key=lambda at: found.trials[at].objective)
    for at in order[:6] + ([0] if 0 not in order[:6] else []):
        trial = found.trials[at]
        parts = [trial.mean(name) for name in ("trace", "retain", "forget", "validation")]
        numbers = ["-" if value is None else f"{value:+.3f}" for value in parts]
        settings = [f"{value:g}" for value in trial.settings.values()]
        table.add_row(str(at + 1), *settings, f"{trial.objective:.3f}", *numbers, trial.fault or ("the study's own" if at == 0 else ""))
    _console().print(table)


@app.command
def fetch(name: str | None = None, /, *, data_root: Root = None) -> None:
    """Download the public data set NAME, verify its checksum and unpack it below the data root; archives already there are used.

    Of a published file of scores it says where to get it and where to put it, and checks the one that is there. Without NAME: all that
    is known, and what of it is there.
    """
    from unlearnlab.data.fetching import fetch as download
    from unlearnlab.data.fetching import overview
    from unlearnlab.data.published import SCORES, tell_scores
    from unlearnlab.data.source import data_root as root_of
    from unlearnlab.scores.file import FileScore

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{_size(done)} of {_size(total)} " if done < total else f"\r{_size(total)} fetched\n")

    root = root_of(data_root)
    if name is None:
        for line in overview(root):
            _say(line)
    elif name in SCORES:
        tell_scores(name, root, lambda path, count: FileScore(str(path)).told(count), _say)
    else:
        _say(f"{name} is in {download(name, root, tell)}")


@app.command
def report(study: str, /) -> None:
    """Print the table and write the HTML report of a study again, from its stored audit."""
    from unlearnlab import report as reports
    from unlearnlab.naming import again
    from unlearnlab.spec import InputError

    stored = _audited(study, "report", "a report") / "audit.json"
    try:
        document = json.loads(stored.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{stored} is damaged ({error}); make it again: {again(study)}") from error
    reports.print_table(document)
    _say(f"report: {reports.write_report(document, stored.parent)}")


def _audited(study: str, command: str, what: str) -> Path:
    """The folder of a study that was run to its audit; ``what`` a ``command`` finds there."""
    from unlearnlab import studyfiles
    from unlearnlab.finished import variants
    from unlearnlab.naming import again, asked, kept_as
    from unlearnlab.spec import InputError

    name, store = kept_as(study), _store()
    if store is not None and (store.root / "studies" / name / "audit.json").exists():
        return store.root / "studies" / name
    if store is not None and (store.root / "studies" / f"{name}.request-1" / "audit.json").exists():
        raise InputError(f"study '{name}' has {what} for each of its requests: unlearnlab {command} {name}.request-1")
    if store is not None and (its := variants(store, name)):
        raise InputError(f"'{name}' is a family of studies ({len(its)}), each with {what} of its own: unlearnlab {command} {its[0]}")
    plain, small = asked(study)
    family = studyfiles.read_family(plain, small=small)  # an unknown study is told as such
    if family.only is None:
        first = next(iter(family.studies))
        raise InputError(f"'{name}' is a family of studies ({len(family.studies)}), each with {what} of its own: unlearnlab {command} {first}")
    raise InputError(f"study '{name}' has not been run yet; run it first: {again(study)}")


@app.command
def export(
    study: str,
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    layout: Annotated[Literal["own", "fwp"], Parameter(help="own: every image, with part and id; fwp: the published one, forget images only")] = "own",
) -> None:
    """Write what the models of a STUDY say, which must have been run, to the folder DIR: logits that anyone's code can read, and unlearnlab attack."""
    from dataclasses import replace

    from unlearnlab.layouts import accuracies, check_free, read, write_fwp, write_plain

    stored = _audited(study, "export", "logits")
    check_free(folder)
    held = read(stored)
    if layout == "fwp":
        oracles, *approaches = (replace(one, accuracies=accuracies(one.outputs)) for one in (held.oracles, *held.approaches))
        write_fwp(folder, oracles, approaches)
    else:
        write_plain(folder, held.oracles, held.originals, held.approaches)
    images = len(held.oracles.outputs.of("forget").ids) if layout == "fwp" else len(held.oracles.outputs.ids)
    for note in held.notes:
        _say(f"note: {note}")
    _say(f"oracles and {len(held.approaches)} approaches ({', '.join(one.name for one in held.approaches)}) on {images} images: {folder}")


@app.command
def attack(
    folder: Annotated[Path, Parameter(name="DIR")],
    approach: Annotated[str | None, Parameter(help="only this one (all that the folder holds)", show_default=False)] = None,
    /,
    *,
    delta: Annotated[float, Parameter(help="the probability with which differential privacy may fail, for both epsilons")] = 0.05,
    metrics: Annotated[list[str] | None, Parameter(help="further metrics, such as tow or klom.smooth.retain; may be repeated", consume_multiple=True)] = None,
    originals: Annotated[
        str | None, Parameter(help="from how many independent originals the models of an approach come: N for one each, 1, unknown", show_default=False)
    ] = None,
    out: Annotated[Path | None, Parameter(help="where the page, tables and figures go (./attack-<name of DIR>)", show_default=False)] = None,
) -> None:
    """Audit a folder DIR of logits, without any model: epsilon as published and cross-fitted, KLoM, accuracies, and a page with figures.

    Folders as docs/logits.md has them, such as unlearnlab export writes. p needs --originals N, and a verdict the originals' logits too.
    """
    from unlearnlab.attacking import attack as audit
    from unlearnlab.layouts import check_outside, read
    from unlearnlab.report.attack import print_attack, write_attack
    from unlearnlab.spec import InputError

    held, place = read(folder, approach), out or Path(f"attack-{folder.resolve().name}")
    check_outside(place, folder)  # before minutes of work
    document = audit(held, delta=delta, metrics=metrics or (), originals=originals)
    print_attack(document, _console())
    try:
        page = write_attack(document, place)
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror}; name a folder with --out that you may write to, on a disk with room") from error
    _say(f"report: {page}")


@app.command
def compare(
    *studies: Annotated[str, Parameter(name="STUDY", help="studies that were run, or the name of a family or of a study with requests for all of its own")],
    out: Annotated[
        Path | None, Parameter(help="where the page, tables and figures go (to the family's folder, else ./compare-<first>-<n>)", show_default=False)
    ] = None,
) -> None:
    """Compare finished studies: one table, one figure, and the difference of each STUDY from the first, paired where seeds pair."""
    from unlearnlab.finished import place
    from unlearnlab.spec import InputError

    store = _needed_store()
    folder = out or place(store, studies)
    try:
        _compared(store, studies, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; name a folder with --out that you may write to, on a disk with room") from error


# ---- looking around


@app.command
def presets(name: str | None = None, /) -> None:
    """List the studies that come with the package; with a NAME, print its TOML."""
    from unlearnlab.spec import InputError, suggest
    from unlearnlab.studyfiles import presets as shipped
    from unlearnlab.studyfiles import read_family

    if name is None:
        _columns(_presets())
    elif name in (known := shipped()):
        family = read_family(name)
        for line in _provenance(family):
            _say(f"# {line}")
        if len(family.studies) > 1:
            _say(f"# studies: {', '.join(family.studies)}")
        _say(known[name].read_text(encoding="utf-8").rstrip())
    else:
        raise InputError(f"unknown preset '{name}'{suggest(name, known)}; presets: {', '.join(known)}")


@app.command(name="list")
def list_(kind: Annotated[str, Parameter(help="methods, localisers, metrics, nets, datasets, forget, presets, artefacts …; singular or plural")], /) -> None:
    """List everything of a KIND: methods, localisers, scores, metrics, datasets, nets, recipes, forget, presets, artefacts …"""
    from unlearnlab.spec import HOMES, InputError, lookup, names, suggest

    kinds = {name: name for name in (*HOMES, "preset", "artefact") if name != "study"}
    plurals = {name if name.endswith("s") else f"{name}s": name for name in kinds} | {"forget sets": "forget", "study": "preset", "studies": "preset"}
    asked = {**plurals, **kinds}.get(kind)
    if asked is None:
        raise InputError(f"unknown kind '{kind}'{suggest(kind, [*kinds, *plurals])} (known: {', '.join(kinds)})")
    rows: list[tuple[str, ...]]
    if asked == "preset":
        rows = [*_presets()]
    elif asked == "artefact":
        store = _store()
        held = [] if store is None else store.list()
        rows = [(f"{row.kind}/{row.key[:12]}", f"{row.name or '-':20} {_size(row.size):>9}  {row.created}") for row in held]
    elif asked == "method":
        rows = [("name", *METHOD_FACTS), *((name, *method_facts(name)) for name in names(asked))]
    else:
        rows = [(name, lookup(asked, name).__spec__.summary) for name in names(asked)]  # type: ignore[attr-defined]
    _columns(rows) if rows else _say(f"{asked}: none yet")


METHOD_FACTS = ("paper", "reads", "needs", "certified", "cost in epochs over the retain set")


def method_facts(name: str) -> tuple[str, ...]:
    """Of a method: its paper, the images it reads, what else it needs, whether its forgetting is certified, and its cost."""
    from unlearnlab.contract import SPLIT_PARTS
    from unlearnlab.spec import fields, info, lookup

    cls: Any = lookup("method", name)
    if any(field.default is MISSING for field in fields(cls)):
        reads = needs = "what its parts do"
    else:
        read = cls().reads
        reads = ", ".join(part for part in SPLIT_PARTS if part in read) or "-"
        needs = ", ".join(sorted(read - set(SPLIT_PARTS))) or "-"
    return info(cls).paper or "-", reads, needs, getattr(cls, "certified", "no"), getattr(cls, "cost", "-")


@app.command
def show(what: Annotated[str, Parameter(help="a name, such as salun, or the first digits of an artefact's key")], /) -> None:
    """Explain a method, metric, net … by NAME with all its settings, or print what is recorded about an artefact by KEY."""
    from unlearnlab.spec import ALIASES, HOMES, InputError, names, suggest

    known = {kind: names(kind) for kind in HOMES}
    kinds = [kind for kind, held in known.items() if what in held]
    for kind in kinds:
        _explain(kind, what)
    if kinds:
        return
    store = _store()
    if store is not None and any(f"{row.kind}/{row.key}".startswith(what) or row.key.startswith(what) for row in store.list()):
        _say(json.dumps(store.manifest(*store.find(what)), indent=1, ensure_ascii=False))
        return
    ours = next((table[what] for table in ALIASES.values() if what in table), "")
    hint = f"; here it is called '{ours}'" if ours else suggest(what, [name for held in known.values() for name in held])
    raise InputError(f"unknown name or key '{what}'{hint}; see: unlearnlab list methods, unlearnlab list artefacts")


def _explain(kind: str, name: str) -> None:
    """The page of one spec: what it does, where it comes from, its settings."""
    from rich.table import Table
    from rich.text import Text

    from unlearnlab.spec import fields, info, lookup

    cls = lookup(kind, name)
    held = info(cls)
    _say(f"{kind} '{name}', version {held.version}{f', {held.paper}' if held.paper else ''}\n")
    _say(inspect.cleandoc(cls.__doc__ or held.summary) + "\n")
    if kind == "method":
        for heading, fact in zip(METHOD_FACTS[1:], method_facts(name)[1:], strict=True):
            _say(f"{heading}: {fact}")
        _say()
    if not fields(cls):
        _say("It has no settings.\n")
        return
    published = any(field.setting.published for field in fields(cls))
    table = Table("setting", "default", "range", "symbol", "help", *(["published"] if published else []), box=None)
    for field in fields(cls):
        unit = f" [{field.setting.unit}]" if field.setting.unit else ""
        cells = [field.name, _default(field.default), _range(field), field.setting.symbol, field.setting.help + unit]
        table.add_row(*map(Text, [*cells, *([field.setting.published] if published else [])]))
    _console().print(table)
    _say()


def _default(value: Any) -> str:
    """A default as TOML would have it; specs by name."""
    if value is MISSING:
        return "(to be given)"
    if hasattr(value, "__spec__"):
        return str(value.__spec__.name)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_default, value))}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _range(field: Field) -> str:
    """What may be given for a setting, in words."""
    return ", ".join(filter(None, (_words(field.type, field.setting.kind), field.setting.range_text())))


def _words(hint: Any, kind: str) -> str:
    inner, plain = get_args(hint), {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "none"}
    if get_origin(hint) is tuple:
        return f"list of: {_words(inner[0], kind)}"
    if get_origin(hint) is Literal:
        return ", ".join(map(str, inner))
    return kind or " or ".join(_words(one, "") if get_origin(one) else plain.get(one, str(one)) for one in inner or (hint,))


@app.command
def why(a: Annotated[str, Parameter(name="KEY")], b: Annotated[str, Parameter(name="OTHER")], /) -> None:
    """Say why two artefacts, given by the first digits of their keys, are not the same one."""
    store = _needed_store()
    for line in store.why(a, b) or [f"{'/'.join(store.find(a))} and {'/'.join(store.find(b))} are the same artefact"]:
        _say(line)


# ---- checking and tidying


@app.command
def check(file: Path, /) -> int:
    """Check the methods in a Python FILE of your own against the contract, on real digits."""
    from unlearnlab.checking import check_file

    failed = 0
    for found in check_file(file):
        failed += not found.passed
        _say(f"{'✓' if found.passed else '✗'} {found.method}: {found.check}: {found.sentence}")
        sys.stdout.flush()
    _say(f"{failed} check(s) failed" if failed else "all checks passed")
    return 1 if failed else 0


@app.command
def tidy(*, dry_run: Annotated[bool, Parameter(help="only say what would be freed")] = False) -> None:
    """Remove from the store what no finished study needs, and what interrupted work left behind."""
    from unlearnlab.planning import needed

    live, unfinished = needed(store := _needed_store())
    for name in unfinished:
        sys.stderr.write(f"study '{name}' was never finished: only what other studies need of it is kept\n")
    count, size = store.tidy(live, dry_run=dry_run)
    _say(f"{'would free' if dry_run else 'freed'} {_size(size)}: {count} artefact(s) and leftovers; {len(live)} artefact(s) are needed")


# ---- parts


def _store() -> Store | None:
    """The store, for reading: unlike ``Store.default`` this makes none where there is none."""
    from unlearnlab.store import Store

    root = Path(os.environ.get("UNLEARNLAB_STORE") or ".unlearnlab").expanduser()
    return Store(root) if root.exists() else None


def _needed_store() -> Store:
    from unlearnlab.spec import InputError

    if (store := _store()) is None:
        raise InputError("there is no store here yet; run a study first, or name another store with $UNLEARNLAB_STORE")
    return store


def _presets() -> list[tuple[str, str]]:
    import tomllib

    from unlearnlab.studyfiles import presets as shipped

    return [(name, tomllib.loads(path.read_text(encoding="utf-8")).get("title", "")) for name, path in shipped().items()]


def _columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns, a line each: whole words whatever the width, and easy to grep."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=160)
