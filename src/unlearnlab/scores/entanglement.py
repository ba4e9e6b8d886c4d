"""How deep a forget set lies among the other training images, as a net sees them; and how far each image lies from their centre.

Everything here looks at features: what a net's classifier head is fed. Pure functions, in float64, for one model [n d] or a stack [K n d].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.partition import Parts
from unlearnlab.outputs import features
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

Centre = Literal["global", "midpoint"]

MEMORY = 64 * 2**20  # bytes of kernel values held at a time
MEDIAN_POINTS = 2000  # whose pairwise distances the median heuristic looks at, at most
MMD_POINTS = 5000  # images a side of which ``describe`` takes the MMD, at most: of 45 000 it would take minutes a group


# ---- two sets of features


def entanglement(forget: Float[Tensor, "*k n d"], retain: Float[Tensor, "*k m d"], centre: Centre = "global") -> Float64[Tensor, " *k"]:
    """Spread within the two sets over the distance between them: high = more entangled = harder to forget.

    ES = [mean_R ‖φ−μ_R‖² + mean_S ‖φ−μ_S‖²] / [½(‖μ_R−μ‖² + ‖μ_S−μ‖²)], with S = ``forget``, R = ``retain``, μ_R and μ_S their means.
    ``centre``: μ is the mean of all images (global), or (μ_R+μ_S)/2 (midpoint), which makes the denominator ‖μ_R−μ_S‖²/4. With shares
    r and s = 1−r of the images, midpoint gives 2(r²+s²) times what global gives. Infinite where the means coincide, NaN where also
    nothing varies. Source: Zhao et al. 2024, arXiv:2406.01257 (protocols.md §8). Differs from the published code: it takes the
    midpoint, and means of batch means, which weigh the images of a short last batch too much.
    """
    forget, retain = _both(forget, retain)
    mean_f, mean_r = forget.mean(-2), retain.mean(-2)
    within = _spread(forget, mean_f) + _spread(retain, mean_r)
    n, m = forget.shape[-2], retain.shape[-2]
    middle = (mean_f + mean_r) / 2 if centre == "midpoint" else (n * mean_f + m * mean_r) / (n + m)
    return within / (((mean_r - middle).square().sum(-1) + (mean_f - middle).square().sum(-1)) / 2)


def entanglements(seen: Float[Tensor, "k n d"], groups: Sequence[Int64[Tensor, " rows"]], centre: Centre = "global") -> Float64[Tensor, "k g"]:
    """``entanglement`` of each group (rows of ``seen``) with all the rows outside it: one pass over the images, however many groups."""
    n = seen.shape[1]
    if not all(0 < len(rows) < n for rows in groups):
        raise InputError(f"entanglement needs images in the group and outside it; got groups of {[len(rows) for rows in groups]} of {n} images")
    # about the mean of all, where no digits are lost, sums over R are those over S with the other sign
    away = seen.double()
    away = away - away.mean(1, keepdim=True)
    squares = away.square().sum(-1)
    count = torch.tensor([len(rows) for rows in groups], dtype=torch.float64, device=seen.device)
    rest = n - count
    sums = torch.stack([away[:, rows].sum(1) for rows in groups], 1)
    inside = torch.stack([squares[:, rows].sum(1) for rows in groups], 1)
    far = sums.square().sum(-1)
    within = inside / count - far / count**2 + (squares.sum(1, keepdim=True) - inside) / rest - far / rest**2
    between = far * (1 / count + 1 / rest) ** 2 / 4 if centre == "midpoint" else far * (1 / count**2 + 1 / rest**2) / 2
    return within.clamp(min=0) / between


def cross_distance(forget: Float[Tensor, "*k n d"], retain: Float[Tensor, "*k m d"]) -> Float64[Tensor, " *k"]:
    """Mean distance of the images of either set to the mean of the other: ½(mean_S ‖φ−μ_R‖ + mean_R ‖φ−μ_S‖)."""
    forget, retain = _both(forget, retain)
    there: Tensor = (forget - retain.mean(-2, keepdim=True)).norm(dim=-1).mean(-1)
    back: Tensor = (retain - forget.mean(-2, keepdim=True)).norm(dim=-1).mean(-1)
    return (there + back) / 2


def median_distance(points: Float[Tensor, "*k n d"], seed: int = 0) -> Float64[Tensor, " *k"]:
    """Median of the distances between every two points (the lower of two middle ones), on at most 2 000 of them, drawn at random by ``seed``.

    Where half the distances or more are 0 it is the median of the others; where all are, 1 (then no kernel tells the points apart).
    """
    points = points.double()
    n = points.shape[-2]
    if n > MEDIAN_POINTS:
        points = points[..., _draw(n, MEDIAN_POINTS, seed, "median"), :]
        n = MEDIAN_POINTS
    if n < 2:
        raise InputError(f"a median distance needs at least 2 points, got {n}")
    above, below = torch.triu_indices(n, n, 1, device=points.device)
    found = []
    for one in points.reshape(-1, n, points.shape[-1]):  # a model at a time: its pairs alone are 2 million
        pairs = _squares(one, one)[above, below]
        usual = pairs.median()
        if usual == 0:
            usual = pairs[pairs > 0].median() if bool((pairs > 0).any()) else torch.ones_like(usual)
        found.append(usual.sqrt())
    return torch.stack(found).view(points.shape[:-2])


def mmd(
    x: Float[Tensor, "*k n d"], y: Float[Tensor, "*k m d"], bandwidth: float | Float64[Tensor, " *k"] | None = None, seed: int = 0
) -> Float64[Tensor, " *k"]:
    """Squared maximum mean discrepancy of two samples, unbiased: 0 on average where both come from one distribution, so at times below 0.

    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2·mean_{i,j} k(x_i, y_j), k(a, b) = exp(−‖a−b‖²/(2σ²)). ``bandwidth`` = σ,
    one for all models or one each; none given: ``median_distance`` of both samples together (``seed`` draws its points). The kernel is
    computed block by block and never held whole. Source: Gretton et al. 2012, lemma 6. Differs from the published code: there γ = 1/(2σ²)
    is 1 on raw features, which makes nearly every kernel value 0, and whole kernels are held (14 GB for 42 000 images).
    """
    x, y = _both(x, y)
    n, m = x.shape[-2], y.shape[-2]
    if min(n, m) < 2:
        raise InputError(f"an unbiased MMD needs at least 2 points on either side, got {n} and {m}")
    both = torch.cat([x, y], -2)
    sigma = median_distance(both, seed) if bandwidth is None else torch.as_tensor(bandwidth, dtype=torch.float64, device=x.device)
    if not bool((sigma > 0).all()):
        raise InputError(f"mmd: bandwidth = {bandwidth} must be more than 0; leave it out for the median of the distances")
    middle = both.mean(-2, keepdim=True)  # the mean falls out of every distance; without it fewer digits are lost
    x, y, sigma = x - middle, y - middle, sigma.expand(x.shape[:-2])
    own = _kernel_sum(x, x, sigma, own=True) / (n * (n - 1)) + _kernel_sum(y, y, sigma, own=True) / (m * (m - 1))
    return own - 2 * _kernel_sum(x, y, sigma) / (n * m)


def _kernel_sum(x: Tensor, y: Tensor, sigma: Tensor, own: bool = False) -> Float64[Tensor, " *k"]:
    """Σ k(x_i, y_j) over all pairs; ``own``: of one sample with itself, over i ≠ j."""
    side = max(1, math.isqrt(MEMORY // (8 * max(1, sigma.numel()))))
    width = 2 * sigma.square()[..., None, None]
    total = torch.zeros(sigma.shape, dtype=sigma.dtype, device=sigma.device)
    for at in range(0, x.shape[-2], side):
        for beside in range(at if own else 0, y.shape[-2], side):
            kernel = (_squares(x[..., at : at + side, :], y[..., beside : beside + side, :]) / -width).exp()
            if own and at == beside:
                kernel.diagonal(dim1=-2, dim2=-1).zero_()
            total += kernel.sum((-2, -1)) * (2 if own and at != beside else 1)
    return total


def _squares(x: Tensor, y: Tensor) -> Float64[Tensor, "*k n m"]:
    """Squared distances of every point to every other."""
    long_x, long_y = x.square().sum(-1).unsqueeze(-1), y.square().sum(-1).unsqueeze(-2)
    return (long_x + long_y - 2 * x @ y.mT).clamp_(min=0)


def _spread(points: Tensor, mean: Tensor) -> Tensor:
    return (points - mean.unsqueeze(-2)).square().sum(-1).mean(-1)


def _both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    fit = x.dim() == y.dim() and x.dim() in (2, 3) and x.shape[:-2] == y.shape[:-2] and x.shape[-1] == y.shape[-1]
    if not fit or not x.shape[-2] or not y.shape[-2]:
        raise InputError(f"features of two sets must be [n d] and [m d], or [K n d] and [K m d], none empty; got {list(x.shape)} and {list(y.shape)}")
    return x.double(), y.double()


def _draw(n: int, count: int, seed: int, *purpose: str) -> Int64[Tensor, " count"]:
    return torch.randperm(n, generator=generator(seed, ".".join(("entanglement", *purpose))))[:count]


# ---- distance to the centroid, as a score


def centroid_distances(seen: Float[Tensor, "k n d"]) -> Float64[Tensor, " n"]:
    """Distance of every image to the mean of all, averaged over models; each model's are divided by their root mean square first.

    So models weigh alike whatever the scale of their features, and 1 is a usual distance. The order of one model's is untouched.
    """
    seen = seen.double()
    distance: Tensor = (seen - seen.mean(1, keepdim=True)).norm(dim=-1)
    scale = distance.square().mean(1, keepdim=True).sqrt()
    return (distance / torch.where(scale == 0, 1, scale)).mean(0)


@spec("score", "centroid_distance", paper="arXiv:2406.01257")
class CentroidDistance:
    """How far an image lies from the centre of all training images, in the features of a trained net.

    d(x) = ‖φ(x) − μ‖ / √(mean over D of ‖φ − μ‖²), averaged over ``models``; φ(x) is what the classifier head is fed (eval mode), μ its mean
    over D. The features are kept beside the score, since entanglement is measured on them. **Higher says further out, not harder**: which
    distances are hard to forget is known only from the measured entanglement of a group (``entanglement``), by which ``by_entanglement``
    labels its groups. Source: Zhao et al. 2024 (protocols.md §8).
    Differs from the published code: there the audited original is looked at; here models of its kind that are never audited.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "features"
    start: ClassVar[Literal["init", "trained"]] = "trained"
    models: Annotated[int, Setting("trained models that are looked at", ge=1, published="1")] = 1

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Shaped[Tensor, "k n ..."]]:
        progress.seen(forward=len(parts.train))
        return {"features": features(stack, parts.train).float().cpu()}

    def score(self, gathered: Mapping[str, Shaped[Tensor, "k n ..."]], ids: Int64[Tensor, " n"]) -> Scores:
        seen = gathered["features"]
        return Scores("centroid_distance", ids, centroid_distances(seen), self.scale, {"features": seen.transpose(0, 1).contiguous()})


