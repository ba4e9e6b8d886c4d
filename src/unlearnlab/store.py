"""A folder of artefacts named by hash: makes each thing once, checks what it reads, resumes anything.

An artefact is the folder ``<kind>/<key>/``: payload files and a ``manifest.json``. A folder that
exists is complete, because it was written as a temporary sibling and renamed. Around it may stand
``<key>.tmp-…`` (being written), ``<key>.partial`` (a job's resumable state) and ``<key>.lock``.

Locks are leases: files that their holder keeps touching and that anyone may take over once they
are stale. That works on network file systems, where flock does not. They only save double work;
what keeps artefacts whole is the rename, and the first one wins. POSIX only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from unlearnlab.leases import claim, unique, wait_for
from unlearnlab.spec import InputError, digest

MANIFEST = "manifest.json"
_NO_KINDS = ("studies", "damaged")  # folders of the store that hold no artefacts
_NAME = re.compile(r"[\w-]+")  # of kinds and keys: no dots, so that siblings cannot be mistaken for artefacts
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)  # other errors (too many open files …) say nothing about the artefact
_ABSENT = object()

# (path, mtime_ns, size) of the files whose checksum was found right by this process.
_verified: set[tuple[str, int, int]] = set()


@dataclass(frozen=True)
class Row:
    """One artefact in a listing; ``size`` in bytes, ``created`` as ISO 8601 in UTC."""

    kind: str
    key: str
    name: str
    size: int
    created: str


# Inside Store, `list` is a method.
Rows: TypeAlias = list[Row]
Lines: TypeAlias = list[str]
Pairs: TypeAlias = list[tuple[str, str]]
Triples: TypeAlias = list[tuple[str, str, str]]


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


class Store:
    """A folder of artefacts. ``say`` is given one line for the user now and then; ``lease`` is in seconds.

    Raises ``InputError`` where the folder cannot be written.
    """

    def __init__(self, path: str | Path, *, say: Callable[[str], None] = _to_stderr, lease: float = 60.0) -> None:
        self.root, self.say, self.lease = Path(path).expanduser().absolute(), say, lease
        probe = self.root / f".probe-{unique()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"store {self.root} is not writable: {error.strerror}; choose another with $UNLEARNLAB_STORE") from error

    @classmethod
    def default(cls) -> Store:
        """The store at ``$UNLEARNLAB_STORE``, or else ``.unlearnlab`` in the working folder."""
        return cls(os.environ.get("UNLEARNLAB_STORE") or ".unlearnlab")

    def get(self, kind: str, key: str) -> Path | None:
        """The complete and verified folder of an artefact, or None where it must be made (again).

        Checksums are verified on the first read in each process. A damaged artefact is moved to
        ``damaged/`` and the user is told.
        """
        folder = self._path(kind, key)
        try:
            before = folder.stat().st_ino
            fault = _fault(folder)
            if not fault:
                return folder
            if folder.stat().st_ino == before:  # else another process has set it aside and made it again
                self._set_aside(folder, fault)
        except FileNotFoundError:
            pass
        return None

    def make(self, kind: str, key: str, write: Callable[[Path], Mapping[str, Any] | None], *, manifest: Mapping[str, Any]) -> Path:
        """Get an artefact, or make it: ``write`` fills the folder it is given and may return further facts.

        ``manifest`` holds what the artefact *is* (spec, parents, seeds, inputs, data …, plain data;
        compared by ``why``), the facts what was measured while making it. When several processes
        ask at once, one makes it and the others wait (or, being impatient, raise ``leases.Busy``).
        """
        given = json.loads(json.dumps(dict(manifest)))  # fails before the work, not after it
        started, pause, told = time.monotonic(), 0.02, False
        while (found := self.get(kind, key)) is None:
            with claim(self._path(kind, key, ".lock"), self.lease) as ours:
                if ours:
                    return self.get(kind, key) or self._create(kind, key, write, given)
            wait_for(f"{kind}/{key}")
            if not told and time.monotonic() - started > 5:
                told = True
                self.say(f"waiting for {kind}/{key}: another process is making it")
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5)
        return found

    def partial(self, kind: str, key: str) -> Path:
        """The folder for the resumable state of the job that makes this artefact; gone once it is made."""
        folder = self._path(kind, key, ".partial")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save_partial(self, kind: str, key: str, name: str, write: Callable[[Path], object]) -> Path:
        """Replace one file of the resumable state at a stroke: ``write`` fills the file it is given."""
        path = self.partial(kind, key) / name
        _replace(path, write)
        return path

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """What is recorded about an artefact; its payload is not verified."""
        try:
            return _read_manifest(self._path(kind, key))
        except (OSError, ValueError) as error:
            raise InputError(f"{kind}/{key} in the store {self.root} has no readable manifest: {error}") from error

    def list(self, kind: str | None = None) -> Rows:
        """All artefacts (of a kind), sorted by kind and key; names from the manifest or its spec."""
        return [self._row(*entry) for entry in self._entries() if kind in (None, entry[0])]

    def find(self, prefix: str) -> tuple[str, str]:
        """Kind and key of the one artefact whose key starts so; ``kind/prefix`` narrows it down."""
        kind, _, start = prefix.rpartition("/")
        matches = [entry for entry in self._entries() if entry[1].startswith(start) and kind in ("", entry[0])]
        matches = [entry for entry in matches if entry[1] == start] or matches
        if not matches:
            raise InputError(f"no artefact in the store {self.root} has a key that starts with '{prefix}'")
        if len(matches) > 1:
            some = ", ".join("/".join(entry) for entry in matches[:4]) + (" …" if len(matches) > 4 else "")
            raise InputError(f"'{prefix}' is ambiguous: {some}; write more of the key, or kind/key")
        return matches[0]

    def why(self, key_a: str, key_b: str) -> Lines:
        """Why two artefacts are not the same one: ``spec.settings.lr: 0.1 -> 0.01``, followed into their parents."""
        told: dict[tuple[str, str], str] = {}
        for path, leaf, change in self._compare(self.find(key_a), self.find(key_b), set()):
            told.setdefault((leaf, change), f"{path}{leaf}: {change}")  # the same change in eight sibling parents is told once
        return [*told.values()]

    def tidy(self, live: Set[tuple[str, str]], *, dry_run: bool = False) -> tuple[int, int]:
        """Remove every artefact but the live ones, and what dead processes left; returns count and bytes.

        Nothing that another process holds the lock of is touched. The resumable state of a live
        artefact that is not yet made stays.
        """
        removed = [_remove(path, dry_run) for path in (self.root / "damaged").glob("*")]
        waste = [(kind, key, end) for kind, key, end in self._files() if self._is_waste(kind, key, end, live)]
        for (kind, key), ends in itertools.groupby(waste, key=lambda found: found[:2]):
            with claim(self._path(kind, key, ".lock"), self.lease) as ours:  # a stale lock goes by being claimed
                if ours:
                    paths = [self._path(kind, key, end) for *_, end in ends if end != ".lock"]
                    removed += [_remove(path, dry_run) for path in paths if path.exists()]
        return len(removed), sum(removed)

    def study(self, name: str) -> Path:
        """The folder of a study's files for people, made if need be."""
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"a study's name is made of letters, digits, '.', '_' and '-', got '{name}'")
        folder = self.root / "studies" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _path(self, kind: str, key: str, end: str = "") -> Path:
        assert kind not in _NO_KINDS and _NAME.fullmatch(kind) and _NAME.fullmatch(key), f"no kind and key of an artefact: {kind!r}, {key!r}"  # noqa: PT018
        return self.root / kind / f"{key}{end}"

    def _create(self, kind: str, key: str, write: Callable[[Path], Mapping[str, Any] | None], given: dict[str, Any]) -> Path:
        folder, temporary = self._path(kind, key), self._path(kind, key, f".tmp-{unique()}")
        try:
            with _writing(folder):
                temporary.mkdir(parents=True)
                started = time.perf_counter()
                facts = write(temporary) or {}
                seconds = round(time.perf_counter() - started, 3)
                _seal(temporary, {**facts, **given, "kind": kind, "key": key, "identity": [*given], "seconds": seconds, **_circumstances()})
            while True:
                try:
                    os.rename(temporary, folder)
                    _sync(folder.parent)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                # Ours, or that of a process which lost its lease to us and finished first: that one wins.
                if (made := self.get(kind, key)) is not None:
                    shutil.rmtree(self._path(kind, key, ".partial"), ignore_errors=True)
                    return made
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _set_aside(self, folder: Path, fault: str) -> None:
        (self.root / "damaged").mkdir(exist_ok=True)
        for number in itertools.count(1):
            target = self.root / "damaged" / f"{folder.parent.name}-{folder.name}-{number}"
            if not target.exists():
                os.rename(folder, target)
                self.say(f"{folder.parent.name}/{folder.name} is damaged ({fault}); moved to {target}, to be made again")
                break

    def _files(self) -> Triples:
        """(kind, key, ending) of everything in the folders of kinds; an artefact itself has no ending."""
        kinds = [kind for kind in os.listdir(self.root) if _NAME.fullmatch(kind) and kind not in _NO_KINDS and (self.root / kind).is_dir()]
        parts = [(kind, name.partition(".")) for kind in kinds for name in os.listdir(self.root / kind)]
        return sorted((kind, key, dot + end) for kind, (key, dot, end) in parts if _NAME.fullmatch(key))

    def _entries(self) -> Pairs:
        return [(kind, key) for kind, key, end in self._files() if not end]

    def _row(self, kind: str, key: str) -> Row:
        try:
            body = self.manifest(kind, key)
        except InputError:
            return Row(kind, key, "(unreadable manifest)", 0, "")
        spec = body.get("spec")
        name = body.get("name") or (spec.get("name") if isinstance(spec, dict) else None) or ""
        return Row(kind, key, str(name), sum(fact["size"] for fact in body["files"].values()), body["created"])

    def _is_waste(self, kind: str, key: str, end: str, live: Set[tuple[str, str]]) -> bool:
        folder = self.root / kind / key
        if not end:
            return (kind, key) not in live and (folder / MANIFEST).exists()  # what has no manifest is not ours
        if end == ".partial":
            return (kind, key) not in live or folder.exists()
        return end.startswith((".tmp-", ".lock"))

    def _compare(self, a: tuple[str, str], b: tuple[str, str], seen: set[object]) -> Iterator[tuple[str, str, str]]:
        bodies = self.manifest(*a), self.manifest(*b)
        left, right = ({name: body[name] for name in ["kind", *body["identity"]] if name != "name"} for body in bodies)
        if left == right and a != b:
            yield "", "key", f"{_show(a[1])} -> {_show(b[1])}"
        for leaf, x, y in _differences(left, right, ""):
            parents = self._artefact(x), self._artefact(y)
            if parents[0] is None or parents[1] is None:
                yield "", leaf, f"{_show(x)} -> {_show(y)}"
            elif parents not in seen:
                seen.add(parents)
                yield from ((f"{leaf}.{path}", end, change) for path, end, change in self._compare(parents[0], parents[1], seen))

    def _artefact(self, value: object) -> tuple[str, str] | None:
        """The artefact that a manifest's value (``key`` or ``kind/key``) names, if it is here."""
        if isinstance(value, str) and re.fullmatch(r"([\w-]+/)?[\w-]+", value):
            kind, _, key = value.rpartition("/")
            for path in self.root.glob(f"{kind or '*'}/{key}/{MANIFEST}"):
                return path.parts[-3], key
        return None


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file at a stroke: readers find the old text or the new one, never half of it."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full disk into one line for the user."""
    try:
        yield
    except Exception as error:
        # safetensors and torch raise errors of their own, with the system's words in them
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            raise InputError(f"the disk is full: could not write {path}; free some space, or choose another store with $UNLEARNLAB_STORE") from error
        raise


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".tmp-{unique()}-{path.name}")  # the ending stays: some writers go by it
    try:
        with _writing(path):
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path, dry_run: bool) -> int:
    """Remove a file or folder; returns its size in bytes."""
    size = sum(part.lstat().st_size for part in [path, *path.rglob("*")] if not part.is_dir())
    if not dry_run and not path.is_dir():
        path.unlink(missing_ok=True)
    elif not dry_run:
        doomed = path.with_name(f"{path.name.partition('.')[0]}.tmp-{unique()}")
        os.rename(path, doomed)  # first out of sight: half an artefact must never be seen
        shutil.rmtree(doomed)
    return size


