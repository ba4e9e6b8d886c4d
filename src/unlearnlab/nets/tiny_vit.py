"""``tiny_vit_11m``: convolutions first, then attention in windows, with blocks skipped at random while training."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec


@spec("net", "tiny_vit_11m", paper="arXiv:2207.10666")
class TinyVit11m:
    """TinyViT-11M, a small transformer that begins with convolutions; 10 541 638 weights on 32×32 images, 10 classes.

    Two strided convolutions, a stage of inverted bottlenecks, three stages of attention in windows. While training, each branch of
    a block is left out at random, image by image, so that members of a stack are trained one at a time.

    Source: Wu et al. 2022, §4.1; protocols.md §2. Differs from the published code: a window larger than the feature map shrinks to
    it (there: it is filled with zeros, 49 tokens around each one at 32×32), so the number of attention biases depends on the size
    of the images. Where windows do not fill a larger map, zeros are added as there. At 224×224 both agree.
    """

    dims: Annotated[tuple[int, ...], Setting("channels of each stage; the first is made of convolutions", ge=2)] = (64, 128, 256, 448)
    depths: Annotated[tuple[int, ...], Setting("blocks of each stage", ge=1)] = (2, 2, 6, 2)
    heads: Annotated[tuple[int, ...], Setting("attention heads of each stage (the first has none)", ge=1)] = (2, 4, 8, 14)
    windows: Annotated[tuple[int, ...], Setting("height and width of the windows of each stage (the first has none)", ge=1)] = (7, 7, 14, 7)
    drop_path: Annotated[float, Setting("chance that a branch of the last block is left out; rises linearly from 0 over the blocks", ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        lengths = [len(each) for each in (self.dims, self.depths, self.heads, self.windows)]
        if lengths[0] == 0 or len(set(lengths)) > 1:
            raise InputError(f"net 'tiny_vit_11m': dims, depths, heads and windows need one number a stage each, got {lengths} numbers")
        for dim, heads in zip(self.dims[1:], self.heads[1:], strict=True):
            if dim % heads:
                raise InputError(f"net 'tiny_vit_11m': {dim} channels cannot be shared out among {heads} heads; change dims or heads")

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        channels, height, width = shape
        drops = [self.drop_path * at / max(sum(self.depths) - 1, 1) for at in range(sum(self.depths))]
        inside, first = self.dims[0], self.depths[0]
        layers: dict[str, nn.Module] = {
            "pixels": Pixels(mean, std, (height, width)),
            "embedding": nn.Sequential(ConvNorm(channels, inside // 2, 3, stride=2), nn.GELU(), ConvNorm(inside // 2, inside, 3, stride=2)),
            "stage1": nn.Sequential(*[Bottleneck(inside, drop) for drop in drops[:first]]),
        }
        height, width = -(-height // 4), -(-width // 4)
        for at, (dim, depth, heads, window) in enumerate(zip(self.dims[1:], self.depths[1:], self.heads[1:], self.windows[1:], strict=True), 1):
            height, width = -(-height // 2), -(-width // 2)  # a strided convolution rounds up
            before = sum(self.depths[:at])
            size = (min(window, height), min(window, width))
            blocks = [Block(dim, heads, size, drop) for drop in drops[before : before + depth]]
            layers[f"stage{at + 1}"] = nn.Sequential(OrderedDict(merge=_merge(inside, dim), blocks=nn.Sequential(*blocks)))
            inside = dim
        layers |= {"mean": SpaceMean(), "norm": nn.LayerNorm(inside), "head": Linear(inside, classes)}
        return nn.Sequential(OrderedDict(layers))


class ConvNorm(nn.Sequential):
    """A convolution and its batch normalisation, whose scale starts at ``gain``."""

    def __init__(self, inside: int, outside: int, size: int, stride: int = 1, groups: int = 1, gain: float = 1.0) -> None:
        conv = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
        self.gain = gain
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outside)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        conv.reset_parameters()
        norm.reset_parameters()
        nn.init.constant_(norm.weight, self.gain)


class Linear(nn.Linear):
    """Starts with weights of standard deviation 0.02 and no bias, as the published code does."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class DropPath(nn.Module):
    """While training, leaves out an image's branch with chance ``p``, and scales what stays by 1/(1 − p)."""

    stochastic: ClassVar[bool] = True  # tells the training loop that this net draws random numbers

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        stays = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * stays / (1 - self.p)


