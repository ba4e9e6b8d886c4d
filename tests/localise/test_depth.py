"""``shallowest`` and ``deepest``: layers in the order of the forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toy import make_toy
from unlearnlab.contract import Localiser
from unlearnlab.localise.deepest import Deepest
from unlearnlab.localise.shallowest import Shallowest
from unlearnlab.stack import Mask, Stack, blocks


class Backwards(nn.Module):
    """Defines its last layer first."""

    forward_order = ("first", "second", "head")

    def __init__(self) -> None:
        super().__init__()
        self.head, self.second, self.first = nn.Linear(4, 2), nn.Linear(5, 4), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.second(self.first(x)))
        return found


def located(where: Localiser, stack: Stack) -> Mask:
    return where(stack, None, None)  # type: ignore[arg-type]  # they look at neither


def shares(mask: Mask) -> dict[str, float]:
    return {name: float(bits[0].float().mean()) for name, bits in mask.open.items() if name.endswith("weight")}


def test_layers_open_in_the_order_of_the_forward_pass_not_of_definition() -> None:
    stack = Stack.init(Backwards(), (0,))  # 20, 24 and 10 weights
    assert shares(located(Shallowest(budget=0.4), stack)) == {"head.weight": 0, "second.weight": 0, "first.weight": 1}
    assert shares(located(Shallowest(budget=0.5), stack)) == {"head.weight": 0, "second.weight": 0.25, "first.weight": 1}  # 27: 20 and one of 5
    assert shares(located(Deepest(budget=0.3), stack)) == {"head.weight": 1, "second.weight": 0.25, "first.weight": 0}  # 16.2: 10 and one of 5


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "vit"])
@pytest.mark.parametrize("where", [Shallowest, Deepest])
def test_only_one_layer_opens_in_part(where: type[Shallowest | Deepest], net: str) -> None:
    stack = make_toy(net).stack
    for budget in (0.1, 0.3, 0.6):
        mask = located(where(budget=budget), stack)
        order = blocks(stack.net) if where is Shallowest else blocks(stack.net)[::-1]
        opened = [torch.cat([mask.open[name][0].flatten() for name in names]).float().mean().item() for names in order]
        partly = [at for at, share in enumerate(opened) if 0 < share < 1]
        assert len(partly) <= 1
        assert opened == sorted(opened, reverse=True)


def test_together_they_share_little() -> None:
    stack = make_toy("small_cnn").stack
    first, last = located(Shallowest(budget=0.4), stack), located(Deepest(budget=0.4), stack)
    assert not any(bool((bits & last.open[name]).any()) for name, bits in first.open.items())
