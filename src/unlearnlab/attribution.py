"""Attribution: by how much training on one image changes what models say about another.

Estimated from many models, each trained on a random part of the training set: ``subsets`` draws the parts, ``observe_subsets`` trains
and observes a chunk of such models, ``estimate`` regresses their logits on who was trained on, ``Attribution`` keeps the result by id.
The outputs of the subset models are worth keeping: with their ``member`` they also tell what models memorise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.lib.format import open_memmap
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.outputs import Outputs, observe
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

GRID = tuple(10 ** (half / 2) for half in range(-4, 7))  # penalties tried where none is given: .01 to 1000
PIECE = 4096  # targets regressed at a time, which bounds the memory in float64


def subsets(seeds: Sequence[int], n: int, share: float = 0.5) -> tuple[Int64[Tensor, "k m"], Bool[Tensor, "k n"]]:
    """Each model's own random part of ``n`` images, all of round(share·n): its rows in rising order, and who is in it."""
    m = round(share * n)
    if not 0 < m < n:
        raise InputError(f"a share of {share:g} of {n} images is {m}; a random part needs at least one image inside and one outside")
    rows = torch.stack([torch.randperm(n, generator=generator(seed, "subset"))[:m].sort().values for seed in seeds])
    return rows, torch.zeros(len(rows), n, dtype=torch.bool).scatter_(1, rows, True)


def observe_subsets(init: Stack, train: Images, points: Images, part: Tensor, recipe: Recipe, share: float = 0.5, progress: Progress | None = None) -> Outputs:
    """Train a chunk of fresh models, each on the subset of its own seed, and observe them on ``points``.

    ``member`` says which points a model was trained on; so that nothing is lost, ``points`` should hold all of ``train``.
    ``part``: as for ``Outputs``.
    """
    rows, chosen = subsets(init.seeds, len(train), share)
    held = torch.isin(points.ids, train.ids).cpu()
    member = torch.zeros(len(init), len(points), dtype=torch.bool)
    member[:, held] = chosen[:, _positions(train.ids.cpu(), points.ids.cpu()[held], "training images")]
    return observe(recipe(init, train, progress, rows=rows), points, member=member, part=part)


@dataclass(frozen=True, eq=False)
class Estimate:
    """``tau[i, x, c]``: rise of logit c on point x by training on image i. ``ridge``: the penalty used.

    ``correlation``: between the logits of a model and those predicted for it from all the other models, both as differences from the
    mean of these others; over models, averaged over points and classes (None: the logits never change).
    """

    tau: Float[Tensor, "n points classes"]
    ridge: float
    correlation: float | None


def estimate(logits: Float[Tensor, "m points classes"], member: Bool[Tensor, "m n"], ridge: float | None = None, out: Tensor | None = None) -> Estimate:
    """Ridge regression of logits on membership, with an intercept for each target and one penalty for all.

    min over τ of Σ_m (z_m − z̄ − (a_m − ā)·τ)² + ridge·v·‖τ‖², with a_m who model m was trained on and v the mean over images of Σ_m (a_m − ā)²,
    so that ridge = 1 halves what an image of a balanced design would get. Without ``ridge`` the one of ``GRID`` with the least
    leave-one-out error is taken. Float64, one Cholesky factor of the smaller of the normal equations (primal or dual). ``out``: where τ is written.
    """
    models, points, classes = logits.shape
    if len(member) != models or models < 3:
        raise InputError(f"got logits of {models} models and the membership of {len(member)}; expected the same number, at least 3")
    if ridge is not None and ridge <= 0:
        raise InputError(f"ridge = {ridge:g} must be more than 0")
    a = member.double() - member.double().mean(0)
    if not bool(a.any(0).all()):
        always = int((~a.any(0)).nonzero()[0])
        raise InputError(f"the training image at position {always} is in every model's subset or in none's; expected both kinds: train more models")
    targets = logits.reshape(models, -1)
    pieces = [slice(at, at + PIECE) for at in range(0, targets.shape[1], PIECE)]
    if ridge is None:
        errors = []
        for one in GRID:
            tried = _Regression(a, one)  # one at a time: of many models each is large
            errors.append(float(sum(tried.left_out(targets[:, piece])[1].square().sum() for piece in pieces)))
        ridge = GRID[min(range(len(GRID)), key=errors.__getitem__)]
    solved = _Regression(a, ridge)
    tau = torch.empty(member.shape[1], points, classes) if out is None else out
    flat = tau.view(len(tau), -1)
    agreement = []
    for piece in pieces:
        flat[:, piece] = solved.tau(targets[:, piece]).to(flat.dtype)
        away, missed = solved.left_out(targets[:, piece])
        agreement.append(_correlation(away, away - missed))
    found = torch.cat(agreement)
    found = found[found.isfinite()]
    return Estimate(tau, ridge, float(found.mean()) if len(found) else None)


class _Regression:
    """The regression at one penalty, for any number of targets."""

    def __init__(self, a: Float[Tensor, "m n"], ridge: float) -> None:
        models, n = a.shape
        self.a, self.dual = a, models <= n
        gram = a @ a.T if self.dual else a.T @ a
        penalty = ridge * float(a.square().sum()) / n
        self.factor = torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), dtype=a.dtype))
        inside = gram if self.dual else a.T
        solved = torch.cholesky_solve(inside, self.factor)
        self.hat = solved if self.dual else a @ solved

    def tau(self, targets: Float[Tensor, "m t"]) -> Float[Tensor, "n t"]:
        y = targets.double()
        y = y - y.mean(0)
        return self.a.T @ torch.cholesky_solve(y, self.factor) if self.dual else torch.cholesky_solve(self.a.T @ y, self.factor)

    def left_out(self, targets: Float[Tensor, "m t"]) -> tuple[Float[Tensor, "m t"], Float[Tensor, "m t"]]:
        """For each model its distance from the mean of the others, and from what these predict for it."""
        y = targets.double()
        y, models = y - y.mean(0), len(y)
        # exact: with an intercept of its own the hat matrix is H + 1/M
        return y * models / (models - 1), (y - self.hat @ y) / (1 - 1 / models - self.hat.diagonal()).unsqueeze(1)


