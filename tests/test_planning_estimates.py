"""What a dry run says of images, work, time, memory and disk before anything was run: held against what real runs took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from test_cli import Call, call
from unlearnlab import estimating, planning, study, studyfiles
from unlearnlab.artefacts import growth
from unlearnlab.engine import Local
from unlearnlab.outputs import observe
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, chunk_size
from unlearnlab.store import Store

__all__ = ["call"]  # the fixture

TINY = (
    "models=4",
    'net={name="small_cnn", widths=[4, 4, 8]}',
    "recipe.epochs=4",
    "recipe.rewind=1",
    "partition.train=120",
    "partition.held_out=60",
    "partition.test=100",
    "forget.count=12",
    "forget.mislabelled=6",
    'metrics=["tow", "lira.online"]',
    "references=4",
)
METHODS = 'methods=[{name="finetune", epochs=2}, {name="gradient_ascent", epochs=3}, {name="random_label", epochs=2}, "ssd", "sisa"]'
CIFAR = ('dataset="cifar10"', 'partition={name="released"}', 'recipe={name="unlearn_sparse"}')


def digits(*changes: str) -> study.Study:
    return studyfiles.read("digits", [*TINY, METHODS, *changes])[1]


def sized(*changes: str) -> estimating.Sizes:
    held = estimating.sizes(studyfiles.read("digits", changes)[1])
    assert held is not None
    return held


def run(root: Path, *changes: str, until: str = "report") -> study.Runner:
    with Local(1) as engine:
        return study.run(digits(*changes), "digits", Store(root), until=until, engine=engine)


# ---- images


@pytest.mark.parametrize(
    ("changes", "train", "forget", "about"),
    [
        ((), 45_000, 62, False),
        (('forget={name="random", count=4500}',), 45_000, 4500, False),
        (('forget={name="class", label=0}',), 45_000, 4500, True),
        (('forget={name="partial_class", count=5000}',), 45_000, 5000, False),
        (('forget={name="by_score", count=3000}',), 45_000, 3000, False),
        (('forget="mislabelled"', 'corruption={name="interclass_confusion", count=4000}'), 45_000, 4000, False),
        (('forget="mislabelled"', 'corruption={name="symmetric_noise", share=0.2}'), 45_000, 9000, False),
        (('forget="backdoor"', 'corruption={name="backdoor", share=0.1}'), 45_000, 4500, False),
        (('forget={name="ids", ids=[3, 4, 5]}',), 45_000, 3, False),
        (('forget={name="ids", file="/none/ids.txt"}',), 45_000, None, False),
        (('forget={name="attribute", where="label < 3"}', "partition.held_out=0.2"), 40_000, None, False),
        (('forget={name="attribute", where="label < 3", count=7}', "partition.train=1000"), 1000, 7, False),
    ],
)
def test_images_are_counted_without_them(changes: Sequence[str], train: int, forget: int | None, about: bool) -> None:
    held = sized(*CIFAR, *changes)
    assert (held.train, held.forget, held.about, held.retain) == (train, forget, about, train - (forget or 0))
    assert (held.shape, held.classes, held.mapped, held.test) == ((3, 32, 32), 10, True, 10_000)


def test_of_data_of_the_users_own_nothing_is_known_before_it_is_there(tmp_path: Path) -> None:
    own = digits('dataset="mine.npz"')
    items = planning.plan(own, None)
    seen = planning.outlook(own, items, None)
    assert seen == planning.Outlook()
    lines = planning.summary(items, 2, seen)
    assert lines[1:] == ["images, memory and disk: unknown until the data is there", "time unknown: nothing like it has been run here"]
    # and a released test set that a data set does not have is no number either
    assert estimating.sizes(digits('partition={name="released"}')) is None


def test_images_that_are_there_are_counted_themselves(tmp_path: Path) -> None:
    changed = 'forget={name="class", label=0}'
    store = run(tmp_path, changed, until="data").store
    asked = digits(changed)
    held = planning.outlook(asked, planning.plan(asked, store), store).sizes
    guess = estimating.sizes(asked)
    assert held is not None
    assert guess is not None
    assert (guess.forget, guess.about, held.about) == (12, True, False)
    assert held.forget == int((study.ground.load_data(*_at(asked, store)).train.true_labels == 0).sum())
    assert (held.train, held.held_out, held.test, held.shape, held.classes, held.mapped) == (120, 60, 100, (1, 8, 8), 10, False)


def _at(asked: study.Study, store: Store) -> tuple[study.ground.Setup, str]:
    there = planning._data(asked, store, ())
    assert there is not None
    return there[0].setup, there[0].data_key


# ---- work, time, memory, disk: against a run


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> study.Runner:
    return run(tmp_path_factory.mktemp("ran"))


def test_passes_are_those_that_a_run_counts(ran: study.Runner) -> None:
    asked = digits()
    held = estimating.sizes(asked)
    assert held is not None

    def real(keys: Sequence[str], kind: str = "stacks") -> int:
        return int(ran.store.manifest(kind, keys[0])["example_passes"])

    for row, keys in {"originals": ran.originals, "oracles": ran.oracles, **ran.unlearned}.items():
        if row != "sisa":
            assert 3 * (estimating.passes(asked, row, {}, held) or 0) == real(keys), row
    assert estimating.passes(asked, "sisa", {}, held) is None  # which trains models of its own
    (made,) = [entry.partition("/")[2] for entry in ran.beside["beside/references"]]
    told = 3 * (estimating.passes(asked, "reference models", {}, held) or 0)
    assert real((made,), "outputs") <= told < 1.25 * real((made,), "outputs")  # at most: not all held-out images become controls


@pytest.mark.parametrize("pruning", ['prune="omp"', 'prune={name="imp", rounds=3, share=0.3}', 'prune={name="synflow", rounds=5}', 'prune="random"'])
def test_passes_of_prunings_are_those_that_a_run_counts(tmp_path: Path, pruning: str) -> None:
    asked, done = digits(pruning, "models=2"), run(tmp_path, pruning, "models=2", until="prune")
    held = estimating.sizes(asked)
    assert held is not None
    body = done.store.manifest("stacks", done.originals[0])
    whole = 3 * (estimating.passes(asked, "sparse originals", {}, held) or 0)
    assert body["example_passes"] == pytest.approx(whole, abs=3 * held.train)  # synflow looks at an image now and then


def test_methods_within_methods_add_up(tmp_path: Path) -> None:
    held = sized()
    inner = build("method", {"name": "finetune", "epochs": 2})
    alone = estimating._method(inner, 40, held)
    assert alone == 2 * held.retain
    for table, times in (
        ({"name": "localised", "where": "random", "method": inner}, 1),
        ({"name": "sequence", "steps": (inner, inner)}, 2),
        ({"name": "rum", "refine": {"name": "by_score"}, "each": (inner,)}, 3),
        ({"name": "rum", "refine": {"name": "by_score"}, "each": ("original", inner, inner)}, 2),
    ):
        assert estimating._method(build("method", table), 40, held) == times * alone, table
    assert estimating._method(build("method", "eu_k"), 40, held) == 40 * held.retain  # as long as training
    blind = estimating.Sizes(500, 297, 1000, 10, (1, 8, 8), False)
    assert estimating._method(build("method", "gradient_ascent"), 40, blind) is None


def test_the_time_told_is_of_the_order_of_the_time_taken(ran: study.Runner) -> None:
    asked = digits()
    items = planning.plan(asked, None)
    seen = planning.outlook(asked, items, None)
    assert seen.pace is not None
    assert (seen.pace.chunk, seen.pace.device) == (ran.chunk, "cuda" if torch.cuda.is_available() else "cpu")
    told = {item.row: seen.seconds(item) for item in items}
    took = {
        row: ran.store.manifest("stacks", keys[0])["compute_seconds"] for row, keys in {"originals": ran.originals, **ran.unlearned}.items() if row != "sisa"
    }
    assert told["sisa"] is None
    assert told["original"] == 0
    for row in ("originals", "retrain", "finetune"):
        assert took[row] / 5 < (told[row] or 0) < took[row] * 5, (row, took[row], told[row])
    line = planning.summary(items, 1, seen)[-1]
    assert "timed here just now" in line
    assert line.endswith("and more for sisa: nothing like it has been run here")


def test_what_was_run_here_is_believed_before_what_is_timed(ran: study.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "pace", lambda *_: pytest.fail("nothing had to be timed"))
    again = digits("forget.draw=1")
    items = planning.plan(again, ran.store)
    seen = planning.outlook(again, items, ran.store)
    assert seen.pace is None
    assert all(seen.seconds(item) == item.seconds for item in items)
    assert "timed" not in planning.summary(items, 1, seen)[-1]


def test_a_stage_lasts_at_least_as_long_as_its_longest_chunk() -> None:
    held = sized()
    pace = estimating.Pace(0.1, 3, 4, "cpu")
    seen = planning.Outlook(held, {"originals": 100.0, "oracles": 200.0}, pace, None)
    items = [planning.Item("original", "originals", 4, None, None), planning.Item("oracle", "oracles", 8, None, None)]
    assert "time: about 120 s" not in planning.summary(items, 100, seen)[-1]
    assert planning.summary(items, 1, seen)[-1].startswith("time: about 3 min of")  # 4·10 + 8·20 s
    assert planning.summary(items, 100, seen)[-1].startswith("time: about 2 min of")  # 4·10 + 4·20 s
    assert "3 steps timed here just now (cpu)" in planning.summary(items, 1, seen)[-1]


def test_the_disk_told_is_about_the_disk_taken(ran: study.Runner) -> None:
    asked = digits()
    told = planning.outlook(asked, planning.plan(asked, None), None).footprint
    assert told is not None
    kinds = ("data", "stacks", "outputs")  # figures and tables are small beside these, but not in so small a study
    taken = sum(path.stat().st_size for kind in kinds for path in (ran.store.root / kind).rglob("*.safetensors"))
    assert 0.6 < told.disk / taken < 1.7
    half = planning.outlook(asked, planning.plan(asked, None, until="original"), None, until="original").footprint
    assert half is not None
    assert half.disk < told.disk / 4
    assert (half.judge, half.whole) == (0, 0)


@pytest.mark.skipif(growth("cpu")() is None, reason="this system does not tell")
@pytest.mark.parametrize("net", ["small_cnn", pytest.param("resnet20s", marks=pytest.mark.slow)])
def test_the_memory_told_is_about_the_memory_taken(net: str) -> None:
    asked = studyfiles.read("digits", [*CIFAR, f'net="{net}"', "recipe.batch=64"])[1]
    held = estimating.sizes(asked)
    assert held is not None
    made = estimating.build_net(asked, held)
    start = Stack.init(made, range(chunk_size(made)))
    images, more = estimating._noise(held, 64), estimating._noise(held, estimating.OBSERVED)
    grown, taken = growth("cpu"), list[int | None]()
    with pytest.raises(estimating._Enough):
        asked.recipe(start, images, watch=[estimating._Stopwatch("cpu", 0)])
    taken.append(grown())
    grown = growth("cpu")
    observe(start, more, member=torch.zeros(len(start), len(more), dtype=torch.bool), part=torch.zeros(len(more)))
    taken.append(grown())
    told = estimating.footprint(asked, made, held, {}, finished=False, stored=True).work
    assert 0.5 < told / max(took or 0 for took in taken) < 4


# ---- the command


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (('net="small_cnn"', 'prune="omp"', 'forget={name="random", count=4500}'), "45000 trained on, 4500 of them to forget; 5000 held out"),
        (('net="small_cnn"', 'dataset="svhn"', 'forget={name="partial_class", labels=[3, 6], count=7325}'), "65931 trained on, 7325 of them to forget"),
        (('net="small_cnn"', 'dataset={name="imagenet100", size=40, view=32}', 'forget={name="class", label=3}'), "114020 trained on, about 1140 of them"),
        (('net="small_cnn"', 'dataset={name="agedb", size=32}', 'forget={name="attribute", where="age < 20"}'), "not known yet how many of them to forget"),
    ],
)
def test_a_dry_run_of_public_data_that_is_not_there(call: Call, tmp_path: Path, changes: Sequence[str], said: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    started = time.process_time()
    done = call("run", "digits", "--dry-run", "--workers", "2", *(word for change in (*CIFAR, *changes) for word in ("--set", change)))
    assert done.code == 0, done.err
    assert "reuse unknown" in done.out
    flat = " ".join(done.out.split())
    for words in (said, "work: about", "memory: about", "B for each of 2 workers", "disk: about", "timed here just now"):
        assert words in flat
    assert time.process_time() - started < 20
    assert sorted(tmp_path.rglob("*")) == before


def test_a_net_that_does_not_fit_is_refused_in_the_dry_run() -> None:
    asked = studyfiles.read("digits", [*CIFAR, 'dataset={name="mnist"}', 'net={name="vit_small_data"}', 'partition={name="released"}'])[1]
    with pytest.raises(InputError):
        planning.outlook(asked, planning.plan(asked, None), None)
