"""The folder of a study in a store: what its models said, found by its index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unlearnlab.layouts.arrays import Held, opened
from unlearnlab.layouts.ensembles import Listing
from unlearnlab.layouts.plain import OURS, read_file
from unlearnlab.spec import InputError
from unlearnlab.store import Store

INDEX = "index.json"
ROWS = "outputs/unlearned/"


def listing(folder: Path) -> Listing:
    file = folder / INDEX
    index: Any = opened(file, lambda: json.loads(file.read_text(encoding="utf-8")))
    again = f"unlearnlab run {folder.name}"
    if not isinstance(index, dict) or not {"outputs/oracle", "outputs/original"} <= set(index):
        raise InputError(f"the study in {folder} was not audited yet, so that nothing is known of what its models say; run it to its end: {again}")
    if folder.resolve().parent.name != "studies":
        raise InputError(f"{folder} is a study's folder taken out of its store, where the logits are; give STORE/studies/{folder.name}, or export it")
    root = folder.resolve().parent.parent
    loads = {name: partial(_read, root, index[name], again) for name in index if name.startswith("outputs/")}
    approaches = {name.removeprefix(ROWS): load for name, load in loads.items() if name.startswith(ROWS)}
    return Listing("study", loads["outputs/oracle"], approaches, loads["outputs/original"])


def _read(root: Path, names: Sequence[str], again: str) -> Held:
    """Several chunks of models, in order."""
    store, chunks = Store(root), []
    for kind, _, key in (name.partition("/") for name in names):
        if (found := store.get(kind, key)) is None:
            raise InputError(f"{kind}/{key} is no longer in the store {root}; make it again: {again}")
        chunks.append(read_file(found / OURS))
    if len(chunks) == 1:
        return chunks[0]
    first = chunks[0]
    logits, member = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("logits", "member"))
    models = tuple(seed for chunk in chunks for seed in chunk.models or ())
    return Held(first.file, logits, first.labels, first.ids, first.part, member, models)
