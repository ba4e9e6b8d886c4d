"""Label noise: how much, which labels, from which seed."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2, chisquare

from unlearnlab.data.corrupt import Clean, SymmetricNoise, flip
from unlearnlab.data.images import Images
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
