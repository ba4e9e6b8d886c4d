"""A whole study, at its smallest: stages, reuse, resume, and bits that never depend on how it was run."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toy import same
from unlearnlab import artefacts as make
from unlearnlab import filing, fit, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.engine import Local
from unlearnlab.nets.mlp import Mlp
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, load_plugin, to_dict
from unlearnlab.stack import Stack
from unlearnlab.store import Store

TINY = (
    "models=2",
    "seed=0",
    'net={name="mlp", hidden=[12]}',
    "recipe.epochs=2",
    "partition.train=120",
    "partition.held_out=60",
    "partition.test=100",
    "forget.count=12",
    "forget.mislabelled=6",
    'methods=[{name="finetune", epochs=1}, {name="salun", epochs=1}, {name="del", epochs=1}]',
    'metrics=["trace", "perm.omnibus", {name="acc", part="test"}]',  # nothing that depends on the clock
)
ROWS = ("original", "retrain", "finetune", "salun", "del")
STACKS = ("original", "oracle", *(f"unlearned/{name}" for name in ROWS))
KINDS = ("data", "forget", "stacks", "masks", "outputs", "metrics")
TOTAL = 1 + 1 + 7 + 4 + 7 + 5  # artefacts of the tiny study

# Other processes fork from one that has imported everything: they start at once, and may be killed.
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["unlearnlab.study", "unlearnlab.metrics.omnibus", "sklearn.datasets", "test_study"])


def run(root: Path, changes: Sequence[str] = (), until: str = "audit", workers: int = 1, plugins: Sequence[str] = ()) -> study.Runner:
    for path in plugins:
        load_plugin(path)
    name, what = studyfiles.read("digits", [*TINY, *changes])
    with Local(workers) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine, plugins=plugins)


def start(job: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    process = forked.Process(target=job, args=args, kwargs=kwargs)
    process.start()
    return process


def elsewhere(job: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """In a process of its own, which must end well."""
    process = start(job, *args, **kwargs)
    process.join(60)
    assert process.exitcode == 0


def payload(root: Path) -> dict[str, bytes]:
    """Every byte that was computed: all files of all artefacts but the manifests, which hold times."""
    files = (path for kind in KINDS for path in (root / kind).glob("*/*") if path.name != "manifest.json" and "." not in path.parent.name)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def made(root: Path) -> dict[str, tuple[int, int]]:
    """When each finished artefact was made, and as which file."""
    folders = (folder for kind in KINDS for folder in (root / kind).glob("*") if (folder / "manifest.json").exists() and "." not in folder.name)
    stats = {folder.relative_to(root).as_posix(): (folder / "manifest.json").stat() for folder in folders}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def litter(root: Path) -> list[str]:
    """Locks, resumable states and what was being written, but for what the dead left: that goes with ``tidy``."""
    Store(root).tidy({tuple(name.split("/")) for name in made(root)})  # type: ignore[misc]
    return [path.name for kind in KINDS for path in (root / kind).glob("*") if "." in path.name]


def index(root: Path) -> dict[str, Any]:
    return json.loads((root / "studies" / "digits" / "index.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The store of an undisturbed run; never written to."""
    root = tmp_path_factory.mktemp("done")
    run(root)
    return root


