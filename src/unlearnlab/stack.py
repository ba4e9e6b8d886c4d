"""``Stack``: K models of one architecture as stacked tensors, forwarded in one call. ``Mask``: which weights may change."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unlearnlab.grouped import Tensors as Tensors
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.seeds import seeded
from unlearnlab.spec import InputError

BatchNormPolicy = Literal["train", "frozen", "eval_all"]

Call = Callable[[nn.Module, Tensors, Tensor], Tensor]

_modes: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Divergence:
    """A member whose loss stopped being finite."""

    seed: int
    step: int
    loss: float

    def __str__(self) -> str:
        return f"seed {self.seed} at step {self.step}: loss {self.loss}"


@dataclass(frozen=True, eq=False)
class Stack:
    """K models of one architecture: parameters and buffers with a leading dimension K. One model is a stack of one.

    ``net`` is the architecture only; its own weights are never read. ``seeds`` name the members.
    A stack is never changed in place: whatever changes weights returns another.
    ``live``: name -> bool [K, *shape] of the tensors that were pruned; the other weights of these are 0 and stay 0, whatever
    is done to the stack (``having``, ``fresh`` and ``fit`` see to it).
    """

    net: nn.Module
    params: Tensors
    buffers: Tensors
    seeds: tuple[int, ...]
    diverged: tuple[Divergence, ...] = ()
    live: Tensors = field(default_factory=dict)

    @staticmethod
    def of(modules: Sequence[nn.Module], seeds: Sequence[int]) -> Stack:
        """Stack existing models of one architecture (they are copied, never touched again)."""
        held = [dict(module.named_parameters()) for module in modules]
        shapes = [{name: tensor.shape for name, tensor in params.items()} for params in held]
        if any(shape != shapes[0] for shape in shapes) or len(modules) != len(seeds):
            raise InputError("models to stack must share one architecture and have one seed each")
        params = {name: torch.stack([one[name].detach() for one in held]) for name in held[0]}
        buffers = {name: torch.stack([dict(module.named_buffers())[name].detach() for module in modules]) for name in dict(modules[0].named_buffers())}
        return Stack(copy.deepcopy(modules[0]).requires_grad_(False), params, buffers, tuple(seeds))

    @staticmethod
    def init(net: nn.Module, seeds: Sequence[int], purpose: str = "init") -> Stack:
        """Freshly initialised members: every module's ``reset_parameters`` under a generator of (seed, purpose)."""
        return Stack.of([_reset(copy.deepcopy(net).cpu(), seed, purpose) for seed in seeds], seeds)  # on the CPU: the same bits for every device

    def fresh(self, seeds: Sequence[int], purpose: str = "fresh_init") -> Stack:
        """New members of the same architecture that share no weight with these; what is pruned here is pruned there."""
        return replace(Stack.init(self.net, seeds, purpose).to(self.device), live=self.live).having()

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    def to(self, device: torch.device | str) -> Stack:
        return self._each(lambda tensor: tensor.to(device))

    def having(self, params: Tensors | None = None, buffers: Tensors | None = None) -> Stack:
        """The same members with other weights; names and shapes must fit, and pruned weights become 0."""
        params = self.params if params is None else params
        if self.live:
            params = {name: torch.where(self.live[name], p, 0) if name in self.live else p for name, p in params.items()}
        return replace(self, params=params, buffers=self.buffers if buffers is None else buffers)

    def pruned(self, live: Tensors) -> Stack:
        """The same members without the weights that ``live`` (name -> bool [K, *shape]) closes, now and in all that is made from them."""
        both = {name: bits & self.live[name] if name in self.live else bits for name, bits in live.items()}
        return replace(self, live=self.live | both).having()

    def rows(self, index: Sequence[int]) -> Stack:
        """These members only, in this order."""
        at = torch.tensor(list(index), dtype=torch.int64, device=self.device)
        seeds = tuple(self.seeds[i] for i in index)
        diverged = tuple(found for found in self.diverged if found.seed in seeds)
        return replace(self._each(lambda tensor: tensor[at]), seeds=seeds, diverged=diverged)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Stack:
        params, buffers, live = ({name: change(tensor) for name, tensor in held.items()} for held in (self.params, self.buffers, self.live))
        return replace(self, params=params, buffers=buffers, live=live)

    def member(self, k: int) -> nn.Module:
        """Member k as an ordinary module, in eval mode."""
        module = copy.deepcopy(self.net)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.params[name][k])
            for name, buffer in module.named_buffers():
                buffer.copy_(self.buffers[name][k])
        return module.to(self.device).requires_grad_(True).eval()

    def logits(self, pixels: Tensor) -> Float[Tensor, "k n classes"]:
        """Logits of every member on the same images, in eval mode."""
        net = in_mode(self.net, "eval_all")
        if len(self) == 1:  # the plain path
            params = {n: t[0] for n, t in (self.params | self.buffers).items()}
            return call_alone(net, params, pixels).unsqueeze(0)
        return torch.vmap(lambda tensors: call_member(net, tensors, pixels))(self.params | self.buffers)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all weights and buffers; what masks remember their parent by."""
        found = hashlib.sha256()
        for name, tensor in (self.params | self.buffers | {f"live:{name}": bits for name, bits in self.live.items()}).items():
            found.update(f"{name}{tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:32]

    @staticmethod
    def join(parts: Sequence[Stack]) -> Stack:
        """Members of several chunks as one stack."""
        first = parts[0]
        return Stack(
            first.net,
            {n: torch.cat([part.params[n] for part in parts]) for n in first.params},
            {n: torch.cat([part.buffers[n] for part in parts]) for n in first.buffers},
            tuple(seed for part in parts for seed in part.seeds),
            tuple(found for part in parts for found in part.diverged),
            {n: torch.cat([part.live[n] for part in parts]) for n in first.live},
        )


@dataclass(frozen=True, eq=False)
class Mask:
    """Which weights may change: name -> bool [K, *shape]; True = open. ``parent``: fingerprint of the stack it was made from."""

    open: Tensors
    parent: str

    @staticmethod
    def everything(stack: Stack) -> Mask:
        """All weights but pruned ones."""
        return Mask({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in stack.params.items()} | stack.live, stack.fingerprint)

    def share(self) -> Float[Tensor, " k"]:
        """Share of all weights that is open, per member."""
        counts = torch.stack([_rows(tensor).sum(1) for tensor in self.open.values()]).sum(0)
        return counts / sum(tensor[0].numel() for tensor in self.open.values())

    def opening(self, names: Sequence[str]) -> Mask:
        """The same mask with these tensors fully open."""
        return Mask({name: torch.ones_like(tensor) if name in names else tensor for name, tensor in self.open.items()}, self.parent)

    def choose(self, inside: Tensors, outside: Tensors) -> Tensors:
        """``inside`` where open, ``outside`` elsewhere."""
        return {name: torch.where(is_open, inside[name], outside[name]) for name, is_open in self.open.items()}

    def require(self, stack: Stack) -> None:
        """Refuse a mask that was made from another model."""
        if self.parent != stack.fingerprint:
            held = f"this mask was made from model {self.parent[:12]}, not from the model at hand ({stack.fingerprint[:12]})"
            raise InputError(f"{held}; make it from the current model")


class Net:
    """One model as a loss sees it: ``net(x)`` gives logits, ``net.params`` the weights (no leading K)."""

    def __init__(self, module: nn.Module, params: Tensors, buffers: Tensors, seen: Callable[[int], None], call: Call) -> None:
        self.params, self._buffers, self._module, self._seen, self._call = params, buffers, module, seen, call

    def __call__(self, images: Tensor) -> Float[Tensor, "n classes"]:
        self._seen(images.shape[0])
        return self._call(self._module, self.params | self._buffers, images)


def head_names(stack: Stack) -> list[str]:
    """Names of the classifier head's parameters: the last linear layer in order of definition."""
    linear = [name for name, module in stack.net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("this net has no linear layer to call its classifier head")
    return [name for name in stack.params if name.rpartition(".")[0] == linear[-1]]


class _Fed(nn.Module):
    """Stands in the place of a classifier head and gives back what it is fed."""

    def forward(self, rows: Tensor) -> Tensor:
        if rows.dim() != 2:
            raise InputError(f"the classifier head of this net is fed a tensor of shape {list(rows.shape)}; expected one row of features an image")
        return rows


def headless(stack: Stack) -> Stack:
    """The same members up to their classifier head: their ``logits`` are what the head is fed; of a net whose last step is its head.

    They raise ``InputError`` where the head is not fed one row an image.
    """
    names = head_names(stack)
    net = copy.deepcopy(stack.net)
    parent, _, own = names[0].rpartition(".")[0].rpartition(".")
    setattr(net.get_submodule(parent), own, _Fed())
    return replace(stack, net=net, params={name: p for name, p in stack.params.items() if name not in names}, live={})


CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weights_of(net: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """Names of the weights (not the biases) of all layers of these kinds, in order of definition."""
    held = {f"{name}.weight".lstrip(".") for name, module in net.named_modules() if isinstance(module, kinds)}
    return [name for name, _ in net.named_parameters() if name in held]


def in_mode(net: nn.Module, policy: BatchNormPolicy) -> nn.Module:
    """A copy of the architecture switched to a BatchNorm policy (kept, since switching walks all modules)."""
    copies = _modes.setdefault(net, {})
    if policy not in copies:
        made = copy.deepcopy(net)
        made.train(policy != "eval_all")
        if policy == "frozen":
            for module in made.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        copies[policy] = made
    return copies[policy]


def is_stochastic(net: nn.Module) -> bool:
    """Does a forward pass draw random numbers (dropout; a layer of one's own says ``stochastic = True``)?"""
    drops = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    return net.training and any((isinstance(module, drops) and module.p > 0) or getattr(module, "stochastic", False) for module in net.modules())


def per_member(values: Mapping[str, Tensor], reduce: Callable[[Tensor], Any] = lambda t: t.sum(1)) -> Tensor:
    """Reduce over all weights of each member: Σ over tensors of ``reduce([K, size])`` -> [K]."""
    return torch.stack([reduce(_rows(tensor)) for tensor in values.values()]).sum(0)


def flat(values: Mapping[str, Tensor]) -> Float[Tensor, "k p"]:
    """All weights of each member in one row, tensors in order of definition."""
    return torch.cat([_rows(tensor) for tensor in values.values()], 1)


def _rows(stacked: Tensor) -> Float[Tensor, "k size"]:
    return stacked.reshape(len(stacked), -1)  # flatten(1) refuses a stack of scalars


def unflat(row: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """Undo ``flat``."""
    sizes = [tensor[0].numel() for tensor in like.values()]
    return {name: piece.reshape(like[name].shape) for (name, piece) in zip(like, torch.split(row, sizes, 1), strict=True)}


def chunk_size(net: nn.Module) -> int:
    """Members trained and stored together: a fixed rule per net, never the load of the moment."""
    weights = sum(p.numel() for p in net.parameters())
    return 8 if weights <= 100_000 else 4 if weights <= 1_000_000 else 1


def top_share(scores: Float[Tensor, "k p"], count: int | Int64[Tensor, " k"]) -> Bool[Tensor, "k p"]:
    """The ``count`` largest entries of each row; ties go to the lower index."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order))
    return rank < (count if isinstance(count, int) else count.unsqueeze(1))


def blocks(net: nn.Module) -> list[tuple[str, ...]]:
    """Names of all parameters, block by block, in the order in which a forward pass meets them.

    A net may name its blocks itself (``forward_order``: names of submodules or parameters, each covering what lies below it);
    else a block is a module that holds parameters of its own, in order of definition.
    """
    names = [name for name, _ in net.named_parameters()]
    order = getattr(net, "forward_order", None) or dict.fromkeys(name.rpartition(".")[0] for name in names)
    found = [tuple(name for name in names if name == one or name.startswith(f"{one}.") or not one) for one in order]
    assert sorted(name for block in found for name in block) == sorted(names), "forward_order must cover every parameter once"
    return found


def _reset(module: nn.Module, seed: int, purpose: str) -> nn.Module:
    with seeded(seed, purpose, device=torch.device("cpu")):
        _reset_below(module, "")
    return module


def _reset_below(module: nn.Module, name: str) -> None:
    """``reset_parameters`` of a module answers for all that it holds, its parts included; constant buffers keep their values."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    if own := dict(module.named_parameters(recurse=False)):
        what = f"'{name or type(module).__name__}': it holds {', '.join(own)} but has no reset_parameters() method"
        raise InputError(f"cannot re-initialise {what}; add one")
    for part, child in module.named_children():
        _reset_below(child, f"{name}.{part}" if name else part)
