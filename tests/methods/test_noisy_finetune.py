"""``noisy_finetune``: noise of the size it says; ``Langevin``: the process, its bounds, and where it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toy import furthest, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.fit import Batch, Seen, fit
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.noisy_finetune import Chain, Langevin, NoisyFineTune, epsilon_of, langevin_step, renyi_rate, shift
from unlearnlab.nets.mlp import Mlp
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack

PLAIN = Sgd(momentum=0.0, weight_decay=0.0)


# ---- the heuristic


def test_without_noise_it_is_finetune_bit_for_bit() -> None:
    toy = make_toy("batch_norm")
    plain = toy.unlearn(FineTune(epochs=2, batch=16))
    for when in ("once", "every_step"):
        found = toy.unlearn(NoisyFineTune(noise=0, epochs=2, batch=16, when=when))
        assert same(found.params | found.buffers, plain.params | plain.buffers)


def test_noise_is_relative_to_each_tensor_of_each_member(record: Callable[[], list[Any]]) -> None:
    toy = make_toy("mlp")
    scaled = {name: p * torch.tensor([1.0, 10.0, 0.1]).view(-1, *[1] * (p.dim() - 1)) for name, p in toy.stack.params.items()}
    start = replace(toy, stack=toy.stack.having(scaled))
    calls = record()
    start.unlearn(NoisyFineTune(noise=0.01))
    name = "2.weight"  # 2048 weights
    added = (calls[0].stack.params[name] - scaled[name]).flatten(1)
    rms = scaled[name].flatten(1).square().mean(1).sqrt()
    assert torch.allclose(added.std(1) / rms, torch.full((3,), 0.01), rtol=0.06)
    assert torch.allclose(added.mean(1) / rms, torch.zeros(3), atol=0.001)


def test_noise_of_every_step_adds_up() -> None:
    toy = make_toy("mlp")
    still = NoisyFineTune(noise=0.01, when="every_step", epochs=16, batch=56, lr=0)  # 16 steps, nothing but noise
    name = "2.weight"
    added = (toy.unlearn(still).params[name] - toy.stack.params[name]).flatten(1)
    rms = toy.stack.params[name].flatten(1).square().mean(1).sqrt()
    assert torch.allclose(added.std(1) / rms, torch.full((3,), 0.04), rtol=0.06)


def test_pruned_weights_do_not_count_in_the_root_mean_square(record: Callable[[], list[Any]]) -> None:
    toy, name = make_toy("mlp"), "2.weight"
    live = torch.rand(toy.stack.params[name].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    sparse = replace(toy, stack=toy.stack.pruned({name: live}))
    calls = record()
    sparse.unlearn(NoisyFineTune(noise=0.1))
    added = calls[0].stack.params[name] - sparse.stack.params[name]
    for k in range(3):
        rms = sparse.stack.params[name][k][live[k]].square().mean().sqrt()
        assert float(added[k][live[k]].std() / rms) == pytest.approx(0.1, rel=0.1)
        assert int(added[k][~live[k]].count_nonzero()) == 0


# ---- one step, and where it leads


def scalars(count: int, value: float = 0.0) -> Stack:
    """Linear maps of two inputs to one output, without bias."""
    layer = nn.Linear(2, 1, bias=False)
    one = Stack.of([layer] * count, tuple(range(count)))
    return one.having({"weight": torch.full((count, 1, 2), value)})


def test_the_variance_of_one_step_is_twice_eta_sigma_squared() -> None:
    lr, sigma = 0.02, 0.7
    weights = {"w": torch.zeros(4, 50, 100)}
    after = langevin_step((0, 1, 2, 3), lr, sigma, radius=1e6)(weights, 3)["w"]
    assert float(after.var()) == pytest.approx(2 * lr * sigma**2, rel=0.03)  # of 20 000 draws; σ·η would give 0.0002, not 0.0196
    assert abs(float(after.mean())) < 0.005
    again = langevin_step((0, 1, 2, 3), lr, sigma, radius=1e6)(weights, 4)["w"]
    assert abs(float((after * again).mean()) / after.var()) < 0.03  # each step draws anew
    assert abs(float((after[0] * after[1]).mean()) / after.var()) < 0.05  # and each member


def test_the_weights_never_leave_the_ball() -> None:
    lengths: list[Tensor] = []

    def watch(seen: Seen) -> None:
        lengths.append(seen.params["weight"].double().flatten(1).norm(dim=1))

    start, empty = scalars(20), torch.zeros(20, 1)
    fit(start, lambda step: Batch(torch.zeros(20, 1, 2), empty, empty), lambda net, batch, aux: net(batch.images).sum(), lr=1.0, optimizer=PLAIN, steps=50,
        after_step=langevin_step(start.seeds, 1.0, 0.5, radius=0.8), watch=[watch])  # fmt: skip
    found = torch.stack(lengths)
    assert float(found.max()) <= 0.8
    assert float((found > 0.799).double().mean()) > 0.2  # the ball is felt


def test_the_projection_leaves_what_lies_inside_and_is_taken_over_all_tensors() -> None:
    after = langevin_step((0, 1), 1.0, 0.0, radius=5.0)({"a": torch.tensor([[3.0], [6.0]]), "b": torch.tensor([[3.0], [8.0]])}, 0)
    assert after["a"][0].item() == after["b"][0].item() == 3.0
    assert after["a"][1].item() == pytest.approx(3.0, rel=1e-5)
    assert after["b"][1].item() == pytest.approx(4.0, rel=1e-5)


def test_a_ridge_problem_ends_in_the_gibbs_density() -> None:
    """Full-batch steps on f = ½·mean (x·θ − y)² + (λ/2)‖θ‖²: in the end θ ~ exp(−f/σ²), up to the error of finite steps."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=drawn) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]])
    y = x @ torch.tensor([1.0, -2.0]) + 0.3 * torch.randn(30, generator=drawn)
    ridge, sigma, lr, members = 0.5, 0.5, 0.05, 120
    curve = x.T @ x / 30 + ridge * torch.eye(2)
    centre, spread = torch.linalg.solve(curve, x.T @ y / 30), sigma**2 * torch.linalg.inv(curve)
    kept: list[Tensor] = []

    def watch(seen: Seen) -> None:
        if seen.step >= 100 and seen.step % 10 == 0:
            kept.append(seen.params["weight"][:, 0].clone())

    batch = Batch(x.expand(members, 30, 2), y.expand(members, 30), torch.arange(30).expand(members, 30))

    def loss(net: Any, batch: Batch, aux: Any) -> Tensor:
        return 0.5 * (net(batch.images)[:, 0] - batch.labels).square().mean() + ridge / 2 * net.params["weight"].square().sum()

    start = scalars(members)
    fit(start, lambda step: batch, loss, lr=lr, optimizer=PLAIN, steps=241, after_step=langevin_step(start.seeds, lr, sigma, radius=100.0), watch=[watch])
    found = torch.cat(kept)
    # 15 looks at 120 runs, correlated over some 30 steps: standard errors of about 4 % of the width and 6 % of the variance
    width = spread.diagonal().sqrt()
    assert float(((found.mean(0) - centre) / width).abs().max()) < 0.12
    covariance = torch.cov(found.T)
    assert float(((covariance - spread) / (width[:, None] * width[None])).abs().max()) < 0.15
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), (found - centre).T, upper=False).square().sum(0)
    for share in (0.25, 0.5, 0.75, 0.9):  # squared distances of a normal in two dimensions are exponential, of mean 2
        assert float((whitened < -2 * math.log(1 - share)).double().mean()) == pytest.approx(share, abs=0.05)


