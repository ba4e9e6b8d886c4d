"""Stacks, masks and the grouped path behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unlearnlab import grouped
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.spec import InputError
from unlearnlab.stack import Divergence, Mask, Stack, chunk_size, flat, head_names, in_mode, is_stochastic, per_member, top_share, unflat

SHAPE = (1, 8, 8)
NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: Mlp(hidden=(12,))(SHAPE, 10),
    "small_cnn": lambda: SmallCnn(widths=(4, 4, 6))(SHAPE, 10),
    "small_cnn batch norm": lambda: SmallCnn(widths=(4, 4, 6), norm="batch")(SHAPE, 10),
    "not simple": lambda: nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(36, 10)),
}


def pixels(n: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make(name: str, seeds: tuple[int, ...] = (1, 2, 3)) -> Stack:
    """A stack whose buffers differ between members too."""
    stack = Stack.init(NETS[name](), seeds)
    noise = torch.Generator().manual_seed(9)
    return stack.having(buffers={n: b + torch.rand(b.shape, generator=noise) if b.is_floating_point() else b for n, b in stack.buffers.items()})


def same(a: Stack, b: Stack) -> bool:
    return a.seeds == b.seeds and all(torch.equal((a.params | a.buffers)[name], tensor) for name, tensor in (b.params | b.buffers).items())


@pytest.mark.parametrize("name", NETS)
def test_a_stack_says_what_its_members_say(name: str) -> None:
    stack, images = make(name), pixels() if name != "not simple" else pixels().float() / 255
    members = [stack.member(k) for k in range(3)]
    alone = torch.stack([member(images) for member in members]).detach()
    assert not members[0].training
    assert all(p.requires_grad for p in members[0].parameters())
    assert stack.logits(images).shape == (3, 7, 10)
    torch.testing.assert_close(stack.logits(images), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([stack.rows([k]).logits(images) for k in range(3)]), alone, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@pytest.mark.parametrize("name", NETS)
def test_stacking_and_taking_apart_lose_nothing(name: str) -> None:
    stack = make(name)
    assert same(Stack.of([stack.member(k) for k in range(3)], stack.seeds), stack)
    assert same(Stack.join([stack.rows([0]), stack.rows([1, 2])]), stack)
    turned = stack.rows([2, 0])
    assert turned.seeds == (3, 1)
    assert all(torch.equal(turned.params[name], tensor[[2, 0]]) for name, tensor in stack.params.items())
    assert turned.fingerprint != stack.rows([0, 2]).fingerprint == stack.rows([0, 2]).fingerprint
    assert len(stack) == 3


def test_members_and_models_are_copies() -> None:
    module = NETS["mlp"]()
    stack = Stack.of([module], [0])
    before = stack.fingerprint
    with torch.no_grad():
        for p in [*module.parameters(), *stack.member(0).parameters()]:
            p.add_(1)
    assert Stack(stack.net, stack.params, stack.buffers, stack.seeds).fingerprint == before


def test_diverged_members_stay_named() -> None:
    bad = Divergence(2, 5, float("nan"))
    stack = make("mlp")
    stack = Stack(stack.net, stack.params, stack.buffers, stack.seeds, (bad,))
    assert stack.rows([0]).diverged == ()
    assert stack.rows([1]).diverged == (bad,)
    assert Stack.join([stack, stack.rows([0])]).diverged == (bad,)
    assert str(bad) == "seed 2 at step 5: loss nan"


def test_only_models_of_one_architecture_stack() -> None:
    with pytest.raises(InputError, match="share one architecture"):
        Stack.of([NETS["mlp"](), NETS["small_cnn"]()], [0, 1])
    with pytest.raises(InputError, match="one seed each"):
        Stack.of([NETS["mlp"]()], [0, 1])


@pytest.mark.parametrize("name", NETS)
def test_initial_weights_depend_on_seed_and_purpose_alone(name: str) -> None:
    net = NETS[name]()
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    stack = Stack.init(net, (1, 2, 3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    torch.manual_seed(77)
    assert same(Stack.init(NETS[name](), (3, 2, 1)).rows([2, 1, 0]), stack)
    assert not same(Stack.init(net, (1, 2, 3), "fresh_init"), stack)


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_fresh_members_share_no_weight(name: str) -> None:
    stack = make(name)
    fresh = stack.fresh(stack.seeds)
    rows = torch.cat([flat(stack.params), flat(fresh.params)])  # six models: no weight in common, within or across
    for a in range(6):
        assert not any((rows[a] == rows[b]).any() for b in range(a))
    assert fresh.seeds == stack.seeds
    norm = Stack.of([make("small_cnn batch norm").member(0)], [0]).fresh([5])
    assert all((norm.buffers[b] == (1 if "var" in b else 0)).all() for b in norm.buffers)


def test_what_cannot_be_initialised_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    with pytest.raises(InputError, match=r"cannot re-initialise '1': it holds by but has no reset_parameters\(\) method; add one"):
        Stack.init(nn.Sequential(nn.Flatten(), Scale()), [0])
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))))  # grandchildren are reset too
    assert not any((Stack.of([nested], [0]).params[name] == t).any() for name, t in Stack.init(nested, [0]).params.items())


# ---------------------------------------------------------------- masks and rows


def chequered(stack: Stack) -> Mask:
    return Mask({name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for name, p in stack.params.items()}, stack.fingerprint)


def test_mask() -> None:
    stack = make("mlp")
    mask, zeros = chequered(stack), {name: torch.zeros_like(p) for name, p in stack.params.items()}
    chosen = mask.choose(stack.params, zeros)
    assert all(torch.equal(chosen[name], stack.params[name] * mask.open[name]) for name in chosen)
    torch.testing.assert_close(mask.share(), torch.full((3,), 0.5), atol=0.01, rtol=0)
    assert Mask.everything(stack).share().tolist() == [1, 1, 1]
    head = head_names(stack)
    assert head == ["4.weight", "4.bias"]
    opened = mask.opening(head)
    assert all(opened.open[name].all() for name in head)
    assert torch.equal(opened.open["2.weight"], mask.open["2.weight"])
    assert not mask.open["4.weight"].all()
    mask.require(stack)
    with pytest.raises(InputError, match="this mask was made from model"):
        mask.require(stack.having({**stack.params, "4.bias": stack.params["4.bias"] + 1e-7}))
    with pytest.raises(InputError, match="no linear layer"):
        head_names(Stack.of([nn.Conv2d(1, 1, 1)], [0]))


def test_mask_share_is_per_member() -> None:
    stack = make("mlp")
    is_open = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in stack.params.items()}
    is_open["4.bias"][1] = True
    total = sum(p[0].numel() for p in stack.params.values())
    assert Mask(is_open, "").share().tolist() == pytest.approx([0, 10 / total, 0])


def test_top_share_breaks_ties_by_position() -> None:
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_share(scores, 3).int().tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 0, 0]]
    assert top_share(scores, torch.tensor([1, 4])).int().tolist() == [[0, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert not top_share(scores, 0).any()
    assert top_share(scores, 5).all()
    many = torch.randint(3, (2, 5000), generator=torch.Generator().manual_seed(0)).float()
    for row, kept in zip(many, top_share(many, 2000), strict=True):
        assert set(kept.nonzero().flatten().tolist()) == set(sorted(range(5000), key=lambda i: (-row[i].item(), i))[:2000])


@pytest.mark.parametrize("name", ["mlp", "small_cnn batch norm"])
def test_flat_and_back(name: str) -> None:
    stack = make(name)
    row = flat(stack.params)
    assert row.shape == (3, sum(p.numel() for p in stack.net.parameters()))
    back = unflat(row, stack.params)
    assert list(back) == list(stack.params)
    assert all(torch.equal(back[n], p) for n, p in stack.params.items())
    torch.testing.assert_close(per_member(stack.params), row.sum(1))
    torch.testing.assert_close(per_member(stack.params, lambda t: t.square().sum(1)), row.square().sum(1))


def test_modes() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    train, frozen, off = (in_mode(net, policy) for policy in ("train", "frozen", "eval_all"))
    assert [[part.training for part in made] for made in (train, frozen, off)] == [[True] * 3, [True, False, True], [False] * 3]
    assert in_mode(net, "frozen") is frozen
    assert (is_stochastic(train), is_stochastic(frozen), is_stochastic(off)) == (True, True, False)
    assert not is_stochastic(nn.Sequential(nn.Dropout(0.0)))
    assert chunk_size(NETS["small_cnn"]()) == 8


# ---------------------------------------------------------------- the grouped path against torch's own rules


def odd_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.Sequential(nn.ReLU(), nn.AvgPool2d(2, stride=1)),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.BatchNorm2d(6, momentum=0.3, eps=1e-3),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(54, 5, bias=False),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n", [6, 1])  # a single image: torch 2.13's batch norm errs there on tensors that channels last leaves ambiguous
def test_grouped_layers_compute_what_torch_computes(training: bool, shared: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack.init(odd_layers(), (1, 2, 3))
    x = torch.randn(*(() if shared else (3,)), n, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    net = stack.net.train(training)
    assert grouped.is_simple(net)

    def run() -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
        leaves = {name: p.clone().requires_grad_() for name, p in stack.params.items()}

        def one(params: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            own = {name: b.clone() for name, b in buffers.items()}
            return grouped.call_member(net, params | own, images), own

        logits, buffers = torch.vmap(one, in_dims=(0, 0, None if shared else 0))(leaves, stack.buffers, x)
        return logits.detach(), torch.autograd.grad(logits.square().sum(), list(leaves.values())), buffers

    ours = run()
    monkeypatch.setattr(grouped, "is_simple", lambda net: False)
    theirs = run()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours[2]["3.running_mean"] != 0).any() == training


def test_a_loss_may_differentiate_inside_the_stack() -> None:
    stack, x = make("small_cnn"), pixels().float() / 255
    net = in_mode(stack.net, "eval_all")

    def slope(params: dict[str, Tensor], images: Tensor) -> Tensor:
        def worst(images: Tensor) -> Tensor:
            return grouped.call_member(net, params, images).amax(1).sum()

        return torch.func.grad(worst)(images)

    found = torch.vmap(slope, in_dims=(0, None))(stack.params, x)
    for k in range(3):
        leaf = x.clone().requires_grad_()
        stack.member(k)(leaf).amax(1).sum().backward()
        torch.testing.assert_close(found[k], leaf.grad, rtol=1e-4, atol=1e-6)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net[1].register_forward_hook(lambda module, args, output: output * 2)
    return net


def tied() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def one_relu_twice() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), relu, nn.Linear(3, 4), relu)


@pytest.mark.parametrize(
    ("make_net", "simple"), [(hooked, False), (tied, False), (lambda: nn.Sequential(nn.Flatten(), Doubled(4, 2)), False), (one_relu_twice, True)]
)
def test_nets_that_only_look_simple_take_torchs_path(make_net: Callable[[], nn.Module], simple: bool) -> None:
    nets = [make_net(), make_net()]
    x = torch.randn(5, 4)
    assert grouped.is_simple(nets[0]) == simple
    torch.testing.assert_close(Stack.of(nets, (0, 1)).logits(x), torch.stack([net(x) for net in nets]).detach())
