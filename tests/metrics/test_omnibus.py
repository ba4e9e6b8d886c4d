"""``perm.omnibus`` and ``energy``: exact under the null, sensitive to shift, spread and sparse changes, fast = naive."""

from dataclasses import replace
from itertools import combinations
from math import comb

import pytest
import torch
from torch import Tensor

from unlearnlab.contract import Audit
from unlearnlab.metrics.omnibus import Energy, Omnibus, energy_distance, labellings, omnibus, standardise, statistics
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError


def outputs(margins: Tensor, seeds: tuple[int, ...] | None = None) -> Outputs:
    m, n = margins.shape
    zeros = torch.zeros(n, dtype=torch.int64)
    logits = torch.stack([margins, torch.zeros_like(margins)], -1)
    return Outputs(logits, torch.zeros(m, n, dtype=torch.bool), zeros, torch.arange(n), zeros, seeds or tuple(range(m)))


def normal(purpose: str, n: int = 32, images: int = 62, seed: int = 0) -> Tensor:
    return torch.randn(n, images, generator=generator(seed, purpose), dtype=torch.float64)


def audited(u: Tensor, o: Tensor, p: Tensor | None = None) -> Audit:
    return Audit(outputs(o + 3 if p is None else p), outputs(o), outputs(u), torch.arange(len(u)))


def naive(z: Tensor, label: Tensor) -> list[float]:
    u, o = z[label], z[~label]

    def between(a: Tensor, b: Tensor) -> float:
        return sum(float((x - y).norm()) for x in a for y in b) / z.shape[1] ** 0.5

    k, m = len(u), len(o)
    energy = 2 * between(u, o) / (k * m) - between(u, u) / (k * (k - 1)) - between(o, o) / (m * (m - 1))
    shift = abs(float(u.mean(1).mean() - o.mean(1).mean()))
    spread = abs(sum(float((u[:, j].var() / o[:, j].var()).log()) for j in range(z.shape[1])) / z.shape[1])
    return [energy, shift, spread]


@pytest.mark.parametrize(("k", "m", "n"), [(4, 4, 1), (5, 3, 7), (2, 6, 3)])
def test_fast_is_the_naive_loop(k: int, m: int, n: int) -> None:
    z = standardise(2 * normal("u", k, n) + 1, normal("o", m, n))
    labels = labellings(k, m, 30, 0)
    assert labels[0].tolist() == [True] * k + [False] * m
    assert (labels.sum(1) == k).all()
    assert statistics(z, labels).T.tolist() == [pytest.approx(naive(z, label), abs=1e-9) for label in labels]


def test_p_is_that_of_all_relabellings_counted_by_hand() -> None:
    u, o = normal("u", 5, 3) + 0.8, normal("o", 5, 3)
    z = standardise(u, o)
    every = [torch.isin(torch.arange(10), torch.tensor(chosen)) for chosen in combinations(range(10), 5)]
    seen = torch.tensor([naive(z, label) for label in every], dtype=torch.float64).round(decimals=9)
    alone = (seen[:, None] <= seen[None]).double().mean(1)  # share of labellings at least as extreme
    best = alone.amin(1)
    exact = float((best <= best[0]).double().mean())
    assert omnibus(u, o, 9_999, 0)[0] == pytest.approx(exact, abs=1e-12)
    assert len(labellings(5, 5, 9_999, 0)) == comb(10, 5)
    assert len(labellings(5, 5, 100, 0)) == 101


def test_p_is_uniform_where_nothing_differs() -> None:
    p = torch.tensor([omnibus(normal("u", 8, 5, seed), normal("o", 8, 5, seed), 499, seed)[0] for seed in range(1000)])
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert (p <= level).double().mean() == pytest.approx(level, abs=3 * (level * (1 - level) / 1000) ** 0.5)


def change(kind: str, u: Tensor) -> Tensor:
    if kind == "shift":
        return u + 0.3
    if kind == "spread":
        return u * 0.8
    one = u.clone()  # one image that kept a gap of 4 sd
    one[:, 5] += 4
    return one


@pytest.mark.parametrize("kind", ["shift", "spread", "sparse"])
def test_sees_shift_spread_and_sparse_changes(kind: str) -> None:
    for seed in range(5):
        p, alone = omnibus(change(kind, normal("u", seed=seed)), normal("o", seed=seed), 1_999, seed)
        assert p <= 0.01, kind
        assert alone[{"shift": "p_shift", "spread": "p_spread", "sparse": "p_energy"}[kind]] <= 0.005