# ---- the bounds


def test_shift_by_hand() -> None:
    lr, slope, batch, per_epoch, strength = 0.1, 2.0, 4, 3, 0.5
    c = 0.95
    assert shift(lr, slope, batch, per_epoch, strength, 1e9) == pytest.approx(2 * 0.1 * 2 / (4 * (1 - c**3)))
    assert shift(lr, slope, batch, per_epoch, strength, 0.1) == 0.2
    moved = 0.0  # the recursion it is the limit of
    for _ in range(500):
        moved = c**3 * moved + 2 * lr * slope / batch
    assert moved == pytest.approx(shift(lr, slope, batch, per_epoch, strength, 1e9))


def test_renyi_rate_is_that_of_the_exact_gaussians() -> None:
    """For a quadratic loss both runs are normal with one variance, so that D_α = α·(gap)²/(2·variance) exactly; the bound meets it."""
    lr, sigma, strength, gap = 0.1, 0.3, 0.5, 0.8
    c = 1 - lr * strength
    variance = 0.0
    for steps in range(1, 40):
        variance, gap = c**2 * variance + 2 * lr * sigma**2, c * gap
        assert renyi_rate(0.8, lr, sigma, strength, steps) == pytest.approx(gap**2 / (2 * variance))
        assert renyi_rate(0.8, lr, sigma, strength, steps) <= 0.8**2 * c ** (2 * steps) / (2 * lr * sigma**2)  # the form of methods.md
    assert renyi_rate(0.8, lr, sigma, strength, 0) == math.inf