def _correlation(a: Tensor, b: Tensor) -> Float[Tensor, " t"]:
    """Pearson's, of each column; NaN where a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()


@spec("attribution", "datamodels", paper="arXiv:2202.00622")
class Datamodels:
    """Regress what models say about a point on which images they were trained on.

    τ of ``estimate``, from ``models`` models that each see a random ``share`` of the training set.
    Source: Ilyas et al. 2022; Georgiev et al. 2025 (methods.md §7.4). Differs from the published code: ridge instead of LASSO, since one
    factorisation then serves every point and class.
    """

    models: Annotated[int, Setting("models, each trained on a random part of the training set", symbol="M", ge=3, published="1 000 to 20 000")] = 512
    share: Annotated[float, Setting("share of the training set that each model sees", symbol="α", gt=0, lt=1, published="0.5")] = 0.5
    ridge: Annotated[float | None, Setting("penalty, in units of the mean variance of membership; none: chosen by leave-one-out", gt=0)] = None

    def __call__(self, seen: Outputs, train_ids: Tensor, point_ids: Tensor, folder: Path) -> Attribution:
        """Estimate from the outputs of the subset models and write to a folder; every training image must be among the points seen."""
        member = seen.member[:, _positions(seen.ids, train_ids.cpu(), "images on which the subset models were observed")]
        logits = seen.logits[:, _positions(seen.ids, point_ids.cpu(), "images on which the subset models were observed")]
        if len(seen) != self.models:
            raise InputError(f"attribution 'datamodels' was given outputs of {len(seen)} models; expected models = {self.models}")
        folder.mkdir(parents=True, exist_ok=True)
        tau = open_memmap(folder / "tau.npy", mode="w+", dtype=np.float16, shape=(len(train_ids), len(point_ids), logits.shape[2]))
        found = estimate(logits, member, self.ridge, out=torch.from_numpy(tau))
        tau.flush()
        meta = {"models": self.models, "share": self.share, "ridge": found.ridge, "heldout_correlation": found.correlation}
        _write_beside(folder, train_ids, point_ids, meta)
        return Attribution.read(folder)


@dataclass(frozen=True, eq=False)
class Attribution:
    """``tau[i, x, c]``: rise of logit c on point x by training on image i; rows and columns are known by the images' ids."""

    tau: Any  # float16 [n_train, n_points, classes], mapped from disk
    train_ids: Int64[Tensor, " n"]
    point_ids: Int64[Tensor, " points"]
    meta: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> Attribution:
        """What ``write`` or ``Datamodels`` left in a folder; only what is asked of it is read from disk."""
        if not folder.is_dir():
            raise InputError(f"there is no attribution at {folder}; expected a folder with tau.npy: estimate one first")
        tau = np.load(folder / "tau.npy", mmap_mode="r")
        train_ids, point_ids = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train_ids", "point_ids"))
        if tau.ndim != 3 or tau.shape[:2] != (len(train_ids), len(point_ids)):
            raise InputError(
                f"the attribution at {folder} has the shape {list(tau.shape)}; expected {len(train_ids)} × {len(point_ids)} × classes, as its ids say"
            )
        return Attribution(tau, train_ids, point_ids, json.loads((folder / "meta.json").read_text()))

    @staticmethod
    def write(folder: Path, tau: Float[Tensor, "n points classes"], train_ids: Tensor, point_ids: Tensor, **meta: Any) -> Attribution:
        """Keep scores that were estimated elsewhere, as by TRAK."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "tau.npy", tau.detach().cpu().to(torch.float16).numpy())
        _write_beside(folder, train_ids, point_ids, meta)
        return Attribution.read(folder)

    @property
    def classes(self) -> int:
        return int(self.tau.shape[2])

    def effect(self, forget_ids: Tensor, point_ids: Tensor) -> Float[Tensor, "points classes"]:
        """Σ over the forget set of τ: what all of it together adds to the logits on these points. Refuses ids it does not know."""
        rows = _positions(self.train_ids, forget_ids.cpu(), "training images of this attribution").sort().values.numpy()
        columns = _positions(self.point_ids, point_ids.cpu(), "points of this attribution").numpy()
        total = np.zeros((len(columns), self.classes))
        for at in range(0, len(rows), 64):  # as many rows as memory holds easily
            total += self.tau[rows[at : at + 64]][:, columns].sum(0, dtype=np.float64)
        return torch.from_numpy(total).float()


def _write_beside(folder: Path, train_ids: Tensor, point_ids: Tensor, meta: dict[str, Any]) -> None:
    for name, ids in (("train_ids", train_ids), ("point_ids", point_ids)):
        np.save(folder / f"{name}.npy", ids.cpu().numpy())
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _positions(ids: Int64[Tensor, " n"], wanted: Int64[Tensor, " w"], what: str) -> Int64[Tensor, " w"]:
    """Where these ids stand among others."""
    order = ids.argsort()
    at = torch.searchsorted(ids[order], wanted).clamp(max=len(ids) - 1)
    found = order[at]
    if not torch.equal(ids[found], wanted):
        missing = wanted[ids[found] != wanted]
        raise InputError(f"id {int(missing[0])} is not among the {len(ids)} {what} ({len(missing)} such id(s)); estimate the attribution on this split")
    return found
