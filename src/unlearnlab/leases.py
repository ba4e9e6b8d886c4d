"""Leases: lock files that their holder keeps touching and that anyone may take over once they are stale.

That works on network file systems, where flock does not. POSIX only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

_waits = ContextVar("waits", default=True)


class Busy(Exception):  # noqa: N818 - no error
    """What was asked for is being made by another process, and whoever asked would rather do something else meanwhile."""


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Here whoever comes upon a lock that another process holds gets ``Busy`` instead of waiting."""
    before = _waits.set(False)
    try:
        yield
    finally:
        _waits.reset(before)


def wait_for(what: str) -> None:
    """Called before waiting for another process: raises ``Busy`` for one that is not to wait."""
    if not _waits.get():
        raise Busy(what)


@contextlib.contextmanager
def claim(path: Path, lease: float) -> Iterator[bool]:
    """Hold a lock, taken over where it is stale, and keep touching it; False while another process holds it."""
    if not _create_lock(path, lease):
        yield False
        return
    token, done = _read_lock(path)[0].get("token"), threading.Event()

    def beat() -> None:
        while not done.wait(lease / 6):
            with contextlib.suppress(OSError):  # a network file system may be away for a moment
                if _read_lock(path)[0].get("token") != token:
                    return  # taken over while we were stopped: not ours to keep alive
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(FileNotFoundError):
            if (seen := _read_lock(path))[0].get("token") == token:
                _displace(path, seen, lease)


def _create_lock(path: Path, lease: float) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        seen = _read_lock(path)
        if _is_alive(seen[0]) and _clock(path) - seen[1] <= lease:
            return False
        _displace(path, seen, lease)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with contextlib.suppress(OSError), open(handle, "w", encoding="utf-8") as file:  # an empty file locks too: tidy must work on a full disk
        json.dump({"host": _host(), "pid": os.getpid(), "token": secrets.token_hex(8)}, file)
    return True


def _read_lock(path: Path) -> tuple[dict[str, Any], float]:
    """Who holds a lock ({} while that is being written), and when it was last touched."""
    with path.open(encoding="utf-8") as file:  # opening, unlike a mere stat, makes NFS fetch fresh times
        try:
            holder = json.load(file)
        except ValueError:
            holder = {}
        return holder if isinstance(holder, dict) else {}, os.fstat(file.fileno()).st_mtime


def _clock(beside: Path) -> float:
    """The time by the file system's own clock: other machines' clocks may be off."""
    probe = beside.with_name(f"{beside.name}-{unique()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink(missing_ok=True)
    return now


def _displace(path: Path, seen: tuple[dict[str, Any], float], lease: float) -> None:
    """Remove a lock if it is still as it was seen.

    Nobody removes a lock without holding the guard named after its token. Without that, of two
    processes that find the same stale lock, the second removes the new lock of the first.
    """
    guard = path.with_name(f"{path.name}-{seen[0].get('token')}")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        if _clock(path) - guard.stat().st_mtime > lease:  # its holder died in the next lines
            guard.unlink()
        return
    try:
        if _read_lock(path) == seen:
            path.unlink()
    finally:
        guard.unlink(missing_ok=True)


@cache
def _host() -> str:
    """This machine and its table of processes: containers may share a host's name, but not its pids."""
    marks = [socket.gethostname()]
    with contextlib.suppress(OSError):
        marks += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(marks)


def _is_alive(holder: dict[str, Any]) -> bool:
    """False where a lock's holder is known to be dead, True where it may be alive."""
    if holder.get("host") == _host():
        try:
            os.kill(holder["pid"], 0)
            return Path(f"/proc/{holder['pid']}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie answers signals
        except ProcessLookupError:
            return False
        except OSError:
            pass  # another user's process, or a system without /proc
    return True


def unique() -> str:
    """A name no other process will think of."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"
