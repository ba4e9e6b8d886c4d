"""Under which names studies are kept in a store, and the commands that make what is kept under a name."""

from __future__ import annotations

import re
from pathlib import Path

SMALL = "-small"  # what the name of a study, or of its family, ends with in the small form


def kept_as(study: str) -> str:
    """Under which name a study is kept: given as for ``run``, by its name, FILE.toml or FILE.toml.VARIANT, or by that name itself."""
    return re.sub(r"\.toml(?=\.|$)", "", Path(study).name)


def asked(name: str) -> tuple[str, bool]:
    """What to ask for in order to make what is kept under a name, and whether in the small form; requests are of a study."""
    whole = re.sub(r"\.request-\d+$", "", name)
    family, small, variant = whole.rpartition(SMALL)
    if not small or variant[:1] not in ("", ".") or "/" in variant or ".toml" in variant:
        return whole, False
    return family + variant, True


def again(name: str) -> str:
    """The command that runs what is kept under a name."""
    study, small = asked(name)
    return f"unlearnlab run {study}" + " --small" * small