def _seal(folder: Path, body: dict[str, Any]) -> None:
    """Write the manifest with the checksums of all files, and put everything safely on the disk."""
    assert not (folder / MANIFEST).exists(), "the manifest is written by the store"
    files, folders = {}, [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            files[path.relative_to(folder).as_posix()] = {"sha256": _checksum(path), "size": path.stat().st_size}
            _sync(path)
    body = json.loads(json.dumps({**body, "files": files}))  # as it will be read: tuples are lists, all names are text
    (folder / MANIFEST).write_text(json.dumps({**body, "digest": digest(body)}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in [folder / MANIFEST, *folders]:
        _sync(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(body, dict) or body.pop("digest", None) != digest(body):
        raise ValueError(f"{MANIFEST} has changed")
    return body


def _fault(folder: Path) -> str:
    """What is wrong with an artefact; empty where nothing is."""
    name = MANIFEST
    try:
        for name, fact in _read_manifest(folder)["files"].items():
            stat = (folder / name).stat()
            seen = (str(folder / name), stat.st_mtime_ns, stat.st_size)
            if seen not in _verified:
                if stat.st_size != fact["size"] or _checksum(folder / name) != fact["sha256"]:
                    return f"{name} is not as it was written"
                _verified.add(seen)
    except ValueError:
        return f"{MANIFEST} is not as it was written"
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        return f"{name}: {error.strerror}"
    return ""


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _versions() -> tuple[dict[str, str | None], str | None]:
    """Versions of what the result hangs on, and the commit where we run from a checkout (``-dirty`` if changed)."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "unlearnlab"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    checkout, commit = Path(__file__).parents[2], None
    if (checkout / ".git").exists():
        command = ["git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return versions, commit


def _circumstances() -> dict[str, Any]:
    versions, commit = _versions()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit  # of the whole process up to now, in bytes
    return {"peak_memory": peak, "created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions, "commit": commit}


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two pieces of plain data differ, as (dotted path, one, other)."""
    pairs: list[tuple[object, Any, Any]] = []
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(name, a.get(name, _ABSENT), b.get(name, _ABSENT)) for name in {**a, **b}]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and not all(isinstance(item, (int, float)) for item in a + b):
        pairs = [(number, *pair) for number, pair in enumerate(zip(a, b, strict=True))]
    elif a is _ABSENT or b is _ABSENT or a != b:
        yield path, a, b
    for name, x, y in pairs:
        yield from _differences(x, y, f"{path}.{name}" if path else str(name))


def _show(value: object) -> str:
    text = "(absent)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
