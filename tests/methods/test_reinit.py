"""Fresh values for some weights, and the few retain images that a method looks at."""

from __future__ import annotations

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.methods.reinit import kaiming_normal, reinitialised
from unlearnlab.methods.sample import sampled
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.spec import InputError
from unlearnlab.stack import Mask, Stack

WIDE = Stack.init(SmallCnn(widths=(16, 64, 32))((1, 8, 8), 10), (0,))


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 16 * 9), ("fan_out", 64 * 9)])
def test_variance_is_two_over_the_fan(mode: str, fan: int) -> None:
    name = "3.weight"  # 64 kernels of 16×3×3
    drawn = kaiming_normal(WIDE, [name], (1, 2, 3), mode=mode)[name]  # type: ignore[arg-type]
    assert drawn.shape == (3, 64, 16, 3, 3)
    assert drawn.var().item() == pytest.approx(2 / fan, rel=0.03)
    assert abs(drawn.mean().item()) < 4 * (2 / fan / drawn.numel()) ** 0.5


def test_a_linear_layer_by_its_inputs() -> None:
    name = list(WIDE.params)[-2]
    drawn = kaiming_normal(WIDE, [name], range(20), mode="fan_in")[name]
    assert drawn.var().item() == pytest.approx(2 / 128, rel=0.05)


def test_values_depend_on_seed_and_tensor_alone(toy: Toy) -> None:
    names = [name for name, p in toy.stack.params.items() if p.dim() > 2]
    all_of_them = kaiming_normal(toy.stack, names, (4, 5, 6), mode="fan_in")
    one = kaiming_normal(toy.stack.rows([1]), names[1:2], (5,), mode="fan_in")
    assert torch.equal(one[names[1]][0], all_of_them[names[1]][1])
    assert not torch.equal(all_of_them[names[0]][0], all_of_them[names[0]][1])
    assert not torch.equal(all_of_them[names[1]][0, 0, 0], all_of_them[names[2]][0, 0, 0])  # no two layers start alike


def test_a_bias_has_no_fan(toy: Toy) -> None:
    with pytest.raises(InputError, match=r"cannot draw '1.bias' of shape \[10\]"):
        kaiming_normal(toy.stack, ["1.bias"], (0, 1, 2), mode="fan_in")


def test_only_what_is_chosen_open_and_live_is_drawn_anew() -> None:
    toy, name = make_toy("mlp"), "2.weight"
    shape, lots = toy.stack.params[name].shape, torch.Generator().manual_seed(1)
    chosen, opened, live = (torch.rand(shape, generator=lots) < 0.5 for _ in range(3))
    sparse = toy.stack.pruned({name: live})
    mask = Mask(Mask.everything(sparse).open | {name: opened}, sparse.fingerprint)
    after = reinitialised(sparse, {name: chosen}, toy.context(mask=mask))
    assert torch.equal(after.params[name] != sparse.params[name], chosen & opened & live)
    rest = {other: p for other, p in sparse.params.items() if other != name}
    assert same({other: after.params[other] for other in rest}, rest)


def test_samples_are_each_members_own() -> None:
    images = Images(torch.zeros(200, 1, 2, 2), torch.zeros(200, dtype=torch.int64), torch.arange(200), 2)
    rows = sampled(images, 0.29, (1, 2, 3))
    assert rows.shape == (3, 58)
    assert all(len(set(row)) == 58 and row == sorted(row) for row in rows.tolist())
    assert len({tuple(row) for row in rows.tolist()}) == 3
    assert torch.equal(sampled(images, 0.29, (2,))[0], rows[1])
    assert sampled(images, 0.001, (1,)).shape == (1, 1)
    assert torch.equal(sampled(images, 1.0, (1,))[0], torch.arange(200))
