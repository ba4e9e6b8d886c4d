"""``swin_t``: a Swin transformer for small images, without any convolution."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec


@spec("net", "swin_t", paper="arXiv:2103.14030")
class SwinT:
    """A Swin transformer for small images: attention in windows, every second time shifted; 26 598 646 weights with 10 classes.

    A stage merges patches (a linear map of each square of them), then lets tokens attend within windows. Every second block rolls
    the image by half a window first; tokens that only the roll brought together do not see each other.

    Source: Liu et al. 2021, §3; protocols.md §2. Differs from the paper, as does the code that unlearning papers use for CIFAR:
    windows of 4, downscaling 2-2-2-1, one table of relative positions for all heads (standard normal at start), q, k and v without
    bias, no norm between stages, nothing dropped at random, and a shift also where a single window covers the image.
    """

    window: Annotated[int, Setting("height and width of a window, in tokens", symbol="M", ge=1)] = 4
    downscaling: Annotated[tuple[int, ...], Setting("height and width of the squares merged before each stage", ge=1)] = (2, 2, 2, 1)
    dims: Annotated[tuple[int, ...], Setting("width of the tokens of each stage", symbol="C", ge=1)] = (96, 192, 384, 768)
    depths: Annotated[tuple[int, ...], Setting("blocks of each stage", ge=1)] = (2, 2, 6, 2)
    heads: Annotated[tuple[int, ...], Setting("attention heads of each stage", ge=1)] = (3, 6, 12, 24)
    head_dim: Annotated[int, Setting("width of a head", symbol="d", ge=1)] = 32

    def __post_init__(self) -> None:
        lengths = [len(each) for each in (self.downscaling, self.dims, self.depths, self.heads)]
        if lengths[0] == 0 or len(set(lengths)) > 1:
            raise InputError(f"net 'swin_t': downscaling, dims, depths and heads need one number a stage each, got {lengths} numbers")

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        inside, height, width = shape
        layers: dict[str, nn.Module] = {"pixels": Pixels(mean, std, (height, width)), "last": ChannelsLast()}
        for at, (scale, dim, depth, heads) in enumerate(zip(self.downscaling, self.dims, self.depths, self.heads, strict=True), 1):
            if height % (scale * self.window) or width % (scale * self.window):
                what = f"stage {at} merges {scale}×{scale} of {height}×{width} tokens and cuts the result into windows of {self.window}×{self.window}"
                raise InputError(f"net 'swin_t' does not fit images of {shape[1]}×{shape[2]} pixels: {what}; set window or downscaling")
            height, width = height // scale, width // scale
            blocks = [Block(dim, heads, self.head_dim, self.window, self.window // 2 if odd % 2 else 0) for odd in range(depth)]
            layers[f"stage{at}"] = nn.Sequential(OrderedDict(merge=Merge(inside, dim, scale), blocks=nn.Sequential(*blocks)))
            inside = dim
        layers |= {"mean": TokenMean(), "norm": nn.LayerNorm(inside), "head": nn.Linear(inside, classes)}
        return nn.Sequential(OrderedDict(layers))


class ChannelsLast(nn.Module):
    """Tokens as transformers like them: the channels behind."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w c"]:
        return x.movedim(1, -1)


class Merge(nn.Module):
    """Each square of ``scale`` × ``scale`` tokens becomes one by a linear map."""

    def __init__(self, inside: int, dim: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(inside * scale**2, dim)

    def forward(self, x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h/s w/s dim"]:
        (n, h, w, c), s = x.shape, self.scale
        squares = x.reshape(n, h // s, s, w // s, s, c).permute(0, 1, 3, 5, 2, 4)  # channel, row, column: the order of ``nn.Unfold``
        merged: Tensor = self.linear(squares.reshape(n, h // s, w // s, c * s * s))
        return merged


class RelativePositions(nn.Module):
    """Adds to each score what is learned of the way from one token of a window to the other; one table for all heads."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty((2 * window - 1) ** 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table)

    def forward(self, scores: Float[Tensor, "... tokens tokens"]) -> Float[Tensor, "... tokens tokens"]:
        # computed anew: as a buffer it would be stored and fingerprinted with every member
        at = torch.arange(self.window**2, device=scores.device)
        row, column = at // self.window, at % self.window
        down, right = row - row[:, None] + self.window - 1, column - column[:, None] + self.window - 1
        return scores + self.table[down * (2 * self.window - 1) + right]


class WindowAttention(nn.Module):
    """Softmax over the tokens of a window. Written out, since torch's fused kernel has no ``vmap`` rule on a CPU."""

    def __init__(self, dim: int, heads: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window, self.shift = heads, head_dim, window, shift
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.positions = RelativePositions(window)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Float[Tensor, "n h w dim"]) -> Float[Tensor, "n h w dim"]:
        (n, h, w, _), m = x.shape, self.window
        y = self.qkv(self.norm(x))
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        # to q, k, v [n, windows, heads, tokens of a window, head_dim] ...
        y = y.reshape(n, h // m, m, w // m, m, 3, self.heads, self.head_dim).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = y.reshape(3, n, (h // m) * (w // m), self.heads, m * m, self.head_dim).unbind(0)
        scores = self.positions(q @ k.transpose(-2, -1) / math.sqrt(self.head_dim))
        if self.shift:
            scores = scores.masked_fill(self._strangers(h, w, x.device), -math.inf)
        y = scores.softmax(-1) @ v
        # ... and back to the places they came from
        y = y.reshape(n, h // m, w // m, self.heads, m, m, self.head_dim).permute(0, 1, 4, 2, 5, 3, 6).reshape(n, h, w, -1)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        seen: Tensor = self.out(y)
        return seen

    def _strangers(self, h: int, w: int, device: torch.device) -> Bool[Tensor, "windows 1 tokens tokens"]:
        """Which pairs of a window stand side by side only because the roll brought one of them over the border."""
        m = self.window
        came_down, came_right = torch.arange(h, device=device) >= h - self.shift, torch.arange(w, device=device) >= w - self.shift
        region = 2 * came_down[:, None].int() + came_right.int()
        region = region.reshape(h // m, m, w // m, m).transpose(1, 2).reshape(-1, 1, m * m)
        return region[..., None] != region[..., None, :]


class Block(nn.Module):
    """Attention, then a perceptron for each token, both added to what comes in."""

    def __init__(self, dim: int, heads: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.attention = WindowAttention(dim, heads, head_dim, window, shift)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        more: Tensor = self.mlp(x)
        return x + more


class TokenMean(nn.Module):
    """The mean of all tokens."""

    def forward(self, x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n c"]:
        return x.mean((1, 2))
