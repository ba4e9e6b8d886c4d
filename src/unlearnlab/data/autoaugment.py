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
        pair, images = below(u[:, 0], len(POLICY)), pixels.clone()
        for place in (0, 1):
            kind, strength = _chosen(place, pair, u[:, 1 + 2 * place], u[:, 2 + 2 * place])
            # sorted by operation, so that a device is waited for once and not once for each operation
            counts = kind.bincount(minlength=len(OPERATIONS) + 1).tolist()
            for operation, rows in zip((*OPERATIONS.values(), None), torch.split(kind.argsort(stable=True), counts), strict=True):
                if operation is not None and len(rows):
                    images[rows] = operation(images[rows], strength[rows])
        return images


def _chosen(place: int, pair: Int64[Tensor, " n"], applied: Float[Tensor, " n"], sign: Float[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], Strength]:
    """Each image's operation as its place in OPERATIONS (past the end: none) and its strength."""
    numbers = {name: number for number, name in enumerate(OPERATIONS)}
    kinds, shares, magnitudes = zip(*[(numbers[name], share, magnitude) for name, share, magnitude in (held[place] for held in POLICY)], strict=True)
    kind = torch.tensor(kinds, device=pair.device)[pair]
    share = torch.tensor(shares, dtype=torch.float64, device=pair.device)[pair]
    strength = torch.tensor(magnitudes, dtype=torch.float64, device=pair.device)[pair] / 9
    return torch.where(applied < share, kind, len(OPERATIONS)), torch.where(sign < 0.5, strength, -strength)


# ---------------------------------------------------------------- moving pixels


def shear_x(pixels: Pixels, s: Strength) -> Pixels:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _moved(pixels, (one, 0.3 * s, zero), (zero, one, zero))


def shear_y(pixels: Pixels, s: Strength) -> Pixels:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _moved(pixels, (one, zero, zero), (0.3 * s, one, zero))


def translate_x(pixels: Pixels, s: Strength) -> Pixels:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _moved(pixels, (one, zero, 150 / 331 * pixels.shape[3] * s), (zero, one, zero))


def translate_y(pixels: Pixels, s: Strength) -> Pixels:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _moved(pixels, (one, zero, zero), (zero, one, 150 / 331 * pixels.shape[2] * s))


def rotate(pixels: Pixels, s: Strength) -> Pixels:
    """About the centre."""
    y, x = pixels.shape[2] / 2, pixels.shape[3] / 2
    cos, sin = (s * math.radians(30)).cos(), (s * math.radians(30)).sin()
    return _moved(pixels, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


Row = tuple[Strength, Strength, Strength]


def _moved(pixels: Pixels, x_from: Row, y_from: Row) -> Pixels:
    """Pixel (x, y) comes from (a x + b y + c, d x + e y + f), both with their centres at halves; GREY where that lies outside.

    In whole numbers, of which 65536 make a pixel, as Pillow reckons: every device then picks the same pixel.
    """
    height, width = pixels.shape[2:]
    x, y = torch.arange(width, device=pixels.device), torch.arange(height, device=pixels.device)[:, None]

    def source(row: Row) -> Int64[Tensor, "m h w"]:
        a, b, c = row
        along, across, start = ((value * 65536 + 0.5).floor().long()[:, None, None] for value in (a, b, c + a / 2 + b / 2))
        return (start + along * x + across * y) >> 16

    column, line = source(x_from), source(y_from)
    inside = ((column >= 0) & (column < width) & (line >= 0) & (line < height)).flatten(1)[:, None]
    at = (line.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)[:, None].expand(-1, 3, -1)
    return pixels.flatten(2).gather(2, at).masked_fill_(~inside, GREY).view_as(pixels)


# ---------------------------------------------------------------- changing values


def invert(pixels: Pixels, s: Strength) -> Pixels:
    return 255 - pixels


def solarize(pixels: Pixels, s: Strength) -> Pixels:
    """Invert what is at least as bright as a threshold."""
    return torch.where(pixels < _each(256 - 256 * s.abs()), pixels, 255 - pixels)


def posterize(pixels: Pixels, s: Strength) -> Pixels:
    """Zero the lowest bits."""
    return pixels & _each(256 - 2 ** (4 * s.abs()).round()).to(torch.uint8)


def autocontrast(pixels: Pixels, s: Strength) -> Pixels:
    """Stretch each channel so that its darkest pixel is 0 and its brightest 255."""
    # in this order and precision as Pillow does, whose last step cuts off: 254.99… is 254
    low, high = (found.double() for found in torch.aminmax(pixels.flatten(2), dim=2, keepdim=True))
    scale = 255 / (high - low)
    stretched = (pixels.flatten(2) * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, pixels.flatten(2)).view_as(pixels)


def equalize(pixels: Pixels, s: Strength) -> Pixels:
    """Spread each channel's values so that all become about equally frequent."""
    values = pixels.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    table = ((step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)).clamp(max=255)
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
    smooth = pixels.short()
    lines = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * smooth[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # rounded thirteenths
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


OPERATIONS: dict[str, Operation] = {
    one.__name__: one
    for one in (
        *(shear_x, shear_y, translate_x, translate_y, rotate),
        *(invert, solarize, posterize, autocontrast, equalize, color, contrast, brightness, sharpness),
    )
}
