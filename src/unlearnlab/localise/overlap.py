"""How much of each layer masks open, and how far two masks agree: what there is to see of a localiser."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from unlearnlab.stack import Mask, blocks, per_member


def jaccard(mask: Mask, other: Mask) -> Float[Tensor, " k"]:
    """Weights that both open, as a share of those that either opens, per member (two masks that open nothing agree: 1)."""
    both = per_member({name: bits & other.open[name] for name, bits in mask.open.items()})
    either = per_member({name: bits | other.open[name] for name, bits in mask.open.items()})
    return both.where(either > 0, both.new_ones(())) / either.clamp(min=1)


def chance_jaccard(share: Float[Tensor, " k"], other: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """What ``jaccard`` is expected to be if masks of these shares had nothing to do with each other: pq / (p + q − pq)."""
    both = share * other
    either = share + other - both
    return (both / either.clamp(min=1e-12)).where(either > 0, both.new_ones(()))


def layer_shares(mask: Mask, net: nn.Module) -> dict[str, Float[Tensor, " k"]]:
    """Share of each layer that is open, per member, in the order of the forward pass."""
    found = {}
    for names in blocks(net):
        opened = per_member({name: mask.open[name] for name in names})
        found[_shared(names)] = opened / sum(mask.open[name][0].numel() for name in names)
    return found


def _shared(names: tuple[str, ...]) -> str:
    """What a layer is called: the module that holds all of its tensors."""
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        return names[0].removesuffix(".weight")
    depth = next((at for at, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1), min(map(len, parts)))
    return ".".join(parts[0][:depth]) or names[0]
