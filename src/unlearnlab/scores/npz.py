"""Files of scores: our own npz (``ids``, ``score``, ``sign`` = +1: higher = more memorised, ``config_hash``, and what stands beside), and public layouts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.spec import InputError

REQUIRED = ("ids", "score", "sign", "config_hash", "name", "scale")
Layout = Literal["own", "memorization", "tr_mem"]


def write_npz(path: Path, scores: Scores, config_hash: str = "") -> None:
    """``config_hash``: names what the scores were made from, such as their key in a store."""
    np.savez(path, **_own(scores, config_hash))


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


def write_scores(path: Path, scores: Scores, layout: Layout = "own", images: Images | None = None, config_hash: str = "") -> None:
    """Write scores to a file that other people's code reads; ``file`` reads them all back. What stands beside is kept in ``own`` alone.

    ``memorization`` (RUM's file of CIFAR-10): float32, by row of the release; ``tr_mem`` (the public file of CIFAR-100): the same, with the labels of
    the release as ``tr_labels``. Both mean memorisation, so that a proxy is refused. ``images``: those of the release's training images that there
    are (``Images.join`` of the parts trained on and held out): rows up to the highest id are written, NaN where there is no score, label −1 where
    there is no image.
    """
    arrays = _own(scores, config_hash) if layout == "own" else _by_row(scores, layout, images)
    part = path.with_name(f".{path.name}.partial")
    try:
        with part.open("wb") as file:  # a path would get .npz appended
            np.savez(file, **arrays)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write the scores to {path}: {error.strerror}; give a path in an existing folder that you may write to") from error
    finally:
        part.unlink(missing_ok=True)


def _own(scores: Scores, config_hash: str) -> dict[str, Any]:
    words = {"sign": np.array(1), "config_hash": np.array(config_hash), "name": np.array(scores.name), "scale": np.array(scores.scale)}
    clash = sorted(set(scores.beside) & {"ids", "score", *words})
    assert not clash, f"arrays beside a score may not be called {clash}"
    beside = {name: tensor.detach().cpu().numpy() for name, tensor in scores.beside.items()}
    return {"ids": scores.ids.cpu().numpy(), "score": scores.values.double().cpu().numpy(), **words, **beside}


def _by_row(scores: Scores, layout: Layout, images: Images | None) -> dict[str, Any]:
    if scores.scale != "memorisation":
        raise InputError(f"score '{scores.name}' is a proxy, and the layout '{layout}' means memorisation; write it with the layout 'own'")
    if images is None and layout == "tr_mem":
        raise InputError("the layout 'tr_mem' holds the labels of the release; give the images that were scored")
    ids = scores.ids.cpu()
    known = ids if images is None else images.ids.cpu()
    strange = ids[~torch.isin(ids, known)]
    if len(strange):
        raise InputError(f"image id {int(strange[0])} has a score '{scores.name}', but is not among the {len(known)} images given; give all that were scored")
    rows = int(known.max()) + 1 if len(known) else 0
    values = torch.full((rows,), torch.nan)
    values[ids] = scores.values.float().cpu()
    arrays: dict[str, Any] = {layout: values.numpy()}
    if images is not None and layout == "tr_mem":
        labels = torch.full((rows,), -1)
        labels[known] = images.true_labels.cpu()
        arrays["tr_labels"] = labels.numpy()
    return arrays
