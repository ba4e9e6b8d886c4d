"""How far masks agree, and what each layer opens."""

from __future__ import annotations

import torch

from toy import Toy, make_toy
from unlearnlab.localise.overlap import chance_jaccard, jaccard, layer_shares
from unlearnlab.localise.random import Random
from unlearnlab.stack import Mask, blocks


def test_jaccard_by_hand() -> None:
    a = Mask({"w": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool(), "b": torch.tensor([[1], [0], [0]]).bool()}, "")
    b = Mask({"w": torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool(), "b": torch.tensor([[1], [1], [0]]).bool()}, "")
    assert jaccard(a, b).tolist() == [0.5, 0.5, 1.0]
    assert jaccard(a, a).tolist() == [1.0] * 3


def test_two_draws_overlap_as_chance_says(toy: Toy) -> None:
    masks = [toy.locate(Random(budget=budget, draw=draw)) for draw, budget in enumerate((0.3, 0.5))]
    expected = chance_jaccard(*(mask.share() for mask in masks))
    assert torch.allclose(expected, torch.full((3,), 0.15 / 0.65), atol=1e-3)
    assert torch.allclose(jaccard(*masks), expected, atol=0.03)
    assert chance_jaccard(torch.zeros(2), torch.tensor([0.0, 0.5])).tolist() == [1.0, 0.0]


def test_shares_of_layers_are_named_and_in_forward_order() -> None:
    toy = make_toy("vit")
    mask = toy.locate(Random(budget=0.4))
    shares = layer_shares(mask, toy.stack.net)
    assert list(shares)[:4] == ["norm", "embedding", "positions", "blocks.0.attention.norm"]
    assert "blocks.0.attention.qkv" in shares
    sizes = torch.tensor([sum(toy.stack.params[name][0].numel() for name in names) for names in blocks(toy.stack.net)])
    assert torch.allclose((torch.stack(list(shares.values()), 1) * sizes).sum(1) / sizes.sum(), mask.share(), atol=1e-6)
