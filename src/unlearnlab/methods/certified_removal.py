"""``certified_removal``: linear heads from which images are removed by a Newton step, with a certificate while a budget lasts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from unlearnlab import outputs
from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.state import read, write
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, build, spec, to_dict
from unlearnlab.stack import Stack, head_names

MEMORY = 256 * 2**20  # bytes of Hessians and what they are made of, held at a time
GAMMA = 0.25  # the second derivative of the logistic loss changes no faster than this
COVERS = {
    "pixels": "the whole model: its features are pixels, which no training on the removed images has shaped",
    "penultimate": "THE LINEAR HEAD ONLY: its features come from a net that may have been trained on the removed images and may still hold them",
}


@spec("method", "certified_removal", paper="arXiv:1911.03030")
class CertifiedRemoval:
    """Train linear heads with a secret random slope, and remove an image by a Newton step that the randomness hides: (ε, δ)-certified removal.

    One head w a class (one against the rest, y = ±1) on features x of length 1: min Σ log(1+exp(−y w·x)) + (λn/2)‖w‖² + b·w, b ~ N(0, σ²I).
    To remove S: Δ = Σ_S (λw + ∇ℓ), H = the Hessian at w on the rest; w ← w + H⁻¹Δ, and the gradient left behind grows by at most
    ¼·‖X‖₂·‖H⁻¹Δ‖₂·‖XH⁻¹Δ‖₂. With β the sum of all that, of training's own gradient left and of the heads, the certificate holds while
    β ≤ σε/√(2 ln(1.5/δ)); after that, training anew with another b. penalty = λ, noise = σ. Source: Guo et al. 2020 (methods.md §8.2).
    Differs from the published code: X's norm is an exact eigenvalue of a Gram matrix down-dated once a removal (there: once a class, so too small a bound, and
    power iteration, which finds less than the norm); float64 throughout; what training and solving leave counts; all heads are trained at once
    by Newton's method (there: L-BFGS, one after the other).
    b is drawn from a member's seed, so the certificate is worth something only to those who cannot guess the seed.
    With features = "penultimate" the certificate covers the head only, and says so. On few images it is soon spent, or the noise drowns the heads.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    certified: ClassVar[str] = "(ε, δ), while its budget lasts"
    cost: ClassVar[str] = "about 1 for each Newton step of a removal; if the budget is spent, those of training anew on R"
    features: Annotated[
        Literal["pixels", "penultimate"], Setting("what the heads see: scaled pixels, or the stack's own features (certifies the head only)")
    ] = "pixels"
    penalty: Annotated[float, Setting("weight of ‖w‖²/2 beside the mean loss", symbol="λ", gt=0, published="1e-6 to 1e-4")] = 1e-4
    noise: Annotated[float, Setting("standard deviation of the random slope, beside the summed loss", symbol="σ", gt=0, published="10")] = 10.0
    epsilon: Annotated[float, Setting("certified", symbol="ε", gt=0)] = 1.0
    delta: Annotated[float, Setting("certified", symbol="δ", gt=0, lt=1)] = 1e-4
    group: Annotated[int, Setting("images removed in one Newton step; of more, steps are fewer and bounds larger", ge=1)] = 1
    steps: Annotated[int, Setting("Newton steps of training, at most", ge=1, published="100 (of L-BFGS)")] = 100
    tolerance: Annotated[float, Setting("length of the gradient at which training ends", ge=0, published="1e-10")] = 1e-10

    @property
    def budget(self) -> float:
        """The largest β that is certified: σε/√(2 ln(1.5/δ))."""
        return self.noise * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta))

    def fit(
        self, images: Images, seeds: Sequence[int], stack: Stack | None = None, folder: Path | str | None = None, progress: Progress | None = None
    ) -> Heads:
        """Train heads for each seed. ``stack``: whose features they see (not needed for pixels). ``folder``: where their state is kept."""
        heads = Heads(
            self, tuple(seeds), _data(self, images, stack, len(seeds)), images.ids.cpu(), _source(self, stack), None if folder is None else Path(folder)
        )
        heads.retrain(progress)
        return heads

    def answer(self, stack: Stack, split: Split, ctx: Context, images: Images) -> Tensor:
        """Fit on forget and retain set, remove the forget set (members whose budget that overspends are trained anew), answer."""
        if ctx.mask is not None:
            raise InputError("method 'certified_removal' trains heads of its own and cannot keep weights outside a mask; use it without one")
        before = ctx.progress.seconds
        heads = self.fit(split.train, ctx.seeds, stack)
        ctx.progress.resume(ctx.progress.forward, ctx.progress.backward, before)  # training is not unlearning
        after = heads.without(split.forget.ids.tolist(), ctx.progress)
        over = ~(after.spent.sum(1) <= self.budget)
        if over.any():
            anew = copy.copy(after)
            anew.retrain(ctx.progress)
            after.weights = torch.where(over.view(-1, 1, 1), anew.weights, after.weights)
        return after.logits(images, stack)


