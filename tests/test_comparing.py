"""Finished studies side by side: which are meant, what differs, and differences whose intervals are what they are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from unlearnlab import measuring, study, studyfiles
from unlearnlab.comparing import COMPARED, compare, estimate, place, pulls
from unlearnlab.engine import Local
from unlearnlab.finished import differing, members
from unlearnlab.metrics.statistics import holm
from unlearnlab.metrics.trace import Left, Trace, _deal, share_left
from unlearnlab.spec import InputError
from unlearnlab.store import Store, write_text_atomic

SETTINGS: dict[str, Any] = {
    "title": "t",
    "dataset": {"name": "digits"},
    "original": {"name": "trained"},
    "prune": None,
    "seed": 0,
    "metrics": [],
    "methods": [{"name": "finetune", "lr": 0.1}],
}


def result(key: str, values: list[float] | None, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("ci", "floor", "ceiling", "rescaled", "p", "missing"))
    return {"key": key, "value": None if values is None else sum(values) / len(values), "per_model": values, "better": "lower", **empty, **more}


def filed(store: Store, name: str, seeds: range, rows: dict[str, dict[str, list[float] | None]], **settings: Any) -> None:
    """A finished study of made-up numbers; ``rows``: method -> metric -> values."""

    def artefact(kind: str, key: str, **manifest: Any) -> str:
        store.make(kind, key, lambda folder: (folder / "x").touch(), manifest={"name": key, **manifest})
        return f"{kind}/{key}"

    roles = ("original", "oracle", *(f"unlearned/{method}" for method in rows))
    index: dict[str, Any] = {f"stacks/{role}": [artefact("stacks", f"{name}-{role}".translate(str.maketrans("./", "--")), seeds=list(seeds))] for role in roles}
    index |= {"data": artefact("data", "d"), "forget": artefact("forget", "f", ids="0" * 8)}
    verdict = {"label": "unresolved", "rule": "5", "text": "unresolved", "damaged": False}
    held = [
        {"method": method, "calibration": method in ("original", "retrain"), "verdict": verdict, "results": {key: result(key, at) for key, at in found.items()}}
        for method, found in rows.items()
    ]
    document = {"title": name, "study": {**SETTINGS, **settings}, "data": {"classes": 10}, "models": {"originals": len(seeds)}, "rows": held}
    write_text_atomic(store.study(name) / "audit.json", json.dumps(document))
    write_text_atomic(store.study(name) / "index.json", json.dumps(index))


ONE = [0.5, 0.61, 0.55, 0.7]
OTHER = [0.52, 0.66, 0.54, 0.79]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def pair(store: Store, **other: Any) -> dict[str, Any]:
    """The differences of two made-up studies."""
    filed(store, "a", range(4), {"original": {"acc.test": ONE}, "finetune": {"acc.test": ONE}})
    filed(store, "b", **{"seeds": range(4), "rows": {"original": {"acc.test": OTHER}, "finetune": {"acc.test": OTHER}}} | other)
    return compare(store, ["a", "b"]).to_json()["pairs"][0]


# -- which studies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [[0.5, float("nan"), 0.5, 0.5], [0.5, float("inf"), 0.5, 0.5]])
def test_numbers_that_are_none_are_not_compared(store: Store, odd: list[float]) -> None:
    held = pair(store, rows={"original": {"acc.test": ONE}, "finetune": {"acc.test": odd}})
    assert held["differences"]["finetune"]["acc.test"]["missing"] == "b: not finite"
    json.dumps(compare(store, ["a", "b"]).to_json(), allow_nan=False)


def test_models_without_a_number_give_no_interval(store: Store) -> None:
    filed(store, "a", range(4), {"finetune": {"acc.test": ONE}})
    filed(store, "b", range(4), {"finetune": {"acc.test": ONE}})
    path = store.study("b") / "audit.json"
    document = json.loads(path.read_text())
    document["rows"][0]["results"]["acc.test"]["per_model"][1] = None
    write_text_atomic(path, json.dumps(document))
    held = compare(store, ["a", "b"]).to_json()["pairs"][0]["differences"]["finetune"]["acc.test"]
    assert (held["lo"], held["missing"]) == (None, "no interval: 'acc.test' has no value for each model")


def test_families_and_requests_stand_for_their_studies(store: Store) -> None:
    for name in ("f.x", "f.y", "g.request-2", "g.request-10"):
        filed(store, name, range(2), {"original": {}})
    write_text_atomic(store.study("f") / "index.json", json.dumps({"variants": ["f.x", "f.y"]}))
    write_text_atomic(store.study("g") / "index.json", json.dumps({"requests": ["g.request-2", "g.request-10"]}))
    assert members(store, ["f"]) == ["f.x", "f.y"]
    assert members(store, ["g"]) == ["g.request-2", "g.request-10"]
    assert members(store, ["g.request-2", "f"]) == ["g.request-2", "f.x", "f.y"]
    assert place(store, ["f"]) == store.root / "studies" / "f"
    assert place(store, ["f.x", "f.y"]) == Path("compare-f.x-2")
    found = compare(store, ["f"])
    assert (found.family, [one["label"] for one in found.studies]) == ("f", ["x", "y"])
    assert [one["label"] for one in compare(store, ["f.x", "g.request-2"]).studies] == ["f.x", "g.request-2"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "got no study"),
        (["a"], "got 'a' alone"),
        (["a", "a.toml"], "named twice"),
        (["f", "a"], "'a' is named twice"),
        (["a", "bb"], "there is no finished study 'bb'.*did you mean 'b'.*finished there: a, b"),
        (["a", "half"], "not run to its audit; finish it first: unlearnlab run half"),
        (["a", "broken"], "broken/audit.json is damaged"),
    ],
)
def test_wrong_studies_are_told_in_one_line(store: Store, names: list[str], words: str) -> None:
    for name in ("a", "b"):
        filed(store, name, range(2), {"original": {}})
    write_text_atomic(store.study("f") / "index.json", json.dumps({"variants": ["a", "b"]}))
    write_text_atomic(store.study("half") / "index.json", "{}")
    write_text_atomic(store.study("broken") / "audit.json", "{")
    with pytest.raises(InputError, match=words) as told:
        compare(store, names)
    assert "\n" not in str(told.value)


# -- what differs ----------------------------------------------------------------------------------


def test_settings_in_which_studies_differ() -> None:
    ours = {"name": "study", "title": "x", "lr": 0.1, "same": 3, "prune": None, "forget": {"name": "random", "count": 5}}
    lists = {"methods": [{"name": "ssd", "a": 1}, {"name": "del", "lr": 0.1}], "metrics": [{"name": "acc", "part": "test"}, {"name": "acc", "part": "forget"}]}
    other = {**ours, "title": "y", "lr": 0.2, "prune": {"name": "omp", "sparsity": 0.5, "to": "init"}, "forget": {"name": "class", "label": 1}}
    less = {"methods": [{"name": "del", "lr": 0.3}], "metrics": [{"name": "acc", "part": "forget"}]}
    third = {**other, "prune": {"name": "omp", "sparsity": 0.9, "to": "init"}}
    assert differing([ours | lists, other | less, third | lists]) == {
        "lr": [0.1, 0.2, 0.2],
        "prune": ["none", "omp (to init)", "omp (to init)"],
        "prune.sparsity": ["–", 0.5, 0.9],
        "forget": ["random (count 5)", "class (label 1)", "class (label 1)"],
        "methods.ssd": ["ssd (a 1)", "–", "ssd (a 1)"],
        "methods.del.lr": [0.1, 0.3, 0.1],
        "metrics.acc.test": ["acc (part test)", "–", "acc (part test)"],
    }
    assert differing([ours, dict(ours)]) == {}


@pytest.mark.parametrize(
    ("settings", "setting", "values"),
    [
        ([{"prune": {"name": "omp", "sparsity": 0.9}}, {}, {"prune": {"name": "random", "sparsity": 0.5}}], "sparsity", [0.9, 0.0, 0.5]),
        ([{}, {"prune": {"name": "imp", "share": 0.2, "rounds": 2}}], "sparsity", [0.0, 0.36]),
        ([{"forget": {"name": "random", "count": n}} for n in (5, 9)], "forget.count", [5, 9]),
        ([{"forget": {"name": "random", "count": n}, "models": n} for n in (5, 9)], "forget.count", [5, 9]),
        ([{"seed": n} for n in (5, 9)], None, []),  # a number, but no quantity
        ([{"forget": {"name": "random", "count": n}} for n in (5, 5, 9)], None, []),  # which of the two at 5?
        ([{"prune": {"name": "own"}}, {}], None, []),
    ],
)
def test_the_setting_that_studies_go_along(store: Store, settings: list[dict[str, Any]], setting: str | None, values: list[float]) -> None:
    for at, one in enumerate(settings):
        filed(store, f"s{at}", range(2), {"original": {}}, **one)
    along = compare(store, [f"s{at}" for at in range(len(settings))]).along
    assert along == (None if setting is None else {"setting": setting, "values": values})


# -- differences of means --------------------------------------------------------------------------


def test_the_same_seeds_are_paired(store: Store) -> None:
    held = pair(store)
    found = held["differences"]["finetune"]["acc.test"]
    wanted = stats.ttest_rel(OTHER, ONE)
    assert found["value"] == pytest.approx(sum(OTHER) / 4 - sum(ONE) / 4)
    assert (found["lo"], found["hi"]) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found["p"] == pytest.approx(wanted.pvalue)
    assert found["how"] == "paired t over models"
    assert held["notes"][0] == "paired: model i of one study with model i of the other, which start from the same seed (4 models)"
    assert "oracles: different ones in each study" in held["notes"]


@pytest.mark.parametrize("seeds", [range(10, 14), range(3)])
def test_other_seeds_are_not(store: Store, seeds: range) -> None:
    theirs = OTHER[: len(seeds)]
    held = pair(store, seeds=seeds, rows={"original": {"acc.test": theirs}, "finetune": {"acc.test": theirs}})
    found = held["differences"]["finetune"]["acc.test"]
    wanted = stats.ttest_ind(theirs, ONE, equal_var=False)
    assert (found["lo"], found["hi"]) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found["p"] == pytest.approx(wanted.pvalue)
    assert held["notes"][0].startswith("not paired (Welch)")
    assert any("some models of both start from the same seeds" in note for note in held["notes"]) is (seeds.start < 4)


def test_holm_is_over_the_methods_of_a_pair(store: Store) -> None:
    draws = torch.Generator().manual_seed(0)
    rows = [{name: {"acc.test": torch.rand(6, generator=draws).tolist()} for name in ("original", "a", "b", "c")} for _ in range(2)]
    for name, held in zip("xy", rows, strict=True):
        filed(store, name, range(6), held)
    found = compare(store, ["x", "y"]).pairs[0]["differences"]
    assert [found[name]["acc.test"]["holm_p"] for name in "abc"] == holm([found[name]["acc.test"]["p"] for name in "abc"])
    assert found["original"]["acc.test"]["holm_p"] is None


def test_what_cannot_be_taken_says_why(store: Store) -> None:
    rows: dict[str, dict[str, list[float] | None]] = {
        "original": {"acc.test": ONE, "sa": None},
        "finetune": {"acc.test": [value + 0.125 for value in ONE], "sa": ONE},
        "del": {"acc.test": ONE},
    }
    found = pair(store, rows=rows)["differences"]
    same = found["original"]["acc.test"]
    assert (same["value"], same["lo"], same["hi"], same["p"]) == (0, 0, 0, 1)
    shifted = found["finetune"]["acc.test"]
    assert shifted["value"] == pytest.approx(0.125)
    assert shifted["lo"] is None or shifted["hi"] - shifted["lo"] < 1e-9
    assert found["del"]["acc.test"]["missing"] == "a: no method 'del'"
    assert found["finetune"]["sa"]["missing"] == "a: not measured"
    assert found["del"]["acc.test"]["value"] is None


def test_other_data_sets_are_not_compared(store: Store) -> None:
    held = pair(store, dataset={"name": "cifar10"})
    assert held["notes"] == ["not comparable: different data sets, digits and cifar10"]
    found = held["differences"]["finetune"]["acc.test"]
    assert (found["value"], found["missing"]) == (None, "not comparable: different data sets, digits and cifar10")


def test_rows_calibrate_first_and_lack_what_a_study_lacks(store: Store) -> None:
    filed(store, "a", range(2), {"del": {}, "original": {}})
    filed(store, "b", range(2), {"original": {}, "retrain": {}, "ssd": {}, "del": {}})
    found = compare(store, ["a", "b"]).rows
    assert [row["method"] for row in found] == ["original", "retrain", "del", "ssd"]
    assert [one is None for row in found for one in row["in"]] == [False, False, True, False, False, False, True, False]


# -- differences of traces -------------------------------------------------------------------------


def made_up(gap: float, left: float, init: torch.Tensor, at_random: torch.Generator) -> Left:
    """A study in which models share of their starts (``init``: of originals and oracles) what others from the same seeds have too."""
    shape = init.shape[1:]
    p = gap + init[0] + 0.7 * torch.randn(shape, generator=at_random, dtype=torch.float64)
    o = init[1] + 0.7 * torch.randn(shape, generator=at_random, dtype=torch.float64)
    u = left * gap + 0.6 * (p - gap) + 0.5 * torch.randn(shape, generator=at_random, dtype=torch.float64)
    held = _deal(tuple(range(len(p))), 4)
    return share_left(p, o, u, torch.arange(len(p)), held, held, held)


def covered(paired: bool) -> tuple[float, float]:
    """How often intervals cover the true difference of -.2, over 300 pairs of studies of 16 models, and how wide they are."""
    draws = torch.Generator().manual_seed(1)
    hits, widths = 0, 0.0
    for _ in range(300):
        init = torch.randn(2, 2, 16, 1, generator=draws, dtype=torch.float64).expand(-1, -1, -1, 20) * 0.5
        one, other = (made_up(1.0, left, init[0 if paired else at], draws) for at, left in enumerate((0.5, 0.3)))
        found = estimate(other.value - one.value, pulls(one, other, paired, paired), paired)
        assert found is not None
        hits, widths = hits + (found[0] <= -0.2 <= found[1]), widths + found[1] - found[0]
    return hits / 300, widths / 300


@pytest.mark.slow
def test_intervals_of_trace_differences_cover() -> None:
    (paired, narrow), (apart, wide) = covered(True), covered(False)
    assert 0.92 <= paired <= 0.99
    assert 0.92 <= apart <= 0.99
    assert narrow < 0.9 * wide


TINY = (
    "models=16",
    "seed=0",
    'net={name="mlp", hidden=[12]}',
    "recipe.epochs=4",
    "recipe.rewind=1",
    "partition.train=120",
    "partition.held_out=50",
    "partition.test=50",
    'forget={name="class", label=1}',
    'methods=[{name="finetune", epochs=1}]',
    'metrics=["trace", {name="acc", part="test"}]',
)


def run(store: Store, name: str, *changes: str) -> study.Runner:
    _, what = studyfiles.read("digits", [*TINY, *changes])
    with Local(1) as engine:
        return study.run(what, name, store, engine=engine, until="audit")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, study.Runner, study.Runner]:
    store = Store(tmp_path_factory.mktemp("compared"))
    return store, run(store, "d.dense"), run(store, "d.sparse", 'prune={name="omp", sparsity=0.5, include_linear=true}')


def test_a_dense_and_a_pruned_study(done: tuple[Store, study.Runner, study.Runner]) -> None:
    store, *runners = done
    found = compare(store, ["d.dense", "d.sparse"])
    json.dumps(found.to_json(), allow_nan=False)
    assert [one["setting"] for one in found.differs] == ["prune"]
    assert found.along == {"setting": "sparsity", "values": [0.0, 0.5]}
    audits = [measuring.gather(one.setup, one.data_key, one.forget_key, one.ensembles("finetune")) for one in runners]
    one, other = (Trace().left(audit) for audit in audits)
    assert isinstance(one, Left)
    assert isinstance(other, Left)
    held = found.pairs[0]["differences"]
    got = held["finetune"]["trace"]
    assert got["value"] == pytest.approx(other.value - one.value)
    se = sum(float((b - a).var()) / 16 for a, b in zip(one.pulls, other.pulls, strict=True)) ** 0.5
    assert (got["hi"] - got["lo"]) / 2 == pytest.approx(se * stats.t.ppf(0.975, 15))
    assert held["original"]["trace"]["missing"] == "no interval: an original's trace is 1 by definition"
    assert set(held["finetune"]) == {"trace", "acc.test"} <= set(COMPARED)
    assert found.pairs[0]["notes"][1:] == [
        "originals: different ones in each study",
        "oracles: different ones in each study",
        "each trace rests on oracles of its own, paired by their seeds",
    ]


def test_a_study_does_not_differ_from_itself(done: tuple[Store, study.Runner, study.Runner], tmp_path: Path) -> None:
    store = Store(shutil.copytree(done[0].root, tmp_path / "store"))
    shutil.copytree(store.root / "studies" / "d.dense", store.root / "studies" / "again")
    found = compare(store, ["d.dense", "again"])
    assert found.differs == []
    assert {one["value"] for held in found.pairs[0]["differences"].values() for one in held.values()} == {0}
    assert found.pairs[0]["differences"]["finetune"]["trace"]["p"] == 1
    assert "oracles: the same models in both studies" in found.pairs[0]["notes"]


def test_without_the_logits_there_is_a_difference_and_no_interval(done: tuple[Store, study.Runner, study.Runner], tmp_path: Path) -> None:
    store = Store(shutil.copytree(done[0].root, tmp_path / "store"))
    index = json.loads((store.root / "studies" / "d.sparse" / "index.json").read_text())
    gone = index["outputs/unlearned/finetune"][0]
    shutil.rmtree(store.root / gone)
    held = compare(store, ["d.dense", "d.sparse"]).pairs[0]["differences"]["finetune"]
    assert held["trace"]["value"] is not None
    assert held["trace"]["lo"] is None
    assert held["trace"]["missing"] == f"no interval: {gone} is no longer in the store; run it again: unlearnlab run d.sparse"
    assert held["acc.test"]["lo"] is not None


def test_logits_of_another_audit_are_noticed(done: tuple[Store, study.Runner, study.Runner], tmp_path: Path) -> None:
    store = Store(shutil.copytree(done[0].root, tmp_path / "store"))
    path = store.root / "studies" / "d.sparse" / "index.json"
    index = json.loads(path.read_text())
    write_text_atomic(path, json.dumps(index | {"outputs/unlearned/finetune": index["outputs/unlearned/retrain"]}))
    assert "are not those of its audit" in compare(store, ["d.dense", "d.sparse"]).pairs[0]["differences"]["finetune"]["trace"]["missing"]
