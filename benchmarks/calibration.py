"""How often the audit is wrong, on simulated studies: `python benchmarks/calibration.py [studies]` (400: about ten minutes on one busy core).

Margins of a model on image j are mean_j + sd_j (√c a + √f L_j·b + √(1−c−f) e): ``a`` is the model's own level, common to all
images; ``b`` are five factors with random loadings, |L_j| = 1; ``e`` is independent. Originals lie gap_j sd_j higher: half
the images (mislabelled) by 4 to 8 sd, half (clean) by about .3 sd; their own spread is .7 of an oracle's. With c = .005 that gives the precision and
the power that metrics.md §1.3a and §5.6 report of digits (interval of the trace ± .02 at N = 32); 32 + 32 MLPs trained once on
digits had mislabelled gaps of 8 to 14 sd, clean ones of -9 to 0 and c = .0135 (± .007), an easier case. A perfect method's
models share half the variance of ``a`` with their originals. Ten methods share originals and oracles, as in a real study.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from unlearnlab.auditing import power
from unlearnlab.metrics.omnibus import omnibus
from unlearnlab.metrics.statistics import holm, t_of
from unlearnlab.metrics.trace import share_left
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator


@dataclass(frozen=True)
class Regime:
    common: float = 0.005  # c
    factors: float = 0.0  # f
    gaps: tuple[float, float] = (4.0, 8.0)  # of mislabelled images, in sd
    n: int = 32
    images: int = 62
    methods: int = 10


REGIMES = {
    "digits": Regime(),
    "correlated": Regime(factors=0.3),
    "narrow": Regime(gaps=(2.0, 4.0)),
}


@dataclass(frozen=True, eq=False)
class Study:
    """Margins [models, images]; ``gap``: what the forget set adds to an original's margins."""

    originals: Tensor
    oracles: Tensor
    perfect: tuple[Tensor, ...]
    gap: Tensor
    sd: Tensor
    seed: int


def simulate(regime: Regime, seed: int) -> Study:
    """One study of perfect methods: the same seed gives the same margins."""
    g = generator(seed, repr(regime))  # every regime draws for itself

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    half = regime.images // 2
    low, high = regime.gaps
    level, sd = 3 + 2 * normal(regime.images), (0.3 * normal(regime.images)).exp()
    wrong = low + (high - low) * torch.rand(half, generator=g, dtype=torch.float64)
    gap = torch.cat([wrong, 0.3 + 0.1 * normal(regime.images - half)]) * sd
    loadings = torch.nn.functional.normalize(normal(regime.images, 5))
    own = (1 - regime.common - regime.factors) ** 0.5

    def models(a: Tensor) -> Tensor:
        noise = regime.common**0.5 * a[:, None] + regime.factors**0.5 * normal(regime.n, 5) @ loadings.T + own * normal(regime.n, regime.images)
        scaled: Tensor = sd * noise
        return scaled

    parent = normal(regime.n)
    perfect = tuple(level + models((parent + normal(regime.n)) / 2**0.5) for _ in range(regime.methods))
    return Study(level + gap + 0.7 * models(parent), level + models(normal(regime.n)), perfect, gap, sd, seed)


def outputs(margins: Tensor) -> Outputs:
    """Two-class outputs with these margins, all on images to forget."""
    m, n = margins.shape
    zeros = torch.zeros(n, dtype=torch.int64)
    return Outputs(torch.stack([margins, torch.zeros_like(margins)], -1), torch.zeros(m, n, dtype=torch.bool), zeros, torch.arange(n), zeros, tuple(range(m)))


def judged(study: Study, unlearned: Tensor, permutations: int) -> tuple[float, float, float]:
    """p, and the limits of the trace: what the two metrics compute, without the wrapping."""
    n = len(unlearned)
    p, _ = omnibus(unlearned, study.oracles, 199, study.seed)
    if p < 0.15:  # above, it is not below .05 with more labellings either: that is 6 sd away
        p, _ = omnibus(unlearned, study.oracles, permutations, study.seed)
    held = torch.arange(n) % 4 == torch.arange(4)[:, None]
    left = share_left(study.originals, study.oracles, unlearned, torch.arange(n), held, held, held)
    interval = t_of(left.value, left.se, n - 1)
    return p, interval.lo, interval.hi


@dataclass(frozen=True)
class Figures:
    accused: float  # studies in which any of ten perfect methods is accused
    covers: float  # perfect methods whose trace interval covers 0
    forgotten: float  # perfect methods called forgotten
    half_width: float  # of the trace interval


def perfect_methods(regime: Regime, studies: int, permutations: int = 1_999) -> Figures:
    hits, rows = [], []
    for seed in range(studies):
        study = simulate(regime, seed)
        found = [judged(study, u, permutations) for u in study.perfect]
        hits.append(min(holm([p for p, _, _ in found])) <= 0.05)
        rows += found
    return Figures(
        mean(hits),
        mean(lo <= 0 <= hi for _, lo, hi in rows),
        mean(p > 0.05 and lo > -0.1 and hi < 0.1 for p, lo, hi in rows),
        mean((hi - lo) / 2 for _, lo, hi in rows),
    )


def accused(regime: Regime, share: float, studies: int, permutations: int = 1_999) -> float:
    """How often a method that leaves this share of the trace is accused, nine perfect ones beside it (Holm: p <= .05/10)."""
    hits = 0
    for seed in range(studies):
        study = simulate(regime, seed)
        p, lo, hi = judged(study, study.perfect[0] + share * study.gap, permutations)
        hits += p <= 0.05 / regime.methods and (lo > 0 if share > 0 else hi < 0)
    return hits / studies


def seen_as_promised(regime: Regime, studies: int, permutations: int = 1_999) -> tuple[float, float]:
    """How often a shift is seen that the power sentence of its own study promises to see with probability .8: uniform, and as a share of the trace."""
    hits = [0, 0]
    for seed in range(studies):
        study = simulate(regime, seed)
        strength = power(outputs(study.originals), outputs(study.oracles), regime.methods, regime.n)
        for which, shift in enumerate((strength.shift * study.sd, (strength.share or 0.0) * study.gap)):
            p, _ = omnibus(study.perfect[0] + shift, study.oracles, permutations, study.seed)
            hits[which] += p <= 0.05 / regime.methods
    return hits[0] / studies, hits[1] / studies


def main(studies: int = 400, permutations: int = 9_999) -> None:
    torch.set_num_threads(1)
    print(f"{studies} simulated studies of ten methods, N = 32 models a side, 62 images, B = {permutations}")
    for name, regime in REGIMES.items():
        start = time.perf_counter()
        seen = perfect_methods(regime, studies, permutations)
        print(
            f"{name}: any of ten perfect methods accused {seen.accused:.3f}; trace interval covers 0 {seen.covers:.3f}, half-width {seen.half_width:.3f};",
            end=" ",
        )
        print(f"called forgotten {seen.forgotten:.3f} ({time.perf_counter() - start:.0f} s)")
        print(
            "  accused:",
            ", ".join(f"{accused(regime, share, studies, permutations):.3f} at {100 * share:+.0f} % of the trace" for share in (0.03, 0.05, 0.1, -0.1)),
        )
        uniform, share = seen_as_promised(regime, studies, permutations)
        print(f"  shifts the power sentence names (.8 promised): uniform {uniform:.3f}, share of the trace {share:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
