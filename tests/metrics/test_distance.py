"""Distances of probabilities and likeness to untrained nets, by hand and against plain loops."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from simulated import draws, outputs_of, study

from unlearnlab.contract import Audit
from unlearnlab.metrics.distance import ActivationDistance, ActivationDistanceL1, JensenShannon, ZeroRetrainForgetting, jensen_shannon, l1, l2

HALF, SURE = [0.5, 0.5], [1.0, 0.0]


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def of_probabilities(u: list[float], o: list[float], models: int = 3, nets: int = 5) -> Audit:
    """All models of a side give these probabilities; sure ones by a logit that is huge, not infinite."""

    def side(p: list[float], count: int, start: int) -> object:
        return outputs_of(logs(p).clamp_min(-1e4).expand(count, 1, -1), [0], ["forget"], start)

    return replace(Audit(side(u, models, 0), side(o, models, 100_000), side(u, models, 0)), untrained=side(o, nets, 600_000))


def test_by_hand() -> None:
    audit = of_probabilities(SURE, HALF)
    assert ActivationDistance()(audit).value == pytest.approx(0.707107, abs=1e-6)
    assert ActivationDistanceL1()(audit).value == pytest.approx(1.0)
    found = JensenShannon()(audit)
    assert (found.value, found.extra["bits"]) == (pytest.approx(0.215762, abs=1e-6), pytest.approx(0.311278, abs=1e-6))
    likeness = ZeroRetrainForgetting()(audit)
    assert (likeness.value, likeness.extra["bits"]) == (pytest.approx(0.784238, abs=1e-6), pytest.approx(0.688722, abs=1e-6))


def test_js_is_that_of_the_definition_not_of_the_widely_copied_code() -> None:
    p, q = logs(HALF), logs([0.9, 0.1])
    assert float(jensen_shannon(p, q)) == pytest.approx(0.1017, abs=1e-4)
    m = (p.exp() + q.exp()) / 2
    copied = (m * (m.log() - p)).mean() / 2 + (m * (m.log() - q)).mean() / 2  # KL(m ‖ p), the mean over classes too
    assert float(copied) == pytest.approx(0.0590, abs=1e-3)
    assert float(jensen_shannon(p, q)) != pytest.approx(float(copied), abs=0.03)


@pytest.mark.parametrize("classes", [2, 7])
def test_distances_equal_plain_ones(classes: int) -> None:
    p, q = (3 * draws(4, classes, seed=seed) for seed in (0, 1))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    for i in range(4):
        a, b = p[i].exp().numpy(), q[i].exp().numpy()
        assert float(l2(p, q)[i]) == pytest.approx(math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))))
        assert float(l1(p, q)[i]) == pytest.approx(sum(abs(x - y) for x, y in zip(a, b, strict=True)))
        assert float(jensen_shannon(p, q)[i]) == pytest.approx(jensenshannon(a, b) ** 2)


def test_one_hot_rows_reach_the_ends_and_stay_finite() -> None:
    apart = of_probabilities(SURE, [0.0, 1.0])
    assert ActivationDistance()(apart).value == pytest.approx(math.sqrt(2))
    assert ActivationDistanceL1()(apart).value == pytest.approx(2)
    found = JensenShannon()(apart)
    assert (found.value, found.extra["bits"]) == (pytest.approx(math.log(2)), pytest.approx(1))
    assert ZeroRetrainForgetting()(apart).extra["bits"] == pytest.approx(0, abs=1e-12)
    assert JensenShannon()(of_probabilities(SURE, SURE)).value == 0.0
    assert ZeroRetrainForgetting()(of_probabilities(HALF, HALF)).value == pytest.approx(1)


@pytest.mark.parametrize(("metric", "distance"), [(ActivationDistance(), l2), (ActivationDistanceL1(), l1), (JensenShannon(), jensen_shannon)])
def test_pairs_go_by_seed(metric: ActivationDistance, distance: object) -> None:
    audit = study(6, oracles=8)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = replace(audit, unlearned=audit.unlearned.rows(order), oracles=audit.oracles.rows(range(7, -1, -1)), parents=order)
    u, o = (side.of("forget").logits.double().log_softmax(-1) for side in (audit.unlearned, audit.oracles))
    each = torch.stack([torch.stack([distance(u[i, j], o[i, j]) for j in range(u.shape[1])]) for i in range(6)])
    found = metric(mixed)
    assert found.value == pytest.approx(float(each.mean()))
    assert found.per_model == pytest.approx(each.mean(1)[order].tolist())
    assert found.per_example == pytest.approx(each.mean(0).tolist())
    assert "6 pairs of 6 unlearned models and 8 oracles" in found.notes
    assert 0 < found.floor.mean < found.value < found.ceiling.mean
    more = metric(study(8, oracles=6))  # two unlearned models are in no pair
    assert more.per_model is None
    assert more.value is not None


def test_the_same_oracle_again_is_at_no_distance() -> None:
    audit = study(6)
    assert ActivationDistance()(replace(audit, unlearned=audit.oracles)).value == 0.0
    assert not any("seeds" in note for note in JensenShannon()(replace(audit, unlearned=audit.oracles)).notes)


def test_likeness_is_the_mean_over_untrained_nets_and_perfect_is_the_oracles() -> None:
    audit = study(6)
    u, nets = audit.unlearned.of("forget").log_prob, audit.untrained.of("forget").log_prob
    each = [1 - sum(float(jensen_shannon(u[i, j], net[j])) for net in nets for j in range(40)) / (40 * len(nets)) for i in range(6)]
    found = ZeroRetrainForgetting()(audit)
    assert found.per_model == pytest.approx(each)
    assert found.floor.mean == pytest.approx(ZeroRetrainForgetting()(replace(audit, unlearned=audit.oracles)).value)
    assert (found.better, found.perfect) == ("match_oracle", None)
    # a model that answers as an untrained net does scores above every oracle, and so is far from perfect
    blank = replace(audit, unlearned=replace(audit.unlearned, logits=audit.untrained.logits))
    unsure = ZeroRetrainForgetting()(blank)
    assert unsure.value > found.floor.mean
    assert unsure.rescaled < -0.5


def test_one_untrained_net_is_not_enough() -> None:
    audit = study(4)
    few = replace(audit, untrained=audit.untrained.rows(range(4)))
    assert ZeroRetrainForgetting()(few).missing == "not computed: 4 untrained nets, needs 5"
    assert ZeroRetrainForgetting()(replace(audit, untrained=None)).missing == "not computed: there are no untrained nets to compare with"
    assert ZeroRetrainForgetting()(replace(audit, untrained=audit.untrained.rows(range(5)))).missing is None
    assert JensenShannon()(study(2)).missing == "not computed: N=2, needs 3"