# ---- groups of images with such a score


def features_of(scores: Scores, ids: Int64[Tensor, " n"]) -> Float[Tensor, "k n d"]:
    """The features that a score keeps beside it, of the images with these ids; raises ``InputError`` where there are none, or not finite ones."""
    held = scores.beside.get("features")
    if held is None or held.dim() != 3:
        raise InputError(f"score '{scores.name}' holds no features [n K d], on which entanglement is measured; make the score centroid_distance anew")
    seen = held[scores.rows(ids)]
    bad = (~seen.isfinite().all(-1)).nonzero()
    if len(bad):
        row, model = bad[0].tolist()
        raise InputError(
            f"image id {int(ids[row])} has features that are NaN or infinite in model {model} of {seen.shape[1]}: retrain the models of this score"
        )
    return seen.transpose(0, 1)


def describe(
    groups: Mapping[str, Int64[Tensor, " ids"]],
    scores: Scores,
    centre: Centre = "global",
    train: Int64[Tensor, " n"] | None = None,
    *,
    points: int = MMD_POINTS,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What is measured of each group of training images (ids) against all the others.

    ``count``; ``distance``: the mean score; ``entanglement``: ES; ``cross_distance``, in the units of the features; ``mmd``: MMD² on at most
    ``points`` images a side (drawn by ``seed``), with one bandwidth for all groups, NaN for a single image. Means over models.
    ``train``: ids of the training set (none given: all that were scored).
    """
    train = scores.ids if train is None else train.cpu()
    seen, scored = features_of(scores, train), scores.of(train)
    inside = {name: torch.isin(train, ids.cpu()) for name, ids in groups.items()}
    for name, ids in groups.items():
        if not 0 < int(inside[name].sum()) == len(ids) < len(train):
            held = f"{int(inside[name].sum())} of the {len(ids)} ids of group '{name}' are among the {len(train)} training images"
            raise InputError(f"{held}; expected all of them, at least one, and at least one image outside the group")
    measured = entanglements(seen, [mask.nonzero()[:, 0] for mask in inside.values()], centre).mean(0)
    sigma = median_distance(seen, seed)
    return {
        name: {
            "count": float(mask.sum()),
            "distance": float(scored[mask].mean()),
            "entanglement": float(measured[at]),
            "cross_distance": float(cross_distance(seen[:, mask], seen[:, ~mask]).mean()),
            "mmd": _mmd_between(seen, mask, sigma, points, seed),
        }
        for at, (name, mask) in enumerate(inside.items())
    }


def _mmd_between(seen: Tensor, mask: Bool[Tensor, " n"], sigma: Tensor, points: int, seed: int) -> float:
    rows = {"forget": mask.nonzero()[:, 0], "retain": (~mask).nonzero()[:, 0]}
    forget, retain = (seen[:, held[_draw(len(held), points, seed, name)].sort().values] for name, held in rows.items())
    return float(mmd(forget, retain, sigma).mean()) if min(forget.shape[1], retain.shape[1]) > 1 else math.nan
