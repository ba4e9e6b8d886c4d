"""Which settings of a method are searched when it is tuned, and between which bounds: the rules, all of them.

Numbers with a fraction are searched, in the method and in the methods and localisers that it holds. What sets its cost is not, so that every trial
costs the same; nor are choices and whole numbers, nor what is 0 (off).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unlearnlab.spec import Field, InputError, build, fields, info, suggest, to_dict
from unlearnlab.studyfiles import change

FACTOR = 30.0  # how far above and below the study's own value
EDGE = 0.05  # shares are searched from here to 1 − this
RATES = ("lr",)  # what ends so is a learning rate, at most 1
# Settings that set what a method costs.
COSTS = ("epochs", "retain_share", "sample_share")
# Settings that are no matter of how well a method forgets, by method.
GUARANTEES = {"certified_removal": ("epsilon", "delta", "tolerance")}
# Methods that are not tuned, and why.
EXEMPT = {
    "eu_k": "all its settings are whole numbers",
    "oracle_matching": "it is trained on the answers of the very oracles that judge it",
    "original": "it does nothing",
    "retrain": "it is what the others are compared with",
    "sisa": "all its settings are whole numbers",
}

Scale = Literal["even", "log", "near one"]


@dataclass(frozen=True)
class Range:
    """Between which bounds a setting is searched. ``near one``: the distance from 1 is searched, on a logarithmic scale."""

    low: float
    high: float
    scale: Scale

    def ends(self) -> tuple[float, float]:
        """The bounds as they are searched, ascending."""
        return (1 - self.high, 1 - self.low) if self.scale == "near one" else (self.low, self.high)

    def there(self, value: float) -> float:
        """Where a value lies between the ``ends``."""
        low, high = self.ends()
        return min(max(1 - value if self.scale == "near one" else value, low), high)

    def value(self, at: float) -> float:
        """The setting at a place between the ``ends``, to three digits: what is tried is what is written down."""
        short = float(f"{at:.3g}")
        return round(1 - short, 12) if self.scale == "near one" else short

    def __str__(self) -> str:
        return f"{self.low:.3g}..{self.high:.3g}"


def space(method: Any, wanted: Mapping[str, tuple[float, float]] | None = None) -> dict[str, Range]:
    """What is searched of a method, by the path of the setting in it (``lr``, ``where.budget``).

    ``wanted``: only these settings, between these bounds. Raises ``InputError`` for a method of which there is nothing to search.
    """
    name = info(method).name
    if name in EXEMPT:
        raise InputError(f"method '{name}' is not tuned: {EXEMPT[name]}")
    numbers = dict(_numbers(method))
    if wanted:
        found = {path: _given(name, path, field, wanted[key]) for path, (field, _) in numbers.items() for key in (path, field.name) if key in wanted}
        if found:
            return found
        some, there = next(iter(wanted)), ", ".join(numbers) or "none"
        raise InputError(f"method '{name}' has no '{some}' to search{suggest(some, numbers)}; numbers that can be searched: {there}")
    found = {path: held for path, (field, value) in numbers.items() if (held := _rule(field, value)) is not None}
    if not found:
        raise InputError(f"method '{name}' is not tuned: none of its settings is a number to search around; give bounds for one: --search NAME=LOW..HIGH")
    return found


def values(method: Any) -> dict[str, float]:
    """The study's own values of all that may be searched, by path."""
    return {path: value for path, (_, value) in _numbers(method)}


def read_wanted(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``lr=0.001..0.1`` as the bounds of ``lr``."""
    found = {}
    for text in texts:
        name, _, bounds = text.partition("=")
        low, dots, high = bounds.partition("..")
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = math.nan, math.nan
        if not (name.strip() and dots and -math.inf < ends[0] < ends[1] < math.inf):
            raise InputError(f"cannot read the search '{text}'; expected NAME=LOW..HIGH, such as lr=0.001..0.1")
        found[name.strip()] = ends
    return found


def settled(method: Any, settings: Mapping[str, float]) -> Any:
    """The method with these settings, by path. Raises ``InputError`` for a setting out of range."""
    table = {"methods": [to_dict(method)]}
    for path, value in settings.items():
        change(table, f"methods.{info(method).name}.{path}", value)
    return build("method", table["methods"][0])


def _numbers(method: Any, path: str = "") -> Iterator[tuple[str, tuple[Field, float]]]:
    """All numbers with a fraction that may be searched, with their values."""
    held_back = (*COSTS, *GUARANTEES.get(info(method).name, ()))
    for field in fields(method.__class__):
        held = getattr(method, field.name)
        if isinstance(held, float) and float in (field.type, *get_args(field.type)) and field.name not in held_back:
            yield f"{path}{field.name}", (field, held)
        if field.setting.kind in ("method", "localiser"):
            inside = held if isinstance(held, tuple) else (held,)
            names = [info(one).name for one in inside]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InputError(f"method '{info(method).name}' is not tuned: it holds '{twice}' more than once, and it is not clear which is meant")
            for one, name in zip(inside, names, strict=True):
                yield from _numbers(one, f"{path}{field.name}.{name}." if isinstance(held, tuple) else f"{path}{field.name}.")


def _rule(field: Field, value: float) -> Range | None:
    """How a setting is searched that has this value in the study."""
    setting = field.setting
    least = max((bound for bound in (setting.ge, setting.gt) if bound is not None), default=-math.inf)
    most = min((bound for bound in (setting.le, setting.lt) if bound is not None), default=math.inf)
    if value <= 0:
        return None
    if least >= 0 and most <= 1 and value > EDGE:  # a share
        if 1 - EDGE <= value < 1:
            return Range(1 - min(0.5, FACTOR * (1 - value)), 1 - (1 - value) / FACTOR, "near one")
        return Range(min(value, max(least, EDGE)), max(value, min(most, 1 - EDGE)), "even")
    if field.name.endswith(RATES) and value <= 1:
        most = min(most, 1.0)
    return Range(max(value / FACTOR, least), min(value * FACTOR, most), "log")


def _given(method: str, path: str, field: Field, bounds: tuple[float, float]) -> Range:
    low, high = bounds
    outside = next((end for end in bounds if not field.setting.allows(end)), None)
    if outside is not None:
        raise InputError(f"cannot search {path} of method '{method}' to {outside:g}: expected {field.setting.range_text()}")
    return Range(low, high, "log" if low > 0 and high / low >= 10 else "even")
