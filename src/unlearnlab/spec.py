"""Settings as values: a *spec* is a frozen dataclass filed under a kind and a name.

From the same fields come the constructor, the TOML table, the help text, the range checks and the
key under which everything made from the spec is stored. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import math
import numbers
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

T = TypeVar("T")


class InputError(ValueError):
    """What the user gave is wrong: one line saying what was given, what was expected, what to do."""


@dataclass(frozen=True)
class Setting:
    """Describes one field of a spec; written in the field's ``Annotated`` type."""

    help: str = ""
    symbol: str = ""  # the paper's symbol, shown in the help text only
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    kind: str = ""  # the field holds a spec (or a tuple of specs) of this kind
    usual: str = ""  # the name of that spec where a table gives none
    unit: str = ""
    published: str = ""  # values in papers and their code, shown in the help text only
    legacy: tuple[str, ...] = ()  # choices that only reproduce published tables; so do all that bear the word "legacy"

    def range_text(self) -> str:
        """The allowed range in words, empty where any value of the type will do."""
        words = [("more than", self.gt), ("at least", self.ge), ("less than", self.lt), ("at most", self.le)]
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)

    def allows(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )


@dataclass(frozen=True)
class Info:
    """Under which kind and name a spec class is filed. ``version`` is raised when its behaviour changes."""

    kind: str
    name: str
    version: int
    paper: str
    summary: str
    source: str = ""  # hash of a plugin's text, so that an edited plugin makes its things anew


@dataclass(frozen=True)
class Field:
    """One setting of a registered spec, as help texts and docs show it."""

    name: str
    type: Any
    default: Any  # dataclasses.MISSING where the setting must be given
    setting: Setting


# Where the built-in specs of each kind live; imported by name the first time that kind is asked for,
# so that this floor knows no other and `--help` stays instant.
HOMES: dict[str, str] = {
    "dataset": "unlearnlab.data",
    "corruption": "unlearnlab.data",
    "partition": "unlearnlab.data",
    "augmentation": "unlearnlab.data",
    "net": "unlearnlab.nets",
    "optimizer": "unlearnlab.optimizers",
    "schedule": "unlearnlab.optimizers",
    "recipe": "unlearnlab.recipes",
    "score": "unlearnlab.scores",
    "attribution": "unlearnlab.attribution",
    "localiser": "unlearnlab.localise",
    "pruning": "unlearnlab.prune",
    "forget": "unlearnlab.elsewhere",
    "requests": "unlearnlab.forgetsets",
    "refiner": "unlearnlab.refine",
    "metric": "unlearnlab.metrics",
    "method": "unlearnlab.methods",
    "original": "unlearnlab.checkpoints",
    "provenance": "unlearnlab.terms",
    "budget": "unlearnlab.terms",
    "tuning": "unlearnlab.terms",
    "study": "unlearnlab.study",
}

# A name that is really a path: {kind: ((what it then holds, the name of the spec that reads it by its setting `path`), …)}.
PATHS: dict[str, tuple[tuple[str, str], ...]] = {
    "net": ((":", "module"),),
    "dataset": ((".npz", "npz"), (".csv", "csv"), (".parquet", "hf"), ("/", "image_folder")),
}

# Names that papers and published code use for our entries: {kind: {their name: our name}}.
ALIASES: dict[str, dict[str, str]] = {}

_PLUGIN = "unlearnlab_plugin_"
_registry: dict[str, dict[str, type]] = {}


@dataclass_transform(frozen_default=True)
def spec(kind: str, name: str, *, version: int = 1, paper: str = "") -> Callable[[type[T]], type[T]]:
    """Freeze a class into a dataclass, check its settings on construction, and file it.

    Raises ``InputError`` when another class already bears the name.
    """

    def file(cls: type[T]) -> type[T]:
        own_check = getattr(cls, "__post_init__", None)

        def check(self: Any) -> None:
            _check_settings(self)
            if own_check is not None:
                own_check(self)

        cls.__post_init__ = check  # type: ignore[attr-defined]
        frozen = dataclass(frozen=True)(cls)
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        source = cls.__module__.rpartition("_")[2] if cls.__module__.startswith(_PLUGIN) else ""
        frozen.__spec__ = Info(kind, name, version, paper, summary, source)  # type: ignore[attr-defined]
        held = _registry.setdefault(kind, {}).get(name)
        if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"{kind} '{name}' is already registered by {held.__module__}.{held.__qualname__}; choose another name")
        _registry[kind][name] = frozen
        return frozen

    return file