class BudgetSpent(RuntimeError):  # noqa: N818 - it reads as a sentence
    """A removal would not be certified; nothing was removed."""


@dataclass(frozen=True)
class Certificate:
    """What may be said of the heads after the removals so far. ``epsilon`` is None where nothing is certified.

    ``spent``: β of each member; ``removed``: images gone by Newton steps since the last training; ``pending``: images whose removal was refused.
    """

    epsilon: float | None
    delta: float
    spent: tuple[float, ...]
    budget: float
    removed: int
    pending: int
    covers: str

    def __str__(self) -> str:
        if self.epsilon is None:
            why = f"{self.pending} images wait for training anew" if self.pending else f"{max(self.spent):.3g} of a budget of {self.budget:.3g} is spent"
            return f"not certified: {why}"
        if not self.removed:
            return "trained anew on the images that are left: they hold nothing of those removed before, and no removal since needs a certificate"
        return f"({self.epsilon:g}, {self.delta:g})-certified removal of {self.removed} images since the last training, covering {self.covers}"


@dataclass(frozen=True, eq=False)
class Data:
    """Features x [1 or K, n, d] with rows of length at most 1, and for each class y = ±1."""

    x: Float64[Tensor, "k n d"]
    y: Float64[Tensor, "c n"]

    def rows(self, chosen: Tensor) -> Data:
        return Data(self.x[:, chosen], self.y[:, chosen])

    def __len__(self) -> int:
        return self.x.shape[1]