@pytest.fixture
def copy(done, tmp_path) -> Path:
    return shutil.copytree(done, tmp_path / "store")


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where", "value"),
    [
        ("recipe.epochs=1", lambda s: s.recipe.epochs, 1),
        ("recipe.lr = 1", lambda s: s.recipe.lr, 1.0),
        ("methods.salun.budget=0.3", lambda s: s.rows()["salun"].budget, 0.3),
        ("recipe.schedule.rising=0.5", lambda s: s.recipe.schedule.rising, 0.5),  # given as a name in the file
        ("metrics.trace=1", None, "name a setting of 'trace', such as metrics.trace.lr=0.01"),
        ("net=mlp", lambda s: s.net, Mlp()),
        ("recipe.name=rum_cifar10", lambda s: (s.recipe.epochs, s.recipe.batch), (30, 256)),  # another spec, with its own defaults
        ('net={name="mlp", hidden=[3]}', lambda s: s.net, Mlp(hidden=(3,))),
        ("forget={name='ids', ids=[1, 2]}", lambda s: s.forget.ids, (1, 2)),
        ("notes=['a', 'b']", lambda s: s.notes, ("a", "b")),
        ("title=Other digits", lambda s: s.title, "Other digits"),
        ("recipe.epochs", None, "cannot read the change 'recipe.epochs'; expected a.b=value, such as recipe.epochs=30"),
        ("=3", None, "cannot read the change '=3'"),
        ("recipe.epoch=1", None, "recipe 'standard' has no setting 'epoch'; did you mean 'epochs'?"),
        ("recipes.epochs=1", None, "the study has no 'recipes' to change; did you mean 'recipe'?"),
        ("model=4", None, "study 'study' has no setting 'model'; did you mean 'models'?"),
        ("models=many", None, "models = 'many' has the wrong type: expected a whole number"),
        ("models=0", None, "models = 0 is out of range: expected at least 1"),
        ("methods.salun.budget=30", None, "method 'salun': budget = 30.0 is out of range: expected more than 0 and at most 1"),
        ("methods.salum.budget=0.3", None, "there is no 'salum'; did you mean 'salun'?; there are: "),
        ("methods=finetune", None, "methods = 'finetune' must be a list"),
        ("methods=['finetuna']", None, "unknown method 'finetuna'; did you mean 'finetune'?"),
        ("methods=[3]", None, "expected a method"),
        ("metrics.acc.part=test", None, "'acc' and it is not clear which is meant"),
        ("net.widths.x=3", None, "name a setting"),
    ],
)
def test_changes(change, where, value):
    if where is None:
        with pytest.raises(InputError) as caught:
            studyfiles.read("digits", [change])
        assert value in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert where(studyfiles.read("digits", [change])[1]) == value


def test_what_cannot_be_read(tmp_path):
    for given, message in [
        ("digit", "unknown study 'digit'; did you mean 'digits'?; presets: "),
        (str(tmp_path / "none.toml"), "none.toml: No such file or directory; give a preset"),
        (str(tmp_path), "unknown study"),
        (str(tmp_path / "bad.toml"), "bad.toml is not valid TOML"),
        (str(tmp_path / "empty.toml"), "study 'study' needs the setting 'title'"),
        (str(tmp_path / "list.toml"), "study 'study' needs the setting 'title'"),
    ]:
        (tmp_path / "bad.toml").write_text("title = ")
        (tmp_path / "empty.toml").write_text("")
        (tmp_path / "list.toml").write_text("methods = [3]")
        with pytest.raises(InputError) as caught:
            studyfiles.read(given, ["methods.salun.lr=1"] if "list" in given else ())
        assert message in str(caught.value)
    with pytest.raises(InputError, match="unknown stage 'adit'; did you mean 'audit'\\?; stages: data, original"):
        run(tmp_path / "store", until="adit")
    assert not any((tmp_path / "store").iterdir())  # nothing half-written


def test_the_stored_study_reads_back(done, tmp_path):
    name, what = studyfiles.read("digits", TINY)
    assert studyfiles.read(str(done / "studies" / name / "study.toml")) == ("study", what)
    full = studyfiles.read("digits")[1]
    run_folder = tmp_path / "store"
    study.run(full, "full", Store(run_folder), until="data")
    assert studyfiles.read(str(run_folder / "studies" / "full" / "study.toml"))[1] == full


def test_rows_have_names_of_their_own():
    what = studyfiles.read("digits", ['methods=["retrain", "finetune", "salun", {name="finetune", lr=0.5}, "original", "finetune"]'])[1]
    assert list(what.rows()) == ["original", "retrain", "finetune-1", "salun", "finetune-2", "finetune-3"]
    assert what.rows()["finetune-2"].lr == 0.5


# -- stages ----------------------------------------------------------------------------------------


