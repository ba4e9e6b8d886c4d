"""What metrics read beside the three ensembles: made once where a metric asks for it, kept, and true."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toy import Interrupted, Stops, Toy, same
from unlearnlab import evidence, filing, fit, measuring, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.attribution import subsets
from unlearnlab.auditing import audit
from unlearnlab.chain import run_requests
from unlearnlab.contract import NEEDS, Audit
from unlearnlab.data.images import PARTS
from unlearnlab.engine import Local
from unlearnlab.metrics.accuracy import correct
from unlearnlab.metrics.relearn import Lesson, RelearnSteps
from unlearnlab.optimizers import Sgd
from unlearnlab.planning import needed, plan
from unlearnlab.seeds import RANGES, model_seeds
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack
from unlearnlab.store import Store

LESSON = '{name="relearn.steps", steps=4, draws=2, batch=8}'
FEWER = '{name="ain", steps={name="relearn.steps", steps=3, draws=1, batch=8}}'  # another lesson, held by another metric
EVERYTHING = f'metrics=["rmia.auc", "zrf", "asr", {LESSON}, {FEWER}, {{name="acc", part="test"}}]'
PLAIN = 'metrics=[{name="acc", part="test"}]'
TINY = (
    "models=3",
    "references=12",
    "seed=0",
    'net={name="mlp", hidden=[12]}',
    "recipe.epochs=2",
    "partition.train=120",
    "partition.held_out=60",
    "partition.test=100",
    'corruption={name="backdoor", share=0.1, size=2, margin=1, target=3}',
    'forget={name="backdoor"}',
    'methods=[{name="finetune", epochs=1}, {name="sisa", shards=2, slices=1}]',
)
KINDS = ("stacks", "outputs", "relearning", "metrics")


def run(root: Path, *changes: str, until: str = "audit", watch: study.Watch | None = None) -> study.Runner:
    name, what = studyfiles.read("digits", [*TINY, *changes])
    with Local(1) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine, watch=watch)


def made(root: Path) -> dict[str, int]:
    """Everything finished, and as which file."""
    folders = (folder for kind in KINDS for folder in (root / kind).glob("*") if "." not in folder.name)
    return {folder.relative_to(root).as_posix(): (folder / "manifest.json").stat().st_ino for folder in folders}


def named(store: Store, kind: str = "outputs") -> list[str]:
    """What evidence there is of a kind, by its name in the manifest."""
    return sorted(name for row in store.list(kind) if (name := store.manifest(kind, row.key).get("name")) in ("references", "untrained", "triggered"))


def gathered(runner: study.Runner, name: str = "finetune") -> Audit:
    return measuring.gather(runner.setup, runner.data_key, runner.forget_key, runner.ensembles(name))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> study.Runner:
    """Audited once with all that metrics may need; never written to."""
    return run(tmp_path_factory.mktemp("evidence"), EVERYTHING)


@pytest.fixture
def copy(done: study.Runner, tmp_path: Path) -> Path:
    return shutil.copytree(done.store.root, tmp_path / "store")


# -- what is made ----------------------------------------------------------------------------------


def test_no_metric_lacks_what_it_needs(done: study.Runner) -> None:
    rows = {row["method"]: row["results"] for row in done.document["rows"]}
    for metric in done.study.metrics:
        for name in ("original", "retrain", "finetune"):
            assert (rows[name][metric.key]["missing"] or "").removeprefix("not computed: ") not in NEEDS.values()
    assert rows["original"]["relearn.steps"]["value"] == 0  # by the mark that it sets itself


def test_references_saw_known_random_halves_of_forget_retain_and_control(done: study.Runner) -> None:
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    audit = gathered(done)
    seen = audit.references
    assert seen is not None
    assert seen.models == model_seeds("reference", 12)
    assert torch.equal(seen.ids, audit.unlearned.ids)
    assert torch.equal(seen.part, audit.unlearned.part)
    pool = sorted(i for part in evidence.POOL for i in getattr(split, part).ids.tolist())
    assert seen.member.sum(1).tolist() == [round(len(pool) / 2)] * 12
    for part in ("validation", "test"):
        assert not bool(seen.of(part).member.any())
    for part in evidence.POOL:  # and of each part about half
        assert 0.35 < float(seen.of(part).member.double().mean()) < 0.65
    control = seen.of("control").member.sum(0)
    assert len(control) > 5
    assert bool(((control > 0) & (control < 12)).all()), "every control image has models that saw it and models that did not"


def test_membership_is_true_of_what_was_trained(done: study.Runner) -> None:
    """Trained anew by hand on the images that a row says were seen: the same logits."""
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    seen = gathered(done).references
    assert seen is not None
    told = seen.ids[seen.member[0]]
    pool = evidence.pool_of(split)
    assert sorted(told.tolist()) == pool.ids[subsets(seen.models[:1], len(pool), 0.5)[0][0]].tolist()
    images = pool.take(sorted(told.tolist()))
    start = Stack.init(filing.architecture(done.setup, images), seen.models[:1])
    again = done.study.recipe(start, images)
    assert torch.allclose(again.logits(split.together()[0].pixels)[0], seen.logits[0], atol=1e-4)
    bearing = pool.triggered & torch.isin(pool.ids, split.control.ids)
    assert bool(bearing.any()), "controls bear the trigger as the forget set does"


def test_no_reference_is_an_audited_model(done: study.Runner) -> None:
    audit = gathered(done)
    assert audit.references is not None
    assert audit.untrained is not None
    others = {seed for side in (audit.originals, audit.oracles, audit.unlearned) for seed in side.models}
    assert not others & {*audit.references.models, *audit.untrained.models}
    assert len({RANGES[role] for role in RANGES}) == len(RANGES)


def test_untrained_nets_are_fresh(done: study.Runner) -> None:
    audit = gathered(done)
    fresh = audit.untrained
    assert fresh is not None
    assert len(fresh) == evidence.UNTRAINED
    assert torch.equal(fresh.ids, audit.unlearned.ids)
    images, _ = ground.load_split(done.setup, done.data_key, done.forget_key).together()
    by_hand = Stack.init(filing.architecture(done.setup, images), fresh.models).logits(images.pixels)
    assert torch.allclose(by_hand, fresh.logits, atol=1e-6)
    assert not bool(fresh.member.any())


def test_triggered_images_bear_the_trigger_and_their_true_labels(done: study.Runner) -> None:
    split, audit = ground.load_split(done.setup, done.data_key, done.forget_key), gathered(done)
    held = audit.triggered
    assert held is not None
    assert held.target == 3
    painted = split.test.pixels.clone()
    painted[..., 5:7, 5:7] = 0
    for side, stacks in (("originals", done.originals), ("oracles", done.oracles), ("unlearned", done.unlearned["finetune"])):
        seen = getattr(held, side)
        assert torch.equal(seen.ids, split.test.ids)
        assert torch.equal(seen.labels, split.test.true_labels)
        assert seen.models == getattr(audit, side).models
        models = filing.load_stack(done.setup, stacks[0], split.test)
        assert torch.equal(seen.logits, models.logits(painted))
    assert not torch.equal(held.originals.logits, audit.originals.of("test").logits)


def test_true_labels_are_those_of_the_release(done: study.Runner) -> None:
    split, audit = ground.load_split(done.setup, done.data_key, done.forget_key), gathered(done)
    true = {i: int(label) for part in PARTS for i, label in zip(getattr(split, part).ids.tolist(), getattr(split, part).true_labels, strict=True)}
    assert audit.true_labels is not None
    assert audit.true_labels.tolist() == [true[i] for i in audit.unlearned.ids.tolist()]
    assert not torch.equal(audit.true_labels, audit.unlearned.labels)


def test_curves_are_of_each_row_and_start_where_the_model_stands(done: study.Runner) -> None:
    lessons = evidence.lessons(done.study.metrics)
    assert sorted(lesson.steps for lesson in lessons.values()) == [3, 4]
    for name in ("original", "retrain", "finetune"):
        audit = gathered(done, name)
        assert audit.relearning.keys() == lessons.keys()
        for key, lesson in lessons.items():
            for side in ("oracles", "unlearned"):
                curves = getattr(audit.relearning[key], side)
                assert curves.shape == (3, lesson.draws, lesson.steps + 1)
                assert torch.allclose(curves[:, :, 0], correct(getattr(audit, side).of("forget"))[:, None].expand(-1, lesson.draws))


def test_rows_that_give_outputs_alone_are_neither_triggered_nor_taught(done: study.Runner) -> None:
    audit = gathered(done, "sisa")
    assert (audit.triggered, audit.relearning) == (None, {})
    assert audit.references is not None
    assert audit.true_labels is not None
    (row,) = [row["results"] for row in done.document["rows"] if row["method"] == "sisa"]
    assert row["relearn.steps"]["missing"].startswith("not computed: the models were not taught")
    assert row["asr"]["missing"].startswith("not computed")


def test_audited_weights_are_untouched(done: study.Runner, tmp_path: Path) -> None:
    """The same bits as in a study that measures nothing of the kind."""
    plain = run(tmp_path, PLAIN)
    assert plain.originals == done.originals
    for keys in (done.originals, done.oracles, done.unlearned["finetune"]):
        for key in keys:
            name = Path("stacks") / key / "weights.safetensors"
            assert (done.store.root / name).read_bytes() == (tmp_path / name).read_bytes()


# -- made once, and only where asked for -----------------------------------------------------------


def test_what_no_metric_reads_is_not_made(tmp_path: Path) -> None:
    runner = run(tmp_path, PLAIN)
    assert not named(runner.store)
    assert not (tmp_path / "relearning").exists()
    audit = gathered(runner)
    assert (audit.references, audit.untrained, audit.triggered, audit.relearning) == (None, None, None, {})
    assert audit.true_labels is not None
    assert not any(item.row == "reference models" for item in plan(runner.study, runner.store))
    more = run(tmp_path, 'metrics=["zrf"]')
    assert named(more.store) == ["untrained"]


def test_a_metric_within_another_is_asked_too() -> None:
    held = build("metric", {"name": "gap", "metric": {"name": "ain", "steps": {"name": "relearn.steps", "steps": 7}}})
    assert evidence.needed([held]) == {"relearning"}
    assert [lesson.steps for lesson in evidence.lessons([held, held]).values()] == [7]


def test_nothing_is_made_twice(done: study.Runner, copy: Path) -> None:
    before = made(copy)
    again = run(copy, EVERYTHING)
    assert made(copy) == before
    assert again.document["rows"] == done.document["rows"]


def test_further_metrics_make_what_they_need_and_nothing_else(copy: Path) -> None:
    before = made(copy)
    run(copy, EVERYTHING.replace("]", ', {name="relearn.steps", steps=2, draws=1}]', 1).replace('"zrf", ', ""))
    new = [name.partition("/")[0] for name in made(copy).keys() - before.keys()]
    assert {name: made(copy)[name] for name in before} == before
    assert sorted(set(new)) == ["metrics", "relearning"]
    assert new.count("relearning") == 4  # oracles, original, retrain, finetune: one chunk each


def test_more_references_are_trained_chunk_by_chunk(copy: Path) -> None:
    before = made(copy)
    audit = gathered(run(copy, EVERYTHING, "references=16"))
    assert audit.references is not None
    assert audit.references.models == model_seeds("reference", 16)
    assert sorted(name.partition("/")[0] for name in made(copy).keys() - before.keys()) == ["metrics"] * 4 + ["outputs"]  # the second chunk of eight


def test_the_index_keeps_it_from_being_tidied(done: study.Runner) -> None:
    live, unfinished = needed(done.store)
    assert not unfinished
    assert {tuple(name.split("/")) for name in made(done.store.root)} <= live


def test_references_stay_known_when_the_run_is_broken_off(tmp_path: Path) -> None:
    """They are dear: tidying after an interruption must not throw them away."""

    def stop(stage: str, at: int, of: int) -> None:
        if stage == "unlearn":
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, EVERYTHING, watch=stop)
    store = Store(tmp_path)
    trained = {("outputs", row.key) for row in store.list("outputs")}
    assert named(store) == ["references", "references"]
    assert trained <= needed(store)[0]


def test_the_dry_run_counts_references(done: study.Runner, tmp_path: Path) -> None:
    items = {item.row: item for item in plan(done.study, done.store)}
    assert (items["reference models"].models, items["reference models"].reused) == (12, 12)
    assert items["reference models"].seconds is not None
    assert all(item.reused == item.models for item in items.values())
    new = {item.row: item for item in plan(done.study, None)}
    assert (new["reference models"].models, new["reference models"].reused) == (12, None)
    half = run(tmp_path, EVERYTHING, until="original")
    known = {item.row: item for item in plan(half.study, half.store)}
    assert (known["reference models"].models, known["reference models"].reused) == (12, 0)
    assert known["reference models"].seconds == pytest.approx((known["originals"].seconds or 0) / 2)


def test_references_that_diverged_are_refused_before_anything_is_kept(tmp_path: Path) -> None:
    runner = run(tmp_path, EVERYTHING, "recipe.lr=1e20", until="data")
    (_, _, job), *_ = runner.evidence.trained()["references"]
    with pytest.raises(InputError, match=r"reference models: .*diverged; lower recipe.lr"):
        job.function(*job.args)
    assert not named(runner.store)


def test_without_a_backdoor_nothing_is_triggered(tmp_path: Path) -> None:
    clean = ('corruption="none"', 'forget={name="random", count=12}', 'methods=["finetune"]', 'metrics=["asr"]')
    runner = run(tmp_path, *clean)
    assert gathered(runner).triggered is None
    assert not named(runner.store)


def test_every_request_has_evidence_of_its_own(tmp_path: Path) -> None:
    """What is forgotten so far is what is taught again; controls are other ones."""
    changes = ('corruption="none"', 'forget={name="random", count=12}', 'methods=[{name="finetune", epochs=1}]', f'metrics=["rmia.auc", "tow", {LESSON}]')
    name, what = studyfiles.read("digits", [*TINY, *changes, 'requests={sets=[{name="random", count=8, draw=1}]}'])
    with Local(1) as engine:
        runners, _ = run_requests(what, name, Store(tmp_path), until="audit", engine=engine)
    first, second = (gathered(runner) for runner in runners)
    assert first.references is not None
    assert second.references is not None
    assert not torch.equal(first.references.logits, second.references.logits)
    assert (len(first.references.of("forget").ids), len(second.references.of("forget").ids)) == (12, 20)
    assert first.relearning.keys() == second.relearning.keys() == {build("metric", {"name": "relearn.steps", "steps": 4, "draws": 2, "batch": 8}).lesson.key}
    assert [item.row for item in plan(what, Store(tmp_path)) if "reference" in item.row] == ["reference models", "request 2: reference models"]


def test_dense_references_of_a_pruned_study_are_told(tmp_path: Path) -> None:
    pruned = 'prune={name="omp", sparsity=0.5, rewind_to="init", include_linear=true}'
    runner = run(tmp_path, pruned, 'methods=[{name="finetune", epochs=1}]', f'metrics=["rmia.auc", {LESSON}]')
    assert any(note.startswith("reference models are dense") for note in runner.document["notes"])
    audit = gathered(runner)
    assert audit.references is not None
    assert len(audit.relearning) == 1


# -- being taught again ----------------------------------------------------------------------------

SHORT = Lesson(0.05, 0.9, 2, 6, 2)


def test_models_are_taught_alike_and_left_alone(toy: Toy) -> None:
    before = {name: tensor.clone() for name, tensor in (toy.stack.params | toy.stack.buffers).items()}
    whole = evidence.relearn(toy.stack, toy.split.forget, SHORT, 0)
    assert same(toy.stack.params | toy.stack.buffers, before)
    assert whole.shape == (3, 2, 7)
    for k in range(3):  # as with models of its own ensemble, so with those of others
        assert torch.allclose(evidence.relearn(toy.stack.rows([k]), toy.split.forget, SHORT, 0), whole[k : k + 1])
    assert torch.equal(evidence.relearn(toy.stack, toy.split.forget, SHORT, 0), whole)


def test_the_curve_is_that_of_a_fit_looked_at_after_every_step(toy: Toy) -> None:
    """Trained anew for one step, two steps, …: the collector sees the model as the step left it."""
    fresh = toy.stack.fresh((1, 2, 3))
    images = toy.split.retain.rows(torch.arange(20))
    lesson = Lesson(0.05, 0.9, 6, 5, 2)
    found = evidence.relearn(fresh, images, lesson, 3)
    for draw in range(2):
        for steps in range(6):
            stream = fit.Shuffled(images, 6, (3, 3, 3), f"order.relearn.{draw}")
            then = fit.fit(fresh, stream, fit.cross_entropy, lr=0.05, optimizer=Sgd(0.9, 0.0), steps=steps)
            right = (then.logits(images.pixels).argmax(-1) == images.labels).double().mean(1)
            assert torch.allclose(found[:, draw, steps], right)
    assert not torch.equal(found[:, 0], found[:, 1])  # draws differ in their order alone
    assert torch.equal(found[:, 0, 0], found[:, 1, 0])


def test_batches_are_the_same_for_every_model_and_new_in_every_draw(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def spy(stack: Stack, stream: Any, loss: Any, **settings: Any) -> Stack:
        seen.append(torch.stack([stream(step).ids for step in range(2)]))
        return stack

    monkeypatch.setattr(evidence, "fit", spy)
    evidence.relearn(toy.stack, toy.split.forget, replace(SHORT, draws=3), 0)
    evidence.relearn(toy.stack.rows([1]), toy.split.forget, replace(SHORT, draws=3), 0)
    assert all(torch.equal(ids, ids[:, :1].expand_as(ids)) for ids in seen)
    assert all(torch.equal(one[:, 0], other[:, 0]) for one, other in zip(seen[:3], seen[3:], strict=True))
    assert len({str(ids[:, 0].tolist()) for ids in seen[:3]}) > 1


@pytest.mark.parametrize("at", [3, 8])
def test_an_interruption_changes_no_bit(at: int, toy: Toy, tmp_path: Path) -> None:
    whole = evidence.relearn(toy.stack, toy.split.forget, SHORT, 0)
    with pytest.raises(Interrupted):
        evidence.relearn(toy.stack, toy.split.forget, SHORT, 0, Stops(tmp_path, at))
    assert torch.equal(evidence.relearn(toy.stack, toy.split.forget, SHORT, 0, Stops(tmp_path)), whole)


def test_a_model_that_breaks_knows_nothing(toy: Toy) -> None:
    broken = toy.stack.having({name: torch.full_like(tensor, torch.nan) for name, tensor in toy.stack.params.items()})
    assert evidence.relearn(broken, toy.split.forget, SHORT, 0).tolist() == [[[0.0] * 7] * 2] * 3


def test_originals_know_the_forget_set_and_fresh_nets_need_steps(toy: Toy) -> None:
    long = Lesson(0.05, 0.9, 4, 60, 1)
    known, new = (evidence.relearn(stack, toy.split.forget, long, 0) for stack in (toy.stack, toy.stack.fresh((7, 8, 9))))
    assert bool((known[:, :, 0] > new[:, :, 0]).all())
    assert bool((new.amax(-1) == 1).all())


def test_the_lesson_is_the_metrics_own() -> None:
    metric = RelearnSteps(lr=1, momentum=0, batch=4, steps=9, draws=2, tolerance=0.2)
    assert metric.lesson == Lesson(1.0, 0.0, 4, 9, 2)
    assert metric.lesson.key == RelearnSteps(lr=1.0, momentum=0.0, batch=4, steps=9, draws=2).lesson.key
    changes: Sequence[Callable[[Lesson], Lesson]] = [
        lambda lesson, name=name: replace(lesson, **{name: getattr(lesson, name) + 1}) for name in ("lr", "momentum", "batch", "steps", "draws")
    ]  # type: ignore[misc]
    assert len({change(metric.lesson).key for change in changes} | {metric.lesson.key}) == 6


# -- from Python -----------------------------------------------------------------------------------


def test_references_and_true_labels_may_be_handed_to_the_verb(done: study.Runner) -> None:
    """The same numbers as the study found."""
    held = gathered(done)
    ensembles = {"originals": held.originals, "oracles": held.oracles, "unlearned": {"finetune": held.unlearned}, "metrics": ["rmia.auc", "ic.err"]}
    found = audit(**ensembles, references=held.references, true_labels=held.true_labels).row("finetune").results
    (row,) = [row["results"] for row in done.document["rows"] if row["method"] == "finetune"]
    key, confused = (build("metric", name).key for name in ("rmia.auc", "ic.err"))
    assert row[key]["missing"] is None
    assert found[key].value == row[key]["value"]
    assert found[confused].missing != f"not computed: {NEEDS['true_labels']}"
    without = audit(**ensembles).row("finetune").results
    assert without[key].missing == f"not computed: {NEEDS['references']}"
    assert without[confused].missing == f"not computed: {NEEDS['true_labels']}"
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    assert audit(**ensembles, split=split).row("finetune").results[confused] == found[confused]
    assert held.references is not None
    arrays = audit(**ensembles, references=held.references.logits, labels=held.originals.labels, part=held.originals.part, ids=held.originals.ids,
                   member={"references": held.references.member}).row("finetune").results  # fmt: skip
    assert arrays[key].value == found[key].value


def test_references_that_do_not_fit_are_refused(done: study.Runner) -> None:
    held = gathered(done)
    aside = held.references
    assert aside is not None
    given: dict[str, Any] = {"originals": held.originals, "oracles": held.oracles, "unlearned": {"finetune": held.unlearned}, "metrics": ["rmia.auc"]}
    order = torch.arange(len(aside.ids)).flip(0)
    for wrong, says in (
        (aside.logits, "who of them saw which image"),
        (aside.examples(order), "their ids differ"),
        (aside.examples(order[:50]), "same examples and classes"),
        (held.oracles, "also one of the oracles"),
        (held.unlearned, "also one of the finetune"),
    ):
        with pytest.raises(InputError, match=says):
            audit(**given, references=wrong)
    for labels in ([0, 1], torch.full_like(held.originals.labels, 10), held.originals.labels.double()):
        with pytest.raises(InputError, match="true_labels must be one class from 0 to 9 for each of"):
            audit(**given, true_labels=labels)
