"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearnlab.leases import unique
from unlearnlab.spec import InputError


def check_free(folder: Path) -> None:
    """Raise ``InputError`` where a folder may not be written: something is there, or nothing to put it in."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder that is not there yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is there already, and not empty; give a folder that is not there yet, or remove it first")
    if folder.is_dir() and folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is the working folder; give a folder that is not there yet")
    if not folder.resolve().parent.is_dir():
        raise InputError(f"there is no folder {folder.resolve().parent} to write {folder.name} in; make it first")


def check_outside(folder: Path, data: Path) -> None:
    """Raise ``InputError`` where a report on ``data`` may not be written: into the data itself, or where nothing can be; a report's folder may be there."""
    whole, hint = folder.resolve(), "name another folder with --out"
    if data.resolve() in (whole, *whole.parents):
        raise InputError(f"{folder} lies in {data}, which is only read; {hint}")
    there = next(path for path in (whole, *whole.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"the report cannot go to {folder}: {there} is a file; {hint}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"the report cannot go to {folder}: {there} may not be written to; {hint}")


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``folder`` at a stroke; nothing is left of it after an error."""
    check_free(folder)
    whole = folder.resolve()
    part = whole.with_name(f".{whole.name}.{unique()}.partial")
    try:
        part.mkdir()
        yield part
        os.rename(part, whole)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; give a folder that you may write to, on a disk with room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def folder_name(name: str) -> str:
    """The name of an approach, which must do for a file."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise InputError(f"an approach called '{name}' cannot be a file of that name; give it a name without / and \\ that does not start with a dot")
    return name