def test_each_stage_makes_what_it_needs_and_no_more(tmp_path):
    seen, one = {}, (1, 1, 1, 0, 0, 0)
    expected = {"data": (1, 1, 0, 0, 0, 0), "original": one, "score": one, "forget": one, "prune": one, "oracle": (1, 1, 2, 0, 0, 0)}
    expected |= {"mask": (1, 1, 2, 4, 0, 0), "unlearn": (1, 1, 7, 4, 0, 0), "audit": (1, 1, 7, 4, 7, 5), "report": (1, 1, 7, 4, 7, 5)}
    assert tuple(expected) == study.STAGES
    before: Mapping[str, Any] = {}
    for stage in study.STAGES:
        run(tmp_path, until=stage)
        now = made(tmp_path)
        seen[stage] = tuple(sum(name.startswith(f"{kind}/") for name in now) for kind in KINDS)
        assert {name: now[name] for name in before} == before, f"{stage} made something again"
        before = now
    assert seen == expected
    assert (tmp_path / "studies" / "digits" / "report.html").stat().st_size > 10_000
    assert not [path for kind in KINDS for path in (tmp_path / kind).glob("*.*")]  # undisturbed, it leaves nothing to tidy


def test_a_second_run_makes_nothing_and_is_quick(copy, monkeypatch):
    before, told = made(copy), []
    monkeypatch.setattr(Store, "_create", lambda *_: pytest.fail("made something again"))
    name, what = studyfiles.read("digits", TINY)
    began = time.perf_counter()
    study.run(what, name, Store(copy), until="audit", watch=lambda *step: told.append(step))
    assert time.perf_counter() - began < 5
    assert made(copy) == before
    assert told == []


def test_progress_is_told(tmp_path):
    told = []
    name, what = studyfiles.read("digits", TINY)
    study.run(what, name, Store(tmp_path), until="unlearn", watch=lambda *step: told.append(step))
    counts = {"original": 1, "oracle": 1, "mask": 2, "control": 2, "unlearn": 5}
    assert told == [(stage, at, count) for stage, count in counts.items() for at in range(count + 1)]


def test_one_setting_makes_anew_only_what_depends_on_it(copy):
    before = made(copy)
    run(copy, ['methods=[{name="finetune", epochs=1}, {name="salun", epochs=1, budget=0.3}, {name="del", epochs=1}]'])
    new = sorted(name.partition("/")[0] for name in made(copy).keys() - before.keys())
    assert new == ["masks", "masks", "metrics", "outputs", "stacks"]
    before = made(copy)
    run(copy, ["forget.draw=1"])
    new = [name.partition("/")[0] for name in made(copy).keys() - before.keys()]
    assert (new.count("data"), new.count("forget"), new.count("stacks")) == (0, 1, 6)  # the originals stay


def test_studies_share_what_they_have_in_common(copy):
    before = made(copy)
    name, what = studyfiles.read("digits", TINY)
    study.run(what, "other-name", Store(copy), until="audit")
    assert made(copy) == before
    assert (copy / "studies" / "other-name" / "index.json").read_text() == (copy / "studies" / name / "index.json").read_text()


# -- what a study promises (protocols.md §15) ------------------------------------------------------


def test_invariants(done):
    held = index(done)
    train, held_out, test = (load_file(done / held["data"] / f"{part}.safetensors")["ids"].tolist() for part in ("train", "held_out", "test"))
    forget = json.loads((done / held["forget"] / "ids.json").read_text())
    assert (len(train), len(held_out), len(test), len(forget)) == (120, 60, 100, 12)
    assert set(forget) < set(train)
    assert not set(train) & (set(held_out) | set(test))
    for name in STACKS:
        (folder,) = held[f"outputs/{name}"]
        seen = load_file(done / folder / "logits.safetensors")
        assert sorted(seen["ids"].tolist()) == sorted(train + held_out + test)  # all examples, once
        trained_on = {tuple(seen["ids"][row].sort().values.tolist()) for row in seen["member"]}
        without = name in ("oracle", "unlearned/retrain")
        assert trained_on == {tuple(sorted(set(train) - set(forget)) if without else sorted(train))}
        assert seen["logits"].shape == (2, 280, 10)
    marks = {name: load_file(done / held[f"stacks/{name}"][0] / "weights.safetensors") for name in STACKS}
    assert same(marks["original"], marks["unlearned/original"])
    for name in ROWS[1:]:
        assert not same(marks["original"], marks[f"unlearned/{name}"])


