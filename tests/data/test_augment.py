"""Augmentations against slow ones that take one image at a time, given the same uniform numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor

from unlearnlab.data.augment import Augmentation, Crop, Cutout, Flip, RandomResizedCrop, augmented, below
from unlearnlab.data.autoaugment import AutoAugment
from unlearnlab.spec import InputError, build, info, names, to_dict

SHAPES = [(7, 3, 32, 32), (1, 3, 32, 32), (5, 1, 8, 8), (4, 3, 9, 13)]
ALL: list[Augmentation] = [Crop(), Crop(mode="reflect", size=9), Flip(), Cutout(size=5), RandomResizedCrop(size=12), AutoAugment()]
TYPES = [torch.uint8, torch.float32]


def images(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = torch.randint(0, 256, (n, c, h, w), generator=torch.Generator().manual_seed(n * h + w), dtype=torch.uint8)
    return values if dtype == torch.uint8 else values / 255 - 0.3


def numbers(n: int, draws: int, seed: int = 0) -> Tensor:
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(seed))


def pick(u: Tensor, count: int) -> int:
    return int(np.float32(u.item()) * np.float32(count))


def title(one: Augmentation) -> str:
    return info(one).name


# ---------------------------------------------------------------- one image at a time


def slow_crop(one: Crop, image: Tensor, u: Tensor) -> np.ndarray:
    around = ((0, 0), (one.padding,) * 2, (one.padding,) * 2)
    padded = np.pad(image.numpy(), around) if one.mode == "zero" else np.pad(image.numpy(), around, mode="reflect")
    h, w = (one.size, one.size) if one.size else image.shape[1:]
    top, left = pick(u[0], padded.shape[1] - h + 1), pick(u[1], padded.shape[2] - w + 1)
    return padded[:, top : top + h, left : left + w]


def slow_flip(one: Flip, image: Tensor, u: Tensor) -> np.ndarray:
    return image.numpy()[:, :, ::-1] if u.item() < one.share else image.numpy()


def slow_cutout(one: Cutout, image: Tensor, u: Tensor) -> np.ndarray:
    result = image.numpy().copy()
    top, left = pick(u[0], image.shape[1]) - one.size // 2, pick(u[1], image.shape[2]) - one.size // 2
    result[:, max(top, 0) : max(top + one.size, 0), max(left, 0) : max(left + one.size, 0)] = one.value
    return result


def slow_window(one: RandomResizedCrop, height: int, width: int, u: list[float]) -> tuple[int, int, int, int]:
    for turn in range(10):
        area = height * width * (one.scale[0] + (one.scale[1] - one.scale[0]) * u[2 * turn])
        low, high = math.log(one.ratio[0]), math.log(one.ratio[1])
        ratio = math.exp(low + (high - low) * u[2 * turn + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    if width / height < one.ratio[0]:
        h, w = round(width / one.ratio[0]), width
    elif width / height > one.ratio[1]:
        h, w = height, round(height * one.ratio[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one", [Crop(), Crop(mode="reflect"), Crop(padding=0), Crop(padding=3, size=5), Crop(padding=2, mode="reflect", size=12)])
def test_crop_is_the_window_of_the_padded_image(one: Crop, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    pixels, u = images(*shape, dtype=dtype), numbers(shape[0], 2)
    assert np.array_equal(one(pixels, u).numpy(), np.stack([slow_crop(one, *pair) for pair in zip(pixels, u, strict=True)]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one", [Flip(), Flip(share=0.0), Flip(share=1.0)])
def test_flip_mirrors_the_share(one: Flip, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    pixels, u = images(*shape, dtype=dtype), numbers(shape[0], 1)
    assert np.array_equal(one(pixels, u).numpy(), np.stack([slow_flip(one, *pair) for pair in zip(pixels, u, strict=True)]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one", [Cutout(), Cutout(size=5, value=255), Cutout(size=1), Cutout(size=60)])
def test_cutout_paints_a_clipped_square(one: Cutout, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    pixels, u = images(*shape, dtype=dtype), numbers(shape[0], 2)
    assert np.array_equal(one(pixels, u).numpy(), np.stack([slow_cutout(one, *pair) for pair in zip(pixels, u, strict=True)]))


RESIZED = [RandomResizedCrop(size=12), RandomResizedCrop(size=40), RandomResizedCrop(size=1, scale=(0.5, 0.5)), RandomResizedCrop(size=7, ratio=(2.0, 3.0))]


@pytest.mark.parametrize("one", RESIZED)
@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (40, 1, 9, 31), (1, 3, 160, 90)])
def test_resized_crop_is_the_window_interpolated(one: RandomResizedCrop, shape: tuple[int, int, int, int]) -> None:
    pixels, u = images(*shape), numbers(shape[0], 22)
    windows = [slow_window(one, *shape[2:], row) for row in u.double().tolist()]
    assert [tuple(row) for row in torch.stack(one.windows(u, *shape[2:]), 1).tolist()] == windows
    wanted = [
        torch.nn.functional.interpolate(image[None, :, top : top + h, left : left + w].float(), one.size, mode="bilinear", antialias=True)[0]
        for image, (top, left, h, w) in zip(pixels, windows, strict=True)
    ]
    expected = torch.stack(wanted)
    torch.testing.assert_close(one(pixels.float(), u), expected, rtol=0, atol=1e-3)
    # what lies on a half to within the rounding of float32 may fall to either side
    apart, on_half = (one(pixels, u).int() - expected.round().int()).abs(), (expected.frac() - 0.5).abs() < 1e-3
    assert (apart <= on_half.int()).all()


def test_resized_crop_is_what_pillow_makes_of_the_window() -> None:
    one, pixels, u = RandomResizedCrop(size=24), images(20, 3, 50, 41), numbers(20, 22)
    found = one(pixels, u)
    for k, (top, left, h, w) in enumerate(torch.stack(one.windows(u, 50, 41), 1).tolist()):
        whole = Image.fromarray(pixels[k].permute(1, 2, 0).numpy())
        expected = whole.crop((left, top, left + w, top + h)).resize((24, 24), Image.Resampling.BILINEAR)
        # Pillow rounds after each of the two directions, we once
        assert np.abs(np.asarray(expected, np.int16) - found[k].permute(1, 2, 0).numpy()).max() <= 1


def test_resized_crop_that_fits_nowhere_is_central() -> None:
    u = numbers(6, 22)
    wide = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert {tuple(row) for row in torch.stack(wide.windows(u, 10, 21), 1).tolist()} == {(0, 5, 10, 10)}
    assert {tuple(row) for row in torch.stack(wide.windows(u, 21, 10), 1).tolist()} == {(5, 0, 10, 10)}
    assert {tuple(row) for row in torch.stack(RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.5, 0.5)).windows(u, 4, 4), 1).tolist()} == {(0, 1, 4, 2)}
    # an image that is resized to its own size is itself
    pixels = images(6, 3, 10, 10)
    assert torch.equal(RandomResizedCrop(size=10, scale=(1.0, 1.0), ratio=(1.0, 1.0))(pixels, u), pixels)


# ---------------------------------------------------------------- distributions


def test_every_crop_offset_and_cutout_centre_is_equally_likely() -> None:
    n = 81 * 200
    ramp = (torch.arange(32)[:, None] * 256 + torch.arange(32)).float() + 1  # a pixel's place is its value
    middle = Crop()(ramp.expand(n, 1, 32, 32), numbers(n, 2))[:, 0, 15, 15].long() - 1
    counts = torch.bincount((middle // 256 - 11) * 9 + middle % 256 - 11, minlength=81)
    assert len(counts) == 81
    assert counts.min() > 0
    assert chisquare(counts.numpy()).pvalue > 1e-3
    painted = Cutout(size=1)(torch.ones(64 * 200, 1, 8, 8), numbers(64 * 200, 2))
    assert chisquare((painted == 0).sum((0, 1)).flatten().numpy()).pvalue > 1e-3


def test_shares_and_areas_are_as_set() -> None:
    n = 20_000
    flipped = Flip(share=0.3)(torch.tensor([0.0, 1.0]).expand(n, 1, 1, 2), numbers(n, 1))[:, 0, 0, 0]
    assert abs(flipped.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    one = RandomResizedCrop(scale=(0.1, 0.4))
    top, left, h, w = one.windows(numbers(n, 22), 4000, 4000)  # all fit, so that neither distribution is bent
    area, ratio = (h * w).double() / 4000**2, (w / h).log() / math.log(4 / 3)
    for values, low, high in ((area, 0.1, 0.4), (ratio, -1.0, 1.0), (top / (4000 - h), 0.0, 1.0), (left / (4000 - w), 0.0, 1.0)):
        assert low - 0.005 < values.min()
        assert values.max() < high + 0.005
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * n)


def test_the_largest_number_below_one_stays_below_the_count() -> None:
    counts = torch.arange(1, 1 << 16)
    assert torch.equal(below(torch.full((len(counts),), 1 - 2.0**-24), counts), counts - 1)


# ---------------------------------------------------------------- what all hold to


def test_all_are_tried_here() -> None:
    assert {title(one) for one in ALL} == set(names("augmentation"))
    assert all(build("augmentation", to_dict(one)) == one for one in ALL)


@pytest.mark.parametrize("one", ALL, ids=title)
def test_an_image_depends_on_its_own_numbers_alone_and_inputs_stay(one: Augmentation) -> None:
    pixels, u = images(37, 3, 15, 18), numbers(37, one.draws)
    kept, kept_u = pixels.clone(), u.clone()
    whole = one(pixels, u)
    assert torch.equal(pixels, kept)
    assert torch.equal(u, kept_u)
    assert whole.dtype == torch.uint8
    assert whole.data_ptr() != pixels.data_ptr()
    assert torch.equal(torch.cat([one(pixels[k : k + 1], u[k : k + 1]) for k in range(37)]), whole)
    order = torch.randperm(37)
    assert torch.equal(one(pixels[order], u[order]), whole[order])
    # images that do not lie in one piece of memory
    assert torch.equal(one(pixels.transpose(2, 3).contiguous().transpose(2, 3), u), whole)
    assert len(one(pixels[:1].expand(37, -1, -1, -1), u).unique(dim=0)) > 1


@pytest.mark.parametrize("one", ALL[:-1], ids=title)
def test_float32_images_stay_float32(one: Augmentation) -> None:
    pixels, u = images(21, 1, 15, 18, torch.float32), numbers(21, one.draws)
    whole = one(pixels, u)
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat([one(pixels[k : k + 1], u[k : k + 1]) for k in range(21)]), whole)


@pytest.mark.parametrize(("one", "said"), [
    (Crop(padding=1, size=12), "a window of 12×12 does not fit images of 8×9 pixels padded to 10×11"),
    (Crop(padding=8, mode="reflect"), "padding 8 cannot mirror images of 8×9 pixels"),
])  # fmt: skip
def test_what_cannot_be_cut_is_refused(one: Augmentation, said: str) -> None:
    with pytest.raises(InputError, match=said):
        one(images(2, 3, 8, 9), numbers(2, 2))


@pytest.mark.parametrize(("name", "settings"), [
    ("crop", {"padding": -1}), ("crop", {"mode": "wrap"}), ("crop", {"size": 0}), ("flip", {"share": 1.1}), ("cutout", {"size": 0}),
    ("cutout", {"value": 256}), ("random_resized_crop", {"scale": (0.0, 1.0)}), ("random_resized_crop", {"scale": (0.5, 0.2)}),
    ("random_resized_crop", {"ratio": (2.0, 1.0)}), ("random_resized_crop", {"size": 0}),
])  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        build("augmentation", {"name": name, **settings})


# ---------------------------------------------------------------- a chain on stacked batches

CHAIN = (Crop(), Flip(), AutoAugment(), Cutout(size=8))


def batches(members: int, n: int = 24) -> Tensor:
    return images(1, 3, 32, 32).expand(members, n, 3, 32, 32)


def test_members_together_and_apart_are_the_same() -> None:
    pixels, seeds = images(3 * 10, 3, 32, 32).view(3, 10, 3, 32, 32), [5, 100_000, 7]
    together = augmented(CHAIN, pixels, seeds, 4)
    torch.rand(3)  # the global generator is nobody's
    for k, seed in enumerate(seeds):
        assert torch.equal(augmented(CHAIN, pixels[k : k + 1], [seed], 4)[0], together[k])
    assert torch.equal(augmented(CHAIN, pixels[[2, 1]], [7, 100_000], 4), together[[2, 1]])


def test_members_steps_and_examples_differ_and_the_global_generator_rests() -> None:
    state = torch.get_rng_state()
    first = augmented(CHAIN, batches(2), [1, 2], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(augmented(CHAIN, batches(2), [1, 2], 1)[0], first[0])
    assert len(first[0].unique(dim=0)) > 20
    assert torch.equal(augmented(CHAIN, batches(2), [1, 2], 0), first)
    assert torch.equal(augmented(CHAIN, batches(1), [1], 0)[0], augmented(CHAIN, batches(2), [1, 1], 0)[1])


def test_a_chain_is_applied_in_order_and_may_change_the_size() -> None:
    pixels = images(12, 1, 16, 20).view(2, 6, 1, 16, 20)
    found = augmented((RandomResizedCrop(size=8), Cutout(size=40, value=9)), pixels, [0, 1], 0)
    assert found.shape == (2, 6, 1, 8, 8)
    assert (found == 9).all()
    assert not (augmented((Cutout(size=40, value=9), RandomResizedCrop(size=8)), pixels, [0, 1], 0) != 9).any()
    assert torch.equal(augmented((), pixels, [0, 1], 0), pixels)