def test_epsilon_is_the_best_over_all_orders() -> None:
    for rate, delta in ((0.01, 1e-5), (1.0, 1e-3), (5.0, 0.1)):
        orders = 1 + torch.logspace(-4, 5, 200_001, dtype=torch.float64)
        best = (orders * rate + math.log(1 / delta) / (orders - 1)).min()
        assert epsilon_of(rate, delta) == pytest.approx(float(best), rel=1e-6)
    assert epsilon_of(0.0, 1e-5) == 0


# ---- where the theorem holds

HOW = Langevin(lr=0.02, noise=0.05, penalty=0.5, radius=2.0, batch=16, length=8.1)


def linear(members: int = 2) -> Stack:
    return Stack.init(Mlp(hidden=())((1, 8, 8), 10), tuple(range(members)))


def learned(images: Images | None = None, epochs: int = 3) -> Chain:
    return HOW.learn(linear(), make_toy().split.train if images is None else images, epochs)


def test_it_learns_inside_the_ball_and_counts() -> None:
    chain = learned(epochs=20)
    toy = make_toy()
    assert float((chain.stack.logits(toy.split.train.pixels).argmax(-1) == toy.split.train.labels).double().mean()) > 0.3
    assert float(torch.cat([p.flatten(1) for p in chain.stack.params.values()], 1).norm(dim=1).max()) <= HOW.radius
    assert chain.epsilon(1e-5) == 0


def test_minibatches_are_fixed_cycle_and_keep_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(stack: Stack, stream: Any, loss: Any, **settings: Any) -> Stack:
        seen.append([stream(step) for step in range(settings["steps"])])
        return stack

    monkeypatch.setattr("unlearnlab.methods.noisy_finetune.fit", record)
    images = make_toy().split.train
    chain = learned(images.rows(torch.randperm(60)), epochs=2)
    gone = chain.ids[[3, 20]].tolist()
    chain.unlearn(images.without(gone), gone, epochs=1)
    learning, unlearning = seen
    assert [batch.ids.shape for batch in learning] == [(2, 16), (2, 16), (2, 16), (2, 12)] * 2
    for batch, later in zip(learning[:4], learning[4:], strict=True):
        assert torch.equal(batch.ids, later.ids)
    for batch, later in zip(learning[:4], unlearning, strict=True):
        assert torch.equal(batch.ids, later.ids)
        empty = torch.isin(batch.ids, torch.tensor(gone))
        assert torch.equal(later.labels == -100, empty)
        assert torch.equal(later.images[~empty], batch.images[~empty])
        assert int(later.images[empty].count_nonzero()) == 0  # nothing of a removed image is left in its slot


def test_an_empty_slot_adds_no_gradient_and_changes_no_divisor() -> None:
    """One noiseless step over one batch of two images, one of which is gone: −η(∇CE(left)/2 + λθ)."""
    toy = make_toy()
    images = toy.split.train.rows(torch.tensor([0, 1]))
    how = Langevin(lr=0.02, noise=1e-12, penalty=0.5, radius=50.0, batch=2, length=8.1)
    chain = replace(how.learn(linear(1), images, 1), stack=linear(1))
    after = chain.unlearn(images.rows(torch.tensor([1])), [int(images.ids[0])], 1).stack
    net = linear(1).member(0)
    for p in net.parameters():
        p.requires_grad_()
    (nn.functional.cross_entropy(net(images.pixels[1:]), images.labels[1:], reduction="sum") / 2).backward()
    expected = {n: (p - 0.02 * (p.grad + 0.5 * p)).detach()[None] for n, p in net.named_parameters()}
    assert furthest(after.params, expected) < 1e-6