def test_the_index_names_what_is_there(done):
    held = index(done)
    assert set(held) == {
        "data",
        "forget",
        *(f"stacks/{name}" for name in STACKS),
        *(f"outputs/{name}" for name in STACKS),
        *(f"metrics/{name}" for name in ROWS),
        *(f"masks/{name}{end}" for name in ("salun", "del") for end in ("", "/random")),
    }
    named = {name for names in held.values() for name in ([names] if isinstance(names, str) else names)}
    assert named == set(made(done))
    assert len(named) == TOTAL


def test_models_have_parents_and_seeds_of_their_own(tmp_path):
    runner = run(tmp_path, ["models=17", "recipe.epochs=1"], until="unlearn")  # three chunks, the last a single model
    roles = {"oracle": runner.oracles, "retrain": runner.unlearned["retrain"], "finetune": runner.unlearned["finetune"]}
    seeds = {name: [runner.store.manifest("stacks", key)["seeds"] for key in keys] for name, keys in roles.items()}
    assert [len(chunk) for chunk in seeds["oracle"]] == [8, 8, 1]
    assert len({seed for chunks in seeds.values() for chunk in chunks for seed in chunk}) == 3 * 17
    assert seeds["finetune"] == [runner.store.manifest("stacks", key)["seeds"] for key in runner.originals]
    for keys in runner.unlearned.values():
        assert [runner.store.manifest("stacks", key)["parent"] for key in keys] == [f"stacks/{key}" for key in runner.originals]


def test_own_initial_weights_are_kept(done):
    runner = run(done)
    train = ground.load_data(runner.setup, runner.data_key).train
    held = filing.load_stack(runner.setup, runner.originals[0], train, "init")
    fresh = Stack.init(filing.architecture(runner.setup, train), (0, 1))
    assert same(held.params, fresh.params)
    assert held.seeds == (0, 1)
    assert not same(held.params, filing.load_stack(runner.setup, runner.originals[0], train).params)


@pytest.mark.parametrize(
    "changes", [["models=1"], ["forget={name='class', label=3}", "corruption=none"], ["forget={name='class', label=3}"]], ids=["one", "class", "noisy class"]
)
def test_small_and_odd_studies(tmp_path, changes):
    runner = run(tmp_path, [*changes, 'methods=["finetune"]'])
    assert [row["verdict"]["label"] for row in runner.document["rows"]] == ["no verdict"] * 3
    assert not runner.failed
    for row in runner.document["rows"]:
        assert "not computed" in row["results"]["trace"]["missing"]
        assert 0 <= row["results"]["acc.test"]["value"] <= 1
    groups = [name for name in runner.document["rows"][0]["results"] if name.startswith("group.")]
    assert bool(groups) == ("corruption=none" not in changes)


# -- resume ----------------------------------------------------------------------------------------


def killed_at(root: Path, count: int, delay: float) -> dict[str, tuple[int, int]]:
    """kill -9 a run ``delay`` seconds after its ``count``-th artefact; what was finished then."""
    process = start(run, root)
    while len(made(root)) < count and process.is_alive():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process.pid, 9)
    process.join()
    return made(root)


def test_killed_at_random_moments(done, tmp_path):
    chance = random.Random(2)
    moments = [(chance.randrange(1, TOTAL - 4), chance.uniform(0, 0.03)) for _ in range(2)]
    interrupted = 0
    for number, (count, delay) in enumerate([(0, chance.uniform(0, 0.3)), *moments]):
        root = tmp_path / str(number)
        finished = killed_at(root, count, delay)
        interrupted += count <= len(finished) < TOTAL
        run(root)
        assert payload(root) == payload(done)
        assert {name: made(root)[name] for name in finished} == finished, "finished work was repeated"
        assert not litter(root), "a lock or a resumable state stayed"
        assert {name: made(root)[name] for name in finished} == finished
    assert interrupted >= 1, "none of these runs was killed while it ran"


@pytest.mark.slow
def test_killed_again_and_again(done, tmp_path):
    for count in (3, 8):
        killed_at(tmp_path, count, 0.01)
    run(tmp_path)
    assert payload(tmp_path) == payload(done)


def save_always(root: Path, changes: Sequence[str]) -> None:
    make.Progress = partial(Progress, every=0)  # type: ignore[misc]  # in the process that is to be killed
    run(root, changes, until="original")