def info(value: Any) -> Info:
    """Kind, name and version of a spec (class or instance)."""
    found = getattr(value, "__spec__", None)
    if not isinstance(found, Info):
        raise InputError(f"expected a registered spec, got {value!r}; decorate its class with @spec(kind, name)")
    return found


def load_plugin(path: str | Path) -> None:
    """Run a user's file of specs once; the hash of its text enters the keys of what it registers."""
    path = Path(path).resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the plugin {path}: {error.strerror}; give the path of a Python file") from error
    name = f"{_PLUGIN}{path.stem}_{hashlib.sha256(source).hexdigest()[:8]}"
    if name in sys.modules:
        return
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise InputError(f"the plugin {path} is not a Python file (.py)")
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except InputError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"the plugin {path} failed to load: {type(error).__name__}: {error}") from error


def names(kind: str) -> list[str]:
    """All names registered under a kind, sorted."""
    return sorted(_load(kind))


def lookup(kind: str, name: str) -> type:
    """The class registered under a kind and a name; raises ``InputError`` with a suggestion."""
    table = _load(kind)
    if name in table:
        return table[name]
    ours = ALIASES.get(kind, {}).get(name)
    if ours is not None:
        raise InputError(f"unknown {kind} '{name}': here it is called '{ours}'")
    signs = " or ".join(f"'{sign}'" for sign, _ in PATHS.get(kind, ()))
    path = f"; a path must hold {signs}" if signs else ""
    raise InputError(f"unknown {kind} '{name}'{suggest(name, table)} (known: {', '.join(sorted(table))}{path})")


def suggest(word: str, known: Collection[str]) -> str:
    """`; did you mean '…'?` or an empty string; the head of a name with dots stands for all that go on from it."""
    if family := [f"'{name}'" for name in known if name.startswith(f"{word}.")]:
        return f"; did you mean {' or '.join(family)}?"
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


@cache
def fields(cls: type) -> tuple[Field, ...]:
    """The settings of a spec class in order of declaration."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        hint, setting = hints[field.name], Setting()
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            setting = next((extra for extra in extras if isinstance(extra, Setting)), setting)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Field(field.name, hint, default, setting))
    return tuple(found)


def build(kind: str, table: Any) -> Any:
    """Make a spec from a name, or from a table ``{name = …, setting = …}`` whose values may be tables again.

    A spec of the right kind passes through. Raises ``InputError`` for an unknown name or setting
    (with a suggestion), a wrong type or a value out of range.
    """
    if hasattr(table, "__spec__") and not isinstance(table, type):
        if info(table).kind != kind:
            raise InputError(f"expected a {kind}, got the {info(table).kind} '{info(table).name}'")
        return table
    if isinstance(table, str):
        table = {"name": table}
    if not isinstance(table, Mapping):
        raise InputError(f"expected a {kind} (a name or a table with 'name'), got {table!r}")
    if not isinstance(table.get("name"), str):
        raise InputError(f"a {kind} table needs name = '…', one of: {', '.join(names(kind))}")
    reader = next((name for sign, name in PATHS.get(kind, ()) if sign in table["name"]), None)
    if reader is not None:
        table = {"path": table["name"], **table, "name": reader}
    cls = lookup(kind, table["name"])
    known = {field.name for field in fields(cls)}
    settings = {name: value for name, value in table.items() if name != "name"}
    for name in settings:
        if name not in known:
            raise InputError(f"{kind} '{table['name']}' has no setting '{name}'{suggest(name, known)} (it has: {', '.join(sorted(known)) or 'none'})")
    missing = [field.name for field in fields(cls) if field.default is dataclasses.MISSING and field.name not in settings]
    if missing:
        raise InputError(f"{kind} '{table['name']}' needs the setting '{missing[0]}' ({_field(cls, missing[0]).setting.help})")
    return cls(**settings)


def to_dict(value: Any) -> dict[str, Any]:
    """The table that ``build`` turns back into an equal spec: name and **all** settings."""
    return {"name": info(value).name, **{field.name: _plain(getattr(value, field.name)) for field in fields(value.__class__)}}


def legacy(value: Any) -> list[str]:
    """The settings of a spec, and of the specs within it, that are there only to reproduce published tables: ``setting = value``."""
    found = []
    for one in within(value):
        for field in fields(one.__class__):
            held = getattr(one, field.name)
            if isinstance(held, str) and get_origin(field.type) is Literal and ("legacy" in held or held in field.setting.legacy):
                found.append(f"{field.name} = {held}")
    return found


def within(value: Any) -> Iterator[Any]:
    """A spec and all specs that its settings hold, at any depth."""
    yield value
    for field in fields(value.__class__):
        held = getattr(value, field.name)
        for inner in held if isinstance(held, tuple) else (held,):
            if hasattr(inner, "__spec__"):
                yield from within(inner)


def key(value: Any, **inputs: Any) -> str:
    """The name of what this spec makes: a hash of kind, name, version, all settings and its inputs.

    ``inputs`` are the other things the result depends on, as plain data: parents' keys, seeds, a
    data fingerprint. Device, paths, worker count and log level must not be among them.
    """
    return digest({"spec": _identity(value), "inputs": inputs})


def digest(value: Any) -> str:
    """sha256 (first 32 hex digits) of the canonical JSON of plain data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity(value: Any) -> dict[str, Any]:
    """What enters the key for a spec: kind, name, version and settings, recursively."""
    found = _identity(value)
    assert isinstance(found, dict)
    return found


