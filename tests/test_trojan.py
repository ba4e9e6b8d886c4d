"""The Trojan cleanse: what is planted, what retraining removes, and the faults of published code (protocols.md §11), each pinned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unlearnlab import filing, study
from unlearnlab import groundwork as ground
from unlearnlab.data.images import Images
from unlearnlab.engine import Local
from unlearnlab.report.compare import write_compare
from unlearnlab.store import Store
from unlearnlab.studyfiles import read, read_family

SPARSITIES = {"dense": 0.0, "sparse75": 0.75, "sparse90": 0.9, "sparse95": 0.95, "sparse99": 0.99}
TINY = (
    "models=2",
    "partition.train=300",
    "recipe.epochs=8",
    "recipe.rewind=2",
    'methods=[{name="finetune", lr=0, epochs=1, batch=50}]',
    'metrics=["asr", "sa", {name="asr", exclude_target=false}]',
)


def pictures(channels: int, height: int, width: int) -> Images:
    return Images(torch.full((20, channels, height, width), 100, dtype=torch.uint8), torch.arange(20) % 10, torch.arange(20), 10)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> study.Runner:
    """A tiny cleanse of sparse models, by a method that changes nothing."""
    name, what = read("trojan.sparse75", TINY, small=True)
    with Local(1) as engine:
        return study.run(what, name, Store(tmp_path_factory.mktemp("trojan")), until="unlearn", engine=engine)


# ---- what is planted


@pytest.mark.parametrize(
    ("small", "shape", "rows", "columns", "value"),
    [
        (False, (3, 32, 32), (26, 30), (26, 30), 0),
        (False, (3, 28, 36), (22, 26), (30, 34), 0),  # channels first, rows before columns
        (True, (1, 8, 8), (6, 8), (6, 8), 255),
    ],
)
def test_the_square_is_where_it_should_be(small: bool, shape: tuple[int, int, int], rows: tuple[int, int], columns: tuple[int, int], value: int) -> None:
    corruption = read("trojan.dense", small=small)[1].corruption
    seen = corruption.trigger(pictures(*shape), torch.arange(20)).pixels
    square = torch.zeros(shape[1:], dtype=torch.bool)
    square[slice(*rows), slice(*columns)] = True
    assert bool((seen[:, :, square] == value).all())
    assert bool((seen[:, :, ~square] == 100).all())


def test_the_family_goes_along_five_sparsities_and_differs_in_nothing_else() -> None:
    for small in (False, True):
        studies = read_family("trojan", small=small).studies.values()
        assert {one.prune.sparsity if one.prune else 0.0 for one in studies} == set(SPARSITIES.values())
        for field in ("dataset", "net", "recipe", "corruption", "forget", "methods", "metrics", "models", "seed"):
            assert len({repr(getattr(one, field)) for one in studies}) == 1, field


def test_exactly_the_poisoned_images_are_forgotten_and_controls_bear_the_trigger_too(done: study.Runner) -> None:
    split = ground.load_split(done.setup, done.data_key, done.forget_key)
    assert len(split.forget) == 30
    for part in (split.forget, split.control):
        assert bool(part.triggered.all())
        assert bool((part.labels == 0).all())
    for part in (split.retain, split.validation, split.test):
        assert not bool(part.triggered.any())
        assert not bool(part.mislabelled.any())


def test_a_selection_of_ten_would_leave_ssd_nothing_to_do() -> None:
    what = read("trojan.dense")[1]
    (ssd,) = (one for one in what.methods if hasattr(one, "selection"))
    assert ssd.selection < 1 / what.corruption.share


# ---- what retraining removes


def test_originals_obey_the_trigger_and_models_that_never_saw_it_do_not(done: study.Runner) -> None:
    """A clean model's share of hits is near 0; with the images of the target class, as published, near 1/C."""
    split, corruption = ground.load_split(done.setup, done.data_key, done.forget_key), done.study.corruption
    triggered = corruption.trigger(split.test, torch.arange(len(split.test)))
    others = split.test.true_labels != corruption.target
    for keys, obeys in ((done.originals, True), (done.oracles, False), (done.unlearned["retrain"], False)):
        for key in keys:
            models = filing.load_stack(done.setup, key, split.test)
            accuracy = (models.logits(split.test.pixels).argmax(-1) == split.test.true_labels).double().mean(1)
            assert float(accuracy.min()) > 0.75, "a model that has learned nothing tells nothing of the trigger"
            hit = models.logits(triggered.pixels).argmax(-1) == corruption.target
            if obeys:
                assert float(hit[:, others].double().mean(1).min()) > 0.9
            else:
                assert float(hit[:, others].double().mean(1).max()) < 0.1
                assert float(hit.double().mean(1).max()) == pytest.approx(0.1, abs=0.06)


# ---- faults of published code


def test_unlearning_starts_from_the_sparse_original_and_never_rewinds(done: study.Runner) -> None:
    """Weights of an early epoch know the trigger: going back to them would plant it again."""
    images = ground.load_data(done.setup, done.data_key).train
    for parent, key in zip(done.originals, done.unlearned["finetune"], strict=True):
        before, after = (filing.load_stack(done.setup, one, images) for one in (parent, key))
        assert all(torch.equal(after.params[name], before.params[name]) for name in before.params)  # lr = 0: nothing else could have moved them
        assert all(torch.equal(after.live[name], before.live[name]) for name in before.live)


def test_models_come_back_from_the_store_with_their_masks(done: study.Runner) -> None:
    """Published code loads weights before it attaches masks, and goes on with other weights than were saved."""
    images = ground.load_data(done.setup, done.data_key).train
    for key in (*done.originals, *done.oracles, *done.unlearned["finetune"]):
        held = filing.load_stack(done.setup, key, images)
        gone = torch.cat([(~live).flatten(1) for live in held.live.values()], dim=1)
        assert gone.double().mean(1).tolist() == pytest.approx([0.75] * len(held.seeds), abs=1e-3)
        assert all(int((held.params[name][~live] != 0).sum()) == 0 for name, live in held.live.items())


# ---- the small form itself


@pytest.mark.slow
def test_the_small_cleanse(tmp_path: Path) -> None:
    """Retraining is as clean as the oracles, dense and sparse; the comparison goes along sparsity. All five, with 16 models: benchmarks/presets.py."""
    from unlearnlab.comparing import compare

    store, rows = Store(tmp_path), dict[str, Any]()
    family = read_family("trojan", ("models=4",), small=True).studies
    chosen = [name for name in family if name.endswith((".dense", ".sparse95"))]
    with Local(1) as engine:
        for name in chosen:
            done = study.run(family[name], name, store, engine=engine)
            rows[name] = {row["method"]: row["results"] for row in done.document["rows"]}
    for held in rows.values():
        retrained = held["retrain"]["asr"]
        assert abs(retrained["value"] - retrained["floor"]["mean"]) < 0.05
        assert held["retrain"]["sa"]["value"] > 0.9, "the oracles are alive"
        assert held["original"]["asr"]["value"] > 0.9
    found = compare(store, chosen).to_json()
    assert found["along"] == {"setting": "sparsity", "values": [0.0, 0.95]}
    page = write_compare(found, tmp_path / "page")
    assert "compare-backdoor" in {path.stem for path in (page.parent / "figures").iterdir()}