def test_killed_in_the_middle_of_a_fit(tmp_path, monkeypatch):
    changes = ["recipe.epochs=100", "recipe.batch=20"]
    process = start(save_always, tmp_path / "killed", changes)
    while not list((tmp_path / "killed").glob("stacks/*.partial/fit-1.safetensors")):
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(0.1)
    process.kill()
    process.join()
    assert not [name for name in made(tmp_path / "killed") if name.startswith("stacks")], "the fit was over before it could be interrupted"
    first, load = [], fit._load_state
    monkeypatch.setattr(fit, "_load_state", lambda *args: first.append(load(*args)) or first[-1])
    run(tmp_path / "killed", changes, until="original")
    assert len(first) == 1
    assert 0 < first[0] < 600
    run(tmp_path / "whole", changes, until="original")
    assert payload(tmp_path / "killed") == payload(tmp_path / "whole")
    passes = [next(root.glob("stacks/*/manifest.json")) for root in (tmp_path / "killed", tmp_path / "whole")]
    assert len({json.loads(path.read_text())["example_passes"] for path in passes}) == 1  # counted whole, not from where it went on
    assert not litter(tmp_path / "killed")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed_named_and_repaired(copy, done, capsys, kind):
    victim = max((path for path in (copy / kind).glob("*/*") if path.name != "manifest.json"), key=lambda path: (path.stat().st_size, path))
    body = bytearray(victim.read_bytes())
    body[len(body) // 2] ^= 1
    victim.write_bytes(body)
    before = made(copy)
    run(copy)
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert f"{kind}/{victim.parent.name} is damaged ({victim.name} is not as it was written)" in told[0]
    assert payload(copy) == payload(done)
    assert {name for name, mark in made(copy).items() if before[name] != mark} == {f"{kind}/{victim.parent.name}"}  # nothing else was made again


def test_two_processes_at_once(done, tmp_path):
    both = [start(run, tmp_path) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert payload(tmp_path) == payload(done)
    assert not litter(tmp_path)
    assert index(tmp_path) == index(done)


def test_another_order_of_methods(done, tmp_path):
    run(tmp_path, ['methods=[{name="del", epochs=1}, {name="finetune", epochs=1}, {name="salun", epochs=1}]'])
    assert index(tmp_path) == index(done)
    assert payload(tmp_path) == payload(done)


# -- plugins and workers ---------------------------------------------------------------------------

MINE = '''
from dataclasses import replace
from typing import ClassVar
from unlearnlab.spec import spec

@spec("method", "shrink")
class Shrink:
    """Make every weight smaller."""
    reads: ClassVar = frozenset()
    null: ClassVar = None

    def __call__(self, stack, split, ctx):
        return stack.having({name: 0.9 * tensor for name, tensor in stack.params.items()})
'''


def test_a_plugin_and_two_workers(done, tmp_path):
    """One worker or two: the same bits; an edited plugin makes its models anew, and nothing else."""
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    changes = ['methods=[{name="finetune", epochs=1}, {name="salun", epochs=1}, {name="del", epochs=1}, "shrink"]']
    elsewhere(run, tmp_path / "one", changes, plugins=[str(mine)])
    elsewhere(run, tmp_path / "two", changes, plugins=[str(mine)], workers=2)
    assert payload(tmp_path / "one") == payload(tmp_path / "two")
    assert payload(tmp_path / "one").items() >= payload(done).items()
    before, named = made(tmp_path / "one"), index(tmp_path / "one")
    mine.write_text(MINE.replace("0.9", "0.8"))
    elsewhere(run, tmp_path / "one", changes, plugins=[str(mine)])
    after = index(tmp_path / "one")
    assert {name for name in named if named[name] != after[name]} == {"stacks/unlearned/shrink", "outputs/unlearned/shrink", "metrics/shrink"}
    assert {name: made(tmp_path / "one")[name] for name in before} == before
    with pytest.raises(InputError, match="unknown method 'shrink'"):
        studyfiles.read("digits", changes)  # here it was never loaded


def edited_meanwhile(root: Path, changes: Sequence[str], mine: str) -> None:
    load_plugin(mine)
    name, what = studyfiles.read("digits", [*TINY, *changes])
    runner = study.run(what, name, Store(root), until="forget", plugins=[mine])
    runner.oracle()
    runner.engine = Local(2)  # whose workers start, and read the file, only now
    Path(mine).write_text(MINE.replace("0.9", "0.7"))
    with runner.engine, pytest.raises(InputError, match=r"shrink.*a plugin was edited while the study ran; run it again"):  # type: ignore[attr-defined]
        runner.unlearn()


@pytest.mark.slow
def test_a_plugin_edited_while_the_study_runs(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    elsewhere(edited_meanwhile, tmp_path / "store", ['methods=["shrink"]'], str(mine))


# -- divergence ------------------------------------------------------------------------------------


def test_originals_that_diverge(tmp_path):
    for _ in range(2):  # the second time from the store
        with pytest.raises(InputError, match=r"diverged in 2 of 2 originals \(first: seed 0 at step \d+: loss (nan|inf)\).*lower recipe.lr, now 1e\+09"):
            run(tmp_path, ["recipe.lr=1e9"])
        assert sum(name.startswith("stacks/") for name in made(tmp_path)) == 1  # finished and kept


BROKEN = 5


def test_the_others_finish(tmp_path, monkeypatch):
    """One of 17 originals diverges: it is named, and the chunk of the others is as ever."""
    run(tmp_path / "fine", ["models=17"], until="original")
    init = Stack.init

    def broken(net: Any, seeds: Sequence[int], purpose: str = "init") -> Stack:
        whole = init(net, seeds, purpose)
        ruin = torch.tensor([1e30 if seed == BROKEN else 1.0 for seed in seeds])
        return whole.having({name: t * ruin.view(-1, *[1] * (t.dim() - 1)) for name, t in whole.params.items()})

    monkeypatch.setattr(Stack, "init", staticmethod(broken))
    with pytest.raises(InputError, match=r"diverged in 1 of 17 originals \(first: seed 5 at step 0: loss (nan|inf)\); the others are finished and kept"):
        run(tmp_path / "one", ["models=17"], until="original")
    for path in (tmp_path / "one").glob("stacks/*/weights.safetensors"):
        held, fine = load_file(path), load_file(tmp_path / "fine" / path.relative_to(tmp_path / "one"))
        seeds = json.loads((path.parent / "manifest.json").read_text())["seeds"]
        rows = [row for row, seed in enumerate(seeds) if seed != BROKEN]
        assert all(torch.equal(held[name][rows], fine[name][rows]) for name in fine)
    assert len(list((tmp_path / "one").glob("stacks/*/weights.safetensors"))) == 3


def test_a_method_that_diverges_leaves_the_others(tmp_path, done):
    changes = ['methods=[{name="finetune", epochs=1}, {name="gradient_ascent", lr=1e9, clip=0}]']
    runner = run(tmp_path, changes, until="report")
    rows = {row["method"]: row for row in runner.document["rows"]}
    assert runner.failed == ["gradient_ascent"]
    assert rows["gradient_ascent"]["verdict"]["text"].startswith("no verdict: model 0 has a NaN or infinite logit")
    assert rows["gradient_ascent"]["results"] == {}
    assert rows["finetune"]["results"]["acc.test"]["value"] > 0
    (note,) = runner.document["notes"]
    assert note.startswith("gradient_ascent: 2 of 2 models diverged (first: seed 0 at step ")
    assert payload(tmp_path)[f"{index(done)['stacks/unlearned/finetune'][0]}/weights.safetensors"] in payload(done).values()


# -- the machine -----------------------------------------------------------------------------------


def test_a_relative_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = run(Path("here"), until="original")
    assert Path(runner.setup.root).is_absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runner.forget()
    assert list((tmp_path / "here" / "forget").iterdir())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_global_random_number_is_drawn(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run(tmp_path, until="unlearn")
    assert torch.equal(torch.get_rng_state(), before)


def test_jobs_travel(done):
    """What a worker is sent is small and holds no tensors."""
    runner = run(done)
    args = (runner.setup, runner.data_key, runner.forget_key, to_dict(runner.study.methods[0]), make.Source(runner.originals[0], (0, 1)))
    assert len(pickle.dumps((make.make_unlearned, args))) < 5000


def test_part_of_a_run_gives_nothing_up(copy):
    index = copy / "studies" / "digits" / "index.json"
    whole = json.loads(index.read_text())
    run(copy, until="original")
    assert json.loads(index.read_text()) == whole
