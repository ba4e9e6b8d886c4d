"""``module``: any ``nn.Module`` of yours, by its import path or its file."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec, suggest

Shape = tuple[int, int, int]


@spec("net", "module")
class ModuleNet:
    """Any torch module of yours: a class, or a function that returns one, in "package.module:Name" or "path/to/file.py:Name".

    It is called with ``arguments`` and the number of classes, and sees normalised images. Every member is made by a call of its own,
    under a seed of its own, so it starts from your own initialisation. The text of the file enters the key of what is trained: an
    edited net is trained anew. What that file imports does not.
    """

    path: Annotated[str, Setting("where the class or function is: 'package.module:Name' or 'path/to/file.py:Name'")]
    arguments: Annotated[tuple[str, ...], Setting('what it is called with, such as "width=64" or "norm=\'batch\'" (values as in TOML)')] = ()
    classes_argument: Annotated[str, Setting("its argument for the number of classes; empty: it takes none")] = "num_classes"

    def __post_init__(self) -> None:
        file, name = self._parts()
        if not name.isidentifier() or not (file.endswith(".py") or all(part.isidentifier() for part in file.split("."))):
            raise InputError(f"net 'module': path = '{self.path}' must be 'package.module:Name' or 'path/to/file.py:Name'")
        self._arguments()

    def __call__(self, shape: Shape, classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        return Remade(f"net 'module' ({self.path})", Pixels(mean, std, shape[1:]), partial(self._make, classes), shape, classes)

    def content(self) -> dict[str, Any]:
        """What enters the key: the settings and the code, wherever its file lies."""
        file, name = self._parts()
        with _importable(file):
            module, maker = self._find()
        # where a module only passes on what another one defines, the texts of both count
        texts = [Path(source).read_bytes() for source in dict.fromkeys((getattr(module, "__file__", None), _source_of(maker))) if source]
        return {
            "path": f"{Path(file).name}:{name}" if file.endswith(".py") else self.path,
            "arguments": list(self.arguments),
            "classes_argument": self.classes_argument,
            "source": hashlib.sha256(b"".join(texts)).hexdigest(),
        }

    def _parts(self) -> tuple[str, str]:
        file, _, name = self.path.rpartition(":")
        return file, name

    def _arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for argument in self.arguments:
            try:
                parsed = tomllib.loads(argument)
            except tomllib.TOMLDecodeError as error:
                raise InputError(f"net 'module': cannot read the argument {argument!r}: {error}; write \"width=64\", or \"norm='batch'\" for text") from error
            if len(parsed) != 1 or found.keys() & parsed.keys():
                raise InputError(f"net 'module': {argument!r} must set one argument, and none may be set twice")
            found |= parsed
        return found

    def _find(self) -> tuple[ModuleType, Callable[..., Any]]:
        file, name = self._parts()
        try:
            module = _load_file(Path(file).resolve()) if file.endswith(".py") else importlib.import_module(file)
        except Exception as error:  # the code is not ours and may raise anything
            looked = "" if file.endswith(".py") else f"; looked in {Path.cwd()} and among the installed packages"
            raise InputError(f"net 'module': cannot import {file}: {said(error)}{looked}") from error
        if not hasattr(module, name):
            raise InputError(f"net 'module': there is no '{name}' in {file}{suggest(name, [known for known in vars(module) if known[0] != '_'])}")
        maker = getattr(module, name)
        if isinstance(maker, nn.Module) or not callable(maker):
            raise InputError(f"net 'module': {self.path} is of type {type(maker).__name__}; give a class, or a function that returns a torch.nn.Module")
        return module, maker

    def _make(self, classes: int) -> Any:
        with _importable(self._parts()[0]):
            _, maker = self._find()
            given, accepted = self._arguments(), _accepted(maker)
            if self.classes_argument and (self.classes_argument in accepted or "**" in accepted):
                given = {self.classes_argument: classes} | given
            elif self.classes_argument not in ("", "num_classes"):
                raise InputError(f"net 'module': {self.path} has no argument '{self.classes_argument}'{suggest(self.classes_argument, accepted)}")
            try:
                return maker(**given)
            except Exception as error:  # the code is not ours and may raise anything
                call = f"{self.path} called with ({', '.join(f'{name}={value!r}' for name, value in given.items())})"
                raise InputError(f"net 'module': {call} failed: {said(error)}; set arguments and classes_argument as it wants them") from error


class Remade(nn.Module):
    """Pixels, then a net of another make. It is re-initialised by being made anew, for only its maker knows how its weights begin."""

    def __init__(self, name: str, pixels: Pixels, make: Callable[[], Any], shape: Shape, classes: int) -> None:
        super().__init__()
        self.name, self.make, self.shape, self.classes = name, make, shape, classes
        self.pixels, self.net = pixels, self._made()
        self.stochastic = _draws(name, self.net, shape)  # tells the training loop to train one member at a time
        self.forward_order = _order(self)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.net(self.pixels(pixels))
        return found

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fresh = self._made()
        held = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        for name, tensor in (dict(fresh.named_parameters()) | dict(fresh.named_buffers())).items():
            held[name].copy_(tensor)

    def _made(self) -> nn.Module:
        net = self.make()
        if not isinstance(net, nn.Module):
            raise InputError(f"{self.name} returns a {type(net).__name__}, not a torch.nn.Module")
        fits(self.name, net, self.shape, self.classes)  # every time, since lazy layers take their sizes from the first image
        return net


def fits(name: str, net: nn.Module, shape: Shape, classes: int) -> None:
    """Refuse a net that has nothing to train, or does not turn an image of this shape into one logit a class."""
    if next(net.parameters(), None) is None:
        raise InputError(f"{name} has no parameters to train; layers must be attributes of the module, or stand in a ModuleList")
    training = net.training
    with torch.no_grad():
        logits = _logits(name, net.eval(), torch.zeros(1, *shape))
    net.train(training)
    if logits.dim() == 2 and len(logits) == 1 and logits.shape[1] != classes:
        do = "pass that number to its maker (num_classes), or set it among its arguments"
        raise InputError(f"{name}: its head has {logits.shape[1]} outputs, the data has {classes} classes; {do}")
    if logits.shape != (1, classes):
        raise InputError(f"{name} turns one image into a tensor of shape {list(logits.shape)}; expected [1, {classes}], one logit a class")


def _draws(name: str, net: nn.Module, shape: Shape) -> bool:
    """Does it draw random numbers while training, in whatever layer (dropout as a function, drop path)?"""
    trained = copy.deepcopy(net).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        _logits(f"{name}, while training,", trained, torch.zeros(2, *shape))
        return not torch.equal(before, torch.get_rng_state())


def _logits(name: str, net: nn.Module, images: Tensor) -> Tensor:
    what = "an image" if len(images) == 1 else f"{len(images)} images"
    try:
        found = net(images)
    except Exception as error:  # the code is not ours and may raise anything
        raise InputError(f"{name} fails on {what} of {_times(images.shape[1:])}: {said(error)}; check input channels and size") from error
    if not isinstance(found, Tensor):
        raise InputError(f"{name} returns a {type(found).__name__}; expected a tensor of logits (switch further outputs off)")
    return found


def _order(net: nn.Module) -> tuple[str, ...]:
    """What to call its blocks: its own ``forward_order``; else each module with parameters, in order of definition.

    Parameters beside modules with parameters (a class token, attention's input weights) are blocks of their own.
    """
    own = getattr(net.net, "forward_order", None)
    if own is not None:
        return tuple(f"net.{name}" for name in own)
    names = [name for name, _ in net.named_parameters()]
    holders = dict.fromkeys(name.rpartition(".")[0] for name in names)
    found: list[str] = []
    for holder in holders:
        mixed = any(other.startswith(f"{holder}.") for other in holders)
        found += [name for name in names if name.rpartition(".")[0] == holder] if mixed else [holder]
    return tuple(found)


@contextmanager
def _importable(file: str) -> Iterator[None]:
    """The current folder, and that of the file, come first in imports, as in a script."""
    folders = [str(Path.cwd())] if not file.endswith(".py") else [str(Path(file).resolve().parent), str(Path.cwd())]
    sys.path[:0] = folders
    importlib.invalidate_caches()  # the file may be seconds old
    try:
        yield
    finally:
        for folder in folders:
            with suppress(ValueError):
                sys.path.remove(folder)


def _load_file(file: Path) -> ModuleType:
    """Run it once; again only when its text has changed."""
    name = f"unlearnlab_net_{file.stem}_{hashlib.sha256(bytes(file) + file.read_bytes()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _source_of(maker: Callable[..., Any]) -> str | None:
    with suppress(TypeError):  # not written in Python
        return inspect.getsourcefile(inspect.unwrap(maker))
    return None


def _accepted(maker: Callable[..., Any]) -> set[str]:
    """Names of the arguments it can be called with; ``**`` where it takes any."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return set()
    return {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters if one.kind not in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)}


def said(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
