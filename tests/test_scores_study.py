"""Memorisation in a study: models are trained once, kept, shared, and only added to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from test_study import TINY
from toy import Interrupted
from unlearnlab import filing, fit, scoring, spec, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.engine import Local
from unlearnlab.outputs import Outputs
from unlearnlab.planning import needed, plan
from unlearnlab.progress import Progress
from unlearnlab.report.scores import score_words
from unlearnlab.scores.memorisation import estimate_influence, estimate_memorisation
from unlearnlab.seeds import model_seeds
from unlearnlab.spec import InputError, build
from unlearnlab.store import Store

SIXTEEN = 'scores=[{name="memorisation", models=16}]'
RUM_BY_CONFIDENCE = {"name": "rum", "refine": {"name": "by_score", "score": "confidence"}, "each": ["finetune"]}
PLAIN = ("models=2", 'methods=["finetune"]')
KINDS = ("outputs", "scores", "attribution", "probes")  # what the stage makes


def read(*changes: str) -> study.Study:
    return studyfiles.read("digits", [*TINY, *PLAIN, *changes])[1]


def run(root: Path, *changes: str, until: str = "score", workers: int = 1, watch: Callable[[str, int, int], None] | None = None) -> study.Runner:
    with Local(workers) as engine:
        return study.run(read(*changes), "digits", Store(root), until=until, engine=engine, watch=watch)


def made(root: Path) -> dict[str, int]:
    """Everything the stage has finished, and as which file."""
    folders = (folder for kind in KINDS for folder in (root / kind).glob("*") if "." not in folder.name)
    return {folder.relative_to(root).as_posix(): (folder / "manifest.json").stat().st_ino for folder in folders}


def payload(root: Path) -> dict[str, bytes]:
    return {f"{name}/{path.name}": path.read_bytes() for name in made(root) for path in (root / name).iterdir() if path.name != "manifest.json"}


def count(names: Mapping[str, Any]) -> dict[str, int]:
    return {kind: found for kind in KINDS if (found := sum(name.startswith(f"{kind}/") for name in names))}


def subset_keys(runner: study.Runner) -> list[str]:
    evidence, _ = runner.score_steps()["memorisation"]
    return [key for _, key, _ in evidence]


def positions(seen: Outputs, ids: Tensor) -> list[int]:
    return [seen.ids.tolist().index(i) for i in ids.tolist()]


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal numbers, and NaN in the same places."""
    return np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> study.Runner:
    """Scored once, undisturbed; never written to."""
    return run(tmp_path_factory.mktemp("scored"), SIXTEEN)


@pytest.fixture
def copy(done: study.Runner, tmp_path: Path) -> Path:
    return shutil.copytree(done.store.root, tmp_path / "store")


# -- what is made ----------------------------------------------------------------------------------


def test_subset_models_and_scores_are_made(done: study.Runner) -> None:
    assert count(made(done.store.root)) == {"outputs": 2, "scores": 1}  # two whole chunks of eight
    seen, train = filing.load_outputs(done.setup, subset_keys(done)), ground.load_data(done.setup, done.data_key).train
    assert seen.models == model_seeds("subset", 16, done.study.seed)
    others = {seed for role in ("original", "oracle", "retrain", "probe") for seed in model_seeds(role, 100, done.study.seed)}
    assert not set(seen.models) & others  # models that are audited are none of these
    assert seen.member.sum(1).tolist() == [84] * 16  # .7 of 120
    assert not bool(seen.member[:, ~torch.isin(seen.ids, train.ids)].any())
    scores = filing.load_scores(done.setup, done.scores["memorisation"])
    own = positions(seen, train.ids)
    expected = estimate_memorisation((seen.predicted == seen.labels)[:, own], seen.member[:, own])
    assert alike(scores.of(train.ids), expected.values)
    found = scores.rows(train.ids)
    for name in ("stderr", "n_in", "n_out"):
        assert alike(scores.beside[name][found], getattr(expected, name))
    assert bool(scores.values.isnan().any())  # of one image every model saw, which 1 in 300 is to be expected
    assert scores.values.nan_to_num(0).unique().numel() > 10
    assert "influence" not in scores.beside


