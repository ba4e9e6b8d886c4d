"""Augmentations: training images changed at random, a whole batch at once, on the device they lie on.

Each takes its randomness as uniform numbers, so many for an example, and is a function of pixels and numbers alone.
What happens to an image therefore depends on the numbers in its row and on nothing else of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec

Pixels = Shaped[Tensor, "n c h w"]  # uint8 or float32


class Augmentation(Protocol):
    """Changes images at random, each by the uniform numbers in [0, 1) of its own row; the input is untouched, its type kept."""

    @property
    def draws(self) -> int:
        """How many numbers an image takes."""
        ...

    def __call__(self, pixels: Pixels, u: Float[Tensor, "n draws"]) -> Pixels: ...


def augmented(chain: Sequence[Augmentation], pixels: Shaped[Tensor, "k b c h w"], seeds: Sequence[int], step: int, purpose: str = "augment") -> Tensor:
    """Each member's batch after the augmentations in their order.

    The numbers are drawn on the CPU, a member's from its own seed, the purpose and the step: the same on every device and whichever
    members are trained together.
    """
    members, batch = pixels.shape[:2]
    draws = [one.draws for one in chain]
    u = torch.stack([torch.rand(batch, sum(draws), generator=generator(seed, purpose, step)) for seed in seeds])
    images = pixels.flatten(0, 1)
    for one, own in zip(chain, torch.split(u.flatten(0, 1).to(pixels.device), draws, dim=1), strict=True):
        images = one(images, own)
    return images.reshape(members, batch, *images.shape[1:])


@spec("augmentation", "crop")
class Crop:
    """Cut a window out of the padded image, at a random place.

    The usual for CIFAR, SVHN and Tiny ImageNet: a border of 4 pixels, and a window as large as the image was.
    """

    padding: Annotated[int, Setting("width of the border added on each side", unit="pixels", ge=0)] = 4
    mode: Annotated[Literal["zero", "reflect"], Setting("a black border, or the image mirrored at its edge pixels")] = "zero"
    size: Annotated[int | None, Setting("side of the window; none: as large as the image", unit="pixels", ge=1)] = None
    draws: ClassVar[int] = 2

    def __call__(self, pixels: Pixels, u: Float[Tensor, "n 2"]) -> Pixels:
        n, channels, height, width = pixels.shape
        h, w = (self.size, self.size) if self.size else (height, width)
        padded = self._padded(pixels)
        H, W = padded.shape[2:]  # noqa: N806 - of the padded image
        if h > H or w > W:
            raise InputError(f"augmentation 'crop': a window of {h}×{w} does not fit images of {height}×{width} pixels padded to {H}×{W}; lower size")
        # all rows of w pixels that can be read off the padded images, from which those of the windows are picked: three
        # to fifteen times faster than indexing pixels
        rows = padded.as_strided((padded.numel() - w + 1, w), (1, 1))
        image, channel, line = (torch.arange(count, device=u.device) for count in (n, channels, h))
        corner = image * (channels * H * W) + below(u[:, 0], H - h + 1) * W + below(u[:, 1], W - w + 1)
        start = corner[:, None] + (channel[:, None] * (H * W) + line * W).flatten()
        return rows.index_select(0, start.flatten()).view(n, channels, h, w)

    def _padded(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[2:]
        if self.mode == "zero":
            return torch.nn.functional.pad(pixels, (self.padding,) * 4).contiguous()
        if self.padding >= min(height, width):
            raise InputError(f"augmentation 'crop': padding {self.padding} cannot mirror images of {height}×{width} pixels; lower it below their side")
        # torch mirrors no uint8
        return pixels.index_select(2, self._mirrored(height, pixels)).index_select(3, self._mirrored(width, pixels)).contiguous()

    def _mirrored(self, length: int, pixels: Pixels) -> Int64[Tensor, " padded"]:
        at = torch.arange(-self.padding, length + self.padding, device=pixels.device).abs()
        return (length - 1) - (length - 1 - at).abs()


@spec("augmentation", "flip")
class Flip:
    """Swap left and right in a share of the images."""

    share: Annotated[float, Setting("probability that an image is flipped", ge=0, le=1)] = 0.5
    draws: ClassVar[int] = 1

    def __call__(self, pixels: Pixels, u: Float[Tensor, "n 1"]) -> Pixels:
        # image ^ (image ^ mirror) is the mirror: bits chosen in place, three times faster than bytes by torch.where
        bits = pixels.view(torch.int32 if pixels.is_floating_point() else torch.uint8)
        every = (u < self.share).to(bits.dtype).neg_().view(-1, 1, 1, 1)  # all bits of the images to flip, none of the others
        return bits.flip(3).bitwise_xor_(bits).bitwise_and_(every).bitwise_xor_(bits).view(pixels.dtype)


@spec("augmentation", "cutout", paper="arXiv:1708.04552")
class Cutout:
    """Paint over a square around a random pixel; what falls outside the image is lost.

    Source: DeVries & Taylor 2017. Differs from the published code: a square of odd side keeps its side (there it loses a
    pixel), and images are not yet normalised here, so that the default paints black and not the mean colour.
    """

    size: Annotated[int, Setting("side of the square", unit="pixels", ge=1)] = 16
    value: Annotated[int, Setting("what it is filled with, on the scale of the pixels", ge=0, le=255)] = 0
    draws: ClassVar[int] = 2

    def __call__(self, pixels: Pixels, u: Float[Tensor, "n 2"]) -> Pixels:
        height, width = pixels.shape[2:]
        rows, columns = self._covered(u[:, 0], height), self._covered(u[:, 1], width)
        return pixels.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], self.value)

    def _covered(self, u: Float[Tensor, " n"], length: int) -> Tensor:
        start = below(u, length)[:, None] - self.size // 2
        at = torch.arange(length, device=u.device)
        return (at >= start) & (at < start + self.size)


@spec("augmentation", "random_resized_crop")
class RandomResizedCrop:
    """Cut out a window of random area, shape and place, and bring it to one size.

    Area uniform in ``scale`` (as a share of the image), logarithm of width/height uniform in ``ratio``, both tried up to
    ten times until the window fits; else the largest central window of the nearest allowed shape (Szegedy et al. 2015,
    §6, as training code for ImageNet does it). Bilinear and antialiased, as Pillow resizes, but rounded once, at the end.
    """

    size: Annotated[int, Setting("side of the result", unit="pixels", ge=1)] = 128
    scale: Annotated[tuple[float, float], Setting("smallest and largest area, as a share of the image", gt=0, le=1)] = (0.08, 1.0)
    ratio: Annotated[tuple[float, float], Setting("smallest and largest width/height", gt=0)] = (3 / 4, 4 / 3)
    tries: ClassVar[int] = 10
    draws: ClassVar[int] = 2 * tries + 2

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise InputError(f"augmentation 'random_resized_crop': {name} = [{low:g}, {high:g}] must name the smaller number first")

    def __call__(self, pixels: Pixels, u: Float[Tensor, "n 22"]) -> Pixels:
        n, channels, height, width = pixels.shape
        top, left, h, w = self.windows(u, height, width)
        lines = pixels.permute(0, 2, 1, 3).to(torch.float32)
        lines = _resized(lines.reshape(n, height, -1), top, h, self.size).view(n, self.size, channels, width)
        lines = lines.permute(0, 3, 2, 1).reshape(n, width, -1)
        result = _resized(lines, left, w, self.size).view(n, self.size, channels, self.size).permute(0, 2, 3, 1).contiguous()
        return (result if pixels.is_floating_point() else result.round_()).to(pixels.dtype)

    def windows(self, u: Float[Tensor, "n 22"], height: int, width: int) -> tuple[Int64[Tensor, " n"], ...]:
        """Top, left, height and width of each window."""
        u = u.double()  # so that no device rounds a window to another size
        area_u, ratio_u = u[:, : 2 * self.tries].reshape(len(u), self.tries, 2).unbind(2)
        (low, high), (thin, wide) = self.scale, self.ratio
        area = height * width * (low + (high - low) * area_u)
        ratio = (math.log(thin) + (math.log(wide) - math.log(thin)) * ratio_u).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)  # of equals, the first
        nearest = min(max(width / height, thin), wide)
        # no try fitted
        central = max(1, min(height, round(width / nearest))), max(1, min(width, round(height * nearest)))
        found = fits.any(1)
        h = torch.where(found, h.gather(1, first)[:, 0], central[0]).long()
        w = torch.where(found, w.gather(1, first)[:, 0], central[1]).long()
        top = torch.where(found, below(u[:, -2], height - h + 1), (height - h) // 2)
        left = torch.where(found, below(u[:, -1], width - w + 1), (width - w) // 2)
        return top, left, h, w


def below(u: Float[Tensor, " n"], count: int | Tensor) -> Int64[Tensor, " n"]:
    """A whole number from 0 up to, not including, ``count`` (as floats are rounded, u·count < count for every u < 1)."""
    return (u * count).long()


def _resized(lines: Float[Tensor, "n length rest"], start: Int64[Tensor, " n"], length: Int64[Tensor, " n"], size: int) -> Float[Tensor, "n size rest"]:
    """The lines from ``start`` on, ``length`` of them, brought to ``size``: weighted by a triangle two new lines wide, at least two old ones.

    Summed weight by weight, since the rounding of a matrix product would depend on how many images there are.
    """
    n, available = lines.shape[:2]
    step = length / size  # one new line in old ones
    reach = step.double().clamp(min=1)[:, None]
    centre = step.double()[:, None] * (torch.arange(size, device=lines.device) + 0.5)
    first = (centre - reach + 0.5).floor().clamp(min=0).long()
    at = first[:, :, None] + torch.arange(math.ceil(2 * max(1, available / size)), device=lines.device)
    weight = (1 - (at + 0.5 - centre[:, :, None]).abs() / reach[:, :, None]).clamp(min=0) * (at < length[:, None, None])
    weight = (weight / weight.sum(2, keepdim=True)).float()
    origin = (torch.arange(n, device=lines.device) * available + start)[:, None, None]
    rows = (origin + torch.minimum(at, length[:, None, None] - 1)).flatten(0, 1)
    source, result = lines.flatten(0, 1), lines.new_zeros(())
    for one, share in zip(rows.unbind(1), weight.flatten(0, 1).unbind(1), strict=True):
        result = result + source.index_select(0, one) * share[:, None]
    return result.view(n, size, -1)
