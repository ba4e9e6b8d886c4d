"""Where a study's originals come from: trained here, or weights that the user (or another work) has."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack, Tensors

# Wrappers under which published code saves a state dict, and prefixes that their wrappers leave on names.
_INSIDE = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("", "module.", "net.", "module.net.")
# What published residual nets call parts that torchvision (and ours) call otherwise; a part stands between dots.
_PARTS = {"shortcut": "downsample", "linear": "fc", "classifier": "fc", "head": "fc"}


@spec("original", "trained")
class Trained:
    """Train the originals from scratch with the study's recipe."""

    paths: ClassVar[tuple[Path, ...]] = ()
    shared: ClassVar[bool] = False
    sparse: ClassVar[bool] = False


@spec("original", "checkpoint")
class Checkpoint:
    """Take the originals from files of weights: .safetensors, or a state dict saved by torch (read with weights_only=True).

    One file for each original, or a single one for all: then the unlearned models share their original, and what needs
    several originals is not computed. Names and shapes must fit the study's net, each once; a wrapper's prefix (``module.``) and the other
    usual names of a residual net's parts (``shortcut``, ``linear``) are no hindrance. Weights that torch.nn.utils.prune masked (``weight_orig``
    with ``weight_mask``, as the checkpoints of Jia et al. 2023) stay pruned in all that is made from them.
    """

    checkpoint: Annotated[tuple[str, ...] | str, Setting("the file, or one file for each original")]
    init: Annotated[tuple[str, ...] | str | None, Setting("the same models before they were trained, for methods that go back to them")] = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError("original 'checkpoint': checkpoint is empty; name a file for each original, or one for all")
        if self.init is not None and len(_paths(self.init)) != len(self.paths):
            raise InputError(f"original 'checkpoint': {len(_paths(self.init))} file(s) of initial weights for {len(self.paths)} of weights; give as many")

    @property
    def paths(self) -> tuple[Path, ...]:
        return _paths(self.checkpoint)

    @property
    def shared(self) -> bool:
        """Do all unlearned models descend from one original?"""
        return len(self.paths) == 1

    @property
    def sparse(self) -> bool:
        """Do the files hold masks? Raises ``InputError`` where they do not all mask the same weights."""
        masked = {path: _masked(path, *_state(path)) for path in self.paths}
        first = self.paths[0]
        for path, names in masked.items():
            if names != masked[first]:
                told = sorted(names ^ masked[first])
                raise InputError(f"{first} and {path} are not pruned alike: one of them has no mask for {_some(told)}; give originals of one kind")
        return any(masked.values())

    @property
    def inits(self) -> tuple[Path, ...]:
        return () if self.init is None else _paths(self.init)

    def content(self) -> dict[str, Any]:
        """The files count by what is in them."""
        return {"checkpoint": [_checksum(path) for path in self.paths], "init": [_checksum(path) for path in self.inits]}


def load_originals(net: nn.Module, paths: tuple[Path, ...], seeds: tuple[int, ...]) -> Stack:
    """One member from each file, pruned where the files hold masks; raises ``InputError`` for a file that does not fit the net."""
    start = Stack.of([net] * len(seeds), seeds)  # for names and shapes only: every tensor is replaced
    found = [_fitting(start, read_weights(path), path) for path in paths]
    params = {name: torch.stack([tensors[name] for tensors, _ in found]) for name in start.params}
    buffers = {name: torch.stack([tensors[name] for tensors, _ in found]) for name in start.buffers}
    dense = start.having(params, buffers)
    masks = {name for _, live in found for name in live}
    live = {name: torch.stack([held.get(name, torch.ones_like(params[name][0], dtype=torch.bool)) for _, held in found]) for name in params if name in masks}
    return dense.pruned(live) if live else dense


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name. Nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        held = load_plain(path)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}; give the path of an existing file") from error
    except Exception as error:  # safetensors, zip and pickle each fail in their own way
        pickled = isinstance(error, pickle.UnpicklingError)  # torch then advises to load it unsafely
        reason = "it holds more than tensors" if pickled else " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no weights that can be read safely ({reason}); save model.state_dict() with torch.save, or as .safetensors") from error
    for name in _INSIDE:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise InputError(f"{path} holds no state dict: expected names with tensors; save model.state_dict(), not the model")
    return dict(held)


def load_plain(path: Path) -> Any:
    """What ``torch.save`` wrote, if that is tensors, numbers, text, NumPy's arrays and lists and tables of these; nothing in it is executed.

    Raises whatever torch does about other files.
    """
    rebuilt: Any = np.empty(0).__reduce__()[0]
    known: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}]
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        known += [(rebuilt, f"{core}.multiarray._reconstruct"), (_number, f"{core}.multiarray.scalar")]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", weights_only=True)


def _number(kind: Any, held: Any) -> Any:
    """One of NumPy's numbers, which published code saves beside the weights: an accuracy, an epoch."""
    if not isinstance(kind, np.dtype) or kind.kind not in "biuf":  # bytes taken for an object would be taken for an address
        raise pickle.UnpicklingError(f"{kind} is no type of a number")
    return np.frombuffer(held if isinstance(held, bytes) else held.encode("latin1"), kind)[0]


