"""AutoAugment against Pillow, one image at a time.

Ours follow Pillow's arithmetic, so every pixel is the same. Only where Pillow blends two images in floats is one grey
level allowed in a pixel of a thousand, because a compiler may fuse its multiplication and addition (on ARM; not on x86).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import chisquare
from torch import Tensor

from unlearnlab.data.autoaugment import GREY, MOVES, NAMES, OPERATIONS, POLICY, AutoAugment, moved
from unlearnlab.spec import InputError

Picture = Image.Image


def affine(image: Picture, *matrix: float) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(GREY,) * 3)


# by the strength s in [-1, 1]
SLOW: dict[str, Callable[[Picture, float], Picture]] = {
    "shear_x": lambda image, s: affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: affine(image, 1, 0, 150 / 331 * image.width * s, 0, 1, 0),
    "translate_y": lambda image, s: affine(image, 1, 0, 0, 0, 1, 150 / 331 * image.height * s),
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.NEAREST, fillcolor=(GREY,) * 3),
    "invert": lambda image, s: ImageOps.invert(image),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - 256 * abs(s)),  # type: ignore[arg-type]
    "posterize": lambda image, s: ImageOps.posterize(image, round(8 - 4 * abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
BLENDED = ("color", "contrast", "brightness", "sharpness")


def run(name: str, pixels: Tensor, s: Tensor) -> Tensor:
    return moved(pixels, torch.full((len(s),), MOVES.index(name)), s) if name in MOVES else OPERATIONS[name](pixels, s)


def picture(pixels: Tensor) -> Picture:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def tensor(image: Picture) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def images(n: int, height: int, width: int) -> Tensor:
    """Noise of every contrast, smooth slopes, and a few that are flat or nearly so."""
    draw = torch.Generator().manual_seed(height * 1000 + width + n)
    noise = torch.rand(n, 3, height, width, generator=draw)
    slope = torch.linspace(0, 1, height)[:, None] * torch.rand(n, 3, 1, 1, generator=draw) + torch.linspace(0, 1, width) * 0.3
    share = torch.rand(n, 1, 1, 1, generator=draw)
    low, high = torch.rand(2, n, 3, 1, 1, generator=draw).mul(255).sort(0).values
    pixels = (low + (high - low) * (share * noise + (1 - share) * slope / slope.amax())).to(torch.uint8)
    pixels[0] = 200
    if n > 2:
        pixels[1] = 0
        pixels[1, :, 0, 0] = 255
        pixels[2] = noise[2] > 0.5
    return pixels


def numbers(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 5, generator=torch.Generator().manual_seed(seed))


def check(found: Tensor, expected: Tensor, name: str) -> None:
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= (name in BLENDED), name
    assert (apart > 0).double().mean() <= 0.001, name


@pytest.mark.parametrize("shape", [(32, 32), (33, 17), (5, 64), (1, 1), (2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_pillows(name: str, shape: tuple[int, int]) -> None:
    strengths = [sign * level / 9 for level in range(10) for sign in (1, -1)]
    pixels = images(5 * len(strengths), *shape)
    s = torch.tensor(strengths, dtype=torch.float64).repeat(5)
    before = pixels.clone()
    found = run(name, pixels, s)
    assert torch.equal(pixels, before)
    assert found.dtype == torch.uint8
    expected = torch.stack([tensor(SLOW[name](picture(image), strength)) for image, strength in zip(pixels, s.tolist(), strict=True)])
    check(found, expected, name)


@pytest.mark.parametrize("name", ["equalize", "autocontrast", "contrast"])
def test_operations_on_histograms_are_pillows_on_larger_images(name: str) -> None:
    pixels, s = images(6, 97, 120), torch.linspace(-1, 1, 6, dtype=torch.float64)
    check(run(name, pixels, s), torch.stack([tensor(SLOW[name](picture(x), t)) for x, t in zip(pixels, s.tolist(), strict=True)]), name)


def test_shifts_by_whole_pixels_are_exact_and_what_comes_in_is_grey() -> None:
    pixels = images(4, 331, 12)
    found = run("translate_y", pixels, torch.tensor([1, -1, 1 / 3, 0], dtype=torch.float64))
    assert torch.equal(found[0], torch.cat((pixels[0, :, 150:], torch.full((3, 150, 12), GREY, dtype=torch.uint8)), 1))
    assert torch.equal(found[1], torch.cat((torch.full((3, 150, 12), GREY, dtype=torch.uint8), pixels[1, :, :-150]), 1))
    assert torch.equal(found[2], torch.cat((pixels[2, :, 50:], torch.full((3, 50, 12), GREY, dtype=torch.uint8)), 1))
    assert torch.equal(found[3], pixels[3])


def slow(image: Tensor, u: list[float]) -> Tensor:
    result = picture(image)
    for place, (name, share, magnitude) in enumerate(POLICY[int(u[0] * 25)]):
        if u[1 + 2 * place] < share:
            result = SLOW[name](result, magnitude / 9 * (1 if u[2 + 2 * place] < 0.5 else -1))
    return tensor(result)


@pytest.mark.parametrize("shape", [(32, 32), (31, 24)])
def test_the_policy_is_pillows_image_by_image(shape: tuple[int, int]) -> None:
    pixels, u = images(500, *shape), numbers(500)
    found = AutoAugment()(pixels, u)
    expected = torch.stack([slow(*pair) for pair in zip(pixels, u.tolist(), strict=True)])
    # see above; one level before a histogram operation may become many, so images are counted (on x86 none of 20 000 differs)
    assert (found != expected).flatten(1).any(1).double().mean() <= 0.01
    assert torch.equal(AutoAugment()(pixels[:1], u[:1]), found[:1])


def test_pairs_operations_and_directions_come_as_often_as_they_should() -> None:
    n, u = 20_000, numbers(20_000, seed=1)
    assert chisquare(torch.bincount((u[:, 0] * 25).long(), minlength=25).numpy()).pvalue > 1e-3
    # nothing but a shift to the left or right makes the whole of an edge grey, in an image this high
    pixels = torch.full((1, 3, 24, 32), 10, dtype=torch.uint8).expand(n, -1, -1, -1)
    found = AutoAugment()(pixels, u)
    right, left = ((found[..., edge] == GREY).flatten(1).all(1).double().mean() for edge in (-1, 0))
    expected = (0.3 + 0.5) / 25 / 2  # the two pairs with translate_x, each way half the time
    for share in (right, left):
        assert abs(share - expected) < 4 * math.sqrt(expected / n)


def test_the_policy_has_the_papers_shape() -> None:
    assert len(POLICY) == 25
    held = [operation for pair in POLICY for operation in pair]
    assert {name for name, _, _ in held} == set(NAMES) - {"shear_x"}  # searched over, but in no pair that was found
    assert all(0 <= share <= 1 and 0 <= magnitude <= 9 for _, share, magnitude in held)
    assert set(SLOW) == set(NAMES)


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="float32 takes no photometric augmentation"):
        AutoAugment()(torch.zeros(2, 3, 8, 8), numbers(2))
    with pytest.raises(InputError, match="needs RGB images of 3 channels, got 1"):
        AutoAugment()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), numbers(2))
