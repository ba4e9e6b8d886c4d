"""Pixels as floats in [0, 1], for what makes images of its own beside those of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack


def as_floats(pixels: Tensor) -> Tensor:
    """uint8 pixels in [0, 1], as the nets scale them; float pixels as they are."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def require_floats(stack: Stack, images: Images, who: str) -> None:
    """Refuse a net that sees another image when uint8 pixels come as floats in [0, 1]; one image tells, and is not counted as work."""
    first = images.pixels[:1].to(stack.device)
    if first.dtype == torch.uint8 and not torch.allclose(stack.logits(first), stack.logits(as_floats(first)), rtol=1e-3, atol=1e-4, equal_nan=True):
        scale = "scale by 1/255 inside the net where pixels are uint8 only, or give float32 images"
        raise InputError(f"{who} makes images of floats in [0, 1], and this net answers them otherwise than the same uint8 pixels; {scale}")