class Heads:
    """Trained heads. ``remove`` images until it refuses, then ``retrain``; ``certificate`` says what holds; ``logits`` asks them.

    ``weights`` and ``slope`` (b; secret) [K, C, d]; ``gram``: XᵀX of the images left; ``spent``: bound on the gradient left of every head [K, C].
    With a folder, all that but the images is kept in ``heads.safetensors``, a refusal included.
    """

    weights: Float64[Tensor, "k c d"]
    slope: Float64[Tensor, "k c d"]
    gram: Float64[Tensor, "k d d"]
    spent: Float64[Tensor, "k c"]

    def __init__(self, method: CertifiedRemoval, seeds: tuple[int, ...], data: Data, ids: Int64[Tensor, " n"], source: str, folder: Path | None) -> None:
        self.method, self.seeds, self.data, self.ids, self.source, self.folder = method, seeds, data, ids, source, folder
        self.requests: list[list[int]] = []
        self.pending: list[int] = []
        self.trainings = self.removed = 0
        if folder is not None and self._file.exists():
            raise InputError(f"{folder} holds heads already; open them with Heads.load, or give another folder")

    @staticmethod
    def load(folder: Path | str, images: Images, stack: Stack | None = None) -> Heads:
        """Open stored heads: the images left (removed ones may be missing) and, if they see a net's features, that net are given."""
        tensors, words = read(Path(folder) / "heads.safetensors")
        heads = Heads.__new__(Heads)
        heads.method, heads.seeds, heads.folder, heads.source = build("method", words["method"]), tuple(words["seeds"]), Path(folder), words["source"]
        heads.requests, heads.pending, heads.trainings, heads.removed = (words[name] for name in ("requests", "pending", "trainings", "removed"))
        if _source(heads.method, stack) != heads.source:
            raise InputError("these heads see the features of another net; give the stack that they were trained on")
        heads.ids = tensors["ids"]
        left = images.take(heads.ids.tolist())
        heads.data = _data(heads.method, left, stack, len(heads.seeds), classes=tensors["weights"].shape[1])
        device = heads.data.x.device
        heads.weights, heads.slope, heads.gram, heads.spent = (tensors[name].to(device) for name in ("weights", "slope", "gram", "spent"))
        return heads

    @property
    def certificate(self) -> Certificate:
        """What is certified now."""
        total, method = self.spent.sum(1), self.method
        holds = not self.pending and bool((total <= method.budget).all())
        return Certificate(
            epsilon=method.epsilon if holds else None, delta=method.delta, spent=tuple(total.tolist()), budget=method.budget,
            removed=self.removed, pending=len(self.pending), covers=COVERS[method.features],
        )  # fmt: skip

    def remove(self, ids: Iterable[int], progress: Progress | None = None) -> Certificate:
        """Remove these images by Newton steps. Raises ``BudgetSpent`` where that would not be certified, now and until ``retrain``."""
        if self.pending:
            raise BudgetSpent(f"the removal of {len(self.pending)} images was refused before; call retrain(), which trains anew without them")
        wanted = sorted({int(i) for i in ids})
        known, before = set(self.ids.tolist()), {i for request in self.requests for i in request}
        for what, wrong in (("removed before", sorted(before & set(wanted))), ("not among the images trained on", sorted(set(wanted) - known - before))):
            if wrong:
                raise InputError(f"cannot remove ids {', '.join(map(str, wrong))}: {what}; leave them out of the request")
        if not wanted or len(wanted) == len(known):
            raise InputError(f"a request to remove {len(wanted)} of {len(known)} images: name at least one, and leave at least one")
        after = self.without(wanted, progress or Progress())
        worst = float(after.spent.sum(1).max())
        if not worst <= self.method.budget:
            self.pending = wanted
            self._save()
            raise BudgetSpent(
                f"removing {len(wanted)} images would spend {worst:.3g} of a budget of {self.method.budget:.3g}: nothing was removed; call retrain()"
            )
        self.__dict__.update(after.__dict__)
        self.requests, self.removed = [*self.requests, wanted], self.removed + len(wanted)
        self._save()
        return self.certificate

    def without(self, ids: Sequence[int], progress: Progress) -> Heads:
        """What Newton steps make of these heads, certified or not; they themselves stay as they are."""
        after, size = copy.copy(self), self.method.group
        for at in range(0, len(ids), size):
            after._step(torch.isin(after.ids, torch.tensor(ids[at : at + size])), progress)
        return after

    def retrain(self, progress: Progress | None = None) -> Certificate:
        """Train anew on what is left, without images whose removal was refused, under another secret slope: the budget is whole again."""
        progress, after = progress or Progress(), copy.copy(self)  # interrupted, the heads stay what they were, and refused
        if self.pending:
            keep = ~torch.isin(self.ids, torch.tensor(self.pending))
            after.ids, after.data = self.ids[keep], self.data.rows(keep.to(self.data.x.device))
            after.requests, after.pending = [*self.requests, self.pending], []
        after.trainings, after.removed = self.trainings + 1, 0
        size = (len(after.data.y), after.data.x.shape[2])
        drawn = [torch.randn(size, dtype=torch.float64, generator=generator(seed, "noise", after.trainings)) for seed in self.seeds]
        after.slope = self.method.noise * torch.stack(drawn).to(after.data.x.device)
        after.weights, after.spent = minimise(after.data, after.slope, self.method, lambda: progress.seen(len(after.data), len(after.data)))
        after.gram = after.data.x.mT @ after.data.x
        self.__dict__.update(after.__dict__)
        self._save()
        return self.certificate

    def logits(self, images: Images, stack: Stack | None = None) -> Tensor:
        """Scores w·x of every member and class, as logits [K, n, C]."""
        if _source(self.method, stack) != self.source:
            raise InputError("these heads see the features of another net; give the stack that they were trained on")
        return (features(self.method, images, stack) @ self.weights.mT).float()

    def _step(self, gone: Bool[Tensor, " n"], progress: Progress) -> None:
        """One Newton step: bound, Gram matrix and weights, each once a removal whatever the number of classes."""
        progress.seen(len(self.data), len(self.data))  # the gradients of those who leave, the Hessian of the others
        at = gone.to(self.data.x.device)
        leaving, self.data, self.ids = self.data.rows(at), self.data.rows(~at), self.ids[~gone]
        move, missed = solve(self.data, self.weights, gradient(leaving, self.weights, torch.zeros_like(self.slope), self.method.penalty), self.method.penalty)
        self.gram = self.gram - leaving.x.mT @ leaving.x
        norm = torch.linalg.eigvalsh(self.gram)[:, -1:].clamp(min=0).sqrt()
        bound = GAMMA * norm * move.norm(dim=-1) * (move @ self.data.x.mT).norm(dim=-1)
        self.weights, self.spent = self.weights + move, self.spent + bound + missed

    def _save(self) -> None:
        if self.folder is None:
            return
        words: dict[str, Any] = {"method": to_dict(self.method), "seeds": list(self.seeds), "source": self.source, "requests": self.requests}
        words |= {"pending": self.pending, "trainings": self.trainings, "removed": self.removed}
        write(self._file, {"ids": self.ids, "weights": self.weights, "slope": self.slope, "gram": self.gram, "spent": self.spent}, words)

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "heads.safetensors"


# ---- the heads' own problem, all members and classes at once


