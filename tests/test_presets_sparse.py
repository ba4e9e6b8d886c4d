"""What is special to the presets of Unlearn-Sparse and SalUn."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearnlab import groundwork as ground
from unlearnlab import study
from unlearnlab.engine import Local
from unlearnlab.spec import info
from unlearnlab.store import Store
from unlearnlab.studyfiles import read, read_family

BASELINES = ("finetune", "gradient_ascent", "fisher_forgetting", "influence_unlearning", "l1_sparse")
SPARSE = ("sparse_random10", "sparse_class0", "sparse_imp", "sparse_synflow")


@pytest.mark.parametrize("name", SPARSE)
def test_every_method_of_the_page_is_a_row(name: str) -> None:
    for one in read_family(name).studies.values():
        assert tuple(one.rows()) == ("original", "retrain", *BASELINES)
        assert (one.recipe.epochs, one.recipe.rewind) == (182, 8)


def test_salun_stands_beside_the_baselines_and_the_boundary_pair() -> None:
    for name, count in (("salun_random10", 4500), ("salun_random50", 22500)):
        _, one = read(name)
        assert one.forget.count == count
        assert set(one.rows()) == {"original", "retrain", *BASELINES, "salun", "salun_soft", "random_label", "boundary_shrink", "boundary_expand"}
        salun, soft, labels = (one.rows()[row] for row in ("salun", "salun_soft", "random_label"))
        assert (salun.budget, salun.lr, salun.epochs) == (0.5, 0.013, 10)
        assert salun.passes == soft.passes == labels.passes == "sequential"  # its code on CIFAR-10; by default all are shuffled together


def test_iterative_pruning_reaches_the_published_sparsities() -> None:
    for rounds, left in ((13, 0.945), (14, 0.956)):
        for small in (False, True):
            prune = read(f"sparse_imp.rounds{rounds}", small=small)[1].prune
            assert prune.rounds == (5 if small else rounds)
            assert 1 - (1 - prune.share) ** prune.rounds == pytest.approx(left, abs=5e-4)


def test_the_class_is_left_out_of_the_test_set_unless_told_otherwise(tmp_path: Path) -> None:
    for change, there in ((), False), (("forget.drop_from_test=false",), True):
        name, what = read("sparse_class0.dense", change, small=True)
        with Local(1) as engine:
            done = study.run(what, name, Store(tmp_path), until="data", engine=engine)
        split = ground.load_split(done.setup, done.data_key, done.forget_key)
        assert not bool((split.retain.labels == 0).any())
        assert bool((split.forget.labels == 0).all())
        assert bool((split.test.labels == 0).any()) is there


def test_small_nets_have_batch_normalisation_where_nets_are_pruned_or_compared_with_pruned_ones() -> None:
    """Fresh sparse nets without it are dead, and an oracle that learned nothing is no oracle."""
    for name in (*SPARSE, "trojan"):
        for one in read_family(name, small=True).studies.values():
            assert (info(one.net).name, one.net.norm) == ("small_cnn", "batch")
