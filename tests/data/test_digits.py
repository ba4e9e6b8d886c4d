"""The digits of scikit-learn, as stored."""

from __future__ import annotations

import pytest
import torch

from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images


@pytest.fixture(scope="module")
def digits() -> Images:
    return Digits()()


def test_size_ids_and_classes(digits: Images) -> None:
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.pixels.dtype == torch.uint8
    assert digits.ids.tolist() == list(range(1797))
    assert digits.classes == 10
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert not digits.mislabelled.any()


def test_pixels_are_scaled_and_rounded(digits: Images) -> None:
    from sklearn.datasets import load_digits

    release = load_digits().images
    stored = {v: round(v * 255 / 16) for v in range(17)}
    assert sorted(stored.values()) == digits.pixels.unique().tolist()  # type: ignore[no-untyped-call]
    for row in (0, 1, 900, 1796):
        assert digits.pixels[row, 0].tolist() == [[stored[int(v)] for v in line] for line in release[row]]
    assert digits.fingerprint == Digits()().fingerprint
