"""Do other machines see the store, run the same versions, and have the GPUs that were asked for? Asked before their first job."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from unlearnlab.engine.jobs import Job
from unlearnlab.leases import unique
from unlearnlab.spec import InputError

PACKAGES = ("torch", "unlearnlab")  # what results hang on


class Beacon:
    """A file in the store, there while an engine is open, that other machines must see; it says which versions they must have."""

    def __init__(self, root: Path) -> None:
        self.root, self._file = root, root / f".engine-{unique()}"  # a name that no machine has looked up before: file systems remember what was not there
        self._file.write_text(json.dumps(_versions()))

    @property
    def path(self) -> str:
        return str(self._file)

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


def do(beacon: str, gpu: bool, job: Job) -> Any:
    """Do a job on another machine than the one that asked for it; raises ``InputError`` on one that cannot."""
    require(beacon, gpu)
    return job.function(*job.args)


@cache  # once in each process; errors come each time
def require(beacon: str, gpu: bool) -> None:
    """Raise ``InputError`` on a machine that cannot do the work of the machine whose beacon this is."""
    here = platform.node()
    try:
        wanted: dict[str, str] = json.loads(Path(beacon).read_text())
    except FileNotFoundError as error:
        shared = "choose a folder on a file system that all machines share, with $UNLEARNLAB_STORE"
        raise InputError(f"machine '{here}' does not see the store {Path(beacon).parent}; {shared}") from error
    for name, version in _versions().items():
        if version != wanted[name]:
            raise InputError(f"machine '{here}' has {name} {version} and the one that asks has {wanted[name]}: results would differ; install the same on both")
    if gpu:
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"machine '{here}': a job was given a GPU, and torch {torch.__version__} can use none there")


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}
