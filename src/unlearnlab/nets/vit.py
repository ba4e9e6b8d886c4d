"""``vit_small_data``: a vision transformer for small data sets (shifted patches, attention without a look at oneself)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec


@spec("net", "vit_small_data", paper="arXiv:2112.13492")
class VitSmallData:
    """A vision transformer for small data sets: shifted patches, local attention; 11 013 518 weights on 32×32 images, 10 classes.

    Each patch is cut from the image and from its copies shifted by one pixel to the right, to the left, down and up; no token
    attends to itself, and each block learns its temperature. Nothing is dropped at random.

    Source: Lee, Lee & Song 2021, §3; protocols.md §2. Differs from the paper: shifts by one pixel along the axes (there: by half a
    patch along the diagonals), as in the code that unlearning papers use.
    """

    patch: Annotated[int, Setting("height and width of a patch, in pixels", symbol="P", ge=1)] = 8
    dim: Annotated[int, Setting("width of a token", ge=1)] = 512
    depth: Annotated[int, Setting("blocks", ge=1)] = 4
    heads: Annotated[int, Setting("attention heads", ge=1)] = 8
    head_dim: Annotated[int, Setting("width of a head", ge=1)] = 64
    mlp: Annotated[int, Setting("hidden units of a block's perceptron", ge=1)] = 1536

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        channels, height, width = shape
        if height % self.patch or width % self.patch:
            raise InputError(
                f"net 'vit_small_data' cuts images into patches of {self.patch}×{self.patch} pixels, which do not fill {height}×{width}; set patch"
            )
        values = 5 * channels * self.patch**2
        tokens = (height // self.patch) * (width // self.patch)
        layers: dict[str, nn.Module] = {
            "pixels": Pixels(mean, std, (height, width)),
            "patches": ShiftedPatches(self.patch),
            "norm": nn.LayerNorm(values),
            "embedding": nn.Linear(values, self.dim),
            "positions": Positions(tokens, self.dim),
            "blocks": nn.Sequential(*[Block(self.dim, self.heads, self.head_dim, self.mlp) for _ in range(self.depth)]),
            "first": ClassToken(),
            "last_norm": nn.LayerNorm(self.dim),
            "head": nn.Linear(self.dim, classes),
        }
        return nn.Sequential(OrderedDict(layers))


class ShiftedPatches(nn.Module):
    """Patches of the image and of its four shifted copies; beyond the border all is zero."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n tokens values"]:
        n, c, h, w = x.shape
        wide = nn.functional.pad(x, (1, 1, 1, 1))
        # an image shifted to the right shows at each place what stood on its left
        right, left = wide[..., 1:-1, :-2], wide[..., 1:-1, 2:]
        down, up = wide[..., :-2, 1:-1], wide[..., 2:, 1:-1]
        all_five, p = torch.cat([x, right, left, down, up], 1), self.patch
        return all_five.reshape(n, 5 * c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, (h // p) * (w // p), 5 * c * p * p)


class Positions(nn.Module):
    """Put the learned class token before the others, and add to each token what is learned of its place."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.places = nn.Parameter(torch.empty(1, tokens + 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.class_token)
        nn.init.normal_(self.places)

    def forward(self, x: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n tokens+1 dim"]:
        return torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.places


class Temperature(nn.Module):
    """Scores times exp(t), t learned: at start 1/√d, the usual scale."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.t = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.t, -0.5 * math.log(self.head_dim))

    def forward(self, scores: Tensor) -> Tensor:
        return scores * self.t.exp()


class LocalAttention(nn.Module):
    """Softmax over the *other* tokens. Written out, since torch's fused kernel has no ``vmap`` rule on a CPU."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.temperature = Temperature(head_dim)
        self.out = nn.Linear(heads * head_dim, dim)

    def shares(self, q: Tensor, k: Tensor) -> Float[Tensor, "n heads tokens tokens"]:
        """How much each token takes from each other one."""
        oneself = torch.eye(q.shape[-2], dtype=torch.bool, device=q.device)
        scores: Tensor = self.temperature(q @ k.transpose(-2, -1))
        return scores.masked_fill(oneself, -math.inf).softmax(-1)

    def forward(self, x: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n tokens dim"]:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        seen: Tensor = self.out((self.shares(q, k) @ v).transpose(1, 2).reshape(n, tokens, -1))
        return seen


class Block(nn.Module):
    """Attention, then a perceptron for each token, both added to what comes in."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp: int) -> None:
        super().__init__()
        self.attention = LocalAttention(dim, heads, head_dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, mlp), nn.GELU(), nn.Linear(mlp, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        more: Tensor = self.mlp(x)
        return x + more


class ClassToken(nn.Module):
    """The first token alone."""

    def forward(self, x: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n dim"]:
        return x[:, 0]
