"""Who is forgotten by a score: low, mid and high, their mix, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import same
from unlearnlab import filing, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.contract import Context, Scores
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.engine import Local
from unlearnlab.forgetsets import ByScore, ScoredForgetSet
from unlearnlab.methods.original import Original
from unlearnlab.methods.rum import Rum
from unlearnlab.refine import ByScore as Refined
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build, legacy, to_dict
from unlearnlab.store import Store

NAN, INF = math.nan, math.inf


def images(count: int, ids: Tensor | None = None) -> Images:
    release = Digits()().rows(torch.arange(count))
    return release if ids is None else Images(release.pixels, release.labels, ids, 10)


def scored(values: Any, ids: Any = None, scale: Any = "memorisation") -> tuple[Images, Scores]:
    held = torch.as_tensor(values, dtype=torch.float64)
    where = torch.arange(len(held)) if ids is None else torch.as_tensor(ids)
    return images(len(held), where), Scores("memorisation" if scale == "memorisation" else "confidence", where, held, scale)


def chosen(train: Images, scores: Scores, seed: int = 0, **settings: Any) -> dict[str, list[int]]:
    return {name: ids.tolist() for name, ids in ByScore(**settings).groups(train, seed, scores).items()}


def naive(values: list[float], ids: list[int], name: str, count: int, centre: float = 0.5) -> set[int]:
    """The images one by one, by the words of the specification."""
    known = sorted((s, i) for s, i in zip(values, ids, strict=True) if not math.isnan(s))
    if name == "mid":
        known = sorted(known, key=lambda one: (abs(one[0] - centre), *one))
    return {i for _, i in (known[-count:] if name == "high" else known[:count])}


def test_by_hand() -> None:
    train, scores = scored([0.9, 0.1, 0.45, -0.2, 0.52, 1.0, 0.0, 0.8, 0.3])
    assert chosen(train, scores, count=6) == {"low": [3, 6], "mid": [2, 4], "high": [0, 5]}
    assert chosen(train, scores, count=8) == {"low": [1, 3, 6, 8], "mid": [2, 4], "high": [0, 5]}  # 8 // 3 = 2, and the rest low
    assert chosen(train, scores, count=3, band="mid") == {"mid": [2, 4, 8]}
    assert chosen(train, scores, count=2, band="high") == {"high": [0, 5]}
    assert chosen(train, scores, count=2, band="low", low="nearest_zero") == {"low": [1, 6]}  # -0.2 is noise
    assert chosen(train, scores, count=3, band="low", low="nearest_zero") == {"low": [1, 3, 6]}


@pytest.mark.parametrize("count", [1, 5, 13])
@pytest.mark.parametrize("band", ["low", "mid", "high"])
def test_vectorised_is_the_plain_loop_and_the_order_in_the_file_means_nothing(band: str, count: int) -> None:
    chance = generator(3, "test")
    ids = torch.randperm(500, generator=chance)[:60]
    values = (torch.rand(60, generator=chance, dtype=torch.float64) * 8).round() / 8  # many ties
    values[torch.randperm(60, generator=chance)[:7]] = NAN
    train, scores = scored(values, ids)
    found = chosen(train, scores, count=count, band=band)[band]
    assert set(found) == naive(values.tolist(), ids.tolist(), band, count)
    assert found == sorted(found)
    turned, again = torch.randperm(60, generator=chance), torch.randperm(60, generator=chance)
    assert chosen(train.rows(turned), Scores("memorisation", ids[again], values[again], "memorisation"), count=count, band=band, seed=7)[band] == found


def test_ties_go_by_id_and_equal_scores_still_make_disjoint_groups() -> None:
    train, scores = scored([0.5] * 12, ids=[40, 7, 3, 90, 12, 5, 60, 61, 8, 1, 2, 30])
    assert chosen(train, scores, count=4, band="low") == {"low": [1, 2, 3, 5]}
    assert chosen(train, scores, count=2, band="high") == {"high": [61, 90]}
    zeros, mixed = scored([0.0, -0.0, 0.0, -0.0])
    assert chosen(zeros, mixed, count=2, band="low") == {"low": [0, 1]}  # -0.0 is 0.0


def test_the_mix_is_the_union_of_the_three_groups() -> None:
    values = torch.rand(6000, generator=generator(1, "test"), dtype=torch.float64)
    ids = torch.arange(6000)
    plain = Images(torch.zeros(6000, 1, 1, 1), torch.zeros(6000, dtype=torch.int64), ids, 2)
    scores = Scores("memorisation", ids, values, "memorisation")
    mix = chosen(plain, scores, count=3000)
    assert [len(held) for held in mix.values()] == [1000, 1000, 1000]
    assert mix == {name: chosen(plain, scores, count=1000, band=name)[name] for name in ("low", "mid", "high")}
    assert len({i for held in mix.values() for i in held}) == 3000
    assert [len(held) for held in chosen(plain, scores, count=2999).values()] == [1001, 999, 999]


def test_mid_is_nearest_to_a_half_for_memorisation_and_to_the_median_for_proxies() -> None:
    values = [0.0, 0.125, 0.2, 0.375, 0.5, 16.0, 2.0, 0.25]
    assert chosen(*scored(values), count=1, band="mid") == {"mid": [4]}
    proxy = scored(values, scale="proxy")
    assert chosen(*proxy, count=1, band="mid", score="confidence") == {"mid": [7]}  # the median is .3125: .25 and .375 are as far, and .25 < .375
    assert chosen(*proxy, count=2, band="mid", score="confidence") == {"mid": [3, 7]}
    assert chosen(*scored(values), count=2, band="mid", mid_rule="median") == {"mid": [3, 7]}
    assert chosen(*scored(values[:7], scale="proxy"), count=1, band="mid", score="confidence") == {"mid": [3]}  # an odd number: the middle one
    assert chosen(*proxy, count=2, band="mid", score="confidence", mid_rule="mid_range") == {"mid": [4, 6]}  # nearest to 8: 2, then .5


def test_infinite_scores_do_not_move_the_median() -> None:
    some = [0.125, 0.25, 0.5, 0.625]
    for far, centre in (([INF], 0.5), ([-INF], 0.25), ([INF] * 4, 0.625), ([-INF] * 4, 0.125), ([INF, -INF], 0.375), ([INF] * 3, 0.625)):
        found = chosen(*scored([*far, *some], scale="proxy"), count=2, band="mid", score="confidence")["mid"]
        assert set(found) == naive([*far, *some], list(range(len(far) + 4)), "mid", 2, centre), far
    most = [INF, INF, INF, 0.1, 0.2]  # more than half: the median itself is infinite
    assert chosen(*scored(most, scale="proxy"), count=1, band="mid", score="confidence") == {"mid": [0]}


def test_the_middle_of_the_range_repeats_the_published_fault_where_asked() -> None:
    values = [0.1, 0.2, 0.3, INF, 0.4, 0.5, 0.6]
    train, scores = scored(values, scale="proxy")
    fault: dict[str, Any] = {"score": "confidence", "mid_rule": "mid_range"}
    assert chosen(train, scores, count=2, band="mid", **fault)["mid"] == chosen(train, scores, count=2, band="high", **fault)["high"] == [3, 6]
    with pytest.raises(InputError, match=r"groups of 2 \+ 2 \+ 2 images mid and high share 2, but they must be disjoint"):
        chosen(train, scores, count=6, **fault)
    assert legacy(ByScore(**fault)) == ["mid_rule = mid_range"]
    assert not legacy(ByScore(mid_rule="median"))
    with pytest.raises(InputError, match=r"reach from -inf to inf, which has no middle; set mid_rule = 'median'"):
        chosen(*scored([-INF, 0.0, 1.0, INF], scale="proxy"), count=1, band="mid", **fault)


def test_images_without_a_score_are_chosen_only_where_asked() -> None:
    train, scores = scored([NAN, 0.9, NAN, 0.1, 0.5, NAN], ids=[5, 4, 3, 2, 1, 0])
    assert chosen(train, scores, count=3) == {"low": [2], "mid": [1], "high": [4]}
    assert chosen(train, scores, count=2, band="unscored") == {"unscored": [0, 3]}
    with pytest.raises(InputError, match=r"asks for 4 images \(band = 'mix'\), but there are 3 with a score 'memorisation', and 3 without; ask for fewer"):
        chosen(train, scores, count=4)
    with pytest.raises(InputError, match=r"asks for 4 images \(band = 'unscored'\), but there are 3 without a score"):
        chosen(train, scores, count=4, band="unscored")


def test_groups_larger_than_the_data_or_that_overlap_are_refused_with_the_numbers() -> None:
    train, scores = scored([0.1 * i for i in range(10)])
    for band in ("low", "mid", "high", "mix"):
        with pytest.raises(InputError, match=rf"asks for 3000 images \(band = '{band}'\), but there are 10 with a score 'memorisation'; ask for fewer"):
            chosen(train, scores, band=band)
    low, few = scored([0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.9])  # the three nearest to .5 are among the three highest
    with pytest.raises(InputError, match=r"groups of 3 \+ 3 \+ 3 images mid and high share 3, but they must be disjoint \(9 images have a score\)"):
        chosen(low, few, count=9)
    high, many = scored([0.9, 0.91, 0.92, 0.93, 0.94, 0.95])
    with pytest.raises(InputError, match=r"low and mid share 2"):
        chosen(high, many, count=6)
    with pytest.raises(InputError, match="count = 2 has not one image for each of three groups"):
        ByScore(count=2)
    with pytest.raises(InputError, match="image id 9 has no score 'memorisation'"):
        chosen(train, Scores("memorisation", torch.arange(9), torch.zeros(9, dtype=torch.float64), "memorisation"), count=3)


def test_a_proxy_named_where_only_memorisation_is_defined() -> None:
    proxy = scored([0.1, 0.2, 0.3], scale="proxy")
    for settings in ({"mid_rule": "half"}, {"low": "nearest_zero"}):
        with pytest.raises(InputError, match=f"{min(settings)} = '.*' is defined for memorisation only, and the score 'memorisation' is a proxy"):
            chosen(*proxy, count=3, **settings)  # a file may hold a proxy, whatever it is called
        assert chosen(*scored([0.1, 0.9, 0.5]), count=3, **settings) == {"low": [0], "mid": [2], "high": [1]}
    with pytest.raises(InputError, match=r"unknown score 'memorization': here it is called 'memorisation'"):
        ByScore(score="memorization", mid_rule="half")


@pytest.fixture
def proxy() -> Any:
    from unlearnlab import spec as registry

    @registry.spec("score", "test_proxy")
    class Proxy:
        """A score that says beforehand that it is a proxy."""

        scale = "proxy"

    yield Proxy
    del registry._registry["score"]["test_proxy"]


def test_what_a_score_says_of_itself_is_heard_before_anything_is_made(proxy: Any) -> None:
    with pytest.raises(InputError, match="mid_rule = 'half' is defined for memorisation only, and the score 'test_proxy' is a proxy"):
        ByScore(score="test_proxy", mid_rule="half")
    assert ByScore(score="test_proxy").mid_rule == "default"


def test_it_is_a_spec_like_any_other() -> None:
    made = build("forget", {"name": "by_score", "band": "high", "count": 30})
    assert made == ByScore(band="high", count=30)
    assert build("forget", to_dict(made)) == made
    assert isinstance(made, ScoredForgetSet)
    assert bool(made.eligible(images(5)).all())


# ---------------------------------------------------------------- in a study

TINY = (
    *("models=3", 'net={name="mlp", hidden=[12]}', "recipe.epochs=2", "partition.train=200", "partition.held_out=60", "partition.test=100"),
    'scores=[{name="memorisation", models=24}]',
    'forget={name="by_score", count=91, mid_rule="median"}',
    'metrics=["trace", {name="acc", part="forget"}]',
)
EACH = '["original", {name="finetune", epochs=1}, {name="gradient_ascent", epochs=1}]'
ROWS = f'methods=[{{name="finetune", epochs=1}}, {{name="rum", refine="by_score", each={EACH}}}, {{name="rum", refine="shuffle", each={EACH}}}]'


def run(root: Path, *changes: str, until: str = "audit") -> study.Runner:
    name, what = studyfiles.read("digits", [*TINY, ROWS, *changes])
    with Local(1) as engine:
        return study.run(what, name, Store(root), until=until, engine=engine)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> study.Runner:
    return run(tmp_path_factory.mktemp("by_score"))


def test_a_study_chooses_by_scores_of_models_that_it_does_not_audit(done: study.Runner) -> None:
    split, scores = ground.load_split(done.setup, done.data_key, done.forget_key), filing.load_scores(done.setup, done.scores["memorisation"])
    expected = ByScore(count=91, mid_rule="median").groups(split.train, 0, scores)
    held = ground.load_groups(done.setup, done.forget_key)
    assert held == {f"memorisation.{name}": ids.tolist() for name, ids in expected.items()}
    assert [len(ids) for ids in held.values()] == [31, 30, 30]
    union = sorted(i for ids in held.values() for i in ids)
    assert sorted(split.forget.ids.tolist()) == union
    assert len(split.retain) == 200 - 91
    assert not set(split.retain.ids.tolist()) & set(union)
    low, mid, high = (scores.of(torch.tensor(ids)) for ids in held.values())
    assert float(low.max()) <= float(mid.min()) <= float(mid.max()) <= float(high.min())
    made = ground.stored(done.setup, "forget", done.forget_key) / "groups.json"
    assert json.loads(made.read_text()) == held
    audited = {seed for key in (*done.originals, *done.oracles) for seed in done.store.manifest("stacks", key)["seeds"]}
    subsets = [path.name for path in (done.store.root / "outputs").iterdir() if done.store.manifest("outputs", path.name)["name"] == "subsets"]
    seeds = {seed for key in subsets for seed in done.store.manifest("outputs", key)["seeds"]}
    assert len(seeds) == 24
    assert not seeds & audited


def test_groups_are_audited_one_by_one(done: study.Runner) -> None:
    held, split = ground.load_groups(done.setup, done.forget_key), ground.load_split(done.setup, done.data_key, done.forget_key)
    for row in done.document["rows"]:
        seen = filing.load_outputs(done.setup, [filing.outputs_key(key, split.fingerprint) for key in done.unlearned[row["method"]]])
        for band, ids in held.items():
            assert row["results"][f"group.{band}.trace"]["missing"] == "not computed: N=3, needs 16"  # large enough, but for the models
            inside = torch.isin(seen.ids, torch.tensor(ids))
            right = (seen.predicted[:, inside] == seen.labels[inside]).double().mean()
            assert row["results"][f"group.{band}.acc.forget"]["value"] == pytest.approx(float(right), abs=1e-9)
    few = run(done.store.root, "forget.count=30", ROWS.replace('"by_score"', '"by_class"').replace(EACH, '["finetune"]'))
    assert few.document["rows"][0]["results"]["group.memorisation.high.trace"]["missing"] == "not computed: 10 forget images, needs 30"


def test_rum_by_score_reads_the_scores_that_chose(done: study.Runner) -> None:
    assert [*done.unlearned] == ["original", "retrain", "finetune", "rum-memorisation-original+finetune+gradient_ascent",
                                 "rum-shuffle-original+finetune+gradient_ascent"]  # fmt: skip
    refined, shuffled = (done.store.manifest("stacks", done.unlearned[name][0]) for name in list(done.unlearned)[3:])
    assert refined["scores"] == {"memorisation": f"scores/{done.scores['memorisation']}"}
    assert "scores" not in shuffled
    split, scores = ground.load_split(done.setup, done.data_key, done.forget_key), filing.load_scores(done.setup, done.scores["memorisation"])
    groups = Refined()(split, {"memorisation": scores})
    assert {f"memorisation.{name}": ids.tolist() for name, ids in groups.items()} == ground.load_groups(done.setup, done.forget_key)
    method, stack = done.study.rows()["rum-memorisation-original+finetune+gradient_ascent"], filing.load_stack(done.setup, done.originals[0], split.retain)
    assert isinstance(method, Rum)
    assert method.each[0] == Original()
    ctx = Context(stack.seeds, done.study.recipe, scores={"memorisation": scores})
    after = filing.load_stack(done.setup, done.unlearned["rum-memorisation-original+finetune+gradient_ascent"][0], split.retain)
    assert same(method(stack, split, ctx).params, after.params)  # a study does what Python does


def test_choosing_before_scores_are_made_says_what_to_do(tmp_path: Path) -> None:
    name, what = studyfiles.read("digits", [*TINY, ROWS])
    with pytest.raises(
        InputError, match="who is forgotten goes by the score 'memorisation', which is not made yet; make it first: unlearnlab score, on the same study"
    ):
        study.choose_forget(what, name, Store(tmp_path))
    assert not (tmp_path / "stacks").exists()


def test_choosing_with_scores_says_who(done: study.Runner) -> None:
    told = study.choose_forget(done.study, "digits", done.store)
    assert told["kind"] == "by_score"
    assert told["count"] == 91
    assert sorted(told["ids"]) == sorted(i for ids in ground.load_groups(done.setup, done.forget_key).values() for i in ids)


def test_a_proxy_in_a_study_is_refused_with_half_before_anything_is_trained(tmp_path: Path, proxy: Any) -> None:
    with pytest.raises(InputError, match="is defined for memorisation only"):
        run(tmp_path, 'forget={name="by_score", score="test_proxy", mid_rule="half"}')
    assert not (tmp_path / "stacks").exists()
