"""Where a study's originals come from: trained here, or weights that the user (or another work) has."""

from __future__ import annotations

import hashlib
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack

# Wrappers under which published code saves a state dict, and prefixes that their wrappers leave on names.
_INSIDE = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("", "module.", "net.", "module.net.")


@spec("original", "trained")
class Trained:
    """Train the originals from scratch with the study's recipe."""

    paths: ClassVar[tuple[Path, ...]] = ()
    shared: ClassVar[bool] = False


@spec("original", "checkpoint")
class Checkpoint:
    """Take the originals from files of weights: .safetensors, or a state dict saved by torch (read with weights_only=True).

    One file for each original, or a single one for all: then the unlearned models share their original, and what needs
    several originals is not computed. Names and shapes must fit the study's net.
    """

    checkpoint: Annotated[tuple[str, ...] | str, Setting("the file, or one file for each original")]
    init: Annotated[tuple[str, ...] | str | None, Setting("the same models before they were trained, for methods that go back to them")] = None

    def __post_init__(self) -> None:
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
    def inits(self) -> tuple[Path, ...]:
        return () if self.init is None else _paths(self.init)

    def content(self) -> dict[str, Any]:
        """The files count by what is in them."""
        return {"checkpoint": [_checksum(path) for path in self.paths], "init": [_checksum(path) for path in self.inits]}


def load_originals(net: nn.Module, paths: tuple[Path, ...], seeds: tuple[int, ...]) -> Stack:
    """One member from each file; raises ``InputError`` for a file that does not fit the net."""
    start = Stack.of([net] * len(seeds), seeds)  # for names and shapes only: every tensor is replaced
    found = [_fitting(start, read_weights(path), path) for path in paths]
    params = {name: torch.stack([one[name] for one in found]) for name in start.params}
    buffers = {name: torch.stack([one[name] for one in found]) for name in start.buffers}
    return start.having(params, buffers)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name. Nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
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


def _fitting(stack: Stack, given: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    wanted = {name: tensor[0] for name, tensor in (stack.params | stack.buffers).items()}

    def trimmed(name: str) -> str:
        return next((name.removeprefix(prefix) for prefix in reversed(_PREFIXES) if name.startswith(prefix)), name)

    # compared without the prefixes that wrappers (theirs or ours) put before names
    theirs, ours = {trimmed(name): tensor for name, tensor in given.items()}, {trimmed(name): name for name in wanted}
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("normalize.")}  # constants; our nets hold them in no tensor
    missing, strange = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if missing or strange:
        what = [f"lacks {_some(missing)}"] * bool(missing) + [f"holds {_some(strange)}, which the net does not have"] * bool(strange)
        raise InputError(f"{path} does not fit the study's net: it {' and '.join(what)}; choose the net that was trained")
    for name, own in ours.items():
        if theirs[name].shape != wanted[own].shape:
            raise InputError(f"{path} does not fit the study's net: '{name}' is {list(theirs[name].shape)}, and the net has {list(wanted[own].shape)}")
    return {own: theirs[name].to(wanted[own].dtype) for name, own in ours.items()}


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _paths(given: tuple[str, ...] | str) -> tuple[Path, ...]:
    return tuple(Path(one).expanduser() for one in ((given,) if isinstance(given, str) else given))


def _checksum(path: Path) -> str:
    try:
        stat = path.stat()
        return _hash(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}; give the path of an existing file") from error


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed: int) -> str:
    """Once for each state of a file: every chunk of a study asks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
