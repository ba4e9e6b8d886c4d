"""Our own file of scores: an npz with ``ids``, ``score``, ``sign`` (+1: higher = more memorised), ``config_hash`` and whatever stands beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from unlearnlab.contract import Scores
from unlearnlab.spec import InputError

REQUIRED = ("ids", "score", "sign", "config_hash", "name", "scale")


def write_npz(path: Path, scores: Scores, config_hash: str = "") -> None:
    """``config_hash``: names what the scores were made from, such as their key in a store."""
    words = {"sign": np.array(1), "config_hash": np.array(config_hash), "name": np.array(scores.name), "scale": np.array(scores.scale)}
    clash = sorted(set(scores.beside) & {"ids", "score", *words})
    assert not clash, f"arrays beside a score may not be called {clash}"
    beside = {name: tensor.detach().cpu().numpy() for name, tensor in scores.beside.items()}
    arrays: dict[str, Any] = {"ids": scores.ids.cpu().numpy(), "score": scores.values.double().cpu().numpy(), **words, **beside}
    np.savez(path, **arrays)


def read_npz(path: Path) -> Scores:
    """What ``write_npz`` wrote; raises ``InputError`` for a file that is no such thing."""
    with np.load(path, allow_pickle=False) as held:
        missing = [name for name in REQUIRED if name not in held.files]
        if missing:
            raise InputError(f"{path} has no '{missing[0]}'; expected the arrays {', '.join(REQUIRED)} (it has: {', '.join(held.files)})")
        scale = str(held["scale"])
        if scale not in ("memorisation", "proxy"):
            raise InputError(f"{path} says scale = '{scale}'; expected memorisation or proxy")
        beside: dict[str, Any] = {name: torch.from_numpy(held[name]) for name in held.files if name not in REQUIRED}
        values = torch.from_numpy(held["score"]).double() * int(held["sign"])
        return Scores(str(held["name"]), torch.from_numpy(held["ids"]).long(), values, cast(Literal["memorisation", "proxy"], scale), beside)