def test_labels_are_those_trained_on(done: study.Runner) -> None:
    """Of a mislabelled image the wrong label is what is memorised."""
    seen, train = filing.load_outputs(done.setup, subset_keys(done)), ground.load_data(done.setup, done.data_key).train
    told = dict(zip(seen.ids.tolist(), seen.labels.tolist(), strict=True))
    assert [told[i] for i in train.ids.tolist()] == train.labels.tolist()
    assert bool(train.mislabelled.any())


def test_the_index_keeps_it_from_being_tidied(done: study.Runner) -> None:
    live, unfinished = needed(done.store)
    assert not unfinished
    assert {tuple(name.split("/")) for name in made(done.store.root)} <= live


def test_influence_needs_no_further_model(copy: Path) -> None:
    before = made(copy)
    runner = run(copy, 'scores=[{name="memorisation", models=16, influence=true}]')
    assert count(made(copy).keys() - before.keys()) == {"scores": 1}
    assert {name: made(copy)[name] for name in before} == before
    spread = torch.from_numpy(np.load(runner.store.root / "scores" / runner.scores["memorisation"] / "influence.npy"))
    assert "influence" not in filing.load_scores(runner.setup, runner.scores["memorisation"]).beside, "gigabytes are read when asked for"
    parts, seen = ground.load_data(runner.setup, runner.data_key), filing.load_outputs(runner.setup, subset_keys(runner))
    right, inside = (seen.predicted == seen.labels)[:, positions(seen, parts.test.ids)], seen.member[:, positions(seen, parts.train.ids)]
    assert spread.shape == (120, 100)  # rows and columns as the data are divided
    assert alike(spread, estimate_influence(right, inside))


def test_what_nobody_asks_for_is_not_made(tmp_path: Path) -> None:
    run(tmp_path)
    assert not made(tmp_path)
    run(tmp_path, 'methods=["datamodel_direct"]', "attribution.models=16")  # these models are not a score's
    assert count(made(tmp_path)) == {"outputs": 2, "attribution": 1}


def test_two_scores_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="a study has one score of a name, and 'memorisation' is listed twice; leave one out"):
        read('scores=["memorisation", {name="memorisation", models=16}]')


def test_the_plan_counts_them(copy: Path) -> None:
    store, row = Store(copy), "models for memorisation"
    for asked, models, reused in ((16, 16, 16), (32, 32, 16), (8, 8, 8), (12, 16, 16)):  # the last: in whole chunks
        (item,) = (item for item in plan(read(f'scores=[{{name="memorisation", models={asked}}}]'), store) if item.row == row)
        assert (item.stage, item.models, item.reused) == ("score", models, reused)


# -- resumed, grown, shared ------------------------------------------------------------------------


def test_a_larger_ensemble_trains_only_what_is_new(copy: Path, done: study.Runner, tmp_path: Path) -> None:
    before = made(copy)
    runner = run(copy, 'scores=[{name="memorisation", models=32}]')
    assert count(made(copy).keys() - before.keys()) == {"outputs": 2, "scores": 1}
    assert {name: made(copy)[name] for name in before} == before  # the very files
    assert subset_keys(runner)[:2] == subset_keys(done)
    whole = run(tmp_path / "at once", 'scores=[{name="memorisation", models=32}]')
    assert whole.scores == runner.scores
    assert payload(tmp_path / "at once").items() <= payload(copy).items()
    assert bool((filing.load_scores(runner.setup, runner.scores["memorisation"]).beside["n_in"] > 16).any())


