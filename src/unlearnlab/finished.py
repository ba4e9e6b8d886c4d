"""Finished studies as they lie in a store, and in which settings they differ. Reads only."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from unlearnlab.contract import Audit
from unlearnlab.filing import read_outputs
from unlearnlab.metrics.trace import Left, Trace
from unlearnlab.naming import again, kept_as
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError, build, suggest
from unlearnlab.store import Store

ABSENT = "–"
NOT_SETTINGS = ("name", "title", "notes", "provenance")  # words about a study
SHOWN = ("value", "ci", "floor", "ceiling", "rescaled", "p", "missing")  # of a result; the values of every model and image stay in audit.json


# ---- which studies


def members(store: Store, names: Sequence[str]) -> list[str]:
    """The names of the studies that are meant, families taken apart; raises ``InputError`` for fewer than two, or one that comes twice."""
    found: list[str] = []
    for name in map(kept_as, names):
        found += variants(store, name) or [name]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"study '{twice}' is named twice; name each study once, and none beside its family")
    if len(found) < 2:
        given = f"'{found[0]}' alone" if found else "no study"
        raise InputError(f"a comparison needs two finished studies, or a family of them; got {given}: unlearnlab compare STUDY STUDY")
    return found


def variants(store: Store, name: str) -> list[str]:
    """The studies of a family, or those of the requests of a study, in order; none where this is a single study."""
    held = _read(store.root / "studies" / name / "index.json", name) or {}
    listed = held.get("variants") or held.get("requests") or ()
    return [one for member in listed for one in variants(store, member) or [member]]


def place(store: Store, names: Sequence[str]) -> Path:
    """Where a comparison goes unless it is said: to the folder of its family, where it is of one family, else to a folder here."""
    found, first = members(store, names), kept_as(names[0])
    return store.root / "studies" / first if len(names) == 1 else Path(f"compare-{found[0]}-{len(found)}")


def _read(path: Path, name: str) -> dict[str, Any] | None:
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); run it again: {again(name)}") from error
    if not isinstance(held, dict):
        raise InputError(f"{path} is damaged (no table); run it again: {again(name)}")
    return held


def finished(store: Store, name: str) -> Finished:
    """A study that was run to its audit; raises ``InputError`` for any other."""
    folder = store.root / "studies" / name
    document, index = (_read(folder / file, name) for file in ("audit.json", "index.json"))
    if document is not None and index is not None:
        return Finished(name, document, index, store)
    known = sorted(path.parent.name for path in (store.root / "studies").glob("*/audit.json"))
    if folder.is_dir():
        raise InputError(f"study '{name}' was not run to its audit; finish it first: {again(name)}")
    raise InputError(f"there is no finished study '{name}' in {store.root}{suggest(name, known)}; finished there: {', '.join(known) or 'none'}")


@dataclass(eq=False)
class Finished:
    """One study: its stored audit, and the keys of what it was made from."""

    name: str
    document: dict[str, Any]
    index: dict[str, Any]
    store: Store

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["method"]: row for row in self.document["rows"]}

    def row(self, method: str) -> dict[str, Any] | None:
        """What is shown of a method: its verdict and results."""
        if (row := self.rows.get(method)) is None:
            return None
        results = {key: {name: _finite(one.get(name)) for name in SHOWN} for key, one in row["results"].items()}
        return {"method": method, "calibration": bool(row["calibration"]), "verdict": row["verdict"], "settings": row.get("settings"), "results": results}

    def why_not(self, method: str) -> str:
        """Why there is no such row."""
        listed = (self.document.get("budget") or {}).get("rows", {})
        return f"'{method}' was over the budget" if method in listed else f"no method '{method}'"

    def result(self, method: str, key: str) -> dict[str, Any]:
        """One stored result; empty where there is none."""
        found: dict[str, Any] = self.rows.get(method, {}).get("results", {}).get(key) or {}
        return found

    def keys(self, role: str) -> list[str]:
        """The artefacts behind ``original``, ``oracle`` or ``unlearned/METHOD``, as ``kind/key``."""
        return list(self.index.get(f"stacks/{role}") or self.index.get(f"outputs/{role}") or ())

    def seeds(self, role: str) -> tuple[int, ...]:
        """The seeds that models of a role started from."""
        return tuple(seed for kind, _, key in (name.partition("/") for name in self.keys(role)) for seed in self.store.manifest(kind, key)["seeds"])

    def left(self, method: str) -> Left:
        """The share of the trace that is left and how each model pulls it, from its stored logits. Raises ``InputError`` where these are gone."""
        originals, oracles, unlearned = self._originals, self._oracles, self._forget(f"unlearned/{method}")
        n = len(unlearned)
        parents = torch.arange(n) if len(originals) == n else torch.zeros(n, dtype=torch.int64)  # as measuring.gather has it
        asked = [metric for metric in self.document["study"]["metrics"] if metric["name"] == "trace"]
        found, stored = build("metric", asked[0] if asked else "trace"), self.result(method, "trace")["value"]
        assert isinstance(found, Trace)
        left = found.left(Audit(originals, oracles, unlearned, parents))
        if not isinstance(left, Left) or not abs(left.value - stored) <= 1e-6 * max(1.0, abs(stored)):
            raise InputError(f"the logits that the store has for '{self.name}' are not those of its audit; run it again: {again(self.name)}")
        return left

    @cached_property
    def _originals(self) -> Outputs:
        return self._forget("original")

    @cached_property
    def _oracles(self) -> Outputs:
        return self._forget("oracle")

    def _forget(self, role: str) -> Outputs:
        """What models say of the forget images alone, chunk by chunk, so that large studies fit."""
        chunks = []
        for kind, _, key in (name.partition("/") for name in self.index.get(f"outputs/{role}") or ()):
            if (folder := self.store.get(kind, key)) is None:
                raise InputError(f"{kind}/{key} is no longer in the store; run it again: {again(self.name)}")
            chunks.append(read_outputs(folder).of("forget"))
        if not chunks:
            raise InputError(f"the logits of '{role}' are not in the index of '{self.name}'; run it again: {again(self.name)}")
        return Outputs.join(chunks)


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {name: _finite(held) for name, held in value.items()}
    if isinstance(value, list):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- in which settings they differ


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings in which studies differ, by dotted path: a value for each study, ``ABSENT`` where it has no such setting.

    What some studies lack altogether stands in one line, with the settings that the others agree on.
    """
    return dict(_apart("", [{name: held for name, held in one.items() if name not in NOT_SETTINGS} for one in settings]))


