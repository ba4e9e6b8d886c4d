"""What tuning has found: chosen settings with all that was tried, in files, and studies that take them up."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import tomli_w

from unlearnlab.auditing import CALIBRATION
from unlearnlab.contract import Method
from unlearnlab.searching import Range, settled
from unlearnlab.spec import InputError, build, info, to_dict
from unlearnlab.store import write_text_atomic
from unlearnlab.study import Study, without_none
from unlearnlab.terms import Origin, leaves, origin


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, by path. ``objective``: mean over the sets, small is good; infinite where ``fault`` says why there is none."""

    settings: Mapping[str, float]
    objective: float
    sets: tuple[Mapping[str, Any], ...] = ()
    fault: str = ""

    def mean(self, name: str) -> float | None:
        """A part of the objective (``trace``, ``retain``, …), mean over the sets that have it."""
        found = [held[name] for held in self.sets if held[name] is not None]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class Tuned:
    """What was found for one row of a study. ``method``: with the chosen settings; ``trials``: in order, the study's own settings first."""

    row: str
    method: Method
    searched: Mapping[str, Range]
    trials: tuple[Trial, ...]
    origin: Origin

    @property
    def best(self) -> Trial:
        """The chosen trial; ties go to the earlier."""
        return min(self.trials, key=lambda trial: trial.objective)


def write_tuned(found: Tuned, folder: Path) -> Path:
    """Write the chosen settings and where they come from to ``tuned/ROW.toml``, ready to be pasted into a study."""
    table = without_none({"methods": [to_dict(found.method)], "provenance": [to_dict(found.origin)]})
    path = folder / "tuned" / f"{found.row}.toml"
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, tomli_w.dumps(table))
    return path


def with_tuned(study: Study, folder: Path) -> Study:
    """The study with the settings that ``write_tuned`` wrote in its folder. Raises ``InputError`` where there are none, or of methods that it does not list."""
    rows, found = listed(study), dict[str, tuple[Method, Origin]]()
    for path in sorted((folder / "tuned").glob("*.toml")):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            method, source = build("method", table["methods"][0]), build("provenance", table["provenance"][0])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"cannot read the tuned settings in {path}: {error}; tune the method again, or remove the file") from error
        if path.stem not in rows or info(rows[path.stem]).name != info(method).name:
            raise InputError(f"{path} holds settings of '{path.stem}', which this study does not list; remove the file, or add the method to the study")
        found[path.stem] = _searched(rows[path.stem], method, source, study.provenance, path), source
    if not found:
        raise InputError(f"there are no tuned settings in {folder / 'tuned'}; search for them first: unlearnlab tune STUDY METHOD")
    return having(study, found)


def _searched(row: Method, held: Method, found: Origin, said: tuple[Origin, ...], path: Path) -> Method:
    """The row with the settings that were searched for; what --set says wins, and a search beside other settings is none for this row."""
    name, theirs = info(row).name, {at: value for at, value, _ in leaves(held)}
    values: dict[str, Any] = {}
    for at, mine, _ in leaves(row):
        whole = ("methods", name, *at)
        if not found.covers(whole):
            if theirs.get(at) != mine:
                what = f"{'.'.join(at)} = {theirs.get(at)}, and here it is {mine}"
                raise InputError(f"the settings in {path} were searched for with {what}; tune '{name}' again, or remove the file")
        elif (last := origin(whole, said)) is None or last.what != "changed":
            values[".".join(at)] = theirs[at]
    return cast(Method, settled(row, values))


def having(study: Study, found: Mapping[str, tuple[Method, Origin]]) -> Study:
    """The study with other methods in some of its rows, and where their settings come from."""
    methods = tuple(found[row][0] if row in found else method for row, method in listed(study).items())
    return replace(study, methods=methods, tune=None, provenance=(*study.provenance, *(source for _, source in found.values())))


def listed(study: Study) -> dict[str, Method]:
    """The rows of a study, without those that are always there."""
    return dict(list(study.rows().items())[len(CALIBRATION) :])