def test_requests_add_up_and_shrink() -> None:
    images = make_toy().split.train
    chain = learned(images)
    c = 1 - HOW.lr * HOW.penalty
    z = shift(HOW.lr, math.sqrt(2) * HOW.length, HOW.batch, 4, HOW.penalty, HOW.radius)
    ids = images.ids.tolist()
    first = chain.unlearn(images, ids[:2], epochs=20)
    assert first.distance == pytest.approx(min(2 * z, 2 * HOW.radius))
    assert first.epsilon(1e-5) == pytest.approx(epsilon_of(renyi_rate(first.distance, HOW.lr, HOW.noise, HOW.penalty, 80), 1e-5))
    second = first.unlearn(images, ids[2:3], epochs=5)
    assert second.distance == pytest.approx(min(c**80 * first.distance + z, 2 * HOW.radius))
    assert chain.unlearn(images, ids[:2], epochs=5).epsilon(1e-5) > first.epsilon(1e-5) > 0
    with pytest.raises(InputError, match=f"ids {ids[0]} are not among the images left"):
        second.unlearn(images, ids[:1], epochs=1)
    with pytest.raises(InputError, match="at least one epoch"):
        second.unlearn(images, ids[5:6], epochs=0)


def test_unlearning_draws_other_noise_than_learning() -> None:
    """With the same noise as in learning, both would end at nearly the same weights, and nothing would be hidden."""
    images = make_toy().split.train
    chain, ids = learned(images, epochs=1), images.ids.tolist()
    start = replace(chain, stack=linear())
    first, again = (start.unlearn(images, ids[:1], epochs=1).stack.params["2.weight"] for _ in range(2))
    assert torch.equal(first, again)
    second = replace(start, requests=1).unlearn(images, ids[:1], epochs=1).stack.params["2.weight"]
    assert float((first - chain.stack.params["2.weight"]).std()) > 0.5 * math.sqrt(2 * 2 * HOW.lr * 4) * HOW.noise
    assert float((first - second).std()) > 0.5 * math.sqrt(2 * 2 * HOW.lr * 4) * HOW.noise


def test_a_chain_survives_reload(tmp_path: Path) -> None:
    images = make_toy().split.train
    ids = images.ids.tolist()
    chain = learned(images).unlearn(images, ids[:2], epochs=1)
    chain.save(tmp_path)
    opened = Chain.load(tmp_path, linear().net)
    one, other = (held.unlearn(images.without(ids[:3]), ids[2:3], epochs=1) for held in (chain, opened))
    assert same(one.stack.params, other.stack.params)
    assert one.epsilon(1e-5) == other.epsilon(1e-5)
    assert torch.equal(one.open, other.open)
    assert opened.langevin == HOW


@pytest.mark.parametrize("net", ["small_cnn", "mlp", "vit"])
def test_other_nets_get_no_guarantee(net: str) -> None:
    toy = make_toy(net)
    with pytest.raises(InputError, match="one linear layer"):
        HOW.learn(toy.init, toy.split.train, 1)


def test_what_would_break_the_theorem_is_refused() -> None:
    toy = make_toy()
    with pytest.raises(InputError, match="no contraction"):
        Langevin(lr=0.1)
    with pytest.raises(InputError, match="must be a positive number"):
        Langevin(penalty=0.0)
    with pytest.raises(InputError, match="more than length = 1"):
        replace(HOW, length=1.0).learn(linear(), toy.split.train, 1)
    shifted = Stack.init(Mlp(hidden=())((1, 8, 8), 10, mean=(0.5,)), (0,))
    with pytest.raises(InputError, match="not shifted"):
        HOW.learn(shifted, toy.split.train, 1)