def test_interrupted_between_chunks(tmp_path: Path, done: study.Runner) -> None:
    def stop(stage: str, finished: int, total: int) -> None:
        if (stage, finished) == ("score", 1):
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, SIXTEEN, watch=stop)
    half, told = made(tmp_path), []
    assert count(half) == {"outputs": 1}
    run(tmp_path, SIXTEEN, watch=lambda *step: told.append(step))
    assert told == [("score", 0, 1), ("score", 1, 1), ("read scores", 0, 1), ("read scores", 1, 1)]
    assert {name: made(tmp_path)[name] for name in half} == half
    assert payload(tmp_path) == payload(done.store.root)


class Stopping(Progress):
    """Saves its state at every step and breaks off in the second chunk."""

    taken = 0

    def step(self, finished: int, total: int) -> None:
        Stopping.taken += 1
        if Stopping.taken == total + total // 2:
            raise Interrupted


def test_interrupted_within_a_chunk(tmp_path: Path, done: study.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "Progress", partial(Stopping, every=0))
        with pytest.raises(Interrupted):
            run(tmp_path, SIXTEEN)
    half, resumed, load = made(tmp_path), [], fit._load_state
    assert count(half) == {"outputs": 1}
    monkeypatch.setattr(fit, "_load_state", lambda *args: resumed.append(load(*args)) or resumed[-1])
    run(tmp_path, SIXTEEN)
    assert len(resumed) == 1
    assert resumed[0] > 0
    assert {name: made(tmp_path)[name] for name in half} == half
    assert payload(tmp_path) == payload(done.store.root)
    assert not [path for kind in KINDS for path in (tmp_path / kind).glob("*.*")]  # nothing half-written stays


def test_a_second_run_makes_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, told = made(copy), []
    monkeypatch.setattr(Store, "_create", lambda *_: pytest.fail("made something again"))
    run(copy, SIXTEEN, watch=lambda *step: told.append(step))
    assert told == []
    assert made(copy) == before


@pytest.mark.slow
def test_one_worker_or_two_make_the_same_bits(tmp_path: Path, done: study.Runner) -> None:
    run(tmp_path, SIXTEEN, workers=2)
    assert payload(tmp_path) == payload(done.store.root)


def test_attributions_of_the_same_share_read_the_same_models(copy: Path) -> None:
    changes = (SIXTEEN.replace("16", "32"), 'methods=["datamodel_direct"]', "attribution.models=32")  # of 16, an image is in every one's part
    scored = run(copy, changes[0])
    before = made(copy)
    runner = run(copy, *changes, "attribution.share=0.7")
    assert [key for _, key, _ in runner.subset_jobs()] == subset_keys(scored)
    assert count(made(copy).keys() - before.keys()) == {"attribution": 1}
    assert runner.store.manifest("attribution", runner.attribution_key)["subsets"] == [f"outputs/{key}" for key in subset_keys(scored)]
    other = study.run(read(*changes), "other", Store(copy), until="data")  # attributions from one half of the images
    assert not {key for _, key, _ in other.subset_jobs()} & set(subset_keys(scored))


def test_they_depend_on_what_is_trained_and_on_nothing_else(done: study.Runner, tmp_path: Path) -> None:
    """Neither who is forgotten nor the methods matter; the recipe, the net and the labels do."""
    for changes, same in [
        (('methods=["del"]', "forget.draw=1", "models=9"), True),
        (("recipe.epochs=1",), False),
        (('net={name="mlp", hidden=[13]}',), False),
        (("corruption.share=0.1",), False),
        (("seed=1",), False),
    ]:
        runner = study.run(read(SIXTEEN, *changes), "other", Store(tmp_path), until="data")
        assert (subset_keys(runner) == subset_keys(done)) == same
        assert same or not set(subset_keys(runner)) & set(subset_keys(done))


# -- from plugins, and where training fails --------------------------------------------------------

