"""Write ``keys.json``: the key of every registered spec that needs no settings, at its defaults.

python tests/golden/make.py
"""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

from unlearnlab.spec import HOMES, fields, key, lookup, names


def default_keys() -> dict[str, str]:
    """``kind/name`` -> key."""
    found = {}
    for kind in HOMES:
        for name in names(kind) if find_spec(HOMES[kind]) else []:
            cls = lookup(kind, name)
            ours = cls.__module__.startswith("unlearnlab.")  # a test or a plugin may have filed more
            if ours and all(field.default is not dataclasses.MISSING for field in fields(cls)):
                found[f"{kind}/{name}"] = key(cls())
    return dict(sorted(found.items()))


if __name__ == "__main__":
    Path(__file__).with_name("keys.json").write_text(json.dumps(default_keys(), indent=1) + "\n")
