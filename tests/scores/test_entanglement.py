"""Entanglement of a forget set with the rest, its diagnostics, and the score that orders images by distance to the centroid."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toy import make_toy
from unlearnlab.contract import ProbeScore, Scores
from unlearnlab.data.partition import Parts
from unlearnlab.outputs import features
from unlearnlab.progress import Progress
from unlearnlab.scores import entanglement as entangled
from unlearnlab.scores.entanglement import (
    CentroidDistance,
    centroid_distances,
    cross_distance,
    describe,
    entanglement,
    entanglements,
    features_of,
    median_distance,
    mmd,
)
from unlearnlab.scores.npz import read_npz, write_npz
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, head_names, headless
from unlearnlab.train import Recipe

NETS = ("small_cnn", "batch_norm", "mlp", "vit")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- features


@pytest.mark.parametrize("net", NETS)
def test_features_are_what_the_head_of_a_plain_module_is_fed(net):
    toy = make_toy(net)
    found = features(toy.stack, toy.split.train, batch=17)
    head = head_names(toy.stack)[0].rpartition(".")[0]
    for k in range(3):
        module, fed = toy.stack.member(k), []
        module.get_submodule(head).register_forward_pre_hook(lambda _, given, fed=fed: fed.append(given[0].detach()))
        with torch.no_grad():
            module(toy.split.train.pixels)
        assert fed[0].shape == found[k].shape
        assert torch.allclose(fed[0], found[k], atol=1e-5)
    assert float((found[0] - found[1]).abs().max()) > 1e-2  # each member's own
    assert not found.requires_grad


def test_features_leave_the_stack_alone_and_see_its_running_means():
    toy = make_toy("batch_norm")
    before = toy.stack.fingerprint
    whole = features(toy.stack, toy.split.train)
    assert toy.stack.fingerprint == before
    assert torch.allclose(whole[:, :5], features(toy.stack, toy.split.train.rows(torch.arange(5))), atol=1e-5)  # eval mode: a batch's own mean plays no part
    assert set(head_names(toy.stack)) == set(toy.stack.params) - set(headless(toy.stack).params)


class Rows(nn.Module):
    """A head that is fed several rows an image."""

    def __init__(self, flatten: bool) -> None:
        super().__init__()
        self.head, self.flatten = nn.Linear(8, 10), flatten

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0] / 255.0
        return self.head(rows.flatten(0, 1)) if self.flatten else self.head(rows).mean(1)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("members", [1, 2])
def test_a_head_that_is_fed_several_rows_an_image_is_refused(flatten, members):
    stack = Stack.init(Rows(flatten), tuple(range(members)))
    with pytest.raises(InputError, match="expected one row of features an image"):
        features(stack, make_toy().split.train)


@pytest.mark.parametrize("members", [1, 3])
def test_of_a_net_that_is_all_head_the_features_are_its_input(members):
    images = make_toy().split.test
    images = replace(images, pixels=images.pixels.float())
    found = features(Stack.init(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tuple(range(members))), images)
    assert torch.equal(found, images.pixels.flatten(1).expand(members, -1, -1))


def test_a_net_without_a_linear_layer_is_refused():
    stack = Stack.init(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), (0,))
    with pytest.raises(InputError, match="no linear layer"):
        features(stack, make_toy().split.train)


# ---- entanglement


def test_entanglement_by_hand():
    forget, retain = torch.tensor([[4.0], [6.0]]), torch.tensor([[-1.0], [0.0], [1.0]])
    # means 5 and 0, spreads 1 and 2/3; of all five the mean is 2, between both means lies 2.5
    assert float(entanglement(forget, retain)) == pytest.approx((1 + 2 / 3) / ((2**2 + 3**2) / 2))
    assert float(entanglement(forget, retain, "midpoint")) == pytest.approx((1 + 2 / 3) / (5**2 / 4))


@pytest.mark.parametrize(("n", "m"), [(30, 420), (3, 42), (50, 50), (7, 1)])
def test_the_midpoint_value_is_the_global_one_times_twice_the_sum_of_squared_shares(n, m):
    """μ_R−μ = s·δ and μ_S−μ = r·δ for the global μ, ½δ each for the midpoint, δ = μ_R−μ_S: denominators ½(r²+s²)‖δ‖² and ¼‖δ‖²."""
    forget, retain = drawn(n, 4) + 1, drawn(m, 4, seed=1)
    ratio = float(entanglement(forget, retain, "midpoint") / entanglement(forget, retain))
    s, r = n / (n + m), m / (n + m)
    assert ratio == pytest.approx(2 * (r**2 + s**2))
    if m == 14 * n:  # as 42 000 to 3 000
        assert ratio == pytest.approx(1.75, abs=0.002)


@pytest.mark.parametrize("centre", ["global", "midpoint"])
def test_entanglement_of_a_stack_is_that_of_each_model_and_knows_no_order(centre):
    forget, retain = drawn(3, 5, 4) + 1, drawn(3, 20, 4, seed=1)
    found = entanglement(forget, retain, centre)
    assert found.shape == (3,)
    for k in range(3):
        assert float(entanglement(forget[k], retain[k], centre)) == pytest.approx(float(found[k]))
    shuffled = entanglement(forget[:, torch.randperm(5)], retain[:, torch.randperm(20)], centre)
    assert torch.allclose(shuffled, found)
    assert torch.allclose(entanglement(7 * forget + 3, 7 * retain + 3, centre), found)  # no units


def test_means_are_true_ones_whatever_the_batches():
    """Means of batch means (256 and a last batch of 44) would weigh the last images six times."""
    retain = torch.cat([drawn(256, 2), drawn(44, 2, seed=1) + 5])
    batched = torch.stack([batch.mean(0) for batch in retain.split(256)]).mean(0)
    forget = retain.mean(0) + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # the true means coincide, those of batches do not
    assert float(entanglement(forget, retain)) > 1e20
    assert float((batched - forget.mean(0)).norm()) > 1


def test_what_lies_among_the_others_is_more_entangled_than_what_lies_apart():
    retain = drawn(200, 3)
    apart = [float(entanglement(drawn(20, 3, seed=1) + shift, retain)) for shift in (1.0, 2.0, 4.0)]
    assert apart[0] > 2 * apart[1] > 4 * apart[2]


@pytest.mark.parametrize("centre", ["global", "midpoint"])
def test_all_groups_in_one_pass_are_each_alone(centre):
    seen = (drawn(2, 40, 3) + 100).float()  # far from 0, where squares of large numbers would cancel
    groups = [torch.arange(0, 10), torch.arange(10, 13), torch.tensor([39]), torch.arange(5, 40)]
    found = entanglements(seen, groups, centre)
    assert found.shape == (2, 4)
    for at, rows in enumerate(groups):
        rest = torch.ones(40, dtype=torch.bool).index_fill(0, rows, False)
        assert torch.allclose(found[:, at], entanglement(seen[:, rows], seen[:, rest], centre), rtol=1e-9)


def test_empty_sets_are_refused():
    with pytest.raises(InputError, match="none empty"):
        entanglement(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(InputError, match=r"got \[2, 3, 2\] and \[3, 2\]"):
        entanglement(torch.zeros(2, 3, 2), torch.zeros(3, 2))
    for rows in (torch.arange(0), torch.arange(3)):
        with pytest.raises(InputError, match="in the group and outside it"):
            entanglements(torch.zeros(1, 3, 2), [rows])


# ---- diagnostics


def test_cross_distance_by_hand():
    forget, retain = torch.tensor([[3.0, 0.0], [3.0, 8.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    # to (0, 0): 3 and √73; to (3, 4): 5 and 5
    assert float(cross_distance(forget, retain)) == pytest.approx(((3 + 73**0.5) / 2 + 5) / 2)
    both = cross_distance(torch.stack([forget, retain]), torch.stack([retain, forget]))
    assert torch.allclose(both, cross_distance(forget, retain))  # the same either way


def naive_mmd(x: Tensor, y: Tensor, sigma: float) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return float(torch.exp(-((a - b) ** 2).sum() / (2 * sigma**2)))

    n, m = len(x), len(y)
    own_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own_x + own_y - 2 * sum(k(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)


def naive_median(points: Tensor) -> float:
    pairs = sorted(float((a - b).norm()) for a, b in combinations(points, 2))
    return pairs[(len(pairs) - 1) // 2]


@pytest.mark.parametrize("memory", [entangled.MEMORY, 8 * 2 * 9, 1])  # one block; blocks of 3×3; one value at a time
def test_mmd_is_the_unbiased_estimator_whatever_the_blocks(monkeypatch, memory):
    monkeypatch.setattr(entangled, "MEMORY", memory)
    x, y = drawn(2, 7, 3) + 50, drawn(2, 5, 3, seed=1) * 2 + 50
    for sigma in (0.7, None):
        found = mmd(x, y, sigma)
        assert found.shape == (2,)
        for k in range(2):
            width = naive_median(torch.cat([x[k], y[k]])) if sigma is None else sigma
            assert float(found[k]) == pytest.approx(naive_mmd(x[k], y[k], width), abs=1e-10)
            assert float(mmd(x[k], y[k], sigma)) == pytest.approx(float(found[k]), abs=1e-12)
    each = torch.tensor([0.7, 3.0])
    assert float(mmd(x, y, each)[1]) == pytest.approx(naive_mmd(x[1], y[1], 3.0), abs=1e-10)
    assert torch.allclose(mmd(x[:, torch.randperm(7)], y, 0.7), mmd(x, y, 0.7))
    assert torch.allclose(mmd(y, x, 0.7), mmd(x, y, 0.7))


def test_mmd_is_zero_on_average_for_one_distribution_and_grows_with_a_shift():
    x, y = drawn(2000, 12, 2), drawn(2000, 9, 2, seed=1)
    null = mmd(x, y, 1.0)
    assert abs(float(null.mean())) < 4 * float(null.std()) / 2000**0.5
    assert bool((null < 0).any())  # unbiased, so at times below 0; a biased one never is
    means = [float(mmd(x, y + shift, 1.0).mean()) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert means == sorted(means)
    assert means[1] > 4 * float(null.std()) / 2000**0.5
    assert float(mmd(drawn(40, 3), drawn(40, 3, seed=1) + 2)) > float(mmd(drawn(40, 3), drawn(40, 3, seed=1) + 0.5))  # the median's width follows


def test_the_median_distance():
    points = drawn(3, 9, 2)
    assert torch.allclose(median_distance(points), torch.tensor([naive_median(one) for one in points], dtype=torch.float64))
    assert float(median_distance(torch.tensor([[0.0], [0.0], [0.0], [0.0], [3.0]]))) == 3  # most pairs coincide
    assert float(median_distance(torch.zeros(4, 2))) == 1
    assert float(mmd(torch.zeros(4, 2), torch.zeros(3, 2))) == 0


def test_of_many_points_the_median_is_that_of_some_drawn(monkeypatch):
    points = drawn(60, 2)
    whole = float(median_distance(points))
    monkeypatch.setattr(entangled, "MEDIAN_POINTS", 40)
    some = [float(median_distance(points, seed)) for seed in (0, 1, 0)]
    assert some[0] == some[2] != some[1]
    assert some == pytest.approx([whole] * 3, rel=0.2)


def test_what_no_mmd_can_be_taken_of_is_refused():
    with pytest.raises(InputError, match="at least 2 points on either side, got 1 and 3"):
        mmd(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(InputError, match="bandwidth = 0 must be more than 0"):
        mmd(drawn(3, 2), drawn(3, 2), 0)
    with pytest.raises(InputError, match="at least 2 points"):
        median_distance(torch.zeros(1, 2))


# ---- the score


def test_distances_by_hand():
    one = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0], [3.0, 3.0]])  # mean (3, 3); four at √18, one at 0
    expected = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64) * 1.25**0.5  # the root mean square is √(4·18/5)
    assert torch.allclose(centroid_distances(one[None]), expected)
    other = torch.tensor([[0.0], [0.0], [0.0], [0.0], [10.0]])  # mean 2: 2, 2, 2, 2, 8, root mean square 4
    both = centroid_distances(torch.stack([one, torch.cat([other, torch.zeros(5, 1)], 1)]))
    assert torch.allclose(both, (expected + torch.tensor([0.5, 0.5, 0.5, 0.5, 2])) / 2)


def test_models_weigh_alike_whatever_their_scale():
    seen = drawn(2, 30, 3)
    assert torch.allclose(centroid_distances(torch.stack([seen[0], 1000 * seen[1]])), centroid_distances(seen))
    order = torch.randperm(30)
    assert torch.allclose(centroid_distances(seen[:, order]), centroid_distances(seen)[order])
    assert torch.equal(centroid_distances(torch.ones(1, 4, 2)), torch.zeros(4, dtype=torch.float64))  # a dead net: no NaN
    raw = (seen[0] - seen[0].mean(0)).norm(dim=1)
    assert torch.equal(centroid_distances(seen[:1]).argsort(), raw.argsort())


def probed() -> tuple[Scores, Tensor, Progress]:
    toy, progress = make_toy(), Progress()
    split, score = toy.split, build("score", {"name": "centroid_distance", "models": 3})
    assert isinstance(score, ProbeScore)
    parts = Parts(split.train, split.validation, split.test)
    gathered = [score.probe(toy.stack.rows(rows), parts, Recipe(), progress) for rows in ([0, 1], [2])]  # two chunks
    joined = {"features": torch.cat([one["features"] for one in gathered])}
    return score.score(joined, split.train.ids), joined["features"], progress


def test_the_score_holds_distances_and_the_features_they_were_taken_of(tmp_path: Path):
    scores, seen, progress = probed()
    toy = make_toy()
    assert seen.shape[:2] == (3, 60)
    assert seen.dtype == torch.float32
    assert torch.allclose(seen, features(toy.stack, toy.split.train), atol=1e-5)
    assert torch.equal(scores.values, centroid_distances(seen))
    assert (scores.name, scores.scale) == ("centroid_distance", "proxy")
    assert scores.beside["features"].shape == (60, 3, seen.shape[2])
    some = toy.split.train.ids[[41, 3]]
    assert torch.equal(features_of(scores, some), seen[:, [41, 3]])
    assert (progress.forward, progress.backward) == (120, 0)  # per model: two chunks of 60
    write_npz(tmp_path / "scores.npz", scores)
    back = read_npz(tmp_path / "scores.npz")
    assert torch.equal(features_of(back, some), seen[:, [41, 3]])
    assert torch.equal(back.values, scores.values)


def test_what_is_measured_of_a_group():
    scores, seen, _ = probed()
    ids = scores.ids
    groups = {"near": ids[scores.values.argsort()[:20]], "far": ids[scores.values.argsort()[-10:]], "one": ids[:1]}
    found = describe(groups, scores)
    for name, held in groups.items():
        inside = torch.isin(ids, held)
        forget, retain = seen[:, inside], seen[:, ~inside]
        assert found[name]["count"] == len(held)
        assert found[name]["distance"] == pytest.approx(float(scores.values[inside].mean()))
        assert found[name]["entanglement"] == pytest.approx(float(entanglement(forget, retain).mean()))
        assert found[name]["cross_distance"] == pytest.approx(float(cross_distance(forget, retain).mean()))
        if name != "one":
            assert found[name]["mmd"] == pytest.approx(float(mmd(forget, retain).mean()))  # the pool is all images: one bandwidth for all groups
    assert found["one"]["mmd"] != found["one"]["mmd"]  # NaN: one image has no pairs
    midpoint = describe(groups, scores, "midpoint")
    assert midpoint["near"]["entanglement"] == pytest.approx(found["near"]["entanglement"] * 2 * (1 / 9 + 4 / 9))
    fewer = describe({"near": groups["near"]}, scores, points=8)["near"]
    assert fewer["mmd"] != found["near"]["mmd"]
    assert fewer["entanglement"] == found["near"]["entanglement"]


def test_a_group_is_measured_against_the_training_set_at_hand():
    scores, seen, _ = probed()
    left = scores.ids[10:]
    found = describe({"some": left[:5]}, scores, train=left.flip(0))
    assert found["some"]["entanglement"] == pytest.approx(float(entanglement(seen[:, 10:15], seen[:, 15:]).mean()))
    with pytest.raises(InputError, match="0 of the 10 ids of group 'gone' are among the 50 training images"):
        describe({"gone": scores.ids[:10]}, scores, train=left)
    with pytest.raises(InputError, match="60 of the 60 ids of group 'all'"):
        describe({"all": scores.ids}, scores)


def test_scores_without_usable_features_are_refused():
    scores, _, _ = probed()
    bare = Scores("memorisation", scores.ids, scores.values)
    with pytest.raises(InputError, match="score 'memorisation' holds no features"):
        describe({"some": scores.ids[:5]}, bare)
    broken = scores.beside["features"].clone()
    broken[7, 1, 0] = torch.nan
    with pytest.raises(InputError, match=f"image id {int(scores.ids[7])} has features that are NaN or infinite in model 1 of 3"):
        describe({"some": scores.ids[:5]}, Scores("centroid_distance", scores.ids, scores.values, beside={"features": broken}))


def test_settings_are_checked():
    assert CentroidDistance().models == 1
    with pytest.raises(InputError, match="at least 1"):
        CentroidDistance(models=0)