def gradient(data: Data, weights: Tensor, slope: Tensor, penalty: float) -> Float64[Tensor, "k c d"]:
    """∂/∂w of Σ log(1+exp(−y w·x)) + (λn/2)‖w‖² + b·w."""
    push = -data.y * torch.sigmoid(-data.y * (weights @ data.x.mT))
    return push @ data.x + penalty * len(data) * weights + slope


def solve(data: Data, weights: Tensor, right: Tensor, penalty: float) -> tuple[Float64[Tensor, "k c d"], Float64[Tensor, "k c"]]:
    """H⁻¹·right with H = Σ s(1−s)xxᵀ + λnI at these weights, and the length of what the solution misses of ``right``."""
    k, c, d = weights.shape
    chance = torch.sigmoid(weights @ data.x.mT)
    curved, wanted = (chance * (1 - chance)).flatten(0, 1), right.flatten(0, 1)
    own = torch.arange(k, device=weights.device).repeat_interleave(c) % len(data.x)  # all see the same features, or each member its own
    size = max(1, MEMORY // (8 * d * max(d, len(data))))
    moves, missed = [], []
    for at in range(0, k * c, size):
        part = slice(at, at + size)
        x = data.x[own[part]]
        hessian = (x.mT * curved[part].unsqueeze(1)) @ x + penalty * len(data) * torch.eye(d, dtype=x.dtype, device=x.device)
        move = torch.linalg.solve(hessian, wanted[part].unsqueeze(2))
        moves.append(move[..., 0])
        missed.append((hessian @ move - wanted[part].unsqueeze(2)).norm(dim=(1, 2)))
    return torch.cat(moves).view(k, c, d), torch.cat(missed).view(k, c)


def minimise(data: Data, slope: Tensor, method: CertifiedRemoval, seen: Callable[[], None]) -> tuple[Float64[Tensor, "k c d"], Float64[Tensor, "k c"]]:
    """Weights, and the length of the gradient that is left. Newton's method; each head halves its step until its gradient shrinks."""
    weights = torch.zeros_like(slope)
    left = gradient(data, weights, slope, method.penalty)
    seen()
    for _ in range(method.steps):
        size = left.norm(dim=-1, keepdim=True)
        open_ = size > method.tolerance
        if not open_.any():
            break
        move, _missed = solve(data, weights, left, method.penalty)
        share = open_.double()
        for _halving in range(50):
            trial = weights - share * move
            after = gradient(data, trial, slope, method.penalty)
            seen()
            worse = open_ & ~(after.norm(dim=-1, keepdim=True) <= (1 - share / 4) * size)
            if not worse.any():
                break
            share = torch.where(worse, share / 2, share)
        shrinks = open_ & ~worse  # where rounding allows no progress, weights stay
        weights, left = torch.where(shrinks, trial, weights), torch.where(shrinks, after, left)
        if not shrinks.any():
            break
    return weights, left.norm(dim=-1)


def features(method: CertifiedRemoval, images: Images, stack: Stack | None, batch: int = 1024) -> Float64[Tensor, "k n d"]:
    """What the heads see, one row of length 1 an image (0 where the image is black); pixels are the same for all members."""
    if method.features == "pixels":
        device = images.labels.device if stack is None else stack.device
        parts = [images.pixels[at : at + batch].to(device) for at in range(0, len(images), batch)]
        rows = torch.cat([part.flatten(1).double() / (255 if part.dtype == torch.uint8 else 1) for part in parts]).unsqueeze(0)
    else:
        if stack is None:
            raise InputError("features = 'penultimate' are a net's own: pass the stack of that net, or use features = 'pixels'")
        rows = outputs.features(stack, images, batch).double()
    length: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows / length.clamp(min=1e-12)


def _data(method: CertifiedRemoval, images: Images, stack: Stack | None, members: int, classes: int | None = None) -> Data:
    if stack is not None and len(stack) != members:
        raise InputError(f"{members} seeds for a stack of {len(stack)} models; give one seed for each")
    if classes is None:
        classes = images.classes if stack is None else stack.params[head_names(stack)[0]].shape[1]
    x = features(method, images, stack)
    y = 2 * nn.functional.one_hot(images.labels.to(x.device), classes).T.double() - 1
    return Data(x, y)


def _source(method: CertifiedRemoval, stack: Stack | None) -> str:
    """Which net the features come from; nothing, for pixels."""
    if method.features == "pixels":
        return ""
    if stack is None:
        raise InputError("certified_removal with features = 'penultimate' needs the stack whose features it sees; give it, or set features = 'pixels'")
    return stack.fingerprint
