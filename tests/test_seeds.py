"""Random numbers depend on (seed, purpose, counters) alone."""

from __future__ import annotations

import itertools

import torch

from unlearnlab.seeds import PER_STUDY, RANGES, generator, model_seeds, seeded


def draw(seed: int, purpose: str, *counters: int) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=generator(seed, purpose, *counters)).tolist())


def test_a_draw_depends_on_seed_purpose_and_counters_alone() -> None:
    cases = [(1, "init"), (2, "init"), (1, "order"), (1, "order", 0), (1, "order", 1), (11, "order"), (1, "order", 1, 1), (1, "order", 11)]
    first = [draw(*case) for case in cases]
    torch.manual_seed(5)
    torch.rand(3)
    assert [draw(*case) for case in reversed(cases)][::-1] == first
    assert len(set(first)) == len(first)
    assert generator(1, "init").initial_seed() == 5267816590608909949  # the same for ever: stored models depend on it


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    draw(1, "init")
    with seeded(1, "dropout", 3, device=torch.device("cpu")):
        inside = torch.rand(4).tolist()
        torch.rand(100)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tuple(inside) == draw(1, "dropout", 3)


def test_roles_and_studies_take_disjoint_seeds() -> None:
    sets = [set(model_seeds(role, 1000, study)) for role, study in itertools.product(RANGES, range(3))]
    assert len(set.union(*sets)) == sum(len(one) for one in sets) == 3000 * len(RANGES)
    assert model_seeds("oracle", 3) == (100_000, 100_001, 100_002)
    assert model_seeds("original", 2, 4) == (4 * PER_STUDY, 4 * PER_STUDY + 1)
    assert model_seeds("retrain", 8)[:5] == model_seeds("retrain", 5)  # growing an ensemble keeps its members
