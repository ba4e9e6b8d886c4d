"""The embedded data sets: scikit-learn's 1 797 scans of handwritten digits, 8×8 grey, no download; in ten classes, or in five of two digits each."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from unlearnlab.data.images import Column, Facts, Images
from unlearnlab.spec import spec


@spec("dataset", "digits")
class Digits:
    """1 797 real 8×8 scans of handwritten digits (Alpaydin & Kaynak 1998), shipped with scikit-learn.

    Pixels are 0 to 16 in the release and stored as round(v·255/16); ids are rows of the release.
    """

    mean: ClassVar[tuple[float, ...]] = (0.0,)
    std: ClassVar[tuple[float, ...]] = (1.0,)
    facts: ClassVar[Facts] = Facts(train=1797, test=0, classes=10, shape=(1, 8, 8))

    def __call__(self) -> Images:
        from sklearn.datasets import load_digits

        release = load_digits()
        pixels = torch.as_tensor(release.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.as_tensor(release.target, dtype=torch.int64)
        return Images(pixels, labels, torch.arange(len(labels)), self.facts.classes)


@spec("dataset", "digits_pairs")
class DigitsPairs:
    """The digits in five classes of two (0 and 1, 2 and 3 …), one digit of which can be forgotten as a sub-class, as in CIFAR-20.

    The column ``fine`` holds the digit; pixels and ids are those of ``digits``.
    """

    mean: ClassVar[tuple[float, ...]] = Digits.mean
    std: ClassVar[tuple[float, ...]] = Digits.std
    facts: ClassVar[Facts] = replace(Digits.facts, classes=5)

    def __call__(self) -> Images:
        whole = Digits()()
        return Images(whole.pixels, whole.labels // 2, whole.ids, self.facts.classes, columns={"fine": Column(whole.labels)})