class Bottleneck(nn.Module):
    """Widen by a 1×1 convolution, look around channel by channel, narrow again, and add to what came in (MBConv)."""

    def __init__(self, dim: int, drop: float) -> None:
        super().__init__()
        wide = 4 * dim
        self.branch = nn.Sequential(
            ConvNorm(dim, wide, 1),
            nn.GELU(),
            ConvNorm(wide, wide, 3, groups=wide),
            nn.GELU(),
            ConvNorm(wide, dim, 1, gain=0.0),  # at the start a block does nothing but GELU
        )
        self.drop = _drop(drop)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x + self.drop(self.branch(x)))


class RelativePositions(nn.Module):
    """Adds to each score what each head learned of how far apart two tokens of a window are, up or down, left or right alike."""

    def __init__(self, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty(heads, window[0] * window[1]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, scores: Float[Tensor, "... heads tokens tokens"]) -> Float[Tensor, "... heads tokens tokens"]:
        # computed anew: as a buffer it would be stored and fingerprinted with every member
        height, width = self.window
        at = torch.arange(height * width, device=scores.device)
        row, column = at // width, at % width
        return scores + self.table[:, (row - row[:, None]).abs() * width + (column - column[:, None]).abs()]


class WindowAttention(nn.Module):
    """Softmax over the tokens of a window. Written out, since torch's fused kernel has no ``vmap`` rule on a CPU."""

    def __init__(self, dim: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.positions = RelativePositions(heads, window)
        self.out = Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n h w dim"]) -> Float[Tensor, "n h w dim"]:
        (n, height, width, dim), (a, b) = x.shape, self.window
        x = nn.functional.pad(x, (0, 0, 0, -width % b, 0, -height % a))  # zeros, which the norm turns into its bias: they are seen, as in the published code
        h, w, each = x.shape[1] // a, x.shape[2] // b, dim // self.heads
        # to q, k, v [n, windows, heads, tokens of a window, channels of a head] ...
        y = self.qkv(self.norm(x)).reshape(n, h, a, w, b, self.heads, 3, each).permute(6, 0, 1, 3, 5, 2, 4, 7)
        q, k, v = y.reshape(3, n, h * w, self.heads, a * b, each).unbind(0)
        y = self.positions(q @ k.transpose(-2, -1) / math.sqrt(each)).softmax(-1) @ v
        # ... and back to the places they came from
        y = y.reshape(n, h, w, self.heads, a, b, each).permute(0, 1, 4, 2, 5, 3, 6).reshape(n, h * a, w * b, dim)
        seen: Tensor = self.out(y[:, :height, :width])
        return seen


class Block(nn.Module):
    """Attention in windows, a look around channel by channel, then a perceptron for each token."""

    def __init__(self, dim: int, heads: int, window: tuple[int, int], drop: float) -> None:
        super().__init__()
        self.attention = WindowAttention(dim, heads, window)
        self.attention_drop = _drop(drop)
        self.local = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim))
        self.mlp_drop = _drop(drop)

    def forward(self, x: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        x = x + self.attention_drop(self.attention(x.movedim(1, -1)).movedim(-1, 1))
        x = self.local(x)
        more: Tensor = self.mlp_drop(self.mlp(x.movedim(1, -1)).movedim(-1, 1))
        return x + more


class SpaceMean(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        return x.mean((2, 3))


def _merge(inside: int, dim: int) -> nn.Sequential:
    """Half the height, half the width, more channels."""
    return nn.Sequential(ConvNorm(inside, dim, 1), nn.GELU(), ConvNorm(dim, dim, 3, stride=2, groups=dim), nn.GELU(), ConvNorm(dim, dim, 1))


def _drop(p: float) -> nn.Module:
    return DropPath(p) if p else nn.Identity()
