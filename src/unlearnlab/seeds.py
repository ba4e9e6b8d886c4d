"""Random numbers: one generator per model **and purpose**, never the global one.

A draw depends on (seed, purpose, counters) alone, so it is the same whatever was drawn before, in
whichever process, and from whichever step a run resumes: no generator state is ever stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Disjoint by construction, fixed before any result is seen. A study's own seed shifts all of them.
RANGES = {"original": 0, "oracle": 100_000, "retrain": 200_000, "subset": 300_000, "probe": 400_000, "reference": 500_000, "untrained": 600_000}
PER_ROLE = 100_000
PER_STUDY = 1_000_000
PER_STEP = 10**15  # more studies than anyone will number


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU generator for one purpose (``init``, ``order.retain``, ``labels`` …) of one model.

    ``counters`` number repeated draws, for instance the epoch of a reshuffle.
    """
    import torch

    words = "/".join([str(seed), purpose, *map(str, counters)])
    value = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(value)


@contextmanager
def seeded(seed: int, purpose: str, *counters: int, device: torch.device) -> Iterator[None]:
    """Code that can only draw from torch's global generators (dropout, ``reset_parameters``) draws ours; theirs are put back."""
    import torch

    value = generator(seed, purpose, *counters).initial_seed()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(value)  # torch.manual_seed walks the Python stack, for 0.2 ms
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(value)
        yield


def at_step(seed: int, step: int) -> int:
    """The seed of a model in a later step of several: of a sequence of methods, of requests in order. Else each would draw what the first drew."""
    return seed + step * PER_STEP


def model_seeds(role: str, count: int, study_seed: int = 0, first: int = 0) -> tuple[int, ...]:
    """Seeds of the ``count`` models of a role (a key of ``RANGES``) in a study, from its model number ``first`` on."""
    assert first + count <= PER_ROLE, f"{role}: {first} + {count} models are more than a role has seeds for"
    start = study_seed * PER_STUDY + RANGES[role] + first
    return tuple(range(start, start + count))