def _apart(path: str, values: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    if all(value == values[0] for value in values):
        return
    held = [_by_name(value) for value in values]
    tables = [value for value in held if isinstance(value, Mapping)]
    if not tables or len({value.get("name") for value in tables}) > 1:  # other specs have other settings
        yield path, [ABSENT if value is ABSENT else plain(value) for value in values]
        return
    keys = [key for key in dict.fromkeys(key for value in tables for key in value) if key != "name"]
    own = [value if isinstance(value, Mapping) else {} for value in held]
    below = {key: [value.get(key, ABSENT) for value in own] for key in keys}
    if len(tables) < len(held):
        alike = [key for key in keys if all(value.get(key, ABSENT) == tables[0].get(key, ABSENT) for value in tables)]
        shown = {name: tables[0][name] for name in ("name", *alike) if name in tables[0]}
        yield path, [plain(shown) if isinstance(value, Mapping) else ABSENT if value is ABSENT else plain(value) for value in held]
        below = {key: of for key, of in below.items() if key not in alike}
    for key, of in below.items():
        yield from _apart(f"{path}.{key}".lstrip("."), of)


def _by_name(value: Any) -> Any:
    """A list of named tables as a table by name (of metrics, and part); repeated names numbered, as rows are."""
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) and "name" in one for one in value):
        return value
    names = [f"{one['name']}.{one['part']}" if isinstance(one.get("part"), str) else one["name"] for one in value]
    total, seen, found = Counter(names), Counter[str](), dict[str, Any]()
    for name, one in zip(names, value, strict=True):
        seen[name] += 1
        found[f"{name}-{seen[name]}" if total[name] > 1 else name] = one
    return found


def plain(value: Any) -> Any:
    """A setting in print; numbers stay numbers."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key} {plain(held)}" for key, held in value.items() if key != "name" and held is not None)
        return f"{value['name']} ({rest})" if "name" in value and rest else str(value.get("name", rest))
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(plain(one)) for one in value)}]"
    if isinstance(value, bool) or value is None:
        return "none" if value is None else str(value).lower()
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else str(value)