def test_ties_and_constants_count_against() -> None:
    constant = torch.ones(8, 4, dtype=torch.float64)
    assert omnibus(constant, constant, 1_999, 0)[0] == 1
    half = normal("u", 8, 4)
    half[:, 2] = 0
    assert 0 < omnibus(half, normal("o", 8, 4), 1_999, 0)[0] <= 1
    twice = normal("u", 8, 4)
    assert omnibus(twice, twice, 1_999, 0)[0] > 0.5


def test_order_does_not_matter_and_models_differ_by_seed_alone() -> None:
    audit = audited(normal("u") + 0.1, normal("o"))
    before = Omnibus(1_999)(audit)
    u, o, images = (torch.randperm(n, generator=generator(0, who)) for n, who in ((32, "a"), (32, "b"), (62, "c")))
    moved = replace(audit, unlearned=audit.unlearned.rows(u).examples(images), oracles=audit.oracles.rows(o).examples(images), parents=u)
    after = Omnibus(1_999)(moved)
    assert after.p == before.p
    assert after.value == before.value


def test_p_needs_an_original_of_its_own_for_every_model() -> None:
    audit = audited(normal("u"), normal("o"))
    own = Omnibus(1_999)(audit)
    assert own.p == own.value
    assert own.notes == ()
    one = Omnibus(1_999)(replace(audit, parents=torch.zeros(32, dtype=torch.int64)))
    assert one.p is None
    assert one.value == own.value
    assert one.notes == ("p not valid: one original",)
    assert Omnibus(1_999)(replace(audit, parents=None)).notes == ("p not valid: originals unknown",)


@pytest.mark.parametrize("n", [4, 5])
def test_few_models_are_told_the_least_p(n: int) -> None:
    found = Omnibus(1_999)(audited(normal("u", n) + 9, normal("o", n)))
    least = 2 / comb(2 * n, n)
    assert found.notes == (f"N={n}: p cannot fall below {least:.2g}",)
    # other partitions may tie: each of the three statistics has its own most extreme one
    assert least <= (found.p or 0) <= 3 * least + 1e-9
    assert Omnibus(1_999)(audited(normal("u", 3), normal("o", 3))).missing == "not computed: N=3, needs 4"


def test_fewer_than_1999_permutations_are_refused() -> None:
    with pytest.raises(InputError, match="permutations = 500"):
        Omnibus(500)


def test_energy_stands_between_oracles_and_originals() -> None:
    o, p = normal("o"), normal("p") + 2
    nothing_done = Energy()(Audit(outputs(p), outputs(o), outputs(p), torch.arange(32)))
    assert nothing_done.rescaled == 1
    assert nothing_done.ceiling is not None
    assert nothing_done.value == nothing_done.ceiling.mean == energy_distance(p, o)
    assert nothing_done.rescaled_ci is not None
    assert (nothing_done.rescaled_ci.lo, nothing_done.rescaled_ci.hi) == (1, 1)
    perfect = Energy()(Audit(outputs(p), outputs(o), outputs(normal("u")), torch.arange(32)))
    assert perfect.rescaled == pytest.approx(0, abs=0.02)
    assert perfect.floor is not None
    assert perfect.floor.mean == 0
    assert perfect.ci is not None
    assert perfect.ci.lo < 0 < perfect.ci.hi


def test_energy_of_oracles_is_0_on_average() -> None:
    values = torch.tensor([energy_distance(normal("u", 8, 5, seed), normal("o", 8, 5, seed)) for seed in range(400)])
    assert values.mean() == pytest.approx(0, abs=3 * float(values.std()) / 20)
    assert energy_distance(torch.zeros(4, 2).double(), torch.zeros(4, 2).double()) == 0


def test_energy_says_when_originals_are_no_ceiling() -> None:
    found = Energy()(Audit(outputs(normal("p")), outputs(normal("o")), outputs(normal("u")), torch.arange(32)))
    assert found.rescaled is None
    assert "not resolvable" in found.notes[0]
    assert Energy()(audited(normal("u", 12), normal("o", 12))).missing == "not computed: N=12, needs 16"
