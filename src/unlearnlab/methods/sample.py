"""A few images of the retain set, each model its own, where a method looks at only a small share of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.gradients import drawn_rows
from unlearnlab.localise.ranking import allowed
from unlearnlab.spec import Setting

SampleShare = Annotated[float, Setting("share of the retain set that each model looks at; at least one image", gt=0, le=1)]


def sampled(images: Images, share: float, seeds: Sequence[int]) -> Int64[Tensor, "k m"]:
    """Rows of ⌊share·n⌋ different images (at least one) for each seed, in the order in which the images stand."""
    rows = drawn_rows(images, max(1, allowed(share, len(images))), seeds)
    return torch.arange(len(images)).expand(len(seeds), -1) if rows is None else rows
