"""The embedded data set: scikit-learn's 1 797 scans of handwritten digits, 8×8 grey, no download."""

from __future__ import annotations

from typing import ClassVar

import torch

from unlearnlab.data.images import Images
from unlearnlab.spec import spec


@spec("dataset", "digits")
class Digits:
    """1 797 real 8×8 scans of handwritten digits (Alpaydin & Kaynak 1998), shipped with scikit-learn.

    Pixels are 0 to 16 in the release and stored as round(v·255/16); ids are rows of the release.
    """

    mean: ClassVar[tuple[float, ...]] = (0.0,)
    std: ClassVar[tuple[float, ...]] = (1.0,)

    def __call__(self) -> Images:
        from sklearn.datasets import load_digits

        release = load_digits()
        pixels = torch.as_tensor(release.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.as_tensor(release.target, dtype=torch.int64)
        return Images(pixels, labels, torch.arange(len(labels)), classes=10)
