"""A few images of the retain set, each model its own, where a method looks at only a small share of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.localise.ranking import allowed
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting

SampleShare = Annotated[float, Setting("share of the retain set that each model looks at; at least one image", gt=0, le=1)]


def sampled(images: Images, share: float, seeds: Sequence[int]) -> Int64[Tensor, "k m"]:
    """Rows of ⌊share·n⌋ different images (at least one) for each seed, in the order in which the images stand."""
    n = len(images)
    count = max(1, allowed(share, n))
    drawn = [torch.randperm(n, generator=generator(seed, "sample"))[:count].sort().values for seed in seeds]
    return torch.stack(drawn)