def pair_names(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Of our names those that a file knows, and what it calls them; nothing is paired with two.

    As they are, then without the prefixes that wrappers (theirs or ours) put before names, then by the other usual names of a residual net's parts.
    """
    ours, theirs = list(ours), list(theirs)
    ways: tuple[Callable[[str], str], ...] = (str, _trimmed, _called)
    return max((_pairs(way, ours, theirs) for way in ways), key=len)  # the first of those that pair as many


def _pairs(way: Callable[[str], str], ours: list[str], theirs: list[str]) -> dict[str, str]:
    seen = [Counter(map(way, names)) for names in (ours, theirs)]
    there = {way(name): name for name in theirs}
    return {name: there[key] for name in ours if (key := way(name)) in there and seen[0][key] == seen[1][key] == 1}


def _trimmed(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in reversed(_PREFIXES) if name.startswith(prefix)), name)


def _called(name: str) -> str:
    return ".".join(_PARTS.get(part, part) for part in _trimmed(name).split("."))


def _fitting(stack: Stack, given: dict[str, Tensor], path: Path) -> tuple[Tensors, Tensors]:
    """The tensors of a file by our names, and which weights its masks leave, by those of the masked."""
    wanted = {name: tensor[0] for name, tensor in (stack.params | stack.buffers).items()}
    held, live = _unmasked(given, path)
    constants = {name: _trimmed(name).removeprefix("normalize.") for name in held if _trimmed(name) in ("normalize.mean", "normalize.std")}
    if any(_trimmed(own).startswith("normalize.") for own in wanted):
        constants = {}  # a net of the user's own that holds them as they do
    _check_constants(stack.net, {constant: held[name] for name, constant in constants.items()}, path)
    held = {name: tensor for name, tensor in held.items() if name not in constants}
    paired = pair_names(wanted, held)
    missing, strange = [name for name in wanted if name not in paired], sorted(held.keys() - set(paired.values()))
    for own in missing:
        if len(rivals := sorted(name for name in held if _called(name) == _called(own))) > 1:
            raise InputError(f"{path} does not fit the study's net: {_some(rivals)} may each be its '{_trimmed(own)}'; save the state dict of one model")
    if missing or strange:
        lacking = sorted(_trimmed(name) for name in missing)
        what = [f"lacks {_some(lacking)}"] * bool(missing) + [f"holds {_some(strange)}, which the net does not have"] * bool(strange)
        raise InputError(f"{path} does not fit the study's net: it {' and '.join(what)}; choose the net that was trained")
    for own, name in paired.items():
        if held[name].shape != wanted[own].shape:
            raise InputError(f"{path} does not fit the study's net: '{name}' is {list(held[name].shape)}, and the net has {list(wanted[own].shape)}")
    return {own: held[name].to(wanted[own].dtype) for own, name in paired.items()}, {own: live[name] for own, name in paired.items() if name in live}


def _unmasked(given: dict[str, Tensor], path: Path) -> tuple[Tensors, Tensors]:
    """Tensors under the names of a net that nobody pruned, and which weights are live of those that torch.nn.utils.prune masked.

    There the weight a layer computes with is ``weight_orig`` · ``weight_mask``, and what stands under ``weight_orig`` where the mask is 0 means nothing.
    """
    masked = sorted(masked_names(given))
    for name in masked:
        mask, shape = given[f"{name}_mask"], given[f"{name}_orig"].shape
        if name in given:
            raise InputError(f"{path} holds both '{name}' and '{name}_orig': which of them the net uses is not clear; save the state dict of one model")
        if mask.shape != shape or not bool(((mask == 0) | (mask == 1)).all()):
            expected = f"expected zeros and ones of the shape {list(shape)}, which is that of '{name}_orig'"
            raise InputError(f"{path} holds no mask under '{name}_mask' ({mask.dtype} {list(mask.shape)}); {expected}")
    pruned = {name: given[f"{name}_orig"] for name in masked}
    parts = {f"{name}{end}" for name in masked for end in ("_orig", "_mask")}
    return {name: tensor for name, tensor in given.items() if name not in parts} | pruned, {name: given[f"{name}_mask"] == 1 for name in masked}


def masked_names(given: Iterable[str]) -> set[str]:
    """Names of the tensors that torch.nn.utils.prune masked, without its suffixes."""
    names = set(given)
    return {name.removesuffix("_mask") for name in names if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in names}


def _check_constants(net: nn.Module, constants: Tensors, path: Path) -> None:
    """Refuse a model that normalises its pixels otherwise than the net here would (which holds its mean and deviation in no tensor)."""
    pixels = next((module for module in net.modules() if isinstance(module, Pixels)), None)
    for name, tensor in {} if pixels is None else constants.items():
        theirs, ours = tensor.flatten().double(), torch.tensor(getattr(pixels, name), dtype=torch.float64)
        if not (1 in (len(theirs), len(ours)) or len(theirs) == len(ours)) or not bool(((theirs - ours).abs() < 2e-3).all()):
            told = f"'normalize.{name}' = {[round(one, 4) for one in theirs.tolist()]}, the study's net by {ours.tolist()}"
            do = 'set normalise as it was trained, or give that very model as net = "FILE.py:NAME" with normalise = false'
            raise InputError(f"{path} is of a model that normalises its pixels by {told}; {do}")


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _paths(given: tuple[str, ...] | str) -> tuple[Path, ...]:
    return tuple(Path(one).expanduser() for one in ((given,) if isinstance(given, str) else given))


def _checksum(path: Path) -> str:
    return _hash(path, *_state(path))


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}; give the path of an existing file") from error


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed: int) -> str:
    """Once for each state of a file: every chunk of a study asks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _masked(path: Path, size: int, changed: int) -> frozenset[str]:
    return frozenset(map(_trimmed, masked_names(read_weights(path))))
