"""A budget: what a method may take is known beforehand, who needs more is stopped at the same point everywhere, and the report says so."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from test_study import TINY, made, payload
from unlearnlab import artefacts as make
from unlearnlab import groundwork as ground
from unlearnlab import report, study, studyfiles
from unlearnlab.chain import run_requests
from unlearnlab.engine import Local
from unlearnlab.planning import needed, plan
from unlearnlab.progress import OverBudget, Progress
from unlearnlab.spec import InputError, load_plugin
from unlearnlab.store import Store

# Of the tiny study, a model: retraining takes 2 epochs of 108 images, so 3·2·108.
RETRAIN, FINETUNE, DEL, SALUN = 648, 3 * 108, 3 * (108 + 12), 3 * (120 + 12)  # the last two look for their mask on the 12 to forget
FIRST = 'metrics=[{name="acc", part="test"}]'


def budget(fraction: float, over: str = "stop") -> str:
    return f'budget={{fraction_of_retrain={fraction}, over="{over}"}}'


def run(root: Path, *changes: str, until: str = "audit", workers: int = 1) -> study.Runner:
    name, what = studyfiles.read("digits", [*TINY, FIRST, *changes])
    with Local(workers) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine)


def shown(document: dict[str, Any], width: int = 200) -> str:
    text = io.StringIO()
    report.print_table(document, Console(file=text, width=width))
    return text.getvalue()


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> Path:
    """The store of a run without a budget; never written to."""
    root = tmp_path_factory.mktemp("free")
    run(root)
    return root


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, study.Runner]:
    """A run that stopped salun one example pass before its end; never written to."""
    root = tmp_path_factory.mktemp("stopped")
    return root, run(root, budget(0.611), until="report")


@pytest.fixture
def copy(free: Path, tmp_path: Path) -> Path:
    return shutil.copytree(free, tmp_path / "store")


@pytest.fixture
def trained(free: Path, tmp_path: Path) -> Path:
    """A store with originals and oracles, and nothing unlearned."""
    root = shutil.copytree(free, tmp_path / "trained")
    runner = run(root, until="oracle")
    keep = {runner.data_key, runner.forget_key, *runner.originals, *runner.oracles}
    Store(root).tidy({tuple(name.split("/")) for name in made(root) if name.split("/")[1] in keep})  # type: ignore[misc]
    shutil.rmtree(root / "studies")
    return root


# ---- counting


def test_a_limit_may_be_reached_but_not_passed() -> None:
    progress = Progress(limit=10)
    progress.seen(2, 4)
    assert progress.example_passes == 10
    for more in ((1, 0), (0, 1)):
        with pytest.raises(OverBudget, match="more than 10 example passes are needed; 10 are done"):
            progress.seen(*more)
    assert (progress.forward, progress.backward) == (2, 4)  # what was not done is not counted
    with pytest.raises(OverBudget):  # a state saved by a run that had no limit
        Progress(limit=10).resume(3, 4, 1.0)
    assert not issubclass(OverBudget, InputError)


@pytest.mark.parametrize(
    "changes",
    [
        ["recipe.batch=7"],
        ['recipe.class_weights="inverse"', "recipe.label_smoothing=0.1"],
        ["recipe.sharpness=0.05"],
        ['recipe.augment=["flip"]', "recipe.epochs=3"],
        ["recipe.rewind=1", 'prune={name="omp", sparsity=0.5, include_linear=true}', 'mask_from="retain"'],
    ],
    ids=["short last batch", "weighted", "sharpness", "augmented", "pruned"],
)
def test_retraining_takes_what_was_foretold(tmp_path, changes) -> None:
    runner = run(tmp_path, *changes, "methods=[]", budget(0.05), until="unlearn")
    counted = runner.store.manifest("stacks", runner.unlearned["retrain"][0])["example_passes"]
    retained = len(ground.load_split(runner.setup, runner.data_key, runner.forget_key).retain)
    assert make.retraining_passes(runner.study.recipe, retained) == counted == runner.allowed[0]


def test_localisation_and_fisher_passes_count(tmp_path) -> None:
    methods = 'methods=["ssd", "fisher_forgetting", "influence_unlearning", {name="del", epochs=1}, {name="salun", epochs=1}]'
    spent = run(tmp_path, methods, budget(0.5, "mark"), until="unlearn").spent
    fisher, influence = 108 * (1 + 2 * 10), 3 * 120 + 3 * 108  # a backward for each class; gradients of all, then of each retained image
    assert spent == {"ssd": 3 * 120, "fisher_forgetting": fisher, "influence_unlearning": influence, "del": DEL, "salun": SALUN}


def test_the_limit_is_the_fraction_as_written(tmp_path) -> None:
    """35 % of 11340 is 3969, though as floats it is 3968.999…"""
    runner = run(tmp_path, "recipe.epochs=35", budget(0.35), until="data")
    assert runner.allowed == (11340, 3969)
    assert int(0.35 * 11340) == 3968


def test_a_recipe_of_ones_own_is_refused_before_anything_is_trained(tmp_path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from unlearnlab.spec import spec\nfrom unlearnlab.train import Recipe\n\n\n@spec('recipe', 'mine')\nclass Mine(Recipe):\n"
        "    def __call__(self, stack, images, progress=None, **more):\n        return stack\n"
    )
    load_plugin(str(plugin))
    name, what = studyfiles.read("digits", [*TINY, 'recipe="mine"', budget(0.05)])
    with pytest.raises(InputError, match="recipe 'mine' does not tell beforehand"):
        study.run(what, name, Store(tmp_path / "store"), plugins=[str(plugin)])
    assert not (tmp_path / "store" / "stacks").exists()


# ---- stopping


def test_just_within_and_just_over(trained, stopped) -> None:
    root, over = stopped
    within = run(trained, budget(0.6112))
    assert (over.allowed, within.allowed) == ((RETRAIN, SALUN - 1), (RETRAIN, SALUN))
    assert over.document["budget"] == {
        "fraction": 0.611,
        "over": "stop",
        "limit": SALUN - 1,
        "retrain": RETRAIN,
        "rows": {
            "finetune": {"passes": FINETUNE, "share": FINETUNE / RETRAIN, "within": True, "stopped": False},
            "salun": {"passes": None, "share": None, "within": False, "stopped": True},
            "del": {"passes": DEL, "share": DEL / RETRAIN, "within": True, "stopped": False},
        },
    }
    assert within.document["budget"]["rows"]["salun"] == {"passes": SALUN, "share": SALUN / RETRAIN, "within": True, "stopped": False}
    assert [row["method"] for row in over.document["rows"]] == ["original", "retrain", "finetune", "del"]
    assert [row["method"] for row in within.document["rows"]] == ["original", "retrain", "finetune", "salun", "del"]
    assert not list(root.glob("*/*.*"))  # no lock, no resumable state, nothing half-written


def test_a_budget_changes_no_bit(free, trained) -> None:
    """Neither keys nor models know of it."""
    run(trained, budget(0.7))
    assert payload(trained) == payload(free)


def test_what_stays_of_a_stopped_method_is_a_note(stopped, capsys) -> None:
    root, _ = stopped
    (entry,) = Store(root).list("stopped")
    assert entry.name == "salun"
    manifest = Store(root).manifest("stopped", entry.key)
    assert (manifest["stopped"], manifest["limit"], manifest["files"]) == (True, SALUN - 1, {})
    assert Store(root).get(*manifest["unlearned"].split("/")) is None
    index = json.loads((root / "studies" / "digits" / "index.json").read_text())
    assert index["stopped/salun"] == [f"stopped/{entry.key}"]
    assert not any(name.endswith("unlearned/salun") for name in index)
    live, _ = needed(Store(root))
    assert ("stopped", entry.key) in live
    assert capsys.readouterr().err == ""


def test_a_stopped_method_is_not_tried_again(stopped, tmp_path, monkeypatch) -> None:
    root = shutil.copytree(stopped[0], tmp_path / "store")
    live, _ = needed(Store(root))
    Store(root).tidy(live)
    before = made(root)
    for name in ("make_unlearned", "make_answered"):
        monkeypatch.setattr(make, name, lambda *_: pytest.fail("did it again"))
    monkeypatch.setattr(Store, "_create", lambda *_: pytest.fail("made something again"))
    again = run(root, budget(0.611))
    assert made(root) == before
    assert again.document["budget"] == stopped[1].document["budget"]


def test_planning_knows_what_was_stopped(stopped) -> None:
    root, runner = stopped
    items = {item.row: item for item in plan(runner.study, Store(root))}
    assert items["salun"].to_train == 0
    assert {item.row for item in plan(replace(runner.study, budget=None), Store(root)) if item.to_train} == {"salun"}


def test_a_larger_budget_lets_it_go_on_and_a_smaller_one_stops_more(stopped, tmp_path) -> None:
    root = shutil.copytree(stopped[0], tmp_path / "store")
    assert list(run(root, budget(0.7)).spent.values()) == [FINETUNE, SALUN, DEL]
    less = run(root, budget(0.51))
    assert [row["method"] for row in less.document["rows"]] == ["original", "retrain", "finetune"]


def test_models_made_earlier_are_judged_by_what_they_took(copy, stopped) -> None:
    before = made(copy)
    runner = run(copy, budget(0.611))
    assert {name: made(copy)[name] for name in before} == before
    assert not Store(copy).list("stopped")
    assert runner.document["budget"]["rows"]["salun"] == {"passes": SALUN, "share": SALUN / RETRAIN, "within": False, "stopped": False}
    assert runner.document["rows"] == stopped[1].document["rows"]  # what is audited is the same as where it was stopped
    assert "salun: left out: takes 61 % of retraining's example passes" in shown(runner.document)
    live, _ = needed(Store(copy))
    assert {("stacks", key.partition("/")[2]) for key in runner.refused["salun"]} <= live


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # two processes take seconds to start
def test_any_number_of_workers_and_of_models(tmp_path, workers) -> None:
    """Nine models are two chunks, of eight and of one: stacked or alone, passes are counted per model."""
    few = 'methods=[{name="finetune", epochs=1}, {name="salun", epochs=1}]'
    runner = run(tmp_path, "models=9", few, budget(0.611), until="unlearn", workers=workers)
    assert runner.spent == {"finetune": FINETUNE, "salun": None}
    names = [made.partition("/") for made in runner.refused["salun"]]
    assert [kind for kind, _, _ in names] == ["stopped", "stopped"]
    assert [len(Store(tmp_path).manifest("stopped", key)["seeds"]) for _, _, key in names] == [8, 1]
    assert not list(tmp_path.glob("*/*.*"))


def test_a_row_of_which_one_chunk_is_over_is_over(tmp_path, monkeypatch) -> None:
    """Passes may differ between chunks, as where a method goes on until it is done."""
    counting = Progress.seen
    monkeypatch.setattr(Progress, "seen", lambda self, forward=0, backward=0: counting(self, forward, backward) if self.limit != SALUN - 1 else None)
    few = ["models=9", 'methods=[{name="salun", epochs=1}]']
    runner = run(tmp_path, *few, budget(0.611), until="mask")
    (first, _) = runner.sources("salun", runner.study.rows()["salun"], runner.originals, ())
    table = studyfiles.read("digits", [*TINY, *few])[1].methods[0]
    make.make_unlearned(runner.setup, runner.data_key, runner.forget_key, make.to_dict(table), first, SALUN - 1)  # counted nothing
    monkeypatch.undo()
    runner = run(tmp_path, *few, budget(0.611))
    assert [name.partition("/")[0] for name in runner.refused["salun"]] == ["stacks", "stopped"]
    assert runner.document["budget"]["rows"]["salun"]["within"] is False
    assert [row["method"] for row in runner.document["rows"]] == ["original", "retrain"]


def test_it_stops_at_the_same_point_after_an_interruption(trained, tmp_path, monkeypatch) -> None:
    ends: list[Progress] = []
    resumed: list[int] = []

    class Watched(Progress):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, every=0.0)
            if self.limit is not None:
                ends.append(self)

        def resume(self, forward: int, backward: int, seconds: float) -> None:
            super().resume(forward, backward, seconds)
            resumed.append(self.example_passes)

    few = ['methods=[{name="salun", epochs=1, batch=10}]', budget(0.611)]
    monkeypatch.setattr(make, "Progress", Watched)
    whole = shutil.copytree(trained, tmp_path / "whole")
    run(whole, *few, until="unlearn")
    step, (uninterrupted,) = Progress.step, ends
    ends.clear()

    def interrupted(self: Progress, done: int, total: int) -> None:
        step(self, done, total)
        if self.limit is not None and done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(trained, *few, until="unlearn")
    assert list(trained.glob("stacks/*.partial/fit-1.safetensors"))
    monkeypatch.setattr(Progress, "step", step)
    run(trained, *few, until="unlearn")
    assert resumed == [3 * 12 + 4 * 3 * 10]  # the state of the fourth step
    first, second = ends
    assert first.example_passes == 3 * 12 + 5 * 3 * 10
    assert second.example_passes == uninterrupted.example_passes == SALUN - 3 * 10
    assert [row.key for row in Store(trained).list("stopped")] == [row.key for row in Store(whole).list("stopped")] != []
    assert not list(trained.glob("stacks/*.partial"))


def test_a_state_that_is_over_already_is_stopped_too(trained, monkeypatch) -> None:
    """Begun without a budget, and interrupted when all was done but the saving."""
    few = 'methods=[{name="salun", epochs=1}]'
    monkeypatch.setattr(make, "Progress", partial(Progress, every=0.0))
    monkeypatch.setattr(make, "_change", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(trained, 'methods=["salun"]', few, until="unlearn")
    monkeypatch.undo()
    runner = run(trained, few, budget(0.611), until="unlearn")
    assert runner.spent == {"salun": None}
    assert not list(trained.glob("stacks/*.partial"))


def test_only_calibration_rows_are_left_where_all_are_stopped(trained) -> None:
    runner = run(trained, budget(0.05), until="report")
    assert [row["method"] for row in runner.document["rows"]] == ["original", "retrain"]  # which no budget stops
    assert all(row["stopped"] for row in runner.document["budget"]["rows"].values())
    page = (trained / "studies" / "digits" / "report.html").read_text()
    assert "There is no method to judge, only calibration rows." in page
    assert page.count("stopped at 5 % of retraining&#39;s example passes (needs more)") == 3


def test_what_no_budget_counts_is_said(tmp_path) -> None:
    methods = 'methods=[{name="amnesiac", variant="subtract", epochs=1}, {name="amnesiac", epochs=1}]'
    notes = run(tmp_path, methods, budget(2.0)).document["notes"]
    told = [note for note in notes if "does not count" in note]
    assert told == ["amnesiac-1: its budget does not count repeating the original training, which stands for a history that nobody stored"]


def test_a_row_that_gives_answers_is_stopped_alike(tmp_path) -> None:
    methods = 'methods=[{name="sisa", shards=2, slices=1}, "certified_removal", "datamodel_direct"]'
    runner = run(tmp_path, methods, "attribution.models=40", budget(0.1))
    held = runner.document["budget"]["rows"]
    assert {name: row["stopped"] for name, row in held.items()} == {"sisa": True, "certified_removal": True, "datamodel_direct": False}
    assert held["datamodel_direct"]["passes"] == 0
    assert [row["method"] for row in runner.document["rows"]] == ["original", "retrain", "datamodel_direct"]
    assert sorted(row.name for row in Store(tmp_path).list("stopped")) == ["certified_removal", "sisa"]
    assert not list(tmp_path.glob("outputs/*.*"))
    notes = "\n".join(runner.document["notes"])
    assert "datamodel_direct: what it took to make the attributions that it reads is not counted in its budget" in notes
    assert "sisa: its budget counts what a deletion takes, not the training of the models that it deletes from" in notes
    before = made(tmp_path)
    run(tmp_path, methods, "attribution.models=40", budget(0.1))
    assert made(tmp_path) == before


# ---- marking


def test_marking_audits_everything(copy, stopped) -> None:
    before = made(copy)
    runner = run(copy, budget(0.611, "mark"))
    assert made(copy) == before
    held = runner.document["budget"]
    assert (held["over"], held["rows"]["salun"]) == ("mark", {"passes": SALUN, "share": SALUN / RETRAIN, "within": False, "stopped": False})
    assert [row["method"] for row in runner.document["rows"]] == ["original", "retrain", "finetune", "salun", "del"]
    text = shown(runner.document)
    assert re.search(r"salun .*61 % over", text)
    assert "left out" not in text
    noted = run(shutil.copytree(stopped[0], copy.parent / "other"), budget(0.611, "mark"))  # where it was stopped before, it now goes to its end
    assert noted.document["budget"] == held


# ---- the report


def test_the_report_says_who_was_within(stopped) -> None:
    root, runner = stopped
    text, page = shown(runner.document), (root / "studies" / "digits" / "report.html").read_text()
    assert re.search(r"finetune .*50 % within", text)
    assert re.search(r"del .*56 % within", text)
    line = "salun: stopped at 61.1 % of retraining's example passes (needs more)"
    first = "budget: 61.1 % of retraining's example passes, 395 of 648 a model (forward 1, backward 2); what takes more is left out"
    for words in (line, first):
        assert words in text
        assert words.replace("'", "&#39;") in page
    assert re.search(r"<td[^>]*>50 % within</td>", page)
    headline = (root / "studies" / "digits" / "tables" / "headline.csv").read_text().splitlines()
    assert dict(zip(headline[0].split(","), headline[3].split(","), strict=False))["budget.share"] == "0.5"
    report.write_report(json.loads((root / "studies" / "digits" / "audit.json").read_text()), root.parent / "again")
    assert line.replace("'", "&#39;") in (root.parent / "again" / "report.html").read_text()


def test_a_study_without_a_budget_shows_none(free) -> None:
    document = json.loads((free / "studies" / "digits" / "audit.json").read_text())
    assert document["budget"] is None
    assert "within" not in shown(document)
    del document["budget"]  # of an audit stored before there were budgets
    assert "budget" not in shown(document)


# ---- requests


@pytest.fixture(scope="module")
def chained(tmp_path_factory) -> list[study.Runner]:
    methods = 'methods=[{name="finetune", epochs=1}, {name="salun", epochs=1}, {name="sisa", shards=2, slices=1}]'
    sets = 'requests={sets=[{name="random", count=6, draw=1}]}'
    name, what = studyfiles.read("digits", [*TINY, FIRST, methods, sets, budget(0.6)])
    with Local(1) as engine:
        return run_requests(what, name, Store(tmp_path_factory.mktemp("chain")), until="report", engine=engine)[0]


def test_each_request_has_a_budget_of_its_own(chained) -> None:
    assert [runner.allowed for runner in chained] == [(648, 388), (612, 367)]  # of retraining on what is left


def test_a_row_stopped_at_a_request_is_left_out_of_later_ones(chained) -> None:
    first, second = chained
    assert first.document["budget"]["rows"]["salun"]["stopped"]
    held = second.document["budget"]["rows"]
    assert held["salun"] == {"passes": None, "share": None, "within": False, "stopped": True, "request": 1}  # 3·(108 + 6) would have been within
    assert held["finetune"]["within"]
    assert "salun" not in second.unlearned
    assert "salun" not in second.masks
    page = (second.store.root / "studies" / second.name / "report.html").read_text()
    assert "salun: left out: it was over the budget at request 1, so there are no models to go on from" in page
    drift = (second.store.root / "studies" / "digits" / "drift.csv").read_text()
    assert "finetune" in drift
    assert "salun" not in drift


def test_what_answers_is_asked_anew_at_every_request(chained) -> None:
    for runner in chained:
        assert runner.document["budget"]["rows"]["sisa"] == {"passes": None, "share": None, "within": False, "stopped": True}
        assert [name.partition("/")[0] for name in runner.refused["sisa"]] == ["stopped"]
