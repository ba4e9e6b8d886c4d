"""Metrics against the plain way: a loop over examples with NumPy inside. One thread, medians of five, same numbers.

python benchmarks/metrics.py          # exits 1 if a speed-up falls below its threshold
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import beta, norm

from unlearnlab.metrics.epsilon import LEAST_SD, PRIOR_WEIGHT, certified, point, wrong
from unlearnlab.metrics.epsilon_published import published
from unlearnlab.metrics.klom import BINS, hist, smooth

MODELS, EXAMPLES, FOLDS, ALPHA = 80, 1000, 5, 0.05
REPEATS = 5
REQUIRED = {"eps.crossfit": 200.0, "eps.published": 200.0, "klom.smooth": 40.0, "klom.hist": 10.0}


def plain_klom(u: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Quantile bins, smoothed counts, KL; one example after the other."""
    found = []
    for i in range(o.shape[1]):
        edges = np.quantile(np.concatenate([o[:, i], u[:, i]]), np.arange(1, BINS) / BINS, method="inverted_cdf")
        inner = np.nextafter(edges, np.inf)  # a margin on an edge belongs below it
        counts = [np.histogram(side[:, i], np.concatenate([[-np.inf], inner, [np.inf]]))[0] for side in (o, u)]
        p, q = ((count + 0.5) / (count + 0.5).sum() for count in counts)
        found.append(np.sum(p * np.log(p / q)))
    return np.array(found)


