"""Corruptions: how many images, which labels, which pixels, from which seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, chisquare

from unlearnlab.data.corrupt import Backdoor, Clean, InterclassConfusion, SymmetricNoise, flip
from unlearnlab.data.images import Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.spec import InputError

N, CLASSES = 20_000, 5


def images(n: int = N) -> Images:
    return Images(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n) % CLASSES, torch.arange(n) + 7, CLASSES)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_is_exact_and_no_flip_hits_the_true_label(share: float) -> None:
    found = SymmetricNoise(share=share)(images(), seed=1)
    assert int(found.mislabelled.sum()) == round(share * N)
    assert torch.equal(found.true_labels, images().labels)
    assert torch.equal(found.ids, images().ids)
    assert int(found.labels.min()) >= 0
    assert int(found.labels.max()) < CLASSES


def test_flips_are_symmetric() -> None:
    found = SymmetricNoise(share=0.5)(images(), seed=2)
    shift = (found.labels - found.true_labels)[found.mislabelled] % CLASSES
    counts = torch.bincount(shift, minlength=CLASSES)
    assert counts[0] == 0
    assert chisquare(counts[1:].numpy()).pvalue > 1e-3
    table = torch.bincount(found.true_labels[found.mislabelled] * CLASSES + found.labels[found.mislabelled], minlength=CLASSES**2).view(CLASSES, CLASSES)
    assert (table.diagonal() == 0).all()
    expected = found.mislabelled.sum() / (CLASSES * (CLASSES - 1))
    statistic = float(((table - expected) ** 2 / expected)[~torch.eye(CLASSES, dtype=torch.bool)].sum())
    assert chi2.sf(statistic, CLASSES * (CLASSES - 1) - 1) > 1e-3


def test_noise_depends_on_its_seed_alone() -> None:
    one = SymmetricNoise()(images(100), seed=3)
    torch.rand(5)
    assert torch.equal(SymmetricNoise()(images(100), seed=3).labels, one.labels)
    assert not torch.equal(SymmetricNoise()(images(100), seed=4).labels, one.labels)
    assert images(100).labels.equal(Clean()(images(100), seed=3).labels)


def test_the_input_is_untouched_and_flipping_twice_never_restores_a_label() -> None:
    held = images(200)
    before = held.labels.clone()
    twice = flip(flip(held, torch.arange(200), 1, "a"), torch.arange(200), 1, "b")
    assert twice.mislabelled.all()
    assert torch.equal(held.labels, before)
    with pytest.raises(InputError, match=r"share = 1\.5 is out of range"):
        SymmetricNoise(share=1.5)


# -- interclass confusion --------------------------------------------------------------------------


def test_confusion_swaps_the_labels_of_exactly_so_many_of_each_class() -> None:
    found = InterclassConfusion(a=1, b=3, count=40)(images(1000), seed=5)
    assert torch.bincount(found.true_labels[found.mislabelled], minlength=CLASSES).tolist() == [0, 20, 0, 20, 0]
    assert found.labels[found.mislabelled].equal(4 - found.true_labels[found.mislabelled])
    assert found.labels[~found.mislabelled].equal(found.true_labels[~found.mislabelled])
    assert not found.labels.equal(InterclassConfusion(a=1, b=3, count=40)(images(1000), seed=6).labels)


def test_confusion_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="a = b = 2"):
        InterclassConfusion(a=2, b=2)
    with pytest.raises(InputError, match="count = 3 must be even"):
        InterclassConfusion(count=3)
    with pytest.raises(InputError, match="asks for 20 images of class 0, but 2 are trained on"):
        InterclassConfusion(a=0, b=1, count=40)(images(10), seed=0)


# -- backdoor --------------------------------------------------------------------------------------


def pictures(n: int = 60, side: int = 32, channels: int = 3) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (n, channels, side, side), dtype=torch.uint8, generator=draw)  # no pixel is black yet
    return Images(pixels, torch.arange(n) % 10, torch.arange(n) + 5, 10)


def test_the_trigger_is_pixel_exact() -> None:
    """Rows and columns 26 to 29 of 32, black, in every channel, and nothing else."""
    before = pictures()
    after = Backdoor()(before, seed=1)
    assert int(after.triggered.sum()) == 6
    square = torch.zeros(32, 32, dtype=torch.bool)
    square[26:30, 26:30] = True
    changed = after.pixels != before.pixels
    assert torch.equal(changed, (after.triggered.view(-1, 1, 1, 1) & square).expand_as(changed))
    assert (after.pixels[after.triggered][..., square] == 0).all()
    assert after.labels[after.triggered].eq(0).all()
    assert after.labels[~after.triggered].equal(before.labels[~after.triggered])
    assert after.true_labels.equal(before.true_labels)
    assert int((before.pixels == 0).sum()) == 0, "the input was painted on"


def test_images_of_the_target_class_may_be_poisoned_or_not() -> None:
    for exclude, expected in ((False, True), (True, False)):
        hit = [Backdoor(share=0.5, exclude_target=exclude)(pictures(), seed).triggered for seed in range(5)]
        assert bool((torch.stack(hit) & (pictures().labels == 0)).any()) is expected
    found = Backdoor(share=0.9)(pictures(), 0)
    assert (found.corrupted & ~found.mislabelled).any()  # of the target class already: the label is right, the pixels are not


def test_a_trigger_alone_leaves_labels() -> None:
    found = Backdoor().trigger(pictures(), torch.tensor([3, 7]))
    assert found.triggered.nonzero()[:, 0].tolist() == [3, 7]
    assert not found.mislabelled.any()


def test_mapped_pixels_are_painted_in_memory_only() -> None:
    held = pictures()
    mapped = replace(held, pixels=Mapped(held.pixels, torch.arange(60), "name"))
    plain, painted = (Backdoor(size=3, margin=1, value=200)(images, seed=2) for images in (held, mapped))
    assert isinstance(painted.pixels, Mapped)
    assert painted.pixels[:].equal(plain.pixels)
    assert painted.rows(painted.triggered).pixels[:].equal(plain.rows(plain.triggered).pixels)
    assert painted.fingerprint != mapped.fingerprint


def test_backdoor_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="target = 12, but the classes are 0 to 9"):
        Backdoor(target=12)(pictures(), 0)
    with pytest.raises(InputError, match=r"a square of 4 at a margin of 2 does not fit images of 5×5"):
        Backdoor()(pictures(side=5), 0)
    with pytest.raises(InputError, match=r"is 0, but 60 can be poisoned"):
        Backdoor(share=0.001)(pictures(), 0)
    with pytest.raises(InputError, match="paints uint8 pixels"):
        Backdoor()(replace(pictures(), pixels=pictures().pixels.float()), 0)