def _identity(value: Any) -> Any:
    if hasattr(value, "__spec__"):
        held = info(value)
        return {
            "kind": held.kind,
            "name": held.name,
            "version": held.version,
            **({"source": held.source} if held.source else {}),
            # what a spec reads from a file counts by its content, not by where it lies
            "settings": value.content() if hasattr(value, "content") else {f.name: _identity(getattr(value, f.name)) for f in fields(value.__class__)},
        }
    return [_identity(item) for item in value] if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "__spec__"):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _load(kind: str) -> dict[str, type]:
    if kind not in HOMES:
        raise InputError(f"unknown kind '{kind}'{suggest(kind, HOMES)} (known: {', '.join(HOMES)})")
    try:
        home = importlib.import_module(HOMES[kind])
    except ModuleNotFoundError as error:
        if error.name != HOMES[kind]:
            raise
        return _registry.setdefault(kind, {})  # a room that is not built yet holds what plugins bring
    for module in pkgutil.iter_modules(getattr(home, "__path__", ())):
        importlib.import_module(f"{HOMES[kind]}.{module.name}")
    return _registry.setdefault(kind, {})


def _field(cls: type, name: str) -> Field:
    return next(field for field in fields(cls) if field.name == name)


def _check_settings(value: Any) -> None:
    held = info(value)
    for field in fields(value.__class__):
        label = f"{held.kind} '{held.name}': {field.name}"
        checked = _coerce(label, field.type, field.setting, getattr(value, field.name))
        object.__setattr__(value, field.name, checked)


def _coerce(label: str, hint: Any, setting: Setting, value: Any) -> Any:
    """The value as the field's type (an int becomes a float where a float is declared), or an ``InputError``."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        *others, last = (option for option in options if option is not type(None))
        for option in others:
            with contextlib.suppress(InputError):
                return _coerce(label, option, setting, value)
        return _coerce(label, last, setting, value)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InputError(f"{label} = {value!r} must be a list")
        inner = get_args(hint)
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(each) != len(value):
            raise InputError(f"{label} = {value!r} must be a list of {len(each)}, got {len(value)}")
        return tuple(_coerce(label, one, setting, item) for one, item in zip(each, value, strict=True))
    if setting.kind:
        nameless = setting.usual and isinstance(value, Mapping) and "name" not in value
        return build(setting.kind, {"name": setting.usual, **value} if nameless else value)
    if origin is Literal:
        if value not in get_args(hint):
            choices = [str(choice) for choice in get_args(hint)]
            raise InputError(f"{label} = {value!r} must be one of: {', '.join(choices)}{suggest(str(value), choices)}")
        return value
    # numpy's numbers are welcome; a bool is no number, although Python calls it an int
    if hint is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value) + 0.0  # -0.0 equals 0.0, so they must share a key
    if hint is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    if hint in (bool, int, float, str) and type(value) is not hint:
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
        raise InputError(f"{label} = {value!r} has the wrong type: expected {expected}")
    if hint in (int, float) and not (abs(value) < math.inf and setting.allows(value)):
        what = f" ({setting.help})" if setting.help else ""
        raise InputError(f"{label} = {value!r} is out of range: expected {setting.range_text() or 'a finite number'}{what}")
    return value
