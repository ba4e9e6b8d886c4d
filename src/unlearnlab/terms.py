"""The terms of a study: where its settings come from, what a method may spend, and how settings are searched for elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any, Literal

from unlearnlab.spec import InputError, Setting, fields, info, spec

What = Literal["published", "ours", "tuned", "scaled", "changed"]
# What the mark on a row of the report says, the strongest first.
MARKS = {
    "changed": "changed here",
    "tuned": "tuned elsewhere",
    "scaled": "scaled down",
    "published": "published",
    "ours": "ours",
    "given": "from the file",  # nobody says where it comes from
}


@spec("provenance", "origin")
class Origin:
    """Where some settings of a study come from."""

    what: Annotated[What, Setting("published by others; ours; tuned (on what, says the source); scaled by --small; changed by --set")]
    settings: Annotated[tuple[str, ...], Setting('dotted paths, such as "recipe" or "methods.salun.lr"; * stands for any name')]
    source: Annotated[str, Setting("paper and section, reason, or what they were tuned on")] = ""

    def covers(self, path: Sequence[str]) -> bool:
        """Does one of the settings name this path, or something that it lies in?"""
        return any(_names(setting, path) for setting in self.settings)


@spec("budget", "retraining")
class Budget:
    """What a method may spend, as a share of what retraining costs, in example passes: the same on any machine.

    Source: Forget with Precision allows 5 % of the time (protocols.md §3, methods.md §4). Differs from the published code: example passes are
    counted (forward 1, backward 2), not seconds. What a method reads that others made (oracles, attributions, scores) is not counted.
    """

    fraction_of_retrain: Annotated[float, Setting("most that a method may cost", gt=0, published="0.05")] = 0.05
    over: Annotated[Literal["stop", "mark"], Setting("stop a method there and leave it out of the audit, or let it finish and mark it")] = "stop"

    def limit(self, retraining: int) -> int:
        """Example passes that a method may take, where retraining takes so many."""
        return int(Fraction(str(self.fraction_of_retrain)) * retraining)  # as written: .29 of 100 is 29, not 28


@spec("tuning", "search")
class Tuning:
    """Settings are searched for on other forget sets of the same kind, with other models and small oracle ensembles of their own."""

    trials: Annotated[int, Setting("settings tried for each method, the study's own first", ge=1)] = 20
    sets: Annotated[int, Setting("other forget sets, on all of which a setting must do well", ge=1)] = 2
    models: Annotated[int, Setting("originals, and as many oracles, for each of these sets", ge=2)] = 8


def _names(setting: str, path: Sequence[str]) -> bool:
    """Is a dotted path, in which * stands for any name, this one or that of something it lies in?"""
    words = setting.split(".")
    return len(words) <= len(path) and all(map(fnmatchcase, path, words))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, bool]]:
    """All settings of a spec and of the specs in it: dotted path (what stands in a list goes by its name), value, and whether it is the default."""
    for field in fields(value.__class__):
        held, default = getattr(value, field.name), field.default
        where = (*path, field.name)
        inner = held if isinstance(held, tuple) else (held,)
        if not any(hasattr(one, "__spec__") for one in inner):
            yield where, held, held == default
            continue
        for one in inner:
            named = (*where, info(one).name) if isinstance(held, tuple) else where
            same = not isinstance(held, tuple) and _name(default) == info(one).name
            if not any(True for _ in fields(one.__class__)):
                yield named, info(one).name, same
            yield from leaves(one, named)
            if not isinstance(held, tuple) and not same:
                yield (*named, "name"), info(one).name, False


def by_path(value: Any) -> dict[tuple[str, ...], list[Any]]:
    """All values of a spec by path: several where a list holds several of a name."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for path, held, _ in leaves(value):
        found.setdefault(path, []).append(held)
    return found


def _name(default: Any) -> str:
    return default if isinstance(default, str) else info(default).name if hasattr(default, "__spec__") else ""


def origin(path: Sequence[str], provenance: Sequence[Origin]) -> Origin | None:
    """What is said of a setting; the last word counts."""
    return next((one for one in reversed(provenance) if one.covers(path)), None)


def mark(method: Any, provenance: Sequence[Origin]) -> str:
    """Where the settings of a row come from, in a word or two: ``default`` if nothing else is said and all are defaults."""
    found: dict[str, int] = {}  # with the place of what was said last
    for path, _, default in leaves(method, ("methods", info(method).name)):
        said = origin(path, provenance)
        found["default" if said is None and default else "given" if said is None else said.what] = -1 if said is None else provenance.index(said)
    if "tuned" in found and found["tuned"] < found.get("scaled", -1):  # it was tuned for what is no longer so
        del found["tuned"]
    strongest = next((what for what in MARKS if what in found), "")
    if strongest == "published" and found.keys() & {"ours", "given"}:
        return "published in part"
    return MARKS.get(strongest, "default")


def check(provenance: Sequence[Origin], known: Sequence[tuple[str, ...]]) -> None:
    """Raises ``InputError`` for a path of the provenance that is no setting of the study. ``known``: the paths there are."""
    for one in provenance:
        for setting in one.settings:
            if not any(_names(setting, path) for path in known):
                raise InputError(f"[[provenance]] speaks of '{setting}', which this study does not have; name a setting such as recipe or methods.salun.lr")


def told(*studies: Any) -> list[str]:
    """A line for each thing that is said of where the settings of studies come from, with their values, but not of what was said otherwise later."""
    lines: dict[tuple[str, str], dict[str, list[str]]] = {}
    for study in studies:
        found = list(leaves(study))
        for at, one in enumerate(study.provenance):
            later = study.provenance[at + 1 :]
            named = lines.setdefault((one.what, one.source), {})
            for setting in one.settings:
                mine = [(path, held) for path, held, _ in found if _names(setting, path)]
                other = {path: said for path, _ in mine if (said := origin(path, later)) is not None}
                if len(other) == len({path for path, _ in mine}) or any(said.what == "scaled" for said in other.values()):
                    continue
                if other:
                    setting = f"{setting} (but for {', '.join(dict.fromkeys('.'.join(path) for path in other))})"
                    named.setdefault(setting, []).append("")
                    continue
                if one.what == "scaled":
                    setting = setting if setting.startswith("methods.") else setting.partition(".")[0]
                held = _value(study, setting, mine)
                if mine and held not in named.setdefault(setting, []):
                    named[setting].append(held)
    told = []
    for (what, source), named in lines.items():
        words = [f"{setting} = {' / '.join(held)}" if held != [""] else setting for setting, held in named.items() if held]
        if words:
            told.append(f"{what}: {', '.join(words)}" + (f" ({source})" if source else ""))
    return told


def _value(study: Any, setting: str, mine: Sequence[tuple[tuple[str, ...], Any]]) -> str:
    """What a setting is set to: its value, or the name of the spec it holds."""
    words = setting.split(".")
    values = [f"{held:g}" if isinstance(held, float) else "none" if held is None else str(held) for path, held in mine if len(path) == len(words)]
    if values and "*" not in setting:
        return " / ".join(dict.fromkeys(values))
    held = getattr(study, setting, None)
    return info(held).name if hasattr(held, "__spec__") else ""
