"""Tuning: other forget sets, other models, the same answer however the work is done, and nothing seen of what is audited."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearnlab import groundwork as ground
from unlearnlab import study as studies
from unlearnlab.cli import call
from unlearnlab.engine import Job, Local
from unlearnlab.planning import needed
from unlearnlab.seeds import RANGES, model_seeds
from unlearnlab.spec import InputError, build
from unlearnlab.store import Store
from unlearnlab.study import Runner, Study
from unlearnlab.terms import Tuning, mark
from unlearnlab.trials import Seen, score
from unlearnlab.tuned import with_tuned, write_tuned
from unlearnlab.tuning import FIRST, told, tune, tuned_study

PLAN = Tuning(trials=7, sets=2, models=3)  # the search learns from the sixth on
TINY = {
    "name": "study",
    "title": "Tiny",
    "models": 2,
    "dataset": "digits",
    "partition": {"name": "stratified", "train": 120, "held_out": 50, "test": 40},
    "corruption": {"name": "symmetric_noise", "share": 0.2},
    "net": {"name": "mlp", "hidden": [12]},
    "recipe": {"name": "standard", "epochs": 5, "batch": 20, "lr": 0.1},
    "forget": {"name": "random", "count": 12, "mislabelled": 6},
    "methods": [{"name": "finetune", "epochs": 2, "batch": 20}, {"name": "salun", "epochs": 1, "batch": 20}],
    "metrics": ["ua"],
}


def tiny(**changes: Any) -> Study:
    made: Study = build("study", {**TINY, **changes})
    return made


@dataclass
class Counting:
    """An engine that carries out jobs backwards and lists them."""

    jobs: list[str]
    workers: int = 1
    device: str = "cpu"

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        for at in reversed(range(len(jobs))):
            self.jobs.append(jobs[at].label)
            yield at, jobs[at].function(*jobs[at].args)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    """The tiny study with both methods tuned."""
    store = Store(tmp_path_factory.mktemp("tuning"))
    return store, tune(tiny(), "tiny", store, ["finetune", "salun"], tuning=PLAN, engine=Local(1))


def runner(study: Study, store: Store, name: str = "tiny", until: str = "oracle") -> Runner:
    return studies.run(study, name, store, until=until)


def test_every_method_has_as_many_trials_and_the_best_is_chosen(done) -> None:
    _, found = done
    for one, own in zip(found, tiny().methods, strict=True):
        assert len(one.trials) == PLAN.trials
        assert one.trials[0].settings == {path: getattr(own, path) for path in one.searched}  # the study's own come first
        assert one.best.objective == min(trial.objective for trial in one.trials) <= one.trials[0].objective
        assert {path: getattr(one.method, path) for path in one.searched} == one.best.settings
        assert one.method.epochs == own.epochs
        assert len({tuple(trial.settings.values()) for trial in one.trials}) == PLAN.trials
        for path, bounds in one.searched.items():
            assert all(bounds.low <= trial.settings[path] <= bounds.high for trial in one.trials)
    assert found[0].origin.settings == ("methods.finetune.lr",)
    assert "7 trials by TPE on 2 other forget set(s) like 'random' (draws 1 to 2, 3 originals and 3 oracles each)" in found[0].origin.source


def test_the_objective_is_that_of_the_benchmark(done) -> None:
    _, found = done
    for trial in found[1].trials:
        for held in trial.sets:
            gaps = sum(abs(held[part]) for part in ("retain", "forget", "validation")) / 3
            assert held["objective"] == pytest.approx(abs(held["trace"] or 0) + gaps)
        assert trial.objective == pytest.approx(sum(held["objective"] for held in trial.sets) / 2)


def test_again_nothing_is_made_and_the_same_is_found(done) -> None:
    store, found = done
    engine = Counting([])
    assert tune(tiny(), "tiny", store, ["finetune", "salun"], tuning=PLAN, engine=engine) == found
    assert engine.jobs == []


def test_the_order_of_work_and_the_other_methods_change_nothing(done, tmp_path: Path) -> None:
    _, found = done
    engine = Counting([])
    assert tune(tiny(), "other", Store(tmp_path), ["salun"], tuning=PLAN, engine=engine) == found[1:]
    assert engine.jobs.count("try salun") == PLAN.trials * PLAN.sets


def test_models_and_forget_sets_are_others_than_the_audited(done) -> None:
    store, _ = done
    audited = runner(tiny(), store)
    own = set(ground.load_split(audited.setup, audited.data_key, audited.forget_key).forget.ids.tolist())
    seeds = {seed for key in (*audited.originals, *audited.oracles) for seed in store.manifest("stacks", key)["seeds"]}
    sets = []
    for draw in (1, 2):
        index = json.loads((store.root / "studies" / f"tiny.tuning-{draw}" / "index.json").read_text())
        assert index["data"] == f"data/{audited.data_key}"  # the same images, of which only others are forgotten
        sets.append(set(json.loads((store.root / index["forget"] / "ids.json").read_text())))
        stacks = [store.manifest(*key.split("/")) for role in ("original", "oracle") for key in index[f"stacks/{role}"]]
        theirs = {seed for held in stacks for seed in held["seeds"]}
        assert len(theirs) == 2 * PLAN.models
        assert not theirs & seeds
        seeds |= theirs
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & own
    assert [len(one) for one in sets] == [12, 12]


def test_trials_are_kept_by_tidy_and_no_model_is(done) -> None:
    store, _ = done
    live, _ = needed(store)
    trials = {("trials", row.key) for row in store.list("trials")}
    assert trials
    assert trials <= live
    assert not [row for row in store.list("stacks") if row.name in ("finetune", "salun")]
    assert len(trials) == PLAN.sets * (2 + 2 * PLAN.trials)  # originals and oracles, and two methods


def test_the_test_images_change_nothing(done, tmp_path: Path) -> None:
    _, found = done
    # the partition draws training and held-out images first, whatever is left for the test
    fewer = tiny(partition={"name": "stratified", "train": 120, "held_out": 50, "test": 10})
    assert tune(fewer, "fewer", Store(tmp_path), ["finetune"], tuning=PLAN)[0].trials == found[0].trials


def test_settings_that_diverge_are_not_chosen(done, tmp_path: Path) -> None:
    store, _ = done
    one = tune(tiny(), "tiny", store, ["finetune"], tuning=PLAN, wanted={"lr": (1e5, 1e9)})[0]
    assert [bool(trial.fault) for trial in one.trials] == [False, *[True] * 6]
    assert "diverged" in one.trials[1].fault
    assert one.method == tiny().methods[0]


def test_settings_over_the_budget_are_refused_and_the_method_stays_as_it_was(done) -> None:
    store, _ = done
    poor = replace(tiny(), budget=build("budget", {"name": "retraining", "fraction_of_retrain": 0.05}), tune=PLAN)
    made = tuned_study(poor, "poor", store)
    assert made.methods == poor.methods
    assert made.provenance == ()
    assert "finetune: not tuned: none of the 7 settings tried could be scored (more than" in made.notes[0]
    assert not (store.root / "studies" / "poor" / "tuned").exists()


def test_a_study_that_says_so_is_tuned_and_marked(done) -> None:
    store, found = done
    asked = replace(tiny(methods=[*TINY["methods"], {"name": "eu_k", "epochs": 1}]), tune=PLAN)
    made = tuned_study(asked, "tiny", store)
    assert made.tune is None
    assert made.methods == (*(one.method for one in found), asked.methods[2])
    assert made.notes == ("eu_k: method 'eu_k' is not tuned: all its settings are whole numbers",)
    assert made.provenance == tuple(one.origin for one in found)
    assert [mark(method, made.provenance) for method in made.methods[:2]] == ["tuned elsewhere"] * 2
    assert with_tuned(replace(asked, tune=None), store.study("tiny")) == replace(made, notes=())
    assert told(asked).startswith("tuning first: 12 models to train on 2 other forget sets, and 84 to unlearn: 7 trials for each of 2 method(s)")


@pytest.mark.parametrize(
    ("corruption", "forget"),
    [({"name": "symmetric_noise", "share": 0.2}, "mislabelled"), ({"name": "backdoor", "share": 0.1, "size": 2, "margin": 0}, "backdoor")],
)
def test_where_all_that_is_corrupted_is_forgotten_others_are_corrupted(corruption, forget: str, tmp_path: Path) -> None:
    asked, store = tiny(corruption=corruption, forget=forget), Store(tmp_path)
    one = tune(asked, forget, store, ["finetune"], tuning=Tuning(trials=1, sets=2, models=2))[0]
    assert one.trials[0].objective < float("inf")
    sets = [runner(asked, store, forget, "data")]
    ids = [set(ground.load_split(sets[0].setup, sets[0].data_key, sets[0].forget_key).forget.ids.tolist())]
    for draw in (1, 2):
        index = json.loads((store.root / "studies" / f"{forget}.tuning-{draw}" / "index.json").read_text())
        ids.append(set(json.loads((store.root / index["forget"] / "ids.json").read_text())))
    assert len(set.union(*ids)) == sum(map(len, ids)) == 3 * len(ids[0])


def test_by_score_the_scores_are_those_of_the_study(tmp_path: Path) -> None:
    asked, store = tiny(forget={"name": "by_score", "score": "confidence", "band": "high", "count": 10}), Store(tmp_path)
    tune(asked, "scored", store, ["finetune"], tuning=Tuning(trials=1, sets=1, models=2))
    audited = runner(asked, store, "scored", "forget")
    index = json.loads((store.root / "studies" / "scored.tuning-1" / "index.json").read_text())
    assert index["scores/confidence"] == f"scores/{audited.scores['confidence']}"
    own = ground.load_split(audited.setup, audited.data_key, audited.forget_key).forget.ids.tolist()
    assert not set(own) & set(json.loads((store.root / index["forget"] / "ids.json").read_text()))


def test_scores_by_hand() -> None:
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 8, 20, generator=chance, dtype=torch.float64)
    seeds = tuple(range(8))
    right = torch.tensor([10.0, 90.0, 40.0], dtype=torch.float64).expand(8, 3)
    oracles, originals = Seen(noise[0], right, seeds), Seen(noise[1] + 3, right + torch.tensor([10.0, 0.0, 0.0]), seeds)
    same = score(originals, oracles, originals, (20, 100, 50))
    assert same["trace"] == pytest.approx(1.0)
    assert [same[part] for part in ("forget", "retain", "validation")] == [0.5, 0.0, 0.0]
    assert same["objective"] == pytest.approx(1 + 0.5 / 3)
    gone = score(originals, oracles, Seen(noise[2], right, seeds), (20, 100, 50))
    assert abs(gone["trace"]) < 0.1
    faint = score(Seen(noise[1], right, seeds), oracles, originals, (20, 100, 50))  # originals and oracles are alike
    assert faint["trace"] is None
    assert faint["objective"] == pytest.approx(0.5 / 3)


def test_models_that_tune_have_seeds_of_their_own() -> None:
    assert model_seeds("oracle", 2, 3, first=FIRST) == tuple(3_000_000 + RANGES["oracle"] + FIRST + at for at in (0, 1))
    with pytest.raises(AssertionError, match="more than a role has seeds for"):
        model_seeds("original", 60_000, first=FIRST)


# ---- what is refused


def test_wrong_asks_are_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    cases = {
        "unknown method 'finetun'; did you mean 'finetune'": (tiny(), ["finetun"], PLAN),
        "it is what the others are compared with": (tiny(), ["retrain"], PLAN),
        "name one of: finetune-1, finetune-2": (tiny(methods=["finetune", {"name": "finetune", "lr": 0.1}]), ["finetune"], PLAN),
        r"a study with \[requests\] cannot be tuned": (tiny(requests={"sets": [{"name": "random", "count": 5, "draw": 1}]}), ["finetune"], PLAN),
        "tuning takes at most 49 sets of 1000 models": (tiny(), ["finetune"], Tuning(models=1001)),
        "tune on fewer sets": (tiny(), ["finetune"], Tuning(sets=4)),
    }
    for said, (asked, methods, plan) in cases.items():
        with pytest.raises(InputError, match=said):
            tune(asked, "tiny", store, methods, tuning=plan)
    assert store.list("stacks") == []
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'unlearnlab\[tune\]'"):
        tune(tiny(), "tiny", store, ["finetune"], tuning=PLAN)


def test_files_of_tuned_settings_are_checked(done, tmp_path: Path) -> None:
    _, found = done
    with pytest.raises(InputError, match="there are no tuned settings in"):
        with_tuned(tiny(), tmp_path)
    path = write_tuned(found[1], tmp_path)
    with pytest.raises(InputError, match="settings of 'salun', which this study does not list"):
        with_tuned(tiny(methods=["finetune"]), tmp_path)
    path.write_text("[[methods]]\nname = 3")
    with pytest.raises(InputError, match=r"cannot read the tuned settings in .*salun\.toml"):
        with_tuned(tiny(), tmp_path)


# ---- the command


def test_the_command_prints_and_writes_what_run_then_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import tomli_w

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps({name: value for name, value in TINY.items() if name != "name"}))
    words = ["--trials", "3", "--sets", "1", "--models", "2", "--workers", "1"]
    assert call(["tune", "tiny.toml", "finetune", "--search", "lr=0.05..0.5", *words]) == 0
    said = capsys.readouterr().out
    assert "finetune: 3 trials on 1 other forget sets, 2 originals and 2 oracles each" in said
    assert "the study's own" in said
    table = tomllib.loads((tmp_path / "store/studies/tiny/tuned/finetune.toml").read_text())
    assert set(table) == {"methods", "provenance"}
    pasted = {**TINY, "methods": [*table["methods"], TINY["methods"][1]], "provenance": table["provenance"]}
    assert call(["run", "tiny.toml", "--tuned", "--until", "unlearn", "--workers", "1"]) == 0
    held = tomllib.loads((tmp_path / "store/studies/tiny/study.toml").read_text())
    assert build("study", {**held, "name": "study"}) == build("study", pasted)
    capsys.readouterr()
    for line, error in {
        ("tune", "tiny.toml"): "say which methods to tune; this study has: original, retrain, finetune, salun",
        ("tune", "tiny.toml", "finetune", "--search", "lr"): "cannot read the search 'lr'",
        ("tune", "tiny.toml", "finetune", "--trials", "0"): "trials = 0 is out of range",
    }.items():
        assert call(line) == 2
        assert error in capsys.readouterr().err


def test_run_tunes_a_study_that_says_so_and_a_dry_run_says_what_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomli_w

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    asked = {name: value for name, value in TINY.items() if name != "name"} | {"tune": {"trials": 2, "sets": 1, "models": 2}}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(asked))
    assert call(["run", "tiny.toml", "--dry-run", "--workers", "1"]) == 0
    assert "tuning first: 4 models to train on 1 other forget sets, and 8 to unlearn" in capsys.readouterr().out
    assert call(["run", "tiny.toml", "--until", "oracle", "--workers", "1"]) == 0
    assert not (tmp_path / "store/studies/tiny.tuning-1").exists()  # nothing there needs settings of methods
    assert call(["run", "tiny.toml", "--until", "mask", "--workers", "1"]) == 0
    held = tomllib.loads((tmp_path / "store/studies/tiny/study.toml").read_text())
    assert "tune" not in held
    assert [one["what"] for one in held["provenance"]] == ["tuned", "tuned"]
    assert "2 trials by TPE" in held["provenance"][0]["source"]