PLUGIN = '''
"""What names a score, and what does not."""
from typing import Annotated, ClassVar
from unlearnlab.contract import Scores
from unlearnlab.spec import Setting, spec


@spec("score", "own.label")
class OwnLabel:
    """The label, as a score."""
    scale: ClassVar[str] = "proxy"
    evidence: ClassVar[str] = "labels"
    start: ClassVar[str] = "init"
    models: Annotated[int, Setting("models", ge=1)] = 1

    def probe(self, stack, parts, recipe, progress):
        return {"labels": parts.train.labels.expand(len(stack), -1)}

    def score(self, gathered, ids):
        return Scores("own.label", ids, gathered["labels"].double().mean(0))


@spec("score", "lacking")
class Lacking:
    """No score at all."""


@spec("forget", "first")
class First:
    """Has a setting called score that names none."""
    score: Annotated[float, Setting("a share")] = 0.05

    def __call__(self, train, seed):
        return train.ids[: round(self.score * len(train))]
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Known to these tests only."""
    path = tmp_path_factory.mktemp("plugin") / "own_scores.py"
    path.write_text(PLUGIN)
    spec.load_plugin(path)
    yield str(path)
    for kind, name in (("score", "own.label"), ("score", "lacking"), ("forget", "first")):
        spec._registry[kind].pop(name, None)


def test_groups_of_a_score_with_a_dot_in_its_name_are_told(tmp_path: Path, plugin: str) -> None:
    asked = read('forget={name="by_score", score="own.label", count=9}')
    with Local(1) as engine:
        runner = study.run(asked, "own", Store(tmp_path), until="forget", engine=engine, plugins=(plugin,))
    assert {name: held["count"] for name, held in runner.forget_groups().items()} == {"own.label.low": 3, "own.label.mid": 3, "own.label.high": 3}


def test_a_setting_called_score_of_another_forget_set_names_no_score(tmp_path: Path, plugin: str) -> None:
    asked = read('forget={name="first", score=0.1}')
    assert asked.scored() == {}
    with Local(1) as engine:
        runner = study.run(asked, "first", Store(tmp_path), until="data", engine=engine, plugins=(plugin,))
    assert runner.store.manifest("forget", runner.forget_key)["count"] == 12


def test_what_is_no_score_is_refused_before_anything_is_trained(plugin: str) -> None:
    with pytest.raises(InputError, match="score 'lacking' is of no known kind: give it what EnsembleScore, ProbeScore or FiledScore"):
        read('scores=["lacking"]')


def test_probed_models_that_diverged_are_named_as_such(tmp_path: Path) -> None:
    """Not as a fine-tuning that diverged, whose lr is innocent."""
    runner = study.run(read('scores=["ho_ret"]', "recipe.lr=1e6"), "high", Store(tmp_path), until="data")
    ((_, _, job),) = runner.score_steps()["ho_ret"][0]
    with pytest.raises(InputError, match=r"score 'ho_ret': training diverged for seed 400000 at step .* \(1 of 1 models\); lower recipe.lr"):
        job.function(*job.args)


def test_scores_of_a_pruned_study_are_said_to_come_from_dense_models(tmp_path: Path) -> None:
    made, filed = [], tmp_path / "scores.csv"
    filed.write_text("id,score\n" + "".join(f"{i},{i}\n" for i in range(1797)))
    for scores in ('scores=["confidence"]', f'scores=[{{name="file", path="{filed}"}}]'):
        made.append(run(tmp_path, scores, 'prune={name="omp", include_linear=true, rewind_to="init"}', until="oracle")._notes())
    assert ["scores come from dense models trained by this study's recipe, not from the like of the originals" in notes for notes in made] == [True, False]


# -- what reviewers and a newcomer tripped over ----------------------------------------------------


def test_another_score_than_the_forget_sets_must_be_listed() -> None:
    """A forgotten setting of a refiner must not train hundreds of models."""
    by_proxy = 'forget={name="by_score", score="confidence", count=12}'
    rum = 'methods=[{name="rum", refine="by_score", each=["finetune"]}]'
    with pytest.raises(
        InputError, match=r"goes by the score 'memorisation' and the forget set by 'confidence'; give refine = .*score = \"confidence\"}, or list"
    ):
        read(by_proxy, rum)
    assert list(read(by_proxy, rum.replace('"by_score"', '{name="by_score", score="confidence"}')).scored()) == ["confidence"]
    assert list(read(by_proxy, rum, 'scores=["memorisation"]').scored()) == ["memorisation", "confidence"]
    assert list(read(rum).scored()) == ["memorisation"]  # who is forgotten goes by no score
    assert list(read(by_proxy, rum.replace('"by_score"', '"by_entanglement"')).scored()) == ["confidence", "centroid_distance"]  # one model


def test_tidying_keeps_what_an_interrupted_stage_has_made(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "score" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SIXTEEN, watch=stop)
    store = Store(tmp_path)
    before = made(tmp_path)
    assert count(before) == {"outputs": 1}
    live, unfinished = needed(store)
    assert not unfinished
    assert store.tidy(live)[0] == 0
    assert made(tmp_path) == before
    runner = run(tmp_path, SIXTEEN)
    assert "underway" not in json.loads((runner.store.study("digits") / "index.json").read_text())


def test_a_filed_score_needs_no_making_before_the_forget_set_is_chosen(tmp_path: Path) -> None:
    filed = tmp_path / "scores.csv"
    filed.write_text("id,score\n" + "".join(f"{i},{i / 2000}\n" for i in range(1797)))
    asked = read(f'scores=[{{name="file", path="{filed}"}}]', 'forget={name="by_score", score="file", band="high", count=5, mid_rule="median"}')
    chosen = study.choose_forget(asked, "digits", Store(tmp_path / "store"))
    assert chosen["groups"]["file.high"]["count"] == 5
    more = replace(asked, scores=(*asked.scores, build("score", "confidence")), methods=(build("method", RUM_BY_CONFIDENCE),))
    assert study.choose_forget(more, "digits", Store(tmp_path / "store"))["ids"] == chosen["ids"]  # the refiner's score may be made later
    assert min(chosen["ids"]) > sorted(set(chosen["parts"]["train"]) - set(chosen["ids"]))[-1]
    filed.write_text(filed.read_text() + "1797,0.5\n")
    with pytest.raises(InputError, match="has scores up to image id 1797, but the release has 1797 images, with the ids 0 to 1796"):
        study.choose_forget(
            read(f'scores=[{{name="file", path="{filed}"}}]', 'forget={name="by_score", score="file", band="high", count=5}'), "d", Store(tmp_path / "s")
        )


def test_who_is_in_which_group_is_written_down_and_groups_are_tried_before_anything_is_trained(tmp_path: Path) -> None:
    rum = 'methods=[{name="rum", refine="by_class", each=["finetune"]}, {name="rum", refine={name="shuffle", groups=2}, each=["original", "finetune"]}]'
    runner = run(tmp_path, rum, until="data")
    held = json.loads((runner.store.study("digits") / "groups.json").read_text())
    assert [len(ids) for ids in held["rum-shuffle-original+finetune"].values()] == [6, 6]
    assert sorted(i for ids in held["rum-by_class-finetune"].values() for i in ids) == study.choose_forget(runner.study, "digits", runner.store)["ids"]
    wrong = rum.replace('each=["finetune"]', 'each=["finetune", "original"]')
    with pytest.raises(InputError, match="method 'rum' names 2 methods in `each`, and refiner 'by_class' makes"):
        run(tmp_path, wrong, until="data")


def test_how_often_score_models_are_right_is_told(done: study.Runner) -> None:
    scores = filing.load_scores(done.setup, done.scores["memorisation"])
    seen = scoring.seen_scores(done.setup, done.data_key, done.study.scored(), done.score_steps())
    assert seen["scores"][0]["right"] == [float(scores.beside["right_in"].nanmean()), float(scores.beside["right_out"].nanmean())]
    assert alike(scores.beside["right_in"] - scores.beside["right_out"], scores.values)
    assert any("its models are right on" in line for line in score_words(seen))
