"""Images of rare classes count more: the loss of methods made for data whose classes are of very different sizes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from unlearnlab.data.images import Split
from unlearnlab.fit import Loss, cross_entropy, weighted_cross_entropy
from unlearnlab.spec import Setting
from unlearnlab.stack import Stack, head_names
from unlearnlab.train import class_weights

Weighting = Literal["none", "inverse"]
ClassWeights = Annotated[
    Weighting, Setting("inverse: an image counts n_r/n_c, with n_c images of its label in the retain set; a label that set lacks counts as its rarest")
]


def class_weighted(weighting: Weighting, stack: Stack, split: Split) -> Loss:
    """Cross-entropy, or with ``inverse`` the weighted mean Σ w_y ℓ / Σ w_y with the weights of the retain set.

    A class that the retain set lacks (a whole class is forgotten, a random label is drawn) must not weigh 0: a batch of such
    images alone would be 0/0. It weighs as much as the rarest class there is.
    """
    if weighting == "none":
        return cross_entropy
    weights = class_weights(split.retain, stack.params[head_names(stack)[0]].shape[1])
    return weighted_cross_entropy(0.0, torch.where(weights > 0, weights, weights.max()))
