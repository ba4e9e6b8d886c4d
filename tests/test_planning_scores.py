"""The dry run of studies whose forget set waits for scores: what is known of it with an empty store, with data, with scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from test_cli import Call, call
from unlearnlab import study, studyfiles
from unlearnlab.engine import Local
from unlearnlab.planning import Item, lacking, plan, summary
from unlearnlab.spec import InputError
from unlearnlab.store import Store

__all__ = ["call"]  # the fixture

TINY = (
    "models=2",
    'net={name="mlp", hidden=[12]}',
    "recipe.epochs=2",
    "partition.train=120",
    "partition.held_out=60",
    "partition.test=100",
    'scores=[{name="memorisation", models=6}]',  # made in one whole chunk of 8
    'forget={name="by_score", score="memorisation", count=12, mid_rule="median"}',
    'methods=[{name="finetune", epochs=1}]',
    'metrics=["tow"]',
)


def tiny(*changes: str) -> study.Study:
    return studyfiles.read("digits", [*TINY, *changes])[1]


def run(root: Path, *changes: str, until: str = "report") -> study.Runner:
    with Local(1) as engine:
        return study.run(tiny(*changes), "digits", Store(root), until=until, engine=engine)


def rows(items: Sequence[Item]) -> dict[str, tuple[int, int | None]]:
    return {item.row: (item.models, item.reused) for item in items}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With originals and scores; never written to."""
    return run(tmp_path_factory.mktemp("scored"), until="score").store


def test_with_an_empty_store_all_is_to_be_made() -> None:
    items = plan(tiny(), None)
    assert rows(items) == {"originals": (2, None), "models for memorisation": (6, None)} | dict.fromkeys(
        ("oracles", "original", "retrain", "finetune"), (2, None)
    )
    assert all(item.seconds is None for item in items)
    assert summary(items, 1) == ["models to train: 16 at most, reused: unknown", "time unknown: nothing like it has been run here"]


def test_with_the_data_what_the_forget_set_does_not_touch_is_known(tmp_path: Path) -> None:
    store = run(tmp_path, until="data").store
    found = rows(plan(tiny(), store))
    assert (found["originals"], found["models for memorisation"]) == ((2, 0), (8, 0))
    assert (found["oracles"], found["finetune"]) == ((2, None), (2, None))


def test_with_originals_the_time_of_subset_models_is_theirs_times_the_share(tmp_path: Path) -> None:
    done = run(tmp_path, until="original")
    items = {item.row: item for item in plan(tiny(), done.store)}
    whole = done.store.manifest("stacks", done.originals[0])["compute_seconds"]
    assert items["models for memorisation"].seconds == pytest.approx(0.7 * whole)
    assert items["oracles"].seconds == pytest.approx(whole)
    assert "time: about" in summary(list(items.values()), 1)[-1]


def test_with_scores_who_is_forgotten_is_known_and_so_is_everything(scored: Store) -> None:
    items = {item.row: item for item in plan(tiny(), scored)}
    assert rows(list(items.values())) == {"originals": (2, 2), "models for memorisation": (8, 8)} | dict.fromkeys(
        ("oracles", "original", "retrain", "finetune"), (2, 0)
    )
    (made,) = [scored.manifest("outputs", row.key) for row in scored.list("outputs")]
    assert made["share"] == 0.7
    assert items["models for memorisation"].seconds == made["compute_seconds"]  # of its own kind, not of models of all images
    assert items["oracles"].seconds != made["compute_seconds"]
    with pytest.raises(InputError, match="by_score"):
        plan(tiny("forget.count=119"), scored)


