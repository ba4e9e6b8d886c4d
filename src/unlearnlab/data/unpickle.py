"""Reading the pickles of a release without running what may stand in them: only NumPy arrays can be rebuilt."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from unlearnlab.data.source import damaged
from unlearnlab.spec import InputError, info

# The release was written by Python 2 and NumPy 1, subsets of it by whatever their makers had; NumPy 2 renamed its core.
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


def read_pickle(dataset: Any, path: Path) -> dict[str, Any]:
    """The dict in a pickle, with its keys as text; Python 2's strings come as bytes. Nothing that the file names is imported or run."""
    try:
        with path.open("rb") as file:
            found = Arrays(file, dataset, path).load()
    except InputError:
        raise
    except Exception as error:  # garbage makes the unpickler raise nearly anything
        reason = " ".join(str(error).split())
        raise damaged(dataset, path, f"is truncated or damaged: its {path.stat().st_size} bytes are no whole pickle ({reason})") from error
    if not isinstance(found, dict):
        raise damaged(dataset, path, f"holds a {type(found).__name__}, expected a dict")
    return {text(key): value for key, value in found.items()}


def text(held: object) -> str:
    """Text, whether Python 2 or 3 wrote it."""
    return held.decode("latin1") if isinstance(held, bytes) else str(held)


class Arrays(pickle.Unpickler):
    """Gives a pickle none of the functions it asks for but those that rebuild arrays."""

    def __init__(self, file: Any, dataset: Any, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self.dataset, self.path = dataset, path

    def find_class(self, module: str, name: str) -> Any:
        # A pickle can set attributes of what it gets from here, so functions are made anew each time, and the rest is written in C.
        if (module, name) in _RECONSTRUCT:
            return np.empty(0).__reduce__()[0]  # by this way it has the same name in every NumPy
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):  # the release says 0 and 1 where NumPy now wants False and True
            return lambda kind, align=False, copy=False: np.dtype(kind, bool(align), bool(copy))
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda held, encoding: held.encode("latin1")
        raise InputError(
            f"dataset '{info(self.dataset).name}': {self.path} asks for {module}.{name}, expected nothing but NumPy arrays; "
            "none of it was run: replace it with a copy from the release"
        )