def plain_hist(u: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Twenty equal bins, KL; one example after the other."""
    found = []
    for i in range(o.shape[1]):
        a, b = np.clip(o[:, i], -100, 100), np.clip(u[:, i], -100, 100)
        ends = min(a.min(), b.min()), max(a.max(), b.max())
        p, q = (np.histogram(x, bins=20, range=ends)[0] / len(x) for x in (a, b))
        q = np.where(p > 0, np.maximum(q, 1e-5), q)
        q /= q.sum()
        found.append(sum(p[k] * np.log(p[k] / q[k]) for k in range(20) if p[k] > 0))
    return np.array(found)


def plain_contest(u: np.ndarray, o: np.ndarray, delta: float = 1e-5) -> np.ndarray:
    """The contest's ε with every interval between every two cuts, tried one after the other; meant for few examples."""
    found = []
    for i in range(u.shape[1]):
        cuts = [*np.unique(np.concatenate([u[:, i], o[:, i]])), np.inf]
        best = 0.0
        for left in range(len(cuts)):
            for right in range(left + 1, len(cuts)):
                fpr, tpr = (np.mean((x >= cuts[left]) & (x < cuts[right])) for x in (o[:, i], u[:, i]))
                for a, b in ((fpr, 1 - tpr), (1 - fpr, tpr)):
                    if a == 0 and b == 0:
                        best = 50.0
                    elif a > 0 and b > 0:
                        best = max([best, *(math.log((1 - delta - x) / y) for x, y in ((a, b), (b, a)) if 1 - delta - x > 0)])
        spans = sorted(np.ptp(x[:, i]) for x in (u, o))
        found.append(50.0 if spans[0] < 0.01 * spans[1] else min(best, 50.0))
    return np.array(found)


def plain_epsilon(u: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Point estimate and certified bound of cross-fitted ε; one example after the other."""
    fold = np.arange(len(u)) % FOLDS
    pools = [[np.mean([np.var(side[fold != f, i], ddof=1) for i in range(side.shape[1])]) for side in (u, o)] for f in range(FOLDS)]
    found = []
    for i in range(u.shape[1]):
        fp = fn = 0
        for f in range(FOLDS):
            fits = []
            for side, pool in zip((u, o), pools[f], strict=True):
                x = side[fold != f, i]
                variance = (np.var(x, ddof=1) * (len(x) - 1) + PRIOR_WEIGHT * pool) / (len(x) - 1 + PRIOR_WEIGHT)
                fits.append((np.mean(x), np.sqrt(max(variance, LEAST_SD**2 * max(pools[f])))))
            held_u, held_o = u[fold == f, i], o[fold == f, i]
            fn += np.sum(norm.logpdf(held_u, *fits[0]) <= norm.logpdf(held_u, *fits[1]))
            fp += np.sum(norm.logpdf(held_o, *fits[0]) > norm.logpdf(held_o, *fits[1]))
        pairs = [((fp + 0.5) / (len(o) + 1), (fn + 0.5) / (len(u) + 1))]
        pairs.append(tuple(beta.ppf(1 - ALPHA / 2, k + 1, n - k) if k < n else 1.0 for k, n in ((fp, len(o)), (fn, len(u)))))
        with np.errstate(divide="ignore"):
            found.append([max(0.0, np.log((1 - a) / b), np.log((1 - b) / a)) for a, b in pairs])
    return np.array(found).T


def plain_published(u: np.ndarray, o: np.ndarray, delta: float = 0.05) -> np.ndarray:
    """The published ε of every example, cut after cut, as metrics.md §5.1 tells it."""
    found = []
    for i in range(u.shape[1]):
        # mean and sd (ddof 0); the sd of equal numbers is 0 however their mean rounds
        fits = [(np.mean(x), np.std(x) if x.min() < x.max() else 0.0) for x in (u[:, i], o[:, i])]
        with np.errstate(all="ignore"):
            score_u, score_o = (norm.pdf(x, *fits[0]) / norm.pdf(x, *fits[1]) for x in (u[:, i], o[:, i]))
        if np.isnan(score_u).any() or np.isnan(score_o).any():
            found.append(np.nan)
            continue
        positive, negative = (score_u, score_o) if np.median(score_u) >= np.median(score_o) else (score_o, score_u)
        best = -np.inf
        for cut in np.unique(np.concatenate([score_u, score_o])):
            fpr, fnr = np.count_nonzero(negative >= cut) / len(negative), np.count_nonzero(positive < cut) / len(positive)
            if fpr == 0 and fnr == 0:
                best = np.inf
            elif fpr > 0 and fnr > 0:
                for right, wrong_rate in ((1 - delta - fpr, fnr), (1 - delta - fnr, fpr)):
                    inside = right / wrong_rate + 1e-8
                    best = max(best, math.log(inside)) if inside > 0 else best
        found.append(best if best > -np.inf else np.nan)
    return np.array(found)


def fast_epsilon(u: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    fp, fn = wrong(u, o, FOLDS)
    return torch.stack([point(fp, fn, len(o), len(u), 0.0), certified(fp, fn, len(o), len(u), 0.0, ALPHA)])


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> int:
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    o = torch.randn(MODELS, EXAMPLES, generator=draws, dtype=torch.float64) * 2 + 3
    u = torch.randn(MODELS, EXAMPLES, generator=draws, dtype=torch.float64) * 2 + 3 + torch.linspace(0, 4, EXAMPLES, dtype=torch.float64)
    jobs = {
        "eps.crossfit": (fast_epsilon, plain_epsilon),
        "eps.published": (published, plain_published),
        "klom.smooth": (lambda x, y: smooth(y, x), plain_klom),
        "klom.hist": (lambda x, y: hist(y, x), plain_hist),
    }
    print(f"{EXAMPLES} examples, {MODELS} + {MODELS} models, one thread, medians of {REPEATS}")
    short = False
    for name, (fast, plain) in jobs.items():
        ours, theirs = fast(u, o).numpy(), plain(u.numpy(), o.numpy())
        assert np.allclose(ours, theirs, rtol=0, atol=1e-9, equal_nan=True), f"{name}: the two ways differ by {np.nanmax(np.abs(ours - theirs)):g}"
        quick, slow = seconds(lambda run=fast: run(u, o), 5 * REPEATS), seconds(lambda run=plain: run(u.numpy(), o.numpy()))
        short |= slow / quick < REQUIRED[name]
        print(f"{name:13} {quick * 1e3:8.2f} ms   loop {slow * 1e3:9.1f} ms   {slow / quick:6.0f}x   (required {REQUIRED[name]:.0f}x)")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
