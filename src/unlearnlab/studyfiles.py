"""Studies in TOML files and presets: reading them, changing settings, families of variants, the small form."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from unlearnlab.naming import SMALL, again, asked
from unlearnlab.small import shrink
from unlearnlab.spec import InputError, build, info, suggest, to_dict
from unlearnlab.study import Study
from unlearnlab.terms import Origin, by_path, check, leaves


@dataclass(frozen=True)
class Family:
    """What one file holds: a single study under the file's name, or one for each of its variants, called ``file.variant``."""

    name: str
    studies: Mapping[str, Study]

    @property
    def only(self) -> Study | None:
        """The study, where there are no variants."""
        return self.studies.get(self.name)


def presets() -> dict[str, Path]:
    """The studies shipped with the package, by name."""
    folder = Path(str(resources.files("unlearnlab") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read(study: str, changes: Sequence[str] = (), *, small: bool = False) -> tuple[str, Study]:
    """Name and value of one study: a preset's name, ``family.variant`` or a TOML file, with ``a.b=value`` changes applied.

    ``small``: in its small form. Raises ``InputError`` for a file of several variants.
    """
    family = read_family(study, changes, small=small)
    if len(family.studies) > 1:
        there = [f"{study}.{one.removeprefix(family.name + '.')}" for one in family.studies]
        raise InputError(f"'{study}' holds {len(family.studies)} studies, and one is expected here; name one of: {', '.join(there)}")
    return next(iter(family.studies.items()))


def read_family(study: str, changes: Sequence[str] = (), *, small: bool = False) -> Family:
    """All studies of a preset or TOML file, or the one named as ``family.variant``; ``a.b=value`` changes apply to each."""
    name, path, variant = _find(study)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the study {path}: {error.strerror}; give a preset ({', '.join(presets())}) or a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the study {path} is not valid TOML: {error}") from error
    variants: Any = table.pop("variants", {})
    if not isinstance(variants, Mapping) or not all(isinstance(held, Mapping) for held in variants.values()):
        raise InputError(f'the variants of {path} must be tables of changes, such as [variants.sparse] with "prune.sparsity" = 0.9')
    if odd := [one for one in variants if not re.fullmatch(r"\w[\w-]*", one)]:
        raise InputError(f"'{odd[0]}' in {path} cannot be the name of a variant, of which files are named; use letters, digits, _ and -")
    if variant is not None and variant not in variants:
        raise InputError(f"'{name}' has no variant '{variant}'{suggest(variant, variants)}; it has: {', '.join(variants) or 'none'}")
    base = build("study", {"name": "study", **table})
    made = {one: _varied(base, held, f"variant '{one}' of {path.name}") for one, held in variants.items()} or {"": base}
    check(base.provenance, [at for one in made.values() for at, _, _ in leaves(one)])
    name += SMALL if small else ""
    chosen = {one: held for one, held in made.items() if variant in (None, one)}
    studies = {f"{name}.{one}" if one else name: _final(held, changes, len(made) if small else 0) for one, held in chosen.items()}
    return Family(name if variant is None else f"{name}.{variant}", studies)


def _find(study: str) -> tuple[str, Path, str | None]:
    """Name, file and variant of what was asked for."""
    known, path = presets(), Path(study)
    if path.suffix == ".toml":
        return path.stem, path, None
    if study in known:
        return study, known[study], None
    head, dot, variant = study.rpartition(".")
    if dot and head in known:
        return head, known[head], variant
    if dot and head.endswith(".toml"):
        return Path(head).stem, Path(head), variant
    if asked(study)[1]:
        raise InputError(f"'{study}' is what the small form of a study is kept under; to run it: {again(study)}")
    raise InputError(f"unknown study '{study}'{suggest(study, known)}; presets: {', '.join(known)}; or give the path of a .toml file")


def _varied(base: Study, held: Mapping[str, Any], where: str) -> Study:
    resolved = to_dict(base)
    try:
        for path, value in held.items():
            change(resolved, path, value)
        return cast(Study, build("study", resolved))
    except InputError as error:
        tables = [path for path, value in held.items() if isinstance(value, Mapping) and "name" not in value]
        hint = f'; a table stands for the whole of {tables[0]}: to change a setting of it, quote the path, "{tables[0]}.…" = …' if tables else ""
        raise InputError(f"{where}: {error}{hint}") from error


def _final(study: Study, changes: Sequence[str], small: int) -> Study:
    """The small form and the changes of the command line, each with a word on where its settings come from.

    ``small``: of a family of so many studies; 0: not made small.
    """
    if small:
        before = study
        study = cast(Study, build("study", shrink(to_dict(study), small)))
        study = replace(study, provenance=(*study.provenance, *_scaled(before, study)))
    if not changes:
        return study
    resolved, paths = to_dict(study), []
    for one in changes:
        path, value = parse(one)
        change(resolved, path, value)
        paths.append(path.removesuffix(".name"))  # another name is another spec, with settings of its own
    study = cast(Study, build("study", resolved))
    if small and info(study.dataset).name not in ("digits", "digits_pairs"):
        study = replace(study, title=study.title.replace("(small form, on digits)", "(small form)"))
    # a change may have replaced what the provenance speaks of
    there = [at for at, _, _ in leaves(study)]
    named = [path for path in paths if any(Origin("changed", (path,)).covers(at) for at in there)]
    return replace(study, provenance=(*study.provenance, *([Origin("changed", tuple(named), "--set")] if named else [])))


def _scaled(before: Study, after: Study) -> list[Origin]:
    """What the small form has changed."""
    old = by_path(before)
    found = [".".join(path) for path, held in by_path(after).items() if old.get(path) != held and path[0] not in ("notes", "title", "provenance")]
    return [Origin("scaled", tuple(found), "--small: the rules are in docs/presets.md")] if found else []


def parse(text: str) -> tuple[str, Any]:
    """Path and value of one ``a.b=value``."""
    where, equals, value = text.partition("=")
    if not equals or not where.strip():
        raise InputError(f"cannot read the change '{text}'; expected a.b=value, such as recipe.epochs=30")
    try:
        return where.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return where.strip(), value


def change(table: dict[str, Any], where: str, value: Any) -> None:
    """Apply one change to a resolved study; a list of named tables is entered by name (``methods.salun.budget``), or by * for all that have the setting."""
    *path, last = where.split(".")
    if "*" in path:
        _change_all(table, path, last, value, where)
        return
    here: Any = table
    for step in path:
        if isinstance(here, list):
            named = [item for item in here if isinstance(item, dict) and "name" in item]
            found = [item for item in named if item["name"] == step]
            if not found:
                names = [item["name"] for item in named]
                whole = f'{where.split(f".{step}.")[0]}=[{{name="{step}", {last}={value}}}]'
                there = f"there are: {', '.join(names)}" if names else f"the study lists none: give the whole list, {whole}"
                raise InputError(f"cannot change '{where}': there is no '{step}'{suggest(step, names)}; {there}")
            if len(found) > 1:
                raise InputError(
                    f"cannot change '{where}': there are {len(found)} '{step}' and it is not clear which is meant; change it in the .toml file,"
                    f" or all with {where.replace(step, '*', 1)}"
                )
            here = found[0]
        else:
            if step in here and isinstance(here[step], str):
                here[step] = {"name": here[step]}
            here = here.get(step)
            if not isinstance(here, (dict, list)):
                hint = f"; give it first, such as --set {step}=…" if step in table else suggest(step, table)
                raise InputError(f"cannot change '{where}': the study has no '{step}' to change{hint}")
    if isinstance(here, list):
        raise InputError(f"cannot change '{where}': name a setting of '{last}', such as {where}.lr=0.01")
    _put(here, last, value, nested=bool(path))


def _change_all(table: dict[str, Any], path: Sequence[str], last: str, value: Any, where: str) -> None:
    places: list[Any] = [table]
    for step in path:
        inner: list[Any] = []
        for here in places:
            if isinstance(here, list):
                inner += [one for one in here if isinstance(one, dict) and step in ("*", one.get("name"))]
            elif step == "*":
                inner += [one for one in here.values() if isinstance(one, (dict, list))]
            elif isinstance(here.get(step), (dict, list)):
                inner.append(here[step])
        places = inner
    chosen = [here for here in places if isinstance(here, dict) and last in here]
    if not chosen:
        raise InputError(f"cannot change '{where}': nothing there has a setting '{last}'")
    for here in chosen:
        _put(here, last, value, nested=True)


def _put(here: dict[str, Any], last: str, value: Any, *, nested: bool) -> None:
    if last == "name" and nested and here.get("name") != value:
        here.clear()  # another spec comes with its own defaults
    here[last] = value