def test_after_a_run_nothing_is_left_to_do_and_nothing_was_made_by_asking(tmp_path: Path) -> None:
    store = run(tmp_path).store
    before = sorted(tmp_path.rglob("*"))
    items = plan(tiny(), store)
    assert all(item.reused == item.models for item in items)
    assert summary(items, 1)[0] == "models to train: 0, reused: 18"
    other = rows(plan(tiny("forget.band=high"), store))
    assert (other["originals"], other["models for memorisation"], other["oracles"]) == ((2, 2), (8, 8), (2, 0))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_larger_ensemble_reuses_the_chunks_that_are_there(scored: Store, tmp_path: Path) -> None:
    chunk = run(tmp_path, until="data").chunk
    run(tmp_path, f"scores.memorisation.models={chunk}", until="score")
    grown = rows(plan(tiny(f"scores.memorisation.models={2 * chunk}"), Store(tmp_path)))
    assert grown["models for memorisation"] == (2 * chunk, chunk)


def test_what_several_scores_are_read_off_is_planned_once(scored: Store) -> None:
    shared = 'scores=[{name="memorisation", models=6}, "confidence", {name="entropy"}, {name="bi_acc", models=2}, "loss_curvature"]'
    for store, models in ((None, 6), (scored, 8)):  # in whole chunks, once the size of a chunk is known
        found = [item for item in plan(tiny(shared), store) if item.stage == "score"]
        assert [(item.row.removeprefix("models for "), item.models) for item in found] == [
            ("memorisation", models), ("confidence, entropy", 1), ("bi_acc", 2), ("loss_curvature", 1),
        ]  # fmt: skip
    assert found[1].seconds is None  # how long looking takes is not told by training


def test_attributions_of_the_same_share_are_estimated_from_the_same_models(scored: Store) -> None:
    shared = ('methods=["datamodel_direct"]', "attribution.models=6", "attribution.share=0.7")
    assert rows(plan(tiny(*shared), scored))["subset models"] == (8, 8)
    other = rows(plan(tiny(*shared, "recipe.epochs=3"), scored))
    assert (other["models for memorisation"], other["subset models"]) == ((8, 0), (8, 8))  # those that the score is going to make
    assert rows(plan(tiny(*shared, "attribution.share=0.5"), scored))["subset models"] == (8, 0)


def test_the_time_of_looking_is_that_of_looking_before_and_of_the_training_before_it(tmp_path: Path) -> None:
    scores = 'scores=[{name="memorisation", models=6}, "confidence", "ho_ret"]'
    done = run(tmp_path, scores, until="score")
    items = {item.row: item for item in plan(tiny(scores), done.store)}
    assert all(item.reused == item.models for item in items.values() if item.stage == "score")
    for name in ("confidence", "ho_ret"):
        ((_, key, _),) = done.score_steps()[name][0]
        body = done.store.manifest("probes", key)
        before = done.store.manifest(*body["trained"].split("/"))["compute_seconds"] if name == "ho_ret" else 0
        assert items[f"models for {name}"].seconds == pytest.approx(body["compute_seconds"] + before)


def test_the_command_prints_the_plan_and_makes_nothing(call: Call, tmp_path: Path) -> None:
    words = ("run", "digits", "--dry-run", *(word for change in TINY for word in ("--set", change)))
    said = call(*words)
    assert said.code == 0
    assert "models for memorisation" in said.out
    assert "models to train: 16 at most, reused: unknown" in said.out
    assert not (tmp_path / "store").exists()
    assert "models for memorisation" in call(*words, "--until", "score").out
    assert "oracles" not in call(*words, "--until", "score").out


def test_metrics_that_lack_models_are_told_before_anything_is_trained() -> None:
    metrics = "metrics=['streisand.over', 'lira.online', 'rmia.auc', 'trace', 'tow']"
    _, few = studyfiles.read("digits", [metrics, "models=16", "references=8"])
    assert lacking(few) == [
        "streisand.over will not be computed: it needs models = 19 or more, and this study has 16",
        "lira.online.auc will not be computed: it needs references = 32 or more, and this study has 8",
    ]
    assert lacking(studyfiles.read("digits", [metrics, "models=19", "references=32"])[1]) == []
