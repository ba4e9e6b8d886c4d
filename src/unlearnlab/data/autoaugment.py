"""AutoAugment's policy for CIFAR-10, batched: a loop over the kinds of operation, never over images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unlearnlab.data.augment import below
from unlearnlab.spec import InputError, spec

Pixels = UInt8[Tensor, "m 3 h w"]
Strength = Float[Tensor, " m"]  # of each image's operation, from -1 to 1; where the direction means nothing, its size counts
Operation = Callable[[Pixels, Strength], Pixels]

GREY = 128  # what comes in from outside the image

# Pairs of (operation, probability, magnitude from 0 to 9); operations without a strength have none. From the appendix of
# the paper, whose magnitudes of such operations (Equalize 9, for instance) mean nothing and are left out.
POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


@spec("augmentation", "autoaugment", paper="arXiv:1805.09501")
class AutoAugment:
    """Apply one of the 25 pairs of operations that AutoAugment found on CIFAR-10, a random one to each image.

    Each operation of the pair is applied with its own probability; at magnitude m of 0 … 9, with s = m/9 times a random
    sign: shear by 0.3 s, shift by 150/331 s of the side, rotate by 30 s degrees (nearest neighbour, grey 128 outside);
    colour, contrast, brightness and sharpness by the factor 1 + 0.9 s; solarize from 256 − 256 |s| up; posterize to
    8 − 4 |s| bits, rounded. Pixel by pixel what Pillow makes of the image. Needs RGB in uint8.

    Source: Cubuk et al. 2019, appendix: the policy found on reduced CIFAR-10. The ranges are those of the usual
    reimplementations. Differs from the published code: m/9 (there m/10), shifts are shares of the side (there up to 10
    pixels), factors lie on either side of 1 (there 0.1 + 0.18 m), posterize keeps 4 bits or more (there 4 − 0.4 m), the
    outside is grey (there the mean colour), one of 25 pairs (there of 95); crop, flip and cutout are augmentations of their own.
    """

    draws: ClassVar[int] = 5  # the pair; then whether and in which direction, for each of the two

    def __call__(self, pixels: UInt8[Tensor, "n 3 h w"], u: Float[Tensor, "n 5"]) -> UInt8[Tensor, "n 3 h w"]:
        if pixels.dtype != torch.uint8:
            raise InputError("augmentation 'autoaugment': float32 takes no photometric augmentation; give images as uint8")
        if pixels.shape[1] != 3:
            raise InputError(f"augmentation 'autoaugment' needs RGB images of 3 channels, got {pixels.shape[1]}")
        pair, images = below(u[:, 0], len(POLICY)), pixels
        for place in (0, 1):
            images = _applied(images, *_chosen(place, pair, u[:, 1 + 2 * place], u[:, 2 + 2 * place]))
        return images


def _chosen(place: int, pair: Int64[Tensor, " n"], applied: Float[Tensor, " n"], sign: Float[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], Strength]:
    """Each image's operation, first or second of its pair, as its place in NAMES (past the end: none), and its strength."""
    kinds, shares, magnitudes = zip(*[(NAMES.index(name), share, magnitude) for name, share, magnitude in (held[place] for held in POLICY)], strict=True)
    kind = torch.tensor(kinds, device=pair.device)[pair]
    share = torch.tensor(shares, dtype=torch.float64, device=pair.device)[pair]
    strength = torch.tensor(magnitudes, dtype=torch.float64, device=pair.device)[pair] / 9
    return torch.where(applied < share, kind, len(NAMES)), torch.where(sign < 0.5, strength, -strength)


def _applied(images: UInt8[Tensor, "n 3 h w"], kind: Int64[Tensor, " n"], strength: Float[Tensor, " n"]) -> UInt8[Tensor, "n 3 h w"]:
    """One operation on each image. Sorted by operation: a device is waited for once, and nothing is written to scattered rows."""
    order = kind.argsort(stable=True)
    counts = kind.bincount(minlength=len(NAMES) + 1).tolist()
    sizes = [sum(counts[: len(MOVES)]), *counts[len(MOVES) :]]
    (moving, *others), (s, *strengths) = torch.split(images.index_select(0, order), sizes), torch.split(strength[order], sizes)
    changed = [moved(moving, kind[order[: sizes[0]]], s)]
    for operation, part, s in zip((*OPERATIONS.values(), None), others, strengths, strict=True):
        changed.append(operation(part, s) if operation is not None and len(part) else part)
    return torch.cat(changed).index_select(0, order.argsort())


# ---------------------------------------------------------------- moving pixels

MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def moved(pixels: Pixels, move: Int64[Tensor, " m"], s: Strength) -> Pixels:
    """Each image sheared, shifted or rotated about its centre; ``move``: places in MOVES.

    Pixel (x, y) comes from (a x + b y + c, d x + e y + f), both with their centres at halves; from outside comes GREY. In
    whole numbers, of which 65536 make a pixel, as Pillow reckons: every device then picks the same pixel.
    """
    height, width = pixels.shape[2:]
    slopes = [[0, 0.3, 0, 0, 0, 0], [0, 0, 0, 0.3, 0, 0], [0, 0, 150 / 331 * width, 0, 0, 0], [0, 0, 0, 0, 0, 150 / 331 * height], [0, 0, 0, 0, 0, 0]]
    angle = torch.where(move == MOVES.index("rotate"), s * math.radians(30), 0)
    cos, sin, x, y = angle.cos(), angle.sin(), width / 2, height / 2
    turn = torch.stack((cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), 1)
    matrix = (turn + s.new_tensor(slopes)[move] * s[:, None]).view(-1, 2, 3)
    matrix[:, :, 2] += (matrix[:, :, 0] + matrix[:, :, 1]) / 2
    x_step, y_step, start = (matrix * 65536 + 0.5).floor().long()[..., None, None].unbind(2)
    at = start + y_step * torch.arange(height, device=s.device)[:, None] + x_step * torch.arange(width, device=s.device)
    column, line = (at >> 16).unbind(1)
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    source = (line * width + column).where(inside, 0).flatten(1)[:, None].expand(-1, 3, -1)
    return pixels.flatten(2).gather(2, source).view_as(pixels).masked_fill_(~inside[:, None], GREY)


# ---------------------------------------------------------------- changing values


def invert(pixels: Pixels, s: Strength) -> Pixels:
    return 255 - pixels


def solarize(pixels: Pixels, s: Strength) -> Pixels:
    """Invert what is at least as bright as a threshold."""
    return torch.where(pixels.short() < _each(256 - 256 * s.abs()).ceil().short(), pixels, 255 - pixels)


def posterize(pixels: Pixels, s: Strength) -> Pixels:
    """Zero the lowest bits."""
    return pixels & _each(256 - 2 ** (4 * s.abs()).round()).to(torch.uint8)


def autocontrast(pixels: Pixels, s: Strength) -> Pixels:
    """Stretch each channel so that its darkest pixel is 0 and its brightest 255."""
    values = pixels.flatten(2)
    low, high = (found.double() for found in torch.aminmax(values, dim=2, keepdim=True))
    # in Pillow's order and precision, since the last step cuts off: 254.99… is 254. For the same reason 255 is a tensor:
    # torch takes the number 255 over x for 255 times 1/x, which is rounded twice
    scale, levels = high.new_tensor(255) / (high - low), torch.arange(256, device=pixels.device)
    table = torch.where(high > low, (levels * scale + -low * scale).clamp(0, 255), levels)
    return table.to(torch.uint8).gather(2, values.long()).view_as(pixels)


def equalize(pixels: Pixels, s: Strength) -> Pixels:
    """Spread each channel's values so that all become about equally frequent."""
    values = pixels.flatten(2).long()
    one = torch.ones((), dtype=torch.int32, device=pixels.device).expand_as(values)
    counts = one.new_zeros(len(pixels), 3, 256).scatter_add_(2, values, one)
    brightest = counts.gather(2, pixels.flatten(2).amax(2, keepdim=True).long())
    step = (values.shape[2] - brightest) // 255
    table = ((step // 2 + counts.cumsum(2, dtype=torch.int32) - counts) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=pixels.device)).to(torch.uint8)
    return table.gather(2, values).view_as(pixels)


def color(pixels: Pixels, s: Strength) -> Pixels:
    return _blended(_luminance(pixels), pixels, s)


def contrast(pixels: Pixels, s: Strength) -> Pixels:
    grey = _luminance(pixels)
    count = grey[0].numel()
    return _blended((2 * grey.sum((1, 2, 3), keepdim=True) + count) // (2 * count), pixels, s)


def brightness(pixels: Pixels, s: Strength) -> Pixels:
    return _blended(torch.zeros((), device=pixels.device), pixels, s)


def sharpness(pixels: Pixels, s: Strength) -> Pixels:
    """Against each pixel's neighbourhood, in which itself counts five times; the outermost pixels stay."""
    smooth = pixels.float()
    lines = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * smooth[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = (total / 13).round()  # never a half
    return _blended(smooth, pixels, s)


def _luminance(pixels: Pixels) -> Tensor:
    """[m 1 h w], in Pillow's whole-number weights (ITU-R 601-2)."""
    red, green, blue = pixels.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[:, None]


def _blended(base: Tensor, pixels: Pixels, s: Strength) -> Pixels:
    """From ``base`` to the image and beyond, by the factor 1 + 0.9 s; cut off, not rounded, as Pillow does."""
    start = base.float()
    return (start + _each(1 + 0.9 * s).float() * (pixels - start)).clamp(0, 255).to(torch.uint8)


def _each(values: Strength) -> Tensor:
    return values[:, None, None, None]


OPERATIONS: dict[str, Operation] = {one.__name__: one for one in (invert, solarize, posterize, autocontrast, equalize, color, contrast, brightness, sharpness)}
NAMES = (*MOVES, *OPERATIONS)
